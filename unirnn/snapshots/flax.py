"""Flax nnx's recurrent layers: what they are, their weights, and writing them.

``nnx.RNN`` runs a cell over the steps, and ``nnx.Bidirectional`` two of them. They are told by their classes' names,
and arrays come and go through their parameters, so Flax is not imported.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.contract.weights import exactly
from unirnn.errors import SpecError
from unirnn.snapshots import layouts
from unirnn.specs import RecurrentSpec

__all__ = ["name", "read", "write"]

Arrays = Mapping[str, NDArray[Any]]

_CELLS = {"SimpleCell": "RNN", "GRUCell": "GRU", "OptimizedLSTMCell": "LSTM"}


name = "flax"
"""Of the framework."""


def read(module: Any) -> tuple[RecurrentSpec, dict[str, NDArray[Any]]] | None:
    """Spec and weights of a layer; None if it is no recurrent one.

    Raises
    ------
    SpecError
        If it computes what no spec describes.
    """
    layers = _directions(module)
    if layers is None:
        return None
    spec = _spec(module, layers)
    arrays = {name: np.asarray(parameter[...]) for name, parameter in _parameters(layers, spec).items()}
    return spec, layouts.of("flax", spec, arrays)


def write(module: Any, weights: Arrays) -> None:
    """Replace a layer's weights; they are those of the spec that `read` gives."""
    layers = _directions(module)
    assert layers is not None
    spec = _spec(module, layers)
    parameters = _parameters(layers, spec)
    arrays = exactly(layouts.to("flax", spec, weights), (p.dtype for p in parameters.values()))
    for name, parameter in parameters.items():
        parameter[...] = arrays[name]


def _spec(module: Any, layers: list[Any]) -> RecurrentSpec:
    """What a layer is."""
    specs = [_direction(layer.cell) for layer in layers]
    if specs[0] != specs[-1]:
        raise SpecError(f"flax: given directions of {specs[0]} and {specs[-1]}, expected the same")
    if len(layers) == 1 and module.reverse:
        raise SpecError("flax: given an RNN with reverse=True, expected one that runs forward")
    if len(layers) == 2 and getattr(module.merge_fn, "__name__", None) != "_concatenate":
        raise SpecError(f"flax: given merge_fn={module.merge_fn!r}, expected Bidirectional's own, which concatenates")
    arguments = {"bidirectional": len(layers) == 2, "batch_first": not module.time_major}
    return RecurrentSpec.from_dict({**specs[0].to_dict(), **arguments})


def _directions(module: Any) -> list[Any] | None:
    """The layer's directions, each an ``nnx.RNN``."""
    names = {kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("flax.nnx.")}
    if "Bidirectional" in names:
        return [module.forward_rnn, module.backward_rnn]
    return [module] if "RNN" in names else None


def _direction(cell: Any) -> RecurrentSpec:
    """What one direction is."""
    names = [kind.__name__ for kind in type(cell).__mro__ if kind.__module__.startswith("flax.nnx.")]
    name = next((name for name in names if name in _CELLS), None)
    if name is None:
        raise SpecError(f"flax: given a cell {type(cell).__name__}, expected one of {', '.join(_CELLS)}")
    arguments = {"kind": _CELLS[name], "input_size": cell.in_features, "hidden_size": cell.hidden_features}
    if name == "SimpleCell":
        arguments["nonlinearity"] = _activation(cell, "activation_fn", "tanh", "relu")
        if cell.residual:
            raise SpecError("flax: given a SimpleCell with residual=True, expected one without")
    else:
        _activation(cell, "activation_fn", "tanh")
        _activation(cell, "gate_fn", "sigmoid")
    return RecurrentSpec.from_dict(arguments)


def _activation(cell: Any, name: str, *known: str) -> str:
    function = getattr(cell, name)
    given = getattr(function, "__name__", "")
    # One of the same name that is not JAX' own may be any function.
    if given not in known or not function.__module__.startswith("jax."):
        expected = " or ".join(known)
        raise SpecError(f"flax: given {name}={function!r} in a {type(cell).__name__}, expected JAX' own {expected}")
    return given


def _parameters(layers: list[Any], spec: RecurrentSpec) -> dict[str, Any]:
    """The parameters by the names of `layouts`."""
    found = {}
    for name in layouts.shapes("flax", spec):
        own, _, suffix = name.partition("_l0")
        part, _, which = own.partition(".")
        found[name] = getattr(getattr(layers[1 if suffix else 0].cell, part), which)
    return found
