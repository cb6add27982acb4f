"""State dicts: finding recurrent layers among plain names and shapes, and what they are.

A layer is a set of names that share a prefix and end as torch's and MindSpore's do, ``encoder.lstm.weight_ih_l0``.
Names and shapes determine the sizes, layers, directions and biases; the number of gates determines the cell. They do
not determine whether an RNN is tanh or relu, nor ``batch_first`` and ``dropout``, which are taken as False and 0; a
GRU under these names is the one of torch and MindSpore, ``reset_after=True``.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from unirnn.contract.weights import check, listed
from unirnn.errors import ArgumentError, SpecError, UnirnnError
from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

__all__ = ["check_types", "choose", "layers", "one_of"]

Shapes = Mapping[str, tuple[int, ...]]

# A weight, or a part of one that torch makes anew from its parts at each call (weight_norm, spectral_norm, pruning).
_NAME = re.compile(
    r"(?P<prefix>.*?)(?P<held>parametrizations\.)?(?P<name>(?:weight_(?:ih|hh|hr)|bias_(?:ih|hh))_l\d+(?:_reverse)?)"
    r"(?P<part>(?(held)\.original\d*|(?:_g|_v|_orig)?))",
    re.DOTALL,
)
_IN_PARTS = (-1,)  # the shape of no array
_CELLS: dict[int, type[RecurrentSpec]] = {1: RNNSpec, 3: GRUSpec, 4: LSTMSpec}


def layers(shapes: Shapes) -> dict[str, RecurrentSpec | UnirnnError]:
    """The recurrent layers among names, by their prefixes.

    Parameters
    ----------
    shapes
        Every array's shape by its name; other names than those of recurrent layers are passed over.

    Returns
    -------
    dict
        By prefix, the spec, or the error that says why there is none.

    Examples
    --------
    >>> layers({"head.weight": (2, 4), "rnn.weight_ih_l0": (12, 3), "rnn.weight_hh_l0": (12, 4)})
    {'rnn.': GRUSpec(3, 4, bias=False)}
    """
    found: dict[str, RecurrentSpec | UnirnnError] = {}
    for prefix, own in _by_prefix(shapes).items():
        try:
            found[prefix] = _spec_of(own)
        except UnirnnError as error:
            found[prefix] = error
    return found


def check_types(prefix: str | None, spec: RecurrentSpec | None) -> None:
    """Check the types of what chooses a layer; an ArgumentError if they are others."""
    if not isinstance(spec, RecurrentSpec | None) or not isinstance(prefix, str | None):
        raise ArgumentError(
            f"spec, prefix: given {spec!r}, {prefix!r}, expected a spec such as GRUSpec(3, 4), and a str"
        )


def choose(
    shapes: Shapes, *, prefix: str | None = None, spec: RecurrentSpec | None = None
) -> tuple[str, RecurrentSpec]:
    """Choose one recurrent layer among names, and find its spec.

    Parameters
    ----------
    shapes
        Every array's shape by its name.
    prefix
        What the layer's names begin with, with or without the dot at its end. None: there is only one layer; prefixes
        of less than the two matrices that every layer has are passed over.
    spec
        What the layer is; None: what names and shapes determine.

    Returns
    -------
    prefix
        Before each name of `Spec.weight_shapes`.
    spec
        Whose names and shapes they are.

    Raises
    ------
    ArgumentError
        If there is no layer under the prefix, or none at all, or several and no prefix; or if a given spec has other
        names.
    ShapeError
        If a given spec has other shapes.
    SpecError
        If names and shapes are not those of a layer, or of an RNN, whose nonlinearity does not follow from them.

    Examples
    --------
    >>> choose({"rnn.weight_ih_l0": (12, 3), "rnn.weight_hh_l0": (12, 4)})
    ('rnn.', GRUSpec(3, 4, bias=False))
    """
    found = _by_prefix(shapes)
    if not found:
        raise ArgumentError(
            "weights: given no recurrent layer, expected names such as 'weight_ih_l0' of arrays of floats; given "
            + (listed(map(repr, shapes)) or "none")
        )
    likely = [key for key, own in found.items() if own.keys() >= {"weight_ih_l0", "weight_hh_l0"}]
    if prefix is not None and prefix not in found and f"{prefix}." in found:
        prefix = f"{prefix}."
    elif prefix not in found:
        prefix = one_of(likely or found, prefix)
    return prefix, _spec_of(found[prefix], spec)


def one_of(names: Iterable[str], prefix: str | None) -> str:
    """The name that is asked for, or the only one; an ArgumentError that lists them, if there is none."""
    known = list(names)
    if prefix in known:
        return prefix
    if prefix is not None:
        raise ArgumentError(f"prefix: given {prefix!r}, expected one of {listed(map(repr, known))}")
    if len(known) > 1:
        raise ArgumentError(f"prefix: given none, but there are several layers; give one of {listed(map(repr, known))}")
    return known[0]


def _by_prefix(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    """Names without their prefixes, and shapes."""
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        match = _NAME.fullmatch(name)
        if match is not None:
            own = found.setdefault(match["prefix"], {})
            own[match["name"]] = tuple(shape) if not match["part"] else own.get(match["name"], _IN_PARTS)
    return found


def _spec_of(shapes: Shapes, spec: RecurrentSpec | None = None) -> RecurrentSpec:
    """The spec of one layer, from its names and shapes if it is not given."""
    in_parts = [name for name, shape in shapes.items() if shape == _IN_PARTS]
    if in_parts:
        raise SpecError(
            f"weights: given a parametrization of {listed(in_parts)}, expected the weight itself; first remove it by "
            "torch.nn.utils.parametrize.remove_parametrizations, or torch.nn.utils.remove_weight_norm if it is older"
        )
    found = spec or _infer(shapes)
    check(found, shapes)
    if spec is None and isinstance(found, RNNSpec):
        raise SpecError(
            f"weights: they are those of {found!r}, but whether it is tanh or relu does not follow from names and "
            f"shapes; give as spec {found!r} or {replace(found, nonlinearity='relu')!r}"
        )
    return found


def _infer(shapes: Shapes) -> RecurrentSpec:
    """The spec of one layer from the first layer's shapes, and all names."""
    w_ih, w_hh = (shapes.get(name, ()) for name in ("weight_ih_l0", "weight_hh_l0"))
    w_hr = shapes.get("weight_hr_l0")
    if len(w_ih) != 2 or len(w_hh) != 2 or (w_hr is not None and len(w_hr) != 2):
        given = listed(f"{name} {shape}" for name, shape in shapes.items())
        raise SpecError(f"weights: given {given}; expected weight_ih_l0 and weight_hh_l0 of two axes")
    rows, hidden_size = w_hh[0], w_hh[1] if w_hr is None else w_hr[1]
    cell = _CELLS.get(rows // hidden_size) if hidden_size and rows % hidden_size == 0 else None
    if cell is None:
        raise SpecError(
            f"weights: weight_hh_l0 has {rows} rows for a hidden size of {hidden_size}; expected as many (RNN), "
            "3 times (GRU) or 4 times as many (LSTM)"
        )
    # As many layers as there are first weights: a gap is then a missing name.
    arguments: dict[str, object] = {
        "input_size": w_ih[1],
        "hidden_size": hidden_size,
        "num_layers": sum(re.fullmatch(r"weight_ih_l\d+", name) is not None for name in shapes),
        "bias": any(name.startswith("bias") for name in shapes),
        "bidirectional": any(name.endswith("_reverse") for name in shapes),
    }
    if w_hr is not None:
        arguments["proj_size"] = w_hr[0]
    spec: RecurrentSpec = RecurrentSpec.from_dict({"kind": cell.kind, **arguments})
    return spec
