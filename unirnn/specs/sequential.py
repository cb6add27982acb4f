"""Models as data: layers one after another, around, or beside each other."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from keyword import iskeyword
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unirnn.errors import ArgumentError, SpecError

from .base import LengthRule, Random, Spec
from .layers import EmbeddingSpec, LinearSpec
from .recurrent import RecurrentSpec

__all__ = ["Concat", "ModelSpec", "Residual", "Sequential", "leaves_of"]

ModelT = TypeVar("ModelT", bound="ModelSpec")


@dataclass(frozen=True, repr=False, init=False)
class ModelSpec(Spec):
    """A spec that is made of other specs: `Sequential`, `Residual` or `Concat`.

    A model takes `(B, T, F)`, or `(T, B, F)` if its recurrent layers do, which must agree; or integers without the axis
    F, if an embedding comes first. Its weights are those of its layers, each under the layer's name and a dot.
    """

    _children: tuple[tuple[str, Spec], ...]
    _leaves: dict[str, Spec] = field(compare=False)  # kept, since every call asks for them

    def __init__(self, /, *layers: Spec, **named: Spec) -> None:
        if layers and named:
            raise ArgumentError(f"{self.kind}: given layers with and without names, expected one or the other")
        for name in named:
            if not name.isidentifier() or iskeyword(name) or hasattr(ModelSpec, name):
                raise ArgumentError(f"{self.kind}: given the name {name!r}, expected an identifier that is not taken")
        children = named or {str(number): layer for number, layer in enumerate(layers)}
        for name, layer in children.items():
            if not isinstance(layer, Spec):
                raise ArgumentError(f"{self.kind}: {name}: given {type(layer).__name__}, expected a spec")
            if layer.kind == "Model":
                raise ArgumentError(
                    f"{self.kind}: {name}: given {type(layer).__name__}, which is code, expected a spec that is data; "
                    "a Model may hold both"
                )
        self._set("_children", tuple(children.items()))
        self._set("_children", tuple(self._fitted()))
        self._set("_leaves", leaves_of(self))
        self._check_layouts()
        self._check_ties()

    @property
    def children(self) -> tuple[tuple[str, Spec], ...]:
        """The layers, as pairs of a name and a spec, in their order."""
        return self._children

    def _fitted(self) -> Iterator[tuple[str, Spec]]:
        """The children with the input sizes that were left out; a SpecError if they do not fit."""
        raise NotImplementedError

    def _check_layouts(self) -> None:
        first: tuple[str, bool] | None = None
        for name, leaf in self.leaves().items():
            if isinstance(leaf, RecurrentSpec):
                if first is not None and first[1] != leaf.batch_first:
                    raise SpecError(
                        f"{self.kind}: {first[0]} has batch_first={first[1]}, but {name} has "
                        f"batch_first={leaf.batch_first}; expected one layout for the whole model"
                    )
                first = name, leaf.batch_first

    def _check_ties(self) -> None:
        leaves = self.leaves()
        for name, layer in self.children:
            if not isinstance(layer, LinearSpec) or not layer.tied_to:
                continue
            embedding = leaves.get(layer.tied_to)
            if not isinstance(embedding, EmbeddingSpec):
                known = ", ".join(name for name, leaf in leaves.items() if isinstance(leaf, EmbeddingSpec))
                raise SpecError(
                    f"{name}: tied_to: given {layer.tied_to!r}, expected an embedding: {known or 'none here'}"
                )
            if (embedding.num_embeddings, embedding.embedding_dim) != (layer.out_features, layer.in_features):
                raise SpecError(
                    f"{name}: tied_to: given {layer.tied_to!r}, {embedding!r}, expected an embedding of the sizes of "
                    f"{layer!r}: EmbeddingSpec({layer.out_features}, {layer.in_features})"
                )

    def __getattr__(self, name: str) -> Spec:
        # Neither is there yet while a model is unpickled.
        children = {} if name in ("_children", "children") else dict(self.children)
        if name not in children:
            raise AttributeError(f"{type(self).__name__} has no layer and no attribute {name!r}")
        return children[name]

    def __getitem__(self, name: str | int) -> Spec:
        return dict(self.children)[name] if isinstance(name, str) else self.children[name][1]

    def __iter__(self) -> Iterator[Spec]:
        return iter(layer for _, layer in self.children)

    def __len__(self) -> int:
        return len(self.children)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *dict(self.children)]

    def __repr__(self) -> str:
        parts = (repr(layer) if name.isdigit() else f"{name}={layer!r}" for name, layer in self.children)
        return f"{type(self).__name__}({', '.join(parts)})"

    def _repr_html_(self) -> str | None:
        """The summary, which a notebook shows; None, for the `repr`, as long as a size is not known."""
        return None if self.missing_size() else self.summary()._repr_html_()

    # ---- what flows through ----------------------------------------------------------------------

    @property
    def batch_first(self) -> bool:
        """Whether the input is `(B, T, F)`, as its recurrent layers say; True if there are none."""
        return all(leaf.batch_first for leaf in self.leaves().values() if isinstance(leaf, RecurrentSpec))

    def leaves(self) -> dict[str, Spec]:
        """See `Spec.leaves`."""
        return dict(self._leaves)

    def missing_size(self) -> str | None:
        """See `Spec.missing_size`."""
        found = ((name, layer.missing_size()) for name, layer in self.children)
        return next((f"{name}.{missing}" for name, missing in found if missing), None)

    @property
    def needs_steps(self) -> bool:
        """Whether any of the layers needs an axis T."""
        return any(layer.needs_steps for layer in self)

    @property
    def is_pointwise(self) -> bool:
        """Whether all layers are pointwise; see `Spec.is_pointwise`."""
        return all(layer.is_pointwise for layer in self)

    @property
    def can_stream(self) -> bool:
        """Whether all layers can be computed step by step; see `Spec.can_stream`."""
        return all(layer.can_stream for layer in self)

    # ---- weights ---------------------------------------------------------------------------------

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """See `Spec.weight_shapes`. A weight that is tied to another is listed once, under the other's name."""
        return {
            f"{name}.{weight}": shape
            for name, layer in self.children
            for weight, shape in layer.weight_shapes().items()
        }

    def tied(self) -> dict[str, str]:
        """The weights that are tied, and to which: ``{"head.weight": "embedding.weight"}``."""
        found: dict[str, str] = {}
        for name, layer in self.children:
            if isinstance(layer, ModelSpec):
                found |= {f"{name}.{weight}": f"{name}.{other}" for weight, other in layer.tied().items()}
            elif isinstance(layer, LinearSpec) and layer.tied_to:
                found[f"{name}.weight"] = f"{layer.tied_to}.weight"
        return found

    @property
    def buffers(self) -> tuple[str, ...]:
        """See `Spec.buffers`."""
        return tuple(f"{name}.{buffer}" for name, layer in self.children for buffer in layer.buffers)

    def draw_weights(self, random: Random) -> dict[str, NDArray[np.float64]]:
        """Draw the weights of one layer after the other; see `Spec.draw_weights`."""
        return {
            f"{name}.{weight}": array
            for name, layer in self.children
            for weight, array in layer.draw_weights(random).items()
        }

    def fits(self, other: Spec) -> bool:
        """See `Spec.fits`."""
        return (
            isinstance(other, ModelSpec)
            and self.kind == other.kind
            and [name for name, _ in self.children] == [name for name, _ in other.children]
            and all(one.fits(another) for one, another in zip(self, other, strict=True))
        )

    # ---- to plain values and back ----------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """See `Spec.to_dict`."""
        return {"kind": self.kind, "layers": {name: layer.to_dict() for name, layer in self.children}}

    @classmethod
    def _from_arguments(cls: type[ModelT], arguments: Mapping[str, Any]) -> ModelT:
        return cls._from_layers(cls._layers(arguments))

    @classmethod
    def _from_layers(cls: type[ModelT], layers: Mapping[str, Spec]) -> ModelT:
        is_numbered = list(layers) == [str(number) for number in range(len(layers))]
        return cls(*layers.values()) if is_numbered else cls(**layers)

    @classmethod
    def _layers(cls, arguments: Mapping[str, Any]) -> dict[str, Spec]:
        """The layers that `to_dict` wrote."""
        layers = arguments.get("layers")
        if arguments.keys() != {"layers"} or not isinstance(layers, Mapping):
            raise SpecError(f"{cls.kind}: given {', '.join(arguments) or 'nothing'}, expected layers by their names")
        return {name: Spec.from_dict(values) for name, values in layers.items()}


def leaves_of(model: ModelSpec) -> dict[str, Spec]:
    """The layers of a model, and of the models in it, by their names."""
    return {
        f"{name}.{inner}" if inner else name: leaf
        for name, layer in model.children
        for inner, leaf in layer.leaves().items()
    }


def _keeps_features(layer: Spec) -> bool:
    """Whether a layer that takes any number of features gives as many."""
    try:
        return layer.output_features(2) == 2
    except SpecError:
        return False


@dataclass(frozen=True, repr=False, init=False)
class Sequential(ModelSpec):
    """Layers one after another.

    If the input size of a layer was left out, it is the output size of the layer before.

    Parameters
    ----------
    layers
        Their names are then ``"0"``, ``"1"``, ...
    named
        Layers by their names.

    Raises
    ------
    SpecError
        If a layer does not take what the one before gives, or the recurrent layers have different layouts.
    ArgumentError
        If something is no spec, or a name can't be used.

    Examples
    --------
    >>> import unirnn
    >>> model = Sequential(
    ...     embedding=unirnn.EmbeddingSpec(50, 8),
    ...     encoder=unirnn.GRUSpec(hidden_size=16, bidirectional=True, batch_first=True),
    ...     pool=unirnn.PoolSpec("mean"),
    ...     head=unirnn.LinearSpec(out_features=9),
    ... )
    >>> model.head
    LinearSpec(32, 9)
    >>> Sequential(encoder=unirnn.GRUSpec(8, 16), head=unirnn.LinearSpec(8, 9))
    Traceback (most recent call last):
        ...
    unirnn.errors.SpecError: Sequential: encoder, GRUSpec(8, 16), gives 16 features, but head, LinearSpec(8, 9), takes 8
    """

    kind = "Sequential"

    def _fitted(self) -> Iterator[tuple[str, Spec]]:
        features, before, has_steps, is_first = 0, "", True, True
        for name, layer in self.children:
            here = f"{name}, {layer!r},"
            if not is_first and layer.takes_tokens:
                raise SpecError(f"{self.kind}: {before} gives features, but {here} takes tokens")
            if not has_steps and layer.needs_steps:
                raise SpecError(f"{self.kind}: {before} gives no time steps, but {here} needs them")
            fitted = layer.with_input_features(features)
            self._check_fit(before, name, fitted, features)
            features = fitted.output_features(features or fitted.input_features)
            has_steps = has_steps and not fitted.ends_steps
            before = f"{name}, {fitted!r},"
            is_first = is_first and layer.takes_tokens is None
            yield name, fitted

    @property
    def takes_tokens(self) -> bool | None:
        """As in the first layer that does not take both kinds of input; see `Spec.takes_tokens`."""
        return next((takes for layer in self if (takes := layer.takes_tokens) is not None), None)

    @property
    def ends_steps(self) -> bool:
        """Whether one of the layers ends the steps; see `Spec.ends_steps`."""
        return any(layer.ends_steps for layer in self)

    @property
    def length_rules(self) -> tuple[LengthRule, ...]:
        """The rules of all layers, in order; see `Spec.length_rules`."""
        return tuple(rule for layer in self for rule in layer.length_rules)

    @property
    def input_features(self) -> int:
        """The input size of the first layer that has one, if the layers before it keep the number of features."""
        for layer in self:
            features = layer.input_features
            if features or layer.missing_size() or not _keeps_features(layer):
                return features
        return 0

    def output_features(self, features: int) -> int:
        """The output size of the last layer; see `Spec.output_features`."""
        before = ""
        for name, layer in self.children:
            self._check_fit(before, name, layer, features)
            features = layer.output_features(features or layer.input_features)
            before = f"{name}, {layer!r},"
        return features

    def _check_fit(self, before: str, name: str, layer: Spec, features: int) -> None:
        if features and layer.input_features not in (0, features):
            given = f"{before} gives {features} features" if before else f"given {features} features"
            raise SpecError(f"{self.kind}: {given}, but {name}, {layer!r}, takes {layer.input_features}")

    def with_input_features(self, features: int) -> "Sequential":
        """See `Spec.with_input_features`."""
        if not features or self.missing_size() is None:  # so that nested models are not made anew at each level
            return self
        layers = dict(self.children)
        for name, layer in self.children:
            layers[name] = layer.with_input_features(features)
            features = layers[name].output_features(features)
        return Sequential._from_layers(layers)


@dataclass(frozen=True, repr=False, init=False)
class Residual(ModelSpec):
    """A layer whose input is added to its output: ``y = x + layer(x)``.

    Parameters
    ----------
    layer
        The layer, which keeps the number of features and of steps. Its name is ``layer``.

    Raises
    ------
    SpecError
        If the layer changes the number of features or of steps.

    Examples
    --------
    >>> import unirnn
    >>> Residual(unirnn.GRUSpec(8, 8)).weight_shapes()["layer.weight_ih_l0"]
    (24, 8)
    """

    kind = "Residual"

    def __init__(self, layer: Spec) -> None:
        super().__init__(layer=layer)

    def __repr__(self) -> str:
        return f"Residual({self.children[0][1]!r})"

    @property
    def _layer(self) -> Spec:
        return self.children[0][1]

    def _fitted(self) -> Iterator[tuple[str, Spec]]:
        layer = self._layer
        if layer.takes_tokens or layer.ends_steps or layer.length_rules:
            what = "takes tokens" if layer.takes_tokens else "changes the number of steps"
            raise SpecError(f"Residual: {layer!r} {what}, so that its output can't be added to its input")
        features = layer.input_features
        if not features:  # a gated layer of the same size on both sides may leave its input size out
            features = layer.output_features(0)
            layer = layer.with_input_features(features)
        if not features and not _keeps_features(layer):
            raise SpecError(
                f"Residual: {layer!r} changes the number of features, so that its output can't be added to its input"
            )
        self._check_output(layer, features)
        yield "layer", layer

    def _check_output(self, layer: Spec, features: int) -> None:
        if layer.output_features(features) != features:
            raise SpecError(
                f"Residual: {layer!r} takes {features} features and gives {layer.output_features(features)}, "
                "expected as many"
            )

    def output_features(self, features: int) -> int:
        """As many as the input has; see `Spec.output_features`."""
        self._check_output(self._layer, features)
        return features

    @property
    def input_features(self) -> int:
        """The input size of the layer."""
        return self._layer.input_features

    def with_input_features(self, features: int) -> "Residual":
        """See `Spec.with_input_features`."""
        is_known = not features or self.missing_size() is None
        return self if is_known else Residual(self._layer.with_input_features(features))

    @classmethod
    def _from_arguments(cls, arguments: Mapping[str, Any]) -> "Residual":
        layers = cls._layers(arguments)
        if layers.keys() != {"layer"}:
            raise SpecError(f"Residual: given layers {', '.join(layers) or 'without names'}, expected one, layer")
        return cls(**layers)


@dataclass(frozen=True, repr=False, init=False)
class Concat(ModelSpec):
    """Several layers over the same input, whose outputs are joined on the last axis.

    An empty `Sequential` gives its input unchanged.

    Parameters
    ----------
    layers, named
        As in `Sequential`. All give the same number of steps.

    Raises
    ------
    SpecError
        If the layers take different inputs, or give different steps.

    Examples
    --------
    >>> import unirnn
    >>> branches = [unirnn.Conv1dSpec(8, 16, size, padding="same") for size in (3, 5)]
    >>> Concat(*branches, Sequential()).output_features(8)
    40
    """

    kind = "Concat"

    def _fitted(self) -> Iterator[tuple[str, Spec]]:
        if not self.children:
            raise SpecError("Concat: given no layers, expected at least one")
        sizes = [(name, layer, layer.input_features) for name, layer in self.children]
        known = [one for one in sizes if one[2]]
        (first, one), *others = self.children
        for name, layer, features in known[1:]:
            if features != known[0][2]:
                raise SpecError(
                    f"Concat: {known[0][0]}, {known[0][1]!r}, takes {known[0][2]} features, but {name}, {layer!r}, "
                    f"takes {features}"
                )
        tokens = {layer.takes_tokens for _, layer in self.children} - {None}
        if len(tokens) == 2:
            raise SpecError("Concat: given layers that take tokens, and others that take features; expected one kind")
        for name, layer in others:
            if (one.length_rules, one.ends_steps) != (layer.length_rules, layer.ends_steps):
                raise SpecError(
                    f"Concat: {first}, {one!r}, and {name}, {layer!r}, change the number of steps in different ways"
                )
        features = known[0][2] if known else 0
        for name, layer in self.children:
            fitted = layer.with_input_features(features)
            fitted.output_features(features)  # or a SpecError
            yield name, fitted

    @property
    def takes_tokens(self) -> bool | None:
        """As in the first layer that does not take both kinds of input; see `Spec.takes_tokens`."""
        return next((takes for layer in self if (takes := layer.takes_tokens) is not None), None)

    @property
    def ends_steps(self) -> bool:
        """Whether the layers end the steps; see `Spec.ends_steps`."""
        return self.children[0][1].ends_steps

    @property
    def length_rules(self) -> tuple[LengthRule, ...]:
        """The rules of each layer, which are the same for all; see `Spec.length_rules`."""
        return self.children[0][1].length_rules

    @property
    def input_features(self) -> int:
        """The input size of the first layer that has one."""
        return next(filter(None, (layer.input_features for layer in self)), 0)

    def output_features(self, features: int) -> int:
        """The sum of the layers' output sizes; see `Spec.output_features`."""
        sizes = [layer.output_features(features or layer.input_features) for layer in self]
        return sum(sizes) if all(sizes) else 0

    def with_input_features(self, features: int) -> "Concat":
        """See `Spec.with_input_features`."""
        if not features or self.missing_size() is None:
            return self
        return Concat._from_layers({name: layer.with_input_features(features) for name, layer in self.children})
