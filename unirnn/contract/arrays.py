"""Checks of arrays, whatever they are given for: their class and their dtype."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.devices import DTYPES, short_name
from unirnn.errors import ArgumentError, DTypeError

__all__ = ["as_plain", "check_array", "check_dtype", "check_state_dtype", "type_name"]


def check_array(argument: str, array: Any, array_type: type[Any]) -> None:
    """Check that an argument is an array of the framework.

    Memory-mapped arrays are the only subclass of NumPy's arrays that is accepted: others hide numbers, as masked arrays
    do, or compute something else, as matrices do.

    Raises
    ------
    ArgumentError
        If it is not one.
    """
    if not isinstance(array, array_type):
        raise ArgumentError(f"{argument}: given {type_name(type(array))}, expected a {type_name(array_type)}")
    _check_plain(argument, type(array))


def as_plain(argument: str, given: Any) -> NDArray[Any]:
    """Convert anything that NumPy reads to a NumPy array, but refuse its subclasses; see `check_array`.

    Raises
    ------
    ArgumentError
        If it is of a subclass, or a list of such arrays.
    Exception
        Whatever an array of some framework raises.
    """
    for kind in {*map(type, given)} if isinstance(given, (list, tuple)) else ():
        _check_plain(argument, kind)
    values: NDArray[Any] = np.asanyarray(given)
    _check_plain(argument, type(values))
    return values


def _check_plain(argument: str, kind: type[Any]) -> None:
    if issubclass(kind, np.ndarray) and kind not in (np.ndarray, np.memmap):
        advice = "numpy.asarray makes one of it"
        if issubclass(kind, np.ma.MaskedArray):
            advice = "its mask would be ignored, so say what counts by seq_length, and give the numbers by filled()"
        raise ArgumentError(f"{argument}: given {type_name(kind)}, expected a numpy.ndarray, not a subclass; {advice}")


def type_name(kind: type) -> str:
    """The name of a class in messages: ``list``, ``torch.Tensor``."""
    package = kind.__module__.partition(".")[0]
    name = kind.__name__.rpartition(".")[2]  # JAX's class has the name "jaxlib._jax.Array"
    return name if package == "builtins" else f"{package}.{name}"


def check_dtype(argument: str, given: Any, dtype: Any) -> None:
    """Check that an input has the module's dtype; None: that it has a floating one. Raises DTypeError."""
    if not _fits(given, dtype):
        name = short_name(given)
        advice = f", or build with dtype={name!r}" if name in DTYPES else ""
        raise DTypeError(
            f"{argument}: given dtype {name}, expected {_wanted(dtype)}, the module's own; cast the input{advice}"
        )


def check_state_dtype(argument: str, given: Any, dtype: Any) -> None:
    """Check that a part of the state has the module's dtype, as `check_dtype` does for an input. Raises DTypeError."""
    if not _fits(given, dtype):
        raise DTypeError(f"{argument}: given dtype {short_name(given)}, expected {_wanted(dtype)}, the input's")


def _fits(given: Any, dtype: Any) -> bool:
    if dtype is None:
        return short_name(given) in DTYPES
    # Objects of one framework need no names, which cost as much as the rest of a short call.
    return bool(given == dtype) or short_name(given) == short_name(dtype)


def _wanted(dtype: Any) -> str:
    return "a floating one" if dtype is None else short_name(dtype)
