"""Packing: the valid steps of a ragged batch as rows, without the padding.

N is the number of rows, the sum of the lengths.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Packing"]

Array = NDArray[Any]


class Packing:
    """How the valid steps of a batch lie in rows.

    Parameters
    ----------
    lengths
        `(B,)`, each 0 <= n <= T.
    steps
        T.

    Attributes
    ----------
    order
        `(B,)`: the sequences, longest first.
    rows
        `(N,)`: where each row stands in the flat `(T*B,)` order.
    alive
        How many sequences have a step t, for each t.
    """

    def __init__(self, lengths: NDArray[np.int64], steps: int) -> None:
        batch_size = lengths.shape[0]
        self.shape = (steps, batch_size)
        self.order = np.argsort(-lengths, kind="stable")
        valid = np.arange(steps)[:, None] < lengths[self.order]
        self.rows = (np.arange(steps)[:, None] * batch_size + self.order)[valid]
        self.alive: list[int] = valid.sum(axis=1).tolist()
        ends = np.cumsum(self.alive)
        self._slices = [slice(end - n, end) for end, n in zip(ends.tolist(), self.alive, strict=True)]

    def steps(self, *, backward: bool) -> Iterator[tuple[int, slice]]:
        """For each step that any sequence has, in order: how many are alive, and their rows."""
        pairs = [(n, rows) for n, rows in zip(self.alive, self._slices, strict=True) if n]
        return reversed(pairs) if backward else iter(pairs)

    def pack(self, array: Array) -> Array:
        """`(T, B, F)` to `(N, F)`."""
        rows: Array = array.reshape(-1, array.shape[-1])[self.rows]
        return rows

    def unpack(self, rows: Array) -> Array:
        """`(N, F)` to `(T, B, F)`, zero in the padding."""
        array = np.zeros((self.shape[0] * self.shape[1], rows.shape[-1]), rows.dtype)
        array[self.rows] = rows
        return array.reshape(*self.shape, rows.shape[-1])

    def sort(self, state: Array) -> Array:
        """`(..., B, H)`: a copy with the sequences in the packed order."""
        return state[..., self.order, :]

    def unsort(self, state: Array) -> Array:
        """`(..., B, H)`: a copy with the sequences in the batch's order again."""
        array = np.empty_like(state)
        array[..., self.order, :] = state
        return array
