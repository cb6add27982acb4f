"""The sessions for unirnn's checks: ``nox -l`` lists them.

``nox`` tests it in every environment, ``nox -t torch`` in that of one backend, and ``nox -t ci`` runs what takes longer
and few changes can break.

The matrix is backend by Python version, only where the framework has a build for that version. The default
runs the version that nox itself runs on (or, where a framework lacks it, the newest that it has).
"""

import os
import re
import shutil
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2024.10.9"
nox.options.reuse_venv = "yes"
nox.options.error_on_missing_interpreters = False

PROJECT = nox.project.load_toml("pyproject.toml")
HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
PYTHONS = {
    "numpy": ["3.10", "3.11", "3.12", "3.13"],
    "torch": ["3.10", "3.11", "3.12", "3.13"],
    "mindspore": ["3.10", "3.11", "3.12"],
    "onnxruntime": ["3.10", "3.11", "3.12", "3.13"],
    "all": ["3.10", "3.11", "3.12"],
}
# Keras and JAX begin with Python 3.11, MindSpore ends with 3.12
ROUNDTRIP_PYTHON = HERE if HERE in ("3.11", "3.12") else "3.12"
NUMPY_2 = "2.4.6"  # for JAX; constraints.txt has the one for MindSpore
EXTRAS = {
    "numpy": "cli",
    "torch": "torch,cli",
    "mindspore": "mindspore,cli",
    "onnxruntime": "onnxruntime,cli",
    "all": "all",
}
FRAMEWORKS = "--backend=numpy --backend=torch --backend=onnxruntime"
SIZES = "--size=S --size=M --size=L --size=wide --size=long"
LENGTHS = "--lengths=dense --lengths=uniform --lengths=short"
BLOCKING = "--backend=mindspore --mode=eager --mode=jit"
# named after their files
BENCHMARKS = {
    "threads1": f"--threads=1 {FRAMEWORKS} {SIZES} {LENGTHS} --seconds=0.5",
    "threads1-steps": f"--threads=1 {FRAMEWORKS} --backend=mindspore --mode=eager --cell=gru --cell=lstm --size=step "
    "--size=step64 --size=policy --lengths=dense --lengths=resets --seconds=1",
    "threads1-models": f"--threads=1 {FRAMEWORKS} --backend=mindspore --mode=eager --cell=gru --cell=lstm --size=model "
    "--lengths=dense --lengths=uniform --seconds=1",
    "threads1-stacks": f"--threads=1 {FRAMEWORKS} --size=S --size=M --layers=1 --layers=2 --bidirectional "
    "--seconds=0.25",
    "threads1-mindspore": f"--threads=1 {BLOCKING} {SIZES} {LENGTHS} --seconds=0.25",
    "threads1-asynchronous": "--threads=1 --backend=mindspore --mode=asynchronous --size=S --size=M --size=L "
    "--lengths=dense --seconds=0.25",
    "threads2": f"--threads=2 {FRAMEWORKS} --size=M --size=L {LENGTHS} --seconds=0.5",
    "threads2-mindspore": f"--threads=2 {BLOCKING} --size=M --size=L --lengths=dense --seconds=0.25",
}
CONFORMANCE = "unirnn/testing/conformance"
# What each environment runs. The core's own tests need no framework, and run in NumPy's.
TESTS = {
    "numpy": ["tests", "unirnn", "--ignore=tests/testing"],
    "torch": ["tests/torch", "tests/array_api", CONFORMANCE],
    "mindspore": ["tests/mindspore", CONFORMANCE],
    "onnxruntime": ["tests/onnxruntime", CONFORMANCE],
}
# The backends under test in each of them; see the option --rnn-backends of the test kit.
BACKENDS = {
    "numpy": "numpy,numpy[kernel=fallback],array_api[namespace=array_api_strict]",
    "torch": "torch,torch[kernel=native],array_api[namespace=torch]",
    "mindspore": "mindspore,mindspore[kernel=native]",
    "onnxruntime": "onnxruntime",
    "all": "numpy,torch,mindspore,onnxruntime",
}
# Where conformance is tested once more with another instruction set, or launching mode, of the recurrent layers.
WITHOUT_MODELS = [f"--ignore={CONFORMANCE}/test_models.py"]
# Tests that need several backends side by side.
TOGETHER = [
    "test_migrating.py",
    "test_training.py",
    "test_names.py",
    "test_parity.py",
    "test_bench.py",
    "test_cli.py",
    "test_docs.py",
    "test_loops_in_docs.py",
    "test_registry.py",
    "test_new_backend.py",
    "test_onnx_exported_by_torch.py",
    "testing",
]
EXAMPLES = [
    "recurrent_policy/train.py",
    "streaming/characters.py",
    "weather/weather.py",
    "letters_to_sounds/letters_to_sounds.py",
]
# without the checks for null, which AddressSanitizer makes too and which double the time to compile
SANITIZERS = (
    "-fsanitize=address,undefined -fno-sanitize=null -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g1 -O1"
)
PARALLEL = ["--numprocesses=auto", "--dist=worksteal"]


def newest(backend: str) -> str:
    """The Python version that nox runs on, or, where the backend's framework lacks it, the newest that it has."""
    return HERE if HERE in PYTHONS[backend] else PYTHONS[backend][-1]


COLUMNS = [f"tests({backend}-{newest(backend)})" for backend in PYTHONS]
nox.options.sessions = ["lint", "typing", *COLUMNS, "models", "docs", "build"]


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Install unirnn and groups of tools, at the versions of constraints.txt."""
    project = f".[{extras}]" if extras else "."
    session.install("-c", "constraints.txt", "-e", project, *nox.project.dependency_groups(PROJECT, *groups))


def together(session: nox.Session, *groups: str) -> str:
    """The python of the one environment that has every framework, with groups of tools added.

    The sessions that need it share it by Python version: an environment for each would be 4 GB, seven times.
    """
    version = str(session.run("python", "-c", "import sys; print('%d.%d' % sys.version_info[:2])", silent=True)).strip()
    folder = Path(".nox").resolve() / f"together-{version}"
    extras = EXTRAS["all"] if version in PYTHONS["all"] else f"{EXTRAS['torch']},onnxruntime"
    return environment(session, folder, "constraints.txt", extras, *groups)


def environment(session: nox.Session, folder: Path, pins: str, extras: str, *groups: str) -> str:
    """The python of an environment besides the session's own: made if it is not there, and installed into."""
    if not folder.exists():
        session.run("python", "-m", "venv", str(folder))
    python = str(folder / "bin" / "python")
    wanted = ["-e", f".[{extras}]", *nox.project.dependency_groups(PROJECT, *groups)]
    session.run(python, "-m", "pip", "install", "--quiet", "-c", pins, *wanted, external=True)
    return python


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: style, imports, docstrings."""
    session.install("-c", "constraints.txt", *nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Mypy (strict) and pyright, with the real frameworks."""
    python = together(session, "typing", "test", "test-torch", "demo", "benchmark")
    session.run(python, "-m", "mypy", external=True)
    session.run(python, "-m", "pyright", "--pythonpath", python, external=True)


@nox.session
@nox.parametrize(
    "python,backend",
    [
        nox.param(python, backend, id=f"{backend}-{python}", tags=[backend])
        for backend, pythons in PYTHONS.items()
        for python in pythons
    ],
)
def tests(session: nox.Session, backend: str) -> None:
    """The tests of one backend, in an environment without another framework; or of several beside each other."""
    if backend == "all":
        chosen = session.posargs or [f"tests/{name}" for name in TOGETHER]
        python = together(session, "test", "test-torch")
        session.run(python, "-m", "pytest", f"--rnn-backends={BACKENDS[backend]}", *PARALLEL, *chosen, external=True)
        return
    run_backend(session, backend, session.posargs or TESTS[backend])


@nox.session
@nox.parametrize(
    "python,backend",
    [nox.param(newest(backend), backend, id=backend) for backend in PYTHONS if backend != "all"],
)
def thorough(session: nox.Session, backend: str) -> None:
    """All tests in the environment of each backend, with ten times as many random examples."""
    run_backend(session, backend, [*TESTS[backend], "tests"], "--hypothesis-profile=thorough")


def run_backend(session: nox.Session, backend: str, files: list[str], *options: str) -> None:
    """Install a single backend, and run its tests and doctests."""
    install(session, *(["test", "test-torch"] if backend == "torch" else ["test"]), extras=EXTRAS[backend])
    names = ["numpy", "array_api"] if backend == "numpy" else [backend]
    doctests = [] if session.posargs else [f"backends/unirnn_{name}" for name in names]
    session.run("pytest", *files, *doctests, f"--rnn-backends={BACKENDS[backend]}", *PARALLEL, *options)
    if backend == "numpy" and not session.posargs:
        # The library chose the best instruction set in the first run; now the others that this machine has.
        code = "from unirnn.kernels import library; print(library.load().unirnn_isas().decode())"
        _, *others = str(session.run("python", "-c", code, silent=True)).split()
        for name in others:
            files = ["tests/kernels", CONFORMANCE, *WITHOUT_MODELS]
            session.run("pytest", *files, "--rnn-backends=numpy", *PARALLEL, *options, env={"UNIRNN_ISA": name})
    if backend == "mindspore" and not session.posargs:
        # launch_blocking() can't be undone in a process, so MindSpore's default mode has a process of its own.
        files = [CONFORMANCE, *WITHOUT_MODELS, *PARALLEL, *options]
        session.run("pytest", *files, "--rnn-backends=mindspore", "--rnn-asynchronous")
        # In PyNative mode on a CPU, `auto` uses a function instead of the custom operators, which graphs have.
        custom = ["--rnn-backends=mindspore[kernel=compiled]", "-p", "custom_operators"]
        session.run("pytest", *files, *custom, env={"PYTHONPATH": "tests/support"})


@nox.session(python=newest("all"))
def models(session: nox.Session) -> None:
    """Trained third-party models, from their packages, on every backend."""
    python = together(session, "test")
    packages = ["--no-deps", *nox.project.dependency_groups(PROJECT, "test-models")]
    session.run(python, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", *packages, external=True)
    session.run(python, "-m", "pytest", "tests/models", *session.posargs, external=True)


@nox.session(python=ROUNDTRIP_PYTHON, tags=["ci"])
def roundtrip(session: nox.Session) -> None:
    """Every framework's layers into every other's: by files between two environments, MindSpore's and JAX's."""
    folder = Path(session.create_tmp()).resolve()
    exchange, pins = folder / "exchange", folder / "constraints.txt"
    pins.write_text(re.sub("(?m)^numpy==.*", f"numpy=={NUMPY_2}", Path("constraints.txt").read_text()))
    mine = together(session, "test", "test-keras")
    groups = ["test", "test-keras", "test-flax"]
    others = environment(session, folder / "numpy2", str(pins), "torch,onnxruntime", *groups)

    # An environment writes its layers once, and reads all that it finds, its own the first time only.
    shutil.rmtree(exchange, ignore_errors=True)
    guide = "test_docs.py::test_the_code_of_a_page_runs[snapshots.md]"  # with its blocks that need Keras
    for python, keras, pairs, tests in (
        (mine, "torch", 25, ["roundtrip", "keras", guide]),  # from 5 frameworks to 5
        (others, "jax", 35, ["roundtrip", "keras", "flax"]),  # and from Flax to 4, and from 6 to Flax
        (mine, "torch", 36, ["roundtrip"]),  # and from Flax to MindSpore
    ):
        env = {"KERAS_BACKEND": keras, "UNIRNN_EXCHANGE": str(exchange), "UNIRNN_PAIRS": str(pairs)}
        session.run(python, "-m", "pytest", *(f"tests/{name}" for name in tests), env=env, external=True)


@nox.session
def demo(session: nox.Session) -> None:
    """Speaker recognition: train one model in PyTorch's and MindSpore's loops; compare predictions on every backend."""
    python = together(session, "demo")
    session.run(python, "examples/japanese_vowels/demo.py", *session.posargs, external=True)
    session.run(python, "examples/japanese_vowels/same_run.py", external=True)


@nox.session(tags=["ci"])
def examples(session: nox.Session) -> None:
    """The example programs except the demo; each fails if it does not do what it demonstrates."""
    python = together(session, "demo", "test", "typing")
    data = ["--no-deps", *nox.project.dependency_groups(PROJECT, "data")]
    session.run(python, "-m", "pip", "install", "--quiet", "-c", "constraints.txt", *data, external=True)
    for name in EXAMPLES:
        session.run(python, f"examples/{name}", external=True)
    # A project with a noxfile of its own, here without its environments: this one has all frameworks.
    path = os.pathsep.join([str(Path(python).parent), os.environ["PATH"]])
    matrix = ["-f", "examples/matrix/noxfile.py", "--no-venv", "--no-install"]
    session.run(python, "-m", "nox", *matrix, env={"PATH": path, "PYTHONPATH": "src"}, external=True)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure times into benchmarks/figures and check the bars: about half an hour."""
    python = together(session, "benchmark")
    figures = Path("benchmarks/figures")
    figures.mkdir(exist_ok=True)
    for old in figures.glob("threads*"):
        old.unlink()
    reports = []
    for name, options in BENCHMARKS.items():
        report = figures / f"{name}.json"
        out = [f"--json={report}", f"--plot={report.with_suffix('.png')}"]
        session.run(python, "-m", "unirnn", "bench", *options.split(), *out, external=True)
        reports.append(report)
    reports.append(figures / "overheads.json")
    session.run(python, "benchmarks/overheads.py", f"--json={reports[-1]}", external=True)
    session.run(python, "benchmarks/bars.py", *map(str, reports), external=True)


@nox.session
def memory(session: nox.Session) -> None:
    """Measure memory and check that it does not grow: a quarter of an hour."""
    python = together(session, "benchmark")
    session.run(python, "benchmarks/memory.py", *session.posargs, external=True)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, with warnings as errors."""
    python = together(session, "docs")
    session.run(python, "-m", "sphinx", "-W", "-b", "html", "docs", "docs/_build/html", external=True)


@nox.session
def build(session: nox.Session) -> None:
    """The wheel, installed by itself and used from elsewhere."""
    session.install("-c", "constraints.txt", "build")
    out = session.create_tmp()
    for old in Path(out).glob("*.whl"):
        old.unlink()
    # the library of the environments before, if these are its sources, so that it is not compiled twice
    built = {"UNIRNN_BUILT": str(Path("unirnn/kernels/libunirnn.so").resolve())}
    session.run("python", "-m", "build", "--outdir", out, ".", silent=True, env=built)
    (wheel,) = Path(out).resolve().glob("*.whl")
    session.install("-c", "constraints.txt", f"{wheel}[bench,testing]")
    check_library(session)
    session.chdir(out)
    session.run("python", "-m", "unirnn.testing", "numpy", "-k", "ragged")
    session.run("unirnn", "backends")
    session.run("unirnn", "parity")
    session.run("unirnn", "bench", "--backend=numpy", "--size=step", "--seconds=0.01", silent=True)


def install_built(session: nox.Session, **env: str) -> None:
    """Install unirnn as a wheel, not editable: the library beside the sources belongs to the other environments."""
    session.install("-c", "constraints.txt", ".[cli]", *nox.project.dependency_groups(PROJECT, "test"), env=env)


def check_library(session: nox.Session, **env: str) -> None:
    """Fail with the reason if the unirnn that is installed has no library."""
    with session.chdir(session.create_tmp()):  # in the checkout, python would import the sources
        code = "from unirnn.kernels import library; raise SystemExit(library.why_not())"
        session.run("python", "-c", code, env=env)


@nox.session(tags=["ci"])
def no_compiler(session: nox.Session) -> None:
    """Without a C compiler: NumPy in the place of the library, and the library built by the package ziglang.

    That package is clang; the session ``clang`` differs in that a compiler is there. Where it is new, it is downloaded
    and builds its own libraries first.
    """
    install_built(session, UNIRNN_PURE="1")
    session.run("pytest", "tests/kernels", "tests/numpy", *PARALLEL)
    install_built(session, PATH=session.bin, CC="")
    check_library(session)
    session.run("pytest", "tests/kernels", *PARALLEL)


@nox.session
def clang(session: nox.Session) -> None:
    """The library built by clang, from the package ziglang, so that none need be installed."""
    install_built(session, CC="ziglang")
    check_library(session)
    session.run("pytest", "tests/kernels", *PARALLEL, *session.posargs)


@nox.session(tags=["ci"])
def sanitizers(session: nox.Session) -> None:
    """The library under AddressSanitizer and UndefinedBehaviorSanitizer, which stop the process at an error.

    It tests 2,000 random cases. Only the best instruction set of this machine is compiled, since no other would run.
    """
    runtime = str(session.run("gcc", "-print-file-name=libasan.so", silent=True, external=True)).strip()
    if not Path(runtime).is_absolute():
        session.error("gcc has no AddressSanitizer here: install its libasan")
    install_built(session, CC="gcc", UNIRNN_NATIVE="1", UNIRNN_CFLAGS=SANITIZERS)
    # Python and NumPy leak by themselves; pytest would keep the report to itself if it captured what C prints
    env = {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"}
    check_library(session, **env)
    session.run(
        "pytest", "tests/kernels", "--capture=sys", "--hypothesis-profile=sanitizers", *session.posargs, env=env
    )
