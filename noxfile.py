"""Everything that is run on unirnn: ``nox -l`` lists it, ``nox`` runs what must pass, ``nox -t torch`` one backend.

The matrix is backend by Python version, only where the framework has a build for that version. The default
runs the version that nox itself runs on (or, where a framework lacks it, the newest that it has).
"""

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
    "all": ["3.10", "3.11", "3.12"],
}
EXTRAS = {"numpy": "cli", "torch": "torch,cli", "mindspore": "mindspore,cli", "all": "all"}
# what only several backends beside each other can show
TOGETHER = [
    "test_together.py",
    "test_training.py",
    "test_names.py",
    "test_parity.py",
    "test_cli.py",
    "test_docs.py",
]


def column(backend: str) -> str:
    """The default session of a backend."""
    pythons = PYTHONS[backend]
    return f"tests({backend}-{HERE if HERE in pythons else pythons[-1]})"


nox.options.sessions = ["lint", "typing", *map(column, PYTHONS), "docs", "build"]


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


@nox.session
def demo(session: nox.Session) -> None:
    """Learn who speaks: one GRU in PyTorch's and in MindSpore's own loop, the same predictions on all three."""
    extras = EXTRAS["all"] if HERE in PYTHONS["all"] else EXTRAS["torch"]
    install(session, "demo", extras=extras)
    session.run("python", "examples/japanese_vowels/demo.py", *session.posargs)
    session.run("python", "examples/japanese_vowels/same_run.py")


@nox.session
def bench(session: nox.Session) -> None:
    """What training costs in memory, ours beside the native layers: a quarter of an hour."""
    extras = EXTRAS["all"] if HERE in PYTHONS["all"] else EXTRAS["torch"]
    install(session, "benchmark", extras=extras)
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
