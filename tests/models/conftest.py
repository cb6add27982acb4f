"""The backends on which third-party models are built."""

import pytest

from unirnn import registry
from unirnn.contract.backend import Backend


@pytest.fixture(scope="module", params=["numpy", "torch", "mindspore", "onnxruntime"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if request.param == "mindspore":
        import mindspore

        mindspore.runtime.launch_blocking()  # before the first operator; see `subjects.ASYNCHRONOUS`
    return registry.load(request.param)
