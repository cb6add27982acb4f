"""The pytest plugin: which backends a test gets, what is skipped and why, and what it imports."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from distributions import installed, write_distribution
from unirnn_numpy.backend import NumpyBackend

import unirnn
from unirnn import registry
from unirnn.errors import BackendError
from unirnn.testing.subjects import Missing, Subject, subjects

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TEST = "def test_it(rnn_backend): pass\n"
MARKED = "import pytest\n@pytest.mark.rnn_backend({})\n" + TEST


@pytest.fixture(autouse=True, scope="module")
def _frameworks_stay_imported() -> None:
    """Import frameworks first, since pytester removes what a run imports, and they can't be imported twice."""
    for name in registry.backends():
        with suppress(BackendError):
            registry.load(name)


@pytest.fixture
def absent(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a registered backend whose framework is not installed."""
    folder = tmp_path_factory.mktemp("absent")
    modules = {"unirnn_absent.py": "import a_framework_that_nobody_has\n"}
    write_distribution(folder, "unirnn-absent", "[unirnn.backends]\nabsent = unirnn_absent:backend\n", modules)
    with installed(folder, monkeypatch):
        yield "absent"


def run(pytester: pytest.Pytester, code: str, *options: str) -> dict[str, str]:
    """The outcome of each test in a file; for a skipped test, the reason."""
    pytester.makepyfile(code)
    found = {}
    for report in pytester.inline_run("-p", "no:cacheprovider", *options).getreports("pytest_runtest_logreport"):
        name = report.nodeid.partition("::")[2]
        if report.skipped:
            assert isinstance(report.longrepr, tuple)
            found[name] = report.longrepr[2]
        elif report.when == "call":
            found[name] = report.outcome
    return found


@pytest.mark.parametrize(
    ("code", "options", "expected"),
    [
        (TEST, "--rnn-backends=numpy", ["numpy"]),
        (TEST, "--rnn-backends=numpy[kernel=fallback],numpy", ["numpy-fallback", "numpy"]),
        (
            TEST,
            "--rnn-backends=numpy --rnn-dtypes=float32,float64 --rnn-devices=cpu",
            ["numpy-cpu", "numpy-cpu-float64"],
        ),
        (MARKED.format("'numpy'"), "", ["numpy"]),
        (MARKED.format("'numpy[kernel=fallback]', dtypes='float64'"), "", ["numpy-fallback-float64"]),
        (
            MARKED.format("'numpy', dtypes=['float16', 'float64']"),
            "--rnn-backends=all",
            ["numpy-float16", "numpy-float64"],
        ),
        (MARKED.format("dtypes=('float64',)"), "--rnn-backends=numpy --rnn-dtypes=float32", ["numpy-float64"]),
        (MARKED.format("'numpy'"), "--rnn-backends=numpy[kernel=fallback]", ["numpy-fallback"]),
        (MARKED.format("'torch, numpy'"), "--rnn-backends=numpy", ["numpy"]),
        (
            TEST,
            "--rnn-backends=numpy[kernel=fallback],numpy[kernel=fallback] --rnn-dtypes=float32,float32",
            ["numpy-fallback"],
        ),
    ],
)
def test_the_backends_that_a_test_runs_for(
    pytester: pytest.Pytester, code: str, options: str, expected: list[str]
) -> None:
    assert run(pytester, code, *options.split()) == {f"test_it[{name}]": "passed" for name in expected}


def test_by_default_a_test_runs_for_every_installed_backend(pytester: pytest.Pytester, absent: str) -> None:
    installed = [one.name for one in subjects(["all"]) if isinstance(one, Subject)]
    assert "numpy" in installed
    assert absent not in installed
    assert run(pytester, TEST) == {f"test_it[{name}]": "passed" for name in installed}


NOT_INSTALLED = "backend 'absent' needs a_framework_that_nobody_has, which is not installed; to install it: "


@pytest.mark.parametrize(
    ("code", "options", "name", "reason"),
    [
        (TEST, "--rnn-backends=all", "absent", NOT_INSTALLED),
        (TEST, "--rnn-backends=all", "array_api", "array_api needs the option namespace of build; name it, as in "),
        (MARKED.format("'absent'"), "", "absent", NOT_INSTALLED),
        (
            MARKED.format("'absent', 'torch'"),
            "--rnn-backends=numpy",
            "absent, torch",
            "the test is for absent, torch, which --rnn-backends=numpy excludes",
        ),
        (
            TEST,
            "--rnn-backends=numpy --rnn-devices=cuda",
            "numpy-gpu",
            "device: given 'gpu', not present; numpy sees cpu",
        ),
        (
            TEST,
            "--rnn-backends=numpy --rnn-dtypes=bfloat16",
            "numpy-bfloat16",
            "can't: numpy computes in float16, float32, float64, not in bfloat16",
        ),
    ],
)
@pytest.mark.usefixtures("absent")
def test_a_skipped_test_gives_the_reason(
    pytester: pytest.Pytester, code: str, options: str, name: str, reason: str
) -> None:
    assert run(pytester, code, *options.split())[f"test_it[{name}]"].startswith(f"Skipped: {reason}")


@pytest.mark.parametrize(
    ("code", "options", "message"),
    [
        (TEST, "--rnn-backends=numpy,absent", f"--rnn-backends: {NOT_INSTALLED}"),
        (TEST, "--rnn-backends=nympy", "--rnn-backends: backend: given 'nympy', expected one of "),
        (
            TEST,
            "--rnn-backends=numpy[kernel",
            "backends: given 'numpy[kernel', expected a name, or name[option=value,...]",
        ),
        (
            TEST,
            "--rnn-backends=numpy[kernels=fallback]",
            "given numpy[kernels=...], expected an option that it has: kernel",
        ),
        (
            TEST,
            "--rnn-backends=numpy[kernel=abacus]",
            "numpy-abacus can't be built: kernel: given 'abacus', expected one of ",
        ),
        (TEST, "--rnn-backends=numpy[kernel=fallback,kernel=compiled]", "expected a name, or name[option=value,...]"),
        (TEST, "--rnn-backends=numpy[]", "backends: given 'numpy[]', expected a name, or name[option=value,...]"),
        (TEST, "--rnn-backends=all,numpy", "backends: given all, numpy, expected names, or 'all' by itself"),
        (TEST, "--rnn-backends=", "--rnn-backends: given '', expected at least one name"),
        (TEST, "--rnn-dtypes=,", "--rnn-dtypes: given ',', expected at least one name"),
        (
            MARKED.format("['numpy', 'torch']"),
            "",
            "given ['numpy', 'torch'], expected names of backends, ",
        ),
        (TEST, "--rnn-backends=array_api", "given 'array_api', but array_api needs the option namespace of build"),
        (TEST, "--rnn-dtypes=int8", "dtype: given 'int8', expected one of float16, "),
        (TEST, "--rnn-devices=abacus", "device: given 'abacus', expected "),
        (
            MARKED.format("device='cpu'"),
            "",
            "test_it: rnn_backend: given device, expected names of backends, devices= and",
        ),
    ],
)
@pytest.mark.usefixtures("absent")
def test_a_wrong_option_is_an_error_before_any_test_runs(
    pytester: pytest.Pytester, code: str, options: str, message: str
) -> None:
    pytester.makepyfile(code)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", *options.split())
    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    text = result.stdout.str() + result.stderr.str()
    assert message in text
    assert "Traceback" not in text


FOR_EACH = """
import unittest
import pytest

@pytest.mark.usefixtures("rnn_backend")
class TestIt(unittest.TestCase):
    def test_it(self): pass

def test_it(request):
    request.getfixturevalue("rnn_backend")
"""


def test_a_test_that_cannot_run_for_each_backend_says_so(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(FOR_EACH)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "--rnn-backends=numpy")
    result.assert_outcomes(failed=1, errors=1)
    assert result.stdout.str().count("; name it among the arguments of a test") >= 2


class OfLSTMs(NumpyBackend):
    """A backend that has only LSTMs, in one dtype, and no kernels."""

    name = "of_lstms"
    support = replace(NumpyBackend.support, who="of_lstms", kinds=("LSTM",), dtypes=("float32",))

    def kernels(self, spec: object, device: unirnn.Device, dtype: str) -> tuple[()]:
        return ()


class Broken(NumpyBackend):
    """A backend whose framework is installed, but has no working driver."""

    name = "broken"

    def devices(self) -> tuple[unirnn.Device, ...]:
        raise RuntimeError("the driver is too old")


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {backend.name: backend for backend in (OfLSTMs(), Broken())}
    entries = {name: metadata.EntryPoint(name, "nowhere", registry.GROUP) for name in found}
    monkeypatch.setattr(registry, "_entry_points", lambda: entries)
    monkeypatch.setattr(registry, "_loaded", found)


@pytest.mark.usefixtures("others")
def test_backends_without_a_gru_or_without_their_driver() -> None:
    with_kernel, broken = subjects(["of_lstms[kernel=fallback]", "broken"])
    assert isinstance(with_kernel, Subject)
    assert with_kernel.small_layer == unirnn.LSTMSpec(1, 1)
    assert with_kernel.to_numpy(with_kernel.native([1.0])).tolist() == [1.0]
    assert with_kernel.build(unirnn.LSTMSpec(1, 1), seed=0)._kernel == "fallback"
    assert isinstance(broken, Missing)
    assert broken.reason == "broken: its devices or limits can't be listed: RuntimeError: the driver is too old"


LIMIT = """
import unirnn

def test_it(rnn_backend):
    rnn_backend.build(unirnn.GRUSpec(3, 4), dtype="bfloat16")
"""


def test_a_build_that_a_backend_cannot_do_skips_with_the_limit(pytester: pytest.Pytester) -> None:
    with pytest.raises(unirnn.errors.LimitError) as caught:
        unirnn.GRUSpec(3, 4).build("numpy", dtype="bfloat16")
    assert run(pytester, LIMIT, "--rnn-backends=numpy") == {"test_it[numpy]": f"Skipped: {caught.value}"}


SHARED = """
import pytest

@pytest.fixture(scope="session")
def once(rnn_backend):
    return []

def test_a(rnn_backend, once): once.append(rnn_backend)
def test_b(rnn_backend, once): assert once == [rnn_backend]
"""


def test_all_tests_get_the_same_object(pytester: pytest.Pytester) -> None:
    assert run(pytester, SHARED, "--rnn-backends=numpy") == {"test_a[numpy]": "passed", "test_b[numpy]": "passed"}


@pytest.mark.parametrize("array", [[1, 2], [0.5, 2.0], np.array([True, False])])
def test_arrays_go_to_the_framework_and_back(rnn_backend: Subject, array: object) -> None:
    given = np.asarray(array)
    native = rnn_backend.native(array)
    back = rnn_backend.to_numpy(native)
    assert back.tolist() == given.tolist()
    assert back.dtype == (rnn_backend.dtype if given.dtype.kind == "f" else given.dtype)
    if rnn_backend.name == "torch":
        assert type(native).__module__ == "torch"


def test_gradients_of_a_function(rnn_backend: Subject) -> None:
    linear = rnn_backend.build(unirnn.LinearSpec(2, 1, bias=False), seed=0)
    x = np.array([[1.0, 2.0], [3.0, 4.0]])

    def total(x: object, index: object) -> object:
        return linear(x).sum()

    (d_x, d_index), weights = rnn_backend.gradient(total, x, [1, 0], module=linear)
    own = unirnn.snapshot(linear).weights["weight"]
    assert d_x is not None
    assert d_index is None
    np.testing.assert_allclose(d_x, np.repeat(own, 2, 0), rtol=1e-5)
    np.testing.assert_allclose(weights["weight"], x.sum(0, keepdims=True), rtol=1e-5)


def test_the_tests_of_the_page_pass(pytester: pytest.Pytester) -> None:
    page = (ROOT / "docs" / "test-your-model.md").read_text("utf-8")
    code = "".join(block for block in BLOCK.findall(page) if "import torch" not in block and "import nox" not in block)
    found = run(pytester, code, "--rnn-backends=numpy")
    assert {name: how for name, how in found.items() if how != "passed"} == {
        "test_the_gradient_of_my_loss[numpy]": "Skipped: numpy has no gradients of functions; use another backend"
    }
    assert len(found) == 5


def test_the_plugin_imports_nothing_heavy_unless_a_test_has_the_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "import sys\n\ndef test_it():\n    assert 'unirnn_pytest' in sys.modules\n"
        "    assert not {'numpy', 'unirnn', 'torch', 'hypothesis.strategies'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    result = subprocess.run([*command, tmp_path], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


DIFFERENT = """
import unirnn
from unirnn.testing import assert_same, batch

SPEC = unirnn.GRUSpec(3, 4)

def test_it(rnn_backend):
    assert_same(rnn_backend.build(SPEC, seed=0), SPEC.build("numpy", seed=1), batch(SPEC))

def test_batch():
    batch(SPEC, features=4)

def test_skipped(rnn_backend):
    rnn_backend.build(SPEC, dtype="bfloat16")
"""


def test_a_failure_shows_the_line_of_the_test_and_not_the_code_of_the_kit(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(DIFFERENT)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-rs", "--rnn-backends=numpy")
    text = result.stdout.str()
    assert result.parseoutcomes() == {"failed": 2, "skipped": 1}
    assert "E       AssertionError: a (GRUSpec(3, 4) of numpy) and b (GRUSpec(3, 4) of numpy) differ." in text
    assert "unirnn/testing" not in text
