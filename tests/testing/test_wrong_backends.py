"""The conformance suite catches each of many wrong backends, and names the cause of most."""

from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

import unirnn.testing
import unirnn_pytest
from unirnn import registry
from unirnn.contract.backend import Backend

pytest.importorskip("torch", reason="the wrong backends compute with torch's tensors")
from wrong_backends import WRONG, Handmade, Wrong

SUITE = Path(unirnn.testing.__file__).parent / "conformance"
NAME = Handmade.name


class Reports:
    """A pytest plugin that collects the reports of the tests."""

    def __init__(self) -> None:
        self.found: list[pytest.TestReport] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.found.append(report)


def run_suite(*tests: str) -> list[pytest.TestReport]:
    """Run tests of the conformance suite, in this process, for the backend that is installed."""
    reports = Reports()
    names = [f"{SUITE}/{test.replace('[', f'[{NAME}-')}" for test in tests]
    names = [name if name.endswith("]") else f"{name}[{NAME}]" for name in names]
    options = ["-xqs", "--tb=short", "--import-mode=importlib", "--override-ini=addopts=", f"--rnn-backends={NAME}"]
    off = [f"-pno:{name}" for name in ("cacheprovider", "doctest", "faulthandler", "logging", "unraisableexception")]
    pytest.main([*names, *options, *off], [reports, unirnn_pytest])
    return reports.found


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[Backend], None]:
    """Return a function that registers a backend as if its distribution were installed."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # load only the plugin of unirnn, to save time
    entry = metadata.EntryPoint(NAME, "wrong_backends:Handmade", registry.GROUP)
    entries = {**registry._entry_points(), NAME: entry}
    monkeypatch.setattr(registry, "_entry_points", lambda: entries)
    return lambda backend: monkeypatch.setitem(registry._loaded, NAME, backend)


def test_the_right_backend_passes_the_same_tests(install: Callable[[Backend], None]) -> None:
    install(Handmade())
    tests = {wrong.test for wrong in WRONG.values()}
    found = run_suite(*tests)
    assert not [report.longreprtext for report in found if not report.passed]
    assert len(found) == 3 * len(tests)  # setup, call and teardown of each


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_backend_is_caught(install: Callable[[Backend], None], wrong: Wrong) -> None:
    install(wrong.backend)
    failed = [report for report in run_suite(wrong.test) if report.failed]
    assert [report.when for report in failed] == ["call"], failed
    crash: Any = failed[0].longrepr
    message = crash.reprcrash.message
    assert wrong.words is None or wrong.words in message, message


def test_most_messages_name_the_cause() -> None:
    assert len(WRONG) >= 90
    assert sum(wrong.words is not None for wrong in WRONG.values()) >= 70
