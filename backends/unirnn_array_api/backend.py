"""The ``array_api`` backend's own answers to `unirnn.backend.Backend`."""

from collections.abc import Iterable
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from unirnn import Device, Limit, Spec
from unirnn import weights as _weights
from unirnn.backend import Arrays
from unirnn.errors import ArgumentError

from .module import ArrayModule

__all__ = ["ArrayBackend"]

Array = NDArray[Any]


class ArrayBackend:
    """Builds `ArrayModule` on the namespace of ``build(..., namespace=...)``."""

    name = "array_api"
    dtypes = ("float32", "float64")
    differentiable = False

    def version(self) -> str:
        return f"array-api-compat {array_api_compat.__version__}"

    def devices(self) -> tuple[Device, ...]:
        return (Device("cpu"),)

    def default_device(self) -> Device:
        return Device("cpu")

    def limits(self, spec: Spec, device: Device, dtype: str) -> Iterable[Limit]:
        if device.kind != "cpu":
            yield Limit(f"array_api builds on the namespace's default device only, not on {device.kind}")
        yield Limit("array_api runs the plain cells step by step; its gradients are the namespace's own", refuses=False)

    def build(
        self,
        spec: Spec,
        *,
        device: Device,
        dtype: str,
        weights: Arrays | None,
        seed: int | None,
        namespace: Any = None,
    ) -> ArrayModule:
        if not hasattr(namespace, "asarray"):
            raise ArgumentError(
                f"namespace: given {namespace!r}, expected a module of the array API standard, "
                "as in build('array_api', namespace=array_api_strict)"
            )
        xp: Any = array_api_compat.array_namespace(namespace.asarray(0.0))
        drawn = _weights.draw_globally(spec) if weights is None else weights
        arrays = {name: xp.asarray(np.array(array, dtype)) for name, array in drawn.items()}
        generator = np.random.default_rng(None if seed is None else [seed, 1])
        return ArrayModule(spec, arrays, generator)

    def read(self, module: Any) -> tuple[Spec, dict[str, Array]] | None:
        if not isinstance(module, ArrayModule):
            return None
        return module.spec, {name: self.to_numpy(array) for name, array in module.weights.items()}

    def write(self, module: Any, weights: Arrays) -> None:
        # Arrays of the standard may be immutable.
        for name, array in module.weights.items():
            module.weights[name] = self.from_numpy(weights[name].astype(self.to_numpy(array).dtype), module)

    def from_numpy(self, array: Array, module: Any) -> Any:
        weight = module.weights["weight_ih_l0"]
        xp: Any = array_api_compat.array_namespace(weight)
        return xp.asarray(array, device=array_api_compat.device(weight))

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(array.detach() if hasattr(array, "detach") else array)

    def detach(self, array: Any) -> Any | None:
        # The standard has no gradients, and no word for it.
        return array.detach() if hasattr(array, "detach") else None

    def gradients(self, *arguments: Any) -> dict[str, Array]:
        raise ArgumentError("array_api has no gradients of its own; use those of the namespace")
