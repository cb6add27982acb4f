"""The promises of a backend, and how a conformance test records whether they hold.

The marker ``promise`` names the promises that a test checks. If it checks several, `checking` records which one is
broken. A limit is something that the backend declares it can't do. Limits are strict: if it turns out that the backend
can do it, the test fails.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

from _pytest.outcomes import Skipped  # pytest.skip.Exception, which type checkers do not see as a class

__all__ = [
    "CELLS",
    "PROMISES",
    "DeclaredLimit",
    "Findings",
    "WrongLimitError",
    "checking",
    "declare",
    "promises_of",
    "recording",
    "skip_for_limit",
]

PROMISES: Mapping[str, str] = MappingProxyType(
    {
        "numbers": "Numbers",
        "seq_length": "Lengths",
        "padding": "Padding",
        "state": "State",
        "gradients": "Gradients",
        "resets": "Resets",
        "steps": "Steps and chunks",
        "dropout": "Dropout",
        "definitions": "Models from code",
        "building": "Building",
        "weights": "Weights and snapshots",
        "errors": "Errors",
        "limits": "Declared limits",
    }
)
"""The guarantees, and how the report names them."""

CELLS = ("RNN", "GRU", "LSTM", "models")
"""The kinds of layers for which a promise may hold: the columns of the report."""


def promises_of(lengths: Sequence[int] | None, steps: int, *, with_resets: bool) -> tuple[str, ...]:
    """The promises that a call checks. The first one is what its output shows.

    Examples
    --------
    >>> promises_of([3, 0], 3, with_resets=False)
    ('seq_length', 'state', 'gradients', 'padding')
    """
    about = "resets" if with_resets else "numbers" if lengths is None else "seq_length"
    is_ragged = lengths is not None and any(n < steps for n in lengths)
    return (about, "state", "gradients", *(("padding",) if is_ragged else ()))


class DeclaredLimit(Skipped):
    """Skip a test because the backend declares that it can't do what is tested."""

    # pytest shows the name of the class before the reason, and that of its own class is "Skipped".
    __module__ = "builtins"
    __qualname__ = "Skipped"


class WrongLimitError(AssertionError):
    """The backend declares a limit, but can do what is tested."""


@dataclass
class Findings:
    """What a test has recorded besides its outcome.

    Parameters
    ----------
    broken
        The promise whose check failed last, and the cell if the test names one.
    limits
        The texts of the limits for which a promise was not checked, by promise.
    """

    broken: tuple[str, str | None] | None = None
    limits: dict[str, str] = field(default_factory=dict)


_recorded: ContextVar[Findings] = ContextVar("_recorded")


@contextmanager
def recording() -> Iterator[Findings]:
    """Collect what `checking` and `declare` record within the context."""
    token = _recorded.set(Findings())
    try:
        yield _recorded.get()
    finally:
        _recorded.reset(token)


@contextmanager
def checking(promise: str, cell: str | None = None, cause: Callable[[], str | None] | None = None) -> Iterator[None]:
    """Record which promise is broken if the body raises, and explain why.

    Parameters
    ----------
    promise
        One of `PROMISES`.
    cell
        One of `CELLS`, or None for the cells of the test.
    cause
        A function that names the usual mistake behind the wrong numbers of the body's last assertion; see
        `unirnn.testing.causes`. It is called only if an assertion fails, and its answer is added to the message.

    Examples
    --------
    >>> with recording() as findings:
    ...     try:
    ...         with checking("padding", "GRU"):
    ...             assert False
    ...     except AssertionError:
    ...         pass
    >>> findings.broken
    ('padding', 'GRU')
    """
    assert promise in PROMISES
    try:
        yield
    except Exception as error:
        _recorded.get(Findings()).broken = promise, cell
        found = cause() if cause is not None and isinstance(error, AssertionError) else None
        if found is not None:
            error.args = (f"{error}\nUsual cause: {found}.",)
        raise


def declare(promise: str, name: str, text: str, works: Callable[[], Any]) -> None:
    """Record that a promise is not checked because of a declared limit, after verifying that the limit is real.

    Parameters
    ----------
    promise
        One of `PROMISES`.
    name
        The backend's name.
    text
        The text of the limit.
    works
        A function that tries what the limit excludes. It raises if the backend fails or gives wrong numbers.

    Raises
    ------
    WrongLimitError
        If the attempt succeeds.

    Examples
    --------
    >>> declare("gradients", "mine", "mine has no gradients", lambda: None)
    Traceback (most recent call last):
    ...
    unirnn.testing.conformance.promises.WrongLimitError: mine declares 'mine has no gradients', but computes it; ...
    """
    try:
        works()
    except Exception:  # a backend may raise anything when asked for something that it does not support
        _recorded.get(Findings()).limits[promise] = text
        return
    raise WrongLimitError(f"{name} declares {text!r}, but computes it; remove the limit")


def skip_for_limit(name: str, text: str, works: Callable[[], Any]) -> NoReturn:
    """Skip a test because of a limit. Arguments and errors are the same as for `declare`."""
    declare("limits", name, text, works)
    raise DeclaredLimit(text)
