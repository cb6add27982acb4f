"""Tolerances, and functions that measure differences."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.devices import Device
from unirnn.errors import ArgumentError

from ._tracebacks import is_for_the_test

__all__ = ["TOLERANCES", "check_tolerance", "close", "gaps", "largest", "tolerance"]

__tracebackhide__ = is_for_the_test

TOLERANCES: Mapping[str, float] = MappingProxyType(
    {"float64": 1e-12, "float32": 1e-5, "float16": 2e-2, "bfloat16": 1.6e-1}
)
"""The largest relative difference that is within tolerance on a CPU, by dtype.

unirnn guarantees those of float64 and float32. Those of float16 and bfloat16 are twenty times the dtype's epsilon,
since a framework may round after each operation. On a CPU, torch does so in its gradients, whose error is up to six
epsilons at T = 100.
"""


def tolerance(dtype: str, device: Device | None = None) -> float:
    """The largest relative difference that is within tolerance.

    On a GPU it is ten times that of `TOLERANCES`, since the error of cuDNN's tanh alone is 1e-6. On an Ascend it is at
    least that of float16, since the fused operators compute in float16.

    Parameters
    ----------
    dtype
        The name of a dtype.
    device
        The device; None means a CPU.

    Examples
    --------
    >>> import unirnn
    >>> tolerance("float32"), tolerance("float32", unirnn.Device("gpu"))
    (1e-05, 0.0001)
    """
    kind = "cpu" if device is None else device.kind
    if kind == "ascend":
        return max(TOLERANCES[dtype], TOLERANCES["float16"])
    return TOLERANCES[dtype] * (1 if kind == "cpu" else 10)


def gaps(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """The distances between corresponding numbers of two arrays: 0 where both are NaN, infinite where only one is.

    Examples
    --------
    >>> gaps(np.array([1.0, np.nan, np.nan]), np.array([3.0, np.nan, 0.0])).tolist()
    [2.0, 0.0, inf]
    """
    wide = np.complex128 if "c" in (a.dtype.kind, b.dtype.kind) else np.float64
    wide_a, wide_b = np.asarray(a, wide), np.asarray(b, wide)
    with np.errstate(invalid="ignore"):
        found = np.asarray(np.abs(wide_a - wide_b))
    found[np.isnan(found)] = np.inf
    found[(wide_a == wide_b) | (np.isnan(wide_a) & np.isnan(wide_b))] = 0  # also equal infinities
    return found


def largest(array: NDArray[Any]) -> float:
    """The largest absolute value that is finite; 0 if there is none."""
    return float(np.abs(array[np.isfinite(array)]).max(initial=0.0))


def check_tolerance(tolerance: float | None) -> None:
    """Raise ArgumentError for a tolerance that is negative, infinite or NaN."""
    if tolerance is not None and not 0 <= tolerance < np.inf:
        raise ArgumentError(f"tolerance: given {tolerance}, expected a finite number that is not negative, or None")


def close(
    actual: NDArray[Any], expected: NDArray[Any], tolerance: float, what: str = "", *, scale: float | None = None
) -> None:
    """Assert that two arrays have the same shape, no NaN, and no difference larger than a tolerance.

    Parameters
    ----------
    actual, expected
        Arrays of any shape.
    tolerance
        The largest difference that is allowed, relative to the largest expected value, or to ``scale`` if it is given.
    what
        The name of the array, for the message.
    scale
        See ``tolerance``.

    Raises
    ------
    AssertionError
        If one of these conditions does not hold.

    Examples
    --------
    >>> close(np.array([1.0, 2.0]), np.array([1.0, 2.1]), 0.01, "output")
    Traceback (most recent call last):
    ...
    AssertionError: output: off by 1.00e-01
    """
    # Not `assert`: pytest would add the compared values to its message.
    if actual.shape != expected.shape:
        raise AssertionError(f"{what}: shape {actual.shape}, expected {expected.shape}")
    difference = np.abs(actual.astype(np.float64) - expected).max(initial=0)
    most = np.abs(expected).max(initial=0) if scale is None else scale
    if not difference <= tolerance * most:
        raise AssertionError(f"{what}: off by {difference:.2e}")
