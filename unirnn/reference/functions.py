"""Functions of arrays that the array API standard lacks, written in it."""

import functools
import math
from typing import Any

import numpy as np

from .cells import sigmoid

__all__ = ["ACTIVATIONS", "erf"]

Array = Any


@functools.cache
def _coefficients() -> list[float]:
    """Of a Chebyshev series for ``log(erfc(z) / t) + z * z`` with ``t = 2 / (2 + z)``, for z from 0 to 6."""

    def function(ts: Any) -> Any:
        zs = [2 / t - 2 for t in ts]
        return np.array([math.log(math.erfc(z) / t) + z * z for z, t in zip(zs, ts, strict=True)])

    series = np.polynomial.Chebyshev.interpolate(function, 28, [0.25, 1])  # type: ignore[no-untyped-call]
    coefficients: list[float] = series.coef.tolist()
    return coefficients


def erf(xp: Any, x: Array) -> Array:
    """The error function, to about one unit in the last place of 1.

    Examples
    --------
    >>> import math, numpy
    >>> float(erf(numpy, numpy.array([0.5]))[0]) - math.erf(0.5) < 1e-15
    True
    """
    z = xp.abs(x)
    t = 2 / (2 + z)
    y = (2 * t - 1.25) / 0.75  # t from 0.25 to 1, as -1 to 1
    first, *others = _coefficients()
    later, latest = xp.zeros_like(x), xp.zeros_like(x)
    for coefficient in reversed(others):  # Clenshaw's recurrence
        later, latest = 2 * y * later - latest + coefficient, later
    far = xp.where(z > 6, xp.zeros_like(x), t * xp.exp(y * later - latest + first - z * z))
    return xp.where(x < 0, far - 1, 1 - far)


def _softmax(xp: Any, x: Array) -> Array:
    powers = xp.exp(x - xp.max(x, axis=-1, keepdims=True))
    return powers / xp.sum(powers, axis=-1, keepdims=True)


def _log_softmax(xp: Any, x: Array) -> Array:
    shifted = x - xp.max(x, axis=-1, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=-1, keepdims=True))


ACTIVATIONS = {
    "relu": lambda xp, x: xp.where(x > 0, x, xp.where(x <= 0, xp.zeros_like(x), x)),  # NaN stays NaN
    "tanh": lambda xp, x: xp.tanh(x),
    "sigmoid": sigmoid,
    "gelu": lambda xp, x: 0.5 * x * (1 + erf(xp, x * math.sqrt(0.5))),
    "silu": lambda xp, x: x * sigmoid(xp, x),
    "hard_sigmoid": lambda xp, x: xp.clip(x / 6 + 0.5, 0, 1),
    "softmax": _softmax,
    "log_softmax": _log_softmax,
}
"""By the names that `unirnn.ActivationSpec` has: ``function(xp, x)``."""
