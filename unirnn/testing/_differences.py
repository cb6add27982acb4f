"""In what two arrays differ, and where first."""

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
"""Where in a model an element is, in words."""


@dataclass(frozen=True)
class Difference:
    """In what two arrays differ.

    Parameters
    ----------
    what
        Such as ``output``.
    size
        The largest difference, relative to the largest value in b; infinite if only one is NaN somewhere.
    tolerance
        How large it may be.
    where
        Where it begins, in words.
    shapes
        The two shapes, if they are not the same.
    nan
        The side that has a NaN, or empty.
    text
        A whole sentence instead of all that, or empty.
    """

    what: str
    size: float
    tolerance: float
    where: str = ""
    shapes: tuple[tuple[int, ...], ...] = ()
    nan: str = ""
    text: str = ""

    def sentence(self) -> str:
        """The difference in words."""
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
    """Which of the two has a NaN; empty if both have one, or none."""
    has = [bool(np.isnan(array).any()) if array.dtype.kind in "fc" else False for array in (a, b)]
    return "" if has[0] == has[1] else "a" if has[0] else "b"


def difference(
    what: str, a: Array, b: Array, tolerance: float, place: Place = lambda at: "", least: float = 0.0
) -> Iterator[Difference]:
    """The difference of two arrays of one shape, if it is too large; NaN at the same places are equal."""
    if not a.size:
        return
    if a.dtype.kind not in "fc" and b.dtype.kind not in "fc":  # integers and flags are not rounded
        tolerance = 0.0
    if not {a.dtype.kind, b.dtype.kind} <= set("fciub"):  # no numbers
        a, b = np.asarray(a != b, np.float64), np.zeros(b.shape)
    off, scale = gaps(a, b), max(largest(b), least) or 1.0
    wrong = np.argwhere(off > tolerance * scale)
    if len(wrong):
        first = wrong[np.lexsort(wrong[:, :2].T)][0] if wrong.shape[1] > 1 else wrong[0]
        where = place(tuple(int(k) for k in first))
        yield Difference(what, float(off.max() / scale), tolerance, where, nan=_side_with_nan(a, b))


def place_in_state(spec: Spec | None, at: tuple[int, ...]) -> str:
    """Layer, direction and sequence of the first number of a state `(L*D, B, H)` that differs."""
    if len(at) < 3:
        return f", first in sequence {at[0]}" if len(at) == 2 else ""
    if not isinstance(spec, RecurrentSpec):
        return f", first in sequence {at[1]}"
    direction = "reverse" if spec.is_reverse(at[0]) else "forward"
    layer = at[0] // spec.num_directions
    return f", first in layer {layer}, in its {direction} direction, in sequence {at[1]}"
