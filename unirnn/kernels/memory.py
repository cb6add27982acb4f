"""Where the arrays of a step lie in memory, which decides how fast NumPy computes with them.

A processor tells a load from an earlier store by the last 12 bits of their addresses first. Where those agree, the
load waits for nothing; and arrays of `(32, 128)` that follow each other agree everywhere. Measured on such arrays of
float32, one after another and then moved apart: ``tanh(a, out=b)`` 38 and 4.1 microseconds, ``a += b`` 7.2 and 2.6; of
`(64, 256)`: ``a += b`` 22 and 4.8.

So arrays that meet in one operation lie apart: those of one block by an odd multiple of 256 bytes, and different
blocks at different *places* within 256 bytes.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.kernels.packing import Run

__all__ = ["BLOCKS", "PRODUCTS", "REST", "STATES", "arrays", "blocks", "empty"]

Array = NDArray[Any]

BLOCKS, STATES, PRODUCTS, REST = 0, 64, 128, 192
"""Places: what an operation writes to lies at another than what it reads, but for what it overwrites."""

_PAGE = 4096
_APART = 256


def empty(shape: tuple[int, ...], dtype: Any, place: int) -> Array:
    """An array whose address is ``place`` more than a multiple of 256 bytes."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _APART, np.uint8)
    start = (place - raw.__array_interface__["data"][0]) % _APART
    array: Array = raw[start : start + size].view(dtype).reshape(shape)
    return array


def _stride(rows: int, size: int, itemsize: int) -> int:
    """How far apart the arrays `(rows, size)` of a block stand: where it matters, an odd multiple of 256 bytes."""
    used = rows * size * itemsize
    if rows == 1 or used < _PAGE // 4:
        return rows * size
    return (-(-used // _APART) | 1) * _APART // itemsize


def blocks(
    runs: Sequence[Run], count: int, size: int, dtype: Any, place: int, *, keep: bool, space: Array | None = None
) -> Iterator[Array]:
    """Blocks of ``count`` arrays `(alive, size)` for the steps of runs: `(steps, count, stride)` each; see `arrays`.

    All lie in one piece of memory, one after the other, or, if they are not to be kept, each over the one before: then
    take one when the last is done with. Between the arrays of a block there may be zeros, so that it can be
    computed with as one. In ``space``, if that is given, they lie without gaps, and nothing is written.
    """
    itemsize = np.dtype(dtype).itemsize
    strides = [_stride(run.alive, size, itemsize) if space is None else run.alive * size for run in runs]
    sizes = [run.steps * count * stride for run, stride in zip(runs, strides, strict=True)]
    if space is None:
        space = empty((sum(sizes) if keep else max(sizes, default=0),), dtype, place)
    start = 0
    for run, stride, length in zip(runs, strides, sizes, strict=True):
        found = space[start : start + length].reshape(run.steps, count, stride)
        if stride > run.alive * size:
            found[..., run.alive * size :] = 0
        yield found
        if keep:
            start += length


def arrays(flat: Array, rows: int, size: int) -> Array:
    """The arrays in blocks: `(..., stride)` to `(..., rows, size)`, a view."""
    return flat[..., : rows * size].reshape(*flat.shape[:-1], rows, size)
