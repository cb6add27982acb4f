"""Packing: the valid steps of a ragged batch as rows, without the padding.

N is the number of rows, the sum of the lengths.
"""

from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Chunk", "Packing", "Part", "Run"]

Array = NDArray[Any]

_HELD = 2**18
"""How many steps a batch has at most, padding included, whose packing is held; its rows take 2 MiB."""
_CHUNK = 384
"""How many rows a chunk has at most, if a step has no more: what is computed for them stays in the cache."""


class Run(NamedTuple):
    """Steps with the same sequences alive.

    Parameters
    ----------
    steps
        How many.
    alive
        How many sequences.
    rows
        Theirs, ``steps * alive``, counted from the chunk's first.
    """

    steps: int
    alive: int
    rows: slice

    def of(self, array: Array) -> Array:
        """Of a chunk's rows, `(rows, F)`, those of this run by steps: `(steps, alive, F)`."""
        return array[self.rows].reshape(self.steps, self.alive, array.shape[1])


class Chunk(NamedTuple):
    """Rows that are computed together, and the runs of steps among them."""

    rows: slice
    runs: tuple[Run, ...]

    @property
    def size(self) -> int:
        """How many rows."""
        size: int = self.rows.stop - self.rows.start
        return size


class Part(NamedTuple):
    """Sequences that are computed together.

    Parameters
    ----------
    sequences
        Where they stand in the packed order.
    rows
        Where their rows are, step by step.
    alive
        How many of them have a step t, for each t.
    chunks
        Their rows, counted from their first.
    """

    sequences: slice
    rows: slice
    alive: list[int]
    chunks: list[Chunk]

    @property
    def batch_size(self) -> int:
        """How many sequences."""
        size: int = self.sequences.stop - self.sequences.start
        return size


class Packing:
    """How the valid steps of a batch lie in rows.

    Parameters
    ----------
    lengths
        `(B,)`, each 0 <= n <= T.
    steps
        T.
    num_parts
        Into how many parts the sequences are dealt, the longest first, so that all have about as much work.

    Attributes
    ----------
    is_dense
        Whether the rows are the steps, in their order.
    order
        `(B,)`: the sequences, part by part, the longest of each first; empty if dense.
    rows
        `(N,)`: where each row stands in the flat `(T*B,)` order; empty if dense.
    parts
        What each part has.
    """

    def __init__(self, lengths: NDArray[np.int64], steps: int, num_parts: int = 1) -> None:
        batch_size = lengths.shape[0]
        self.shape = (steps, batch_size)
        self.is_dense = num_parts == 1 and bool((lengths == steps).all())
        self.parts: list[Part] = []
        if self.is_dense:  # nothing is sorted, nothing gathered
            self.order = self.rows = np.empty(0, np.int64)
            self._add([batch_size] * steps, batch_size)
            return
        longest_first = np.argsort(-lengths, kind="stable")
        dealt = [longest_first[k::num_parts] for k in range(num_parts)]
        rows = []
        step = np.arange(steps)[:, None]
        for sequences in dealt:
            valid = step < lengths[sequences]
            rows.append((step * batch_size + sequences)[valid])
            self._add(valid.sum(axis=1).tolist(), len(sequences))
        self.order, self.rows = (np.concatenate(arrays) if num_parts > 1 else arrays[0] for arrays in (dealt, rows))

    @staticmethod
    def of(lengths: NDArray[np.int64], steps: int, num_parts: int = 1) -> "Packing":
        """The same as before for the same lengths: all layers and directions have them, and their backward passes."""
        if steps * len(lengths) > _HELD:
            return Packing(lengths, steps, num_parts)
        return _held(lengths.astype(np.int64, copy=False).tobytes(), steps, num_parts)

    def _add(self, alive: list[int], batch_size: int) -> None:
        first, row = (self.parts[-1].sequences.stop, self.parts[-1].rows.stop) if self.parts else (0, 0)
        rows = slice(row, row + sum(alive))
        self.parts.append(Part(slice(first, first + batch_size), rows, alive, _chunks(alive)))

    def pack(self, array: Array) -> Array:
        """`(T, B, F)` to `(N, F)`; not always a copy."""
        rows = array.reshape(-1, array.shape[-1])
        return rows if self.is_dense else rows[self.rows]

    def unpack(self, rows: Array) -> Array:
        """`(N, F)` to `(T, B, F)`, zero in the padding; not always a copy."""
        if self.is_dense:
            return rows.reshape(*self.shape, rows.shape[-1])
        array = np.zeros((self.shape[0] * self.shape[1], rows.shape[-1]), rows.dtype)
        array[self.rows] = rows
        return array.reshape(*self.shape, rows.shape[-1])

    def sort(self, state: Array) -> Array:
        """`(..., B, H)`: a copy with the sequences in the packed order, in C's order of memory."""
        return state.copy() if self.is_dense else np.take(state, self.order, axis=-2)

    def unsort(self, state: Array) -> Array:
        """`(..., B, H)`: with the sequences in the batch's order again; not always a copy."""
        if self.is_dense:
            return state
        array = np.empty_like(state)
        array[..., self.order, :] = state
        return array


@lru_cache(maxsize=4)
def _held(lengths: bytes, steps: int, num_parts: int) -> Packing:
    return Packing(np.frombuffer(lengths, np.int64), steps, num_parts)


def _chunks(alive: list[int]) -> list[Chunk]:
    """Chunks of all steps in order: a run is cut where a chunk is full."""
    chunks: list[Chunk] = []
    runs: list[Run] = []
    start = size = 0
    for n, group in groupby(alive):
        left = len(list(group)) if n else 0
        while left:
            fitting = (_CHUNK - size) // n
            if fitting < 1 and size:
                chunks.append(Chunk(slice(start, start + size), tuple(runs)))
                runs, start, size = [], start + size, 0
                continue
            steps = min(left, max(fitting, 1))
            runs.append(Run(steps, n, slice(size, size + steps * n)))
            size += steps * n
            left -= steps
    if size:
        chunks.append(Chunk(slice(start, start + size), tuple(runs)))
    return chunks
