"""The backends under test, and what the tests of all of them share."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn import RecurrentSpec, Snapshot, explain, registry
from unirnn.contract.backend import Backend
from unirnn.contract.call import join_state, state_parts
from unirnn.errors import MissingBackendError

__all__ = ["ASYNCHRONOUS", "Subject", "close", "gradients", "installed", "subjects"]

# MindSpore's default, asynchronous launching. Its threads spin between small operators, which makes the tests up to 15
# times slower, and once they run, no call stops them. So a process tests this subject alone: give ``--backend`` only
# this name.
ASYNCHRONOUS = "mindspore-asynchronous"


@dataclass(frozen=True)
class Subject:
    """A backend under test, called with NumPy arrays.

    ``options`` are further arguments of every build. ``kernel`` is the kernel to build with, if the backend has it for
    the spec. ``change`` is applied to every module that was built. Tolerances are multiplied by ``tolerance_factor``,
    and ``relu_at_zero`` is the slope that the backend gives relu at zero. ``is_brief`` says that the subject treats all
    kinds of layers alike but for the cell itself, and takes long: most cases are tested with some kinds only.
    """

    label: str
    backend: Backend
    options: dict[str, Any] = field(default_factory=dict)
    kernel: str | None = None
    change: Callable[[Any], None] = lambda module: None
    tolerance_factor: float = 1.0
    relu_at_zero: float = 0.0
    is_brief: bool = False

    def build(self, spec: RecurrentSpec, **arguments: Any) -> Any:
        module = spec.build(self.backend.name, **{**self.options, **self._kernel(spec, **arguments), **arguments})
        self.change(module)
        return module

    def rebuild(self, snapshot: Snapshot) -> Any:
        kernel = self._kernel(snapshot.spec, snapshot.dtype)
        module = snapshot.build(self.backend.name, **self.options, **kernel)
        self.change(module)
        return module

    def _kernel(self, spec: RecurrentSpec, dtype: Any = "float32", device: Any = None, **_: Any) -> dict[str, Any]:
        if self.kernel is None:
            return {}
        kernels = explain(spec, self.backend.name, device, dtype=dtype).kernels
        return {"kernel": self.kernel} if any(kernel.name == self.kernel for kernel in kernels) else {}

    def array(self, array: NDArray[Any], module: Any) -> Any:
        return self.backend.from_numpy(array, module)

    def call(
        self,
        module: Any,
        input: NDArray[Any],
        hx: tuple[NDArray[Any], ...] | None = None,
        seq_length: Any = None,
        resets: Any = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
        state = None if hx is None else join_state([self.array(part, module) for part in hx])
        output, final = module(self.array(input, module), state, seq_length, resets)
        parts = state_parts(module.spec, final)
        assert parts is not None
        return self.backend.to_numpy(output), tuple(self.backend.to_numpy(part) for part in parts)


def gradients(
    backend: Backend,
    module: Any,
    input: NDArray[Any],
    hx: tuple[NDArray[Any], ...],
    seq_length: Any,
    d_output: NDArray[Any],
    d_state: tuple[NDArray[Any], ...],
    resets: NDArray[np.bool_] | None = None,
) -> dict[str, NDArray[Any]]:
    """The gradients of a recurrent layer by name: ``input``, ``h_0`` (and ``c_0``), and each weight."""
    lengths = None if seq_length is None else np.asarray(seq_length)
    arguments = {"input": input, "hx": join_state(hx), "seq_length": lengths, "resets": resets}
    found = backend.gradients(module, arguments, (d_output, *d_state))
    states = module.spec.states
    named = {"hx": "h_0"} if len(states) == 1 else {f"hx[{k}]": f"{name}_0" for k, name in enumerate(states)}
    return {named.get(name, name): gradient for name, gradient in found.items()}


def installed() -> list[str]:
    found = []
    for name in registry.backends():
        with contextlib.suppress(MissingBackendError):
            found.append(registry.load(name).name)
    return found


def subjects(name: str) -> list[Subject]:
    if name == ASYNCHRONOUS:
        return [Subject(name, registry.load("mindspore"), is_brief=True)]
    backend = registry.load(name)
    if name == "numpy":
        return [Subject(name, backend), Subject("numpy-fallback", backend, kernel="fallback")]
    if name == "torch":
        return [Subject(name, backend), Subject("torch-native", backend, kernel="native"), *_gpu_subjects(backend)]
    if name == "mindspore":  # in PyNative mode on a CPU, `auto` uses a function instead of the custom operators
        import mindspore

        mindspore.runtime.launch_blocking()  # during collection, since it has no effect after the first operator
        return [
            Subject(name, backend),
            Subject("mindspore-custom", backend, kernel="compiled", change=use_custom_operators, is_brief=True),
            Subject("mindspore-native", backend, kernel="native", is_brief=True),
        ]
    if name != "array_api":
        return [Subject(name, backend)]
    namespaces = ["array_api_strict", *(["torch"] if find_spec("torch") else [])]
    return [Subject(f"array_api-{n}", backend, {"namespace": __import__(n)}) for n in namespaces]


def _gpu_subjects(torch_backend: Backend) -> list[Subject]:
    import torch

    if not torch.cuda.is_available():
        return []
    torch.backends.cudnn.allow_tf32 = False  # TensorFloat-32 has a mantissa of 10 bits
    # cuDNN's tanh is off by 1e-6
    return [Subject("torch-cuda", torch_backend, {"device": "cuda"}, tolerance_factor=10, relu_at_zero=1)]


def use_custom_operators(module: Any) -> None:
    """Make a module use the custom operators, as graph mode does."""
    module.stack.layers = None


def close(
    actual: NDArray[Any], expected: NDArray[Any], tolerance: float, what: str = "", *, scale: float | None = None
) -> None:
    """Assert equal shapes, no NaN, and differences within a tolerance.

    The tolerance is relative to the largest expected value, or to ``scale`` if it is given.
    """
    assert actual.shape == expected.shape, f"{what}: shape {actual.shape}, expected {expected.shape}"
    if not expected.size:
        return
    difference = np.abs(actual.astype(np.float64) - expected).max()
    scale = np.abs(expected).max() if scale is None else scale
    assert difference <= tolerance * scale, f"{what}: off by {difference:.2e}"
