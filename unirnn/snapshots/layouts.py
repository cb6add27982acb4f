"""Layouts: the same weights in the names, shapes and gate orders of other frameworks; pure NumPy.

Weights here are torch's (`Spec.weight_shapes`). For one layer and direction, with the gates in the order of the rows
or columns:

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

A name ends as torch's do, in the layer and the direction (``kernel_l0_reverse``), ONNX's in the layer alone.

Nothing is lost in silence. Where a framework has one bias for two that are only ever added, it gets their sum, rounded
once to the weights' dtype, and the way back gives that sum and zeros. A GRU's candidate with
``reset_after`` multiplies its second bias by the reset gate: Flax, which lacks it, refuses one that is not zero.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.errors import ArgumentError, LimitError, ShapeError
from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec

__all__ = ["FRAMEWORKS", "of", "shapes", "to"]

Array = NDArray[Any]
Arrays = Mapping[str, Array]

FRAMEWORKS = ("torch", "mindspore", "keras", "flax", "onnx")
"""The frameworks whose layouts are known."""

_GATES: dict[str, dict[str, str]] = {
    "keras": {"RNN": "h", "GRU": "zrn", "LSTM": "ifgo"},
    "onnx": {"RNN": "h", "GRU": "zrn", "LSTM": "iofg"},
}


def to(framework: str, spec: RecurrentSpec, weights: Arrays) -> dict[str, Array]:
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
        Arrays by the framework's names, in the framework's own order (that of Keras' ``set_weights``).

    Raises
    ------
    ArgumentError
        If the framework is none of these.
    LimitError
        If the framework's layers can't be what the spec says, or can't hold these weights; it says what would be lost.

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
    arrays: dict[str, Array] = {}
    if framework == "onnx":
        for layer in range(spec.num_layers):
            directions = [_onnx(spec, weights, suffix) for suffix in _of_layer(spec, layer)]
            arrays |= {f"{name}_l{layer}": np.stack([d[name] for d in directions]) for name in directions[0]}
        return arrays
    one = {"keras": _keras, "flax": _flax}[framework]
    for suffix in spec.suffixes():
        arrays |= {name + suffix: np.array(array, order="C") for name, array in one(spec, weights, suffix).items()}
    return arrays


def shapes(framework: str, spec: RecurrentSpec) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a spec's arrays in a framework, in the framework's own order.

    Raises
    ------
    ArgumentError, LimitError
        As `to`.

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


def of(framework: str, spec: RecurrentSpec, arrays: Arrays) -> dict[str, Array]:
    """The weights that a framework's arrays hold: the way back of `to`.

    Parameters
    ----------
    framework
        One of `FRAMEWORKS`.
    spec
        Whose weights they are.
    arrays
        As `to` gives them.

    Returns
    -------
    dict
        By the names of `Spec.weight_shapes`, of those shapes.

    Raises
    ------
    ArgumentError, ShapeError
        If the names or shapes are not those of the spec's arrays in that framework.
    LimitError
        If the framework's layers can't be what the spec says.

    Examples
    --------
    >>> import unirnn
    >>> snapshot = unirnn.snapshot(unirnn.LSTMSpec(3, 4, bias=False).build("numpy", seed=0))
    >>> unirnn.Snapshot(snapshot.spec, of("onnx", snapshot.spec, snapshot.to("onnx"))) == snapshot
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
    weights: dict[str, Array] = {}
    for layer in range(spec.num_layers):
        for direction, suffix in enumerate(_of_layer(spec, layer)):
            if framework == "onnx":
                parts = {name: arrays[f"{name}_l{layer}"][direction] for name in ("W", "R", "B")[: 2 + spec.bias]}
                found = _from_onnx(spec, parts)
            else:
                parts = {n.removesuffix(suffix): arrays[n] for n in expected if n.endswith(suffix)}
                found = {"keras": _from_keras, "flax": _from_flax}[framework](spec, parts)
            weights |= {name + suffix: np.array(array, order="C") for name, array in found.items()}
    return {name: weights[name] for name in spec.weight_shapes()}


def _check_spec(framework: str, spec: RecurrentSpec) -> None:
    if framework not in FRAMEWORKS:
        raise ArgumentError(f"framework: given {framework!r}, expected one of {', '.join(map(repr, FRAMEWORKS))}")
    if framework in ("torch", "mindspore"):
        spec.to_kwargs(framework)
        return
    if isinstance(spec, LSTMSpec) and spec.proj_size:
        raise LimitError(f"{framework}: its LSTM has no proj_size; given proj_size={spec.proj_size}")
    if framework == "flax" and isinstance(spec, GRUSpec) and not spec.reset_after:
        raise LimitError("flax: its GRUCell is the variant reset_after=True; given reset_after=False")


def _of_layer(spec: RecurrentSpec, layer: int) -> tuple[str, ...]:
    return spec.suffixes()[layer * spec.num_directions : (layer + 1) * spec.num_directions]


def _reordered(spec: RecurrentSpec, rows: Array, given: Sequence[str], wanted: Sequence[str]) -> Array:
    """`(gates*H, ...)` with its gates in another order."""
    size = spec.hidden_size
    return np.concatenate([rows[start : start + size] for start in (given.index(gate) * size for gate in wanted)])


def _has_two_biases(spec: RecurrentSpec) -> bool:
    """Whether Keras has both, as the reset gate comes between them."""
    return isinstance(spec, GRUSpec) and spec.reset_after


def _flax_bias(spec: RecurrentSpec) -> str:
    return "dense_h.bias" if spec.kind == "LSTM" else "dense_i.bias"


def _sum(framework: str, first: Array, second: Array) -> Array:
    wide = first.astype(np.float64) + second
    with np.errstate(over="ignore"):
        narrow = wide.astype(first.dtype)
    if np.isinf(narrow).any() and np.isfinite(first).all() and np.isfinite(second).all():
        raise LimitError(
            f"{framework}: its layer has one bias, and the sum of both reaches {np.abs(wide).max():.3g}, which "
            f"{first.dtype} can't hold; cast the snapshot to a wider dtype"
        )
    return narrow


def _rows(framework: str, spec: RecurrentSpec, weights: Arrays, suffix: str) -> dict[str, Array]:
    """The weights of one layer and direction, with their gates in a framework's order."""
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")[: 4 if spec.bias else 2]
    return {name: _reordered(spec, weights[name + suffix], spec.gates, _GATES[framework][spec.kind]) for name in names}


# ---- one layer and direction, there and back -----------------------------------------------------


def _keras(spec: RecurrentSpec, weights: Arrays, suffix: str) -> dict[str, Array]:
    rows = _rows("keras", spec, weights, suffix)
    arrays = {"kernel": rows["weight_ih"].T, "recurrent_kernel": rows["weight_hh"].T}
    if spec.bias:
        both = rows["bias_ih"], rows["bias_hh"]
        arrays["bias"] = np.stack(both) if _has_two_biases(spec) else _sum("keras", *both)
    return arrays


def _from_keras(spec: RecurrentSpec, arrays: Arrays) -> dict[str, Array]:
    rows = {"weight_ih": arrays["kernel"].T, "weight_hh": arrays["recurrent_kernel"].T}
    if spec.bias:
        bias = arrays["bias"]
        rows["bias_ih"], rows["bias_hh"] = bias if bias.ndim == 2 else (bias, np.zeros_like(bias))
    return {name: _reordered(spec, array, _GATES["keras"][spec.kind], spec.gates) for name, array in rows.items()}


def _onnx(spec: RecurrentSpec, weights: Arrays, suffix: str) -> dict[str, Array]:
    rows = _rows("onnx", spec, weights, suffix)
    arrays = {"W": rows["weight_ih"], "R": rows["weight_hh"]}
    if spec.bias:
        arrays["B"] = np.concatenate([rows["bias_ih"], rows["bias_hh"]])
    return arrays


def _from_onnx(spec: RecurrentSpec, arrays: Arrays) -> dict[str, Array]:
    rows = {"weight_ih": arrays["W"], "weight_hh": arrays["R"]}
    if spec.bias:
        rows["bias_ih"], rows["bias_hh"] = np.split(arrays["B"], 2)
    return {name: _reordered(spec, array, _GATES["onnx"][spec.kind], spec.gates) for name, array in rows.items()}


def _flax(spec: RecurrentSpec, weights: Arrays, suffix: str) -> dict[str, Array]:
    w_ih, w_hh = weights["weight_ih" + suffix], weights["weight_hh" + suffix]
    arrays = {"dense_i.kernel": w_ih.T, "dense_h.kernel": w_hh.T}
    bias = np.zeros(len(w_ih), w_ih.dtype)  # Flax's layers always have one
    if spec.bias:
        b_hh = weights["bias_hh" + suffix]
        bias = _sum("flax", weights["bias_ih" + suffix], b_hh)
        of_candidate = b_hh[2 * spec.hidden_size :]
        if spec.kind == "GRU" and of_candidate.any():
            raise LimitError(
                f"flax: its GRUCell has no bias_hh of the gate n, which would be lost: bias_hh{suffix} holds up to "
                f"{np.abs(of_candidate).max():.3g} there"
            )
    arrays[_flax_bias(spec)] = bias
    return arrays


def _from_flax(spec: RecurrentSpec, arrays: Arrays) -> dict[str, Array]:
    weights = {"weight_ih": arrays["dense_i.kernel"].T, "weight_hh": arrays["dense_h.kernel"].T}
    bias = arrays[_flax_bias(spec)]
    if spec.bias:
        weights |= {"bias_ih": bias, "bias_hh": np.zeros_like(bias)}
    elif bias.any():
        raise LimitError(f"flax: a bias of up to {np.abs(bias).max():.3g} would be lost; the spec has bias=False")
    return weights
