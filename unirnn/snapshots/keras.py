"""Keras 3's recurrent layers, on whatever backend Keras runs: what they are, their weights, and writing them.

The layers are told by their classes' names, and arrays come from their variables and go through ``set_weights``, so
Keras is not imported. ``dropout`` and ``recurrent_dropout`` are no part of a spec: they drop inputs
and states while training, where a spec's ``dropout`` is between layers.
"""

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from unirnn import registry
from unirnn.contract.weights import exactly
from unirnn.errors import ArgumentError, SpecError
from unirnn.snapshots import layouts
from unirnn.specs import RecurrentSpec

__all__ = ["name", "read", "write"]

Arrays = Mapping[str, NDArray[Any]]

_CELLS = {"SimpleRNN": "RNN", "GRU": "GRU", "LSTM": "LSTM"}


name = "keras"
"""Of the framework."""


def read(module: Any) -> tuple[RecurrentSpec, dict[str, NDArray[Any]]] | None:
    """Spec and weights of a layer; None if it is no recurrent one.

    Raises
    ------
    SpecError
        If it computes what no spec describes.
    ArgumentError
        If it has no weights yet.
    """
    spec = _spec(module)
    if spec is None:
        return None
    # Not by `get_weights`, whose way of reading variables NumPy 2 warns of.
    arrays = (registry.to_numpy(variable.value) for variable in module.weights)
    return spec, layouts.of("keras", spec, dict(zip(layouts.shapes("keras", spec), arrays, strict=True)))


def write(module: Any, weights: Arrays) -> None:
    """Replace a layer's weights; they are those of the spec that `read` gives."""
    spec = _spec(module)
    assert spec is not None
    dtypes = (variable.dtype for variable in module.weights)
    module.set_weights(list(exactly(layouts.to("keras", spec, weights), dtypes).values()))


def _spec(module: Any) -> RecurrentSpec | None:
    """What a layer is."""
    if _kind(module) != "Bidirectional":
        spec = _direction(module)
        if spec is None:
            return None
        if module.go_backwards:
            raise SpecError(f"keras: {module.name}: given go_backwards=True, expected a layer that runs forward")
    else:
        if module.merge_mode != "concat":
            raise SpecError(f"keras: {module.name}: given merge_mode={module.merge_mode!r}, expected 'concat'")
        spec, backward = _direction(module.forward_layer), _direction(module.backward_layer)
        if spec is None or spec != backward or module.forward_layer.go_backwards:
            raise SpecError(
                f"keras: {module.name}: given directions of {spec} and {backward}, expected the same kind of layer, "
                "the first running forward"
            )
        spec = RecurrentSpec.from_dict({**spec.to_dict(), "bidirectional": True})
    return spec


def _kind(module: Any) -> str | None:
    """The name of the class of Keras' recurrent layers that it is an instance of."""
    names = [kind.__name__ for kind in type(module).__mro__ if kind.__module__.startswith("keras.")]
    return next((name for name in names if name in (*_CELLS, "Bidirectional")), None)


def _direction(module: Any) -> RecurrentSpec | None:
    """What one layer in one direction is."""
    cell = _CELLS.get(_kind(module) or "")
    if cell is None:
        return None
    if not module.built:
        raise ArgumentError(f"keras: {module.name}: given a layer without weights; call it, or its build, first")
    arguments = {
        "kind": cell,
        "input_size": module.cell.kernel.shape[0],
        "hidden_size": module.units,
        "bias": module.use_bias,
        "batch_first": True,
    }
    _check_activation(module, "activation", ("tanh", "relu") if cell == "RNN" else ("tanh",))
    if cell == "RNN":
        arguments["nonlinearity"] = module.activation.__name__
    else:
        _check_activation(module, "recurrent_activation", ("sigmoid",))
    if cell == "GRU":
        arguments["reset_after"] = module.reset_after
    return RecurrentSpec.from_dict(arguments)


def _check_activation(module: Any, name: str, known: tuple[str, ...]) -> None:
    function = getattr(module, name)
    given = getattr(function, "__name__", None)
    # One of the same name that is not Keras' own may be any function.
    if given not in known or not function.__module__.startswith("keras."):
        expected = " or ".join(map(repr, known))
        raise SpecError(f"keras: {module.name}: given {name}={function!r}, expected Keras' own {expected}")
