"""Which tests are collected."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest

import unirnn.testing.strategies  # noqa: F401 - registers the other profiles

hypothesis.settings.register_profile("sanitizers", deadline=None, max_examples=2000)
hypothesis.settings.load_profile("unirnn")

NEEDED = {
    **{name: name for name in ("torch", "mindspore", "onnxruntime", "keras", "flax")},
    "models": "silero_vad",
    "roundtrip": "keras",
}
"""What the tests in each folder import."""
collect_ignore_glob = ["support/*", *(f"{folder}/*" for folder, name in NEEDED.items() if not find_spec(name))]
collect_ignore = [
    name
    for name, packages in {
        "test_onnx_exported_by_torch.py": ("torch", "onnx"),
        "test_migrating.py": ("torch", "mindspore"),
    }.items()
    if not all(map(find_spec, packages))
]


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Collect the tests for a GPU only if torch sees one."""
    if collection_path.name != "test_gpu.py" or not find_spec("torch"):
        return None
    import torch

    return None if torch.cuda.is_available() else True


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def run() -> Callable[..., Any]:
    """Run the command ``unirnn`` in this process: ``run("names", "GRU")``; the exit status must be 0."""
    pytest.importorskip("typer", reason="the command needs typer and rich")
    from typer.testing import CliRunner

    from unirnn.cli.app import app

    def invoke(*arguments: str, status: int = 0) -> Any:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == status, result.output
        return result

    return invoke


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Run torch with one thread: on small layers, several threads lose more time waiting than they save."""
    torch = pytest.importorskip("torch")
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(count)
