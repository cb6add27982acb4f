"""Keras 3's recurrent layers, on any of Keras' backends: reading their specs and weights, and writing their weights.

Layers are recognised by the names of their classes. Arrays are read from their variables and written through
``set_weights``. So Keras is not imported. ``dropout`` and ``recurrent_dropout`` are not read: they drop inputs and
states while training, whereas the ``dropout`` of a spec lies between layers.
"""

from dataclasses import replace
from typing import Any

from unirnn import registry
from unirnn.contract.weights import Weights, cast_exact
from unirnn.errors import ArgumentError, SpecError
from unirnn.snapshots import layouts
from unirnn.snapshots._recognition import activation_name, class_name
from unirnn.specs import RecurrentSpec

__all__ = ["name", "read", "write"]

_KINDS = ("SimpleRNN", "GRU", "LSTM")
_CELLS = {"SimpleRNNCell": "RNN", "GRUCell": "GRU", "LSTMCell": "LSTM"}

_COMPUTES = ("__call__", "call", "inner_loop", "get_initial_state")
_CELL_COMPUTES = ("__call__", "call", "get_initial_state")

name = "keras"
"""The name of the framework."""


def read(module: Any) -> tuple[RecurrentSpec, Weights] | None:
    """The spec and the weights of a recurrent layer; None if it is not one.

    Raises
    ------
    SpecError
        If no spec describes what it computes.
    ArgumentError
        If it has no weights yet.
    """
    spec = _spec(module)
    if spec is None:
        return None
    # `get_weights` reads variables in a way that NumPy 2 warns about.
    arrays = (registry.to_numpy(variable.value) for variable in module.weights)
    return spec, layouts.from_framework(name, spec, dict(zip(layouts.shapes(name, spec), arrays, strict=True)))


def write(module: Any, weights: Weights) -> None:
    """Replace the weights of a layer by others of the same spec."""
    spec = _spec(module)
    assert spec is not None
    dtypes = (variable.dtype for variable in module.weights)
    module.set_weights(list(cast_exact(layouts.to_framework(name, spec, weights), dtypes).values()))


def _spec(module: Any) -> RecurrentSpec | None:
    """The spec of a layer; None if it is not recurrent."""
    if class_name(module, "keras", ("Bidirectional",), "__call__", "call") is None:
        spec = _one_direction(module)
        if spec is not None and spec.reverse and module.return_sequences:
            raise SpecError(
                f"keras: {module.name}: given go_backwards=True with return_sequences=True, whose output is in the "
                "order in which it was computed; a spec with reverse=True has it in the order of the input"
            )
        return spec
    if module.merge_mode != "concat":
        raise SpecError(f"keras: {module.name}: given merge_mode={module.merge_mode!r}, expected 'concat'")
    forward, backward = _one_direction(module.forward_layer), _one_direction(module.backward_layer)
    if forward is None or forward.reverse or backward != replace(forward, reverse=True):
        raise SpecError(
            f"keras: {module.name}: given directions of {forward} and {backward}, expected the same kind of layer, "
            "the first running forward"
        )
    return replace(forward, bidirectional=True)


def _one_direction(module: Any) -> RecurrentSpec | None:
    """The spec of a layer in one direction; None if it is not recurrent."""
    if class_name(module, "keras", (*_KINDS, "RNN"), *_COMPUTES) is None:
        return None
    where, cell = f"keras: {module.name}", module.cell
    if not module.built:
        raise ArgumentError(f"{where}: given a layer without weights; call it, or its build, first")
    kind = _CELLS.get(class_name(cell, "keras", tuple(_CELLS), *_CELL_COMPUTES) or "")
    if kind is None:
        raise SpecError(f"{where}: given a cell {type(cell).__name__}, expected one of {', '.join(_CELLS)}")
    arguments = {
        "kind": kind,
        "input_size": cell.kernel.shape[0],
        "hidden_size": cell.units,
        "bias": cell.use_bias,
        "batch_first": True,
        "reverse": module.go_backwards,
    }
    known = ("tanh", "relu") if kind == "RNN" else ("tanh",)
    activation = activation_name(cell, "activation", "keras", known, where)
    if kind == "RNN":
        arguments["nonlinearity"] = activation
    else:
        known = ("sigmoid", "hard_sigmoid")
        arguments["gate_activation"] = activation_name(cell, "recurrent_activation", "keras", known, where)
    if kind == "GRU":
        arguments["reset_after"] = cell.reset_after
    return RecurrentSpec.from_dict(arguments)
