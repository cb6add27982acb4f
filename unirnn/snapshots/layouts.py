"""Layouts: the same weights under the names, and in the shapes and gate orders, of other frameworks; pure NumPy.

unirnn's own weights are laid out as torch's (`Spec.weight_shapes`). This is what the frameworks have for one layer and
direction, with the gates in the order of the rows or columns:

===========  ==================================================================  ============  ===============
framework    arrays                                                              GRU           LSTM
===========  ==================================================================  ============  ===============
torch        ``weight_ih`` `(gates*H, I)`, ``weight_hh`` `(gates*H, H)`,         r, z, n       i, f, g, o
             ``bias_ih``, ``bias_hh`` `(gates*H,)`
mindspore    torch's
keras        ``kernel`` `(I, gates*H)`, ``recurrent_kernel`` `(H, gates*H)`,     z, r, n       i, f, g, o
             ``bias`` `(gates*H,)`, of a GRU with ``reset_after`` `(2, 3*H)`
flax         ``dense_i.kernel`` `(I, gates*H)`, ``dense_h.kernel``               r, z, n       i, f, g, o
             `(H, gates*H)`, one ``bias`` `(gates*H,)`: an LSTM's is
             ``dense_h.bias``, the others' ``dense_i.bias``
haste        ``kernel``, ``recurrent_kernel``, ``bias`` as Keras; a GRU has      z, r, n       i, g, f, o
             ``recurrent_bias`` `(3*H,)`, too
tensorflow1  ``kernel`` `(I + H, gates*H)`, ``bias`` `(gates*H,)`, and of an     r, z, n       i, g, f, o
             LSTM the number ``forget_bias``; for a GRU see below
onnx         ``W`` `(D, gates*H, I)`, ``R`` `(D, gates*H, H)`,                   z, r, n       i, o, f, g
             ``B`` `(D, 2*gates*H)`: both directions in one array
===========  ==================================================================  ============  ===============

As in torch, a name ends with the layer and the direction (``kernel_l0_reverse``). ONNX's names end with the layer.

Arrays of TensorFlow 1 are read, and not written. They are those of ``BasicRNNCell``, ``BasicLSTMCell``, ``LSTMCell``
(without peepholes), ``GRUCell`` (``reset_after=False``) and ``CudnnCompatibleGRUCell`` (``reset_after=True``). The two
GRU cells have ``gates.kernel`` `(I + H, 2*H)` and ``gates.bias``, with r before z, and for n ``candidate.kernel``
`(I + H, H)` and ``candidate.bias``, or ``kernel`` and ``bias`` of ``candidate.input_projection`` `(I, H)` and of
``candidate.hidden_projection`` `(H, H)`. An LSTM cell adds ``forget_bias``, which no checkpoint holds, to the gate f at
each step. So it has to be given: 1.0 unless the cell was made with another; 0.0 for ``CudnnCompatibleLSTMCell``.

Nothing is lost in silence. Two biases that are only ever added are one bias in Keras, Flax and Haste. It is their sum,
rounded once to the weights' dtype; the way back gives this sum and zeros. The candidate of a GRU with ``reset_after``
multiplies its second bias by the reset gate. Flax does not have this bias, so one that is not zero is refused.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from unirnn.contract.limits import Support
from unirnn.contract.weights import Array, Weights
from unirnn.errors import ArgumentError, LimitError, ShapeError
from unirnn.specs import GRUSpec, RecurrentSpec
from unirnn.specs.arguments import missing_arguments

__all__ = ["FRAMEWORKS", "SUPPORT", "add_biases", "from_framework", "shapes", "to_framework"]

Arrays = Mapping[str, Array]

SUPPORT = {
    "torch": Support("torch", lacks=missing_arguments("torch")),
    "mindspore": Support("mindspore", lacks=missing_arguments("mindspore")),
    "keras": Support("keras", lacks=("proj_size",)),
    "flax": Support("flax", lacks=("reset_after", "proj_size")),
    "haste": Support("haste", kinds=("GRU", "LSTM"), lacks=("reverse", "reset_after", "proj_size", "gate_activation")),
    "tensorflow1": Support("tensorflow1", lacks=("proj_size", "gate_activation")),
    "onnx": Support("onnx", lacks=("proj_size",)),
}
"""What the layers of each framework lack."""

FRAMEWORKS = tuple(SUPPORT)
"""The frameworks whose layouts are known."""

_GATES: dict[str, dict[str, str]] = {
    "keras": {"RNN": "h", "GRU": "zrn", "LSTM": "ifgo"},
    "flax": {"RNN": "h", "GRU": "rzn", "LSTM": "ifgo"},
    "haste": {"GRU": "zrn", "LSTM": "igfo"},
    "tensorflow1": {"RNN": "h", "GRU": "rzn", "LSTM": "igfo"},
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
    if framework == "tensorflow1":
        raise LimitError("tensorflow1: its arrays are read only; TensorFlow 2 has the layers of Keras")
    if framework == "flax":
        _check_flax_biases(spec, weights)
    convert = {"keras": _to_keras, "flax": _to_flax, "haste": _to_haste, "onnx": _to_onnx}[framework]
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
        hint = "; forget_bias is what the cell was made with, 1.0 by default" if "forget_bias_l0" in expected else ""
        raise ArgumentError(
            f"{framework}: given {', '.join(arrays) or 'nothing'}; {spec!r} has {', '.join(expected)} there{hint}"
        )
    for name, shape in expected.items():
        if np.shape(arrays[name]) != shape:
            raise ShapeError(f"{framework}: {name}: given shape {np.shape(arrays[name])}, expected {shape}")
    if framework in ("torch", "mindspore"):
        return {name: np.array(arrays[name]) for name in expected}
    convert = {
        "keras": _from_keras,
        "flax": _from_flax,
        "haste": _from_haste,
        "tensorflow1": _from_tensorflow1,
        "onnx": _from_onnx,
    }[framework]
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
            continue
        if framework == "tensorflow1":
            arrays = _tensorflow1_shapes(spec, columns, size)
        elif framework == "flax":
            arrays = {"dense_i.kernel": (columns, rows), "dense_h.kernel": (size, rows), _flax_bias(spec): (rows,)}
        else:
            arrays = {"kernel": (columns, rows), "recurrent_kernel": (size, rows)}
            if framework == "haste":
                arrays |= {"bias": (rows,)} | ({"recurrent_bias": (rows,)} if spec.kind == "GRU" else {})
            elif spec.bias:
                arrays |= {"bias": (2, rows) if _has_two_biases(spec) else (rows,)}
        found |= {name + suffix: shape for name, shape in arrays.items()}
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


def add_biases(framework: str, first: Array, second: Array) -> Array:
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
        arrays["bias"] = np.stack(both) if _has_two_biases(spec) else add_biases("keras", *both)
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
    bias = add_biases("flax", rows["bias_ih"], rows["bias_hh"]) if spec.bias else np.zeros(len(w_ih), w_ih.dtype)
    return {"dense_i.kernel": w_ih.T, "dense_h.kernel": rows["weight_hh"].T, _flax_bias(spec): bias}


def _from_flax(spec: RecurrentSpec, arrays: Weights) -> Weights:
    rows = {"weight_ih": arrays["dense_i.kernel"].T, "weight_hh": arrays["dense_h.kernel"].T}
    return rows | _first_bias("flax", spec, arrays[_flax_bias(spec)])


def _first_bias(framework: str, spec: RecurrentSpec, bias: Array) -> Weights:
    """The one bias of a framework whose layers always have one as ``bias_ih``, and zeros."""
    if spec.bias:
        return {"bias_ih": bias, "bias_hh": np.zeros_like(bias)}
    if bias.any():
        raise LimitError(
            f"{framework}: a bias of up to {np.abs(bias).max():.3g} would be lost; the spec has bias=False"
        )
    return {}


def _to_haste(spec: RecurrentSpec, rows: Weights) -> Weights:
    w_ih = rows["weight_ih"]
    arrays = {"kernel": w_ih.T, "recurrent_kernel": rows["weight_hh"].T}
    zeros = np.zeros(len(w_ih), w_ih.dtype)  # Haste's layers always have a bias
    both = (rows["bias_ih"], rows["bias_hh"]) if spec.bias else (zeros, zeros)
    if spec.kind == "GRU":
        return {**arrays, "bias": both[0], "recurrent_bias": both[1]}
    return {**arrays, "bias": add_biases("haste", *both)}


def _from_haste(spec: RecurrentSpec, arrays: Weights) -> Weights:
    rows = {"weight_ih": arrays["kernel"].T, "weight_hh": arrays["recurrent_kernel"].T}
    if spec.bias and spec.kind == "GRU":
        return {**rows, "bias_ih": arrays["bias"], "bias_hh": arrays["recurrent_bias"]}
    for bias in [arrays["bias"], arrays["recurrent_bias"]] if spec.kind == "GRU" else [arrays["bias"]]:
        rows |= _first_bias("haste", spec, bias)
    return rows


def _tensorflow1_shapes(spec: RecurrentSpec, inputs: int, size: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the arrays of one layer and direction."""
    both = inputs + size
    if not isinstance(spec, GRUSpec):
        rows = len(spec.gates) * size
        arrays: dict[str, tuple[int, ...]] = {"kernel": (both, rows), "bias": (rows,)}
        return {**arrays, "forget_bias": ()} if spec.kind == "LSTM" else arrays
    gates = {"gates.kernel": (both, 2 * size), "gates.bias": (2 * size,)}
    if not spec.reset_after:
        return {**gates, "candidate.kernel": (both, size), "candidate.bias": (size,)}
    projections = {"input": inputs, "hidden": size}
    for name, columns in projections.items():
        gates |= {f"candidate.{name}_projection.kernel": (columns, size), f"candidate.{name}_projection.bias": (size,)}
    return gates


def _from_tensorflow1(spec: RecurrentSpec, arrays: Weights) -> Weights:
    size = spec.hidden_size
    if not isinstance(spec, GRUSpec):
        w_ih, w_hh = np.split(arrays["kernel"].T, [-size], axis=1)
        bias = arrays["bias"].astype(np.float64)
        if spec.kind == "LSTM":
            bias[2 * size : 3 * size] += arrays["forget_bias"]  # rounded once to the weights' dtype
        first = _first_bias("tensorflow1", spec, bias.astype(arrays["bias"].dtype))
        return {"weight_ih": w_ih, "weight_hh": w_hh, **first}
    w_ih, w_hh = np.split(arrays["gates.kernel"].T, [-size], axis=1)
    if spec.reset_after:
        names = [f"candidate.{name}_projection" for name in ("input", "hidden")]
        (n_ih, b_ih), (n_hh, b_hh) = ((arrays[f"{name}.kernel"].T, arrays[f"{name}.bias"]) for name in names)
    else:
        (n_ih, n_hh), b_ih = np.split(arrays["candidate.kernel"].T, [-size], axis=1), arrays["candidate.bias"]
        b_hh = np.zeros_like(b_ih)
    found = {"weight_ih": np.concatenate([w_ih, n_ih]), "weight_hh": np.concatenate([w_hh, n_hh])}
    biases = {
        "bias_ih": np.concatenate([arrays["gates.bias"], b_ih]),
        "bias_hh": np.concatenate([np.zeros_like(arrays["gates.bias"]), b_hh]),
    }
    if spec.bias:
        return found | biases
    for bias in biases.values():
        found |= _first_bias("tensorflow1", spec, bias)
    return found
