"""The pytest plugin of unirnn: the fixture ``rnn_backend``, its marker and its options.

Pytest imports it whenever unirnn is installed, before it measures coverage. So it is a package by itself, and imports
unirnn only once a test asks for the fixture.
"""

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from unirnn.testing.subjects import Subject

__all__ = ["rnn_backend"]

MARKER = (
    "rnn_backend(*names, devices=(), dtypes=()): the backends, devices and dtypes for which the fixture rnn_backend "
    "runs a test; those that the options leave out, or that are not installed, are skipped."
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("unirnn", "recurrent models on several backends")
    group.addoption(
        "--rnn-backends",
        metavar="NAMES",
        help="backends for tests with the fixture rnn_backend, separated by commas; name[option=value] builds with an "
        "option, and 'all' is every backend that is registered; default: those that are installed",
    )
    group.addoption("--rnn-devices", metavar="NAMES", help="devices for these tests; default: each backend's own")
    group.addoption("--rnn-dtypes", metavar="NAMES", help="dtypes for these tests; default: float32")
    group.addoption(
        "--rnn-asynchronous",
        action="store_true",
        help="leave MindSpore as it is: without this, it runs each operator at once, which is faster on a CPU",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line("markers", MARKER)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that has the fixture for each backend."""
    if "rnn_backend" not in metafunc.fixturenames:
        return
    from unirnn.errors import UnirnnError
    from unirnn.testing.subjects import Missing, Subject, launch_blocking, subjects

    option = metafunc.config.getoption
    named = _names(option("rnn_backends"))
    marker = metafunc.definition.get_closest_marker("rnn_backend")
    marked: dict[str, Any] = {} if marker is None else dict(marker.kwargs)
    names = named or (list(marker.args) if marker is not None and marker.args else None)
    devices = marked.get("devices") or _names(option("rnn_devices"))
    dtypes = marked.get("dtypes") or _names(option("rnn_dtypes"))
    try:
        found = subjects(names, devices, dtypes, is_brief=bool(option("rnn_asynchronous")))
    except UnirnnError as error:
        raise pytest.UsageError(str(error)) from None
    missing = [one for one in found if isinstance(one, Missing)]
    if missing and named not in ([], ["all"]):
        raise pytest.UsageError(f"--rnn-backends: {missing[0].label}: {missing[0].reason}")
    if marker is not None and marker.args and named:
        found = [one for one in found if isinstance(one, Missing) or one.name in marker.args]
    if not option("rnn_asynchronous") and any(isinstance(s, Subject) and s.name == "mindspore" for s in found):
        launch_blocking()
    metafunc.parametrize("rnn_backend", found, indirect=True, ids=lambda subject: subject.label, scope="session")


def _names(text: str | None) -> list[str]:
    """The names in a list; a comma within brackets separates options."""
    return [name.strip() for name in re.split(r",(?![^\[]*\])", text or "") if name.strip()]


@pytest.fixture(scope="session")
def rnn_backend(request: pytest.FixtureRequest) -> "Subject":
    """A backend under test; see `unirnn.testing.Subject`."""
    from unirnn.testing.subjects import Missing

    found = request.param
    if isinstance(found, Missing):
        pytest.skip(found.reason)
    subject: Subject = found
    return subject
