"""What a plain Python backend builds from a `unirnn.Model`: an object with its methods, layers and namespace."""

import importlib
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

from unirnn.reference.functions import namespace
from unirnn.specs import LinearSpec, Model

__all__ = ["BuiltDefinition", "build_definition", "untied"]


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

    def __init__(self, spec: Model, layers: Mapping[str, Any], xp: ModuleType) -> None:
        vars(self).update(spec.attributes())
        vars(self).update(layers)
        self.spec, self.xp, self.training = spec, xp, False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the model: ``forward`` of the definition, without its ``xp``."""
        forward: Any = self.forward  # type: ignore[attr-defined]  # the definition's own
        return forward(self.xp, *args, **kwargs)

    def __repr__(self) -> str:
        return repr(self.spec)

    def __reduce__(self) -> Any:  # the class is made anew, since it has no place in a module
        return _restored, (self.spec, self.layers, self.xp.__name__, self.training)

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


def untied(spec: Model) -> dict[str, Any]:
    """The layers of a definition, where those with a tied weight have one of their own.

    Examples
    --------
    >>> import unirnn
    >>> class Model(unirnn.Model):
    ...     def __init__(self):
    ...         self.embedding = unirnn.EmbeddingSpec(50, 8)
    ...         self.head = unirnn.LinearSpec(8, 50, tied_to="embedding")
    >>> untied(Model())["head"]
    LinearSpec(8, 50)
    """
    return {
        name: replace(layer, tied_to="") if isinstance(layer, LinearSpec) else layer for name, layer in spec.children
    }


def build_definition(spec: Model, layers: Mapping[str, Any], xp: Any) -> BuiltDefinition:
    """Make the object.

    Parameters
    ----------
    spec
        The definition.
    layers
        Its built layers by their names. One whose weight is tied holds that of the embedding.
    xp
        A namespace of the array API standard.
    """
    cls: type[BuiltDefinition] = type(
        type(spec).__name__, (BuiltDefinition,), {**spec.members(), "__doc__": type(spec).__doc__}
    )
    return cls(spec, layers, namespace(xp))


def _restored(spec: Model, layers: Mapping[str, Any], xp: str, training: bool) -> BuiltDefinition:
    return build_definition(spec, layers, importlib.import_module(xp)).train(training)
