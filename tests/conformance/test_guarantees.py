"""What every backend guarantees, checked against the oracle.

First come the cases of a table, then random ones from hypothesis. The same tests check the backend of a third party:
``pytest tests/conformance --backend NAME``.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cases import (
    CASES,
    KINDS,
    RAGGED,
    TOLERANCES,
    VARIANT_CASES,
    VARIANTS,
    Batch,
    Case,
    available,
    built,
    cases,
    in_its_dtype,
    skip_if_brief,
)
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from subjects import Subject, close, gradients

import unirnn
from unirnn import LSTMSpec, RecurrentSpec, RNNSpec, Snapshot
from unirnn.contract.call import join_state, state_parts
from unirnn.testing.oracle import derivative

# a warning of torch about its own layer
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

Results = tuple[NDArray[Any], tuple[NDArray[Any], ...]]


def assert_numbers(subject: Subject, case: Case, batch: Batch, spec: RecurrentSpec, results: Results) -> None:
    """Output and final state are the oracle's; padding gives 0; a sequence of length 0 ends in its initial state."""
    output, final = results
    tolerance = TOLERANCES[case.dtype] * subject.tolerance_factor
    expected_output, expected_final = batch.expected(spec)
    assert output.dtype == case.dtype
    # The scale is that of all layers: a narrow last layer may cancel most of what it gets.
    scale = max(np.abs(array).max() for array in (expected_output, *expected_final))
    close(output, expected_output, tolerance, "output", scale=scale)
    for name, part, expected in zip(spec.states, final, expected_final, strict=True):
        close(part, expected, tolerance, f"{name}_n", scale=scale)
    assert (output[batch.padding] == 0).all(), "output in the padding is not exactly 0"
    if batch.lengths is not None:
        empty = np.broadcast_to(batch.lengths == 0, (case.batch_size or 1,))
        for part, initial in zip(final, batch.hx, strict=True):
            np.testing.assert_array_equal(
                part.reshape(len(part), -1, part.shape[-1])[:, empty],
                initial.reshape(len(part), -1, part.shape[-1])[:, empty],
                "a sequence of length 0 does not end in its initial state",
            )


def assert_gradients(
    subject: Subject, case: Case, batch: Batch, spec: RecurrentSpec, gradients: dict[str, NDArray[Any]]
) -> None:
    """Each gradient agrees with the oracle's derivative along one random direction."""
    arrays = {"input": batch.input, **{f"{s}_0": p for s, p in zip(spec.states, batch.hx, strict=True)}}
    arrays = {**{name: array.astype(np.float64) for name, array in arrays.items()}, **batch.weights}
    assert gradients.keys() == arrays.keys()
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    if case.scale != 1:  # gradients of saturated gates are rounding errors times a huge input: not comparable
        return
    cotangents = tuple(d.astype(np.float64) for d in (batch.d_output, *batch.d_state))
    rng = np.random.default_rng(1)
    for name, array in arrays.items():
        direction = rng.choice([-1.0, 1.0], array.shape)
        expected = derivative(spec, arrays, batch.lengths, cotangents, name, direction, batch.resets)
        actual = float((gradients[name].astype(np.float64) * direction).sum())
        scale = max(1.0, float(np.abs(gradients[name]).sum()))
        assert abs(actual - expected) <= TOLERANCES[case.dtype] * subject.tolerance_factor * scale, (
            f"gradient of {name}: {actual}, expected {expected} along a direction"
        )


def assert_guarantees(subject: Subject, kind: str, case: Case, filler: float, *, gradients_known: bool = True) -> None:
    """Results and gradients are the oracle's, and stay the same bit for bit with the filler in the padding."""
    case = in_its_dtype(subject, case)
    module, batch = built(subject, kind, case)
    hx = batch.hx if case.state else None
    results = subject.call(module, batch.input, hx, case.seq_length, batch.resets)
    assert_numbers(subject, case, batch, module.spec, results)

    dirty = batch.input.copy()
    dirty[batch.padding] = filler
    if batch.padding.any():
        output, final = subject.call(module, dirty, hx, case.seq_length, batch.resets)
        np.testing.assert_array_equal(output, results[0])
        for part, expected in zip(final, results[1], strict=True):
            np.testing.assert_array_equal(part, expected)
    if not subject.backend.support.derivatives:
        return

    def gradients_of_input(input: NDArray[Any]) -> dict[str, NDArray[Any]]:
        lengths = batch.lengths if case.batch_size is not None else case.seq_length
        cotangents = batch.d_output, batch.d_state
        return gradients(subject.backend, module, input, batch.hx, lengths, *cotangents, batch.resets)

    clean_gradients = gradients_of_input(batch.input)
    # In float16, rounding may move a value to the other side of the kink of relu.
    if case.dtype != "float16" and gradients_known:
        assert_gradients(subject, case, batch, module.spec, clean_gradients)
    if batch.padding.any():
        dirty_gradients = gradients_of_input(dirty)
        for name, expected in clean_gradients.items():
            np.testing.assert_array_equal(dirty_gradients[name], expected, f"gradient of {name}")
        assert (dirty_gradients["input"][batch.padding] == 0).all(), "gradient of the padding is not exactly 0"


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
@pytest.mark.parametrize("kind", KINDS)
def test_guarantees(subject: Subject, kind: str, case: Case) -> None:
    if case not in VARIANT_CASES.values():
        skip_if_brief(subject, kind)
    skip_unsupported(subject, kind, case)
    assert_guarantees(subject, kind, case, np.nan)


@pytest.mark.parametrize("case", VARIANT_CASES.values(), ids=VARIANT_CASES.keys())
@pytest.mark.parametrize("kind", VARIANTS)
def test_guarantees_of_variants(subject: Subject, kind: str, case: Case) -> None:
    skip_unsupported(subject, kind, case)
    assert_guarantees(subject, kind, case, np.nan)


@pytest.mark.parametrize("kind", ["RNN-tanh", "GRU-reset-before"])  # whose gradients cancel the most
def test_float32_gradients_of_deep_narrow_stacks(subject: Subject, kind: str) -> None:
    """Each number agrees, relative to the largest of all gradients, though some are small sums of large numbers."""
    if not subject.backend.support.derivatives:
        pytest.skip(f"{subject.label} has no gradients")
    case = Case(steps=100, batch_size=3, num_layers=6, bidirectional=True, input_size=1, hidden_size=1, dtype="float32")
    if subject.label == "mindspore-native":  # its operators take a minute for so many steps of so many layers
        case = replace(case, steps=10, num_layers=2)
    module, batch = built(subject, kind, case)
    cotangents = batch.d_output, batch.d_state
    found = gradients(subject.backend, module, batch.input, batch.hx, None, *cotangents)

    reference = Snapshot(module.spec, batch.weights).build("numpy")  # in float64, whose gradients are the oracle's
    input, *wide = (array.astype(np.float64) for array in (batch.input, *batch.hx, *batch.d_state, batch.d_output))
    parts = len(batch.hx)
    _, _, pullback = reference.vjp(input, join_state(wide[:parts]))
    expected = pullback(wide[-1], join_state(wide[parts:-1]))
    assert found.keys() == expected.keys()
    largest = max(np.abs(array).max() for array in expected.values())
    for name, array in expected.items():
        close(found[name], array, TOLERANCES["float32"], f"gradient of {name}", scale=largest)


def skip_unsupported(subject: Subject, kind: str, case: Case) -> None:
    """Skip what the backend says that it does not compute."""
    reason = subject.backend.support.unsupported_reason(case.spec(kind))
    if reason is not None:
        pytest.skip(reason)


@given(kind=st.sampled_from([*KINDS, *VARIANTS]), case=cases(), filler=st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
def test_random_specs(subject: Subject, kind: str, case: Case, filler: float) -> None:
    # Without a bias, zero inputs give 0, where frameworks define the slope of relu differently.
    assume("projected" not in kind or case.hidden_size > 3)
    assume(subject.backend.support.unsupported_reason(case.spec(kind)) is None)
    known = kind != "RNN-relu" or case.bias or not subject.relu_at_zero
    assert_guarantees(subject, kind, case, filler, gradients_known=known)


INTEGERS = ("int8", "int16", "int32", "int64", "uint8")


@pytest.mark.parametrize(
    "form",
    ["list", "tuple", *(f"{where}-{kind}" for where in ("numpy", "native") for kind in INTEGERS), "numpy-uint64"],
)
def test_lengths_of_any_type(subject: Subject, form: str) -> None:
    case = in_its_dtype(subject, CASES["ragged, bidirectional"])
    module, batch = built(subject, "GRU", case)
    expected, _ = subject.call(module, batch.input, batch.hx, case.seq_length)
    where, _, kind = form.partition("-")
    given: Any = {"list": list, "tuple": tuple}[where](RAGGED) if not kind else np.array(RAGGED, kind)
    if where == "native":
        given = subject.array(given, module)
    output, _ = subject.call(module, batch.input, batch.hx, given)
    np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("form", ["list", "numpy", "native"])
def test_resets_of_any_type(subject: Subject, form: str) -> None:
    case = in_its_dtype(subject, CASES["resets, ragged, bidirectional"])
    module, batch = built(subject, "GRU", case)
    assert batch.resets is not None
    expected, _ = batch.expected(module.spec)
    given: Any = batch.resets.tolist() if form == "list" else batch.resets
    if form == "native":
        given = subject.array(batch.resets, module)
    output, _ = subject.call(module, batch.input, batch.hx, case.seq_length, given)
    close(output, expected, TOLERANCES[case.dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_full_lengths_equal_no_lengths(subject: Subject, kind: str) -> None:
    case = replace(CASES["dense, 3 layers, bidirectional, no bias"], lengths=(6, 6, 6, 6))
    case = in_its_dtype(subject, case)
    module, batch = built(subject, kind, case)
    ragged = subject.call(module, batch.input, batch.hx, case.seq_length)
    dense = subject.call(module, batch.input, batch.hx)
    close(ragged[0], dense[0], TOLERANCES[case.dtype])
    for part, expected in zip(ragged[1], dense[1], strict=True):
        close(part, expected, TOLERANCES[case.dtype])


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(subject: Subject, kind: str) -> None:
    module = subject.build(Case().spec(kind), seed=0)
    output, final = subject.call(module, np.zeros((5, 0, 3), np.float32), seq_length=[])
    assert output.shape == (5, 0, 4)
    assert {part.shape for part in final} == {(1, 0, 4)}


def assert_same_as_numpy(subject: Subject, taken: Snapshot, arrays: dict[str, Any], seq_length: list[int]) -> None:
    """Compare with the numpy backend where the complex-step oracle would give NaN."""
    dtype = available(subject, "float64")
    tolerance = TOLERANCES[dtype]
    taken, arrays = taken.cast(dtype), {name: array.astype(dtype) for name, array in arrays.items()}
    names = ("input", *(f"{state}_0" for state in taken.spec.states))
    input, *hx = (arrays[name] for name in names)
    reference = taken.cast("float64").build("numpy")
    module = subject.rebuild(taken)
    wide, *wide_hx = (arrays[name].astype(np.float64) for name in names)
    expected, expected_final, pullback = reference.vjp(wide, join_state(wide_hx), seq_length)
    output, final = subject.call(module, input, tuple(hx), seq_length)
    close(output, expected, tolerance, "output")
    for part, wanted in zip(final, state_parts(taken.spec, expected_final) or (), strict=True):
        np.testing.assert_allclose(part, wanted, rtol=tolerance, atol=tolerance)
    if subject.backend.support.derivatives:
        cotangents = np.ones_like(output), tuple(np.ones_like(part) for part in hx)
        actual = gradients(subject.backend, module, input, tuple(hx), np.array(seq_length), *cotangents)
        for name, gradient in pullback(cotangents[0], join_state(cotangents[1])).items():
            np.testing.assert_allclose(actual[name], gradient, rtol=1e3 * tolerance, atol=1e3 * tolerance, err_msg=name)


def test_relu_does_not_overflow_in_the_padding(subject: Subject) -> None:
    spec = RNNSpec(3, 4, nonlinearity="relu", bidirectional=True)
    weights = unirnn.snapshot(spec.build("numpy", dtype="float64", seed=0)).weights
    weights = {name: 6.0 * np.eye(4) if "weight_hh" in name else np.abs(a) for name, a in weights.items()}
    rng = np.random.default_rng(0)
    arrays = {"input": rng.random((600, 3, 3)), "h_0": rng.random((2, 3, 4))}
    assert_same_as_numpy(subject, Snapshot(spec, weights), arrays, [3, 0, 2])


def test_saturated_gates_in_the_padding_leave_the_cell_state(subject: Subject) -> None:
    spec = LSTMSpec(3, 4, bidirectional=True)
    weights = dict(unirnn.snapshot(spec.build("numpy", dtype="float64", seed=0)).weights)
    for name in ("bias_ih_l0", "bias_ih_l0_reverse"):
        weights[name] = weights[name] + np.repeat([3e4, -3e4, 0.0, 0.0], 4)
    rng = np.random.default_rng(0)
    arrays = {"input": rng.random((9, 3, 3)), "h_0": rng.random((2, 3, 4)), "c_0": rng.random((2, 3, 4))}
    assert_same_as_numpy(subject, Snapshot(spec, weights), arrays, [3, 0, 9])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_the_state_of_an_empty_sequence_changes_no_other_number(subject: Subject, kind: str, value: float) -> None:
    skip_if_brief(subject, kind)
    spec = Case(bidirectional=True, num_layers=2).spec(kind)
    taken = unirnn.snapshot(spec.build("numpy", dtype="float64", seed=0))
    rng = np.random.default_rng(0)
    arrays = {"input": rng.random((5, 3, 3)), **{f"{s}_0": rng.random((4, 3, 4)) for s in spec.states}}
    for state in spec.states:
        arrays[f"{state}_0"][:, 1] = value
    assert_same_as_numpy(subject, taken, arrays, [5, 0, 2])


def test_dropout_drops_and_rescales_between_layers_only(subject: Subject) -> None:
    spec = RNNSpec(2, 16, 2, nonlinearity="relu", dropout=0.75)
    weights = {name: np.zeros(shape, np.float32) for name, shape in spec.weight_shapes().items()}
    weights["bias_ih_l0"] += 1  # the first layer's output is 1 everywhere
    weights["weight_ih_l1"] += np.eye(16, dtype=np.float32)  # the second passes it on
    module = subject.rebuild(Snapshot(spec, weights))
    switch = module.set_train if hasattr(module, "set_train") else module.train
    switch(True)
    output, _ = subject.call(module, np.zeros((20, 10, 2), np.float32), seq_length=[20] * 10)
    if not subject.backend.support.dropout:
        assert (output == 1).all()
        return
    assert set(np.unique(output)) == {0.0, 4.0}
    assert abs(output.mean() - 1) < 5 * np.sqrt(3 / output.size)


@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_off_unless_training(subject: Subject, kind: str, rng: np.random.Generator) -> None:
    cls, options = KINDS[kind]
    spec = cls(3, 4, 2, dropout=0.5, **options)
    without = cls(3, 4, 2, **options)
    input = rng.standard_normal((6, 4, 3)).astype(np.float32)
    expected, _ = subject.call(subject.build(without, seed=0), input, seq_length=RAGGED)
    module = subject.build(spec, seed=0)
    switch = module.set_train if hasattr(module, "set_train") else module.train

    switch(True)
    first, _ = subject.call(module, input, seq_length=RAGGED)
    second, _ = subject.call(module, input, seq_length=RAGGED)
    assert (first != second).any() == subject.backend.support.dropout
    assert (first[3:, 0] == 0).all()
    switch(False)
    close(subject.call(module, input, seq_length=RAGGED)[0], expected, 1e-6)
