"""The sequences of a batch with resets: each column holds several of them, one after another.

They are independent of each other. So an implementation that takes lengths, but no resets, can compute them side by
side, like the columns of a larger batch. `sequences` finds them, and `run_sequences` runs them. The rule for ``resets``
is in `unirnn.contract.lengths`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sequences", "run_sequences", "sequences"]

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Sequences:
    """The S sequences of a batch of `(T, B)` steps.

    Parameters
    ----------
    batch_size
        B.
    columns, begins, lengths
        `(S,)`: the column of each, its first step there, and how many steps it has.
    has_initial, has_final
        `(2, S)`, forward and in the reverse direction: whether it begins with the initial state of its column, rather
        than with zeros, and whether it ends with the final one.
    """

    batch_size: int
    columns: Integers
    begins: Integers
    lengths: Integers
    has_initial: NDArray[np.bool_]
    has_final: NDArray[np.bool_]

    def select(self, index: Integers) -> "Sequences":
        """Select some of the sequences, in a given order."""
        return Sequences(
            self.batch_size,
            self.columns[index],
            self.begins[index],
            self.lengths[index],
            self.has_initial[:, index],
            self.has_final[:, index],
        )

    def groups(self) -> list[Integers]:
        """Group the sequences whose lengths lie between the same two powers of two: their indices, the shortest first.

        If each group is padded to its longest sequence, at least half of its steps are valid.
        """
        powers = np.ceil(np.log2(np.maximum(self.lengths, 1)))
        return [np.flatnonzero(powers == power) for power in np.unique(powers)]

    def initial(self, directions: Integers) -> tuple[Integers, NDArray[np.bool_]]:
        """Where the sequences find their initial state.

        Parameters
        ----------
        directions
            `(L*D,)`: for each layer and direction, 0 if it runs forward, 1 in the reverse direction.

        Returns
        -------
        rows
            `(L*D, S)`: the rows of a state `(L*D, B, H)`, counted as in `(L*D*B, H)`.
        has_initial
            `(L*D, S)`: false where it is zeros instead.
        """
        layers = np.arange(len(directions))[:, None]
        return layers * self.batch_size + self.columns, self.has_initial[directions]

    def final(self, directions: Integers) -> tuple[Integers, Integers]:
        """Where the final states of the columns are found, and where they belong.

        Parameters
        ----------
        directions
            As in `initial`.

        Returns
        -------
        found, rows
            Rows of the states `(L*D, S, H)` of the sequences, and for each of them the row of the state `(L*D, B, H)`,
            both counted as in `initial`.
        """
        layer, sequence = np.nonzero(self.has_final[directions])
        return layer * len(self.columns) + sequence, layer * self.batch_size + self.columns[sequence]


def sequences(
    steps: int, batch_size: int, lengths: NDArray[np.int64] | None, resets: NDArray[np.bool_] | None
) -> Sequences:
    """Find the sequences of a batch.

    Parameters
    ----------
    steps, batch_size
        T and B.
    lengths
        `(B,)`, checked; None if every step is valid.
    resets
        `(T, B)`, checked; None if no sequence begins anew.

    Returns
    -------
    Sequences
        Column by column, and in the order of their steps. A column without valid steps is one sequence of length 0.

    Examples
    --------
    >>> found = sequences(4, 2, None, np.array([[0, 1], [0, 0], [1, 0], [0, 0]], bool))
    >>> found.columns.tolist(), found.begins.tolist(), found.lengths.tolist()
    ([0, 0, 1], [0, 2, 0], [2, 2, 4])
    """
    ns = np.full(batch_size, steps) if lengths is None else lengths
    begins = np.zeros((max(steps, 1), batch_size), bool)
    if resets is not None:
        begins |= resets & (np.arange(steps)[:, None] < ns)
    from_zeros = begins[0].copy()
    begins[0] = True
    column, begin = np.nonzero(begins.T)
    is_first = begin == 0
    is_last = np.append(is_first[1:], np.ones(min(1, len(column)), bool))
    end = np.where(is_last, ns[column], np.append(begin[1:], 0)[: len(column)])
    return Sequences(
        batch_size,
        column,
        begin,
        end - begin,
        np.stack([is_first & ~from_zeros[column], is_last]),
        np.stack([is_last, is_first]),
    )


def run_sequences(
    xp: Any,
    run: Callable[[Any, Sequence[Any], Integers], tuple[Any, Sequence[Any]]],
    x: Any,
    state: Sequence[Any],
    lengths: Integers | None,
    resets: NDArray[np.bool_],
    directions: Sequence[Integers],
) -> tuple[Any, tuple[Any, ...]]:
    """Run layers that know lengths, but no resets, over the sequences of a batch.

    Each sequence becomes a column of its own. Sequences of similar length run together: no more than half of the steps
    are padding.

    Parameters
    ----------
    xp
        The namespace of the arrays.
    run
        ``run(x, state, lengths)`` gives the output and the parts of the final state, for other columns and steps.
    x
        `(T, B, ...)`.
    state
        The parts of the initial state, `(L*D, B, H)` each; none for zeros.
    lengths, resets
        `(B,)`, checked; None if every step is valid. `(T, B)`, checked.
    directions
        `(L*D,)` for each part of the final state; see `Sequences.initial`.

    Returns
    -------
    output
        `(T, B, F)`, zero in the padding.
    state
        The parts of the final state, `(L*D, B, H)` each.

    Examples
    --------
    >>> import array_api_compat.numpy as xp
    >>> def sums(x, state, lengths):  # a layer whose state is the sum so far
    ...     after = state[0] + np.cumsum(x, axis=0)
    ...     return after, [after[lengths - 1, np.arange(len(lengths))][None]]
    >>> x, resets = np.ones((4, 1, 1)), np.array([[0], [0], [1], [0]], bool)
    >>> output, (final,) = run_sequences(xp, sums, x, [np.zeros((1, 1, 1))], None, resets, [np.array([0])])
    >>> output.ravel().tolist(), final.ravel().tolist()
    ([1.0, 2.0, 1.0, 2.0], [2.0])
    """
    steps, batch_size, *_ = x.shape
    found = sequences(steps, batch_size, lengths, resets)
    row_of_step = np.full((steps, batch_size), -1)  # where a step is found in the outputs of all groups
    outputs, finals = [], []
    indices, count = found.groups(), 0
    for group in map(found.select, indices):
        offset = np.arange(max(1, group.lengths.max()))[:, None]
        step, is_valid = group.begins + offset, offset < group.lengths
        begin = []
        for part, direction in zip(state, directions, strict=False):
            rows, has_initial = group.initial(direction)
            begin.append(_select(xp, has_initial, _gather(xp, part, rows)))
        # What is read beyond the end of a sequence is its padding, so any step will do.
        of_group = _gather(xp, x, np.minimum(step, steps - 1) * batch_size + group.columns)
        output, final = run(of_group, begin, group.lengths)
        column = np.broadcast_to(group.columns, step.shape)
        row_of_step[step[is_valid], column[is_valid]] = count + np.flatnonzero(is_valid)
        count += is_valid.size
        outputs.append(xp.reshape(output, (1, is_valid.size, output.shape[2])))
        finals.append(final)
    output = _gather(xp, xp.concat(outputs, axis=1), np.maximum(row_of_step, 0))
    in_order = found.select(np.concatenate(indices))
    ends = []
    for parts, direction in zip(zip(*finals, strict=True), directions, strict=True):
        sources, targets = in_order.final(direction)
        rows = np.empty(len(direction) * batch_size, np.int64)
        rows[targets] = sources
        ends.append(_gather(xp, xp.concat(parts, axis=1), rows.reshape(len(direction), batch_size)))
    return _select(xp, row_of_step >= 0, output), tuple(ends)


def _gather(xp: Any, array: Any, rows: Integers) -> Any:
    """The rows of `(M, N, ...)`, counted as in `(M*N, ...)`, at some places."""
    flat = xp.reshape(array, (array.shape[0] * array.shape[1], *array.shape[2:]))
    return xp.reshape(xp.take(flat, xp.asarray(rows.reshape(-1)), axis=0), (*rows.shape, *array.shape[2:]))


def _select(xp: Any, kept: NDArray[np.bool_], array: Any) -> Any:
    """`(M, N, F)` with zeros except where it is kept."""
    return xp.where(xp.asarray(kept[..., None]), array, xp.zeros_like(array))
