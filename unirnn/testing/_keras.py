"""Models of Keras 3, on PyTorch or JAX; see `unirnn.testing.frameworks.framework_of`."""

import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.contract.backend import Watched, map_arrays
from unirnn.errors import LimitError

from ._results import arrays_by_path

__all__ = ["KerasFramework"]

Array = NDArray[Any]


@functools.cache
def _outer_layer() -> Any:
    """The class of a layer whose call runs a function, so that the layers in it run in this layer's mode."""
    keras: Any = importlib.import_module("keras")

    class Outer(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, function: Callable[[], Any]) -> None:
            super().__init__()
            self.function = function

        def call(self, x: Any, training: bool | None = None) -> Any:
            return self.function()

    return Outer


class KerasFramework:
    """Layers and models of Keras."""

    name = "keras"

    def __init__(self) -> None:
        # Keras is imported here because importing it loads the framework that it runs on.
        self._keras: Any = importlib.import_module("keras")
        self._training = False

    def from_numpy(self, array: Array, module: Any) -> Any:
        return self._keras.ops.convert_to_tensor(array)

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(self._keras.ops.convert_to_numpy(array))

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], module: Any = None
    ) -> tuple[list[Array | None], dict[str, Array]]:
        variables = [] if module is None else list(module.trainable_variables)
        floats = [k for k, array in enumerate(arrays) if self._keras.backend.is_float_dtype(array.dtype)]
        tensors = [arrays[k] for k in floats]

        def of_floats(inputs: Sequence[Any]) -> Any:
            moved = dict(zip(floats, inputs, strict=True))
            return function(*(moved.get(k, array) for k, array in enumerate(arrays)))

        kind = self._keras.backend.backend()
        if kind == "torch":
            by_input, by_weight = _gradients_of_torch(of_floats, tensors, variables)
        elif kind == "jax":
            by_input, by_weight = _gradients_of_jax(of_floats, tensors, variables)
        else:
            raise LimitError(f"unirnn can't take gradients of Keras on {kind}; it can on torch and jax")
        found = dict(zip(floats, map(self.to_numpy, by_input), strict=True))
        weights = {v.path: self.to_numpy(g) for v, g in zip(variables, by_weight, strict=True)}
        return [found.get(k) for k in range(len(arrays))], weights

    @contextmanager
    def watch(self, module: Any) -> Iterator[list[Watched]]:
        found: list[Watched] = []

        def watched(name: str, layer: Any) -> Callable[..., Any]:
            call = layer.call

            @functools.wraps(call)  # this keeps the signature, which tells how the model is called
            def add(*args: Any, **kwargs: Any) -> Any:
                results = call(*args, **kwargs)
                if not any(map(_is_traced, arrays_by_path(results).values())):
                    found.append(Watched(name, type(layer).__name__, map_arrays(results, self._copied)))
                return results

            return add

        layers = _by_path(module)
        for path, layer in layers.items():
            layer.call = watched(path, layer)
        try:
            yield found
        finally:
            for layer in layers.values():
                del layer.call

    def _copied(self, value: Any) -> Any:
        """A NumPy copy of an array; anything else is returned unchanged."""
        return np.array(self.to_numpy(value)) if self._keras.ops.is_tensor(value) else value

    def set_training(self, module: Any, mode: bool) -> None:
        self._training = mode

    def run(self, function: Callable[[], Any]) -> Any:
        """Run a function so that the layers in it are in the mode that was set, and return its result."""
        if not self._training:  # no outer layer, which would change the names of layers that this call builds
            return function()
        return _outer_layer()(function)(self._keras.ops.zeros((1, 1)), training=self._training)

    def random_seed(self, seed: int) -> None:
        self._keras.utils.set_random_seed(seed)

    def all_weights(self, module: Any) -> dict[tuple[str, ...], Array] | None:
        """All variables, including the states of the model's own random generators."""
        return {(variable.path,): self.to_numpy(variable.value) for variable in module.variables}

    @contextmanager
    def restored(self, module: Any) -> Iterator[Any]:
        before = [(variable, self.to_numpy(variable.value).copy()) for variable in module.variables]
        try:
            yield module
        finally:
            for variable, value in before:
                variable.assign(value)


def _is_traced(value: Any) -> bool:
    """Whether an array is a tracer of JAX, which has no values; cells get these inside the loop of a layer."""
    jax = sys.modules.get("jax")
    return jax is not None and isinstance(value, jax.core.Tracer)


def _by_path(layer: Any, path: str = "") -> dict[str, Any]:
    """A layer and all layers within it, each by the first path that leads to it. Keras has no public list of them."""
    found = {path: layer}
    for inner in layer._layers:
        own = _by_path(inner, f"{path}.{inner.name}" if path else inner.name)
        found |= {name: one for name, one in own.items() if all(one is not other for other in found.values())}
    return found


def _gradients_of_torch(function: Any, inputs: Sequence[Any], variables: Sequence[Any]) -> tuple[Any, Any]:
    import torch

    moved = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    wanted = [*moved, *(variable.value for variable in variables)]
    with torch.enable_grad():
        value = function(moved)
    if value.requires_grad and wanted:
        found = torch.autograd.grad(value, wanted, materialize_grads=True)
    else:
        found = tuple(map(torch.zeros_like, wanted))
    return found[: len(inputs)], found[len(inputs) :]


def _gradients_of_jax(function: Any, inputs: Sequence[Any], variables: Sequence[Any]) -> tuple[Any, Any]:
    keras, jax = map(importlib.import_module, ("keras", "jax"))

    def of_all(inputs: Sequence[Any], values: Sequence[Any]) -> Any:
        with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
            return function(inputs)

    found: tuple[Any, Any] = jax.grad(of_all, (0, 1))(list(inputs), [variable.value for variable in variables])
    return found
