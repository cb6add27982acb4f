"""Models from code, `unirnn.Model`, as modules of torch."""

import inspect
import types
from collections.abc import Callable
from functools import cache
from typing import Any

import array_api_compat.torch
import torch
from torch import Tensor, nn

from unirnn.contract.backend import Arrays
from unirnn.contract.definitions import untied
from unirnn.errors import LimitError
from unirnn.reference import functions
from unirnn.specs import Model

from . import dispatch, models

__all__ = ["DefinitionModule", "build"]


def build(spec: Model, *, device: Any, dtype: torch.dtype, weights: Arrays | None, kernel: str) -> nn.Module:
    """Build a model from code; the arguments are those of `unirnn_torch.models.build`."""
    definition: Any = type(spec)
    made = _class_of(definition)(spec, device=device, dtype=dtype, weights=weights, kernel=kernel)
    return models.with_tensor(made, device, dtype)


class DefinitionModule(nn.Module):
    """A model from code; a subclass has the methods of the definition.

    Its children are the built layers, under the names that they have in the definition.

    Parameters
    ----------
    spec
        The definition.
    device, dtype, weights, kernel
        See `unirnn_torch.models.Model`.

    Attributes
    ----------
    spec
        The definition.
    xp
        The namespace.

    Raises
    ------
    LimitError
        If the definition has a layer, a method or an attribute of a name that ``torch.nn.Module`` has itself.
    """

    spec: Any  # a Model, typed as Any since each subclass has its own kind
    xp: Any
    __prepare_scriptable__ = dispatch.refuse_script

    def __init__(self, spec: Model, *, device: Any, dtype: torch.dtype, weights: Arrays | None, kernel: str) -> None:
        super().__init__()
        for name in (*spec.attributes(), *dict(spec.children), *spec.members()):
            if name in _TAKEN:
                raise LimitError(
                    f"torch: given {name!r} in {type(spec).__name__}, which torch.nn.Module has; rename it"
                )
        self.spec = spec
        for name, layer in spec.children:
            own = None if weights is None else models.under(weights, name)
            make: Any = build if isinstance(layer, Model) else models.build
            self.add_module(name, make(untied(layer), device=device, dtype=dtype, weights=own, kernel=kernel))
        models.tie(self, spec)
        for name, value in spec.attributes().items():
            setattr(self, name, value)

    def __reduce_ex__(self, protocol: Any) -> Any:  # the class has no place in a file
        return _without_attributes, (type(self.spec),), self.__dict__


_TAKEN = frozenset((*dir(nn.Module()), "spec", "xp")) - {"forward"}


@cache
def _class_of(definition: Any) -> type[DefinitionModule]:
    """The class of what is built from a definition, which is a subclass of `unirnn.Model`."""
    members = definition.members(definition.__new__(definition))
    own = {"forward": _forward(members["forward"]), "xp": _namespace()}
    about = {"__doc__": definition.__doc__, "__module__": definition.__module__}
    return type(definition.__name__, (DefinitionModule,), {**members, **own, **about})


def _without_attributes(definition: Any) -> DefinitionModule:
    kind = _class_of(definition)
    return kind.__new__(kind)


def _forward(written: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` as torch calls it: without ``xp``."""

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and args[0] is self.xp:  # called by another method of the definition, as it is written
            args = args[1:]
        return written(self, self.xp, *args, **kwargs)

    # torch's exporters name the inputs by it.
    signature = inspect.signature(written)
    first, _, *others = signature.parameters.values()
    forward.__signature__ = signature.replace(parameters=[first, *others])  # type: ignore[attr-defined]
    forward.__doc__ = written.__doc__
    return forward


@cache
def _namespace() -> types.ModuleType:
    """The namespace ``xp``, with torch's own functions where it has them."""
    standard: Any = array_api_compat.torch
    found = types.ModuleType("xp", "PyTorch as a namespace of the array API standard, and the functions of models.")
    vars(found).update(vars(functions.namespace(standard)))
    vars(found).update(sigmoid=torch.sigmoid, relu=torch.relu, softmax=_softmax, log_softmax=_log_softmax)
    return found


def _softmax(x: Tensor, /, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


def _log_softmax(x: Tensor, /, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)
