"""Comparing numbers: whether they are close, how far apart they are, and which rounding explains it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.testing.tolerances import gaps, largest

__all__ = ["NOT_ZEROED", "is_close", "relative_difference", "rounding"]

Array = NDArray[Any]

NOT_ZEROED = "the output is not set to zero in the padding"
"""The cause that counts only for a model as a whole: a layer within it may leave that to a later one."""


def relative_difference(actual: Array, expected: Array) -> float:
    """The largest difference, relative to the largest expected value; NaN if there is one in either array.

    Examples
    --------
    >>> relative_difference(np.array([1.0, 4.0]), np.array([2.0, 4.0]))
    0.25
    """
    if not expected.size:
        return 0.0
    wide = expected.astype(np.float64)
    return float(np.abs(actual.astype(np.float64) - wide).max() / (np.abs(wide).max() or 1.0))


def is_close(actual: Array, expected: Array, tolerance: float) -> bool:
    """Whether arrays have the same shape, NaN at the same places, and equal numbers within a relative tolerance."""
    if actual.shape != expected.shape:
        return False
    return bool((gaps(actual, expected) <= tolerance * (largest(expected) or 1.0)).all())


def rounding(pairs: Sequence[tuple[Array, Array]], tolerance: float) -> str | None:
    """The dtype whose rounding explains the differences within pairs of arrays, by its numbers or by their size.

    Parameters
    ----------
    pairs
        What was computed, and what is right.
    tolerance
        The largest difference that is no mistake.

    Examples
    --------
    >>> import numpy as np
    >>> right = np.linspace(0.1, 0.9, 9)
    >>> rounding([(right.astype("float16").astype("float64"), right)], 1e-5)
    'it was computed in float16, or rounded to it'
    """
    size = max((relative_difference(part, own) for part, own in pairs), default=0.0)
    for name, bits, epsilon in (("bfloat16", 8, 2.0**-7), ("float16", 11, 2.0**-10), ("float32", 24, 2.0**-23)):
        if (
            size <= 20 * epsilon
            and all(_has_bits(part[part != own], bits) for part, own in pairs)
            and tolerance < 20 * epsilon
        ):
            return f"it was computed in {name}, or rounded to it"
    for text, epsilon in (
        ("float32", 2.0**-23),
        ("TensorFloat-32 or float16, as products may be", 2.0**-10),
        ("bfloat16, as products may be", 2.0**-7),
    ):
        if epsilon / 30 <= size <= 8 * epsilon and tolerance < epsilon:
            return f"the difference is as large as the rounding to {text}"
    return None


def _has_bits(array: Array, bits: int) -> bool:
    """Whether no number needs more bits of a mantissa."""
    mantissa, _ = np.frexp(array)
    scaled = mantissa * 2.0**bits
    return bool((scaled == np.rint(scaled)).all())
