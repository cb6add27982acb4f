"""Models on NumPy: writing weights in place, pullbacks and the arrays that they keep, and steps."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from unirnn_numpy import backend

import unirnn
from unirnn import (
    ActivationSpec,
    BatchNormSpec,
    Concat,
    Conv1dSpec,
    DropoutSpec,
    EmbeddingSpec,
    GRUSpec,
    LayerNormSpec,
    LinearSpec,
    LSTMSpec,
    NormalizeSpec,
    PoolSpec,
    Residual,
    Sequential,
    Spec,
    errors,
)
from unirnn.contract.backend import leaves
from unirnn.testing.tolerances import close

Array = NDArray[Any]

CLASSIFIER = Sequential(
    embedding=EmbeddingSpec(7, 4, padding_idx=0),
    encoder=GRUSpec(4, 5, bidirectional=True, batch_first=True),
    pool=PoolSpec("mean"),
    head=LinearSpec(10, 3),
)
LANGUAGE_MODEL = Sequential(
    embedding=EmbeddingSpec(7, 4),
    encoder=LSTMSpec(4, 4, 2, batch_first=True),
    head=LinearSpec(4, 7, tied_to="embedding"),
)
CAUSAL = Sequential(
    conv=Conv1dSpec(3, 4, 3, padding="causal"), encoder=LSTMSpec(4, 5, batch_first=True), head=LinearSpec(5, 2)
)
TOKENS = np.random.default_rng(0).integers(1, 7, (4, 6))
FEATURES = np.random.default_rng(0).standard_normal((4, 6, 3))
LENGTHS = np.array([6, 0, 3, 5])


# ---- weights -------------------------------------------------------------------------------------


def test_weights_are_written_in_place() -> None:
    net = CLASSIFIER.build("numpy", seed=0)
    before = net(TOKENS)
    net.weights["head.bias"] += 1
    close(net(TOKENS), before + 1, 1e-6)
    net.weights["head.bias"] = net.weights["head.bias"] - 1  # replaced
    close(net(TOKENS), before, 1e-6)
    arrays = dict(net.weights)
    backend.write(net, CLASSIFIER.build("numpy", seed=1).weights)
    assert all(net.weights[name] is array for name, array in arrays.items())
    close(net(TOKENS), CLASSIFIER.build("numpy", seed=1)(TOKENS), 1e-6)


# ---- pullbacks -----------------------------------------------------------------------------------


@pytest.mark.parametrize("is_batched", [True, False])
def test_forms_of_a_pullback(is_batched: bool) -> None:
    net = CAUSAL.build("numpy", dtype="float64", seed=0)
    x = FEATURES if is_batched else FEATURES[0]
    output, state, pullback = net.vjp(x)
    for actual, expected in zip((output, *flat(state)), flat(net(x, return_state=True)), strict=True):
        np.testing.assert_array_equal(actual, expected)
    context, (h, c) = state
    d = np.ones_like(output)
    zeros = (np.zeros_like(context), (np.zeros_like(h), np.zeros_like(c)))
    without = pullback(d)
    assert list(without) == ["input", "hx[0]", "hx[1][0]", "hx[1][1]", *net.weights]
    assert without["input"].shape == x.shape
    for gradient, part in zip(("hx[0]", "hx[1][0]", "hx[1][1]"), flat(state), strict=True):
        assert without[gradient].shape == part.shape
    for d_state in (zeros, [None, zeros[1]], (None, None), (zeros[0], (None, zeros[1][1]))):
        assert_same(pullback(d, d_state), without)
    both = pullback(d, (None, (None, np.ones_like(c))))
    alone = pullback(np.zeros_like(output), (None, (None, np.ones_like(c))))
    for name, gradient in both.items():
        close(gradient, without[name] + alone[name], 1e-12, name)


WRONG: dict[str, tuple[Any, Any, type[Exception], str]] = {
    "output": (np.ones((4, 6, 3)), None, errors.ShapeError, r"d_output: given shape \(4, 6, 3\), expected \(4, 6, 2\)"),
    "no tuple": (np.ones((4, 6, 2)), np.ones(2), errors.ArgumentError, "d_state: given ndarray, expected a tuple of 2"),
    "no pair": (np.ones((4, 6, 2)), (None, np.ones(2)), errors.ArgumentError, r"d_state\[1\]: given 1 arrays"),
    "shape": (np.ones((4, 6, 2)), (np.ones(2), None), errors.ShapeError, r"d_state\[0\]: given shape \(2,\), expected"),
}


@pytest.mark.parametrize(("d_output", "d_state", "error", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_cotangents(d_output: Any, d_state: Any, error: type[Exception], words: str) -> None:
    _, _, pullback = CAUSAL.build("numpy", seed=0).vjp(FEATURES.astype(np.float32))
    with pytest.raises(error, match=words):
        pullback(d_output, d_state)


def test_gradients_of_chunks_add_up_to_those_of_one_call() -> None:
    net = CAUSAL.build("numpy", dtype="float64", seed=0)
    d_output = np.random.default_rng(1).standard_normal((4, 6, 2))
    expected = net.vjp(FEATURES, seq_length=LENGTHS)[2](d_output)
    pullbacks, state = [], None
    for begin, end in ((0, 2), (2, 6)):
        left = np.clip(LENGTHS - begin, 0, end - begin)
        _, state, pullback = net.vjp(FEATURES[:, begin:end], state, left)
        pullbacks.append(pullback)
    second = pullbacks[1](d_output[:, 2:])
    d_state = (second["hx[0]"], (second["hx[1][0]"], second["hx[1][1]"]))
    first = pullbacks[0](d_output[:, :2], d_state)
    close(np.concatenate([first["input"], second["input"]], axis=1), expected["input"], 1e-12)
    for name in net.weights:
        close(first[name] + second[name], expected[name], 1e-12, name)


KEPT: list[Spec] = [
    LinearSpec(3, 2),
    *[ActivationSpec(function) for function in ("tanh", "sigmoid", "softmax", "log_softmax")],
    NormalizeSpec(),
    LayerNormSpec(3),
    Conv1dSpec(3, 2, 3, padding="causal"),
    PoolSpec("max"),
    GRUSpec(3, 2, batch_first=True),
    Residual(Sequential(ActivationSpec("tanh"))),
    Concat(Sequential(), ActivationSpec("tanh")),
    CAUSAL,
    LANGUAGE_MODEL,
]


@pytest.mark.parametrize("lengths", [None, LENGTHS], ids=["dense", "ragged"])
@pytest.mark.parametrize("spec", KEPT, ids=repr)
def test_arrays_may_be_overwritten_before_the_pullback(spec: Spec, lengths: Array | None) -> None:
    net = Sequential(spec).build("numpy", dtype="float64", seed=0)
    x = TOKENS.copy() if spec.takes_tokens else FEATURES.copy()
    wanted = None
    for overwrites in (False, True):
        output, state, pullback = net.vjp(x, seq_length=lengths)
        d = np.random.default_rng(0).standard_normal(output.shape)
        if overwrites:
            x[...] = 0
            for array in (output, *flat(state)):
                array[...] = -100
        found = pullback(d)
        assert_same(found, wanted or found)
        wanted = found


def test_dropout_and_its_gradient_use_the_same_factor() -> None:
    for spec in (DropoutSpec(0.5), DropoutSpec(0.5, locked=True)):
        for lengths in (None, LENGTHS):
            net = spec.build("numpy", seed=0).train()
            x = np.ones((4, 6, 8), np.float32)
            output, _, pullback = net.vjp(x, seq_length=lengths)
            np.testing.assert_array_equal(pullback(x)["input"], output)
            np.testing.assert_array_equal(spec.build("numpy", seed=0).train()(x, seq_length=lengths), output)
            assert not np.array_equal(net(x, seq_length=lengths), output)
            if spec.locked:
                np.testing.assert_array_equal(output[0], np.broadcast_to(output[0, :1], (6, 8)))
                assert not np.array_equal(output[0], output[3])


@pytest.mark.parametrize("lengths", [None, []], ids=["dense", "ragged"])
@pytest.mark.parametrize("spec", KEPT, ids=repr)
def test_an_empty_batch_has_gradients_of_zeros(spec: Spec, lengths: Any) -> None:
    net = Sequential(spec).build("numpy", seed=0)
    x = TOKENS[:0] if spec.takes_tokens else FEATURES[:0].astype(np.float32)
    output, _, pullback = net.vjp(x, seq_length=lengths)
    assert output.shape == net(FEATURES.astype(np.float32) if len(x.shape) == 3 else TOKENS)[:0].shape
    for gradient in pullback(output).values():
        assert (gradient == 0).all()


@pytest.mark.parametrize("spec", [PoolSpec("mean"), Sequential()], ids=repr)
def test_gradients_may_be_overwritten(spec: Spec) -> None:
    net = spec.build("numpy", dtype="float64")
    output, _, pullback = net.vjp(FEATURES)
    pullback(np.ones_like(output))["input"] *= 2


@pytest.mark.parametrize("dtype", ["int8", "int32", "uint8", "uint64"])
def test_tokens_are_integers_of_any_kind(dtype: str) -> None:
    net = CLASSIFIER.build("numpy", seed=0)
    np.testing.assert_array_equal(net(TOKENS.astype(dtype)), net(TOKENS))


# ---- dtypes and kernels --------------------------------------------------------------------------


def test_float16_is_computed_in_float32_and_rounded_once() -> None:
    spec = Sequential(
        Conv1dSpec(3, 8, 3, padding="causal"),
        BatchNormSpec(8),
        GRUSpec(8, 8, batch_first=True),
        LayerNormSpec(8),
        LinearSpec(8, 3),
        ActivationSpec("gelu"),
    )
    half, single = (spec.build("numpy", dtype=dtype, seed=0).train() for dtype in ("float16", "float32"))
    for name, array in single.weights.items():
        array[...] = half.weights[name]
    x = FEATURES.astype(np.float16)
    (output, state, pullback), (expected, states, pull) = half.vjp(x), single.vjp(x.astype(np.float32))
    assert output.dtype == np.float16
    for actual, wanted in zip((output, *flat(state)), (expected, *flat(states)), strict=True):
        np.testing.assert_array_equal(actual, wanted.astype(np.float16))
    d = np.ones_like(output)
    found, gradients = pullback(d), pull(d.astype(np.float32))
    for name, gradient in found.items():
        assert gradient.dtype == np.float16
        np.testing.assert_array_equal(gradient, gradients[name].astype(np.float16))
    for name, array in half.weights.items():  # the running statistics
        np.testing.assert_array_equal(array, single.weights[name].astype(np.float16))
    y, state = half.eval().step(x[:, 0])
    assert {part.dtype for part in (y, *flat(state))} == {np.dtype(np.float16)}


@pytest.mark.parametrize("kernel", ["compiled", "fallback", "reference"])
def test_the_kernel_applies_to_the_recurrent_layers(kernel: str) -> None:
    if kernel == "compiled" and not unirnn.kernels.is_compiled():
        pytest.skip("no compiled kernels")
    auto, net = (CAUSAL.build("numpy", dtype="float64", seed=0, kernel=name) for name in ("auto", kernel))
    close(net(FEATURES, seq_length=LENGTHS), auto(FEATURES, seq_length=LENGTHS), 1e-12)
    close(net.step(FEATURES[:, 0])[0], auto.step(FEATURES[:, 0])[0], 1e-12)
    if kernel == "reference":
        with pytest.raises(errors.ArgumentError, match="kernel='reference', which has no gradients"):
            net.vjp(FEATURES)
        LinearSpec(3, 2).build("numpy", dtype="float64", kernel=kernel).vjp(FEATURES)


def test_unknown_kernel() -> None:
    with pytest.raises(errors.ArgumentError, match="kernel: given 'fast', expected one of 'auto'"):
        PoolSpec("mean").build("numpy", kernel="fast")


# ---- steps, copies, threads ----------------------------------------------------------------------


def test_a_step_uses_the_current_weights() -> None:
    net = LANGUAGE_MODEL.build("numpy", seed=0)
    _, state = net.step(TOKENS[:, 0])
    found = []
    for factor in (1, 0.5, 0.5):
        net.weights["encoder.weight_hh_l0"] *= factor
        net.weights["encoder.weight_ih_l1"] = net.weights["encoder.weight_ih_l1"] * factor
        y, _ = net.step(TOKENS[:, 1], state)
        close(y, net(TOKENS[:, 1:2], state)[:, 0], 1e-6)
        found.append(float(y.sum()))
    assert len(set(found)) == 3


def test_a_model_that_has_made_steps_can_be_copied() -> None:
    net = LANGUAGE_MODEL.build("numpy", seed=0)
    wanted, _ = net.step(TOKENS[:, 0])
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        np.testing.assert_array_equal(other.step(TOKENS[:, 0])[0], wanted)
        other.weights["embedding.weight"][...] = 0
    np.testing.assert_array_equal(net.step(TOKENS[:, 0])[0], wanted)


def test_threads_can_share_a_model() -> None:
    net = LANGUAGE_MODEL.build("numpy", seed=0)
    batches = np.random.default_rng(0).integers(0, 7, (8, 16, 12))

    def run(tokens: Array) -> list[Array]:
        output, _, pullback = net.vjp(tokens, seq_length=tokens[:, 0])
        state, outputs = None, []
        for t in range(tokens.shape[1]):
            y, state = net.step(tokens[:, t], state)
            outputs.append(y)
        return [output, *pullback(output).values(), *outputs]

    expected = [run(tokens) for tokens in batches]
    with ThreadPoolExecutor(4) as pool:
        for arrays, wanted in zip(pool.map(run, batches), expected, strict=True):
            for actual, other in zip(arrays, wanted, strict=True):
                np.testing.assert_array_equal(actual, other)


def flat(results: Any) -> list[Array]:
    return list(leaves({"results": results}).values())


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_array_equal(array, expected[name], name)


def test_an_error_names_the_layer_and_the_part_of_the_state() -> None:
    x, h = np.zeros((2, 5, 3), "float32"), np.zeros((1, 2, 4), "float32")
    lstm = Sequential(encoder=LSTMSpec(3, 4, batch_first=True)).build("numpy")
    with pytest.raises(errors.ShapeError, match=r"hx\[0\]\[1\] \(encoder\): given shape \(1, 1, 4\), expected"):
        lstm(x, ((h, h[:, :1]),))
    with pytest.raises(errors.DTypeError, match=r"state\[0\]\[0\] \(encoder\): given dtype float64, expected float32"):
        lstm.step(x[:, 0], ((h.astype("float64"), h),))
    alone = Conv1dSpec(3, 4, 3, padding="causal").build("numpy")
    with pytest.raises(errors.ArgumentError, match=r"hx: given ndarray, expected a tuple .* a state: Conv1d$"):
        alone(x, x)
    with pytest.raises(errors.ShapeError, match=r"hx\[0\] \(Conv1d\): given shape \(2, 5, 3\), expected \(2, 2, 3\)"):
        alone(x, (x,))
