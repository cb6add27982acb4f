"""Recognising the layers of Keras and Flax by their classes, without importing the framework."""

from typing import Any

from unirnn.contract.backend import check_computes_as
from unirnn.errors import SpecError

__all__ = ["activation_name", "class_name"]


def class_name(obj: Any, package: str, known: tuple[str, ...], *methods: str) -> str | None:
    """The name of the first of an object's classes that is a known class of a package; None if there is none.

    Raises
    ------
    SpecError
        If the object, or its class, has one of the methods, which compute, of its own.

    Examples
    --------
    >>> [class_name(obj, "builtins", ("int", "str"), "__add__") for obj in (True, None)]
    ['int', None]
    """
    kinds = (kind for kind in type(obj).__mro__ if f"{kind.__module__}.".startswith(f"{package}."))
    found = next((kind for kind in kinds if kind.__name__ in known), None)
    if found is None:
        return None
    check_computes_as(found, obj, *methods)
    return found.__name__


def activation_name(layer: Any, argument: str, package: str, known: tuple[str, ...], where: str) -> str:
    """The name of a layer's activation, if it is a known function of a package; else a SpecError."""
    function = getattr(layer, argument)
    name: str = getattr(function, "__name__", "")
    # The package matters: a user's own function of that name may compute anything.
    if name not in known or not function.__module__.startswith(f"{package}."):
        expected = " or ".join(map(repr, known))
        raise SpecError(f"{where}: given {argument}={function!r}, expected {expected} of {package}")
    return name
