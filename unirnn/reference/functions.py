"""Functions of arrays that the array API standard lacks, and models need, written in it."""

import functools
import math
import types
from collections.abc import Callable
from typing import Any

import numpy as np

from .cells import sigmoid
from .lengths import device_of

__all__ = ["ACTIVATIONS", "erf", "mask", "masked_mean", "masked_softmax", "namespace"]

Array = Any


@functools.cache
def _coefficients() -> list[float]:
    """Coefficients of a Chebyshev series for ``log(erfc(z) / t) + z * z``, ``t = 2 / (2 + z)``, for z from 0 to 6."""

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


def softmax(xp: Any, x: Array, /, *, axis: int = -1) -> Array:
    """``exp(x) / sum(exp(x))`` over one axis."""
    powers = xp.exp(x - xp.max(x, axis=axis, keepdims=True))
    return powers / xp.sum(powers, axis=axis, keepdims=True)


def log_softmax(xp: Any, x: Array, /, *, axis: int = -1) -> Array:
    """The logarithm of `softmax`, without its underflow."""
    shifted = x - xp.max(x, axis=axis, keepdims=True)
    return shifted - xp.log(xp.sum(xp.exp(shifted), axis=axis, keepdims=True))


def relu(xp: Any, x: Array, /) -> Array:
    """``max(x, 0)``; NaN stays NaN."""
    return xp.where(x <= 0, xp.zeros_like(x), x)


def mask(xp: Any, seq_length: Any, steps: int, /, *, device: Any = None) -> Array:
    """Which steps are valid.

    Parameters
    ----------
    xp
        The namespace.
    seq_length
        `(B,)` integers, of the namespace or what its ``asarray`` takes.
    steps
        T.
    device
        Where the result lies; None: where ``seq_length`` lies.

    Returns
    -------
    array
        `(B, T)` bool.

    Examples
    --------
    >>> import array_api_compat.numpy as xp
    >>> mask(xp, xp.asarray([1, 3]), 3).astype(int).tolist()
    [[1, 0, 0], [1, 1, 1]]
    """
    lengths = xp.asarray(seq_length, device=device) if device is not None else xp.asarray(seq_length)
    return xp.arange(steps, dtype=lengths.dtype, device=device_of(lengths)) < lengths[:, None]


def masked_mean(xp: Any, x: Array, seq_length: Any, /) -> Array:
    """The mean over the valid steps, `(B, T, F)` to `(B, F)`; zeros for a sequence of length 0.

    What stands in the padding has no influence, also if it is NaN.

    Examples
    --------
    >>> import array_api_compat.numpy as xp
    >>> masked_mean(xp, xp.asarray([[[1.0], [3.0], [xp.nan]]]), [2]).tolist()
    [[2.0]]
    """
    valid = mask(xp, seq_length, x.shape[1], device=device_of(x))
    total = xp.sum(xp.where(valid[:, :, None], x, xp.zeros_like(x)), axis=1)
    counts = xp.sum(xp.astype(valid, x.dtype), axis=1)
    return total / xp.where(counts > 0, counts, xp.ones_like(counts))[:, None]


def masked_softmax(xp: Any, scores: Array, seq_length: Any, /) -> Array:
    """The softmax of the last axis over the valid steps; 0 in the padding.

    What stands in the padding has no influence, also if it is NaN. For a sequence of length 0 all are 0.

    Parameters
    ----------
    xp
        The namespace.
    scores
        `(B, ..., T)`, such as those of an attention over T steps.
    seq_length
        `(B,)` integers: how many of the T steps are valid.

    Returns
    -------
    array
        `(B, ..., T)`.

    Examples
    --------
    >>> import array_api_compat.numpy as xp
    >>> masked_softmax(xp, xp.asarray([[2.0, 2.0, 9.0]]), [2]).tolist()
    [[0.5, 0.5, 0.0]]
    """
    valid = mask(xp, seq_length, scores.shape[-1], device=device_of(scores))
    while len(valid.shape) < len(scores.shape):
        valid = valid[:, None, ...]
    zeros = xp.zeros_like(scores)
    clean = xp.where(valid, scores, zeros)
    least = xp.min(clean, axis=-1, keepdims=True)
    largest = xp.max(xp.where(valid, clean, least), axis=-1, keepdims=True)
    powers = xp.where(valid, xp.exp(xp.where(valid, clean - largest, zeros)), zeros)
    total = xp.sum(powers, axis=-1, keepdims=True)
    return powers / xp.where(total > 0, total, xp.ones_like(total))


ACTIVATIONS: dict[str, Callable[[Any, Array], Array]] = {
    "relu": relu,
    "tanh": lambda xp, x: xp.tanh(x),
    "sigmoid": sigmoid,
    "gelu": lambda xp, x: 0.5 * x * (1 + erf(xp, x * math.sqrt(0.5))),
    "silu": lambda xp, x: x * sigmoid(xp, x),
    "hard_sigmoid": lambda xp, x: xp.clip(x / 6 + 0.5, 0, 1),
    "softmax": softmax,
    "log_softmax": log_softmax,
}
"""By the names that `unirnn.ActivationSpec` has: ``function(xp, x)``."""


@functools.cache
def namespace(xp: Any) -> types.ModuleType:
    """A namespace of the array API standard with the functions that `unirnn.Model` has besides, as one module.

    Examples
    --------
    >>> import array_api_compat.numpy
    >>> xp = namespace(array_api_compat.numpy)
    >>> xp.softmax(xp.asarray([1.0, 1.0])).tolist()
    [0.5, 0.5]
    """
    module = types.ModuleType(xp.__name__, f"{xp.__name__}, and the functions that models need.")
    vars(module).update({name: getattr(xp, name) for name in dir(xp) if not name.startswith("_")})
    for function in (sigmoid, relu, softmax, log_softmax, mask, masked_mean, masked_softmax):
        vars(module)[function.__name__] = functools.partial(function, xp)
    return module
