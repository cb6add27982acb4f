"""Which tests are collected, and for which backends."""

from importlib.util import find_spec
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from subjects import Subject, installed, subjects

hypothesis.settings.register_profile("unirnn", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=400)
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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--backend",
        action="append",
        metavar="NAME",
        help="test this backend (repeatable); default: every registered backend that is installed",
    )


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Collect the tests for a GPU only if torch sees one."""
    if collection_path.name != "test_gpu.py" or not find_spec("torch"):
        return None
    import torch

    return None if torch.cuda.is_available() else True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = metafunc.config.getoption("--backend") or installed()
    for fixture in {"subject", "model_subject"} & set(metafunc.fixturenames):
        found = [subject for name in names for subject in subjects(name)]
        if fixture == "model_subject":  # kernels are for recurrent layers; models are the same with each of them
            found = [s for s in found if s.kernel is None and "Sequential" in s.backend.support.kinds]
        metafunc.parametrize(fixture, found, indirect=True, ids=lambda subject: subject.label)


@pytest.fixture(scope="session")
def subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.param
    return found


@pytest.fixture(scope="session")
def model_subject(request: pytest.FixtureRequest) -> Subject:
    found: Subject = request.param
    return found


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
