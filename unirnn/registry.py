"""The registry: which backends there are, and importing one the first time that it is asked for.

A backend is an entry point of the group ``unirnn.backends``; unirnn's own backends are found in the same way as those
of third parties. The entry point's name is the backend's name, and loading it gives a
`unirnn.contract.backend.Backend`. Nothing is imported before a backend is asked for.
"""

import functools
import logging
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from unirnn.errors import BackendError, BrokenBackendError, MissingBackendError, UnknownBackendError

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

    from numpy.typing import NDArray

    from unirnn.contract.backend import Backend

__all__ = [
    "backends",
    "backends_for",
    "default_backend",
    "import_optional",
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
    return {name: claims[0] for name, claims in _claims().items()}


@functools.cache
def _claims() -> "dict[str, tuple[EntryPoint, ...]]":
    """The entry points by name: one each, unless distributions claim the same name; unirnn keeps its own names."""
    found: dict[str, dict[tuple[str, str], EntryPoint]] = {}
    for entry in _read_entry_points():
        found.setdefault(entry.name, {}).setdefault((_distribution(entry), entry.value), entry)
    claims = {}
    for name, entries in found.items():
        own = tuple(entry for entry in entries.values() if _is_own(entry))
        claims[name] = own or tuple(entries.values())
        for entry in entries.values():
            if own and entry not in own:
                logging.getLogger("unirnn").warning(
                    "the backend %r of %s is left out, since unirnn has one of that name", name, _distribution(entry)
                )
    return claims


def _read_entry_points() -> "Iterable[EntryPoint]":
    """The entry points of all distributions whose entry points can be read."""
    from importlib import metadata  # here, since it takes a tenth of the time of `import numpy`

    try:
        return metadata.entry_points(group=GROUP)
    except Exception:  # one distribution's list is malformed; reading each by itself is slower
        found: dict[str, Iterable[EntryPoint]] = {}
        for distribution in metadata.distributions():
            try:
                found.setdefault(distribution.metadata["Name"], distribution.entry_points.select(group=GROUP))
            except Exception as error:
                logging.getLogger("unirnn").warning(
                    "a distribution is left out, since its entry points can't be read (%s: %s): %s",
                    type(error).__name__,
                    error,
                    getattr(distribution, "_path", distribution),
                )
        return [entry for entries in found.values() for entry in entries]


def _distribution(entry: "EntryPoint") -> str:
    """The name and the version of the distribution that an entry point is of."""
    try:
        return " ".join(str(entry.dist.metadata[key]) for key in ("Name", "Version")) if entry.dist else "nobody"
    except Exception:  # it has no metadata
        return "an unnamed distribution"


def _is_own(entry: "EntryPoint") -> bool:
    return _distribution(entry).partition(" ")[0] == "unirnn"


def _module(entry: "EntryPoint") -> str:
    """The module that an entry point names; of a malformed one, a name that no module has."""
    return entry.value.partition(":")[0].strip()


def backends() -> tuple[str, ...]:
    """The names of all registered backends, installed or not; nothing is imported.

    Examples
    --------
    >>> "numpy" in backends()
    True
    """
    return tuple(_entry_points())


def loaded() -> "tuple[Backend, ...]":
    """The backends whose packages are imported already, by the registry or otherwise (unpickling a module does).

    One that can't be loaded is left out.
    """
    found = []
    for name, entry in _entry_points().items():
        if name in _loaded or _module(entry) in sys.modules:
            with suppress(BackendError):
                found.append(load(name))
    return tuple(found)


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
    own = packages(obj) - sys.stdlib_module_names  # whose objects are of no framework
    named = tuple(load(name) for name in _entry_points() if name in own)
    return tuple(dict.fromkeys((*named, *loaded())))


def to_numpy(array: Any, argument: str = "array") -> "NDArray[Any]":
    """Convert an array or a tensor of any framework, on any device, to a NumPy array.

    Parameters
    ----------
    array
        An array, a tensor, or anything that NumPy reads.
    argument
        What an error calls it.

    Raises
    ------
    ArgumentError
        If it is a masked array, or of another subclass of NumPy's array that computes something else.

    Examples
    --------
    >>> to_numpy([1.0, 2.0])
    array([1., 2.])
    """
    from unirnn.contract.arrays import as_plain  # here, since importing unirnn needs none of it

    if not isinstance(array, np.ndarray):  # NumPy's arrays are those of no other framework
        own = packages(array)
        for backend in backends_for(array):
            if backend.name in own:
                return backend.to_numpy(array)
    return as_plain(argument, array)


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


def import_optional(module: str, user: str, extra: str) -> Any:
    """Import a package that only a part of unirnn needs.

    Parameters
    ----------
    module
        The package, or a module of it.
    user
        What needs it, as an error says.
    extra
        The extra of unirnn that has it; see `install_hint`.

    Raises
    ------
    MissingBackendError
        If it is not installed; the message says which command installs it.
    BrokenBackendError
        If its import fails in any other way, with the cause chained.

    Examples
    --------
    >>> import_optional("array_api_compat", "the array API", "array_api_compat").__name__
    'array_api_compat'
    """
    from importlib import import_module

    try:
        return import_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        package = module.partition(".")[0]
        missing = (error.name or "").partition(".")[0] if isinstance(error, ModuleNotFoundError) else ""
        if missing:
            raise MissingBackendError(
                f"{user} needs {missing}, which is not installed; to install it: {install_hint(extra, missing)}",
                name=missing,
            ) from error
        raise BrokenBackendError(
            f"{user} needs {package}, whose import fails: {type(error).__name__}: {error}; "
            f"to install it again: {install_hint(extra, package)} --force-reinstall"
        ) from error


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
    claims = _claims().get(name, ())
    if len(claims) > 1:
        each = " and ".join(f"{_distribution(claim)} ({claim.value})" for claim in claims)
        raise BrokenBackendError(f"backend {name!r} is registered more than once: by {each}; uninstall all but one")
    if not _is_well_formed(entry):
        raise BrokenBackendError(
            f"backend {name!r}: given the entry point {entry.value!r}, expected 'module:object'{_advice(entry)}"
        )
    try:
        backend = entry.load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # no error of one backend, not even SystemExit, must stop the others
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and not f"{_module(entry)}.".startswith(f"{missing}."):
            raise MissingBackendError(
                f"backend {name!r} needs {missing}, which is not installed; to install it: "
                f"{install_hint(name, missing)}",
                name=missing,
            ) from error
        raise BrokenBackendError(
            f"backend {name!r} fails to import: {type(error).__name__}: {error}{_advice(entry)}"
        ) from error
    _loaded[name] = found = _checked(name, entry, backend)
    return found


def _checked(name: str, entry: "EntryPoint", backend: Any) -> "Backend":
    """What an entry point gives, if it is a backend of that name."""
    from unirnn.contract.backend import Backend  # here, since importing unirnn needs none of it
    from unirnn.contract.limits import Support

    if not isinstance(backend, Backend):
        found = f"is {type(backend).__qualname__} {backend!r}, expected an instance of a subclass of"
        wrong = f"{found} unirnn.contract.backend.Backend"
    elif getattr(backend, "name", None) != name:
        wrong = f"has the name {getattr(backend, 'name', None)!r}, expected that of its entry point"
    elif not isinstance(getattr(backend, "support", None), Support):
        wrong = "has no attribute support, expected a unirnn.contract.limits.Support"
    else:
        return backend
    raise BrokenBackendError(f"backend {name!r}: {entry.value} {wrong}{_advice(entry)}")


def _is_well_formed(entry: "EntryPoint") -> bool:
    try:
        return bool(entry.module and entry.attr)
    except Exception:  # which one depends on Python's version
        return False


def _advice(entry: "EntryPoint") -> str:
    """What to do about a broken backend of a third party; of unirnn's own, the framework is to blame."""
    if entry.dist is None or _is_own(entry):
        return ""
    return f"; its entry point {entry.value!r} is that of {_distribution(entry)}: update or uninstall that"


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
