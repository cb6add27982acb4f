"""How much two arrays differ, and where first."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.specs import RecurrentSpec, Spec

from .tolerances import gaps, largest

__all__ = ["Difference", "difference", "place_in_state"]

Array = NDArray[Any]
Place = Callable[[tuple[int, ...]], str]
"""Describes the position of an element, such as its step and its sequence, given its index in the array."""


@dataclass(frozen=True)
class Difference:
    """A difference between two arrays.

    Parameters
    ----------
    what
        What the arrays are, such as ``output``.
    size
        The largest difference, relative to the largest value in b; infinite if there is a NaN in only one array.
    tolerance
        The largest relative difference that is allowed.
    where
        A description of the first place at which they differ.
    shapes
        The two shapes if they differ, else empty.
    nan
        The side that has a NaN, ``a`` or ``b``, if only one has; else empty.
    text
        A sentence that replaces the one about the difference; usually empty.
    """

    what: str
    size: float
    tolerance: float
    where: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    nan: str = ""
    text: str = ""

    def sentence(self) -> str:
        """The difference as a sentence."""
        if self.text:
            return self.text
        if self.shapes:
            return f"The {self.what} has shape {self.shapes[0]} in a, and {self.shapes[1]} in b."
        if self.nan:
            other = "b" if self.nan == "a" else "a"
            return f"The {self.what} is NaN in {self.nan}, where {other} has numbers{self.where}."
        return (
            f"The {self.what} differs by {self.size:.1e} of its largest value, more than the tolerance of "
            f"{self.tolerance:g}{self.where}."
        )


def _side_with_nan(a: Array, b: Array) -> str:
    """Name the side that has a NaN; empty if both sides have one, or neither."""
    has = [bool(np.isnan(array).any()) if array.dtype.kind in "fc" else False for array in (a, b)]
    return "" if has[0] == has[1] else "a" if has[0] else "b"


def difference(
    what: str, a: Array, b: Array, tolerance: float, place: Place = lambda at: "", least: float = 0.0
) -> Iterator[Difference]:
    """Yield the difference between two arrays of one shape if it is too large. NaN equals NaN.

    The difference is relative to the largest value in b, or to ``least`` if that is larger.
    """
    if not a.size:
        return
    if a.dtype.kind not in "fc" and b.dtype.kind not in "fc":  # integers and bools have no rounding errors
        tolerance = 0.0
    if not {a.dtype.kind, b.dtype.kind} <= set("fciub"):  # such as strings: equal, or off by 1
        a, b = np.asarray(a != b, np.float64), np.zeros(b.shape)
    off, scale = gaps(a, b), max(largest(b), least) or 1.0
    wrong = np.argwhere(off > tolerance * scale)
    if len(wrong):
        first = wrong[np.lexsort(wrong[:, :2].T)][0] if wrong.shape[1] > 1 else wrong[0]
        where = place(tuple(int(k) for k in first))
        yield Difference(what, float(off.max() / scale), tolerance, where, nan=_side_with_nan(a, b))


def place_in_state(spec: Spec | None, at: tuple[int, ...]) -> str:
    """Describe an index in a state `(L*D, B, H)` by its layer, direction and sequence."""
    if len(at) < 3:
        return f", first in sequence {at[0]}" if len(at) == 2 else ""
    if not isinstance(spec, RecurrentSpec):
        return f", first in sequence {at[1]}"
    direction = "reverse" if spec.is_reverse(at[0]) else "forward"
    layer = at[0] // spec.num_directions
    return f", first in layer {layer}, in its {direction} direction, in sequence {at[1]}"
