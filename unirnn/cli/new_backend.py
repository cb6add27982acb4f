"""The command ``unirnn new-backend``.

It writes a copy of the folder ``unirnn-loop`` next to this file, in which another name replaces "loop".
"""

import os
import re
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from unirnn import registry
from unirnn.errors import ArgumentError, FileError

from .printing import print_parts

__all__ = ["TEMPLATE", "new_backend", "write_distribution"]

TEMPLATE = Path(__file__).parent / "unirnn-loop"
"""The distribution that is copied. The code in the guide "Write a backend" comes from it as well."""


def new_backend(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The name for build(), such as that of the framework's package.")
    ],
) -> None:
    """Write a package with a backend, as a starting point for your own.

    The package is a new folder unirnn-NAME in the current folder. Its backend computes with PyTorch's tensors, and
    passes the conformance suite without changes.
    """
    folder = write_distribution(name, Path.cwd())
    print_parts(
        f"written: {folder.name}; now install it and test it:",
        f"  cd {folder.name}",
        '  python -m pip install -e ".[test]"',
        f"  python -m unirnn.testing {name}",
    )


def write_distribution(name: str, parent: Path) -> Path:
    """Write a distribution with a backend into a new folder. After an error, nothing is left of it.

    Parameters
    ----------
    name
        The backend's name: lower-case letters, digits and underscores.
    parent
        The folder that will contain the new folder.

    Returns
    -------
    Path
        The new folder, ``unirnn-NAME``, with hyphens for underscores.

    Raises
    ------
    ArgumentError
        If the name has other characters, or is taken.
    FileError
        If a file or a folder of that name exists, which is left unchanged.
    OSError
        If the folder can't be written.

    Examples
    --------
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     written = write_distribution("acme", Path(folder))
    ...     print(*sorted(path.name for path in written.iterdir()))
    README.md pyproject.toml src tests
    """
    _check_name(name)
    target = parent / f"unirnn-{name.replace('_', '-')}"
    if os.path.lexists(target):
        raise FileError(f"{target.name}: it exists already, and is left unchanged; remove it, or give another NAME")
    with tempfile.TemporaryDirectory(dir=parent, prefix=".unirnn-") as temporary:
        made = Path(temporary, target.name)
        for source in TEMPLATE.rglob("*"):
            if source.suffix in (".md", ".py", ".toml"):
                file = made / _renamed(source.relative_to(TEMPLATE).as_posix(), name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(_renamed(source.read_text("utf-8"), name), "utf-8")
        made.rename(target)
    return target


def _check_name(name: str) -> None:
    """Raise ArgumentError for a name that is malformed or taken."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ArgumentError(
            f"NAME: given {name!r}, expected lower-case letters and digits, and underscores between them, "
            "such as my_framework"
        )
    for is_taken, why in (
        (name in registry.backends(), "which is a backend already"),
        (find_spec(f"unirnn_{name}") is not None, f"and the package unirnn_{name} exists already"),
        (name in sys.stdlib_module_names, "which is a module of Python's standard library"),
        (name == "all", "which means every backend, as in --rnn-backends=all"),
    ):
        if is_taken:
            raise ArgumentError(f"NAME: given {name!r}, {why}; give another name")


def _renamed(text: str, name: str) -> str:
    """Replace "loop" by a name in a text or a path of the template."""
    of_class = "".join(part.capitalize() for part in name.split("_"))
    text = text.replace("unirnn-loop", f"unirnn-{name.replace('_', '-')}").replace("Loop", of_class)
    return text.replace("loop", name)
