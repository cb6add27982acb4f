"""The compiled library: how it is built, found and loaded, and the message when it is missing."""

import importlib.util
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from ctypes import CDLL
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import unirnn.kernels
from unirnn.kernels import library

ROOT = Path(__file__).parents[2]
BASELINES = {"baseline", "neon", "native"}


@pytest.fixture
def compiled() -> CDLL:
    found, reason = library.load(), library.why_not()
    if reason and ("UNIRNN_PURE" in reason or "neither a C compiler" in reason):
        pytest.skip(reason)
    assert found, reason
    return found


@pytest.fixture
def elsewhere(tmp_path: Path) -> ModuleType:
    """A copy of `unirnn.kernels.library` in a folder without the library."""
    path = shutil.copy(library.__file__, tmp_path)
    return import_file("library_elsewhere", path)


@pytest.fixture
def hook(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The build hook, without settings from the environment."""
    pytest.importorskip("hatchling")
    for name in ("CC", "UNIRNN_PURE", "UNIRNN_CFLAGS", "UNIRNN_NATIVE", "UNIRNN_BUILT"):
        monkeypatch.delenv(name, raising=False)
    return import_file("hatch_build", ROOT / "hatch_build.py")


def import_file(name: str, path: str | Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def python(code: str, folder: Path, **variables: str) -> str:
    """Run code in a new process that imports the same unirnn as this one, and return what it prints."""
    package = Path(unirnn.kernels.__file__).parents[2]
    environment = os.environ | {"PYTHONPATH": str(package)} | variables
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout.strip()


def instruction_sets(compiled: CDLL) -> list[str]:
    names: list[str] = compiled.unirnn_isas().decode().split()
    return names


# ---- the library ---------------------------------------------------------------------------------


def test_the_instruction_sets_have_known_names(compiled: CDLL) -> None:
    names = instruction_sets(compiled)
    assert set(names) <= {"avx2", "avx512"} | BASELINES
    assert BASELINES & set(names)
    assert compiled.unirnn_isa().decode() in names


def test_every_instruction_set_can_be_forced(compiled: CDLL, tmp_path: Path) -> None:
    code = "from unirnn.kernels import library; print(library.load().unirnn_isa().decode())"
    for name in instruction_sets(compiled):
        assert python(code, tmp_path, UNIRNN_ISA=name) == name


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="needs /proc/cpuinfo")
def test_the_instruction_sets_match_the_processor(compiled: CDLL) -> None:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = set(next((line for line in lines if line.startswith("flags")), "").split())
    names = instruction_sets(compiled)
    if names == ["native"]:
        pytest.skip("the library is built for this processor only")
    assert ("avx2" in names) == ({"avx2", "fma"} <= flags)
    assert ("avx512" in names) == ({"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags)


def test_importing_unirnn_does_not_load_the_library(tmp_path: Path) -> None:
    code = "import sys, unirnn; print('unirnn.kernels.library' in sys.modules)"
    assert python(code, tmp_path) == "False"


# ---- without the library -------------------------------------------------------------------------


def test_the_reason_of_a_pure_build_is_logged_once(elsewhere: ModuleType, caplog: pytest.LogCaptureFixture) -> None:
    reason = "unirnn was built with UNIRNN_PURE=1"
    Path(elsewhere.__file__ or "").with_name("libunirnn.txt").write_text(f"{reason}\n")
    assert elsewhere.why_not() == reason
    assert not caplog.records
    assert elsewhere.load() is None
    assert elsewhere.load() is None
    expected = f"unirnn computes with NumPy, which is slower: {reason}"
    assert caplog.record_tuples == [("unirnn", logging.WARNING, expected)]


def test_a_missing_library_is_explained(elsewhere: ModuleType) -> None:
    assert "install unirnn again" in elsewhere.why_not()
    assert elsewhere.load() is None


BROKEN: dict[str, Callable[[Path], Any]] = {
    "text": lambda path: path.write_bytes(b"not a library"),
    "nothing": lambda path: path.touch(),
    "a folder": lambda path: path.mkdir(),
    "another library": lambda path: shutil.copy(sys.modules["_ctypes"].__file__ or "", path),
    "a reason that is no text": lambda path: path.with_name(library._REASON).write_bytes(b"\xff\xfe\xff"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_broken_library_is_explained(elsewhere: ModuleType, what: str) -> None:
    path = Path(elsewhere.__file__ or "").with_name(elsewhere._NAME)
    BROKEN[what](path)
    words = "is of another version" if what == "another library" else "can't be loaded"
    assert elsewhere.why_not().startswith(f"{path} {words}")
    assert elsewhere.load() is None


@pytest.mark.skipif(sys.platform != "linux", reason="changes the header of a Linux library")
def test_a_library_for_another_processor_is_explained(compiled: CDLL, elsewhere: ModuleType) -> None:
    contents = bytearray(Path(compiled._name).read_bytes())
    contents[18:20] = b"\xff\xfe"  # the processor, in the header
    path = Path(elsewhere.__file__ or "").with_name(elsewhere._NAME)
    path.write_bytes(contents)
    assert elsewhere.why_not().startswith(f"{path} can't be loaded: OSError: ")


def test_a_library_of_another_version_is_refused(
    compiled: CDLL, elsewhere: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its structs may have another layout, so it could read memory outside of ours."""
    shutil.copy(library._FOLDER / library._NAME, Path(elsewhere.__file__ or "").parent)
    monkeypatch.setattr(elsewhere, "_INTERFACE", compiled.unirnn_interface() + 1)
    assert elsewhere.why_not().endswith("is of another version; install unirnn again to build it")


# ---- the build hook ------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", ["linux_x86_64", "macosx_11_0_arm64", "win_amd64"])
def test_the_wheel_is_for_one_platform_and_every_python(hook: ModuleType, platform: str) -> None:
    assert hook.wheel_tag(f"cp311-cp311-{platform}") == f"py3-none-{platform}"


def test_the_build_hook_and_the_library_use_the_same_file_names(hook: ModuleType) -> None:
    assert (hook.LIBRARY, hook.REASON) == (library._NAME, library._REASON)


def test_without_a_compiler_on_the_path_zig_is_used(
    hook: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hook.find_compiler() == hook.zig()


def test_the_compiler_can_be_chosen(hook: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "ccache gcc")
    assert hook.find_compiler() == ["ccache", "gcc"]
    monkeypatch.setenv("CC", "ziglang")
    assert hook.find_compiler() == hook.zig()


def test_a_compiler_that_fails_leaves_nothing_behind(hook: ModuleType, tmp_path: Path) -> None:
    if hook.find_compiler() == hook.zig():
        pytest.skip("needs a C compiler")
    csrc, target = tmp_path / "csrc", tmp_path / "target"
    csrc.mkdir()
    target.mkdir()
    (csrc / "dispatch.c").write_text("int unirnn_kept(int cell) { return cell; }\n")
    (csrc / "layer.c").write_text("#error this can't be compiled\n")
    with pytest.raises(hook.BuildError, match="this can't be compiled"):
        hook.build(csrc, target / hook.LIBRARY)
    assert not list(target.iterdir())


def test_the_library_is_built_again_only_after_a_change(
    hook: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if hook.find_compiler() == hook.zig():
        pytest.skip("needs a C compiler")
    source = tmp_path / "csrc" / "dispatch.c"
    source.parent.mkdir()
    for name in ("layer.c", "mindspore.c"):
        source.with_name(name).write_text("typedef int nothing;\n")
    source.write_text("int answer;\n")
    built: Path = tmp_path / hook.LIBRARY
    built.touch()

    def is_built() -> bool:
        os.utime(built, (0, 0))
        hook.build(source.parent, built)
        return built.stat().st_mtime > 0

    assert is_built()
    assert not is_built()
    source.write_text("double answer;\n")
    assert is_built()
    monkeypatch.setenv("UNIRNN_CFLAGS", "-DOTHER")
    assert is_built()
    assert not is_built()
    monkeypatch.setenv("UNIRNN_NATIVE", "1")
    assert is_built()
    assert not is_built()
    finished = tmp_path / "finished"
    shutil.copy(built, finished)
    monkeypatch.setenv("UNIRNN_BUILT", str(finished))
    monkeypatch.setattr(hook, "ThreadPoolExecutor", None)  # nothing can be compiled any more
    built.unlink()
    hook.build(source.parent, built)
    assert built.read_bytes() == finished.read_bytes()
    source.write_text("float answer;\n")
    with pytest.raises(TypeError):
        hook.build(source.parent, built)
