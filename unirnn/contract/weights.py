"""Weights: arrays by name, as `Spec.weight_shapes` has them; drawing them, and checking those that somebody gives."""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.errors import ArgumentError, DTypeError, ShapeError, SpecError
from unirnn.specs import Spec

__all__ = [
    "Array",
    "Weights",
    "cast_exact",
    "check_dtype",
    "check_seed",
    "check_weights",
    "draw",
    "draw_globally",
    "format_names",
]

Array = NDArray[Any]
Weights = dict[str, Array]


def draw(spec: Spec, seed: int) -> Weights:
    """Draw weights from a seed: the same bits on every backend, in every order of building, on every run.

    One PCG64 generator fills the weights in the order of `Spec.weight_shapes`, from the distribution of
    `Spec.draw_weights`.

    Parameters
    ----------
    spec
        Whose weights they are.
    seed
        A non-negative integer.

    Returns
    -------
    dict
        float64 arrays of the shapes of `Spec.weight_shapes`.

    Raises
    ------
    ArgumentError, SpecError
        If the seed is not an integer, or negative.
    """
    check_seed(seed)
    random = np.random.Generator(np.random.PCG64(int(seed))).random
    return spec.draw_weights(random)


def check_seed(seed: int) -> None:
    """Check that a seed is a non-negative integer; see `draw`."""
    if isinstance(seed, bool) or not isinstance(seed, numbers.Integral):
        raise ArgumentError(f"seed: given {seed!r}, expected a non-negative integer or None")
    if seed < 0:
        raise SpecError(f"seed: given {seed!r}, expected a non-negative integer")


def draw_globally(spec: Spec) -> Weights:
    """Draw weights as `mindspore.nn` does: from NumPy's global generator, in MindSpore's order.

    ``numpy.random.seed`` and ``mindspore.set_seed`` seed that generator.
    """
    return spec.draw_weights(np.random.random_sample)


def check_weights(spec: Spec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Check that names and shapes are those of a spec's weights: first the names, then the shapes.

    Parameters
    ----------
    spec
        Whose weights they should be.
    shapes
        The shape of each array by its name.

    Raises
    ------
    ArgumentError
        If a name is missing, or is not one of the spec's.
    ShapeError
        If an array has the wrong shape.
    """
    expected = spec.weight_shapes()
    missing = [name for name in expected if name not in shapes]
    unknown = [name for name in shapes if name not in expected]
    if missing or unknown:
        wrong = [
            f"{what} {format_names(names)}; " for what, names in (("missing", missing), ("unknown", unknown)) if names
        ]
        raise ArgumentError(f"weights: {''.join(wrong)}{spec!r} has {format_names(expected)}")
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise ShapeError(f"weights[{name!r}]: given shape {tuple(shapes[name])}, expected {shape}")


def check_dtype(name: str, dtype: str) -> None:
    """Check that weights can have a dtype in NumPy, which has no bfloat16.

    Raises
    ------
    DTypeError
        If it is not ``float16``, ``float32`` or ``float64``.
    """
    if dtype not in ("float16", "float32", "float64"):
        raise DTypeError(f"weights[{name!r}]: given dtype {dtype}, expected float16, float32 or float64")


def format_names(names: Iterable[object]) -> str:
    """Format names for an error message, eight at most: a deep stack has hundreds.

    Examples
    --------
    >>> format_names("abc"), format_names("abcdefghijk")
    ('a, b, c', 'a, b, c, d, e, f, g, h and 3 more')
    """
    texts = list(map(str, names))
    return ", ".join(texts[:8]) + (f" and {len(texts) - 8} more" if len(texts) > 8 else "")


def cast_exact(arrays: Mapping[str, Array], dtypes: Iterable[Any]) -> Weights:
    """Cast each array to the dtype of the parameter that will hold it, provided that no number is rounded.

    Parameters
    ----------
    arrays
        By name.
    dtypes
        One for each array, in the same order.

    Raises
    ------
    DTypeError
        If a number would be rounded.
    """
    found: Weights = {}
    for (name, array), dtype in zip(arrays.items(), dtypes, strict=True):
        with np.errstate(over="ignore"):
            found[name] = array.astype(dtype)
        if not np.array_equal(found[name].astype(array.dtype), array, equal_nan=True):
            kind = found[name].dtype
            advice = "" if kind.name == "bfloat16" else f"; snapshot.cast({kind.name!r}) rounds"
            raise DTypeError(f"module: it is of {kind}, which can't hold {name} without rounding{advice}")
    return found
