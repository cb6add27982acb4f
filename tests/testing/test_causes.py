"""Each usual mistake is recognised by its numbers, and no cause is named for other numbers."""

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from unirnn import (
    ActivationSpec,
    BatchNormSpec,
    Conv1dSpec,
    EmbeddingSpec,
    GRUSpec,
    LayerNormSpec,
    LinearSpec,
    LSTMSpec,
    NormalizeSpec,
    PoolSpec,
    RecurrentSpec,
    RNNSpec,
    Sequential,
    Snapshot,
    Spec,
    SumDirectionsSpec,
)
from unirnn.contract import weights as _weights
from unirnn.contract.call import state_parts
from unirnn.testing import oracle
from unirnn.testing.batches import Batch, batch
from unirnn.testing.causes import (
    gradient_cause,
    layer_cause,
    recurrent_cause,
    recurrent_gradient_cause,
    statistics_cause,
    weights_cause,
)
from unirnn.testing.causes.layers import LayerTrial, layer_hypotheses
from unirnn.testing.causes.numbers import is_close
from unirnn.testing.causes.recurrent import agrees, trial_of
from unirnn.testing.causes.recurrent_mistakes import hypotheses

TOLERANCE = 1e-9
SPECS = [
    (RNNSpec(3, 4, 2, bidirectional=True, nonlinearity="relu"), False),
    (GRUSpec(3, 4, 2, bidirectional=True, batch_first=True), True),
    (GRUSpec(4, 4, reset_after=False), True),
    (GRUSpec(3, 4, reverse=True), True),
    (LSTMSpec(3, 4, 3), False),
    (LSTMSpec(3, 4, bidirectional=True, gate_activation="hard_sigmoid"), False),
    (LSTMSpec(3, 4, proj_size=2), False),
]
"""Layers, and whether they are called with resets."""


def drawn(spec: RecurrentSpec, *, with_resets: bool = False) -> tuple[dict[str, Any], Batch]:
    given = batch(spec, seed=1, dtype="float64", with_state=True, with_resets=with_resets)
    return _weights.draw(spec, 0), given


@functools.cache
def recognised(spec: RecurrentSpec, with_resets: bool) -> dict[str, set[str]]:
    """For each mistake, the mistakes that are recognised in its numbers; none if it has no effect in this layer."""
    weights, given = drawn(spec, with_resets=with_resets)
    trial = trial_of(spec, weights, given)
    right = trial.run()
    candidates = {row.text: list(row.candidates(trial)) for row in hypotheses(spec, with_resets)}
    assert len(candidates) == len(list(hypotheses(spec, with_resets)))  # all texts differ
    found: dict[str, set[str]] = {}
    for text, own in candidates.items():
        found[text] = {
            other
            for other, others in candidates.items()
            for results in own
            if not agrees(results, right, TOLERANCE) and any(agrees(c, results, TOLERANCE) for c in others)
        }
    return found


@pytest.mark.parametrize(("spec", "with_resets"), SPECS, ids=str)
def test_each_mistake_of_a_recurrent_layer_has_its_own_numbers(spec: RecurrentSpec, with_resets: bool) -> None:
    for text, found in recognised(spec, with_resets).items():
        assert found <= {text}, text


def test_each_mistake_is_recognised_in_some_layer() -> None:
    """Every hypothesis is needed."""
    found = [recognised(spec, with_resets) for spec, with_resets in SPECS]
    for text in {text for rows in found for text in rows}:
        assert any(text in rows and rows[text] == {text} for rows in found), text


@pytest.mark.parametrize("where", ["input", "state", "weight"])
def test_nan_has_no_named_cause(where: str) -> None:
    spec = GRUSpec(3, 4, bidirectional=True)
    weights, given = drawn(spec)
    if where == "weight":
        weights["weight_hh_l0"] = np.nan * weights["weight_hh_l0"]
    elif where == "state":
        given = replace(given, hx=np.nan * given.hx)
    else:
        given = replace(given, input=np.nan * given.input)
    output, state = trial_of(spec, weights, given).run()
    for wrong in (np.nan * output, 0 * output):
        assert recurrent_cause(spec, weights, given, wrong, state, TOLERANCE) is None
    linear = LinearSpec(3, 2)
    arrays = {name: np.full(shape, np.nan) for name, shape in linear.weight_shapes().items()}
    first = np.ones((2, 5, 3)), np.array([5, 2]), np.ones((2, 5, 2))
    assert layer_cause(linear, arrays, *first, TOLERANCE) is None
    right = np.array([np.nan, 1.0])
    assert gradient_cause({"weight": 0 * right}, {"weight": right}, TOLERANCE) is None


MISTAKES = [
    "the gates are taken in the order z, r, n, which is that of Keras and ONNX, instead of r, z, n",
    "the GRU variant: the reset gate is applied before the product with W_hn, instead of after it",
    "z is inverted: h' = z * n + (1 - z) * h",
    "the recurrent bias is missing",
    "the reverse direction begins at step T-1, in the padding, instead of step n-1",
    "the final states of the two directions are exchanged",
    "a reset takes effect one step late",
]


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_is_named(text: str, batch_first: bool) -> None:
    spec = GRUSpec(3, 4, bidirectional=True, batch_first=batch_first)
    weights, given = drawn(spec, with_resets=True)
    trial = trial_of(spec, weights, given)
    (row,) = (row for row in hypotheses(spec, True) if row.text == text)
    output, state = next(iter(row.candidates(trial)))
    output = output.swapaxes(0, 1) if batch_first else output
    assert recurrent_cause(spec, weights, given, output, state, TOLERANCE) == text


def computed(spec: RecurrentSpec, given: Batch, weights: dict[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    module = Snapshot(spec, weights).build("numpy")
    output, state = module(given.input, given.hx, given.seq_length, given.resets)
    parts = state_parts(spec, state)
    assert parts is not None
    return output, parts


def test_right_numbers_and_noise_have_no_cause(rng: np.random.Generator) -> None:
    for spec in (GRUSpec(3, 4, batch_first=True), LSTMSpec(3, 4, 2, bidirectional=True)):
        weights, given = drawn(spec)
        output, state = computed(spec, given, weights)
        assert recurrent_cause(spec, weights, given, output, state, TOLERANCE) is None
        noise = rng.standard_normal(output.shape), [rng.standard_normal(part.shape) for part in state]
        assert recurrent_cause(spec, weights, given, *noise, TOLERANCE) is None


def test_several_causes_are_named_where_the_numbers_do_not_tell_them_apart() -> None:
    spec = RNNSpec(3, 4)
    weights, given = drawn(spec)
    _, (h_n,) = computed(spec, given, weights)
    wrong = h_n[:, np.argsort(-given.lengths, kind="stable")]
    assert recurrent_cause(spec, weights, given, None, (wrong,), TOLERANCE) == (
        "one of these: the sequences are sorted by length, and neither the output nor the final state is sorted back; "
        "the sequences are sorted by length, and the final state is not sorted back"
    )


def changed_padding(given: Batch, output: Any, state: Any) -> tuple[Any, Any]:
    return np.where(given.padding[..., None], 0.5, output), state


def exchanged_axes(given: Batch, output: Any, state: Any) -> tuple[Any, Any]:
    return output.swapaxes(0, 1), state


def nan(given: Batch, output: Any, state: Any) -> tuple[Any, Any]:
    output = output.copy()
    output[0, 0, 0] = np.nan
    return output, state


def dropped(given: Batch, output: Any, state: Any) -> tuple[Any, Any]:
    return output * (np.random.default_rng(0).random(output.shape) < 0.8) / 0.8, state


def rounded(dtype: str) -> Any:
    return lambda given, output, state: (output.astype(dtype), [part.astype(dtype) for part in state])


def noisy(size: float) -> Any:
    def change(given: Batch, output: Any, state: Any) -> tuple[Any, Any]:
        random = np.random.default_rng(0)
        return output * (1 + size * random.uniform(-1, 1, output.shape)), state

    return change


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (changed_padding, "the output is not set to zero in the padding"),
        (exchanged_axes, "the axes B and T of the output are exchanged"),
        (nan, "NaN leaks from the padding of the input, as when it is multiplied by a mask: 0 * NaN is NaN"),
        (
            dropped,
            "the output has dropout, with p = 0.2: some elements are 0, and the others are larger by a factor; no "
            "dropout follows the last layer, and none is applied in evaluation",
        ),
        (rounded("float32"), "it was computed in float32, or rounded to it"),
        (rounded("float16"), "it was computed in float16, or rounded to it"),
        (noisy(1e-7), "the difference is as large as the rounding to float32"),
        (noisy(1e-3), "the difference is as large as the rounding to TensorFloat-32 or float16, as products may be"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_numbers_themselves_show_a_mistake(change: Any, expected: str) -> None:
    spec = GRUSpec(3, 4, 2, bidirectional=True)
    weights, given = drawn(spec)
    given = given.filled(np.nan)
    output, state = change(given, *computed(spec, given, weights))
    assert recurrent_cause(spec, weights, given, output, state, TOLERANCE) == expected


def test_dropout_between_layers_is_suspected_if_the_spec_has_it() -> None:
    for dropout, expected in ((0.0, None), (0.5, "the first layer is right and those above it are not")):
        spec = GRUSpec(3, 4, 2, dropout=dropout)
        weights, given = drawn(spec)
        output, (h_n,) = computed(spec, given, weights)
        cause = recurrent_cause(spec, weights, given, 3 * output, [h_n * [[[1]], [[3]]]], TOLERANCE)
        assert (cause is None) if expected is None else str(cause).startswith(expected)


# ---- other layers --------------------------------------------------------------------------------

LAYERS = [
    *((PoolSpec(how), False) for how in ("mean", "max", "last", "first_last")),
    *((ActivationSpec(f), False) for f in ("softmax", "log_softmax", "gelu", "hard_sigmoid", "relu")),
    (BatchNormSpec(4), True),
    (BatchNormSpec(4), False),
    (LayerNormSpec(4), False),
    (NormalizeSpec(), False),
    (Conv1dSpec(4, 2, 4, padding="same"), False),
    (Conv1dSpec(4, 2, 3, padding="causal", dilation=2), False),
    (LinearSpec(4, 4), False),
    (SumDirectionsSpec(), False),
    (EmbeddingSpec(5, 4, padding_idx=2), False),
]
"""Layers, and whether they are called in training mode."""


def drawn_layer(spec: Spec, training: bool) -> LayerTrial:
    rng = np.random.default_rng(0)
    given = batch(spec, features=None if spec.input_features else 4, steps=7, batch_size=5, dtype="float64")
    weights = {name: rng.uniform(0.5, 2, shape) for name, shape in spec.weight_shapes().items()}
    return LayerTrial(spec, weights, given.input, given.lengths, training)


@pytest.mark.parametrize(("spec", "training"), LAYERS, ids=str)
def test_each_mistake_of_another_layer_is_recognised(spec: Spec, training: bool) -> None:
    trial = drawn_layer(spec, training)
    right = trial.run()
    seen = 0
    for text, candidates in layer_hypotheses(spec):
        with np.errstate(all="ignore"):
            outputs = list(candidates(trial))
        for output in outputs:
            if not is_close(output, right, TOLERANCE):
                found = layer_cause(
                    spec, trial.weights, trial.input, trial.lengths, output, TOLERANCE, training=training
                )
                assert found == text
                seen += 1
    assert seen


@pytest.mark.parametrize(
    ("spec", "change", "expected"),
    [
        (
            ActivationSpec("relu"),
            lambda t, right: np.where(t.padding[..., None], 1, right),
            "the output is not set to zero in the padding",
        ),
        (
            ActivationSpec("relu"),
            lambda t, right: right * np.where(t.padding, np.nan, 1)[..., None].max(axis=1, keepdims=True),
            "NaN leaks from the padding of the input, as when it is multiplied by a mask: 0 * NaN is NaN",
        ),
        (LinearSpec(4, 3), lambda t, right: right.astype("float16"), "it was computed in float16, or rounded to it"),
        (PoolSpec("mean"), lambda t, right: np.random.default_rng(1).standard_normal(right.shape), None),
        (PoolSpec("mean"), lambda t, right: right[:, :2], None),
    ],
)
def test_the_numbers_of_another_layer_show_a_mistake(spec: Spec, change: Any, expected: str | None) -> None:
    trial = drawn_layer(spec, False)
    output = change(trial, trial.run())
    time_first = output if spec.ends_steps else output.swapaxes(0, 1)
    arguments = (trial.input.swapaxes(0, 1), trial.lengths, time_first, TOLERANCE)
    assert layer_cause(spec, trial.weights, *arguments, batch_first=False) == expected


@pytest.mark.parametrize(
    ("select", "momentum", "ddof", "expected"),
    [
        (lambda t: t.input[~t.padding], 0.1, 1, None),
        (lambda t: t.input[~t.padding], 0.9, 1, "the momentum is taken the other way round"),
        (
            lambda t: t.input[~t.padding],
            0.1,
            0,
            "the running variance is updated with a variance divided by N, instead",
        ),
        (lambda t: t.input[~t.padding], 0, 1, "the running statistics are not changed"),
        (lambda t: t.input[~t.padding], 1, 1, "the running statistics are replaced by those of the batch"),
        (lambda t: t.input.reshape(-1, 4), 0.1, 1, "the running statistics count the padding, with the values in it"),
        (
            lambda t: t.zeroed.reshape(-1, 4),
            0.1,
            1,
            "the running statistics count the padding, which is taken to be zero",
        ),
        (lambda t: np.full((2, 4), 7.0), 0.1, 1, None),
    ],
)
def test_the_running_statistics_show_a_mistake(select: Any, momentum: float, ddof: int, expected: str | None) -> None:
    spec = BatchNormSpec(4)
    trial = drawn_layer(spec, True)
    steps = select(trial)
    after = {
        "running_mean": (1 - momentum) * trial.weights["running_mean"] + momentum * steps.mean(axis=0),
        "running_var": (1 - momentum) * trial.weights["running_var"] + momentum * steps.var(axis=0, ddof=ddof),
    }
    found = statistics_cause(spec, trial.weights, trial.input, trial.lengths, after, TOLERANCE)
    assert (found is None) == (expected is None)
    assert found is None or found.startswith(str(expected))


# ---- weights and gradients -----------------------------------------------------------------------


def in_gate_order(spec: RecurrentSpec, order: str) -> Any:
    """Reorder the rows of each weight to another order of the gates."""
    blocks = [spec.gates.index(gate) for gate in order.split()]
    return lambda name, array: array.reshape(len(blocks), -1, *array.shape[1:])[blocks].reshape(array.shape)


def summed(weights: dict[str, Any]) -> dict[str, Any]:
    total = weights["bias_ih_l0"] + weights["bias_hh_l0"]
    return {**weights, "bias_ih_l0": total, "bias_hh_l0": 0 * total}


@pytest.mark.parametrize(
    ("spec", "change", "expected"),
    [
        (GRUSpec(3, 4), lambda w: w, None),
        (
            GRUSpec(3, 4),
            lambda w: {name: in_gate_order(GRUSpec(3, 4), "z r n")(name, a) for name, a in w.items()},
            "the gates are in the order z, r, n instead of r, z, n",
        ),
        (
            Sequential(lstm=LSTMSpec(3, 4), head=LinearSpec(4, 2)),
            lambda w: {
                name: in_gate_order(LSTMSpec(3, 4), "i o f g")(name, a) if "lstm" in name else a
                for name, a in w.items()
            },
            "lstm: the gates are in the order i, o, f, g instead of i, f, g, o",
        ),
        (RNNSpec(3, 4), summed, "the two biases are summed into bias_ih, and bias_hh is zeros"),
        (
            RNNSpec(3, 4),
            lambda w: {**w, "bias_ih_l0": w["bias_hh_l0"], "bias_hh_l0": w["bias_ih_l0"]},
            "bias_ih and bias_hh are exchanged",
        ),
        (
            GRUSpec(3, 4, bidirectional=True),
            lambda w: {
                name: w[name.removesuffix("_reverse") if "_reverse" in name else f"{name}_reverse"] for name in w
            },
            "the weights of the two directions are exchanged",
        ),
        (
            GRUSpec(3, 4),
            lambda w: {**w, "weight_hh_l0": w["weight_hh_l0"].reshape(3, 4, 4).swapaxes(1, 2).reshape(12, 4)},
            "the recurrent weights are transposed, gate by gate",
        ),
        (GRUSpec(3, 4), lambda w: {**w, "bias_hh_l0": 0 * w["bias_hh_l0"]}, "bias_hh_l0 is zeros"),
        (
            Sequential(a=LinearSpec(4, 4), b=LinearSpec(4, 4)),
            lambda w: {**w, "a.weight": w["a.weight"].T, "b.weight": w["b.weight"].T},
            "a.weight, b.weight are transposed",
        ),
        (
            LinearSpec(4, 3),
            lambda w: {**w, "weight": w["weight"].astype("float16")},
            "weight: it was computed in float16, or rounded to it",
        ),
        (LinearSpec(4, 3), lambda w: {**w, "bias": -w["bias"]}, "bias differs, by up to 2 of the largest value"),
        (
            LinearSpec(4, 3),
            lambda w: {"weight": 1.5 * w["weight"], "bias": 3 * w["bias"]},
            "bias and 1 more differ, by up to 2 of the largest value",
        ),
    ],
)
def test_the_difference_of_weights_is_named(spec: Spec, change: Any, expected: str | None) -> None:
    weights = _weights.draw(spec, 0)
    assert weights_cause(spec, weights, change(weights)) == expected


def gradients_of(spec: RecurrentSpec) -> tuple[dict[str, Any], Batch, tuple[Any, ...], dict[str, Any]]:
    weights, given = drawn(spec)
    parts = state_parts(spec, given.hx)
    assert parts is not None
    arrays = {"input": given.input, **{f"{s}_0": p for s, p in zip(spec.states, parts, strict=True)}, **weights}
    rng = np.random.default_rng(3)
    output = rng.standard_normal((*given.input.shape[:2], spec.output_features(0)))
    cotangents = (output, *(rng.standard_normal(part.shape) for part in parts))
    return arrays, given, cotangents, oracle.gradients(spec, arrays, given.seq_length, cotangents)


def put(name: str, change: Any) -> Any:
    return lambda given, found: {**found, name: change(found[name])}


def in_padding(value: float) -> Any:
    return lambda given, found: {**found, "input": np.where(given.padding[..., None], value, found["input"])}


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda given, found: found, None),
        (in_padding(0.25), "the gradient with respect to the padding of the input is not zero"),
        (in_padding(np.nan), "the gradient with respect to the padding of the input is NaN, instead of zero"),
        (
            put("weight_hh_l0", lambda d: d * np.nan),
            "the gradient of weight_hh_l0 is NaN, as if NaN went through a mask on the way back: 0 * NaN is NaN, also "
            "in the branch that a `where` does not take",
        ),
        (
            put("h_0", lambda d: None),
            "the gradient of h_0 is missing, or zero: it is cut off (detached) from the graph",
        ),
        (put("bias_ih_l0", np.zeros_like), "the gradient of bias_ih_l0 is missing, or zero"),
        (put("weight_ih_l0", lambda d: 2 * d), "the gradient of weight_ih_l0 is counted twice"),
        (put("weight_ih_l0", lambda d: -d), "the gradient of weight_ih_l0 is -1 times the right one"),
        (
            lambda given, found: {name: d / 4 for name, d in found.items()},
            "all gradients are 0.25 times the right one",
        ),
        (put("input", lambda d: d.astype("float32")), "it was computed in float32, or rounded to it"),
        (put("input", lambda d: d[::-1]), None),
    ],
)
@pytest.mark.parametrize("batch_first", [False, True])
def test_a_mistake_in_gradients_is_named(change: Any, expected: str | None, batch_first: bool) -> None:
    spec = GRUSpec(3, 4, batch_first=batch_first)
    arrays, given, cotangents, right = gradients_of(spec)
    found = change(given, right)
    cause = recurrent_gradient_cause(spec, arrays, given.seq_length, cotangents, found, TOLERANCE)
    assert cause == expected


@pytest.mark.parametrize("ignored", ["output", "final state"])
def test_a_cotangent_that_is_ignored_is_named(ignored: str) -> None:
    spec = LSTMSpec(3, 4)
    arrays, given, (d_output, *d_state), _ = gradients_of(spec)
    other = (d_output, *(0 * d for d in d_state)) if ignored == "final state" else (0 * d_output, *d_state)
    found = oracle.gradients(spec, arrays, given.seq_length, other)
    cause = recurrent_gradient_cause(spec, arrays, given.seq_length, (d_output, *d_state), found, TOLERANCE)
    assert cause == f"the gradient that comes from the {ignored} is ignored"


def test_padding_idx_that_is_trained_is_named() -> None:
    spec = EmbeddingSpec(3, 2, padding_idx=1)
    right = {"weight": np.array([[1.0, 2.0], [0.0, 0.0], [3.0, 4.0]])}
    wrong = {"weight": right["weight"] + [[0], [1], [0]]}
    cause = gradient_cause(wrong, right, TOLERANCE, spec=spec)
    assert cause == "padding_idx is ignored: the gradient of its vector is not zero"
