"""Layouts: the same weights under the names, and in the shapes and gate orders, of other frameworks; pure NumPy.

unirnn's own weights are laid out as torch's (`Spec.weight_shapes`). This is what the frameworks have for one layer and
direction, with the gates in the order of the rows or columns:

=========  ==================================================================  ============  ===============
framework  arrays                                                              GRU           LSTM
=========  ==================================================================  ============  ===============
torch      ``weight_ih`` `(gates*H, I)`, ``weight_hh`` `(gates*H, H)`,         r, z, n       i, f, g, o
           ``bias_ih``, ``bias_hh`` `(gates*H,)`
mindspore  torch's
keras      ``kernel`` `(I, gates*H)`, ``recurrent_kernel`` `(H, gates*H)`,     z, r, n       i, f, g, o
           ``bias`` `(gates*H,)`, of a GRU with ``reset_after`` `(2, 3*H)`
flax       ``dense_i.kernel`` `(I, gates*H)`, ``dense_h.kernel``               r, z, n       i, f, g, o
           `(H, gates*H)`, one ``bias`` `(gates*H,)`: an LSTM's is
           ``dense_h.bias``, the others' ``dense_i.bias``
onnx       ``W`` `(D, gates*H, I)`, ``R`` `(D, gates*H, H)`,                   z, r, n       i, o, f, g
           ``B`` `(D, 2*gates*H)`: both directions in one array
=========  ==================================================================  ============  ===============

As in torch, a name ends with the layer and the direction (``kernel_l0_reverse``). ONNX's names end with the layer.

Nothing is lost in silence. Two biases that are only ever added are one bias in Keras and Flax. It is their sum, rounded
once to the weights' dtype; the way back gives this sum and zeros. The candidate of a GRU with ``reset_after``
multiplies its second bias by the reset gate. Flax does not have this bias, so one that is not zero is refused.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from unirnn.contract.limits import Support
from unirnn.contract.weights import Array, Weights
from unirnn.errors import ArgumentError, LimitError, ShapeError
from unirnn.specs import GRUSpec, RecurrentSpec
from unirnn.specs.arguments import missing_arguments

__all__ = ["FRAMEWORKS", "SUPPORT", "from_framework", "shapes", "to_framework"]

Arrays = Mapping[str, Array]

SUPPORT = {
    "torch": Support("torch", lacks=missing_arguments("torch")),
    "mindspore": Support("mindspore", lacks=missing_arguments("mindspore")),
    "keras": Support("keras", lacks=("reverse", "proj_size", "gate_activation")),
    "flax": Support("flax", lacks=("reverse", "reset_after", "proj_size", "gate_activation")),
    "onnx": Support("onnx", lacks=("proj_size",)),
}
"""What the layers of each framework lack."""

FRAMEWORKS = tuple(SUPPORT)
"""The frameworks whose layouts are known."""

_GATES: dict[str, dict[str, str]] = {
    "keras": {"RNN": "h", "GRU": "zrn", "LSTM": "ifgo"},
    "flax": {"RNN": "h", "GRU": "rzn", "LSTM": "ifgo"},
    "onnx": {"RNN": "h", "GRU": "zrn", "LSTM": "iofg"},
}


def to_framework(framework: str, spec: RecurrentSpec, weights: Arrays) -> Weights:
    """Lay weights out as a framework does.

    Parameters
    ----------
    framework
        One of `FRAMEWORKS`.
    spec
        Whose weights they are.
    weights
        By the names of `Spec.weight_shapes`, of those shapes.

    Returns
    -------
    dict
        Arrays by the framework's names, in the framework's own order (the order of Keras' ``set_weights``).

    Raises
    ------
    ArgumentError
        If the framework is not one of these.
    LimitError
        If the framework has no such layer, or can't hold these weights; the message says what would be lost.

    Examples
    --------
    >>> import unirnn
    >>> snapshot = unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy", seed=0))
    >>> {name: array.shape for name, array in snapshot.to("keras").items()}
    {'kernel_l0': (3, 12), 'recurrent_kernel_l0': (4, 12), 'bias_l0': (2, 12)}
    """
    _check_spec(framework, spec)
    if framework in ("torch", "mindspore"):
        return {name: np.array(weights[name]) for name in spec.weight_shapes()}
    if framework == "flax":
        _check_flax_biases(spec, weights)
    convert = {"keras": _to_keras, "flax": _to_flax, "onnx": _to_onnx}[framework]
    gates = _GATES[framework][spec.kind]
    arrays: Weights = {}
    for suffixes in _suffixes_by_layer(spec):
        directions = []
        for suffix in suffixes:
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if spec.bias else 2]
            rows = {name: _reorder(spec, weights[name + suffix], spec.gates, gates) for name in names}
            directions.append(convert(spec, rows))
        if framework == "onnx":
            arrays |= {name + suffixes[0]: np.stack([found[name] for found in directions]) for name in directions[0]}
            continue
        for suffix, found in zip(suffixes, directions, strict=True):
            arrays |= {name + suffix: np.array(array, order="C") for name, array in found.items()}
    return arrays


def from_framework(framework: str, spec: RecurrentSpec, arrays: Arrays) -> Weights:
    """Lay a framework's arrays out as weights: the inverse of `to_framework`.

    Parameters
    ----------
    framework
        One of `FRAMEWORKS`.
    spec
        Whose weights they are.
    arrays
        As `to_framework` returns them.

    Returns
    -------
    dict
        By the names of `Spec.weight_shapes`, of those shapes.

    Raises
    ------
    ArgumentError, ShapeError
        If the names or shapes are not those of the spec's arrays in that framework.
    LimitError
        If the framework has no such layer.

    Examples
    --------
    >>> import unirnn
    >>> snapshot = unirnn.snapshot(unirnn.LSTMSpec(3, 4, bias=False).build("numpy", seed=0))
    >>> unirnn.Snapshot(snapshot.spec, from_framework("onnx", snapshot.spec, snapshot.to("onnx"))) == snapshot
    True
    """
    expected = shapes(framework, spec)
    if arrays.keys() != expected.keys():
        raise ArgumentError(
            f"{framework}: given {', '.join(arrays) or 'nothing'}; {spec!r} has {', '.join(expected)} there"
        )
    for name, shape in expected.items():
        if np.shape(arrays[name]) != shape:
            raise ShapeError(f"{framework}: {name}: given shape {np.shape(arrays[name])}, expected {shape}")
    if framework in ("torch", "mindspore"):
        return {name: np.array(arrays[name]) for name in expected}
    convert = {"keras": _from_keras, "flax": _from_flax, "onnx": _from_onnx}[framework]
    gates = _GATES[framework][spec.kind]
    weights: Weights = {}
    for suffixes in _suffixes_by_layer(spec):
        for direction, suffix in enumerate(suffixes):
            if framework == "onnx":
                one = {name: arrays[name + suffixes[0]][direction] for name in ("W", "R", "B")[: 3 if spec.bias else 2]}
            else:
                one = {name.removesuffix(suffix): arrays[name] for name in expected if name.endswith(suffix)}
            rows = {name: _reorder(spec, array, gates, spec.gates) for name, array in convert(spec, one).items()}
            weights |= {name + suffix: np.array(array, order="C") for name, array in rows.items()}
    return weights


def shapes(framework: str, spec: RecurrentSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a spec's arrays in a framework, in the framework's own order.

    Raises
    ------
    ArgumentError, LimitError
        As `to_framework`.

    Examples
    --------
    >>> import unirnn
    >>> shapes("flax", unirnn.LSTMSpec(3, 4))
    {'dense_i.kernel_l0': (3, 16), 'dense_h.kernel_l0': (4, 16), 'dense_h.bias_l0': (16,)}
    """
    _check_spec(framework, spec)
    own = spec.weight_shapes()
    if framework in ("torch", "mindspore"):
        return own
    found: dict[str, tuple[int, ...]] = {}
    for suffix in spec.suffixes():
        rows, columns = own["weight_ih" + suffix]
        size = spec.hidden_size
        if framework == "onnx":
            if not suffix.endswith("_reverse"):
                width = spec.num_directions
                found |= {"W" + suffix: (width, rows, columns), "R" + suffix: (width, rows, size)}
                found |= {"B" + suffix: (width, 2 * rows)} if spec.bias else {}
        elif framework == "keras":
            found |= {"kernel" + suffix: (columns, rows), "recurrent_kernel" + suffix: (size, rows)}
            found |= {"bias" + suffix: (2, rows) if _has_two_biases(spec) else (rows,)} if spec.bias else {}
        else:
            found |= {"dense_i.kernel" + suffix: (columns, rows), "dense_h.kernel" + suffix: (size, rows)}
            found |= {_flax_bias(spec) + suffix: (rows,)}
    return found


def _check_spec(framework: str, spec: RecurrentSpec) -> None:
    if framework not in FRAMEWORKS:
        raise ArgumentError(f"framework: given {framework!r}, expected one of {', '.join(map(repr, FRAMEWORKS))}")
    reason = SUPPORT[framework].unsupported_reason(spec)
    if reason is not None:
        raise LimitError(reason)


def _suffixes_by_layer(spec: RecurrentSpec) -> list[tuple[str, ...]]:
    suffixes, directions = spec.suffixes(), spec.num_directions
    return [suffixes[start : start + directions] for start in range(0, len(suffixes), directions)]


def _reorder(spec: RecurrentSpec, rows: Array, given: Sequence[str], wanted: Sequence[str]) -> Array:
    """Put the gates of `(gates*H, ...)` in another order."""
    size = spec.hidden_size
    return np.concatenate([rows[start : start + size] for start in (given.index(gate) * size for gate in wanted)])


def _add_biases(framework: str, first: Array, second: Array) -> Array:
    """The sum of two biases, rounded once to their dtype; a LimitError if it overflows."""
    wide = first.astype(np.float64) + second
    with np.errstate(over="ignore"):
        narrow = wide.astype(first.dtype)
    if np.isinf(narrow).any() and np.isfinite(first).all() and np.isfinite(second).all():
        raise LimitError(
            f"{framework}: its layer has one bias, and the sum of both reaches {np.abs(wide).max():.3g}, which "
            f"{first.dtype} can't hold; cast the snapshot to a wider dtype"
        )
    return narrow


# ---- one layer and direction; rows are weights with the framework's order of the gates --------------


def _has_two_biases(spec: RecurrentSpec) -> bool:
    """Whether Keras has both biases, because the reset gate comes between them."""
    return isinstance(spec, GRUSpec) and spec.reset_after


def _to_keras(spec: RecurrentSpec, rows: Weights) -> Weights:
    arrays = {"kernel": rows["weight_ih"].T, "recurrent_kernel": rows["weight_hh"].T}
    if spec.bias:
        both = rows["bias_ih"], rows["bias_hh"]
        arrays["bias"] = np.stack(both) if _has_two_biases(spec) else _add_biases("keras", *both)
    return arrays


def _from_keras(spec: RecurrentSpec, arrays: Weights) -> Weights:
    rows = {"weight_ih": arrays["kernel"].T, "weight_hh": arrays["recurrent_kernel"].T}
    if spec.bias:
        bias = arrays["bias"]
        rows["bias_ih"], rows["bias_hh"] = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    return rows


def _to_onnx(spec: RecurrentSpec, rows: Weights) -> Weights:
    arrays = {"W": rows["weight_ih"], "R": rows["weight_hh"]}
    if spec.bias:
        arrays["B"] = np.concatenate([rows["bias_ih"], rows["bias_hh"]])
    return arrays


def _from_onnx(spec: RecurrentSpec, arrays: Weights) -> Weights:
    rows = {"weight_ih": arrays["W"], "weight_hh": arrays["R"]}
    if spec.bias:
        rows["bias_ih"], rows["bias_hh"] = np.split(arrays["B"], 2)
    return rows


def _flax_bias(spec: RecurrentSpec) -> str:
    return "dense_h.bias" if spec.kind == "LSTM" else "dense_i.bias"


def _check_flax_biases(spec: RecurrentSpec, weights: Arrays) -> None:
    for suffix in spec.suffixes() if spec.kind == "GRU" and spec.bias else ():
        candidate = weights["bias_hh" + suffix][2 * spec.hidden_size :]
        if candidate.any():
            raise LimitError(
                f"flax: its GRUCell has no bias_hh of the gate n, which would be lost: bias_hh{suffix} holds up to "
                f"{np.abs(candidate).max():.3g} there"
            )


def _to_flax(spec: RecurrentSpec, rows: Weights) -> Weights:
    w_ih = rows["weight_ih"]
    # Flax's layers always have a bias.
    bias = _add_biases("flax", rows["bias_ih"], rows["bias_hh"]) if spec.bias else np.zeros(len(w_ih), w_ih.dtype)
    return {"dense_i.kernel": w_ih.T, "dense_h.kernel": rows["weight_hh"].T, _flax_bias(spec): bias}


def _from_flax(spec: RecurrentSpec, arrays: Weights) -> Weights:
    rows = {"weight_ih": arrays["dense_i.kernel"].T, "weight_hh": arrays["dense_h.kernel"].T}
    bias = arrays[_flax_bias(spec)]
    if spec.bias:
        rows |= {"bias_ih": bias, "bias_hh": np.zeros_like(bias)}
    elif bias.any():
        raise LimitError(f"flax: a bias of up to {np.abs(bias).max():.3g} would be lost; the spec has bias=False")
    return rows
