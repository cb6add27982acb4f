"""The sequences of a batch with resets: each column holds several of them, one after another.

They are independent of each other. So an implementation that takes lengths, but no resets, can compute them side by
side, like the columns of a larger batch. `sequences` finds them; the rule for ``resets`` is in `unirnn.contract.call`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sequences", "sequences"]

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
