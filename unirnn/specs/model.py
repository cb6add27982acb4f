"""Models as code: layers that are specs, and the glue between them written once."""

import copy
import types
from collections.abc import Mapping
from typing import Any

from unirnn.errors import ArgumentError, SpecError

from .base import Spec
from .recurrent import RecurrentSpec
from .sequential import ModelSpec, leaves_of

__all__ = ["Model"]


class Model(ModelSpec):
    """A model whose layers are specs and whose forward pass is code, for anything but a plain chain of layers.

    Subclass it. ``__init__`` takes whatever the model depends on and sets the layers, which are specs, as attributes;
    it needs no call of ``super().__init__``. ``forward`` gets the namespace ``xp`` and then the arguments of a call.

    What is built is a native module: its class has the methods, constants and attributes of the definition, the layers
    as built modules, and ``xp``. So methods besides ``forward`` can be called on it too; they read ``self.xp``. The
    definition stays as it is, and can be built again elsewhere.

    ``xp`` has the functions of the array API standard, and those of `unirnn.reference.functions`: ``sigmoid``,
    ``relu``, ``softmax``, ``log_softmax``, ``mask``, ``masked_mean`` and ``masked_softmax``.

    Examples
    --------
    >>> import numpy, unirnn
    >>> class Tagger(unirnn.Model):
    ...     def __init__(self, vocabulary, tags):
    ...         self.embedding = unirnn.EmbeddingSpec(vocabulary, 8)
    ...         self.encoder = unirnn.LSTMSpec(8, 16, bidirectional=True, batch_first=True)
    ...         self.head = unirnn.LinearSpec(32, tags)
    ...
    ...     def forward(self, xp, tokens, seq_length=None):
    ...         output, _ = self.encoder(self.embedding(tokens), seq_length=seq_length)
    ...         return xp.log_softmax(self.head(output), axis=-1)
    >>> net = Tagger(50, 5).build("numpy", seed=0)
    >>> net(numpy.array([[1, 2, 3], [4, 5, 0]]), seq_length=[3, 2]).shape
    (2, 3, 5)
    """

    kind = "Model"

    xp: Any
    """The namespace, which only the built module has."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        for name, member in vars(cls).items():
            if name != "forward":
                _check_name(cls, name)
            if isinstance(member, Spec):
                raise ArgumentError(
                    f"{cls.__name__}: {name}: given {member!r} in the class, expected it in __init__: self.{name} = ..."
                )
            if name != "__init__" and _calls_super(member):
                raise ArgumentError(
                    f"{cls.__name__}.{name}: given super() or __class__, which what is built does not have; call the "
                    f"other class by its name: {cls.__base__.__name__}.{name}(self, ...)"  # type: ignore[union-attr]
                )
        super().__init_subclass__(**arguments)

    def __init__(self) -> None:
        """Set the layers as attributes."""

    def __setattr__(self, name: str, value: Any) -> None:
        _check_name(type(self), name)
        super().__setattr__(name, value)

    def forward(self, xp: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Compute the model; to be written by subclasses."""
        raise NotImplementedError(f"{type(self).__name__} has no forward")

    @property
    def children(self) -> tuple[tuple[str, Spec], ...]:
        """The layers, as pairs of a name and a spec, in the order in which they were set."""
        return tuple((name, value) for name, value in vars(self).items() if isinstance(value, Spec))

    def leaves(self) -> dict[str, Spec]:
        """See `Spec.leaves`."""
        return leaves_of(self)

    def members(self) -> dict[str, Any]:
        """The methods and constants of the definition, which the class of what is built has too."""
        found: dict[str, Any] = {}
        for cls in reversed(type(self).__mro__):
            if issubclass(cls, Model) and cls is not Model:
                found |= {
                    name: member
                    for name, member in vars(cls).items()
                    if name != "__init__" and (isinstance(member, types.FunctionType) or not _is_of_python(name))
                }
        return found

    def copied(self) -> "Model":
        """A definition that stays as it is when attributes of this one, or of definitions in it, are set anew."""
        found = copy.copy(self)
        for name, layer in self.children:
            if isinstance(layer, Model):
                setattr(found, name, layer.copied())
        return found

    def attributes(self) -> dict[str, Any]:
        """What ``__init__`` has set besides the layers."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, Spec)}

    def check_complete(self) -> None:
        """See `Spec.check_complete`; here also the layouts and tied weights are checked."""
        if type(self).forward is Model.forward:
            raise ArgumentError(f"{type(self).__name__}: it has no forward, expected a method forward(self, xp, ...)")
        for name, value in self.attributes().items():
            parts = tuple(value.values()) if isinstance(value, Mapping) else value
            if isinstance(parts, (list, tuple, set, frozenset)) and any(isinstance(part, Spec) for part in parts):
                raise ArgumentError(
                    f"{type(self).__name__}: {name}: given a {type(value).__name__} with specs, which would not be "
                    "built; set each as an attribute of its own, or in a Sequential"
                )
        super().check_complete()
        self._check_layouts()
        self._check_ties()
        for name, layer in self.children:
            if not (self.batch_first or layer.is_pointwise or _has_recurrent_layers(layer)):
                raise SpecError(
                    f"{type(self).__name__}: {name}, {layer!r}, takes (B, T, F), but the recurrent layers have "
                    "batch_first=False; expected one layout for the whole model, so give them batch_first=True"
                )

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), self.children))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"

    def fits(self, other: Spec) -> bool:
        """See `Spec.fits`; the code must be the same."""
        return type(self) is type(other) and super().fits(other)

    def to_dict(self) -> dict[str, Any]:
        """The name of the class and the layers; see `Spec.to_dict`. The code is not part of it."""
        return {"kind": self.kind, "name": type(self).__qualname__, "layers": super().to_dict()["layers"]}

    @classmethod
    def _from_arguments(cls, arguments: Mapping[str, Any]) -> Any:
        raise SpecError(
            f"Model: {arguments.get('name')!r} is code, which no dict holds; give the definition itself, such as "
            "spec=Tagger(5000, 17)"
        )


def _is_of_python(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _check_name(definition: type, name: str) -> None:
    """Refuse a name that every definition has for itself; raises ArgumentError."""
    if hasattr(Model, name) and not _is_of_python(name):
        raise ArgumentError(f"{definition.__name__}: given the name {name!r}, which a Model has itself; rename it")


def _calls_super(member: Any) -> bool:
    """Whether a method uses ``super()``, which Python binds to the definition's class."""
    function = getattr(member, "fget", None) or getattr(member, "__func__", member)
    return "__class__" in getattr(getattr(function, "__code__", None), "co_freevars", ())


def _has_recurrent_layers(spec: Spec) -> bool:
    return any(isinstance(leaf, RecurrentSpec) for leaf in spec.leaves().values())
