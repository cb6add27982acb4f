"""Drawing the first weights, and reading weights that somebody gives.

Weights are ``dict[str, numpy.ndarray]`` in torch's names and shapes (`Spec.weight_shapes`).
"""

import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.errors import ArgumentError, DTypeError, ShapeError, SpecError
from unirnn.specs import Spec

__all__ = ["Weights", "check", "check_seed", "draw", "draw_globally", "exactly", "listed"]

Weights = dict[str, NDArray[Any]]


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

    ``numpy.random.seed`` and ``mindspore.set_seed`` govern it.
    """
    return spec.draw_weights(np.random.random_sample)


def check(spec: Spec, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Hold names and shapes against a spec: first the names, then the shapes.

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
        wrong = [f"{what} {listed(names)}; " for what, names in (("missing", missing), ("unknown", unknown)) if names]
        raise ArgumentError(f"weights: {''.join(wrong)}{spec!r} has {listed(expected)}")
    for name, shape in expected.items():
        if tuple(shapes[name]) != shape:
            raise ShapeError(f"weights[{name!r}]: given shape {tuple(shapes[name])}, expected {shape}")


def listed(names: Iterable[object]) -> str:
    """Names as an error shows them: a deep stack has hundreds.

    Examples
    --------
    >>> listed("abc"), listed("abcdefghijk")
    ('a, b, c', 'a, b, c, d, e, f, g, h and 3 more')
    """
    shown = list(map(str, names))
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more" if len(shown) > 8 else "")


def exactly(arrays: Mapping[str, NDArray[Any]], dtypes: Iterable[Any]) -> Weights:
    """Cast arrays to the dtypes of what will hold them, if none of them is rounded by it.

    Raises
    ------
    DTypeError
        If one is.
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
