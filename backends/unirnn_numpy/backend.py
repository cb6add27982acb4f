"""The ``numpy`` backend's own answers to `unirnn.backend.Backend`."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unirnn import Device, GRUSpec, Limit, LSTMSpec, Spec, kernels
from unirnn import weights as _weights
from unirnn.backend import Arrays
from unirnn.call import join_state
from unirnn.errors import LimitError
from unirnn.limits import Kernel, check_kernel

from .module import KERNELS, SHORT, NumpyModule

if TYPE_CHECKING:
    from unirnn.benchmark import Contenders, Work

__all__ = ["NumpyBackend"]

Array = NDArray[Any]


class NumpyBackend:
    """Builds `NumpyModule`; always there."""

    name = "numpy"
    dtypes = ("float16", "float32", "float64")
    differentiable = True

    @property
    def modes(self) -> tuple[str, ...]:
        return ("eager", "numba") if kernels.has_numba(GRUSpec(1, 1)) else ("eager",)

    def version(self) -> str:
        return f"numpy {np.__version__}"

    def devices(self) -> tuple[Device, ...]:
        return (Device("cpu"),)

    def default_device(self) -> Device:
        return Device("cpu")

    def limits(self, spec: Spec, device: Device, dtype: str) -> Iterable[Limit]:
        if device.kind != "cpu":
            yield Limit(f"numpy runs on cpu only, not on {device.kind}")
        if isinstance(spec, LSTMSpec) and spec.proj_size:
            yield Limit(f"numpy has no proj_size (given {spec.proj_size}); torch has")
        if dtype == "float16":
            yield Limit("float16 is computed in float32, and rounded at the end", refuses=False)

    def kernels(self, spec: Spec, device: Device, dtype: str) -> Iterable[Kernel]:
        rest = "always"
        if dtype != "float16":
            yield Kernel("plain", f"inference (T <= {SHORT})")
            rest = "else"
        if kernels.has_numba(spec):
            yield Kernel("numba", rest)
            rest = "by name only"
        yield Kernel("packed", rest)

    def build(
        self,
        spec: Spec,
        *,
        device: Device,
        dtype: str,
        weights: Arrays | None,
        seed: int | None,
        kernel: str = "auto",
    ) -> NumpyModule:
        check_kernel(kernel, KERNELS)
        if kernel == "plain" and dtype == "float16":
            raise LimitError("kernel: given 'plain', but float16 is computed in float32, which 'packed' does")
        if kernel == "numba":
            kernels.check_numba(spec)
        drawn = _weights.draw_globally(spec) if weights is None else weights
        # A stream of its own, so that dropout repeats none of the numbers that made the weights.
        generator = np.random.default_rng(None if seed is None else [seed, 1])
        arrays = {name: np.array(array, dtype) for name, array in drawn.items()}
        return NumpyModule(spec, arrays, generator, kernel)

    def read(self, module: Any) -> tuple[Spec, dict[str, Array]] | None:
        if not isinstance(module, NumpyModule):
            return None
        return module.spec, module.weights

    def write(self, module: Any, weights: Arrays) -> None:
        for name, array in module.weights.items():
            array[...] = weights[name]

    def from_numpy(self, array: Array, module: Any) -> Array:
        return array

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(array)

    def detach(self, array: Any) -> Any | None:
        return array if isinstance(array, np.ndarray) else None

    def contenders(self, work: "Work") -> "Contenders":
        from .contenders import contenders  # not needed but for the benchmark

        return contenders(work)

    def gradients(
        self,
        module: Any,
        input: Array,
        hx: tuple[Array, ...],
        seq_length: NDArray[np.int64] | None,
        d_output: Array,
        d_state: tuple[Array, ...],
    ) -> dict[str, Array]:
        _, _, pullback = module.vjp(input, join_state(hx), seq_length)
        gradients: dict[str, Array] = pullback(d_output, join_state(d_state))
        return gradients
