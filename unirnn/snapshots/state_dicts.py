"""State dicts: finding recurrent layers, or the weights of a given model, among the names and shapes of arrays.

A recurrent layer is a set of names that share a prefix and end as torch's and MindSpore's do:
``encoder.lstm.weight_ih_l0``, or ``decoder.cell.weight_ih`` for a cell, which is a layer of one step. The names and
shapes determine the sizes, the layers, the directions and the biases, and the number of gates determines the cell. They
do not determine whether an RNN is tanh or relu. Nor do they determine ``batch_first`` and ``dropout``, which are taken
to be False and 0. A GRU under these names is the one of torch and MindSpore, with ``reset_after=True``.

Of a model, names and shapes determine too little, so its spec is given. Its weights are looked up by their names, and
by those that MindSpore gives them.

Some weights are computed at each call from others: by weight normalisation, by pruning, by weight dropping. The names
beside a weight show it: ``weight_hh_l0_g``, ``weight_hh_l0_mask``. Such a weight is an error, but for one case: where
weights are dropped at random in training, as in AWD-LSTM, ``weight_hh_l0_raw`` is the trained weight, and
``weight_hh_l0`` the copy of the last step. The raw one is taken.
"""

import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from unirnn.contract.weights import check_weights, format_names
from unirnn.errors import ArgumentError, ShapeError, SpecError, UnirnnError
from unirnn.snapshots.stacking import renumbered, stacked_spec
from unirnn.specs import GRUSpec, LSTMSpec, ModelSpec, RecurrentSpec, RNNSpec, Spec

__all__ = [
    "Match",
    "Rename",
    "check_derived",
    "choose_layer",
    "choose_name",
    "choose_weights",
    "find_layers",
    "mindspore_names",
    "mismatch",
    "renamed",
    "without_dropped",
]

Shapes = Mapping[str, tuple[int, ...]]
Rename = Mapping[str, str | None]
"""New beginnings of names by the old ones; None leaves the arrays out."""

Match = tuple[RecurrentSpec, dict[str, str]]
"""The spec of a layer, and for each name of `Spec.weight_shapes` the name of the array that holds it."""

# A weight of a layer or, without a number, of a cell; or an array beside it, from which it may be computed.
_NAME = re.compile(
    r"(?P<prefix>.*)(?P<weight>weight_(?:ih|hh|hr)|bias_(?:ih|hh))(?P<number>(?:_l[0-9]+(?:_reverse)?)?)"
    r"(?P<part>(?:[._].*)?)",
    re.DOTALL,
)
_RAW = re.compile(r"(?P<layer>(?:.*\.)?)(?P<weight>[^.]*(?:weight|bias)[^.]*)_raw", re.DOTALL)
_NUMBER = re.compile("[0-9]{1,9}")
_NESTED = "parametrizations."  # where torch keeps what a weight is computed from
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


def choose_weights(
    spec: Spec, shapes: Shapes, floating: Iterable[str], *, prefix: str | None = None, rename: Rename | None = None
) -> dict[str, str]:
    """Find the weights of a model, or of one layer, among the names of arrays.

    Parameters
    ----------
    spec
        The spec of the model.
    shapes
        The shape of every array by its name.
    floating
        The names of the arrays of floats. Others, such as torch's ``num_batches_tracked``, may be left over.
    prefix
        The beginning of the names of the model's arrays, with or without the dot at its end. Other arrays do not count.
    rename
        New beginnings of names by the old ones, of which the longest counts; None leaves the arrays out.

    Returns
    -------
    dict
        For each name of `Spec.weight_shapes`, the name of the array that holds it. If the weight of a tied layer is
        there too, also that by its name.

    Raises
    ------
    ArgumentError
        If weights are missing or arrays are left over, or two arrays get the same name, or no name begins as
        ``rename`` says.
    ShapeError
        If an array has another shape than the weight.
    SpecError
        If a weight is there only by its parametrization.

    Examples
    --------
    >>> import unirnn
    >>> shapes = {"fc.weight": (2, 3), "fc.bias": (2,)}
    >>> model = unirnn.Sequential(head=unirnn.LinearSpec(3, 2))
    >>> choose_weights(model, shapes, shapes, rename={"fc.": "head."})
    {'head.weight': 'fc.weight', 'head.bias': 'fc.bias'}
    """
    spec.check_complete()
    arrays = without_dropped(shapes)
    sources = {name: arrays[held] for name, held in renamed(arrays, prefix, rename).items()}
    expected = spec.weight_shapes()
    tied = spec.tied() if isinstance(spec, ModelSpec) else {}
    names = mindspore_names(spec)
    found: dict[str, str] = {}
    for name in (*expected, *tied):
        known = next((spelling for spelling in (name, names.get(name)) if spelling in sources), None)
        if known is not None:
            found[name] = sources.pop(known)
    for name, other in tied.items():  # a file that stores shared arrays once may have either of the names
        if name in found:
            found.setdefault(other, found[name])
    missing = [name for name in expected if name not in found]
    floats = {*floating}
    left_over = {
        name: tuple(shapes[source])
        for name, source in sources.items()
        if source in floats and not name.endswith("num_batches_tracked")
    }
    if missing or left_over:
        check_derived(missing, expected, left_over)
        begin = _beginning(shapes, prefix)
        given_names = {name: sources[name].removeprefix(begin) for name in left_over}
        raise ArgumentError(mismatch("the spec", expected, missing, left_over, given_names))
    for name, source in found.items():
        given, shape = tuple(shapes[source]), expected[tied.get(name, name)]
        # MindSpore's convolutions over time have an axis of size 1 before the last.
        if given != shape and (len(shape) != 3 or given != (*shape[:2], 1, shape[2])):
            raise ShapeError(f"weights[{source!r}]: given shape {given}, expected {shape}")
    return found


_MINDSPORE = {
    "BatchNorm": {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    },
    "Embedding": {"weight": "embedding_table"},
    "LayerNorm": {"weight": "gamma", "bias": "beta"},
}
"""MindSpore's names of the weights of layers, where they differ from torch's."""


def mindspore_names(spec: Spec) -> dict[str, str]:
    """The names that MindSpore's own layers give the weights of a model, where they are other than torch's.

    Examples
    --------
    >>> import unirnn
    >>> mindspore_names(unirnn.Sequential(embedding=unirnn.EmbeddingSpec(5, 4), head=unirnn.LinearSpec(4, 2)))
    {'embedding.weight': 'embedding.embedding_table'}
    """
    return {
        f"{layer}.{weight}" if layer else weight: f"{layer}.{spelling}" if layer else spelling
        for layer, leaf in spec.leaves().items()
        for weight, spelling in _MINDSPORE.get(leaf.kind, {}).items()
    }


def _beginning(names: Iterable[str], prefix: str | None) -> str:
    """The beginning of the names of the model's arrays: the prefix, with the dot at its end."""
    begin = prefix or ""
    if begin and not any(name.startswith(begin) and name != begin for name in names):
        raise ArgumentError(
            f"prefix: given {prefix!r}, expected the beginning of a name; given {format_names(map(repr, names))}"
        )
    if begin and not begin.endswith(".") and any(name.startswith(f"{begin}.") for name in names):
        begin += "."
    return begin


def renamed(names: Iterable[str], prefix: str | None, rename: Rename | None) -> dict[str, str]:
    """The names of arrays by their new names.

    Parameters
    ----------
    names
        The names.
    prefix
        What they begin with; it is cut off, and other names are left out.
    rename
        New beginnings of names by the old ones, of which the longest counts; None leaves the arrays out.

    Raises
    ------
    ArgumentError
        If no name begins with the prefix, or with one of the old beginnings, or two arrays get the same name.

    Examples
    --------
    >>> renamed(["net.fc.weight", "net.fc.bias"], "net.", {"fc.": "head."})
    {'head.weight': 'net.fc.weight', 'head.bias': 'net.fc.bias'}
    """
    begin, rename = _beginning(names, prefix), rename or {}
    inner = {name[len(begin) :]: name for name in names if name.startswith(begin)}
    for old in rename:
        if not any(name.startswith(old) for name in inner):
            where = f" without the prefix {begin!r}" if begin else ""
            known = format_names(map(repr, inner)) or "none"
            raise ArgumentError(f"rename: given {old!r}, expected the beginning of a name{where}; given {known}")
    found: dict[str, str] = {}
    for name, source in inner.items():
        beginnings = [old for old in rename if name.startswith(old)]
        if beginnings:
            old = max(beginnings, key=len)
            new = rename[old]
            if new is None:
                continue
            name = new + name[len(old) :]
        if name in found:
            raise ArgumentError(f"rename: {found[name]!r} and {source!r} are both {name!r} then, expected one of them")
        found[name] = source
    return found


def check_derived(missing: Iterable[str], expected: Iterable[str], left_over: Iterable[str]) -> None:
    """Refuse weights that are computed from arrays that are left over.

    Parameters
    ----------
    missing
        The names of weights that no array was found for.
    expected
        The names of all weights.
    left_over
        The names of the arrays that are no weights.

    Raises
    ------
    SpecError
        If there are such weights; it names them.
    """
    without, known = {*missing}, {*expected}
    parts: dict[str, str] = {}
    for name in left_over:
        layer, end = _split(name)
        if _NESTED in layer:  # "layer.parametrizations.weight.original0"
            layer, _, end = name.rpartition(_NESTED)
            weights = [layer + end.partition(".")[0]]
        else:
            pieces = end.split("_")[:6]  # no name of a weight has more
            weights = [layer + "_".join(pieces[:k]) for k in range(1, len(pieces))]
        parts.update((weight, name) for weight in weights if weight in known)
    absent = [weight for weight in parts if weight in without]
    if absent:
        raise SpecError(_parametrization(absent))
    if parts:
        raise SpecError(_derived(parts, ", by rename={...: None},"))


def mismatch(
    owner: str, expected: Shapes, missing: list[str], left_over: Shapes, given_names: Mapping[str, str]
) -> str:
    """The message that says what is missing and what is left over, and how it might be renamed.

    Parameters
    ----------
    owner, expected
        What has the weights, such as ``"the spec"``, and their shapes by name.
    missing
        Those that no array was found for.
    left_over
        The shapes of arrays that are no weights, by their new names.
    given_names
        By these names the old ones, which ``rename`` takes.
    """
    wrong = [
        f"{what} {format_names(names)}"
        for what, names in (("missing", missing), ("left over", given_names.values()))
        if names
    ]
    hints: dict[str, str | None] = {}
    taken: dict[str, str] = {}
    free = dict(left_over)
    for name in missing:
        layer, end = _split(name)
        fitting = [found for found in free if free[found] == expected[name]]
        # In the layer that is taken for this one already; else in a layer with such a weight; else the closest name.
        alike = [found for found in fitting if _split(found)[1] == end and bool(_split(found)[0]) == bool(layer)]
        close = [found for found in alike if taken.get(_split(found)[0]) == layer]
        close = (
            close or difflib.get_close_matches(name, alike, 1, cutoff=0) or difflib.get_close_matches(name, fitting, 1)
        )
        if close:
            del free[close[0]]
            given, given_end = _split(given_names[close[0]])
            if close[0] in alike and layer:
                taken[_split(close[0])[0]] = layer
            hints |= {given: layer} if given and given_end == end and layer else {given_names[close[0]]: name}
    if not missing:
        hints = dict.fromkeys(given_names.values())
    shown = ", ".join(f"{old!r}: {new!r}" for old, new in list(hints.items())[:8])
    advice = ""
    if hints:
        advice = f"; perhaps rename={{{shown}}}" if missing else f"; rename={{{shown}}} leaves them out"
    return f"weights: {'; '.join(wrong)}{advice}; {owner} has {format_names(expected) or 'no weights'}"


def _split(name: str) -> tuple[str, str]:
    """The layer of a weight, with its dot, and the rest of the name."""
    layer, dot, end = name.rpartition(".")
    return layer + dot, end


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


def without_dropped(names: Iterable[str]) -> dict[str, str]:
    """The arrays by name, where a raw weight has the place of the copy that was dropped out last.

    AWD-LSTM and others have the raw weight beside the copy, fastai one level further up: ``0.rnns.0.weight_hh_l0_raw``
    beside ``0.rnns.0.module.weight_hh_l0``.

    Examples
    --------
    >>> without_dropped(["rnn.weight_hh_l0", "rnn.weight_hh_l0_raw"])
    {'rnn.weight_hh_l0': 'rnn.weight_hh_l0_raw'}
    """
    given = list(names)
    layers = {_split(name)[0] for name in given}
    weights: dict[str, str] = {}  # of the raw ones, by their names
    for name in given:
        match = _RAW.fullmatch(name)
        if match is not None:
            inner = f"{match['layer']}module."
            weights[name] = (inner if inner in layers else match["layer"]) + match["weight"]
    dropped = {*weights.values()}
    return {weights.get(name, name): name for name in given if name not in dropped}


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
            prefix = prefix.removesuffix(_NESTED)
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
        parent = _split(name)[0]
        for prefix in {parent, _split(parent.removesuffix("."))[0]}:
            # Beside a numbered layer without a prefix, they may be a whole model's, from which its names were cut off.
            if prefix in found and (prefix or found[prefix].is_cell) and math.prod(shapes[source]) > 1:
                found[prefix].others.append(source)
    return found


def _layer_spec(own: _Layer, shapes: Shapes, spec: RecurrentSpec | None = None) -> RecurrentSpec:
    """The spec of one layer, inferred from its names and shapes if it is not given."""
    absent = [weight for weight in own.beside if weight not in own.sources]
    if absent:
        raise SpecError(_parametrization(absent))
    if own.beside:
        raise SpecError(_derived(own.beside, " of the mapping"))
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


def _parametrization(names: Iterable[str]) -> str:
    return (
        f"weights: given a parametrization of {format_names(names)}, expected the weight itself; remove it first by "
        "torch.nn.utils.parametrize.remove_parametrizations, or by torch.nn.utils.remove_weight_norm"
    )


def _derived(beside: Mapping[str, str], how: str) -> str:
    """Why weights with other arrays beside them are refused."""
    pairs = format_names(f"{array!r} beside {weight}" for weight, array in beside.items())
    return (
        f"weights: given {pairs}, so the weight may be computed from it at each call; save the weight alone, after "
        "torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.prune.remove; or leave the other "
        f"out{how} if it has no part in the layer"
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
