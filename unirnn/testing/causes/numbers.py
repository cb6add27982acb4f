"""Compare numbers: whether they are close, how far apart they are, and which rounding explains the difference."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.testing.tolerances import gaps, largest

__all__ = ["NAN_FROM_PADDING", "NOT_ZEROED", "is_close", "one_of", "relative_difference", "rounding"]

Array = NDArray[Any]

NAN_FROM_PADDING = "NaN leaks from the padding of the input, as when it is multiplied by a mask: 0 * NaN is NaN"
NOT_ZEROED = "the output is not set to zero in the padding"
"""A cause that applies only to a whole model: a layer inside one may rely on a later layer to set the zeros."""


def relative_difference(actual: Array, expected: Array) -> float:
    """The largest difference, relative to the largest expected value; NaN if either array has a NaN.

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
    """Whether two arrays have the same shape, NaN at the same places, and numbers equal within a relative tolerance."""
    if actual.shape != expected.shape:
        return False
    return bool((gaps(actual, expected) <= tolerance * (largest(expected) or 1.0)).all())


def rounding(pairs: Sequence[tuple[Array, Array]], tolerance: float) -> str | None:
    """Explain the differences of pairs of arrays by the rounding to a dtype, if the numbers or their size suggest it.

    Parameters
    ----------
    pairs
        The arrays that were computed, each with the right one.
    tolerance
        The largest relative difference that is not a mistake.

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


def one_of(causes: Sequence[str]) -> str:
    """The only cause, or a sentence that lists several."""
    return causes[0] if len(causes) == 1 else f"one of these: {'; '.join(causes)}"


def _has_bits(array: Array, bits: int) -> bool:
    """Whether the mantissa of every number fits into some bits."""
    mantissa, _ = np.frexp(array)
    scaled = mantissa * 2.0**bits
    return bool((scaled == np.rint(scaled)).all())
