"""The pytest plugin of unirnn: the fixture ``rnn_backend``, its marker and its options.

Pytest imports it whenever unirnn is installed, and before it starts to measure coverage. Therefore it is a package of
its own, which imports unirnn only when a test uses the fixture.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from unirnn.testing.subjects import Missing, Subject

__all__ = ["rnn_backend"]

MARKER = (
    "rnn_backend(*names, devices=(), dtypes=()): the backends, devices and dtypes with which a test that uses the "
    "fixture rnn_backend runs; those that the options exclude, or that are not installed, are skipped."
)
OPTIONS = ("rnn_backends", "rnn_devices", "rnn_dtypes")
MADE = pytest.StashKey["dict[str, list[Subject | Missing]]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("unirnn", "recurrent models on several backends")
    group.addoption(
        "--rnn-backends",
        metavar="NAMES",
        help="backends for tests with the fixture rnn_backend, separated by commas; name[option=value] builds with an "
        "option, and 'all' means every registered backend; default: those that are installed",
    )
    group.addoption(
        "--rnn-devices", metavar="NAMES", help="devices for these tests; default: each backend's default device"
    )
    group.addoption("--rnn-dtypes", metavar="NAMES", help="dtypes for these tests; default: float32")
    group.addoption(
        "--rnn-asynchronous",
        action="store_true",
        help="let MindSpore run operators asynchronously; by default it runs each operator at once, which is faster on "
        "a CPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", MARKER)


def pytest_sessionstart(session: pytest.Session) -> None:
    """Raise a usage error for wrong options before any test is collected."""
    if any(session.config.getoption(name) is not None for name in OPTIONS):
        from unirnn.errors import UnirnnError

        try:
            _under_test(session.config, (), {})
        except UnirnnError as error:
            raise pytest.UsageError(str(error)) from None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize each test that uses the fixture with the backends."""
    if "rnn_backend" not in metafunc.fixturenames:
        return
    from unirnn.errors import UnirnnError

    marker = metafunc.definition.get_closest_marker("rnn_backend")
    try:
        found = _under_test(metafunc.config, *((), {}) if marker is None else (marker.args, marker.kwargs))
    except UnirnnError as error:
        pytest.fail(f"{metafunc.definition.nodeid}: {error}", pytrace=False)
    metafunc.parametrize("rnn_backend", found, indirect=True, ids=lambda subject: subject.label, scope="session")


def _under_test(config: pytest.Config, marked: Sequence[str], given: Mapping[str, Any]) -> "list[Subject | Missing]":
    """The values of the fixture, according to the options and the arguments of a test's marker."""
    from unirnn.errors import ArgumentError
    from unirnn.testing.subjects import Missing

    if not set(given) <= {"devices", "dtypes"} or not all(isinstance(name, str) for name in marked):
        wrong = ", ".join([*(repr(name) for name in marked if not isinstance(name, str)), *given])
        raise ArgumentError(f"rnn_backend: given {wrong}, expected names of backends, devices= and dtypes=")
    for option in OPTIONS:
        text = config.getoption(option)
        if text is not None and not _names(text):  # such as an unset shell variable
            raise ArgumentError(f"--{option.replace('_', '-')}: given {text!r}, expected at least one name")
    marked, named = _names(",".join(marked)), _names(config.getoption("rnn_backends"))
    is_named = named not in ([], ["all"])
    found = _subjects(
        config,
        named if is_named else marked or named or None,
        _names(given.get("devices") or config.getoption("rnn_devices")),
        _names(given.get("dtypes") or config.getoption("rnn_dtypes")),
    )
    absent = [one for one in found if isinstance(one, Missing) and not one.is_installed]
    if is_named and absent:
        raise ArgumentError(f"--rnn-backends: {absent[0].reason}")
    if is_named and marked:
        found = [one for one in found if one.name in {text.partition("[")[0].strip() for text in marked}]
    if found:
        return found
    # For an empty list, pytest would only say that there are no parameters.
    names = ", ".join(marked)
    excluded = f"the test is for {names}, which --rnn-backends={config.getoption('rnn_backends')} excludes"
    return [Missing(names, names, excluded if marked else "no backend is installed")]


def _subjects(
    config: pytest.Config, names: list[str] | None, devices: list[str], dtypes: list[str]
) -> "list[Subject | Missing]":
    """The backends to test. All tests get the same objects, so that pytest sets the fixture up once for each."""
    from unirnn.testing.subjects import Subject, checked, launch_blocking, subjects

    made = config.stash.setdefault(MADE, {})
    key = repr((names, devices, dtypes))
    if key not in made:
        is_asynchronous = bool(config.getoption("rnn_asynchronous"))
        found = subjects(names, devices, dtypes, is_brief=is_asynchronous)
        if not is_asynchronous and any(isinstance(one, Subject) and one.name == "mindspore" for one in found):
            launch_blocking()  # has no effect after the first operator
        made[key] = [checked(one) if isinstance(one, Subject) else one for one in found]
    return made[key]


def _names(names: str | Sequence[str] | None) -> list[str]:
    """Split a text into names at its commas, except for those in brackets, which separate options."""
    parts = re.split(r",(?![^\[]*\])", names or "") if names is None or isinstance(names, str) else names
    return [name.strip() for name in parts if name.strip()]


@pytest.fixture(scope="session")
def rnn_backend(request: pytest.FixtureRequest) -> "Subject":
    """A backend under test; see `unirnn.testing.Subject`."""
    from unirnn.testing.subjects import Missing

    if not hasattr(request, "param"):
        text = "rnn_backend: requested by getfixturevalue or by a unittest.TestCase, which pytest can't run for each "
        pytest.fail(f"{text}backend; name it among the arguments of a test", pytrace=False)
    found = request.param
    if isinstance(found, Missing):
        pytest.skip(found.reason)
    subject: Subject = found
    return subject
