"""The ``numpy`` backend's own answers to `unirnn.contract.backend.Backend`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn import Device, Limit, RecurrentSpec
from unirnn.contract import weights as _weights
from unirnn.contract.backend import Arrays, Backend, leaves, with_leaves
from unirnn.contract.call import join_state
from unirnn.contract.definitions import BuiltDefinition, build_definition
from unirnn.contract.limits import ROUNDED_FLOAT16, Kernel
from unirnn.errors import ArgumentError, LimitError
from unirnn.specs import Model, Spec

from . import dispatch
from .models import NumpyModel
from .module import NumpyModule

__all__ = ["NumpyBackend"]

Array = NDArray[Any]


class NumpyBackend(Backend):
    """Builds `NumpyModule`, `NumpyModel`, and objects of definitions; always there."""

    name = "numpy"
    support = dispatch.SUPPORT["auto"]
    options = ("kernel",)

    def version(self) -> str:
        return f"numpy {np.__version__}"

    def limits(self, spec: Any, device: Device, dtype: str) -> Iterable[Limit]:
        if dtype == "float16":
            yield ROUNDED_FLOAT16
        if isinstance(spec, Model):
            yield Limit(
                "numpy has no gradients of a model from code; write it as a Sequential, which has gradients",
                refuses=False,
            )

    def kernels(self, spec: RecurrentSpec, device: Device, dtype: str) -> Iterable[Kernel]:
        return dispatch.describe(spec, dtype)

    def build(
        self,
        spec: Spec,
        *,
        device: Device,
        dtype: str,
        weights: Arrays | None,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> NumpyModel | NumpyModule | BuiltDefinition:
        kernel = options.get("kernel", "auto")
        dispatch.check_build(kernel, spec, dtype)
        drawn = _weights.draw_globally(spec) if weights is None else weights
        # A stream of its own, so that dropout repeats none of the numbers that made the weights.
        generator = np.random.default_rng(None if seed is None else [seed, 1])
        arrays = {name: np.array(array, dtype) for name, array in drawn.items()}
        return _build(spec, dtype, arrays, generator, kernel)

    def read(self, module: Any) -> tuple[Spec, dict[str, Array]] | None:
        is_definition = isinstance(module, BuiltDefinition) and module.is_built_by(self.name)
        is_own = is_definition or isinstance(module, (NumpyModel, NumpyModule))
        return (module.spec, module.weights) if is_own else None

    def describe(self, module: Any) -> tuple[Spec, str] | None:
        # A model of activations alone has no weights.
        return (module.spec, module.dtype.name) if isinstance(module, NumpyModel) else super().describe(module)

    def write(self, module: Any, weights: Arrays) -> None:
        held = module.weights
        for name, array in held.items():
            if not array.flags.writeable:
                raise ArgumentError(f"module: its {name} is read-only, expected an array that can be written")
        for name, array in held.items():
            array[...] = weights[name]

    def gradients(self, module: Any, arguments: Mapping[str, Any], cotangents: Sequence[Array]) -> dict[str, Array]:
        if isinstance(module, BuiltDefinition):
            raise LimitError(
                "numpy has no gradients of a model from code; write it as a Sequential, which has gradients"
            )
        if isinstance(module, NumpyModule):
            _, _, pullback = module.vjp(**arguments)
            d_output, *d_state = cotangents
            gradients: dict[str, Array] = pullback(d_output, join_state(d_state))
            d_hx = join_state([gradients.pop(f"{name}_0") for name in module.spec.states])
            return {**gradients, **(leaves({"hx": d_hx}) if arguments.get("hx") is not None else {})}

        given = dict(arguments)
        given.pop("return_state", None)
        _, state, pullback = module.vjp(**given)
        d_output, *d_parts = cotangents  # without return_state there are no others
        names = leaves({"state": state}) if d_parts else {}
        d_states = with_leaves({"state": state}, dict(zip(names, d_parts, strict=True)))
        gradients = pullback(d_output, d_states["state"])
        wanted = {*leaves(given), *module.weights}
        return {name: gradient for name, gradient in gradients.items() if name in wanted}


def _build(
    spec: Spec, dtype: str, weights: dict[str, Array], generator: np.random.Generator, kernel: str
) -> NumpyModel | NumpyModule | BuiltDefinition:
    """A module that keeps these arrays as its weights."""
    if isinstance(spec, RecurrentSpec):
        return NumpyModule(spec, weights, generator, kernel)
    if not isinstance(spec, Model):
        return NumpyModel(spec, dtype, weights, generator, kernel)
    import array_api_compat.numpy as xp  # a third of the time that NumPy itself takes, and only needed here

    def build(layer: Spec, own: dict[str, Array]) -> Any:
        return _build(layer, dtype, own, generator, kernel)

    return build_definition(spec, weights, xp, NumpyBackend.name, build)
