"""The sequences between resets as more rows of the batch: for MindSpore's own operators in PyNative mode.

The sequences are independent of each other, and no operator of MindSpore knows of resets. So each of them becomes a row
with a length, and the layers run over these rows. Groups of sequences of similar length run one after the other: no
more than half of a group's steps are padding.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from unirnn import RecurrentSpec

__all__ = ["run_as_rows"]

Integers = NDArray[np.int64]


class Sequences(NamedTuple):
    """The sequences of a batch, column by column, each column's in the order of its steps. A column has at least one.

    Parameters
    ----------
    column, begin, length
        `(N,)`: where each of them is.
    is_first, is_last
        `(N,)` bool: whether it is the first, or the last, of its column.
    from_state
        `(L*D, N)` bool: whether it begins from the initial state, and not from zeros.
    """

    column: Integers
    begin: Integers
    length: Integers
    is_first: NDArray[np.bool_]
    is_last: NDArray[np.bool_]
    from_state: NDArray[np.bool_]

    def groups(self) -> Iterator[Integers]:
        """Indices of the sequences whose lengths lie between the same two powers of two."""
        powers = np.ceil(np.log2(np.maximum(self.length, 1)))
        for power in np.unique(powers):
            yield np.flatnonzero(powers == power)


def cut(spec: RecurrentSpec, resets: NDArray[np.bool_], lengths: Integers) -> Sequences:
    """Cut the columns of a batch at the resets, `(T, B)`, within the lengths, `(B,)`."""
    begins = resets & (np.arange(resets.shape[0])[:, None] < lengths)
    is_reset_at_once = begins[0].copy()
    begins[0] = True
    column, begin = np.nonzero(begins.T)
    is_first, is_last = begin == 0, np.append(column[1:] != column[:-1], True)
    end = np.where(is_last, lengths[column], np.append(begin[1:], 0))
    # The forward direction begins with the first sequence of a column, the reverse direction with the last one.
    from_state = np.stack([is_first & ~is_reset_at_once[column], is_last][: spec.num_directions])
    return Sequences(column, begin, end - begin, is_first, is_last, np.tile(from_state, (spec.num_layers, 1)))


def run_as_rows(
    layers: Callable[..., Any],
    spec: RecurrentSpec,
    x: Tensor,
    h_0: Any,
    c_0: Any,
    seq_length: Any,
    resets: Tensor,
    weights: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run layers that know no resets.

    Parameters
    ----------
    layers
        ``layers(x, h_0, c_0, seq_length, resets, weights)``, called with None for the resets.
    spec, x, h_0, c_0, seq_length, resets, weights
        See `unirnn_mindspore.layers.Stack`.

    Returns
    -------
    tuple
        As ``layers`` returns them: the output `(T, B, D*H)` and the final states, `(L*D, B, H)`.
    """
    steps, batch_size, _ = x.shape
    lengths = np.full(batch_size, steps) if seq_length is None else seq_length.asnumpy()
    found = cut(spec, resets.asnumpy(), lengths)
    row_of_step = np.zeros((steps, batch_size), np.int64)  # where a valid step is found in the outputs of all groups
    row_of_sequence = np.empty_like(found.column)  # where a sequence is found in the final states of all groups
    count = num_rows = 0
    outputs, h_n, c_n = [], [], []
    for group in found.groups():
        column, length = found.column[group], found.length[group]
        offset = np.arange(max(1, length.max()))[:, None]
        step = found.begin[group] + offset
        # What is read beyond the end of a sequence is its padding, so any step will do.
        at = Tensor(np.minimum(step, steps - 1) * batch_size + column)
        from_state = Tensor(found.from_state[:, group, None])
        output, h, c = layers(
            ops.gather(_rows(x), at, 0),
            _initial(h_0, column, from_state),
            _initial(c_0, column, from_state),
            Tensor(length),
            None,
            weights,
        )
        is_valid = offset < length
        rows = num_rows + np.arange(is_valid.size).reshape(is_valid.shape)
        row_of_step[step[is_valid], np.broadcast_to(column, step.shape)[is_valid]] = rows[is_valid]
        row_of_sequence[group] = count + np.arange(group.size)
        count, num_rows = count + group.size, num_rows + is_valid.size
        outputs.append(_rows(output))
        h_n.append(h)
        c_n.append(c)

    valid = Tensor((np.arange(steps)[:, None] < lengths)[:, :, None])
    gathered = ops.gather(ops.concat(outputs, 0), Tensor(row_of_step), 0)
    # The forward direction ends with the last sequence of a column, the reverse direction with the first one.
    ends = np.stack([row_of_sequence[found.is_last], row_of_sequence[found.is_first]][: spec.num_directions])
    ends = np.tile(ends, (spec.num_layers, 1)) + count * np.arange(spec.num_layers * spec.num_directions)[:, None]
    return (
        ops.where(valid, gathered, ops.zeros_like(gathered)),
        ops.gather(_rows(ops.concat(h_n, 1)), Tensor(ends), 0),
        ops.gather(_rows(ops.concat(c_n, 1)), Tensor(ends), 0),
    )


def _initial(state: Any, column: Integers, from_state: Tensor) -> Any:
    """`(L*D, n, H)`: the initial state of each sequence of a group; None is zeros."""
    if state is None:
        return None
    rows = ops.gather(state, Tensor(column), 1)
    return ops.where(from_state, rows, ops.zeros_like(rows))


def _rows(x: Any) -> Any:
    """`(T, B, F)` to `(T*B, F)`."""
    return x.reshape((x.shape[0] * x.shape[1], x.shape[2]))
