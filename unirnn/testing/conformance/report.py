"""The report of the conformance suite: a table of promises by cells, the declared limits, and what failed."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from unirnn.specs import RecurrentSpec, Spec

from .promises import CELLS, PROMISES, DeclaredLimit, Findings, WrongLimitError

__all__ = ["Report", "finding"]

_KEY = "unirnn"
_MOST_FAILURES = 25
_WIDTH = 400  # longest message of a failure, in characters


def finding(
    item: pytest.Item, call: "pytest.CallInfo[None]", report: pytest.TestReport, recorded: Findings
) -> tuple[str, Any] | None:
    """Summarise what a test has found out about the promises, as a user property of its report, with JSON types.

    Parameters
    ----------
    item, call
        The arguments of pytest's hook ``pytest_runtest_makereport``.
    report
        The report that this hook returns.
    recorded
        What the test has recorded.

    Returns
    -------
    tuple or None
        A key, and a dict with the outcome of each promise (``"passed"``, ``"failed"`` or ``"limit"``), the cells, the
        texts of the limits, and the message of a failure. None for a setup or teardown that passed.
    """
    if report.passed and report.when != "call":
        return None
    promises = list(dict.fromkeys(name for marker in item.iter_markers("promise") for name in marker.args))
    cells, limits, message = _cells(item), dict(recorded.limits), ""
    error = None if call.excinfo is None else call.excinfo.value
    outcomes: dict[str, str] = {}
    if isinstance(error, DeclaredLimit):
        limits = dict.fromkeys(promises, _limit(str(error)))
        outcomes = dict.fromkeys(promises, "limit")
    elif report.passed:
        outcomes = {promise: "limit" if promise in limits else "passed" for promise in promises}
    elif report.failed:
        # A session fixture raises the same error for each of its tests, but `recorded` belongs to only one of them.
        broken, cell = ("limits", None) if isinstance(error, WrongLimitError) else recorded.broken or (None, None)
        outcomes = dict.fromkeys(promises if broken is None else [broken], "failed")
        cells = cells if cell is None else [cell]
        message = "" if error is None else _message(error)
    found = {"outcomes": outcomes, "cells": cells, "limits": limits, "message": message}
    return _KEY, found


def _limit(text: str) -> str:
    """Extract the limits from the text of an explanation, which also says what was built and where."""
    lines = [line.strip() for line in text.splitlines()]
    own = [line.removeprefix("can't: ") for line in lines if line.startswith("can't: ")]
    return "; ".join(own) or " ".join(lines)


def _cells(item: pytest.Item) -> list[str]:
    """The cells that a test checks, according to its marker or its parameters; by default all recurrent layers."""
    marked = [marker.kwargs["cell"] for marker in item.iter_markers("promise") if "cell" in marker.kwargs]
    if marked:
        return marked[:1]
    parameters: dict[str, Any] = getattr(getattr(item, "callspec", None), "params", {})
    kind, spec = parameters.get("kind"), parameters.get("spec")
    if "model_backend" in getattr(item, "fixturenames", ()):
        return ["models"]
    if isinstance(kind, str) and kind.partition("-")[0] in CELLS:
        return [kind.partition("-")[0]]
    if isinstance(spec, Spec):
        return [spec.kind if isinstance(spec, RecurrentSpec) else "models"]
    return ["RNN", "GRU", "LSTM"]


def _message(error: BaseException) -> str:
    """The message of an exception in one line; of the first one if hypothesis found several."""
    inner = getattr(error, "exceptions", None)
    if inner:
        return _message(inner[0])
    notes = [note for note in getattr(error, "__notes__", ()) if "alsifying example" in note]
    what, _, cause = str(error).partition("sual cause: ")
    what = what.removesuffix("U").partition("\nassert ")[0]  # after this, pytest repeats the values
    text = " ".join(" ".join([what, *notes]).split()).removeprefix("Arrays are not equal ")
    if not isinstance(error, AssertionError) or not text:
        text = f"{type(error).__name__}: {text}"
    text = text if len(text) <= _WIDTH else f"{text[:_WIDTH]} ..."
    return f"{text} Usual cause: {' '.join(cause.split())}" if cause else text


@dataclass
class Report:
    """A pytest plugin that collects the findings of the tests and formats the report.

    Attributes
    ----------
    outcomes
        How many tests passed, failed, or were skipped for a limit, by promise and cell.
    limits
        The texts of limits by promise and cell.
    failures
        The names of the tests that failed, by what is broken and the message.
    tests
        How many tests passed, failed, were skipped for a limit, or for another reason.
    """

    outcomes: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    limits: dict[tuple[str, str], dict[str, None]] = field(default_factory=lambda: defaultdict(dict))
    failures: dict[tuple[str, str], list[str]] = field(default_factory=lambda: defaultdict(list))
    tests: Counter[str] = field(default_factory=Counter)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add the report of one phase of a test, which may have run in another process."""
        found: dict[str, Any] = dict(report.user_properties).get(_KEY, {})  # type: ignore[assignment]
        if report.failed:
            self._fail(report.nodeid, found)
        elif found:
            is_limit = report.skipped and bool(found["limits"])
            self.tests["limit" if is_limit else report.outcome] += 1
        for promise, outcome in found.get("outcomes", {}).items():
            for cell in found["cells"]:
                self.outcomes[promise, cell][outcome] += 1
                if outcome == "limit":
                    self.limits[promise, cell][found["limits"][promise]] = None

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Add a file that could not be collected."""
        if report.failed:
            self._fail(report.nodeid, {"message": " ".join(str(report.longrepr).split())[-_WIDTH:]})

    def _fail(self, name: str, found: dict[str, Any]) -> None:
        self.tests["failed"] += 1
        promises = ", ".join(PROMISES[promise] for promise in found.get("outcomes", {}))
        cells = ", ".join(found.get("cells", ()))
        where = ": ".join(filter(None, (cells, promises)))
        self.failures[where, found.get("message", "") or "the process ended, or the test was not run"].append(name)

    @property
    def is_kept(self) -> bool:
        """Whether at least one test passed, and none failed."""
        return not self.tests["failed"] and self.tests["passed"] > 0

    def __str__(self) -> str:
        texts = list(dict.fromkeys(text for found in self.limits.values() for text in found))
        parts = ["\n".join(self._table(texts))]
        if texts:
            numbered = "\n".join(f"  [{number}] {text}" for number, text in enumerate(texts, 1))
            parts.append(f"Declared limits:\n{numbered}")
        if self.failures:
            parts.append("\n".join(["Failures:", *self._failures()]))
        names = {"passed": "passed", "failed": "failed", "limit": "a declared limit", "skipped": "skipped"}
        counts = [f"{self.tests[key]} {name}" for key, name in names.items() if self.tests[key]]
        parts.append(f"Tests: {', '.join(counts) or 'none'}")
        return "\n\n".join(parts)

    def _table(self, texts: list[str]) -> Iterator[str]:
        rows = [["", *CELLS]]
        for promise, name in PROMISES.items():
            if any((promise, cell) in self.outcomes for cell in CELLS):
                rows.append([name, *(self._cell(promise, cell, texts) for cell in CELLS)])
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            yield "  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip()

    def _cell(self, promise: str, cell: str, texts: list[str]) -> str:
        found = self.outcomes.get((promise, cell), Counter())
        passed, failed = found["passed"], found["failed"]
        if failed:
            return f"{failed} FAILED" + (f", {passed} passed" if passed else "")
        numbers = [str(texts.index(text) + 1) for text in self.limits.get((promise, cell), ())]
        shown = ", ".join(numbers[:3]) + (", ..." if len(numbers) > 3 else "")
        parts = [*([f"{passed} passed"] if passed else []), *([f"limit [{shown}]"] if numbers else [])]
        return ", ".join(parts) or "-"

    def _failures(self) -> Iterator[str]:
        for (where, message), names in list(self.failures.items())[:_MOST_FAILURES]:
            others = f" and {len(names) - 1} more" if len(names) > 1 else ""
            yield f"  {where}: {message}" if where else f"  {message}"
            yield f"    {names[0]}{others}"
        left = len(self.failures) - _MOST_FAILURES
        if left > 0:
            yield f"  and {left} others"
