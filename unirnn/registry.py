"""The registry: which backends there are, and importing one the first time that it is asked for.

A backend is an entry point of the group ``unirnn.backends``; unirnn's own come through the same door as
anybody else's. The entry point's name is the backend's name; it loads an object that is a
`unirnn.contract.backend.Backend`. Until a backend is asked for, it is a string.
"""

import functools
import os
import sys
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from unirnn.errors import BrokenBackendError, MissingBackendError, UnknownBackendError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from numpy.typing import NDArray

    from unirnn.contract.backend import Backend

__all__ = ["backends", "default_backend", "install_hint", "load", "loaded", "of", "packages", "to_numpy", "use_backend"]

GROUP = "unirnn.backends"
_loaded: "dict[str, Backend]" = {}
_chosen: "list[use_backend]" = []
_scoped: ContextVar[str | None] = ContextVar("unirnn_backend", default=None)


@functools.cache
def _entry_points() -> "dict[str, EntryPoint]":
    from importlib import metadata  # here, since it takes a tenth of the time of `import numpy`

    return {entry.name: entry for entry in metadata.entry_points(group=GROUP)}


def backends() -> tuple[str, ...]:
    """The names of all registered backends, installed or not; nothing is imported.

    Examples
    --------
    >>> "numpy" in backends()
    True
    """
    return tuple(_entry_points())


def loaded() -> "tuple[Backend, ...]":
    """The backends whose packages are imported, through the registry or otherwise (by unpickling a module)."""
    return tuple(
        load(name) for name, entry in _entry_points().items() if name in _loaded or entry.module in sys.modules
    )


def packages(obj: Any) -> set[str]:
    """The packages that the classes of an object come from.

    Examples
    --------
    >>> import fractions
    >>> sorted(packages(fractions.Fraction()))
    ['builtins', 'fractions', 'numbers']
    """
    return {kind.__module__.partition(".")[0] for kind in type(obj).__mro__}


def of(obj: Any) -> "tuple[Backend, ...]":
    """The backends that may know an object: those with the name of a package of its classes, and those loaded."""
    own = packages(obj)
    named = tuple(load(name) for name in _entry_points() if name in own)
    return tuple(dict.fromkeys((*named, *loaded())))


def to_numpy(array: Any) -> "NDArray[Any]":
    """An array or a tensor of whichever framework, on whichever device, as NumPy's.

    Examples
    --------
    >>> to_numpy([1.0, 2.0])
    array([1., 2.])
    """
    own = packages(array)
    for room in of(array):
        if room.name in own:
            return room.to_numpy(array)
    return np.asarray(array)


def _entry_point(name: str, argument: str = "backend") -> "EntryPoint":
    entry = _entry_points().get(name) if isinstance(name, str) else None
    if entry is None:
        raise UnknownBackendError(f"{argument}: given {name!r}, expected one of {', '.join(backends())}")
    return entry


def install_hint(name: str, missing: str | None = None) -> str:
    """The command that installs what a backend needs."""
    entry = _entry_point(name)
    extras = entry.dist.metadata.get_all("Provides-Extra", []) if entry.dist else []
    wanted = f"'{entry.dist.name}[{name}]'" if entry.dist and name in extras else missing or name
    return f"python -m pip install {wanted}"


def load(name: str) -> "Backend":
    """Import a backend, once.

    Parameters
    ----------
    name
        One of `backends`.

    Raises
    ------
    UnknownBackendError
        If no backend has this name; the message says which are known.
    MissingBackendError
        If a module that it needs is not installed; the message says which command installs it.
    BrokenBackendError
        If its import fails in any other way; the cause is chained.
    """
    if isinstance(name, str) and name in _loaded:
        return _loaded[name]
    entry = _entry_point(name)
    try:
        backend: Backend = entry.load()
    except ModuleNotFoundError as error:
        raise MissingBackendError(
            f"backend {name!r} needs {error.name}, which is not installed; "
            f"to install it: {install_hint(name, error.name)}",
            name=error.name,
        ) from error
    except Exception as error:  # whatever a third party's import raises concerns that backend alone
        raise BrokenBackendError(f"backend {name!r} fails to import: {type(error).__name__}: {error}") from error
    _loaded[name] = backend
    return backend


def default_backend() -> str:
    """The backend of a `build` that names none: `use_backend`, else ``UNIRNN_BACKEND``, else ``numpy``.

    Raises
    ------
    UnknownBackendError
        If ``UNIRNN_BACKEND`` names none.
    """
    chosen = _scoped.get() or (_chosen[-1].name if _chosen else None)
    return chosen or _entry_point(os.environ.get("UNIRNN_BACKEND") or "numpy", "UNIRNN_BACKEND").name


class use_backend:  # noqa: N801 - used as a function, and with `with`
    """Set the default backend: of the process, or, with ``with``, of the block, in this thread or task alone.

    Parameters
    ----------
    name
        One of `backends`.

    Raises
    ------
    UnknownBackendError
        If no backend has this name.

    Examples
    --------
    >>> import unirnn
    >>> with unirnn.use_backend("torch"):
    ...     unirnn.default_backend()
    'torch'
    """

    def __init__(self, name: str) -> None:
        self.name = _entry_point(name).name
        self._tokens: list[Token[str | None]] = []
        _chosen.append(self)

    def __enter__(self) -> "use_backend":
        if self in _chosen:  # of the block, then, and not of the process
            _chosen.remove(self)
        self._tokens.append(_scoped.set(self.name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _scoped.reset(self._tokens.pop())
