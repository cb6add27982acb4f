"""The registry: lazy, and exact about what is missing."""

import subprocess
import sys
import threading
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


def test_the_import_imports_no_framework() -> None:
    heavy = "{'torch', 'mindspore', 'array_api_compat', 'typer', 'rich', 'jax', 'flax', 'keras', 'onnx', 'onnxruntime',"
    heavy += " 'safetensors', 'unirnn_numpy'}"
    assert run(f"import sys, unirnn; print(sorted(set(sys.modules) & {heavy}))") == "[]"


def test_what_comes_later_is_there_when_it_is_asked_for() -> None:
    names = "unirnn.files, unirnn.snapshots, unirnn.devices, unirnn.Snapshot, unirnn.load"
    assert run(f"import unirnn; print(len([{names}]))") == "5"
    assert run("import unirnn; print(set(unirnn.__all__) <= set(dir(unirnn)))") == "True"
    with pytest.raises(AttributeError, match="module 'unirnn' has no attribute 'nothing'"):
        unirnn.nothing  # noqa: B018


def test_a_backend_imports_none_but_its_own(tmp_path: Path) -> None:
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
    """Backends of third parties: one missing its framework, one whose import fails."""
    (tmp_path / "of_missing.py").write_text("import a_framework_that_nobody_has")
    (tmp_path / "of_broken.py").write_text("raise RuntimeError('no driver')")
    monkeypatch.syspath_prepend(tmp_path)
    found = dict(registry._entry_points())
    for name in ("missing", "broken"):
        found[name] = EntryPoint(name, f"of_{name}:backend", registry.GROUP)
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
def test_a_broken_backend_breaks_nothing_but_itself() -> None:
    with pytest.raises(errors.BrokenBackendError, match="'broken' fails to import: RuntimeError: no driver"):
        GRUSpec(3, 4).build("broken")
    assert "broken" in unirnn.backends()
    GRUSpec(3, 4).build("numpy")


def test_the_hint_names_the_extra() -> None:
    assert registry.install_hint("torch") == "python -m pip install 'unirnn[torch]'"


def test_which_backend_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_call_sets_the_default_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_chosen", [])
    unirnn.use_backend("torch")
    assert unirnn.default_backend() == "torch"
    seen: list[str] = []
    with unirnn.use_backend("mindspore"):
        thread = threading.Thread(target=lambda: seen.append(unirnn.default_backend()))
        thread.start()
        thread.join()
    assert seen == ["torch"]  # a block is the thread's own
    again = unirnn.use_backend("numpy")
    for _ in range(2):
        with again:
            assert unirnn.default_backend() == "numpy"
    assert unirnn.default_backend() == "torch"


def test_the_variable_is_named_when_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_chosen", [])
    monkeypatch.setenv("UNIRNN_BACKEND", "tensorflow")
    with pytest.raises(errors.UnknownBackendError, match="UNIRNN_BACKEND: given 'tensorflow'"):
        GRUSpec(3, 4).build()


def test_each_error_is_the_builtin_that_fits() -> None:
    expected: dict[str, Any] = {
        "ArgumentError": TypeError,
        "DTypeError": TypeError,
        "MissingBackendError": ImportError,
        "BrokenBackendError": ImportError,
    }
    for name in errors.__all__:
        cls = getattr(errors, name)
        assert issubclass(cls, errors.UnirnnError)
        if name not in ("UnirnnError", "BackendError"):
            assert issubclass(cls, expected.get(name, ValueError))
