"""State dicts: finding recurrent layers, or the weights of a given model, among the names and shapes of arrays.

A recurrent layer is a set of names that share a prefix and end as torch's and MindSpore's do:
``encoder.lstm.weight_ih_l0``. The names and shapes determine the sizes, the layers, the directions and the biases, and
the number of gates determines the cell. They do not determine whether an RNN is tanh or relu. Nor do they determine
``batch_first`` and ``dropout``, which are taken to be False and 0. A GRU under these names is the one of torch and
MindSpore, with ``reset_after=True``.

Of a model, names and shapes determine too little, so its spec is given. Its weights are looked up by their names, and
by those that MindSpore gives them.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from unirnn.contract.weights import check_weights, format_names
from unirnn.errors import ArgumentError, ShapeError, SpecError, UnirnnError
from unirnn.specs import GRUSpec, LSTMSpec, ModelSpec, RecurrentSpec, RNNSpec, Spec

__all__ = [
    "Rename",
    "check_types",
    "choose_layer",
    "choose_name",
    "choose_weights",
    "find_layers",
    "mismatch",
    "renamed",
]

Shapes = Mapping[str, tuple[int, ...]]
Rename = Mapping[str, str | None]
"""New beginnings of names by the old ones; None leaves the arrays out."""

# A weight; or a parameter from which torch computes a weight at each call (weight_norm, spectral_norm, pruning).
_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<nested>parametrizations\.)?(?P<name>(?:weight_(?:ih|hh|hr)|bias_(?:ih|hh))_l\d+(?:_reverse)?)"
    r"(?P<part>(?(nested)\.original\d*|(?:_g|_v|_orig)?))",
    re.DOTALL,
)
_PARAMETRIZATION = re.compile(
    r"(?P<layer>(?:.*\.)?)(?:parametrizations\.(?P<nested>)|)(?P<weight>[^.]+?)(?(nested)\.original\d*|(?:_g|_v|_orig))",
    re.DOTALL,
)
_PARAMETRIZED = (-1,)  # stands for the shape of such a weight
_BY_GATES: dict[int, type[RecurrentSpec]] = {len(cls.gates): cls for cls in (RNNSpec, GRUSpec, LSTMSpec)}


def find_layers(shapes: Shapes) -> dict[str, RecurrentSpec | UnirnnError]:
    """The recurrent layers among the names of arrays, by their prefixes.

    Parameters
    ----------
    shapes
        The shape of every array by its name; names that do not belong to recurrent layers are ignored.

    Returns
    -------
    dict
        The spec by prefix, or the error that says why there is none.

    Examples
    --------
    >>> find_layers({"head.weight": (2, 4), "rnn.weight_ih_l0": (12, 3), "rnn.weight_hh_l0": (12, 4)})
    {'rnn.': GRUSpec(3, 4, bias=False)}
    """
    found: dict[str, RecurrentSpec | UnirnnError] = {}
    for prefix, own in _by_prefix(shapes).items():
        try:
            found[prefix] = _layer_spec(own)
        except UnirnnError as error:
            found[prefix] = error
    return found


def check_types(prefix: str | None, spec: Spec | None, rename: Rename | None = None) -> None:
    """Check the types of the arguments that choose a layer or a model; an ArgumentError if they are wrong."""
    if not isinstance(spec, Spec | None) or not isinstance(prefix, str | None):
        raise ArgumentError(
            f"spec, prefix: given {spec!r}, {prefix!r}, expected a spec such as GRUSpec(3, 4), and a str"
        )
    if rename is None:
        return
    if not isinstance(rename, Mapping) or not all(
        isinstance(old, str) and isinstance(new, str | None) for old, new in rename.items()
    ):
        raise ArgumentError(f"rename: given {rename!r}, expected new beginnings of names by the old ones")
    if spec is None or isinstance(spec, RecurrentSpec):
        given = "without a spec" if spec is None else f"with {spec!r}"
        raise ArgumentError(f"rename: given {given}, expected a model as spec; a recurrent layer is chosen by prefix")


def choose_layer(
    shapes: Shapes, *, prefix: str | None = None, spec: RecurrentSpec | None = None
) -> tuple[str, RecurrentSpec]:
    """Choose one recurrent layer among the names of arrays, and find its spec.

    Parameters
    ----------
    shapes
        The shape of every array by its name.
    prefix
        The beginning of the layer's names, with or without the dot at its end. If it is None, there must be only one
        layer; prefixes without the two matrices that every layer has do not count.
    spec
        The spec of the layer; None if names and shapes determine it.

    Returns
    -------
    prefix
        What stands before each name of `Spec.weight_shapes`.
    spec
        The spec of the layer.

    Raises
    ------
    ArgumentError
        If there is no layer under the prefix, or none at all, or several and no prefix; or if the given spec has other
        names.
    ShapeError
        If the given spec has other shapes.
    SpecError
        If the names and shapes do not make up a layer; or if it is an RNN, whose nonlinearity they do not show.

    Examples
    --------
    >>> choose_layer({"rnn.weight_ih_l0": (12, 3), "rnn.weight_hh_l0": (12, 4)})
    ('rnn.', GRUSpec(3, 4, bias=False))
    """
    found = _by_prefix(shapes)
    if not found:
        raise ArgumentError(
            "weights: given no recurrent layer, expected names such as 'weight_ih_l0' of arrays of floats; given "
            + (format_names(map(repr, shapes)) or "none")
        )
    likely = [key for key, own in found.items() if own.keys() >= {"weight_ih_l0", "weight_hh_l0"}]
    if prefix is not None and prefix not in found and f"{prefix}." in found:
        prefix = f"{prefix}."
    elif prefix not in found:
        prefix = choose_name(likely or found, prefix)
    return prefix, _layer_spec(found[prefix], spec)


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
        If weights are missing or arrays are left over, or two arrays get the same name.
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
    sources = renamed(shapes, prefix, rename)
    expected = spec.weight_shapes()
    tied = spec.tied() if isinstance(spec, ModelSpec) else {}
    names = _spellings(spec)
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
        _check_parametrized(missing, left_over)
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
"""What MindSpore calls the weights of layers, where it does not call them as torch does."""


def _spellings(spec: Spec) -> dict[str, str]:
    """MindSpore's names of a model's weights, where they differ."""
    return {
        f"{layer}.{weight}" if layer else weight: f"{layer}.{spelling}" if layer else spelling
        for layer, leaf in spec.leaves().items()
        for weight, spelling in _MINDSPORE.get(leaf.kind, {}).items()
    }


def _beginning(names: Iterable[str], prefix: str | None) -> str:
    """What the names of the model's arrays begin with: the prefix, with the dot at its end."""
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
        If no name begins with the prefix, or two arrays get the same name.

    Examples
    --------
    >>> renamed(["net.fc.weight", "net.fc.bias"], "net.", {"fc.": "head."})
    {'head.weight': 'net.fc.weight', 'head.bias': 'net.fc.bias'}
    """
    begin = _beginning(names, prefix)
    longest = sorted(rename or (), key=len, reverse=True)
    found: dict[str, str] = {}
    for source in names:
        if not source.startswith(begin):
            continue
        name: str | None = source[len(begin) :]
        old = next((old for old in longest if name is not None and name.startswith(old)), None)
        if rename is not None and old is not None and name is not None:
            new = rename[old]
            name = None if new is None else new + name[len(old) :]
        if name is None:
            continue
        if name in found:
            raise ArgumentError(f"rename: {found[name]!r} and {source!r} are both {name!r} then, expected one of them")
        found[name] = source
    return found


def _check_parametrized(missing: list[str], left_over: Iterable[str]) -> None:
    """Refuse arrays from which torch computes the weights that are missing."""
    parts = {}
    for name in left_over:
        match = _PARAMETRIZATION.fullmatch(name)
        if match is not None and match["layer"] + match["weight"] in missing:
            parts[match["layer"] + match["weight"]] = name
    if parts:
        raise SpecError(_parametrization(parts))


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


def _by_prefix(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    """The shapes by prefix and by the rest of the name."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        match = _NAME.fullmatch(name)
        if match is not None:
            own = found.setdefault(match["prefix"], {})
            own[match["name"]] = tuple(shape) if not match["part"] else own.get(match["name"], _PARAMETRIZED)
    return found


def _layer_spec(shapes: Shapes, spec: RecurrentSpec | None = None) -> RecurrentSpec:
    """The spec of one layer, inferred from its names and shapes if it is not given."""
    parametrized = [name for name, shape in shapes.items() if shape == _PARAMETRIZED]
    if parametrized:
        raise SpecError(_parametrization(parametrized))
    found = spec or _infer(shapes)
    check_weights(found, shapes)
    if spec is None and isinstance(found, RNNSpec):
        raise SpecError(
            f"weights: they are those of {found!r}, but whether it is tanh or relu does not follow from names and "
            f"shapes; give as spec {found!r} or {replace(found, nonlinearity='relu')!r}"
        )
    return found


def _parametrization(names: Iterable[str]) -> str:
    return (
        f"weights: given a parametrization of {format_names(names)}, expected the weight itself; remove it first by "
        "torch.nn.utils.parametrize.remove_parametrizations, or by torch.nn.utils.remove_weight_norm"
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
