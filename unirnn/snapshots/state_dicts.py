"""State dicts: finding recurrent layers among the names and shapes of arrays, and their specs.

A layer is a set of names that share a prefix and end as torch's and MindSpore's do: ``encoder.lstm.weight_ih_l0``. The
names and shapes determine the sizes, the layers, the directions and the biases, and the number of gates determines the
cell. They do not determine whether an RNN is tanh or relu. Nor do they determine ``batch_first`` and ``dropout``, which
are taken to be False and 0. A GRU under these names is the one of torch and MindSpore, with ``reset_after=True``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from unirnn.contract.weights import check_weights, format_names
from unirnn.errors import ArgumentError, SpecError, UnirnnError
from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

__all__ = ["check_types", "choose_layer", "choose_name", "find_layers"]

Shapes = Mapping[str, tuple[int, ...]]

# A weight; or a parameter from which torch computes a weight at each call (weight_norm, spectral_norm, pruning).
_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<nested>parametrizations\.)?(?P<name>(?:weight_(?:ih|hh|hr)|bias_(?:ih|hh))_l\d+(?:_reverse)?)"
    r"(?P<part>(?(nested)\.original\d*|(?:_g|_v|_orig)?))",
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


def check_types(prefix: str | None, spec: RecurrentSpec | None) -> None:
    """Check the types of the arguments that choose a layer; an ArgumentError if they are wrong."""
    if not isinstance(spec, RecurrentSpec | None) or not isinstance(prefix, str | None):
        raise ArgumentError(
            f"spec, prefix: given {spec!r}, {prefix!r}, expected a spec such as GRUSpec(3, 4), and a str"
        )


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
        raise SpecError(
            f"weights: given a parametrization of {format_names(parametrized)}, expected the weight itself; remove it "
            "first by torch.nn.utils.parametrize.remove_parametrizations, or by torch.nn.utils.remove_weight_norm"
        )
    found = spec or _infer(shapes)
    check_weights(found, shapes)
    if spec is None and isinstance(found, RNNSpec):
        raise SpecError(
            f"weights: they are those of {found!r}, but whether it is tanh or relu does not follow from names and "
            f"shapes; give as spec {found!r} or {replace(found, nonlinearity='relu')!r}"
        )
    return found


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
