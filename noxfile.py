"""Everything that is run on unirnn: ``nox -l`` lists it, ``nox`` runs what must pass, ``nox -t torch`` one backend.

The matrix is backend by Python version, only where the framework has a build for that version. The default
runs the version that nox itself runs on (or, where a framework lacks it, the newest that it has).
"""

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
# what only several backends beside each other can show
TOGETHER = [
    "test_together.py",
    "test_training.py",
    "test_names.py",
    "test_parity.py",
    "test_cli.py",
    "test_docs.py",
    "test_onnx_of_torch.py",
]


def column(backend: str) -> str:
    """The default session of a backend."""
    pythons = PYTHONS[backend]
    return f"tests({backend}-{HERE if HERE in pythons else pythons[-1]})"


nox.options.sessions = ["lint", "typing", *map(column, PYTHONS), "models", "roundtrip", "docs", "build"]


def install(session: nox.Session, *groups: str, extras: str = "") -> None:
    """Install unirnn and groups of tools, at the versions of constraints.txt."""
    project = f".[{extras}]" if extras else "."
    session.install("-c", "constraints.txt", "-e", project, *nox.project.dependency_groups(PROJECT, *groups))


@nox.session
def lint(session: nox.Session) -> None:
    """Ruff: style, imports, docstrings."""
    session.install("-c", "constraints.txt", *nox.project.dependency_groups(PROJECT, "lint"))
    session.run("ruff", "check")
    session.run("ruff", "format", "--check")


@nox.session
def typing(session: nox.Session) -> None:
    """Mypy (strict) and pyright, with the real frameworks."""
    extras = EXTRAS["all"] if HERE in PYTHONS["all"] else EXTRAS["torch"]
    install(session, "typing", "test", "test-torch", "demo", "benchmark", extras=extras)
    session.run("mypy")
    session.run("pyright")


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
    """The suite of one backend, in an environment that has no other; or what all three show together."""
    groups = ["test", "test-torch"] if backend == "torch" else ["test"]
    install(session, *groups, extras=EXTRAS[backend])
    if backend == "all":
        session.run("pytest", *(f"tests/{name}" for name in TOGETHER), *session.posargs)
        return
    rooms = ["numpy", "array_api"] if backend == "numpy" else [backend]
    chosen = [f"--backend={room}" for room in rooms]
    doctests = ["unirnn", *(f"backends/unirnn_{room}" for room in rooms)]
    session.run("pytest", "tests", *doctests, *chosen, *session.posargs)


@nox.session(python=HERE if HERE in PYTHONS["all"] else PYTHONS["all"][-1])
def models(session: nox.Session) -> None:
    """Trained models of others, from their packages, on every backend."""
    install(session, "test", extras="torch,mindspore,onnxruntime")
    packages = nox.project.dependency_groups(PROJECT, "test-models")
    session.install("-c", "constraints.txt", "--no-deps", *packages)
    session.run("pytest", "tests/models", *session.posargs)


@nox.session(python=ROUNDTRIP_PYTHON)
def roundtrip(session: nox.Session) -> None:
    """Every framework's layers into every other's: by files between two environments, MindSpore's and JAX's."""
    folder = Path(session.create_tmp()).resolve()
    exchange, other, pins = folder / "exchange", folder / "numpy2", folder / "constraints.txt"
    install(session, "test", "test-keras", extras="torch,mindspore,onnxruntime")
    if not other.exists():
        session.run("python", "-m", "venv", str(other))
    mine, others = "python", str(other / "bin" / "python")
    pins.write_text(re.sub("(?m)^numpy==.*", f"numpy=={NUMPY_2}", Path("constraints.txt").read_text()))
    groups = nox.project.dependency_groups(PROJECT, "test", "test-keras", "test-flax")
    wanted = ["-c", str(pins), "-e", ".[torch,onnxruntime]", *groups]
    session.run(others, "-m", "pip", "install", "--quiet", *wanted, external=True)

    # An environment writes its layers once, and reads all that it finds, its own the first time only.
    shutil.rmtree(exchange, ignore_errors=True)
    guide = "test_docs.py::test_the_code_of_a_page_runs[snapshots.md]"  # with its blocks that need Keras
    for python, keras, pairs, tests in (
        (mine, "torch", 25, ["roundtrip", "of_keras", guide]),  # from 5 frameworks to 5
        (others, "jax", 35, ["roundtrip", "of_keras", "of_flax"]),  # and from Flax to 4, and from 6 to Flax
        (mine, "torch", 36, ["roundtrip"]),  # and from Flax to MindSpore
    ):
        env = {"KERAS_BACKEND": keras, "UNIRNN_EXCHANGE": str(exchange), "UNIRNN_PAIRS": str(pairs)}
        session.run(python, "-m", "pytest", *(f"tests/{name}" for name in tests), env=env, external=True)


@nox.session
def demo(session: nox.Session) -> None:
    """Learn who speaks: one GRU in PyTorch's and in MindSpore's own loop, the same predictions on all three."""
    extras = EXTRAS["all"] if HERE in PYTHONS["all"] else EXTRAS["torch"]
    install(session, "demo", extras=extras)
    session.run("python", "examples/japanese_vowels/demo.py", *session.posargs)
    session.run("python", "examples/japanese_vowels/same_run.py")


@nox.session
def bench(session: nox.Session) -> None:
    """What inference costs in time and training in memory, beside the native layers: a quarter of an hour."""
    extras = EXTRAS["all"] if HERE in PYTHONS["all"] else EXTRAS["torch"] + ",onnxruntime"
    install(session, "benchmark", extras=extras)
    session.run("python", "benchmarks/inference.py")
    session.run("python", "benchmarks/memory.py", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """The documentation, with warnings as errors."""
    extras = EXTRAS["all"] if HERE in PYTHONS["all"] else EXTRAS["torch"]
    install(session, "docs", extras=extras)
    session.run("sphinx-build", "-W", "-b", "html", "docs", "docs/_build/html")


@nox.session
def build(session: nox.Session) -> None:
    """The wheel, installed by itself and used from elsewhere."""
    session.install("-c", "constraints.txt", "build")
    out = session.create_tmp()
    session.run("python", "-m", "build", "--outdir", out, ".", silent=True)
    (wheel,) = Path(out).resolve().glob("*.whl")
    session.install("-c", "constraints.txt", f"{wheel}[cli]")
    session.chdir(out)
    session.run("unirnn", "backends")
    session.run("unirnn", "parity")
