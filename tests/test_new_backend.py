"""The package that ``unirnn new-backend`` writes installs, is found, builds and keeps the guarantees."""

import os
import re
import subprocess
import sys
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest

pytest.importorskip("typer", reason="the command needs typer and rich")
from typer.testing import CliRunner

from unirnn.cli.app import app
from unirnn.cli.new_backend import TEMPLATE, write_distribution
from unirnn.errors import ArgumentError, FileError

SUITE = "unirnn.testing.conformance"
needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="the new backend computes with torch")
FILES = [
    "README.md",
    "pyproject.toml",
    "src/unirnn_my_frame/__init__.py",
    "src/unirnn_my_frame/backend.py",
    "src/unirnn_my_frame/models.py",
    "src/unirnn_my_frame/module.py",
    "tests/test_my_frame.py",
]
FULL = """
import resource, sys
from unirnn.__main__ import main
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
sys.argv[1:] = ["new-backend", "my_frame"]
main()
"""


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_every_file_is_written_with_the_new_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["new-backend", "my_frame"])
    assert result.exit_code == 0, result.output
    assert "python -m unirnn.testing my_frame\n" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["unirnn-my-frame"]
    assert files(tmp_path / "unirnn-my-frame") == FILES
    for name in FILES:
        assert "loop" not in (tmp_path / "unirnn-my-frame" / name).read_text("utf-8").lower()


def test_with_the_name_from_the_guide_the_files_equal_the_guide(tmp_path: Path) -> None:
    written = write_distribution("loop", tmp_path)
    for name in files(written):
        assert (written / name).read_text("utf-8") == (TEMPLATE / name).read_text("utf-8")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        *(
            (name, "expected lower-case letters")
            for name in ("", "My_frame", "my-frame", "_frame", "frame_", "2d", "ä")
        ),
        ("torch", "which is a backend already"),
        ("bench", "the package unirnn_bench exists already"),
        ("json", "which is a module of Python's standard library"),
        ("all", "which means every backend"),
    ],
)
def test_a_name_that_is_malformed_or_taken_is_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=message):
        write_distribution(name, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("there", ["a folder with a file", "an empty folder", "a file", "a link to nothing"])
def test_existing_files_are_never_overwritten(there: str, tmp_path: Path) -> None:
    taken = tmp_path / "unirnn-my-frame"
    if there == "a link to nothing":
        taken.symlink_to("nowhere")
    elif there == "a file":
        taken.write_text("mine")
    else:
        taken.mkdir()
        if there == "a folder with a file":
            (taken / "README.md").write_text("mine")
    before = [(path, path.lstat()) for path in tmp_path.rglob("*")]
    with pytest.raises(FileError, match="unirnn-my-frame: it exists already"):
        write_distribution("my_frame", tmp_path)
    assert [(path, path.lstat()) for path in tmp_path.rglob("*")] == before


def test_an_error_leaves_no_files_behind(tmp_path: Path) -> None:
    result = subprocess.run([sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "File too large" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the distribution's own wheel in it, unpacked as an installer does."""
    pytest.importorskip("hatchling")
    written = write_distribution("my_frame", tmp_path)
    run("hatchling", "build", "-t", "wheel", "-d", str(tmp_path), folder=written)
    (wheel,) = tmp_path.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(tmp_path / "installed")
    return tmp_path / "installed"


def test_the_distribution_names_its_backend(installed: Path) -> None:
    (found,) = metadata.distributions(path=[str(installed)])
    assert [(e.group, e.name, e.value) for e in found.entry_points] == [
        ("unirnn.backends", "my_frame", "unirnn_my_frame:backend")
    ]


@needs_torch
def test_its_own_tests_and_the_conformance_suite_pass(installed: Path) -> None:
    # The whole conformance suite takes half a minute; these two tests cover a bit of everything.
    chosen = [f"{SUITE}.test_guarantees::test_random_specs", f"{SUITE}.test_models::test_random_models"]
    options = ["--pyargs", *chosen, "--rnn-backends=my_frame"]
    run("pytest", "tests", *options, folder=installed.parent / "unirnn-my-frame", path=installed)


@needs_torch
def test_the_conformance_suite_leaves_models_out_for_a_backend_without(installed: Path) -> None:
    backend = installed / "unirnn_my_frame" / "backend.py"
    code, count = re.subn(r"\n +kinds=.*", "", backend.read_text("utf-8"))
    assert count == 1
    backend.write_text(code, "utf-8")
    chosen = ["--pyargs", f"{SUITE}.test_mistakes", "--rnn-backends=my_frame"]
    run("pytest", *chosen, folder=installed.parent, path=installed)


def run(*module: str, folder: Path, path: Path | None = None) -> None:
    """Run a module of Python in a folder, with another folder on Python's path."""
    paths = [] if path is None else [str(path)]
    paths += filter(None, [os.environ.get("PYTHONPATH")])
    result = subprocess.run(
        [sys.executable, "-m", *module],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
