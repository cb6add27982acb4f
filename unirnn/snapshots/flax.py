"""Flax nnx's recurrent layers: reading their specs and weights, and writing their weights.

``nnx.RNN`` runs a cell over the steps, and ``nnx.Bidirectional`` runs two of them. Layers and cells are recognised by
the names of their classes. Arrays are read from and written to their parameters. So Flax is not imported.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from unirnn.contract.weights import Weights, cast_exact
from unirnn.errors import SpecError
from unirnn.snapshots import layouts
from unirnn.snapshots._recognition import activation_name, class_name
from unirnn.specs import RecurrentSpec

__all__ = ["name", "read", "write"]

_KINDS = {"SimpleCell": "RNN", "GRUCell": "GRU", "OptimizedLSTMCell": "LSTM"}

name = "flax"
"""The name of the framework."""


def read(module: Any) -> tuple[RecurrentSpec, Weights] | None:
    """The spec and the weights of a recurrent layer; None if it is not one.

    Raises
    ------
    SpecError
        If no spec describes what it computes.
    """
    directions = _directions(module)
    if directions is None:
        return None
    spec = _spec(module, directions)
    arrays = {key: np.asarray(parameter[...]) for key, parameter in _parameters(directions, spec).items()}
    return spec, layouts.from_framework(name, spec, arrays)


def write(module: Any, weights: Weights) -> None:
    """Replace the weights of a layer by others of the same spec."""
    directions = _directions(module)
    assert directions is not None
    spec = _spec(module, directions)
    parameters = _parameters(directions, spec)
    arrays = cast_exact(layouts.to_framework(name, spec, weights), (p.dtype for p in parameters.values()))
    for key, parameter in parameters.items():
        parameter[...] = arrays[key]


def _directions(module: Any) -> list[Any] | None:
    """The ``nnx.RNN`` of each direction of a layer; None if it is not a recurrent layer."""
    kind = class_name(module, "flax.nnx", ("RNN", "Bidirectional"), "__call__")
    if kind == "Bidirectional":
        return [module.forward_rnn, module.backward_rnn]
    return [module] if kind == "RNN" else None


def _spec(module: Any, directions: list[Any]) -> RecurrentSpec:
    """The spec of a layer."""
    specs = [_cell_spec(direction.cell) for direction in directions]
    if specs[0] != specs[-1]:
        raise SpecError(f"flax: given directions of {specs[0]} and {specs[-1]}, expected the same")
    bidirectional = len(directions) == 2
    if not bidirectional and module.reverse:
        raise SpecError("flax: given an RNN with reverse=True, expected one that runs forward")
    if bidirectional and getattr(module.merge_fn, "__name__", None) != "_concatenate":
        raise SpecError(f"flax: given merge_fn={module.merge_fn!r}, expected Bidirectional's own, which concatenates")
    return replace(specs[0], bidirectional=bidirectional, batch_first=not module.time_major)


def _cell_spec(cell: Any) -> RecurrentSpec:
    """The spec of a cell in one direction."""
    kind = class_name(cell, "flax.nnx", tuple(_KINDS), "__call__")
    if kind is None:
        raise SpecError(f"flax: given a cell {type(cell).__name__}, expected one of {', '.join(_KINDS)}")
    arguments = {"kind": _KINDS[kind], "input_size": cell.in_features, "hidden_size": cell.hidden_features}
    if kind == "SimpleCell":
        arguments["nonlinearity"] = activation_name(cell, "activation_fn", "jax", ("tanh", "relu"), name)
        if cell.residual:
            raise SpecError("flax: given a SimpleCell with residual=True, expected one without")
    else:
        activation_name(cell, "activation_fn", "jax", ("tanh",), name)
        activation_name(cell, "gate_fn", "jax", ("sigmoid",), name)
    return RecurrentSpec.from_dict(arguments)


def _parameters(directions: list[Any], spec: RecurrentSpec) -> dict[str, Any]:
    """The parameters, by the names that `layouts` gives their arrays."""
    found = {}
    for key in layouts.shapes(name, spec):
        path, _, suffix = key.partition("_l0")  # dense_i.kernel, and _reverse or nothing
        part, _, parameter = path.partition(".")
        found[key] = getattr(getattr(directions[1 if suffix else 0].cell, part), parameter)
    return found
