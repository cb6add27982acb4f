"""Third-party distributions that count as installed, with backends that are found by their entry points."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from unirnn import registry

__all__ = ["installed", "write_distribution"]


def write_distribution(folder: Path, name: str, entry_points: str, modules: Mapping[str, str] | None = None) -> None:
    """Write a distribution into a folder, from the text of its entry points and the text of each module by path."""
    info = folder / f"{name.replace('-', '_')}-1.dist-info"
    texts = {
        f"{info.name}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n",
        f"{info.name}/entry_points.txt": entry_points,
        **(modules or {}),
    }
    for path, text in texts.items():
        (folder / path).parent.mkdir(exist_ok=True)
        (folder / path).write_text(text)


@contextmanager
def installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A context in which the registry finds the distributions in a folder."""
    monkeypatch.syspath_prepend(folder)
    _forget_entry_points()
    yield
    _forget_entry_points()


def _forget_entry_points() -> None:
    registry._claims.cache_clear()
    registry._entry_points.cache_clear()
