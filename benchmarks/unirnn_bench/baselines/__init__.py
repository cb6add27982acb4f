"""What each backend's modules are compared with: one module for each backend, of the same name.

Such a module has the members of `Baselines`. A backend without such a module is measured alone.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np

from unirnn.contract.backend import Backend
from unirnn.contract.call import join_state
from unirnn_bench.work import Work

__all__ = ["DESCRIPTIONS", "Baselines", "Call", "Calls", "OursAlone", "load"]

DESCRIPTIONS = {
    "native": "the framework's own layer on dense input",
    "usual": "what people write in this framework for the same result",
    "torch": "PyTorch's own layer on dense input",
    "onnxruntime": "a bare session of ONNX Runtime on dense input, which has no backward pass",
    "floor": "the matrix products alone",
}
"""What the time of ours is divided by."""

Call = Callable[[], object]
Calls = Mapping[str, Call]


class Baselines(Protocol):
    """The members of a module of baselines."""

    MODES: tuple[str, ...]
    """The ways to run that need a process each; ``("eager",)`` if there is only one."""

    def calls(self, work: Work, /) -> Calls:
        """Prepare what computes a row, by name.

        Each call returns the output or, if the work has ``d_output``, the gradients of the input, unless it is tokens,
        and of every weight, and returns only when they are computed. If the work has a model, ``ours`` is the module of
        the model, and ``native`` and ``usual`` are models as people write them.

        - ``ours``: the module of unirnn,
        - ``native``: the framework's own layer on the dense input,
        - ``usual``: what people write in this framework to get the same result,
        - ``floor``: the matrix products alone,
        - ``dense``: the module of unirnn without lengths and resets, if the work has them.
        """
        ...


class OursAlone:
    """Stands for the baselines of a backend that has none: its modules are measured alone."""

    MODES: tuple[str, ...] = ("eager",)

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def calls(self, work: Work) -> Calls:
        """Prepare the call of the backend's module, by the members that every backend has."""
        backend, spec = self._backend, work.spec
        module = (work.model or spec).build(backend.name, seed=0)
        if work.model is not None:
            return {"ours": self._model_call(work, module)}
        if (d_output := work.d_output) is not None:
            zeros = tuple(np.zeros(shape, np.float32) for shape in spec.state_shapes(work.input.shape[1]).values())
            arguments = {
                "input": work.input,
                "hx": join_state(zeros),
                "seq_length": work.seq_length,
                "resets": work.resets,
            }
            return {"ours": lambda: backend.gradients(module, arguments, (d_output, *zeros))}
        input = backend.from_numpy(work.input, module)
        hx = None if work.hx is None else join_state([backend.from_numpy(part, module) for part in work.hx])
        if hx is not None:
            x = backend.from_numpy(work.input[0], module)
            return {"ours": lambda: backend.to_numpy(module.step(x, hx)[0])}
        return {"ours": lambda: backend.to_numpy(module(input, None, work.seq_length, work.resets)[0])}

    def _model_call(self, work: Work, module: Any) -> Call:
        backend = self._backend
        if (d_output := work.d_output) is not None:
            arguments = {"input": work.input, "seq_length": work.seq_length}
            return lambda: backend.gradients(module, arguments, (d_output,))
        input = backend.from_numpy(work.input, module)
        return lambda: backend.to_numpy(module(input, seq_length=work.seq_length))


def load(backend: Backend) -> Baselines:
    """Import the baselines of a backend."""
    path = f"{__name__}.{backend.name}"
    if not backend.name.isidentifier() or find_spec(path) is None:
        return OursAlone(backend)
    module: Any = import_module(path)
    baselines: Baselines = module
    return baselines
