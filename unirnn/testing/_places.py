"""Find the sequences and their valid steps in a model's results.

A result does not say which of its axes is the batch and which are steps, nor how many steps a strided convolution has
left. Calling the model with other sizes shows it. The axis whose size becomes 1 for a single sequence is the batch.
Axes that grow with more padding, or shrink for a single sequence, are steps. A single sequence without padding has as
many steps as are valid.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .batches import Batch
from .tolerances import gaps, largest

__all__ = [
    "Deviation",
    "Places",
    "deviation",
    "deviation_alone",
    "find_places",
]

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Places:
    """The meaning of the axes of an array, and which of its elements are valid.

    Parameters
    ----------
    shape
        The shape of the array. If the array is `(B*T, ...)` or `(T*B, ...)`, its first axis is split in two.
    batch_axis
        The axis of the sequences, or None.
    step_axes
        The axes of steps. The weights of an attention have two.
    valid_steps
        For each axis of steps, how many steps of each sequence are valid, `(B,)`.
    """

    shape: tuple[int, ...]
    batch_axis: int | None
    step_axes: tuple[int, ...]
    valid_steps: Mapping[int, NDArray[np.int64]]

    def valid(self) -> NDArray[np.bool_]:
        """A mask of the valid elements, of the array's shape."""
        valid = np.ones(self.shape, bool)
        if self.batch_axis is None:
            return valid
        for axis in self.step_axes:
            steps = np.arange(self.shape[axis])
            allowed = steps < self.valid_steps[axis][:, None]  # `(B, T)`
            if axis < self.batch_axis:
                allowed = allowed.T
            around = [size if k in (axis, self.batch_axis) else 1 for k, size in enumerate(self.shape)]
            valid &= allowed.reshape(around)
        return valid

    def split(self, array: Array, batch_size: int) -> Array:
        """Split the first axis of an array as that of `shape` is split. The array may have another number of steps."""
        if array.ndim == len(self.shape) or self.batch_axis is None:
            return array
        sizes = (batch_size, -1) if self.batch_axis == 0 else (-1, batch_size)
        return array.reshape(*sizes, *array.shape[1:])


def find_places(base: Array, longer: Array | None, alone: Mapping[int, Array], batch: Batch) -> Places:
    """Find the meaning of the axes of a result.

    Parameters
    ----------
    base
        The result for the batch.
    longer
        The result for the batch with more padding, or None if it is not known.
    alone
        The results for single sequences without padding, as far as they are known, by the index of the sequence.
    batch
        The batch.
    """
    size, steps, lengths = batch.batch_size, batch.steps, batch.lengths
    shape = base.shape
    everything = Places(shape, None, (), {})
    others = [array for array in (longer, *alone.values()) if array is not None]
    if not shape or any(other.ndim != base.ndim for other in others):
        return everything
    if shape[0] == lengths.sum() != steps and shape[0] != size and (longer is None or longer.shape == shape):
        return everything  # only the valid steps, as in a packed sequence
    is_flat = size > 1 and shape[0] == size * steps and (longer is None or longer.shape[0] % size == 0)
    if is_flat and (longer is None or longer.shape[0] > shape[0]):
        split = (size, steps) if batch.batch_first else (steps, size)
        axis = 1 if batch.batch_first else 0
        return Places((*split, *shape[1:]), 1 - axis, (axis,), {axis: lengths})
    likely = 0 if batch.batch_first else 1  # the batch axis, if several axes have the right size
    order = sorted(range(len(shape)), key=lambda axis: (axis != likely, axis))
    if alone:
        found = [a for a in order if shape[a] == size and all(array.shape[a] == 1 for array in alone.values())]
    else:
        found = [a for a in order if shape[a] == size and a < 2]
    if longer is not None:
        found = [a for a in found if longer.shape[a] == size]
    if not found:
        return everything
    batch_axis = found[0]
    step_axes = tuple(
        axis
        for axis in range(len(shape))
        if axis != batch_axis
        and (any(o.shape[axis] != shape[axis] for o in others) if others else axis < 2 and shape[axis] == steps)
    )
    return Places(shape, batch_axis, step_axes, {a: _valid_steps(a, shape[a], alone, batch) for a in step_axes})


def _valid_steps(axis: int, size: int, alone: Mapping[int, Array], batch: Batch) -> NDArray[np.int64]:
    """How many steps of each sequence are valid on an axis; 0 where that is not known."""
    as_many = size in (batch.steps, batch.lengths.max())
    found = [alone[b].shape[axis] if b in alone else n if as_many else 0 for b, n in enumerate(batch.lengths.tolist())]
    return np.minimum(found, batch.lengths) if as_many else np.array(found)


@dataclass(frozen=True)
class Deviation:
    """How much an array has moved, and where first.

    Parameters
    ----------
    size, largest
        The largest difference, and the largest absolute value before the change.
    sequence, step
        The first step that has moved, and the first sequence that has moved at this step; None without such an axis.
    text
        Describes the deviation if it is not a difference of numbers, else empty.
    """

    size: float
    largest: float
    sequence: int | None = None
    step: int | None = None
    text: str = ""


def deviation(
    base: Array, other: Array, places: Places, batch: Batch, tolerance: float, floor: float = 0.0
) -> Deviation | None:
    """Measure how much the valid elements of an array have moved; None if that is within the tolerance.

    Parameters
    ----------
    base, other
        The array before and after the change. It may have more steps afterwards.
    places
        The axes of ``base``.
    batch
        The batch of ``base``.
    tolerance
        The largest difference that is ignored, relative to the largest value of ``base``, or to ``floor`` if that is
        larger.
    floor
        See ``tolerance``.
    """
    before = places.split(base, batch.batch_size)
    after = places.split(other, batch.batch_size)
    if before.ndim == after.ndim:
        cut = [slice(None)] * before.ndim
        for axis in places.step_axes:
            cut[axis] = slice(before.shape[axis])
        after = after[tuple(cut)]
    if before.shape != after.shape:
        return Deviation(np.inf, 0, text=f"its shape {base.shape} became {other.shape}")
    return _compare(before, after, places.valid(), places, tolerance, floor)


def deviation_alone(
    base: Array, other: Array, b: int, places: Places, batch: Batch, tolerance: float, floor: float = 0.0
) -> Deviation | None:
    """Like `deviation`, between sequence b in the batch and the same sequence by itself, without its padding."""
    if places.batch_axis is None:
        return None  # no part of the array belongs to this sequence
    before = places.split(base, batch.batch_size)
    after = places.split(other, 1)
    if before.ndim != after.ndim:
        return None
    own = [slice(None)] * before.ndim
    own[places.batch_axis] = slice(b, b + 1)
    cut = [slice(None)] * before.ndim
    for axis in places.step_axes:
        steps = min(int(places.valid_steps[axis][b]), after.shape[axis])
        own[axis] = cut[axis] = slice(steps)
    before, after = before[tuple(own)], after[tuple(cut)]
    if before.shape != after.shape:
        return None
    found = _compare(before, after, np.ones(before.shape, bool), places, tolerance, floor)
    return None if found is None else dataclasses.replace(found, sequence=b)


def _compare(
    before: Array, after: Array, valid: NDArray[np.bool_], places: Places, tolerance: float, floor: float
) -> Deviation | None:
    if before.dtype.kind not in "fiubc":  # such as strings: equal, or off by 1
        moved = (before != after) & valid
        off = moved.astype(np.float64)
        most = 1.0
    else:
        off, most = gaps(before, after), largest(before[valid] * 1.0)
        limit = tolerance * max(most, floor) if before.dtype.kind in "fc" else 0.0
        moved = (off > limit) & valid
    if not moved.any():
        return None
    axis = places.step_axes[0] if places.step_axes else None
    indices = np.argwhere(moved)
    rows: Sequence[tuple[int | None, int | None]] = [
        (
            None if axis is None else int(index[axis]),
            None if places.batch_axis is None else int(index[places.batch_axis]),
        )
        for index in indices
    ]
    step, sequence = min(rows, key=lambda row: (row[0] or 0, row[1] or 0))
    size = float(off[moved].max())
    text = "became NaN" if np.isinf(size) and bool((after[moved] != after[moved]).any()) else ""
    return Deviation(size, most, sequence, step, text)
