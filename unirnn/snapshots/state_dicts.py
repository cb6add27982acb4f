"""State dicts: finding recurrent layers among the names and shapes of arrays.

A recurrent layer is a set of names that share a prefix and end as torch's and MindSpore's do:
``encoder.lstm.weight_ih_l0``, or ``decoder.cell.weight_ih`` for a cell, which is a layer of one step. The names and
shapes determine the sizes, the layers, the directions and the biases, and the number of gates determines the cell. They
do not determine whether an RNN is tanh or relu. Nor do they determine ``batch_first`` and ``dropout``, which are taken
to be False and 0. A GRU under these names is the one of torch and MindSpore, with ``reset_after=True``.

The weights of a whole model are found by its spec, in `unirnn.snapshots.model_weights`. What becomes of weights that
are computed from other arrays is in `unirnn.snapshots.derived_weights`.
"""

import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from unirnn.contract.weights import check_weights, format_names
from unirnn.errors import ArgumentError, SpecError, UnirnnError
from unirnn.snapshots.derived_weights import NESTED, check_nothing_beside, split_name, without_dropped
from unirnn.snapshots.stacking import renumbered, stacked_spec
from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

__all__ = ["Match", "choose_layer", "choose_name", "find_layers"]

Shapes = Mapping[str, tuple[int, ...]]
Match = tuple[RecurrentSpec, dict[str, str]]
"""The spec of a layer, and for each name of `Spec.weight_shapes` the name of the array that holds it."""

# A weight of a layer or, without a number, of a cell; or an array beside it, from which it may be computed.
_NAME = re.compile(
    r"(?P<prefix>.*)(?P<weight>weight_(?:ih|hh|hr)|bias_(?:ih|hh))(?P<number>(?:_l[0-9]+(?:_reverse)?)?)"
    r"(?P<part>(?:[._].*)?)",
    re.DOTALL,
)
_NUMBER = re.compile("[0-9]{1,9}")
_MATRICES = {"weight_ih_l0", "weight_hh_l0"}  # that every layer has
_BY_GATES: dict[int, type[RecurrentSpec]] = {len(cls.gates): cls for cls in (RNNSpec, GRUSpec, LSTMSpec)}


def find_layers(shapes: Shapes) -> dict[str, Match | UnirnnError]:
    """The recurrent layers among the names of arrays, by their prefixes.

    Parameters
    ----------
    shapes
        The shape of every array by its name; names that do not belong to recurrent layers are ignored.

    Returns
    -------
    dict
        By prefix the spec and the names of its arrays, or the error that says why there is none.

    Examples
    --------
    >>> find_layers({"head.weight": (2, 4), "rnn.weight_ih_l0": (12, 3), "rnn.weight_hh_l0": (12, 4)})
    {'rnn.': (GRUSpec(3, 4, bias=False), {'weight_ih_l0': 'rnn.weight_ih_l0', 'weight_hh_l0': 'rnn.weight_hh_l0'})}
    """
    found: dict[str, Match | UnirnnError] = {}
    for prefix, own in _by_prefix(shapes).items():
        try:
            spec = _layer_spec(own, shapes)
            _check_nonlinearity(spec)
            found[prefix] = spec, own.sources
        except UnirnnError as error:
            found[prefix] = error
    return found


def choose_layer(
    shapes: Shapes,
    *,
    prefix: str | Sequence[str] | None = None,
    spec: RecurrentSpec | None = None,
    batch_first: bool | None = None,
) -> Match:
    """Choose one recurrent layer among the names of arrays, or a stack of several, and find its spec.

    Parameters
    ----------
    shapes
        The shape of every array by its name.
    prefix
        The beginning of the layer's names, with or without the dot at its end. If it is None, there must be only one
        layer; prefixes without the two matrices that every layer has do not count. Several prefixes are a stack of
        layers, the lowest first.
    spec
        The spec of the layer, or of the whole stack; None if names and shapes determine it.
    batch_first
        What names and shapes do not say; None is False, or what the spec says.

    Returns
    -------
    spec
        The spec of the layer.
    sources
        For each name of `Spec.weight_shapes`, the name of the array that holds it.

    Raises
    ------
    ArgumentError
        If there is no layer under the prefix, or none at all, or several and no prefix; or if the given spec has other
        names; or if there are arrays between the layers of a stack.
    ShapeError
        If the given spec has other shapes.
    SpecError
        If the names and shapes do not make up a layer; or if it is an RNN, whose nonlinearity they do not show; or if
        other arrays show that the layer computes something else; or if layers do not fit on top of each other.

    Examples
    --------
    >>> choose_layer({"rnn.weight_ih_l0": (12, 3), "rnn.weight_hh_l0": (12, 4)})
    (GRUSpec(3, 4, bias=False), {'weight_ih_l0': 'rnn.weight_ih_l0', 'weight_hh_l0': 'rnn.weight_hh_l0'})
    """
    found = _by_prefix(shapes)
    if not found:
        raise ArgumentError(
            "weights: given no recurrent layer, expected names such as 'weight_ih_l0', or 'weight_ih' of a cell, of "
            f"arrays of floats; given {format_names(map(repr, shapes)) or 'none'}"
        )
    if prefix is None or isinstance(prefix, str):
        own = found[_choose_prefix(found, prefix)]
        chosen, sources = _layer_spec(own, shapes, spec), own.sources
    else:
        chosen, sources = _choose_stack(found, shapes, [_choose_prefix(found, one) for one in prefix], spec)
    if spec is None:
        chosen = replace(chosen, batch_first=bool(batch_first))
        _check_nonlinearity(chosen)
    return chosen, sources


def _choose_stack(
    found: Mapping[str, "_Layer"], shapes: Shapes, prefixes: Sequence[str], spec: RecurrentSpec | None
) -> Match:
    """The spec of a stack of layers under these prefixes, and the names of its arrays."""
    if len({*prefixes}) != len(prefixes):
        raise ArgumentError(f"prefix: given {list(prefixes)!r}, expected each layer once")
    specs: list[RecurrentSpec] = []
    sources: dict[str, str] = {}
    for prefix in prefixes:
        own = found[prefix]
        try:
            specs.append(_layer_spec(own, shapes, None if spec is None else _part(spec, own.spec(shapes))))
        except UnirnnError as error:
            raise type(error)(f"prefix {prefix!r}: {error}") from error
        sources |= renumbered(own.sources, sum(below.num_layers for below in specs[:-1]))
    if len(prefixes) > 1:
        _check_between(found, shapes, prefixes)
    whole = stacked_spec(specs, prefixes)
    if spec is not None and not spec.fits(whole):
        raise SpecError(f"spec: given {spec!r}, but the layers under {format_names(map(repr, prefixes))} are {whole!r}")
    return spec or whole, sources


def _part(spec: RecurrentSpec, sizes: RecurrentSpec) -> RecurrentSpec:
    """The spec of a part of a stack: what names and shapes say is the part's own, and the rest the stack's."""
    inferred = {"input_size", "hidden_size", "num_layers", "bias", "bidirectional", "proj_size"}
    own = {name: value for name, value in sizes.to_dict().items() if name in inferred & {*spec.to_dict()}}
    return RecurrentSpec.from_dict({**spec.to_dict(), **own, "dropout": 0.0})


def _check_between(found: Mapping[str, "_Layer"], shapes: Shapes, prefixes: Sequence[str]) -> None:
    """Refuse arrays that seem to belong to other layers between those of a stack: by their order, or by their names."""
    names = list(without_dropped(shapes).values())
    place = {name: position for position, name in enumerate(names)}
    own = [[*found[prefix].sources.values()] for prefix in prefixes]
    between: list[str] = []
    for pair in itertools.pairwise(own):
        spans = sorted([min(place[name] for name in one), max(place[name] for name in one)] for one in pair)
        between += names[spans[0][1] + 1 : spans[1][0]]
    # What tells the prefixes apart: "0" and "1" of "rnns.0.rnn." and "rnns.1.rnn.", at the depth 1.
    parts = [prefix.split(".") for prefix in prefixes]
    depth = next((k for k, same in enumerate(zip(*parts, strict=False)) if len({*same}) > 1), 0)
    holders = {part[depth] for part in parts if len(part) > depth + 2}
    numbers = [int(part[depth]) for part in parts if _NUMBER.fullmatch(part[depth])]
    for name in names:
        *start, holder = name.split(".", depth + 1)[: depth + 1]
        if start != parts[0][:depth]:
            continue
        is_between = _NUMBER.fullmatch(holder) and numbers and min(numbers) < int(holder) < max(numbers)
        if holder in holders or is_between:
            between.append(name)
    known = {name for one in own for name in one}
    between = [name for name in dict.fromkeys(between) if name not in known]
    if between:
        raise ArgumentError(
            f"prefix: besides the layers of the stack there are {format_names(map(repr, between))}, which may belong "
            "between them, and which a stack would leave out; give the whole as spec=unirnn.Sequential(...) with "
            "rename=, or, if they don't, read the layers one by one and join them by unirnn.stack"
        )


def _choose_prefix(found: Mapping[str, "_Layer"], prefix: str | None) -> str:
    """The requested prefix, with or without the dot at its end, or the only one of a whole layer."""
    if prefix is not None and prefix not in found and f"{prefix}." in found:
        return f"{prefix}."
    if prefix is not None and prefix in found:
        return prefix
    return choose_name([key for key, own in found.items() if own.names >= _MATRICES] or found, prefix)


def choose_name(names: Iterable[str], prefix: str | None) -> str:
    """The requested name, or the only one if none is requested; an ArgumentError that lists the names otherwise."""
    known = list(names)
    if prefix in known:
        return prefix
    if prefix is not None:
        raise ArgumentError(f"prefix: given {prefix!r}, expected one of {format_names(map(repr, known))}")
    if len(known) > 1:
        raise ArgumentError(
            f"prefix: given none, but there are several layers; give one of {format_names(map(repr, known))}"
        )
    return known[0]


@dataclass
class _Layer:
    """The arrays that share a prefix: those that hold weights, and others beside them, by the weights' names."""

    sources: dict[str, str] = field(default_factory=dict)
    beside: dict[str, str] = field(default_factory=dict)
    is_cell: bool = True  # the names have no number of a layer
    others: list[str] = field(default_factory=list)  # arrays under its prefix that no layer has

    def spec(self, shapes: Shapes) -> RecurrentSpec:
        """The spec that names and shapes determine."""
        return _infer({weight: tuple(shapes[source]) for weight, source in self.sources.items()})

    @property
    def names(self) -> set[str]:
        """The weights that are there, be it only by what they are computed from."""
        return {*self.sources, *self.beside}


def _by_prefix(shapes: Shapes) -> dict[str, _Layer]:
    """The recurrent layers, and what looks like one, by prefix."""
    found: dict[str, _Layer] = {}
    others: dict[str, str] = {}
    for name, source in without_dropped(shapes).items():
        match = _NAME.fullmatch(name)
        if match is None:
            others[name] = source
            continue
        prefix, weight = match["prefix"], match["weight"] + (match["number"] or "_l0")
        if match["part"].startswith("."):
            prefix = prefix.removesuffix(NESTED)
        own = found.setdefault(prefix, _Layer())
        own.is_cell &= not match["number"]
        if match["part"] or weight in own.sources:
            own.beside[weight] = source
        else:
            own.sources[weight] = source
    for prefix, own in list(found.items()):
        inner = found.get(f"{prefix}module.")
        if inner is not None and not own.sources:  # a wrapper that computes weights of what it wraps
            inner.beside |= own.beside
        if not own.names >= _MATRICES and (not own.sources or own.is_cell):
            del found[prefix]
    for name, source in others.items():
        parent = split_name(name)[0]
        for prefix in {parent, split_name(parent.removesuffix("."))[0]}:
            # Beside a numbered layer without a prefix, they may be a whole model's, from which its names were cut off.
            if prefix in found and (prefix or found[prefix].is_cell) and math.prod(shapes[source]) > 1:
                found[prefix].others.append(source)
    return found


def _layer_spec(own: _Layer, shapes: Shapes, spec: RecurrentSpec | None = None) -> RecurrentSpec:
    """The spec of one layer, inferred from its names and shapes if it is not given."""
    check_nothing_beside(own.beside, own.sources, " of the mapping")
    if spec is None and own.others:  # a cell written by hand, or a subclass, with a normalisation in it, for example
        what = "cell" if own.is_cell else "layer"
        raise SpecError(
            f"weights: beside those of a {what} there are {format_names(map(repr, own.others))}, so it may compute "
            f"something else; if it is a plain {what}, give its spec"
        )
    found = spec or own.spec(shapes)
    check_weights(found, {weight: tuple(shapes[source]) for weight, source in own.sources.items()})
    return found


def _check_nonlinearity(found: RecurrentSpec) -> None:
    """Refuse an RNN that was inferred; a SpecError says what to give."""
    if isinstance(found, RNNSpec):
        raise SpecError(
            f"weights: they are those of {found!r}, but whether it is tanh or relu does not follow from names and "
            f"shapes; give as spec {found!r} or {replace(found, nonlinearity='relu')!r}"
        )


def _infer(shapes: Shapes) -> RecurrentSpec:
    """The spec of one layer, from the shapes of its first weights and from all names."""
    w_ih, w_hh = (shapes.get(name, ()) for name in ("weight_ih_l0", "weight_hh_l0"))
    w_hr = shapes.get("weight_hr_l0")
    if len(w_ih) != 2 or len(w_hh) != 2 or (w_hr is not None and len(w_hr) != 2):
        given = format_names(f"{name} {shape}" for name, shape in shapes.items())
        raise SpecError(f"weights: given {given}; expected weight_ih_l0 and weight_hh_l0 of two axes")
    rows, hidden_size = w_hh[0], w_hh[1] if w_hr is None else w_hr[1]
    cls = _BY_GATES.get(rows // hidden_size) if hidden_size and rows % hidden_size == 0 else None
    if cls is None:
        raise SpecError(
            f"weights: weight_hh_l0 has {rows} rows for a hidden size of {hidden_size}; expected as many (RNN), "
            "3 times (GRU) or 4 times as many (LSTM)"
        )
    arguments: dict[str, object] = {
        "kind": cls.kind,
        "input_size": w_ih[1],
        "hidden_size": hidden_size,
        # Counted, so that a gap between the numbers is reported as missing names.
        "num_layers": sum(re.fullmatch(r"weight_ih_l\d+", name) is not None for name in shapes),
        "bias": any(name.startswith("bias") for name in shapes),
        "bidirectional": any(name.endswith("_reverse") for name in shapes),
    }
    if w_hr is not None:
        arguments["proj_size"] = w_hr[0]
    return RecurrentSpec.from_dict(arguments)
