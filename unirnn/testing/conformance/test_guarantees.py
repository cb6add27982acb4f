"""What every backend guarantees, checked against the oracle.

A table of cases comes first, then random cases from hypothesis. To run these tests on a third-party backend, use
``python -m unirnn.testing NAME``.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import unirnn
from unirnn import LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, registry
from unirnn.contract.call import join_state, state_parts
from unirnn.testing import oracle
from unirnn.testing.causes import gradient_cause, recurrent_gradient_cause
from unirnn.testing.causes.numbers import NAN_FROM_PADDING
from unirnn.testing.conformance.cases import (
    CASES,
    KINDS,
    RAGGED,
    VARIANT_CASES,
    VARIANTS,
    Arrays,
    Case,
    Results,
    assert_dropout,
    available,
    built,
    cases,
    in_its_dtype,
    no_gradients,
    refusal,
    skip_if_brief,
    skip_without_gradients,
)
from unirnn.testing.conformance.promises import checking, declare
from unirnn.testing.subjects import Subject, gradients
from unirnn.testing.tolerances import close

# torch warns about its own layer
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")


def with_promises(rows: dict[str, Case]) -> list[Any]:
    """The cases of a table as pytest parameters, marked with the promises they check."""
    return [pytest.param(case, id=name, marks=pytest.mark.promise(*case.promises)) for name, case in rows.items()]


def assert_numbers(rnn_backend: Subject, case: Case, batch: Arrays, spec: RecurrentSpec, results: Results) -> None:
    """Output and final state equal the oracle's; padding gives 0; a sequence of length 0 keeps its initial state."""
    output, final = results
    tolerance = rnn_backend.tolerance_of(case.dtype)
    expected_output, expected_final = batch.expected(spec)
    # Use the scale of all layers: a narrow last layer may cancel most of its gradient.
    scale = max(np.abs(array).max() for array in (expected_output, *expected_final))

    def cause() -> str | None:
        return batch.cause(spec, results, tolerance)

    with checking(case.promises[0], spec.kind, cause):
        assert output.dtype == case.dtype, f"output: dtype {output.dtype}, expected {case.dtype}"
        close(output, expected_output, tolerance, f"{spec.kind}: output", scale=scale)
    with checking("padding", spec.kind, cause):
        assert (output[batch.padding] == 0).all(), "output in the padding is not exactly 0"
    with checking("state", spec.kind, cause):
        for name, part, expected in zip(spec.states, final, expected_final, strict=True):
            assert part.dtype == case.dtype, f"{name}_n: dtype {part.dtype}, expected {case.dtype}"
            close(part, expected, tolerance, f"{spec.kind}: {name}_n", scale=scale)
        assert_empty_sequences(case, batch, final)


def assert_empty_sequences(case: Case, batch: Arrays, final: tuple[NDArray[Any], ...]) -> None:
    """The final state of a sequence of length 0 is its initial state."""
    if batch.lengths is not None:
        empty = np.broadcast_to(batch.lengths == 0, (case.batch_size or 1,))
        for part, initial in zip(final, batch.hx, strict=True):
            np.testing.assert_array_equal(
                part.reshape(len(part), -1, part.shape[-1])[:, empty],
                initial.reshape(len(part), -1, part.shape[-1])[:, empty],
                "a sequence of length 0 does not end in its initial state",
            )


def arrays_of(spec: RecurrentSpec, batch: Arrays) -> dict[str, NDArray[Any]]:
    """The arrays that have gradients, in float64."""
    given = {"input": batch.input, **{f"{s}_0": p for s, p in zip(spec.states, batch.hx, strict=True)}}
    return {**{name: array.astype(np.float64) for name, array in given.items()}, **batch.weights}


def assert_gradients(
    rnn_backend: Subject, case: Case, batch: Arrays, spec: RecurrentSpec, gradients: dict[str, NDArray[Any]]
) -> None:
    """Each gradient agrees, relative to the largest of all, since some are small sums of large numbers."""
    cotangents = tuple(d.astype(np.float64) for d in (batch.d_output, *batch.d_state))
    expected = oracle.gradients(spec, arrays_of(spec, batch), batch.lengths, cotangents, batch.resets)
    assert gradients.keys() == expected.keys()
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    if case.scale != 1:  # gradients of saturated gates are only rounding errors, multiplied by a huge input
        return
    largest = max(np.abs(array).max(initial=0) for array in expected.values())
    for name, array in expected.items():
        close(gradients[name], array, rnn_backend.tolerance_of(case.dtype), f"gradient of {name}", scale=largest)


def cause_of_padding(*results: NDArray[Any]) -> str:
    """The mistake to report for results that depend on the numbers in the padding."""
    if any(np.isnan(array).any() for array in results):
        return NAN_FROM_PADDING
    return "it reads what stands in the padding"


def assert_guarantees(
    rnn_backend: Subject, kind: str, case: Case, filler: float, *, gradients_known: bool = True
) -> None:
    """Results and gradients equal the oracle's, and stay bit-for-bit equal with the filler in the padding."""
    case = in_its_dtype(rnn_backend, case)
    module, batch = built(rnn_backend, kind, case)
    spec, tolerance = module.spec, rnn_backend.tolerance_of(case.dtype)
    hx, cell = batch.hx if case.state else None, spec.kind
    with checking(case.promises[0], cell):
        results = rnn_backend.call(module, batch.input, hx, case.seq_length, batch.resets)
    assert_numbers(rnn_backend, case, batch, spec, results)

    dirty = batch.input.copy()
    dirty[batch.padding] = filler
    if batch.padding.any():
        with checking("padding", cell):
            output, final = rnn_backend.call(module, dirty, hx, case.seq_length, batch.resets)
        with checking("padding", cell, lambda: cause_of_padding(output, *final)):
            np.testing.assert_array_equal(output, results[0], f"{cell}: output with {filler} in the padding")
            for part, expected in zip(final, results[1], strict=True):
                np.testing.assert_array_equal(part, expected, f"{cell}: state with {filler} in the padding")

    def gradients_of_input(input: NDArray[Any]) -> dict[str, NDArray[Any]]:
        lengths = batch.lengths if case.batch_size is not None else case.seq_length
        cotangents = batch.d_output, batch.d_state
        return gradients(rnn_backend.backend, module, input, batch.hx, lengths, *cotangents, batch.resets)

    def check() -> dict[str, NDArray[Any]]:
        found = gradients_of_input(batch.input)
        # In float16, rounding may move a value to the other side of the kink of relu.
        if case.dtype != "float16" and gradients_known:
            cotangents = batch.d_output, *batch.d_state
            arguments = spec, arrays_of(spec, batch), batch.lengths, cotangents, found, tolerance, batch.resets
            with checking("gradients", cell, lambda: recurrent_gradient_cause(*arguments)):
                assert_gradients(rnn_backend, case, batch, spec, found)
        return found

    if not rnn_backend.backend.support.derivatives:
        declare("gradients", rnn_backend.name, no_gradients(rnn_backend), check)
        return
    with checking("gradients", cell):
        clean_gradients = check()
    if batch.padding.any():
        with checking("padding", cell):
            dirty_gradients = gradients_of_input(dirty)
        with checking("padding", cell, lambda: gradient_cause(dirty_gradients, clean_gradients, tolerance)):
            for name, expected in clean_gradients.items():
                what = f"{cell}: gradient of {name} with {filler} in the padding"
                np.testing.assert_array_equal(dirty_gradients[name], expected, what)
            assert (dirty_gradients["input"][batch.padding] == 0).all(), "gradient of the padding is not exactly 0"


@pytest.mark.parametrize("case", with_promises(CASES))
@pytest.mark.parametrize("kind", KINDS)
def test_guarantees(rnn_backend: Subject, kind: str, case: Case) -> None:
    if case not in VARIANT_CASES.values():
        skip_if_brief(rnn_backend, kind)
    assert_guarantees(rnn_backend, kind, case, np.nan)


@pytest.mark.parametrize("case", with_promises(VARIANT_CASES))
@pytest.mark.parametrize("kind", VARIANTS)
def test_guarantees_of_variants(rnn_backend: Subject, kind: str, case: Case) -> None:
    assert_guarantees(rnn_backend, kind, case, np.nan)


@pytest.mark.promise("gradients")
@pytest.mark.parametrize("kind", ["RNN-tanh", "GRU-reset-before"])  # their gradients cancel the most
def test_float32_gradients_of_deep_narrow_stacks(rnn_backend: Subject, kind: str) -> None:
    skip_without_gradients(rnn_backend)
    case = Case(steps=100, batch_size=3, num_layers=6, bidirectional=True, input_size=1, hidden_size=1, dtype="float32")
    if rnn_backend.label == "mindspore-native":  # its operators take a minute for so many steps of so many layers
        case = replace(case, steps=10, num_layers=2)
    module, batch = built(rnn_backend, kind, case)
    cotangents = batch.d_output, batch.d_state
    found = gradients(rnn_backend.backend, module, batch.input, batch.hx, None, *cotangents)
    assert_gradients(rnn_backend, case, batch, module.spec, found)


@pytest.mark.promise("numbers", "seq_length", "padding", "state", "gradients", "resets")
@pytest.mark.parametrize("kind", ["RNN", "GRU", "LSTM"])
@settings(max_examples=settings().max_examples // 3)
@given(data=st.data())
def test_random_specs(rnn_backend: Subject, kind: str, data: st.DataObject) -> None:
    def is_refused(name: str, case: Case) -> bool:
        return refusal(rnn_backend, case.spec(name), case.dtype) is not None

    names = [name for name in (*KINDS, *VARIANTS) if name.startswith(kind)]
    plain = in_its_dtype(rnn_backend, Case())
    kept = [name for name in names if not is_refused(name, plain)]
    if not kept:
        built(rnn_backend, names[0], plain)  # this skips the test
    name, case = data.draw(st.sampled_from(kept)), in_its_dtype(rnn_backend, data.draw(cases()))
    assume("projected" not in name or case.hidden_size > 3)
    assume(not is_refused(name, case))
    # Without a bias, zero inputs give 0, where frameworks define the slope of relu differently.
    known = name != "RNN-relu" or case.bias
    filler = data.draw(st.sampled_from([np.nan, np.inf, -np.inf, 1e30]))
    assert_guarantees(rnn_backend, name, case, filler, gradients_known=known)


@pytest.mark.promise("gradients")
@pytest.mark.parametrize("spec", [unirnn.GRUSpec(3, 4), unirnn.Sequential(unirnn.GRUSpec(3, 4))], ids=["GRU", "model"])
def test_gradients_are_not_borrowed(
    rnn_backend: Subject, spec: RecurrentSpec | unirnn.Sequential, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend computes its gradients itself. Those of the numpy backend would always pass the other tests."""
    if rnn_backend.name == "numpy":
        pytest.skip("the gradients of the numpy backend are its own")
    skip_without_gradients(rnn_backend)
    module = rnn_backend.build(spec, seed=0)
    input = np.ones((5, 2, 3), np.float32)
    results = module(rnn_backend.array(input, module))
    first = rnn_backend.to_numpy(results[0] if isinstance(results, tuple) else results)
    cotangents = [first, np.ones((1, 2, 4), np.float32)] if isinstance(results, tuple) else [first]
    borrowed = recorded(monkeypatch)
    rnn_backend.backend.gradients(module, {"input": input}, cotangents)
    assert not borrowed, (
        f"{rnn_backend.name}: its gradients are computed by {borrowed[0]} of the numpy backend, so they say nothing "
        "about what the backend itself computes; take those of its framework, or declare derivatives=0"
    )


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The name of each gradient function of the numpy backend, once per call."""
    called: list[str] = []
    layer, model = (spec.build("numpy", seed=0) for spec in (unirnn.GRUSpec(1, 1), unirnn.Sequential()))
    for owner, name in ((registry.load("numpy"), "gradients"), (layer, "vjp"), (model, "vjp")):
        function = getattr(type(owner), name)

        def record(*arguments: Any, _function: Any = function, _name: str = name, **named: Any) -> Any:
            called.append(_name)
            return _function(*arguments, **named)

        monkeypatch.setattr(type(owner), name, record)
    return called


INTEGERS = ("int8", "int16", "int32", "int64", "uint8")


@pytest.mark.promise("state")
@pytest.mark.parametrize("kind", KINDS)
def test_results_and_arguments_stay_as_they_are(rnn_backend: Subject, kind: str) -> None:
    """A later call changes neither the results nor the arguments of an earlier call."""
    case = in_its_dtype(rnn_backend, Case(lengths=RAGGED, num_layers=2))
    module, batch = built(rnn_backend, kind, case)
    given = [batch.input, *batch.hx, batch.input[0], *batch.hx]
    arrays = [rnn_backend.array(array.copy(), module) for array in given]
    input, *hx = arrays[: len(given) // 2]
    x, *state = arrays[len(given) // 2 :]

    def parts(results: Any) -> list[Any]:
        return [results[0], *(state_parts(module.spec, results[1]) or ())]

    rows: list[tuple[str, Callable[[], Any], Callable[[], Any]]] = [
        ("call", lambda: module(input, join_state(hx), RAGGED), lambda: module(-input)),
        ("step", lambda: module.step(x, join_state(state)), lambda: module.step(-x)),
    ]
    for what, call, other in rows:
        first = parts(call())
        before = [np.array(rnn_backend.to_numpy(part)) for part in first]
        other()
        for part, expected in zip(first, before, strict=True):
            message = f"a later {what} changes what an earlier one returned"
            np.testing.assert_array_equal(rnn_backend.to_numpy(part), expected, message)
    for array, expected in zip(arrays, given, strict=True):
        np.testing.assert_array_equal(rnn_backend.to_numpy(array), expected, "an argument is changed in place")


@pytest.mark.promise("seq_length", cell="GRU")
@pytest.mark.parametrize(
    "form",
    ["list", "tuple", *(f"{where}-{kind}" for where in ("numpy", "native") for kind in INTEGERS), "numpy-uint64"],
)
def test_lengths_of_any_type(rnn_backend: Subject, form: str) -> None:
    case = in_its_dtype(rnn_backend, CASES["ragged, bidirectional"])
    module, batch = built(rnn_backend, "GRU", case)
    expected, _ = rnn_backend.call(module, batch.input, batch.hx, case.seq_length)
    where, _, kind = form.partition("-")
    given: Any = {"list": list, "tuple": tuple}[where](RAGGED) if not kind else np.array(RAGGED, kind)
    if where == "native":
        given = rnn_backend.array(given, module)
    output, _ = rnn_backend.call(module, batch.input, batch.hx, given)
    np.testing.assert_array_equal(output, expected)


@pytest.mark.promise("resets", cell="GRU")
@pytest.mark.parametrize("form", ["list", "numpy", "native"])
def test_resets_of_any_type(rnn_backend: Subject, form: str) -> None:
    case = in_its_dtype(rnn_backend, CASES["resets, ragged, bidirectional"])
    module, batch = built(rnn_backend, "GRU", case)
    assert batch.resets is not None
    expected, _ = batch.expected(module.spec)
    given: Any = batch.resets.tolist() if form == "list" else batch.resets
    if form == "native":
        given = rnn_backend.array(batch.resets, module)
    output, _ = rnn_backend.call(module, batch.input, batch.hx, case.seq_length, given)
    close(output, expected, rnn_backend.tolerance_of(case.dtype))


@pytest.mark.promise("seq_length")
@pytest.mark.parametrize("kind", KINDS)
def test_full_lengths_equal_no_lengths(rnn_backend: Subject, kind: str) -> None:
    case = replace(CASES["dense, 3 layers, bidirectional, no bias"], lengths=(6, 6, 6, 6))
    case = in_its_dtype(rnn_backend, case)
    module, batch = built(rnn_backend, kind, case)
    ragged = rnn_backend.call(module, batch.input, batch.hx, case.seq_length)
    dense = rnn_backend.call(module, batch.input, batch.hx)
    close(ragged[0], dense[0], rnn_backend.tolerance_of(case.dtype))
    for part, expected in zip(ragged[1], dense[1], strict=True):
        close(part, expected, rnn_backend.tolerance_of(case.dtype))


@pytest.mark.promise("numbers")
@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch(rnn_backend: Subject, kind: str) -> None:
    module = rnn_backend.build(Case().spec(kind), seed=0)
    output, final = rnn_backend.call(module, np.zeros((5, 0, 3), np.float32), seq_length=[])
    assert output.shape == (5, 0, 4)
    assert {part.shape for part in final} == {(1, 0, 4)}


def assert_same_as_numpy(rnn_backend: Subject, taken: Snapshot, arrays: dict[str, Any], seq_length: list[int]) -> None:
    """Compare with the numpy backend where the complex-step oracle would give NaN."""
    dtype = available(rnn_backend, "float64")
    tolerance = rnn_backend.tolerance_of(dtype)
    taken, arrays = taken.cast(dtype), {name: array.astype(dtype) for name, array in arrays.items()}
    names = ("input", *(f"{state}_0" for state in taken.spec.states))
    input, *hx = (arrays[name] for name in names)
    reference = taken.cast("float64").build("numpy")
    module = rnn_backend.rebuild(taken)
    wide, *wide_hx = (arrays[name].astype(np.float64) for name in names)
    expected, expected_final, pullback = reference.vjp(wide, join_state(wide_hx), seq_length)
    output, final = rnn_backend.call(module, input, tuple(hx), seq_length)
    close(output, expected, tolerance, "output")
    for part, wanted in zip(final, state_parts(taken.spec, expected_final) or (), strict=True):
        np.testing.assert_allclose(part, wanted, rtol=tolerance, atol=tolerance)
    if rnn_backend.backend.support.derivatives:
        cotangents = np.ones_like(output), tuple(np.ones_like(part) for part in hx)
        actual = gradients(rnn_backend.backend, module, input, tuple(hx), np.array(seq_length), *cotangents)
        for name, gradient in pullback(cotangents[0], join_state(cotangents[1])).items():
            np.testing.assert_allclose(actual[name], gradient, rtol=1e3 * tolerance, atol=1e3 * tolerance, err_msg=name)


@pytest.mark.promise("padding", cell="RNN")
def test_relu_does_not_overflow_in_the_padding(rnn_backend: Subject) -> None:
    spec = RNNSpec(3, 4, nonlinearity="relu", bidirectional=True)
    weights = unirnn.snapshot(spec.build("numpy", dtype="float64", seed=0)).weights
    weights = {name: 6.0 * np.eye(4) if "weight_hh" in name else np.abs(a) for name, a in weights.items()}
    rng = np.random.default_rng(0)
    arrays = {"input": rng.random((600, 3, 3)), "h_0": rng.random((2, 3, 4))}
    assert_same_as_numpy(rnn_backend, Snapshot(spec, weights), arrays, [3, 0, 2])


@pytest.mark.promise("padding", cell="LSTM")
def test_saturated_gates_in_the_padding_leave_the_cell_state(rnn_backend: Subject) -> None:
    spec = LSTMSpec(3, 4, bidirectional=True)
    weights = dict(unirnn.snapshot(spec.build("numpy", dtype="float64", seed=0)).weights)
    for name in ("bias_ih_l0", "bias_ih_l0_reverse"):
        weights[name] = weights[name] + np.repeat([3e4, -3e4, 0.0, 0.0], 4)
    rng = np.random.default_rng(0)
    arrays = {"input": rng.random((9, 3, 3)), "h_0": rng.random((2, 3, 4)), "c_0": rng.random((2, 3, 4))}
    assert_same_as_numpy(rnn_backend, Snapshot(spec, weights), arrays, [3, 0, 9])


@pytest.mark.promise("state")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_the_state_of_an_empty_sequence_changes_no_other_number(rnn_backend: Subject, kind: str, value: float) -> None:
    skip_if_brief(rnn_backend, kind)
    spec = Case(bidirectional=True, num_layers=2).spec(kind)
    taken = unirnn.snapshot(spec.build("numpy", dtype="float64", seed=0))
    rng = np.random.default_rng(0)
    arrays = {"input": rng.random((5, 3, 3)), **{f"{s}_0": rng.random((4, 3, 4)) for s in spec.states}}
    for state in spec.states:
        arrays[f"{state}_0"][:, 1] = value
    assert_same_as_numpy(rnn_backend, taken, arrays, [5, 0, 2])


@pytest.mark.promise("dropout", cell="RNN")
def test_dropout_drops_and_rescales_between_layers_only(rnn_backend: Subject) -> None:
    spec = RNNSpec(2, 16, 2, nonlinearity="relu", dropout=0.75)
    weights = {name: np.zeros(shape, np.float32) for name, shape in spec.weight_shapes().items()}
    weights["bias_ih_l0"] += 1  # the first layer's output is 1 everywhere
    weights["weight_ih_l1"] += np.eye(16, dtype=np.float32)  # the second passes it on
    module = rnn_backend.rebuild(Snapshot(spec, weights))
    rnn_backend.backend.set_training(module, True)
    output, _ = rnn_backend.call(module, np.zeros((20, 10, 2), np.float32), seq_length=[20] * 10)
    assert_dropout(rnn_backend, output, np.ones_like(output))
    values = set(np.unique(output).tolist())
    message = "a dropout with p = 0.75 drops, or multiplies by 4, once, between the two layers"
    assert values == {0.0, 4.0}, f"output: given {values} of ones, expected 0 and 4: {message}"
    assert abs(output.mean() - 1) < 5 * np.sqrt(3 / output.size)


@pytest.mark.promise("dropout")
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_off_unless_training(rnn_backend: Subject, kind: str, rng: np.random.Generator) -> None:
    cls, options = KINDS[kind]
    spec = cls(3, 4, 2, dropout=0.5, **options)
    without = cls(3, 4, 2, **options)
    input = rng.standard_normal((6, 4, 3)).astype(np.float32)
    expected, _ = rnn_backend.call(rnn_backend.build(without, seed=0), input, seq_length=RAGGED)
    module = rnn_backend.build(spec, seed=0)
    rnn_backend.backend.set_training(module, True)
    first, _ = rnn_backend.call(module, input, seq_length=RAGGED)
    second, _ = rnn_backend.call(module, input, seq_length=RAGGED)
    assert (first[3:, 0] == 0).all()
    rnn_backend.backend.set_training(module, False)
    close(
        rnn_backend.call(module, input, seq_length=RAGGED)[0], expected, 1e-6, "output in evaluation, without dropout"
    )
    assert_dropout(rnn_backend, first, second)
