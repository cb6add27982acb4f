"""Flax's recurrent layers: reading their specs and weights, and writing their weights.

Of Flax nnx, ``nnx.RNN`` runs a cell over the steps, and ``nnx.Bidirectional`` runs two of them. A cell by itself is a
layer of one step. Layers and cells are recognised by the names of their classes. Arrays are read from and written to
their parameters. So Flax is not imported.

The modules of Flax linen have no parameters. Those are in a tree of mappings, in which a cell is a mapping with the
names of its gates: ``{"params": {"LSTMCell_0": {"ii": {"kernel": ...}, ...}}}``. `translate` finds such cells.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unirnn.contract.weights import Array, Weights, cast_exact
from unirnn.errors import SpecError
from unirnn.snapshots import layouts
from unirnn.snapshots._recognition import activation_name, class_name
from unirnn.specs import RecurrentSpec

if TYPE_CHECKING:
    from unirnn.files._contents import StoredArray

__all__ = ["flatten", "name", "read", "translate", "write"]

_KINDS = {"SimpleCell": "RNN", "GRUCell": "GRU", "LSTMCell": "LSTM", "OptimizedLSTMCell": "LSTM"}
_PARTS = {"dense_i": ("ii", "if_", "ig", "io"), "dense_h": ("hi", "hf", "hg", "ho")}
"""The layers of an ``LSTMCell`` that take the place of each of the two layers of other cells."""

name = "flax"
"""The name of the framework."""


def read(module: Any) -> tuple[RecurrentSpec, Weights] | None:
    """The spec and the weights of a recurrent layer or of a cell; None if it is neither.

    Raises
    ------
    SpecError
        If no spec describes what it computes.
    """
    cells = _cells(module)
    if cells is None:
        return None
    spec = _spec(module, cells)
    arrays = {
        key: np.concatenate([np.asarray(parameter[...]) for parameter in parameters], axis=-1)
        for key, parameters in _parameters(cells, spec).items()
    }
    return spec, layouts.from_framework(name, spec, arrays)


def write(module: Any, weights: Weights) -> None:
    """Replace the weights of a layer by others of the same spec."""
    cells = _cells(module)
    assert cells is not None
    spec = _spec(module, cells)
    parameters = _parameters(cells, spec)
    dtypes = (own[0].dtype for own in parameters.values())
    arrays = cast_exact(layouts.to_framework(name, spec, weights), dtypes)
    for key, own in parameters.items():
        for parameter, array in zip(own, np.split(arrays[key], len(own), axis=-1), strict=True):
            parameter[...] = array


def _cells(module: Any) -> list[Any] | None:
    """The cell of each direction of a layer, or a cell itself; None if it is neither."""
    kind = class_name(module, "flax.nnx", ("RNN", "Bidirectional", *_KINDS), "__call__")
    if kind == "Bidirectional":
        directions = [module.forward_rnn, module.backward_rnn]
        for direction in directions:
            if class_name(direction, "flax.nnx", ("RNN",), "__call__") is None:
                raise SpecError(f"flax: given a direction {type(direction).__name__}, expected an RNN")
        return [direction.cell for direction in directions]
    return None if kind is None else [module.cell if kind == "RNN" else module]


def _spec(module: Any, cells: list[Any]) -> RecurrentSpec:
    """The spec of a layer, or of a cell."""
    specs = [_cell_spec(cell) for cell in cells]
    if cells[0] is module:
        return specs[0]
    if specs[0] != specs[-1]:
        raise SpecError(f"flax: given directions of {specs[0]} and {specs[-1]}, expected the same")
    if len(specs) == 2:
        if getattr(module.merge_fn, "__name__", None) != "_concatenate":
            raise SpecError(
                f"flax: given merge_fn={module.merge_fn!r}, expected Bidirectional's own, which concatenates"
            )
        return replace(specs[0], bidirectional=True, batch_first=not module.time_major)
    if module.reverse and not module.keep_order:
        raise SpecError(
            "flax: given an RNN with reverse=True and keep_order=False, whose output is in the order in which it was "
            "computed; a spec with reverse=True has it in the order of the input, as keep_order=True gives it"
        )
    return replace(specs[0], reverse=module.reverse, batch_first=not module.time_major)


def _cell_spec(cell: Any) -> RecurrentSpec:
    """The spec of a cell in one direction."""
    kind = class_name(cell, "flax.nnx", tuple(_KINDS), "__call__", "initialize_carry")
    if kind is None:
        raise SpecError(f"flax: given a cell {type(cell).__name__}, expected one of {', '.join(_KINDS)}")
    if cell.carry_init is not None:  # what the state is before the first step
        activation_name(cell, "carry_init", "jax", ("zeros",), name)
    arguments = {"kind": _KINDS[kind], "input_size": cell.in_features, "hidden_size": cell.hidden_features}
    if kind == "SimpleCell":
        arguments["nonlinearity"] = activation_name(cell, "activation_fn", "jax", ("tanh", "relu"), name)
        if cell.residual:
            raise SpecError("flax: given a SimpleCell with residual=True, expected one without")
    else:
        activation_name(cell, "activation_fn", "jax", ("tanh",), name)
        arguments["gate_activation"] = activation_name(cell, "gate_fn", "jax", ("sigmoid", "hard_sigmoid"), name)
    return RecurrentSpec.from_dict(arguments)


def _parameters(cells: list[Any], spec: RecurrentSpec) -> dict[str, list[Any]]:
    """The parameters, by the names that `layouts` gives their arrays; an ``LSTMCell`` has one for each gate."""
    found = {}
    for key in layouts.shapes(name, spec):
        path, _, suffix = key.partition("_l0")  # dense_i.kernel, and _reverse or nothing
        part, _, parameter = path.partition(".")
        cell = cells[1 if suffix else 0]
        layers = [part] if hasattr(cell, part) else _PARTS[part]
        found[key] = [getattr(getattr(cell, layer), parameter) for layer in layers]
    return found


# ---- trees of parameters -------------------------------------------------------------------------

_TREES: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = (
    (("ii", "if", "ig", "io"), ("hi", "hf", "hg", "ho")),
    (("ir", "iz", "in"), ("hr", "hz", "hn")),
    (("i",), ("h",)),
    (_PARTS["dense_i"], _PARTS["dense_h"]),
    (("dense_i",), ("dense_h",)),
)
"""The layers of each cell for its input and for its state: linen's LSTM, GRU and simple cells, then those of nnx."""


_PARAMETER = re.compile(r"(?P<cell>(?:.*[./])?)(?P<part>[^./]+)[./](?P<parameter>kernel|bias)", re.DOTALL)


def flatten(tree: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The arrays in mappings within each other, by their keys joined with dots.

    Examples
    --------
    >>> dict(flatten({"params": {"cell": {"ii": {"kernel": 3}}}, "step": 4}))
    {'params.cell.ii.kernel': 3, 'step': 4}
    """
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def translate(arrays: "Mapping[str, StoredArray]") -> "dict[str, StoredArray]":
    """Give the arrays of Flax's cells the names and shapes that torch's have; other arrays stay as they are.

    Neither the activations of a cell nor its direction can be seen from its arrays. They are taken to be Flax's
    defaults.

    Parameters
    ----------
    arrays
        By the names of `flatten`, ``params.LSTMCell_0.ii.kernel``, or with slashes instead of dots.

    Returns
    -------
    dict
        ``params.LSTMCell_0.weight_ih_l0`` and so on instead of the arrays of each cell.

    Examples
    --------
    >>> from unirnn.files._contents import stored
    >>> tree = {"params": {"cell": {"i": {"kernel": np.ones((3, 4))}, "h": {"kernel": np.ones((4, 4))}}}}
    >>> found = translate({key: stored(array) for key, array in flatten(tree)})
    >>> {key: array.shape for key, array in found.items()}
    {'params.cell.weight_ih_l0': (4, 3), 'params.cell.weight_hh_l0': (4, 4)}
    """
    groups: dict[str, dict[str, str]] = {}
    for key in arrays:
        match = _PARAMETER.fullmatch(key)
        if match is not None:
            groups.setdefault(match["cell"], {})[f"{match['part']}.{match['parameter']}"] = key
    found = dict(arrays)
    for cell, keys in groups.items():
        own = {name: arrays[key] for name, key in keys.items()}
        weights = next((weights for parts in _TREES if (weights := _cell_weights(own, *parts))), {})
        for key in keys.values() if weights else ():
            del found[key]
        found |= {f"{cell.replace('/', '.')}{name}_l0": array for name, array in weights.items()}
    return found


def _cell_weights(
    own: "Mapping[str, StoredArray]", inputs: tuple[str, ...], hidden: tuple[str, ...]
) -> "dict[str, StoredArray]":
    """The weights of a cell with such parts; empty if it has others, or arrays that do not fit each other."""
    kernels = {part: own.get(f"{part}.kernel") for part in (*inputs, *hidden)}
    if any(name.partition(".")[0] not in kernels for name in own):
        return {}
    shapes = {part: () if kernel is None else kernel.shape for part, kernel in kernels.items()}
    first, last = shapes[inputs[0]], shapes[hidden[0]]
    if any(shapes[part] != shape for parts, shape in ((inputs, first), (hidden, last)) for part in parts):
        return {}
    if len(first) != 2 or len(last) != 2 or first[1] != last[1]:
        return {}
    if not all(array.shape == first[1:] for name, array in own.items() if name.endswith(".bias")):
        return {}
    found = {
        "weight_ih": _joined([own[f"{part}.kernel"] for part in inputs]),
        "weight_hh": _joined([own[f"{part}.kernel"] for part in hidden]),
    }
    bias = next((array for name, array in own.items() if name.endswith(".bias")), None)
    if bias is not None:
        zeros = replace(bias, read=lambda: np.zeros(first[1]))
        for name, parts in (("bias_ih", inputs), ("bias_hh", hidden)):
            found[name] = _joined([own.get(f"{part}.bias", zeros) for part in parts])
    return found


def _joined(parts: "list[StoredArray]") -> "StoredArray":
    """Arrays side by side, transposed, which are read when they are needed."""
    *rows, columns = parts[0].shape

    def read() -> Array:
        arrays = [part.read() for part in parts]
        return np.concatenate(arrays, axis=-1).astype(parts[0].dtype).T

    return replace(parts[0], shape=(len(parts) * columns, *rows), read=read)
