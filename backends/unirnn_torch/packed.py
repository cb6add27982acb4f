"""The packed kernel on CPU: what the operators of `unirnn_torch.operators` run there, in float32 and float64.

The sequences are sorted by length, longest first, and their valid steps gathered into rows, step by step; so the
padding is never read, no promise needs a mask, and at step t the sequences that are still alive are the first
``alive[t]``. With no lengths, or all T long, the input lies so already. Two can compute the steps: `by_torch`, and,
where numba is installed and it is the faster one, `by_numba`.

What the backward pass needs is returned besides the results: buffers of as many rows as the padded input has, since a
trace can't know N, of which only the first N are written, or ever touched.

N is the number of rows, the sum of the lengths; `capacity` is T*B.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unirnn import GRUSpec, LSTMSpec, RNNSpec, Spec, kernels, plain
from unirnn.call import Sizes
from unirnn.call import lengths as checked
from unirnn.kernels.packing import Packing

from . import choice
from .by_numba import ByNumba
from .by_torch import CELLS, ByTorch, Rows

__all__ = ["Call", "backward", "forward", "kept_widths"]


class Call:
    """The arguments that a cell's operator and its backward pass share, by name.

    Parameters
    ----------
    mode
        As `torch.nn.RNNBase` calls the cell.
    arguments
        ``(x, lengths, *state, *weights, backward, kernel)``, and whatever else: `rest`.
    """

    def __init__(self, mode: str, arguments: Sequence[Any]) -> None:
        self.mode = mode
        parts = CELLS[mode].parts
        self.x: Tensor = arguments[0]
        self.lengths: Tensor | None = arguments[1]
        self.state: tuple[Tensor, ...] = tuple(arguments[2 : 2 + parts])
        self.weights = plain.Weights(*arguments[2 + parts : 6 + parts])
        self.backward: bool = arguments[6 + parts]
        self.kernel: str = arguments[7 + parts]
        self.rest = arguments[8 + parts :]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """``(x, lengths, *state, *weights)``."""
        return self.x, self.lengths, *self.state, *self.weights[:4]

    def of(self, tensors: Sequence[Tensor | None]) -> "Call":
        """The same call of other tensors."""
        return Call(self.mode, [*tensors, self.backward, self.kernel])

    @property
    def spec(self) -> Spec:
        return _spec(self.mode, self.x.shape[2], self.weights.weight_hh.shape[1], self.weights.bias_ih is not None)

    def checked_lengths(self) -> NDArray[np.int64] | None:
        """The lengths, read from whatever device they are on."""
        steps, batch_size, _ = self.x.shape
        return None if self.lengths is None else checked(self.lengths.cpu().numpy(), Sizes(steps, batch_size))


@cache
def _spec(mode: str, input_size: int, hidden_size: int, bias: bool) -> Spec:
    if mode.startswith("RNN"):
        return RNNSpec(input_size, hidden_size, bias=bias, nonlinearity="relu" if mode == "RNN_RELU" else "tanh")
    return (GRUSpec if mode == "GRU" else LSTMSpec)(input_size, hidden_size, bias=bias)


def _packed(call: Call, keep: bool) -> tuple[Rows, ByTorch | ByNumba]:
    """The rows, and what computes the steps: what the call asks for, or, if that is ``auto``, what the table has."""
    steps, batch_size, _ = call.x.shape
    lengths = call.checked_lengths()
    rows = Rows(Packing.of(np.full(batch_size, steps) if lengths is None else lengths, steps), call.backward)
    spec, kernel = call.spec, call.kernel
    if kernel == "auto":
        valid = None if rows.packing.is_dense else rows.count
        kernel = choice.fastest(spec, call.x.dtype, len(rows.alive), batch_size, valid, gradients=keep)
    cell = kernels.compiled_cell(spec) if kernel == "numba" else None
    if cell is None:
        return rows, CELLS[call.mode](rows, call.weights)
    return rows, ByNumba(cell, spec, rows, call.weights)


def kept_widths(call: Call) -> tuple[int, int]:
    """How wide the two buffers are of what a backward pass needs."""
    size = call.weights.weight_hh.shape[1]
    return size, sum(CELLS[call.mode].kept) * size


def forward(call: Call, keep: bool) -> tuple[Tensor, ...]:
    """``(output, *final, *kept)``; what is kept is empty if it need not be."""
    x, size = call.x, call.weights.weight_hh.shape[1]
    rows, cell = _packed(call, keep)
    # No view of something larger: those of an operator can't be changed in place.
    output = rows.blank(x, size)
    if keep:
        capacity = x.shape[0] * x.shape[1]
        kept = tuple(x.new_empty((capacity, width)) for width in kept_widths(call))
        outputs, blocks = kept[0][: rows.count], kept[1]
    else:
        kept = tuple(x.new_empty((0, 0)) for _ in range(2))
        outputs = output.view(-1, size) if rows.packing.is_dense else x.new_empty((rows.count, size))
        blocks = None
    initial = [rows.sort(part) for part in call.state]
    final = cell.forward(rows.pack(x), initial, outputs, blocks)
    if keep or not rows.packing.is_dense:
        rows.unpack(outputs, out=output)
    return output, *(rows.unsort(part) for part in final), *kept


def backward(
    call: Call, kept: Sequence[Tensor], d_results: Sequence[Tensor | None], needed: tuple[bool, bool]
) -> tuple[Tensor, ...]:
    """Gradients ``(x, *state, *weights)``; empty where they are not needed, or there is no bias."""
    x = call.x
    rows, cell = _packed(call, True)
    if len(kept[0]) < rows.count:  # a graph that was traced without gradients
        kept = forward(call, True)[-2:]
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
