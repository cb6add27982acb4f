"""The ``numpy`` backend's own answers to `unirnn.contract.backend.Backend`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn import Device, Limit, RecurrentSpec
from unirnn.contract import weights as _weights
from unirnn.contract.backend import Arrays, Backend, leaves
from unirnn.contract.call import join_state
from unirnn.contract.limits import ROUNDED_FLOAT16, Kernel

from . import dispatch
from .module import NumpyModule

__all__ = ["NumpyBackend"]

Array = NDArray[Any]


class NumpyBackend(Backend):
    """Builds `NumpyModule`; always there."""

    name = "numpy"
    support = dispatch.SUPPORT["auto"]
    options = ("kernel",)

    def version(self) -> str:
        return f"numpy {np.__version__}"

    def devices(self) -> tuple[Device, ...]:
        return (Device("cpu"),)

    def default_device(self) -> Device:
        return Device("cpu")

    def limits(self, spec: RecurrentSpec, device: Device, dtype: str) -> Iterable[Limit]:
        if dtype == "float16":
            yield ROUNDED_FLOAT16

    def kernels(self, spec: RecurrentSpec, device: Device, dtype: str) -> Iterable[Kernel]:
        return dispatch.describe(spec, dtype)

    def build(
        self,
        spec: RecurrentSpec,
        *,
        device: Device,
        dtype: str,
        weights: Arrays | None,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> NumpyModule:
        kernel = options.get("kernel", "auto")
        dispatch.check_build(kernel, spec, dtype)
        drawn = _weights.draw_globally(spec) if weights is None else weights
        # A stream of its own, so that dropout repeats none of the numbers that made the weights.
        generator = np.random.default_rng(None if seed is None else [seed, 1])
        arrays = {name: np.array(array, dtype) for name, array in drawn.items()}
        return NumpyModule(spec, arrays, generator, kernel)

    def read(self, module: Any) -> tuple[RecurrentSpec, dict[str, Array]] | None:
        return (module.spec, module.weights) if isinstance(module, NumpyModule) else None

    def write(self, module: Any, weights: Arrays) -> None:
        for name, array in module.weights.items():
            array[...] = weights[name]

    def gradients(self, module: Any, arguments: Mapping[str, Any], cotangents: Sequence[Array]) -> dict[str, Array]:
        _, _, pullback = module.vjp(**arguments)
        d_output, *d_state = cotangents
        gradients: dict[str, Array] = pullback(d_output, join_state(d_state))
        d_hx = join_state([gradients.pop(f"{name}_0") for name in module.spec.states])
        return {**gradients, **(leaves({"hx": d_hx}) if arguments.get("hx") is not None else {})}
