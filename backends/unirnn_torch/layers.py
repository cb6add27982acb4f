"""The implementations of the routes: how a whole stack is computed, over `(T, B, I)`.

Which of them runs a call is decided by `unirnn_torch.dispatch.route`.
"""

from functools import partial
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unirnn import RecurrentSpec, reference
from unirnn.contract.call import join_state
from unirnn.kernels.compiled import cell_of

from . import compiled, exporting, native, operators
from .compiled import Call
from .dispatch import Route

__all__ = ["Stack", "run"]

State = tuple[Tensor, ...]
Lengths = NDArray[np.int64] | Tensor | None


class Stack(NamedTuple):
    """The layers of a call, whatever computes them.

    Parameters
    ----------
    spec
        What they are.
    mode
        The cell, as `torch.nn.RNNBase` calls it.
    weights
        By the names of `Spec.weight_shapes`, and in that order.
    dropout
        The probability between layers; 0 unless the module is training.
    training
        Whether to run the native call in training mode.
    needs_grad
        Whether a backward pass may follow.
    """

    spec: RecurrentSpec
    mode: str
    weights: dict[str, Tensor]
    dropout: float
    training: bool
    needs_grad: bool

    def directions(self) -> list[reference.Weights]:
        """The weights of each layer and direction, in the order of the state; without a projection."""
        flat, count = list(self.weights.values()), 4 if self.spec.bias else 2
        biases = () if self.spec.bias else (None, None)
        return [reference.Weights(*flat[k : k + count], *biases) for k in range(0, len(flat), count)]

    def native_arguments(self) -> tuple[list[Tensor], bool, int, float, bool, bool]:
        """What follows input and state in a native call of the whole stack."""
        spec = self.spec
        return list(self.weights.values()), spec.bias, spec.num_layers, self.dropout, self.training, spec.bidirectional


def run(route: Route, stack: Stack, x: Tensor, state: State | None, lengths: Lengths) -> tuple[Tensor, State]:
    """Compute a call.

    Parameters
    ----------
    route
        How.
    stack
        The layers.
    x
        `(T, B, I)`.
    state
        The initial state, `(L*D, B, H)` each; None is zeros.
    lengths
        `(B,)`, checked, on the host, or in a graph a tensor; None if every step is valid.

    Returns
    -------
    output
        `(T, B, D*H)`, zero in the padding.
    final_state
        `(L*D, B, H)` each.
    """
    direct = route is Route.COMPILED and not operators.needs_operator(x, state or (), stack.weights.values())
    if direct and not stack.needs_grad:
        ns = torch.from_numpy(lengths) if isinstance(lengths, np.ndarray) else lengths
        return _infer(stack, x, state, ns)
    if state is None:
        state = tuple([x.new_zeros(shape) for shape in stack.spec.state_shapes(x.shape[1]).values()])
    if route is Route.DENSE:
        output, *final = native.NATIVE[stack.mode](x, join_state(state), *stack.native_arguments(), False)
        return output, tuple(final)
    if route is Route.VALID_STEPS and isinstance(lengths, np.ndarray):
        return _valid_steps(stack, x, state, lengths)
    if isinstance(lengths, np.ndarray):
        ns = torch.from_numpy(lengths).to(x.device, non_blocking=True)
    else:
        ns = None if lengths is None else lengths.to(x.device)
    if route.by_operators:
        return _operators(stack, x, state, ns, partial(operators.layer, kernel=route.value, direct=direct))
    return reference.recurrent(
        xp,
        stack.spec,
        stack.weights,
        x,
        state,
        ns,
        dropout=partial(_dropout, stack) if stack.dropout else None,
        direction=reference.direction if route is Route.REFERENCE else native.direction,
    )


def _valid_steps(stack: Stack, x: Tensor, state: State, lengths: NDArray[np.int64]) -> tuple[Tensor, State]:
    """One native call over the valid steps, in torch's packed form; sequences of length 0 are left out."""
    steps, batch_size, _ = x.shape
    longest_first = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    batch_sizes = torch.from_numpy((np.arange(steps)[:, None] < lengths[longest_first]).sum(axis=1))
    order, active = (part.to(x.device, non_blocking=True) for part in (torch.from_numpy(longest_first), batch_sizes))
    count = int(lengths.sum())
    step = torch.repeat_interleave(active, output_size=count)
    position = torch.arange(count, device=x.device) - (active.cumsum(0) - active).index_select(0, step)
    rows = step * batch_size + order.index_select(0, position)
    results, *final = native.NATIVE[stack.mode](
        x.reshape(-1, x.shape[2]).index_select(0, rows),
        batch_sizes,
        join_state([part.index_select(1, order) for part in state]),
        *stack.native_arguments(),
    )
    # Under autocast the results may be narrower than the input.
    output = results.new_zeros((steps * batch_size, results.shape[1])).index_copy(0, rows, results)
    whole = (part.to(last.dtype).index_copy(1, order, last) for part, last in zip(state, final, strict=True))
    return output.view(steps, batch_size, -1), tuple(whole)


def _infer(stack: Stack, x: Tensor, state: State | None, lengths: Tensor | None) -> tuple[Tensor, State]:
    """The compiled kernels without gradients: each direction writes into its part of the results."""
    spec = stack.spec
    cell, width, size = cell_of(spec), spec.num_directions, spec.hidden_size
    steps, batch_size, _ = x.shape
    weights = stack.directions()
    shape = len(weights), batch_size, size
    final = (x.new_empty(shape), x.new_empty(shape)) if cell == "LSTM" else (x.new_empty(shape),)
    begins = [()] * len(weights) if state is None else list(zip(*[part.unbind() for part in state], strict=True))
    output = x
    for k, end in enumerate(zip(*[part.unbind() for part in final], strict=True)):
        layer, reverse = divmod(k, width)
        if not reverse:
            x = _dropout(stack, output) if layer and stack.dropout else output
            output = x.new_empty((steps, batch_size, width * size))
        own = output if width == 1 else output[:, :, reverse * size : (reverse + 1) * size]
        compiled.forward(Call(cell, x, lengths, begins[k], weights[k], reverse == 1), own, end, None)
    return output, final


def _operators(stack: Stack, x: Tensor, state: State, lengths: Tensor | None, layer: Any) -> tuple[Tensor, State]:
    """One operator for each layer and direction; in an export to ONNX, one node for each layer."""
    spec = stack.spec
    device = x.device.type
    if native.autocast_is_on(device):
        dtype = torch.get_autocast_dtype(device)
        x, state = x.to(dtype), tuple(part.to(dtype) for part in state)
        stack = stack._replace(weights={name: weight.to(dtype) for name, weight in stack.weights.items()})
    if torch.onnx.is_in_onnx_export():
        layer = exporting.layer
    cell, width, weights, finals = cell_of(spec), spec.num_directions, stack.directions(), []
    for k in range(spec.num_layers):
        own = slice(k * width, (k + 1) * width)
        x, final = layer(cell, x, lengths, [part[own] for part in state], weights[own])
        finals.append(final)
        if stack.dropout and k < spec.num_layers - 1:
            x = _dropout(stack, x)
    return x, tuple(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*finals, strict=True))


def _dropout(stack: Stack, x: Tensor) -> Tensor:
    return torch.nn.functional.dropout(x, stack.dropout, training=True)
