"""Run the conformance suite on an installed backend, and print which guarantees hold.

``python -m unirnn.testing NAME [--device D] [options of pytest]``. NAME may include options of the build, as in
``"numpy[kernel=fallback]"``. Useful options of pytest are ``-k GRU``, and ``-n 4``, which needs pytest-xdist. The exit
status is 0 if something was tested and nothing failed, 2 if nothing could be tested, else 1.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from unirnn.errors import ArgumentError, BackendError, UnirnnError

from .subjects import Missing, Subject, checked, launch_blocking, subjects

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite as the module's docstring describes.

    Parameters
    ----------
    arguments
        The command-line arguments; None means those of this process.

    Returns
    -------
    int
        The exit status.
    """
    assert __doc__ is not None
    parser = argparse.ArgumentParser("python -m unirnn.testing", description=__doc__, allow_abbrev=False)
    parser.add_argument("name", metavar="NAME", help="the backend, such as mindspore, or numpy[kernel=fallback]")
    parser.add_argument("--device", help="the device, such as cuda; default: the backend's default device")
    given, options = parser.parse_known_args(arguments)
    missing = [package for package in ("pytest", "hypothesis") if find_spec(package) is None]
    if missing:
        print(f"{' and '.join(missing)} not installed; python -m pip install unirnn[testing]", file=sys.stderr)
        return 2
    try:
        _check_options(options)
        subject = _subject(given.name, given.device)
    except UnirnnError as error:
        print(error, file=sys.stderr)
        return 2
    import pytest

    from .conformance.report import Report

    report, devices = Report(), [] if given.device is None else [f"--rnn-devices={given.device}"]
    print(f"{subject.label}: {subject.backend.version()}, on {subject.device or subject.backend.default_device()}")
    with tempfile.TemporaryDirectory() as folder:
        _shield(folder)
        status = pytest.main([*_own_options(), f"--rnn-backends={given.name}", *devices, *options], [report])
    if status == pytest.ExitCode.USAGE_ERROR:
        return 2
    print(f"\n{report}")
    return 0 if report.is_kept else 1


def _check_options(options: Sequence[str]) -> None:
    """Refuse pytest options that would make the report wrong about what was tested."""
    for option in options:
        if option.startswith(("--rnn-backends", "--rnn-devices", "--rnn-dtypes")):
            raise ArgumentError(f"options: given {option}, expected NAME and --device, which say what is tested")


def _subject(name: str, device: str | None) -> Subject:
    """The backend to test; raises an error that says why if it can't be tested."""
    found = subjects([name], [] if device is None else [device])
    if len(found) != 1:
        raise ArgumentError(f"NAME: given {name!r}, expected the name of one backend")
    if any(isinstance(subject, Subject) and subject.name == "mindspore" for subject in found):
        launch_blocking()  # has no effect after the first operator
    subject = checked(found[0]) if isinstance(found[0], Subject) else found[0]
    if isinstance(subject, Missing):
        raise BackendError(f"{subject.label}: {subject.reason}")
    return subject


def _own_options() -> list[str]:
    """Options of pytest that ignore the user's configuration and write no files next to the suite."""
    folder = Path(__file__).parent / "conformance"
    places = [str(folder), "-c", os.devnull, f"--rootdir={folder}", f"--confcutdir={folder}"]
    return [*places, "-p", "no:cacheprovider", "--import-mode=importlib", "-q", "--no-header", "--no-summary"]


def _shield(folder: str) -> None:
    """Unset pytest's environment variables for this process and its workers, and let hypothesis write to a folder."""
    for name in [name for name in os.environ if name.startswith("PYTEST_")]:
        del os.environ[name]
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = folder
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    sys.dont_write_bytecode = True


if __name__ == "__main__":
    sys.exit(main())
