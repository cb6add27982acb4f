"""The command that runs the conformance suite: its table, strict limits, borrowed gradients, and exit status."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
from distributions import write_distribution

from unirnn.testing.__main__ import main

# A third party's backend, as a module and the metadata of its distribution.
MINE = """
from dataclasses import replace

from unirnn_numpy.backend import NumpyBackend


class Mine(NumpyBackend):
    name = "mine"
    support = replace(NumpyBackend.support, who="mine", lacks=("proj_size",), dropout=False)


backend = Mine()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's working folder with a backend, and with a configuration and a conftest that would break any test."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = --no-such-option\n")
    (tmp_path / "conftest.py").write_text("raise RuntimeError('not for the suite')\n")
    write_distribution(tmp_path, "mine", "[unirnn.backends]\nmine = mine:backend\n", {"mine.py": MINE})
    return tmp_path


def run(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    paths = [str(folder), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTEST_ADDOPTS": "--no-such-option"}
    command = [sys.executable, "-m", "unirnn.testing", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def rows(text: str) -> dict[str, list[str]]:
    """The rows of the table, by their first column."""
    lines = [line for line in text.splitlines() if line.startswith(("Numbers", "Padding", "Gradients", "Declared lim"))]
    parts = [[part.strip() for part in line.split("  ") if part.strip()] for line in lines]
    return {name: cells for name, *cells in parts}


def test_a_backend_that_keeps_its_promises(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    processes = ["-n", "2"] if importlib.util.find_spec("xdist") else []
    found = run(folder, "numpy", *processes, "-k", "test_guarantees and unbatched and not test_models and not ragged")
    assert found.returncode == 0, found.stdout + found.stderr
    assert rows(found.stdout)["Numbers"] == ["2 passed", "2 passed", "1 passed", "-"]
    assert rows(found.stdout)["Gradients"] == ["4 passed", "4 passed", "2 passed", "-"]
    assert sorted(folder.rglob("*")) == before  # nothing is written


def test_a_limit_that_works_and_borrowed_gradients_are_reported(folder: Path) -> None:
    tests = "borrowed or projected-resets or projected-huge or of_a_step or (float16 and LSTM)"
    found = run(folder, "mine", "-k", tests)
    assert found.returncode == 1, found.stdout + found.stderr
    table = rows(found.stdout)
    assert table["Declared limits"] == ["-", "1 FAILED", "2 FAILED", "-"]
    assert table["Gradients"] == ["-", "1 FAILED", "1 passed", "1 FAILED"]
    assert "mine declares 'mine has no LSTM with proj_size=1', but computes it; remove the limit" in found.stdout
    assert "mine declares 'mine applies no dropout', but computes it; remove the limit" in found.stdout
    assert "of the numpy backend, so they say nothing about what the backend itself computes" in found.stdout


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nope", "backend: given 'nope', expected one of"),
        ("numpy[colour=red]", "given numpy[colour=...], expected an option that it has: kernel"),
        ("all", "NAME: given 'all', expected the name of one backend"),
        ("array_api", "array_api needs the option namespace"),
    ],
)
def test_a_backend_that_cannot_be_tested_is_an_error_in_one_line(
    name: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert words in said.err
    assert said.err.count("\n") == 1


def test_a_run_without_tests_fails(folder: Path) -> None:
    found = run(folder, "numpy", "-k", "no_such_test")
    assert found.returncode == 1
    assert "Tests: none" in found.stdout
