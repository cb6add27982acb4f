"""What the conformance tests share."""

import hypothesis
import numpy as np
import pytest

import unirnn.testing.strategies  # noqa: F401 - it registers the profile
from unirnn.testing.subjects import Subject

hypothesis.settings.load_profile("unirnn")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave models out for a subject with a kernel: kernels compute recurrent layers, and models are the same."""
    left_out = [item for item in items if isinstance(item, pytest.Function) and _is_model_of_a_kernel(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _is_model_of_a_kernel(item: pytest.Function) -> bool:
    subject = item.callspec.params.get("rnn_backend") if hasattr(item, "callspec") else None
    return isinstance(subject, Subject) and "kernel" in subject.options and "model_backend" in item.fixturenames


@pytest.fixture(scope="session")
def model_backend(rnn_backend: Subject) -> Subject:
    """A backend that builds models."""
    if "Sequential" not in rnn_backend.backend.support.kinds:
        pytest.skip(f"{rnn_backend.name} has no Sequential")
    return rnn_backend


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a seed."""
    return np.random.default_rng(0)
