"""The implementations of the routes: how a whole stack is computed, over `(T, B, I)`.

`unirnn_torch.dispatch.route` decides which one runs a call. Then `run` takes it through these functions:

- C_KERNELS without gradients: `_infer`, `c_kernels.forward`.
- C_KERNELS with gradients: `_layer_by_layer`, `operators.run_directly`. Going back, `operators._differentiate`, the
  operator `unirnn::gru_backward`, and `c_kernels.backward`.
- C_KERNELS in a graph, and NATIVE_OPERATORS: `_layer_by_layer`, `operators.run`.
- DENSE: torch's own function for the whole stack.
- VALID_STEPS: `_valid_steps`, which is the same in torch's packed form.
- DIRECTIONS: `reference.recurrent` around torch's own function for each direction, `native.direction`.
- REFERENCE: `reference.recurrent`, step by step.

One kind of call does not come here: where gradients are switched off, and there are neither lengths nor resets, a call
with the shapes of the one before goes from the module to `c_kernels.Prepared`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import array_api_compat.torch as xp
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unirnn import RecurrentSpec, reference
from unirnn.contract.call import Batch, join_state
from unirnn.contract.sequences import sequences
from unirnn.kernels.compiled import cell_of

from . import c_kernels, dispatch, exporting, native, operators
from .c_kernels import Call
from .dispatch import Route

__all__ = ["Stack", "run"]

State = tuple[Tensor, ...]
Lengths = NDArray[np.int64] | Tensor | None
Resets = NDArray[np.bool_] | Tensor | None


class Stack(NamedTuple):
    """The layers of a call, whatever computes them.

    Parameters
    ----------
    spec
        What they are.
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
    weights: dict[str, Tensor]
    dropout: float
    training: bool
    needs_grad: bool

    def directions(self) -> list[reference.Weights]:
        """The weights of each layer and direction, in the order of the state."""
        flat, num_directions = list(self.weights.values()), self.spec.num_layers * self.spec.num_directions
        count, biases = len(flat) // num_directions, () if self.spec.bias else (None, None)
        of_each = [flat[k : k + count] for k in range(0, len(flat), count)]
        return [reference.Weights(*own[:2], *biases, *own[2:]) for own in of_each]

    def reverse(self) -> list[bool]:
        """Whether each layer and direction runs from the last valid step to the first."""
        return [self.spec.is_reverse(k) for k in range(self.spec.num_layers * self.spec.num_directions)]

    def native_arguments(self) -> tuple[list[Tensor], bool, int, float, bool, bool]:
        """What follows input and state in a native call of the whole stack."""
        spec = self.spec
        return list(self.weights.values()), spec.bias, spec.num_layers, self.dropout, self.training, spec.bidirectional


def run(
    route: Route, stack: Stack, x: Tensor, state: State | None, lengths: Lengths, resets: Resets
) -> tuple[Tensor, State]:
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
    resets
        `(T, B)`, likewise; None if no sequence begins anew.

    Returns
    -------
    output
        `(T, B, D*H)`, zero in the padding.
    final_state
        `(L*D, B, H)` each.
    """
    direct = route is Route.C_KERNELS and not operators.needs_operator(x, state or (), stack.weights.values())
    if direct and not stack.needs_grad:
        return _infer(stack, x, state, _tensor(lengths), _tensor(resets))
    if state is None:
        state = tuple([x.new_zeros(shape) for shape in stack.spec.state_shapes(x.shape[1]).values()])
    if route is Route.DENSE:
        reverse = stack.spec.reverse  # torch's own layer runs forward
        x = x.flip(0) if reverse else x
        output, *final = native.NATIVE[native.mode(stack.spec)](x, join_state(state), *stack.native_arguments(), False)
        return output.flip(0) if reverse else output, tuple(final)
    if route is Route.VALID_STEPS:
        assert not isinstance(lengths, Tensor)
        assert not isinstance(resets, Tensor)
        return _valid_steps(stack, x, state, lengths, resets)
    ns, begins = (None if t is None else t.to(x.device, non_blocking=True) for t in (_tensor(lengths), _tensor(resets)))
    if route.by_operators:
        kernel = "compiled" if route is Route.C_KERNELS else "native"
        run_direction = operators.run_directly if direct else partial(operators.run, kernel=kernel)
        return _layer_by_layer(stack, x, state, ns, begins, run_direction)
    if route is Route.REFERENCE and dispatch.is_jit_tracing():
        x = _with_as_many_steps_as_traced(x)
    dropout = partial(_dropout, stack) if stack.dropout else None
    batch, direction = Batch(x, state, ns, begins), _direction(route, stack.spec)
    return reference.recurrent(xp, stack.spec, stack.weights, batch, dropout=dropout, direction=direction)


def _with_as_many_steps_as_traced(x: Tensor) -> Tensor:
    """The same `(T, B, I)`, by an operation that fails in the trace's graph at another T.

    `torch.jit.trace` and the older exporter to ONNX record the reference as the steps of the example, and these would
    run over a part of a longer input. A trace records only operations, so it can't raise an error with our own message.
    """
    return x.reshape(int(x.shape[0]), *x.shape[1:])


def _direction(route: Route, spec: RecurrentSpec) -> reference.Direction:
    """What runs one layer in one direction, where that is no operator."""
    if route is Route.REFERENCE:
        return reference.direction
    return exporting.direction if dispatch.is_projection_for_onnx(spec) else native.direction


def _valid_steps(
    stack: Stack, x: Tensor, state: State, lengths: NDArray[np.int64] | None, resets: NDArray[np.bool_] | None
) -> tuple[Tensor, State]:
    """One native call over the valid steps, in torch's packed form."""

    def run(data: Tensor, batch_sizes: Tensor, begin: State) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = native.NATIVE[native.mode(stack.spec)](
            data, batch_sizes, join_state(begin), *stack.native_arguments()
        )
        return results

    found = sequences(x.shape[0], x.shape[1], lengths, resets)
    return native.over_valid_steps(run, x, state, found, stack.reverse())


def _tensor(array: NDArray[Any] | Tensor | None) -> Tensor | None:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def _infer(
    stack: Stack, x: Tensor, state: State | None, lengths: Tensor | None, resets: Tensor | None
) -> tuple[Tensor, State]:
    """The C kernels without gradients: each direction writes into its part of the results."""
    spec = stack.spec
    cell, width, size = cell_of(spec), spec.num_directions, spec.output_size
    steps, batch_size, _ = x.shape
    weights = stack.directions()
    final = tuple([x.new_empty(shape) for shape in spec.state_shapes(batch_size).values()])
    begins = [()] * len(weights) if state is None else list(zip(*[part.unbind() for part in state], strict=True))
    output = x
    for k, end in enumerate(zip(*[part.unbind() for part in final], strict=True)):
        layer, column = divmod(k, width)
        if not column:
            x = _dropout(stack, output) if layer and stack.dropout else output
            output = x.new_empty((steps, batch_size, width * size))
        own = output if width == 1 else output[:, :, column * size : (column + 1) * size]
        c_kernels.forward(Call(cell, x, lengths, resets, begins[k], weights[k], spec.is_reverse(k)), own, end, None)
    return output, final


def _layer_by_layer(
    stack: Stack,
    x: Tensor,
    state: State,
    lengths: Tensor | None,
    resets: Tensor | None,
    run_direction: Callable[[Call], tuple[Tensor, ...]],
) -> tuple[Tensor, State]:
    """Call `run_direction` for each layer and direction; in an export to ONNX, make one node for each layer."""
    spec = stack.spec
    device = x.device.type
    if native.autocast_is_on(device):
        dtype = torch.get_autocast_dtype(device)
        x, state = x.to(dtype), tuple(part.to(dtype) for part in state)
        stack = stack._replace(weights={name: weight.to(dtype) for name, weight in stack.weights.items()})
    cell, width, weights, reverse, finals = cell_of(spec), spec.num_directions, stack.directions(), stack.reverse(), []
    to_onnx = dispatch.is_exporting_to_onnx()
    for layer in range(spec.num_layers):
        if layer and stack.dropout:
            x = _dropout(stack, x)
        first, end = layer * width, (layer + 1) * width
        if to_onnx:
            begin = [part[first:end] for part in state]
            x, final = exporting.layer(cell, x, lengths, begin, weights[first:end], reverse[first:end])
        else:
            results = [
                run_direction(
                    Call(cell, x, lengths, resets, tuple([part[k] for part in state]), weights[k], reverse[k])
                )
                for k in range(first, end)
            ]
            x, final = _joined(results)
        finals.append(final)
    return x, tuple(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*finals, strict=True))


def _joined(results: list[tuple[Tensor, ...]]) -> tuple[Tensor, State]:
    """What the directions of a layer give, as one output `(T, B, D*H)` and one final state, `(D, B, H)` each."""
    outputs, finals = [result[0] for result in results], [result[1:] for result in results]
    if len(results) == 1:
        return outputs[0], tuple([part.unsqueeze(0) for part in finals[0]])
    return torch.cat(outputs, dim=2), tuple([torch.stack(parts) for parts in zip(*finals, strict=True)])


def _dropout(stack: Stack, x: Tensor) -> Tensor:
    return torch.nn.functional.dropout(x, stack.dropout, training=True)
