"""Layouts of other frameworks: converting there and back changes nothing, and a lossy conversion is refused.

tests/roundtrip checks that the frameworks really use these gate orders.
"""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, errors
from unirnn.contract import weights
from unirnn.snapshots import layouts
from unirnn.testing.strategies import specs


def drawn(spec: RecurrentSpec) -> Snapshot:
    return Snapshot(spec, weights.draw(spec, 0))


def without_second_biases(snapshot: Snapshot) -> Snapshot:
    zeros = {n: np.zeros_like(a) if n.startswith("bias_hh") else a for n, a in snapshot.weights.items()}
    return Snapshot(snapshot.spec, zeros)


WRITTEN = [framework for framework in layouts.FRAMEWORKS if framework != "tensorflow1"]


@given(spec=specs(max_layers=12), framework=st.sampled_from(WRITTEN))
def test_converting_there_and_back_changes_nothing(spec: RecurrentSpec, framework: str) -> None:
    reason = layouts.SUPPORT[framework].unsupported_reason(spec)
    if reason is not None:
        with pytest.raises(errors.LimitError, match=re.escape(reason)):
            drawn(spec).to(framework)
        return
    snapshot = drawn(spec)
    if framework in ("keras", "flax", "haste"):
        snapshot = without_second_biases(snapshot)
    arrays = snapshot.to(framework)
    assert {name: array.shape for name, array in arrays.items()} == layouts.shapes(framework, spec)
    assert all(array.flags.c_contiguous for array in arrays.values())
    assert Snapshot(spec, layouts.from_framework(framework, spec, arrays)) == snapshot


@given(spec=specs(max_layers=12), framework=st.sampled_from(WRITTEN))
def test_arrays_are_copies(spec: RecurrentSpec, framework: str) -> None:
    snapshot = without_second_biases(drawn(spec))
    try:
        arrays = snapshot.to(framework)
    except errors.LimitError:
        return
    for array in arrays.values():
        array += 1
    assert snapshot == without_second_biases(drawn(spec))


GATES = {  # the gates in order, by their numbers in torch's order: r 1, z 2, n 3; i 1, f 2, g 3, o 4
    ("GRU", "keras"): [2, 1, 3],
    ("GRU", "onnx"): [2, 1, 3],
    ("GRU", "flax"): [1, 2, 3],
    ("GRU", "haste"): [2, 1, 3],
    ("LSTM", "keras"): [1, 2, 3, 4],
    ("LSTM", "onnx"): [1, 4, 2, 3],
    ("LSTM", "flax"): [1, 2, 3, 4],
    ("LSTM", "haste"): [1, 3, 2, 4],
}


@pytest.mark.parametrize(("cell", "framework"), GATES)
def test_the_documented_order_of_the_gates(cell: str, framework: str) -> None:
    spec = RecurrentSpec.from_dict({"kind": cell, "input_size": 1, "hidden_size": 2, "bias": False})
    marks = np.repeat(np.arange(1.0, 1 + len(spec.gates)), 2)
    snapshot = Snapshot(spec, {"weight_ih_l0": marks[:, None], "weight_hh_l0": np.stack([marks, marks], axis=1)})
    names = {"keras": "kernel_l0", "onnx": "W_l0", "flax": "dense_i.kernel_l0", "haste": "kernel_l0"}
    name = names[framework]
    assert snapshot.to(framework)[name].ravel()[::2].tolist() == GATES[cell, framework]


@pytest.mark.parametrize("framework", ["keras", "flax"])
def test_one_bias_is_the_sum_of_two(framework: str) -> None:
    spec = LSTMSpec(1, 1)
    zeros = {"weight_ih_l0": np.zeros((4, 1)), "weight_hh_l0": np.zeros((4, 1))}
    b_ih, b_hh = np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.1, 0.2, 0.3, 0.4])
    arrays = Snapshot(spec, {**zeros, "bias_ih_l0": b_ih, "bias_hh_l0": b_hh}).to(framework)
    name = {"keras": "bias_l0", "flax": "dense_h.bias_l0"}[framework]
    np.testing.assert_array_equal(arrays[name], b_ih + b_hh)
    back = layouts.from_framework(framework, spec, arrays)
    np.testing.assert_array_equal(back["bias_ih_l0"], b_ih + b_hh)
    assert not back["bias_hh_l0"].any()


def test_the_sum_of_two_biases_is_rounded_once() -> None:
    spec = RNNSpec(1, 1)
    small = {name: np.full(shape, 0.1, np.float16) for name, shape in spec.weight_shapes().items()}
    small["bias_hh_l0"] = np.full(1, 1000.0, np.float16)
    bias = Snapshot(spec, small).to("keras")["bias_l0"]
    assert bias.dtype == np.float16
    assert bias == np.float16(np.float64(np.float16(0.1)) + 1000)


Mistake = tuple[Callable[[], Any], type[errors.UnirnnError], str]
GRU = drawn(GRUSpec(3, 4))
FLAX_ARRAYS = without_second_biases(GRU).to("flax")

MISTAKES: dict[str, Mistake] = {
    "an unknown framework": (
        lambda: GRU.to("jax"),
        errors.ArgumentError,
        "framework: given 'jax', expected one of 'torch', 'mindspore', 'keras', 'flax', 'haste', 'tensorflow1', 'onnx'",
    ),
    "the second bias of a GRU's candidate, in Flax": (
        lambda: GRU.to("flax"),
        errors.LimitError,
        "flax: its GRUCell has no bias_hh of the gate n, which would be lost: bias_hh_l0 holds up to 0.4",
    ),
    "a projection, in ONNX": (
        lambda: drawn(LSTMSpec(3, 4, proj_size=2)).to("onnx"),
        errors.LimitError,
        "onnx has no LSTM with proj_size=2",
    ),
    "a projection, in MindSpore": (
        lambda: drawn(LSTMSpec(3, 4, proj_size=2)).to("mindspore"),
        errors.LimitError,
        "mindspore has no LSTM with proj_size=2",
    ),
    "the other GRU variant, in Flax": (
        lambda: drawn(GRUSpec(3, 4, reset_after=False)).to("flax"),
        errors.LimitError,
        "flax has no GRU with reset_after=False",
    ),
    "a bias of Flax for a spec without biases": (
        lambda: layouts.from_framework("flax", GRUSpec(3, 4, bias=False), FLAX_ARRAYS),
        errors.LimitError,
        "flax: a bias of up to 0.4",
    ),
    "two biases whose sum overflows": (
        lambda: Snapshot(
            LSTMSpec(1, 1), {n: np.full(s, 6e4, "f2") for n, s in LSTMSpec(1, 1).weight_shapes().items()}
        ).to("keras"),
        errors.LimitError,
        "keras: its layer has one bias, and the sum of both reaches 1.2e+05, which float16 can't hold",
    ),
    "arrays of TensorFlow 1": (
        lambda: GRU.to("tensorflow1"),
        errors.LimitError,
        "tensorflow1: its arrays are read only",
    ),
    "an LSTM of TensorFlow 1 without its forget_bias": (
        lambda: layouts.from_framework("tensorflow1", LSTMSpec(3, 4), {"kernel_l0": np.zeros((7, 16))}),
        errors.ArgumentError,
        "tensorflow1: given kernel_l0; LSTMSpec(3, 4) has kernel_l0, bias_l0, forget_bias_l0 there; forget_bias is "
        "what the cell was made with, 1.0 by default",
    ),
    "a forget_bias for a spec without biases": (
        lambda: layouts.from_framework(
            "tensorflow1",
            LSTMSpec(3, 4, bias=False),
            {"kernel_l0": np.zeros((7, 16)), "bias_l0": np.zeros(16), "forget_bias_l0": 1.0},  # type: ignore[dict-item]
        ),
        errors.LimitError,
        "tensorflow1: a bias of up to 1 would be lost; the spec has bias=False",
    ),
    "an RNN, in Haste": (
        lambda: drawn(RNNSpec(3, 4)).to("haste"),
        errors.LimitError,
        "haste has no RNN",
    ),
    "a missing array": (
        lambda: layouts.from_framework("onnx", GRU.spec, {"W_l0": np.zeros((1, 12, 3))}),
        errors.ArgumentError,
        "onnx: given W_l0; GRUSpec(3, 4) has W_l0, R_l0, B_l0 there",
    ),
    "an array of the wrong shape": (
        lambda: layouts.from_framework("onnx", GRU.spec, {**GRU.to("onnx"), "R_l0": np.zeros((1, 12, 5))}),
        errors.ShapeError,
        "onnx: R_l0: given shape (1, 12, 5), expected (1, 12, 4)",
    ),
}


@pytest.mark.parametrize(("call", "kind", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(call: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(words)


# ---- layouts of frameworks that are not installed here: their equations, written down from their sources -----------


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def haste_gru(x: Any, h: Any, c: Any, w: Any) -> Any:
    vx, vh = (np.split(v, 3) for v in (x @ w["kernel"] + w["bias"], h @ w["recurrent_kernel"] + w["recurrent_bias"]))
    z, r = sigmoid(vx[0] + vh[0]), sigmoid(vx[1] + vh[1])
    return z * h + (1 - z) * np.tanh(vx[2] + r * vh[2]), c


def haste_lstm(x: Any, h: Any, c: Any, w: Any) -> Any:
    i, g, f, o = np.split(x @ w["kernel"] + h @ w["recurrent_kernel"] + w["bias"], 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def tensorflow_rnn(x: Any, h: Any, c: Any, w: Any) -> Any:
    return np.tanh(np.concatenate([x, h]) @ w["kernel"] + w["bias"]), c


def tensorflow_lstm(x: Any, h: Any, c: Any, w: Any) -> Any:
    i, j, f, o = np.split(np.concatenate([x, h]) @ w["kernel"] + w["bias"], 4)
    c = c * sigmoid(f + w["forget_bias"]) + sigmoid(i) * np.tanh(j)
    return np.tanh(c) * sigmoid(o), c


def tensorflow_gru(x: Any, h: Any, c: Any, w: Any) -> Any:
    r, u = np.split(sigmoid(np.concatenate([x, h]) @ w["gates.kernel"] + w["gates.bias"]), 2)
    n = np.tanh(np.concatenate([x, r * h]) @ w["candidate.kernel"] + w["candidate.bias"])
    return u * h + (1 - u) * n, c


def tensorflow_cudnn_gru(x: Any, h: Any, c: Any, w: Any) -> Any:
    r, u = np.split(sigmoid(np.concatenate([x, h]) @ w["gates.kernel"] + w["gates.bias"]), 2)
    i, j = (f"candidate.{name}_projection." for name in ("input", "hidden"))
    n = np.tanh(x @ w[f"{i}kernel"] + w[f"{i}bias"] + r * (h @ w[f"{j}kernel"] + w[f"{j}bias"]))
    return u * h + (1 - u) * n, c


STEPS: dict[str, tuple[str, RecurrentSpec, Callable[..., Any]]] = {
    "Haste's GRU": ("haste", GRUSpec(3, 4, 2), haste_gru),
    "Haste's LSTM": ("haste", LSTMSpec(3, 4, 2), haste_lstm),
    "BasicRNNCell": ("tensorflow1", RNNSpec(3, 4, 2), tensorflow_rnn),
    "BasicLSTMCell": ("tensorflow1", LSTMSpec(3, 4, 2), tensorflow_lstm),
    "GRUCell": ("tensorflow1", GRUSpec(3, 4, 2, reset_after=False), tensorflow_gru),
    "CudnnCompatibleGRUCell": ("tensorflow1", GRUSpec(3, 4, 2), tensorflow_cudnn_gru),
}


@pytest.mark.parametrize(("framework", "spec", "step"), STEPS.values(), ids=STEPS.keys())
def test_the_equations_of_a_framework(framework: str, spec: RecurrentSpec, step: Callable[..., Any]) -> None:
    random = np.random.default_rng(0)
    arrays = {name: random.standard_normal(shape) for name, shape in layouts.shapes(framework, spec).items()}
    snapshot = Snapshot(spec, layouts.from_framework(framework, spec, arrays))
    x = random.standard_normal((5, 3))
    expected = x
    for layer in range(2):
        own = {n.removesuffix(f"_l{layer}"): array for n, array in arrays.items() if n.endswith(f"_l{layer}")}
        h, c, outputs = np.zeros(4), np.zeros(4), []
        for row in expected:
            h, c = step(row, h, c, own)
            outputs.append(h)
        expected = np.stack(outputs)
    np.testing.assert_allclose(snapshot.build("numpy")(x)[0], expected, atol=1e-12)
