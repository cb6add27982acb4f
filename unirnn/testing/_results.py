"""Find the arrays in what a model returns: in nested tuples, lists, dicts and dataclasses, or packed by torch."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from unirnn.errors import ArgumentError

__all__ = ["arrays_by_path", "check_returned", "unread_parts"]


def arrays_by_path(results: Any) -> dict[str, Any]:
    """The arrays and numbers in nested results, by path.

    Examples
    --------
    >>> arrays_by_path((1, {"h": [2.0, None]}))
    {'[0]': 1, "[1]['h'][0]": 2.0}
    """
    return {path: part for path, part in _parts_by_path(results).items() if _is_array(part)}


def unread_parts(results: Any) -> dict[str, str]:
    """The classes of the objects in nested results whose numbers can't be read, by path.

    Examples
    --------
    >>> unread_parts((1.0, None, "a name", iter([])))
    {'[3]': 'list_iterator'}
    """
    parts = _parts_by_path(results)
    return {p: type(v).__qualname__ for p, v in parts.items() if not (v is None or isinstance(v, str) or _is_array(v))}


def check_returned(model: Any, results: Any) -> None:
    """Raise ArgumentError if a model has returned neither an array nor a number."""
    if not arrays_by_path(results):
        raise ArgumentError(
            f"model: given {getattr(model, '__qualname__', type(model).__qualname__)}, which returns "
            f"{type(results).__qualname__}, expected arrays, or tuples, lists, dicts or dataclasses of them; give "
            "call=lambda model, input, seq_length: ..., which returns the arrays to check"
        )


def _is_array(part: Any) -> bool:
    return isinstance(part, (bool, int, float)) or (hasattr(part, "shape") and hasattr(part, "dtype"))


def _parts_by_path(results: Any, path: str = "") -> dict[str, Any]:
    """All objects in nested results, by path."""
    fields = getattr(results, "_fields", None)  # named tuples have it
    if isinstance(results, Mapping):
        parts = {f"{path}[{key!r}]": part for key, part in results.items()}
    elif hasattr(results, "batch_sizes") and hasattr(results, "sorted_indices"):
        parts = {f"{path}.data": results.data}  # a PackedSequence, whose other fields only describe the layout
    elif isinstance(results, tuple) and fields is not None:
        parts = {f"{path}.{name}": part for name, part in zip(fields, results, strict=True)}
    elif isinstance(results, (tuple, list)):
        parts = {f"{path}[{k}]": part for k, part in enumerate(results)}
    elif dataclasses.is_dataclass(results) and not isinstance(results, type):
        parts = {f"{path}.{row.name}": getattr(results, row.name) for row in dataclasses.fields(results)}
    else:
        return {path: results}
    return {name: inner for key, part in parts.items() for name, inner in _parts_by_path(part, key).items()}
