"""What a backend guarantees, and what a test of the conformance suite finds out about it.

A test says by the marker ``promise`` which guarantees it checks. Where it checks several, `checking` tells which of
them is broken. What the backend itself declares that it can't do is a limit. Limits are strict: one that turns out to
work is a failure.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NoReturn

from _pytest.outcomes import Skipped  # pytest.skip.Exception, of which type checkers know no class

__all__ = [
    "CELLS",
    "PROMISES",
    "DeclaredLimit",
    "Findings",
    "WrongLimitError",
    "checking",
    "declare",
    "findings",
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
"""What each of them holds for: the columns of the report."""


class DeclaredLimit(Skipped):
    """A test is skipped because the backend declares that it can't do what is tested."""

    # pytest shows a class by these names before the reason, and its own as "Skipped"
    __module__ = "builtins"
    __qualname__ = "Skipped"


class WrongLimitError(AssertionError):
    """A limit that the backend declares is not one: it can do what is tested."""


@dataclass
class Findings:
    """What the test that runs has found out, besides whether it passes.

    Parameters
    ----------
    broken
        The promise whose check failed last, and the cell, if the test says so.
    limits
        The texts of the limits because of which a promise was not checked.
    """

    broken: tuple[str, str | None] | None = None
    limits: dict[str, str] = field(default_factory=dict)

    def clear(self) -> None:
        """Begin with another test."""
        self.broken = None
        self.limits.clear()


findings = Findings()
"""Those of the test that runs."""


@contextmanager
def checking(promise: str, cell: str | None = None, cause: Callable[[], str | None] | None = None) -> Iterator[None]:
    """Say which promise is broken if the body raises, and why.

    Parameters
    ----------
    promise
        One of `PROMISES`.
    cell
        One of `CELLS`; None: those of the test.
    cause
        Tells the usual mistake that gives the wrong numbers, of which the body's last assertion is; see
        `unirnn.testing.causes`. It is asked only if an assertion fails, and its answer is added to the message.

    Examples
    --------
    >>> try:
    ...     with checking("padding", "GRU"):
    ...         assert False
    ... except AssertionError:
    ...     print(findings.broken)
    ('padding', 'GRU')
    """
    assert promise in PROMISES
    try:
        yield
    except Exception as error:
        findings.broken = promise, cell
        found = cause() if cause is not None and isinstance(error, AssertionError) else None
        if found is not None:
            error.args = (f"{error}\nUsual cause: {found}.",)
        raise


def declare(promise: str, name: str, text: str, works: Callable[[], Any]) -> None:
    """Leave a promise unchecked, since the backend declares a limit; unless what it says is not so.

    Parameters
    ----------
    promise
        One of `PROMISES`.
    name
        The backend's name.
    text
        The limit.
    works
        Tries all the same. It raises if that is not possible, or gives wrong numbers.

    Raises
    ------
    WrongLimitError
        If it works.

    Examples
    --------
    >>> declare("gradients", "mine", "mine has no gradients", lambda: None)
    Traceback (most recent call last):
    ...
    unirnn.testing.conformance.promises.WrongLimitError: mine declares 'mine has no gradients', but computes it; ...
    """
    try:
        works()
    except Exception:  # whatever a backend raises for what it does not have
        findings.limits[promise] = text
        return
    raise WrongLimitError(f"{name} declares {text!r}, but computes it; remove the limit")


def skip_for_limit(name: str, text: str, works: Callable[[], Any]) -> NoReturn:
    """Skip a test because of a limit; the arguments are those of `declare`, which raises if the limit is not one."""
    declare("limits", name, text, works)
    raise DeclaredLimit(text)
