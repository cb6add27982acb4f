"""The packed kernel on CPU: what the operators of `unirnn_torch.operators` run there, in float32 and float64.

The sequences are sorted by length, longest first, and their valid steps gathered into rows, step by step; so the
padding is never read, no promise needs a mask, and at step t the sequences that are still alive are the first
``alive[t]``. With no lengths, or all T long, the input lies so already. Two can compute the steps: `by_torch`, and,
where numba is installed and it is the faster one, `by_numba`.

What the backward pass needs is returned besides the results: buffers of as many rows as the padded input has, since a
trace can't know N, of which only the first N are written, or ever touched; and how the steps were computed.

N is the number of rows, the sum of the lengths.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, kernels, reference
from unirnn.contract.call import Sizes
from unirnn.contract.call import lengths as checked
from unirnn.kernels.packing import Packing

from . import dispatch
from .by_numba import ByNumba
from .by_torch import CELLS, ByTorch, Rows

__all__ = ["Call", "backward", "blank", "forward"]


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
        self.weights = reference.Weights(*arguments[2 + parts : 6 + parts])
        self.backward: bool = arguments[6 + parts]
        self.kernel: str = arguments[7 + parts]
        self.rest = arguments[8 + parts :]

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """``(x, lengths, *state, *weights)``."""
        return self.x, self.lengths, *self.state, *self.weights[:4]

    def with_tensors(self, tensors: Sequence[Tensor | None]) -> "Call":
        """The same call with other tensors."""
        return Call(self.mode, [*tensors, self.backward, self.kernel])

    @property
    def spec(self) -> RecurrentSpec:
        return _spec(self.mode, self.x.shape[2], self.weights.weight_hh.shape[1], self.weights.bias_ih is not None)

    def checked_lengths(self) -> NDArray[np.int64]:
        """The lengths, read from whatever device they are on; all T if there are none."""
        steps, batch_size, _ = self.x.shape
        if self.lengths is None:
            return np.full(batch_size, steps)
        return checked(self.lengths.cpu().numpy(), Sizes(steps, batch_size))


@cache
def _spec(mode: str, input_size: int, hidden_size: int, bias: bool) -> RecurrentSpec:
    if mode.startswith("RNN"):
        return RNNSpec(input_size, hidden_size, bias=bias, nonlinearity="relu" if mode == "RNN_RELU" else "tanh")
    return (GRUSpec if mode == "GRU" else LSTMSpec)(input_size, hidden_size, bias=bias)


def _packed(call: Call, lengths: NDArray[np.int64], num_parts: int) -> tuple[Rows, ByTorch | ByNumba]:
    """The rows, and what computes the steps."""
    rows = Rows(Packing.of(lengths, call.x.shape[0], num_parts or 1), call.backward)
    cell = kernels.compiled_cell(call.spec) if num_parts else None
    if cell is None:
        return rows, CELLS[call.mode](rows, call.weights)
    return rows, ByNumba(cell, call.spec, rows, call.weights)


def blank(call: Call, *, keep: bool) -> tuple[Tensor, ...]:
    """Memory for what the backward pass needs: outputs, blocks, and `dispatch.num_parts`; empty unless ``keep``."""
    steps, batch_size, _ = call.x.shape
    rows, size = steps * batch_size if keep else 0, call.weights.weight_hh.shape[1]
    return (
        call.x.new_empty((rows, size)),
        call.x.new_empty((rows, sum(CELLS[call.mode].kept) * size)),
        call.x.new_empty((int(keep),), dtype=torch.int64),
    )


def forward(call: Call, keep: bool) -> tuple[Tensor, ...]:
    """``(output, *final, *kept)``; what is kept is empty if it need not be."""
    x, size = call.x, call.weights.weight_hh.shape[1]
    lengths = call.checked_lengths()
    num_parts = dispatch.num_parts(call.kernel, call.spec, x.dtype, lengths, gradients=keep)
    rows, cell = _packed(call, lengths, num_parts)
    # No view of something larger: those of an operator can't be changed in place.
    output = rows.blank(x, size)
    kept = blank(call, keep=keep)
    kept[2].fill_(num_parts)
    if keep:
        outputs, blocks = kept[0][: rows.count], kept[1]
    else:
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
    if not len(kept[2]):  # a graph that was traced without gradients
        kept = forward(call, True)[-3:]
    outputs, blocks, num_parts = kept
    # As it was: the number of threads may have changed since, and the table with it.
    rows, cell = _packed(call, call.checked_lengths(), int(num_parts))
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
