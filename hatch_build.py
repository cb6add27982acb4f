"""Compile the kernels in ``unirnn/kernels/csrc`` into the wheel, or record in it why they are missing.

The compiler is the one that the environment variable CC names, else the system's, else the one in the package
``ziglang``, which is then a requirement of the build (as it is with ``CC=ziglang``). ``UNIRNN_PURE=1`` builds without a
compiler, ``UNIRNN_NATIVE=1`` for the processor of this machine only, and ``UNIRNN_CFLAGS`` adds options for compiling
and linking. ``UNIRNN_BUILT`` names a library, which is taken if it was built from the same sources in the same way. If
the library can't be compiled, the build goes on: the wheel is then pure Python.
"""

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

KERNELS = "unirnn/kernels"
LIBRARY = "libunirnn" + {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
REASON = "libunirnn.txt"

FLAGS = shlex.split(
    "-O3 -std=gnu11 -fvisibility=hidden -ffp-contract=fast -fno-math-errno -fno-trapping-math -Wall -Wextra"
)
POSIX = os.name == "posix"
INSTRUCTION_SETS: dict[str, dict[str, list[str]]] = {
    "x86_64": {
        "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"],  # compiles slowest
        "avx2": ["-mavx2", "-mfma"],
        "baseline": ["-msse4.2", "-mpopcnt"],
    },
    "aarch64": {"neon": []},
}
"""The options of each instruction set, the best first, by the architecture; others have a baseline only."""

ZIG_MACHINES = {"x86_64": "x86_64", "amd64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
ZIG_SYSTEMS = {"darwin": "macos", "win32": "windows-gnu"}


class BuildError(Exception):
    """The library can't be built: the first argument is the reason, in one line, and the second the whole message."""


class KernelsHook(BuildHookInterface[Any]):
    """The build hook of hatchling: it adds the library to a wheel, or puts it beside its sources if editable."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """What the build requires besides hatchling."""
        return ["ziglang"] if not is_pure() and find_compiler() == zig() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Build the library before the wheel is written."""
        editable = version == "editable"
        self.folder = tempfile.TemporaryDirectory(prefix="unirnn-")
        target = Path(self.root, KERNELS) if editable else Path(self.folder.name)
        try:
            if is_pure():
                raise BuildError("unirnn was built with UNIRNN_PURE=1")
            build(Path(self.root, KERNELS, "csrc"), target / LIBRARY)
        except BuildError as error:
            self.app.display_warning("\n".join(["unirnn is built without its compiled kernels:", *error.args]))
            (target / LIBRARY).unlink(missing_ok=True)
            (target / REASON).write_text(f"{error.args[0]}\n", encoding="utf-8")
        else:
            (target / REASON).unlink(missing_ok=True)
            if not editable:
                build_data["pure_python"] = False
                build_data["tag"] = wheel_tag(self.build_config.builder.get_best_matching_tag())
        if not editable:
            build_data["force_include"].update({str(path): f"{KERNELS}/{path.name}" for path in target.iterdir()})

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what has been copied into the wheel."""
        self.folder.cleanup()


def wheel_tag(best: str) -> str:
    """The tag of a wheel with the library: it needs the platform of the tag `best`, and any Python 3."""
    return f"py3-none-{best.rpartition('-')[2]}"


def is_pure() -> bool:
    """Whether the user wants no compiled kernels."""
    return is_set("UNIRNN_PURE")


def is_set(variable: str) -> bool:
    """Whether an environment variable is set, and not 0."""
    return os.environ.get(variable, "0") not in ("", "0")


def find_compiler() -> list[str] | None:
    """The command of the C compiler; or None if there is none, not even from the package ``ziglang``."""
    chosen = os.environ.get("CC", "")
    if chosen == "ziglang":
        return zig()
    if chosen:
        return shlex.split(chosen, posix=POSIX)
    for name in ("cc", "gcc", "clang"):
        try:
            architecture([name])
        except BuildError:
            continue
        return [name]
    return zig()


def zig() -> list[str] | None:
    """The command of the compiler in the package ``ziglang``, which need not be installed yet.

    Without a target, it would compile for the processor of this machine.
    """
    machine = ZIG_MACHINES.get(platform.machine().lower())
    if machine is None or sys.maxsize < 2**32:
        return None
    linux = "linux-gnu.2.17" if platform.libc_ver()[0] == "glibc" else "linux-musl"
    target = f"{machine}-{ZIG_SYSTEMS.get(sys.platform, linux)}"
    return [sys.executable, "-m", "ziglang", "cc", "-target", target]


def architecture(compiler: Sequence[str]) -> str:
    """The architecture that a compiler builds for, which also shows that it runs and has the headers of C."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "headers.c")
        source.write_text("#include <math.h>\n#include <stdint.h>\n#include <stdlib.h>\n")
        macros = run([*compiler, "-dM", "-E", str(source)])
    names = {"__x86_64__": "x86_64", "__aarch64__": "aarch64"}
    return next((name for macro, name in names.items() if f" {macro} " in macros), "")


def run(command: Sequence[str], folder: Path | None = None) -> str:
    """Run the compiler in a folder, let its warnings through, and return what it printed."""
    try:
        result = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace"
        )
    except OSError as error:
        raise BuildError(f"unirnn was built with a C compiler that doesn't run: {error}") from None
    if result.returncode:
        output = result.stderr.strip() or f"exit status {result.returncode}"
        line = next((line for line in output.splitlines() if "error" in line), output.splitlines()[0])
        raise BuildError(f"unirnn was built with a C compiler that failed: {line}", f"{shlex.join(command)}\n{output}")
    print(result.stderr, end="", file=sys.stderr)
    return result.stdout


def build(csrc: Path, library: Path) -> None:
    """Compile the sources and link them, unless the library has been built from the same sources in the same way."""
    compiler = find_compiler()
    if compiler is None or (compiler == zig() and not find_spec("ziglang")):
        raise BuildError("unirnn was built where there is neither a C compiler nor the package ziglang")
    sets = INSTRUCTION_SETS.get(architecture(compiler), {"baseline": []})
    if is_set("UNIRNN_NATIVE"):
        sets = {"native": ["-march=native"]}
    extra = shlex.split(os.environ.get("UNIRNN_CFLAGS", ""))
    flags = [*FLAGS, *(["-fPIC"] if POSIX else []), *extra]
    link = ["-shared", *(["-lm", "-pthread"] if POSIX else []), *extra]
    layers = {
        f"layer_{name}_{double}.o": ["layer.c", f"-DISA={name}", f"-DDOUBLE={double}", *options]
        for name, options in sets.items()
        for double in (0, 1)
    }
    names = f"-DINSTRUCTION_SETS(EACH)={' '.join(f'EACH({name})' for name in sets)}"
    objects = {**layers, "dispatch.o": ["dispatch.c", names], "mindspore.o": ["mindspore.c"], "stamp.o": ["stamp.c"]}

    how = [[word.replace(sys.executable, "python") for word in compiler], flags, link, objects]
    digest = hashlib.sha256(repr(how).encode())
    for source in sorted(csrc.iterdir()):
        digest.update(source.name.encode() + source.read_bytes())
    stamp = f"unirnn built from {digest.hexdigest()}"
    if library.exists() and stamp.encode() in library.read_bytes():
        return
    built = Path(os.environ.get("UNIRNN_BUILT", ""))
    if built.is_file() and stamp.encode() in built.read_bytes():
        put(built, library)
        return

    with tempfile.TemporaryDirectory(prefix="unirnn-") as folder:
        Path(folder, "stamp.c").write_text(
            f'__attribute__((visibility("default"))) const char unirnn_stamp[] = "{stamp}";\n'
        )

        def compile_one(name: str) -> str:
            source, *options = objects[name]
            target = os.path.join(folder, name)
            where = Path(folder) if source == "stamp.c" else csrc  # a path would only make its messages longer
            run([*compiler, *flags, *options, "-c", source, "-o", target], where)
            return target

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            compiled = list(pool.map(compile_one, objects))
        linked = os.path.join(folder, LIBRARY)
        run([*compiler, *compiled, *link, "-o", linked])
        put(linked, library)


def put(file: str | Path, library: Path) -> None:
    """Copy a file to where the library belongs: replaced, not overwritten, since a running process may have it open."""
    new = library.with_suffix(f".{os.getpid()}.tmp")
    shutil.copy(file, new)
    os.replace(new, library)
