"""The registry: which backends there are, and importing one the first time that it is asked for.

A backend is an entry point of the group ``unirnn.backends``; unirnn's own backends are found in the same way as those
of third parties. The entry point's name is the backend's name, and loading it gives a
`unirnn.contract.backend.Backend`. Nothing is imported before a backend is asked for.
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
    from importlib.metadata import Distribution, EntryPoint

    from numpy.typing import NDArray

    from unirnn.contract.backend import Backend

__all__ = [
    "backends",
    "backends_for",
    "default_backend",
    "install_hint",
    "load",
    "loaded",
    "packages",
    "to_numpy",
    "use_backend",
]

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
    """The backends whose packages are imported already, by the registry or otherwise (unpickling a module does)."""
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


def backends_for(obj: Any) -> "tuple[Backend, ...]":
    """The backends that may know an object: those named like a package of its classes, then all that are loaded.

    Examples
    --------
    >>> backends_for(np.zeros(3))[0].name
    'numpy'
    """
    own = packages(obj)
    named = tuple(load(name) for name in _entry_points() if name in own)
    return tuple(dict.fromkeys((*named, *loaded())))


def to_numpy(array: Any) -> "NDArray[Any]":
    """Convert an array or a tensor of any framework, on any device, to a NumPy array.

    Examples
    --------
    >>> to_numpy([1.0, 2.0])
    array([1., 2.])
    """
    own = packages(array)
    for backend in backends_for(array):
        if backend.name in own:
            return backend.to_numpy(array)
    return np.asarray(array)


def _entry_point(name: str, argument: str = "backend") -> "EntryPoint":
    entry = _entry_points().get(name) if isinstance(name, str) else None
    if entry is None:
        raise UnknownBackendError(f"{argument}: given {name!r}, expected one of {', '.join(backends())}")
    return entry


def install_hint(extra: str, missing: str | None = None) -> str:
    """The command that installs what a backend, or an extra of unirnn, needs.

    It names the requirements themselves: unlike ``pip install 'unirnn[torch]'``, that works wherever unirnn was
    installed from.

    Parameters
    ----------
    extra
        The name of a backend, whose distribution may have an extra of that name, or of an extra of unirnn.
    missing
        What to install if there is no such extra.

    Examples
    --------
    >>> install_hint("torch")
    'python -m pip install "torch>=2.4"'
    """
    from importlib import metadata

    entry = _entry_points().get(extra)
    try:
        found = _requirements(entry.dist if entry and entry.dist else metadata.distribution("unirnn"), extra)
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        found = []
    wanted = found or [missing or extra]
    return " ".join(["python -m pip install", *(f'"{one}"' if set(one) & set("<>=;[ ") else one for one in wanted)])


def _requirements(distribution: "Distribution", extra: str) -> list[str]:
    """What an extra adds to a distribution; a limit on Python's version is shown only if this Python is beyond it."""
    import re

    found = []
    for line in distribution.requires or ():
        requirement, _, marker = line.partition(";")
        if re.search(rf"""extra == ['"]{extra}['"]""", marker):
            newest = re.search(r"""python_version < ['"]3\.(\d+)['"]""", marker)
            is_too_new = newest is not None and sys.version_info >= (3, int(newest[1]))
            found.append(f"{requirement}; {newest[0]}" if newest and is_too_new else requirement)
    return found


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
        If its import fails in any other way, with the cause chained, or does not give a `Backend`.
    """
    if isinstance(name, str) and name in _loaded:
        return _loaded[name]
    entry = _entry_point(name)
    try:
        backend = entry.load()
    except ModuleNotFoundError as error:
        raise MissingBackendError(
            f"backend {name!r} needs {error.name}, which is not installed; "
            f"to install it: {install_hint(name, error.name)}",
            name=error.name,
        ) from error
    except Exception as error:  # any error of one backend must not stop the others
        raise BrokenBackendError(f"backend {name!r} fails to import: {type(error).__name__}: {error}") from error
    from unirnn.contract.backend import Backend  # here, since importing unirnn needs none of it

    if not isinstance(backend, Backend):
        raise BrokenBackendError(
            f"backend {name!r}: {entry.value} is {type(backend).__qualname__} {backend!r}, expected an instance of a "
            "subclass of unirnn.contract.backend.Backend"
        )
    _loaded[name] = backend
    return backend


def default_backend() -> str:
    """The backend of a `build` that names none: that of `use_backend`, else of ``UNIRNN_BACKEND``, else ``numpy``.

    Raises
    ------
    UnknownBackendError
        If no backend has the name that ``UNIRNN_BACKEND`` gives.
    """
    chosen = _scoped.get() or (_chosen[-1].name if _chosen else None)
    return chosen or _entry_point(os.environ.get("UNIRNN_BACKEND") or "numpy", "UNIRNN_BACKEND").name


class use_backend:  # noqa: N801 - used as a function, and with `with`
    """Set the default backend of the process, or, in a ``with`` statement, of the block in this thread or task.

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
        if self in _chosen:  # the default of the block, then, not of the process
            _chosen.remove(self)
        self._tokens.append(_scoped.set(self.name))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _scoped.reset(self._tokens.pop())
