"""Fixtures for the tests of MindSpore."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def in_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in a temporary folder: MindSpore writes rewritten networks and failed graphs to the working directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def graph_mode() -> Iterator[None]:
    import mindspore as ms

    ms.set_context(mode=ms.GRAPH_MODE)
    yield
    ms.set_context(mode=ms.PYNATIVE_MODE)


@pytest.fixture(scope="module")
def blocking() -> None:
    """Launch synchronously: asynchronous launches make the many small operators ten times slower on a CPU."""
    import mindspore as ms

    ms.runtime.launch_blocking()
