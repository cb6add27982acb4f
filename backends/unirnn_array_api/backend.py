"""The ``array_api`` backend's own answers to `unirnn.contract.backend.Backend`."""

from collections.abc import Iterable, Mapping
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from unirnn import Device, Limit, RecurrentSpec, registry
from unirnn.contract import weights as _weights
from unirnn.contract.backend import Arrays, Backend
from unirnn.contract.definitions import BuiltDefinition, build_definition, own_weights
from unirnn.contract.limits import ALL_KINDS, Support
from unirnn.errors import ArgumentError
from unirnn.specs import Model, Spec
from unirnn_array_api.module import ArrayModel, ArrayModule

__all__ = ["ArrayBackend"]

Array = NDArray[Any]


class ArrayBackend(Backend):
    """Builds `ArrayModule` and `ArrayModel` on the namespace of ``build(..., namespace=...)``."""

    name = "array_api"
    support = Support("array_api", devices=("cpu",), kinds=ALL_KINDS, dtypes=("float32", "float64"), derivatives=0)
    options = required_options = ("namespace",)

    def version(self) -> str:
        return f"array-api-compat {array_api_compat.__version__}"

    def limits(self, spec: Spec, device: Device, dtype: str) -> Iterable[Limit]:
        yield Limit("array_api runs the reference, step by step; its gradients are the namespace's own", refuses=False)

    def build(
        self,
        spec: Spec,
        *,
        device: Device,
        dtype: str,
        weights: Arrays | None,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> ArrayModel | ArrayModule | BuiltDefinition:
        namespace: Any = options.get("namespace")
        if isinstance(namespace, str):
            namespace = registry.import_optional(namespace, "the backend array_api", namespace)
        if not hasattr(namespace, "asarray"):
            raise ArgumentError(
                f"namespace: given {namespace!r}, expected a module of the array API standard, "
                "as in build('array_api', namespace=array_api_strict)"
            )
        xp: Any = array_api_compat.array_namespace(namespace.asarray(0.0))
        drawn = _weights.draw_globally(spec) if weights is None else weights
        arrays = {name: xp.asarray(np.array(array, dtype)) for name, array in drawn.items()}
        return _build(spec, arrays, np.random.default_rng(None if seed is None else [seed, 1]), xp, dtype)

    def read(self, module: Any) -> tuple[Spec, dict[str, Array]] | None:
        is_definition = isinstance(module, BuiltDefinition) and module.is_built_by(self.name)
        if not is_definition and not isinstance(module, (ArrayModel, ArrayModule)):
            return None
        return module.spec, {name: self.to_numpy(array) for name, array in module.weights.items()}

    def write(self, module: Any, weights: Arrays) -> None:
        if isinstance(module, BuiltDefinition):
            for name, _, own in own_weights(module.spec, weights):
                self.write(module.layers[name], own)
            return
        # Arrays of the standard may be immutable.
        for name, array in module.weights.items():
            module.weights[name] = self.from_numpy(weights[name].astype(self.to_numpy(array).dtype), module)

    def from_numpy(self, array: Array, module: Any) -> Any:
        weight = next(iter(module.weights.values()), None)
        if weight is None:  # a model of activations alone
            return module.namespace.asarray(array)
        xp: Any = array_api_compat.array_namespace(weight)
        return xp.asarray(array, device=array_api_compat.device(weight))

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(array.detach() if hasattr(array, "detach") else array)

    def detach(self, array: Any) -> Any | None:
        # The standard has no gradients, and so no function for this.
        return array.detach() if hasattr(array, "detach") else None

    def like(self, array: Array, other: Any) -> Any | None:
        if not array_api_compat.is_array_api_obj(other):
            return None
        xp: Any = array_api_compat.array_namespace(other)
        return xp.asarray(array, device=array_api_compat.device(other))


def _build(
    spec: Spec, weights: Mapping[str, Any], generator: np.random.Generator, xp: Any, dtype: str
) -> ArrayModel | ArrayModule | BuiltDefinition:
    """A module from arrays of the namespace."""
    if isinstance(spec, RecurrentSpec):
        return ArrayModule(spec, weights, generator)
    if not isinstance(spec, Model):
        return ArrayModel(spec, xp, dtype, weights, generator)
    return build_definition(
        spec, weights, xp, ArrayBackend.name, lambda layer, own: _build(layer, own, generator, xp, dtype)
    )
