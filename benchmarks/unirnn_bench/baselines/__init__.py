"""The baselines with which the modules of each backend are compared.

Each module in this package has the name of a backend and the members of `Baselines`. A backend without such a module is
measured without baselines.
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
"""The baselines by name. The time of ``ours`` is divided by theirs."""

Call = Callable[[], object]
Calls = Mapping[str, Call]


class Baselines(Protocol):
    """The members that a module of baselines has."""

    MODES: tuple[str, ...]
    """The modes in which a backend can run, each of which needs a process; ``("eager",)`` if there is only one."""

    def calls(self, work: Work, /) -> Calls:
        """Prepare the implementations of a row, by name.

        Each call returns the output. If the work has ``d_output``, it returns instead the gradients of every weight
        and, unless that is tokens, of the input. It returns only when they have been computed. If the work has a model,
        ``ours`` is the module of the model, and ``native`` and ``usual`` are models written in the usual way.

        - ``ours``: the module of unirnn,
        - ``native``: the framework's own layer on dense input,
        - ``usual``: the usual code in this framework that gives the same results,
        - ``floor``: only the matrix products,
        - ``dense``: the module of unirnn without lengths and resets, if the work has any.
        """
        ...


class OursAlone:
    """The baselines of a backend that has none: only its modules are measured."""

    MODES: tuple[str, ...] = ("eager",)

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def calls(self, work: Work) -> Calls:
        """Prepare the call of the backend's module, using only members that every backend has."""
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
    """Import the baselines of a backend, or return `OursAlone` if it has none."""
    path = f"{__name__}.{backend.name}"
    if not backend.name.isidentifier() or find_spec(path) is None:
        return OursAlone(backend)
    module: Any = import_module(path)
    baselines: Baselines = module
    return baselines
