"""A pytest plugin that makes every MindSpore module use the custom operators, as graph mode does."""

from typing import Any

import pytest
from unirnn_mindspore.backend import MindSporeBackend


@pytest.fixture(scope="session", autouse=True)
def _custom_operators() -> Any:
    built = MindSporeBackend.build

    def build(self: MindSporeBackend, spec: Any, **arguments: Any) -> Any:
        module = built(self, spec, **arguments)
        if hasattr(module, "stack"):
            module.stack.layers = None
        return module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MindSporeBackend, "build", build)
        yield
