"""Models from code, `unirnn.Model`, for a plain Python backend: objects with their methods, layers and namespace."""

import importlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from unirnn.errors import LimitError
from unirnn.reference.functions import namespace
from unirnn.specs import LinearSpec, Model, Spec

__all__ = ["BuiltDefinition", "build_definition", "own_weights", "untied"]


class BuiltDefinition:
    """A model from code; its class also has the methods of the definition.

    Attributes
    ----------
    spec
        The definition.
    xp
        The namespace.
    training
        Whether its layers are in training; False until `train`.
    """

    def __init__(self, spec: Model, layers: Mapping[str, Any], xp: ModuleType, backend: str) -> None:
        for name in (*spec.attributes(), *layers, *spec.members()):
            if name in ("spec", "xp", "training", "_backend") or hasattr(BuiltDefinition, name):
                raise LimitError(
                    f"{backend}: given an attribute named {name!r}, which the built model has itself; rename it"
                )
        vars(self).update(spec.attributes())
        vars(self).update(layers)
        self.spec, self.xp, self.training, self._backend = spec, xp, False, backend

    def is_built_by(self, backend: str) -> bool:
        """Whether it was built by a backend of this name."""
        return self._backend == backend

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the model: ``forward`` of the definition, without its ``xp``."""
        forward: Any = self.forward  # type: ignore[attr-defined]  # the definition's own
        return forward(self.xp, *args, **kwargs)

    def __repr__(self) -> str:
        return repr(self.spec)

    def __reduce__(self) -> Any:  # the class is made anew, since it has no place in a module
        return _restored, (self.spec, self.layers, self.xp.__name__, self._backend, self.training)

    @property
    def layers(self) -> dict[str, Any]:
        """The built layers, by their names."""
        return {name: getattr(self, name) for name, _ in self.spec.children}

    @property
    def weights(self) -> dict[str, Any]:
        """The weights, by the names of `unirnn.Spec.weight_shapes`."""
        held = {
            f"{name}.{weight}": array for name, layer in self.layers.items() for weight, array in layer.weights.items()
        }
        return {name: held[name] for name in self.spec.weight_shapes()}

    def train(self, mode: bool = True) -> "BuiltDefinition":
        """Switch the layers to training (or back)."""
        self.training = mode
        for layer in self.layers.values():
            layer.train(mode)
        return self

    def eval(self) -> "BuiltDefinition":
        """Switch the layers to evaluation."""
        return self.train(False)


def own_weights(spec: Model, weights: Mapping[str, Any]) -> Iterator[tuple[str, Spec, dict[str, Any]]]:
    """The layers of a definition with their weights. A layer whose weight is tied to another gets that one as its own.

    Parameters
    ----------
    spec
        The definition.
    weights
        Arrays by the names of `unirnn.Spec.weight_shapes`.

    Yields
    ------
    name, layer, weights
        The layer's name, its spec, and its weights by the names that they have in it.

    Examples
    --------
    >>> import unirnn
    >>> class Model(unirnn.Model):
    ...     def __init__(self):
    ...         self.embedding = unirnn.EmbeddingSpec(50, 8)
    ...         self.head = unirnn.LinearSpec(8, 50, bias=False, tied_to="embedding")
    >>> list(own_weights(Model(), {"embedding.weight": "the array"}))[1]
    ('head', LinearSpec(8, 50, bias=False), {'weight': 'the array'})
    """
    tied = spec.tied()
    for name, layer in spec.children:
        own = untied(layer)
        names = ((weight, f"{name}.{weight}") for weight in own.weight_shapes())
        yield name, own, {weight: weights[tied.get(full, full)] for weight, full in names}


def untied(layer: Spec) -> Spec:
    """The layer with all of its weights, none of which is another layer's."""
    return replace(layer, tied_to="") if isinstance(layer, LinearSpec) else layer


def build_definition(
    spec: Model, weights: Mapping[str, Any], xp: Any, backend: str, build: Callable[[Spec, dict[str, Any]], Any]
) -> BuiltDefinition:
    """Make the object.

    Parameters
    ----------
    spec
        The definition.
    weights
        Arrays of the framework by the names of `unirnn.Spec.weight_shapes`.
    xp
        A namespace of the array API standard.
    backend
        The name of the backend.
    build
        Makes a module of a layer from its spec and its weights, which it keeps.
    """
    layers = {name: build(layer, own) for name, layer, own in own_weights(spec, weights)}
    return _made(spec, layers, xp, backend)


def _made(spec: Model, layers: Mapping[str, Any], xp: Any, backend: str) -> BuiltDefinition:
    cls: type[BuiltDefinition] = type(
        type(spec).__name__, (BuiltDefinition,), {**spec.members(), "__doc__": type(spec).__doc__}
    )
    return cls(spec, layers, namespace(xp), backend)


def _restored(spec: Model, layers: Mapping[str, Any], xp: str, backend: str, training: bool) -> BuiltDefinition:
    return _made(spec, layers, importlib.import_module(xp), backend).train(training)
