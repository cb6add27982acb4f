"""Models from code, `unirnn.Model`, as cells."""

from functools import cache
from typing import Any

from mindspore import nn

from unirnn.contract.backend import Arrays
from unirnn.contract.definitions import own_weights
from unirnn.errors import LimitError
from unirnn.specs import Model

from . import dispatch, models, namespace

__all__ = ["DefinitionCell", "build"]


def build(spec: Model, weights: Arrays, dtype: Any, device: dispatch.DeviceKind, kernel: str) -> "DefinitionCell":
    """Build a model from code; the arguments are those of `unirnn_mindspore.models.Model`."""
    definition: Any = type(spec)
    return _class_of(definition)(spec, weights, dtype, device, kernel)


class DefinitionCell(nn.Cell):
    """A model from code; a subclass has the methods of the definition.

    Its children are the built layers, under the names that they have in the definition.

    Parameters
    ----------
    spec
        The definition.
    weights, dtype, device, kernel
        See `unirnn_mindspore.models.Model`.

    Attributes
    ----------
    spec
        The definition.
    xp
        The namespace, `unirnn_mindspore.namespace`.
    dtype
        The dtype of the parameters.

    Raises
    ------
    LimitError
        If the definition has a layer, a method or an attribute of a name that ``mindspore.nn.Cell`` has itself.
    """

    spec: Any  # a Model; what the subclasses have would have to be asked for at each use
    xp: Any = namespace

    def __init__(self, spec: Model, weights: Arrays, dtype: Any, device: dispatch.DeviceKind, kernel: str) -> None:
        super().__init__()
        for name in (*spec.attributes(), *dict(spec.children), *spec.members()):
            if name in ("spec", "xp", "dtype") or (hasattr(nn.Cell, name) or name in vars(self)):
                raise LimitError(
                    f"mindspore: given {name!r} in {type(spec).__name__}, which mindspore.nn.Cell or the built "
                    "model has itself; rename it"
                )
        self.spec, self.dtype = spec, dtype
        tied = spec.tied()
        # The owner of a tied weight comes first, so that the weight has its name.
        for name, layer, own in sorted(own_weights(spec, weights), key=lambda row: f"{row[0]}.weight" in tied):
            make: Any = build if isinstance(layer, Model) else models.build
            setattr(self, name, make(layer, own, dtype, device, kernel))
        parameters = dict(self.parameters_and_names())
        for name, other in tied.items():
            if parameters.get(name) is not None:  # else a layer of layers has tied it
                getattr(self, name.removesuffix(".weight")).body.weight = parameters[other]
        for name, parameter in self.parameters_and_names():
            parameter.name = name
        for name, value in spec.attributes().items():
            setattr(self, name, value)

    def construct(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the model: ``forward`` of the definition, without its ``xp``."""
        return self.forward(self.xp, *args, **kwargs)


@cache
def _class_of(definition: Any) -> type[DefinitionCell]:
    """The class of what is built from a definition, which is a subclass of `unirnn.Model`."""
    members = definition.members(definition.__new__(definition))
    about = {"__doc__": definition.__doc__, "__module__": definition.__module__}
    return type(definition.__name__, (DefinitionCell,), {**members, **about})
