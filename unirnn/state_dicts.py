"""State dicts: finding recurrent layers among plain names and shapes, and what they are.

A layer is a set of names that share a prefix and end as torch's and MindSpore's do, ``encoder.lstm.weight_ih_l0``.
Names and shapes determine the sizes, layers, directions and biases; the number of gates determines the cell. They do
not determine whether an RNN is tanh or relu, nor ``batch_first`` and ``dropout``, which are taken as False and 0; a
GRU under these names is the one of torch and MindSpore, ``reset_after=True``.
"""

import re
from collections.abc import Mapping

from .errors import ArgumentError, SpecError, UnirnnError
from .specs import GRUSpec, LSTMSpec, RNNSpec, Spec
from .weights import check

__all__ = ["choose", "layers"]

Shapes = Mapping[str, tuple[int, ...]]

_NAME = re.compile(r"(?P<prefix>.*?)(?P<name>(?:weight_(?:ih|hh|hr)|bias_(?:ih|hh))_l\d+(?:_reverse)?)", re.DOTALL)
_CELLS: dict[int, type[Spec]] = {1: RNNSpec, 3: GRUSpec, 4: LSTMSpec}


def layers(shapes: Shapes) -> dict[str, Spec | UnirnnError]:
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
    found: dict[str, Spec | UnirnnError] = {}
    for prefix, own in _by_prefix(shapes).items():
        try:
            found[prefix] = _infer(own)
        except UnirnnError as error:
            found[prefix] = error
    return found


def choose(shapes: Shapes, *, prefix: str | None = None, spec: Spec | None = None) -> tuple[str, Spec]:
    """Choose one recurrent layer among names, and find its spec.

    Parameters
    ----------
    shapes
        Every array's shape by its name.
    prefix
        What the layer's names begin with, with or without the dot at its end. None: there is only one layer.
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
    listed = ", ".join(map(repr, found)) or "none"
    if prefix is None:
        if not found:
            raise ArgumentError("weights: given no recurrent layer, expected names such as 'weight_ih_l0'")
        if len(found) > 1:
            raise ArgumentError(f"prefix: given none, but there are several layers; give one of {listed}")
        (prefix,) = found
    elif prefix not in found:
        if f"{prefix}." not in found:
            raise ArgumentError(f"prefix: given {prefix!r}, expected one of {listed}")
        prefix = f"{prefix}."
    if spec is None:
        return prefix, _infer(found[prefix])
    check(spec, found[prefix])
    return prefix, spec


def _by_prefix(shapes: Shapes) -> dict[str, dict[str, tuple[int, ...]]]:
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        match = _NAME.fullmatch(name)
        if match is not None:
            found.setdefault(match["prefix"], {})[match["name"]] = tuple(shape)
    return found


def _infer(shapes: Shapes) -> Spec:
    """The spec of one layer from its names and shapes."""
    w_ih, w_hh = (shapes.get(name, ()) for name in ("weight_ih_l0", "weight_hh_l0"))
    w_hr = shapes.get("weight_hr_l0")
    if len(w_ih) != 2 or len(w_hh) != 2 or (w_hr is not None and len(w_hr) != 2):
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
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
    spec = Spec.from_dict({"cell": cell.cell, **arguments})
    check(spec, shapes)
    if isinstance(spec, RNNSpec):
        raise SpecError(
            f"weights: they are those of {spec!r}, but whether it is tanh or relu does not follow from names and "
            "shapes; give spec="
        )
    return spec
