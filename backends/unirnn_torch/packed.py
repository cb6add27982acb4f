"""The packed kernel on CPU: one layer in one direction, as the operators ``unirnn::rnn``, ``gru`` and ``lstm``.

The sequences are sorted by length, longest first, and their valid steps gathered into rows, step by step; so the
padding is never read, no promise needs a mask, and at step t the sequences that are still alive are the first
``alive[t]``. With no lengths, or all T long, the input lies so already. Two can compute the steps: `by_torch`, and,
where numba is installed and it is the faster one, `by_numba`.

They are operators, so that `torch.compile`, `torch.export` and its dynamic shapes see one node, whose lengths are
looked at, and checked, when it runs. What the backward pass needs is returned besides the results: buffers of as
many rows as the padded input has, since a trace can't know N, of which only the first N are written, or ever touched.
Second derivatives go through the core's plain path (`_differentiable`).

N is the number of rows, the sum of the lengths; `capacity` is T*B. float32 and float64.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from torch import Tensor

from unirnn import GRUSpec, LSTMSpec, RNNSpec, Spec, kernels, plain
from unirnn.call import Sizes
from unirnn.call import lengths as checked
from unirnn.kernels.packing import Packing

from . import choice
from .by_numba import ByNumba
from .by_torch import CELLS, ByTorch, Rows

__all__ = ["layer"]


class _Call:
    """The arguments that a cell's operator and its backward pass share, by name.

    Parameters
    ----------
    mode
        As `torch.nn.RNNBase` calls the cell.
    arguments
        ``(x, lengths, *state, *weights, backward, numba)``, and whatever else: `rest`.
    """

    def __init__(self, mode: str, arguments: Sequence[Any]) -> None:
        self.mode = mode
        parts = CELLS[mode].parts
        self.x: Tensor = arguments[0]
        self.lengths: Tensor | None = arguments[1]
        self.state: tuple[Tensor, ...] = tuple(arguments[2 : 2 + parts])
        self.weights = plain.Weights(*arguments[2 + parts : 6 + parts])
        self.backward: bool = arguments[6 + parts]
        self.numba: bool | None = arguments[7 + parts]
        self.rest = arguments[8 + parts :]

    @property
    def spec(self) -> Spec:
        return _spec(self.mode, self.x.shape[2], self.weights.weight_hh.shape[1], self.weights.bias_ih is not None)

    def packed(self, keep: bool) -> tuple[Rows, ByTorch | ByNumba]:
        """The rows, and what computes the steps: as `numba` says, or, if it says nothing, as the table does."""
        steps, batch_size, _ = self.x.shape
        lengths = np.full(batch_size, steps)
        if self.lengths is not None:
            lengths = checked(self.lengths.numpy(), Sizes(steps, batch_size))
        rows = Rows(Packing.of(lengths, steps), self.backward)
        spec, numba = self.spec, self.numba
        if numba is None:
            valid = None if rows.packing.is_dense else rows.count
            chosen = choice.fastest(spec, self.x.dtype, len(rows.alive), batch_size, valid, gradients=keep)
            numba = chosen == "numba"
        cell = kernels.compiled_cell(spec) if numba else None
        if cell is None:
            return rows, CELLS[self.mode](rows, self.weights)
        return rows, ByNumba(cell, spec, rows, self.weights)


@cache
def _spec(mode: str, input_size: int, hidden_size: int, bias: bool) -> Spec:
    if mode.startswith("RNN"):
        return RNNSpec(input_size, hidden_size, bias=bias, nonlinearity="relu" if mode == "RNN_RELU" else "tanh")
    return (GRUSpec if mode == "GRU" else LSTMSpec)(input_size, hidden_size, bias=bias)


def _forward(call: _Call, keep: bool) -> tuple[Tensor, ...]:
    """``(output, *final, *kept)``; what is kept is empty if it need not be."""
    x, size = call.x, call.weights.weight_hh.shape[1]
    rows, cell = call.packed(keep)
    # No view of something larger: those of an operator can't be changed in place.
    output = rows.blank(x, size)
    if keep:
        capacity = x.shape[0] * x.shape[1]
        kept = x.new_empty((capacity, size)), x.new_empty((capacity, sum(CELLS[call.mode].kept) * size))
        outputs, blocks = kept[0][: rows.count], kept[1]
    else:
        kept = x.new_empty((0, 0)), x.new_empty((0, 0))
        outputs = output.view(-1, size) if rows.packing.is_dense else x.new_empty((rows.count, size))
        blocks = None
    initial = [rows.sort(part) for part in call.state]
    final = cell.forward(rows.pack(x), initial, outputs, blocks)
    if keep or not rows.packing.is_dense:
        rows.unpack(outputs, out=output)
    return output, *(rows.unsort(part) for part in final), *kept


def _backward(
    call: _Call, kept: Sequence[Tensor], d_results: Sequence[Tensor | None], needed: tuple[bool, bool]
) -> tuple[Tensor, ...]:
    """Gradients ``(x, *state, *weights)``; empty where they are not needed, or there is no bias."""
    x = call.x
    rows, cell = call.packed(True)
    if len(kept[0]) < rows.count:  # a graph that was traced without gradients
        kept = _forward(call, True)[-2:]
    outputs, blocks = kept
    d_output, *d_final = d_results
    d_state = [
        torch.zeros_like(part) if d is None else rows.sort(d) for part, d in zip(call.state, d_final, strict=True)
    ]
    d_x = d_rows = None
    if needed[0]:
        d_x = rows.blank(x, x.shape[2])
        d_rows = d_x.view(-1, x.shape[2]) if rows.packing.is_dense else x.new_empty((rows.count, x.shape[2]))
    d_weights = cell.backward(
        rows.pack(x),
        [rows.sort(part) for part in call.state],
        outputs[: rows.count],
        blocks,
        None if d_output is None else rows.pack(d_output),
        d_state,
        d_x=d_rows,
        of_weights=needed[1],
    )
    if d_x is not None and d_rows is not None and not rows.packing.is_dense:
        rows.unpack(d_rows, out=d_x)
    results = [x.new_empty((0,)) if d_x is None else d_x, *(rows.unsort(part) for part in d_state)]
    for weight, gradient in zip(call.weights[:4], d_weights or [None] * 4, strict=False):
        results.append(x.new_empty((0,)) if weight is None or gradient is None else gradient)
    return tuple(results)


def _differentiable(call: _Call) -> tuple[Tensor, ...]:
    """``(output, *final)`` by the plain path, whose gradients have gradients."""
    x = call.x
    ragged = None if call.lengths is None else plain.Lengths(xp, call.lengths, x.shape[0])
    if ragged is not None:
        x = ragged.select(xp, x)
    if call.backward:
        x = plain.turn(xp, x, ragged)
    output, final = plain.direction(xp, call.spec, x, call.state, call.weights, ragged)
    if ragged is not None:
        output = ragged.select(xp, output)
    return plain.turn(xp, output, ragged) if call.backward else output, *final


def _define(mode: str, cell: type[ByTorch]) -> Any:
    """Register the operator of a cell, and the one that is its backward pass."""
    name, parts = mode.lower(), cell.parts
    states = ("h", "c")[:parts]
    inputs = [
        "Tensor x",
        "Tensor? lengths",
        *(f"Tensor {part}_0" for part in states),
        "Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, bool backward, bool? numba",
    ]
    kept = ["Tensor outputs", "Tensor blocks"]
    d_results = [f"Tensor? d_{part}" for part in ("output", *states)]
    number = 6 + parts  # of the tensors among the inputs

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        call = _Call(mode, arguments)
        return _forward(call, *call.rest)

    def forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        call = _Call(mode, arguments)
        (keep,) = call.rest
        steps, batch_size, _ = call.x.shape
        size = call.weights.weight_hh.shape[1]
        return (
            call.x.new_empty((steps, batch_size, size)),
            *(part.new_empty((batch_size, size)) for part in call.state),
            *(call.x.new_empty((steps * batch_size, n * size) if keep else (0, 0)) for n in (1, sum(cell.kept))),
        )

    def backward(*arguments: Any) -> tuple[Tensor, ...]:
        call = _Call(mode, arguments)
        *tensors, of_x, of_weights = call.rest
        with torch.no_grad():  # in a graph of a training step it is an operator like any other
            return _backward(call, tensors[:2], tensors[2:], (of_x, of_weights))

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        call = _Call(mode, arguments)
        *_, of_x, of_weights = call.rest
        empty = (0,)
        return (
            call.x.new_empty(call.x.shape if of_x else empty),
            *(part.new_empty(part.shape) for part in call.state),
            *(call.x.new_empty(empty if w is None or not of_weights else w.shape) for w in call.weights[:4]),
        )

    def register(
        name: str, arguments: list[str], results: int, run: Callable[..., Any], fake: Callable[..., Any]
    ) -> Any:
        schema = f"({', '.join(arguments)}) -> ({', '.join(['Tensor'] * results)})"
        torch.library.define(f"unirnn::{name}", schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(f"unirnn::{name}", "cpu", run)
        torch.library.register_fake(f"unirnn::{name}", fake)
        return getattr(torch.ops.unirnn, name).default

    # Not by torch.library.custom_op, whose first call imports the compiler: it takes seconds, and 70 MiB.
    operator = register(name, [*inputs, "bool keep"], 3 + parts, forward, forward_fake)
    gradient = register(
        f"{name}_backward",
        [*inputs, *kept, *d_results, "bool of_x", "bool of_weights"],
        parts + 5,
        backward,
        backward_fake,
    )

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:number], *output[1 + parts :])
        ctx.options = inputs[number : number + 2]
        ctx.mark_non_differentiable(*output[1 + parts :])
        ctx.set_materialize_grads(False)  # zeros for all that is kept would cost as much as the pass

    def differentiate(ctx: Any, *d: Tensor | None) -> tuple[Any, ...]:
        tensors, d_results = ctx.saved_tensors, d[: 1 + parts]
        needed = ctx.needs_input_grad[:number]
        if torch.is_grad_enabled():  # exactly under create_graph
            # Views, since one tensor may stand in two places.
            given = [None if t is None else t.view_as(t) for t in tensors[:number]]
            results = _differentiable(_Call(mode, [*given, *ctx.options]))
            wanted = [t for t, need in zip(given, needed, strict=True) if need and t is not None]
            gradients = torch.autograd.grad(
                [result for result, d in zip(results, d_results, strict=True) if d is not None],
                wanted,
                [d for d in d_results if d is not None],
                create_graph=True,
                materialize_grads=True,
            )
            found = iter(gradients)
            return *(next(found) if need else None for need in needed), None, None, None
        d_x, *others = gradient(
            *tensors[:number], *ctx.options, *tensors[number:], *d_results, needed[0], any(needed[2 + parts :])
        )
        by_input = (d_x, None, *others)
        return *(g if need else None for g, need in zip(by_input, needed, strict=True)), None, None, None

    torch.library.register_autograd(f"unirnn::{name}", differentiate, setup_context=setup)
    return operator


_OPERATORS = {mode: _define(mode, cell) for mode, cell in CELLS.items()}


def layer(
    mode: str,
    x: Tensor,
    lengths: Tensor | None,
    state: Sequence[Tensor],
    weights: Sequence[plain.Weights],
    *,
    numba: bool | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer.

    Parameters
    ----------
    mode
        As `torch.nn.RNNBase` calls the cell: ``RNN_TANH``, ``RNN_RELU``, ``GRU`` or ``LSTM``.
    x
        `(T, B, I)`, on the CPU, of float32 or float64.
    lengths
        `(B,)` int64 on the CPU; None if every step is valid.
    state
        Initial state, `(D, B, H)` each.
    weights
        Of each direction, without a projection.
    numba
        Whether numba computes the steps; None: where `choice.fastest` says so, when it runs.

    Returns
    -------
    output
        `(T, B, D*H)`, zero in the padding.
    final_state
        `(D, B, H)` each.

    Raises
    ------
    LengthError
        When it runs, if a length is below 0 or above T.
    """
    outputs, finals = [], []
    for k, of_direction in enumerate(weights):
        tensors = (x, lengths, *(part[k] for part in state), *of_direction[:4])
        keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        output, *results = _OPERATORS[mode](*tensors, k == 1, numba, keep)
        outputs.append(output)
        finals.append(results[: len(state)])
    final = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2), final
