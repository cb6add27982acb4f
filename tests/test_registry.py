"""The registry imports backends only when they are asked for, and says what is missing."""

import subprocess
import sys
import threading
from importlib import metadata
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

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


@pytest.fixture
def entries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, EntryPoint]:
    """Backends of third parties: one lacks its framework, the import of one fails, and one gives no backend."""
    (tmp_path / "missing_backend.py").write_text("import a_framework_that_nobody_has")
    (tmp_path / "broken_backend.py").write_text("raise RuntimeError('no driver')")
    (tmp_path / "wrong_backend.py").write_text("backend = 'numpy'")
    monkeypatch.syspath_prepend(tmp_path)
    found = dict(registry._entry_points())
    for name in ("missing", "broken", "wrong"):
        found[name] = EntryPoint(name, f"{name}_backend:backend", registry.GROUP)
    monkeypatch.setattr(registry, "_entry_points", lambda: found)
    return found


def test_an_unknown_backend() -> None:
    with pytest.raises(errors.UnknownBackendError, match=r"given 'tensorflow', expected one of .*numpy"):
        GRUSpec(3, 4).build("tensorflow")
    with pytest.raises(errors.UnknownBackendError):
        unirnn.use_backend("tensorflow")
    for name in (3, ["numpy"]):
        with pytest.raises(errors.UnknownBackendError, match="backend: given"):
            GRUSpec(3, 4).build(name)  # type: ignore[arg-type]


@pytest.mark.usefixtures("entries")
def test_a_backend_whose_framework_is_missing() -> None:
    with pytest.raises(errors.MissingBackendError, match="python -m pip install a_framework_that_nobody_has") as caught:
        GRUSpec(3, 4).build("missing")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.usefixtures("entries")
def test_a_backend_whose_import_fails_does_not_stop_others() -> None:
    with pytest.raises(errors.BrokenBackendError, match="'broken' fails to import: RuntimeError: no driver"):
        GRUSpec(3, 4).build("broken")
    assert "broken" in unirnn.backends()
    GRUSpec(3, 4).build("numpy")


@pytest.mark.usefixtures("entries")
def test_an_entry_point_that_is_no_backend() -> None:
    words = r"'wrong': wrong_backend:backend is str 'numpy', expected an instance of a subclass of .*Backend"
    with pytest.raises(errors.BrokenBackendError, match=words):
        GRUSpec(3, 4).build("wrong")


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


def test_install_hints_name_what_can_be_installed_from_anywhere() -> None:
    for extra in ("torch", "mindspore", "onnxruntime", "onnx", "cli", "bench"):
        hint = registry.install_hint(extra)
        assert hint.startswith("python -m pip install ")
        assert "unirnn" not in hint
    assert registry.install_hint("torch") == 'python -m pip install "torch>=2.4"'
    assert registry.install_hint("array_api", "array_api_compat") == "python -m pip install array_api_compat"


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
