"""The registry imports a backend only when it is needed, and names what is missing."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributions import installed, write_distribution

import unirnn
from unirnn import GRUSpec, errors, registry


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=120
    ).stdout.strip()


def test_importing_unirnn_imports_no_framework() -> None:
    heavy = "{'torch', 'mindspore', 'array_api_compat', 'typer', 'rich', 'jax', 'flax', 'keras', 'onnx', 'onnxruntime',"
    heavy += " 'safetensors', 'unirnn_numpy'}"
    assert run(f"import sys, unirnn; print(sorted(set(sys.modules) & {heavy}))") == "[]"


def test_attributes_that_are_imported_late() -> None:
    names = "unirnn.files, unirnn.snapshots, unirnn.devices, unirnn.Snapshot, unirnn.load"
    assert run(f"import unirnn; print(len([{names}]))") == "5"
    assert run("import unirnn; print(set(unirnn.__all__) <= set(dir(unirnn)))") == "True"
    with pytest.raises(AttributeError, match="module 'unirnn' has no attribute 'nothing'"):
        unirnn.nothing  # noqa: B018


def test_the_numpy_backend_imports_no_other_framework(tmp_path: Path) -> None:
    code = (
        "import sys, unirnn, numpy\n"
        "module = unirnn.GRUSpec(3, 4).build('numpy', seed=0)\n"
        "module(numpy.ones((5, 1, 3), 'float32'))\n"
        "taken = unirnn.snapshot(unirnn.snapshot(module).weights)\n"
        f"taken.save({str(tmp_path / 'gru.safetensors')!r})\n"
        f"unirnn.load_weights(module, unirnn.load({str(tmp_path / 'gru.safetensors')!r}))\n"
        "heavy = {'torch', 'mindspore', 'array_api_compat', 'onnx', 'onnxruntime', 'keras', 'jax'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run(code) == "[]"


ENTRY_POINTS = """
[unirnn.backends]
missing = missing_backend:backend
broken = broken_backend:backend
wrong = wrong_backend:backend
exits = exiting_backend:backend
raises = raising_backend:backend
malformed = x y z
function = json:dumps
nowhere = a_package_that_is_not_there:backend
nameless = nameless_backend:backend
twice = json:dumps
twice = json:loads
numpy = broken_backend:backend
builtins = broken_backend:backend
"""
MODULES = {
    "missing_backend": "import a_framework_that_nobody_has",
    "broken_backend": "raise RuntimeError('no driver')",
    "wrong_backend": "backend = 'numpy'",
    "exiting_backend": "import sys; sys.exit(3)",
    "raising_backend": "class Unusual(BaseException): pass\nraise Unusual('no')",
    "nameless_backend": "from unirnn_numpy import NumpyBackend\nbackend = NumpyBackend()",
}


@pytest.fixture
def others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """A folder with a distribution of broken backends, each broken in a different way."""
    write_distribution(tmp_path, "others", ENTRY_POINTS, {f"{name}.py": text for name, text in MODULES.items()})
    monkeypatch.setattr(registry, "_loaded", {})
    with installed(tmp_path, monkeypatch):
        yield tmp_path


def test_an_unknown_backend() -> None:
    with pytest.raises(errors.UnknownBackendError, match=r"given 'tensorflow', expected one of .*numpy"):
        GRUSpec(3, 4).build("tensorflow")
    with pytest.raises(errors.UnknownBackendError):
        unirnn.use_backend("tensorflow")
    for name in (3, ["numpy"]):
        with pytest.raises(errors.UnknownBackendError, match="backend: given"):
            GRUSpec(3, 4).build(name)  # type: ignore[arg-type]


@pytest.mark.usefixtures("others")
def test_a_backend_whose_framework_is_missing() -> None:
    with pytest.raises(errors.MissingBackendError, match="python -m pip install a_framework_that_nobody_has") as caught:
        GRUSpec(3, 4).build("missing")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


BROKEN = {
    "broken": "'broken' fails to import: RuntimeError: no driver",
    "wrong": "'wrong': wrong_backend:backend is str 'numpy', expected an instance of a subclass of "
    "unirnn.contract.backend.Backend",
    "exits": "'exits' fails to import: SystemExit: 3",
    "raises": "'raises' fails to import: Unusual: no",
    "malformed": "'malformed': given the entry point 'x y z', expected 'module:object'",
    "function": "'function': json:dumps is function ",
    "nowhere": "'nowhere' fails to import: ModuleNotFoundError: ",
    "nameless": "'nameless': nameless_backend:backend has the name 'numpy', expected that of its entry point",
}


@pytest.mark.usefixtures("others")
@pytest.mark.parametrize(("name", "words"), BROKEN.items(), ids=BROKEN)
def test_a_broken_backend_says_whose_it_is_and_breaks_nothing_else(name: str, words: str) -> None:
    with pytest.raises(errors.BrokenBackendError) as caught:
        GRUSpec(3, 4).build(name)
    message = str(caught.value)
    assert message.startswith(f"backend {words}")
    assert message.endswith(" is that of others 1: update or uninstall that")
    assert name in unirnn.backends()
    taken = unirnn.snapshot(GRUSpec(3, 4).build("numpy", seed=0))
    assert taken == unirnn.snapshot(taken.weights, spec=taken.spec)
    unirnn.state.detach(taken.weights["weight_ih_l0"])


@pytest.mark.usefixtures("others")
def test_a_name_that_is_claimed_twice(caplog: pytest.LogCaptureFixture) -> None:
    words = r"'twice' is registered more than once: by others 1 \(json:dumps\) and others 1 \(json:loads\); uninstall"
    with pytest.raises(errors.BrokenBackendError, match=words):
        GRUSpec(3, 4).build("twice")
    GRUSpec(3, 4).build("numpy")
    assert "the backend 'numpy' of others 1 is left out, since unirnn has one of that name" in caplog.text


def test_a_list_of_entry_points_that_cannot_be_read(others: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_distribution(others, "unreadable", "[unirnn.backends]\nno equals sign\n")
    GRUSpec(3, 4).build("numpy")
    assert "broken" in unirnn.backends()
    if caplog.text:  # newer versions of Python skip the line
        assert "unreadable-1.dist-info" in caplog.text


@pytest.mark.parametrize("backend", ["malformed", "exits"])
def test_the_command_shows_broken_backends(others: Path, backend: str) -> None:
    pytest.importorskip("typer", reason="the command needs typer and rich")
    path = os.pathsep.join([str(others), *filter(None, [os.environ.get("PYTHONPATH")])])
    result = subprocess.run(
        [sys.executable, "-m", "unirnn", "explain", "GRU", "-b", "numpy", "-b", backend],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith(f"unirnn: backend {BROKEN[backend]}")


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize("newest", [0, 99])
def test_the_install_hint_names_the_requirements_of_the_extra(newest: int, quote: str, tmp_path: Path) -> None:
    info = tmp_path / "others-1.dist-info"
    info.mkdir()
    lines = [
        "Metadata-Version: 2.1",
        "Name: others",
        "Version: 1",
        "Requires-Dist: always>=1",
        f"Requires-Dist: framework>=2; (python_version < '3.{newest}') and extra == 'fast'",
        "Requires-Dist: helper; extra == 'fast'",
        "Requires-Dist: another; extra == 'faster'",
    ]
    (info / "METADATA").write_text("\n".join(lines).replace("'", quote))
    found = registry._requirements(metadata.Distribution.at(info), "fast")
    bound = "" if newest else f"; python_version < {quote}3.0{quote}"
    assert found == [f"framework>=2{bound}", "helper"]


def test_install_hints_name_packages_that_can_be_installed() -> None:
    for extra in ("torch", "mindspore", "onnxruntime", "onnx", "cli", "bench"):
        hint = registry.install_hint(extra)
        assert hint.startswith("python -m pip install ")
        assert "unirnn" not in hint
    assert registry.install_hint("torch") == 'python -m pip install "torch>=2.4"'
    assert registry.install_hint("array_api", "array_api_compat") == "python -m pip install array_api_compat"


@pytest.mark.parametrize("error", ["SystemError", "ValueError", "ImportError", "SystemExit"])
def test_an_optional_package_that_is_broken(error: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    name = f"broken_by_{error}".lower()
    (tmp_path / f"{name}.py").write_text(f"raise {error}('built for another Python')")
    monkeypatch.syspath_prepend(tmp_path)
    words = f"plotting needs {name}, whose import fails: {error}: built for another Python; to install it again: python"
    with pytest.raises(errors.BrokenBackendError, match=words):
        registry.import_optional(name, "plotting", "bench")


def test_the_command_and_files_with_broken_packages(tmp_path: Path) -> None:
    for package in ("typer", "onnx"):
        (tmp_path / f"{package}.py").write_text("raise SystemError('built for another Python')")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import unirnn\n"
        "from unirnn.__main__ import main\n"
        "try:\n"
        "    unirnn.snapshot(unirnn.GRUSpec(3, 4).build('numpy')).save('never.onnx')\n"
        "except unirnn.errors.BackendError as error:\n"
        "    print(error)\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as error:\n"
        "    print(error)\n"
    )
    first, second = run(code).splitlines()
    assert first.startswith("reading and writing .onnx needs onnx, whose import fails: SystemError: built for another")
    assert second.startswith("unirnn: the command needs typer, whose import fails: SystemError: built for another Pyth")


def test_the_default_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNIRNN_BACKEND", raising=False)
    assert unirnn.default_backend() == "numpy"
    monkeypatch.setenv("UNIRNN_BACKEND", "torch")
    assert unirnn.default_backend() == "torch"
    with unirnn.use_backend("mindspore"):
        assert unirnn.default_backend() == "mindspore"
        with unirnn.use_backend("numpy"):
            assert type(GRUSpec(3, 4).build()).__name__ == "NumpyModule"
        assert unirnn.default_backend() == "mindspore"
    assert unirnn.default_backend() == "torch"


def test_use_backend_without_with_sets_the_default_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_chosen", [])
    unirnn.use_backend("torch")
    assert unirnn.default_backend() == "torch"
    seen: list[str] = []
    with unirnn.use_backend("mindspore"):
        thread = threading.Thread(target=lambda: seen.append(unirnn.default_backend()))
        thread.start()
        thread.join()
    assert seen == ["torch"]  # a `with` block has an effect in its own thread only
    again = unirnn.use_backend("numpy")
    for _ in range(2):
        with again:
            assert unirnn.default_backend() == "numpy"
    assert unirnn.default_backend() == "torch"


def test_a_wrong_environment_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_chosen", [])
    monkeypatch.setenv("UNIRNN_BACKEND", "tensorflow")
    with pytest.raises(errors.UnknownBackendError, match="UNIRNN_BACKEND: given 'tensorflow'"):
        GRUSpec(3, 4).build()


def test_a_masked_array_is_no_weight() -> None:
    taken = unirnn.snapshot(GRUSpec(2, 3).build("numpy", seed=0))
    ma: Any = np.ma  # the stubs of NumPy 1 have no types for it
    weights = {**taken.weights, "bias_ih_l0": ma.masked_array(taken.weights["bias_ih_l0"], True)}
    makes: tuple[Callable[[], Any], ...] = (
        lambda: unirnn.Snapshot(taken.spec, weights),
        lambda: unirnn.snapshot(weights, spec=taken.spec),
    )
    for make in makes:
        with pytest.raises(errors.ArgumentError, match=r"given numpy.MaskedArray, .* its mask would be ignored"):
            make()


def test_each_error_is_also_a_builtin_exception() -> None:
    expected: dict[str, Any] = {
        "ArgumentError": TypeError,
        "DTypeError": TypeError,
        "MissingBackendError": ImportError,
        "BrokenBackendError": ImportError,
    }
    for name in errors.__all__:
        cls = getattr(errors, name)
        if name.endswith("Warning"):
            assert issubclass(cls, UserWarning)
            continue
        assert issubclass(cls, errors.UnirnnError)
        if name not in ("UnirnnError", "BackendError"):
            assert issubclass(cls, expected.get(name, ValueError))
