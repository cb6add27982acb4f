"""What every backend guarantees for models and non-recurrent layers, checked against the oracle.

A table with a row for each layer, each in several batches, comes first; then random models. These tests do not apply
to a backend that builds no models.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

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
    RNNSpec,
    Sequential,
    Spec,
    SumDirectionsSpec,
)
from unirnn.contract.models import is_batch_first
from unirnn.contract.weights import draw
from unirnn.errors import ArgumentError, DTypeError, LengthError, ShapeError
from unirnn.specs import ModelSpec
from unirnn.testing import model_oracle as oracle
from unirnn.testing.causes import layer_cause, statistics_cause
from unirnn.testing.conformance.cases import (
    assert_dropout,
    available,
    no_dropout,
    no_gradients,
    refusal,
    skip_if_refused,
)
from unirnn.testing.conformance.promises import DeclaredLimit, checking, declare, promises_of
from unirnn.testing.strategies import models
from unirnn.testing.subjects import Subject
from unirnn.testing.tolerances import close

Array = NDArray[Any]

ACTIVATIONS = ("relu", "tanh", "sigmoid", "gelu", "silu", "hard_sigmoid", "softmax", "log_softmax")
SPECS: dict[str, Spec] = {
    "Embedding": EmbeddingSpec(7, 3),
    "Embedding, padding_idx": EmbeddingSpec(7, 3, padding_idx=5),  # one of the tokens of `Call`
    "Linear": LinearSpec(3, 5),
    "Linear, no bias": LinearSpec(3, 5, bias=False),
    **{f"Activation, {function}": ActivationSpec(function) for function in ACTIVATIONS},  # type: ignore[arg-type]
    "Dropout": DropoutSpec(0.5),
    "LayerNorm": LayerNormSpec(3),
    "BatchNorm": BatchNormSpec(3),
    "Normalize": NormalizeSpec(),
    "Conv1d, valid": Conv1dSpec(3, 4, 2),
    "Conv1d, valid, stride": Conv1dSpec(3, 4, 3, stride=2),
    "Conv1d, padding, stride, no bias": Conv1dSpec(3, 4, 3, stride=2, padding=1, bias=False),
    "Conv1d, outputs of padding alone": Conv1dSpec(3, 4, 3, stride=2, padding=3),  # but none for a length of 0
    "Conv1d, same": Conv1dSpec(3, 4, 4, padding="same"),
    "Conv1d, same, dilation, groups": Conv1dSpec(4, 6, 3, padding="same", dilation=2, groups=2),
    "Conv1d, causal": Conv1dSpec(3, 4, 3, padding="causal", dilation=2),
    "Conv1d, causal, stride": Conv1dSpec(3, 4, 3, padding="causal", stride=3),
    "Conv1d, depthwise": Conv1dSpec(3, 3, 3, padding=1, groups=3),
    "Conv1d, one step": Conv1dSpec(3, 4, 1),
    **{f"Pool, {how}": PoolSpec(how) for how in ("last", "first_last", "mean", "max")},
    "SumDirections": SumDirectionsSpec(),
    "Sequential, empty": Sequential(),
    "Residual": Residual(Sequential(LinearSpec(3, 3), ActivationSpec("tanh"))),
    "Concat": Concat(Conv1dSpec(3, 2, 3, padding="same"), GRUSpec(3, 4, batch_first=True), Sequential()),
    "Concat of poolings": Concat(PoolSpec("max"), Sequential(LinearSpec(3, 2), PoolSpec("mean"))),
    "classifier": Sequential(
        embedding=EmbeddingSpec(7, 3, padding_idx=0),
        encoder=GRUSpec(3, 4, 2, bidirectional=True, batch_first=True),
        pool=PoolSpec("mean"),
        norm=BatchNormSpec(8),
        head=LinearSpec(8, 2),
    ),
    "language model": Sequential(
        embedding=EmbeddingSpec(7, 4),
        encoder=LSTMSpec(4, 4, 2),
        norm=LayerNormSpec(4),
        head=LinearSpec(4, 7, tied_to="embedding"),
        scores=ActivationSpec("log_softmax"),
    ),
    "convolutions, time first": Sequential(
        Conv1dSpec(3, 4, 3, padding="causal"),
        BatchNormSpec(4),
        ActivationSpec("relu"),
        Residual(Sequential(Conv1dSpec(4, 4, 2, padding="causal", dilation=2), ActivationSpec("silu"))),
        RNNSpec(4, 5),
        LinearSpec(5, 2),
    ),
    "strided, bidirectional": Sequential(
        conv=Conv1dSpec(3, 4, 3, stride=2, padding=1),
        encoder=LSTMSpec(4, 3, bidirectional=True, batch_first=True),
        sum=SumDirectionsSpec(),
        head=LinearSpec(3, 2),
    ),
}

STEPS = 6


@dataclass(frozen=True)
class Case:
    """How a model is called: the lengths, whether there are resets and an initial state, and the mode."""

    lengths: tuple[int, ...] | None = None
    resets: bool = False
    state: bool = True
    batch_size: int | None = 4
    dtype: str = "float64"
    training: bool = False
    seed: int = 0

    @property
    def promises(self) -> tuple[str, ...]:
        return promises_of(self.lengths, STEPS, with_resets=self.resets)


RAGGED = (3, 6, 0, 5)
CASES = {
    "dense": Case(state=False),
    "ragged": Case(RAGGED),
    "ragged, float32": Case(RAGGED, dtype="float32"),
    "unbatched": Case((4,), batch_size=None),
    "all lengths zero": Case((0, 0, 0, 0)),
    "training, ragged": Case(RAGGED, state=False, training=True),
    "training, dense": Case(training=True),
    "resets, ragged": Case(RAGGED, resets=True),
}


def is_random(spec: Spec) -> bool:
    return any(isinstance(leaf, DropoutSpec) for leaf in spec.leaves().values())


def takes_resets(spec: Spec) -> bool:
    leaves = spec.leaves().values()
    return any(isinstance(leaf, unirnn.RecurrentSpec) for leaf in leaves) and not any(
        isinstance(leaf, PoolSpec) or (isinstance(leaf, Conv1dSpec) and (leaf.span > 1 or leaf.length_rules))
        for leaf in leaves
    )


class Call:
    """A backend's model, the arguments of a call as NumPy arrays, and the oracle's results for them."""

    def __init__(self, rnn_backend: Subject, spec: Spec, case: Case, net: Any = None) -> None:
        case = replace(case, dtype=available(rnn_backend, case.dtype))
        self.rnn_backend, self.spec, self.case = rnn_backend, spec, case
        self.net = rnn_backend.build(spec, dtype=case.dtype, seed=case.seed) if net is None else net
        rnn_backend.backend.set_training(self.net, case.training)
        found = rnn_backend.read(self.net)
        assert found[0] == spec
        self.weights = {name: np.array(array, np.float64) for name, array in found[1].items()}
        rng = np.random.default_rng(case.seed)
        columns = case.batch_size or 1
        self.leading = (columns, STEPS) if is_batch_first(spec) else (STEPS, columns)
        if spec.takes_tokens:
            self.input: Array = rng.integers(0, spec.input_features, self.leading)
        else:
            features = spec.input_features or 4
            self.input = rng.standard_normal((*self.leading, features)).astype(case.dtype)
            if isinstance(spec, PoolSpec):
                self.input -= 3  # so that zeros in the padding would be the maximum
        self.states: list[tuple[Array, ...] | None] = [
            tuple(rng.standard_normal(shape).astype(case.dtype) for shape in leaf.state_shapes(columns).values())
            if case.state
            else None
            for leaf in spec.stateful.values()
        ]
        self.lengths = None if case.lengths is None else np.array(case.lengths)
        begins = rng.random((columns, STEPS)) < 0.3
        self.resets = None
        if case.resets:
            self.resets = begins if is_batch_first(spec) else begins.T
        valid = np.arange(STEPS) < (np.full(columns, STEPS) if self.lengths is None else self.lengths)[:, None]
        self.padding = ~(valid if is_batch_first(spec) else valid.T)

    @property
    def options(self) -> dict[str, Any]:
        batch_first = is_batch_first(self.spec)
        # For a backend that only does inference, train() changes nothing.
        training = self.case.training and self.rnn_backend.backend.support.dropout
        return {"lengths": self.lengths, "resets": self.resets, "batch_first": batch_first, "training": training}

    def expected(self) -> tuple[Array, list[Array]]:
        input = self.input if self.spec.takes_tokens else self.input.astype(np.float64)
        states = [None if state is None else tuple(part.astype(np.float64) for part in state) for state in self.states]
        output, finals = oracle.model(self.spec, self.weights, input, states, **self.options)
        return self._as_called(output), [self._state(part) for final in finals for part in final]

    def arguments(self, input: Array) -> dict[str, Any]:
        """The caller's arguments as NumPy arrays."""
        hx = None
        if any(state is not None for state in self.states):
            parts = [[self._state(part) for part in state or ()] for state in self.states]
            hx = tuple(tuple(state) if len(state) > 1 else state[0] for state in parts)
        lengths, axis = self.lengths, 0 if is_batch_first(self.spec) else 1
        if self.case.batch_size is None:
            input = input.squeeze(axis)
            lengths = None if lengths is None else lengths[0]
        resets = None if self.resets is None else self.resets
        return {"input": input, "hx": hx, "seq_length": lengths, "resets": resets, "return_state": True}

    def native(self, value: Any) -> Any:
        """Convert NumPy arrays, also in nested tuples, to the backend's; leave anything else unchanged."""
        if isinstance(value, tuple):
            return tuple(map(self.native, value))
        is_array = isinstance(value, np.ndarray)
        return self.rnn_backend.array(np.ascontiguousarray(value), self.net) if is_array else value

    def run(self, input: Array) -> tuple[Array, list[Array]]:
        output, states = self.net(**{name: self.native(value) for name, value in self.arguments(input).items()})
        return self.rnn_backend.to_numpy(output), [self.rnn_backend.to_numpy(part) for part in flat(states)]

    def gradients(self, input: Array, cotangents: list[Array]) -> dict[str, Array]:
        return self.rnn_backend.backend.gradients(self.net, self.arguments(input), cotangents)

    def filled(self) -> Array:
        """The input with NaN, or with an invalid token, in the padding."""
        filled = self.input.copy()
        filled[self.padding] = -1 if self.spec.takes_tokens else np.nan
        return filled

    def cause(self, output: Array) -> str | None:
        """The usual mistake that explains an output, if the model is one layer without a state."""
        spec, batch_first = self.spec, is_batch_first(self.spec)
        if isinstance(spec, ModelSpec) or spec.stateful:
            return None
        tolerance = self.rnn_backend.tolerance_of(self.case.dtype)
        if self.case.batch_size is None:
            output = output[None] if spec.ends_steps or batch_first else output[:, None]
        given = spec, self.weights, self.input, self.lengths, output, tolerance
        return layer_cause(*given, batch_first=batch_first, training=self.case.training)

    def _as_called(self, output: Array) -> Array:
        if self.case.batch_size is not None:
            return output
        return output[0] if self.spec.ends_steps or is_batch_first(self.spec) else output[:, 0]

    def _state(self, part: Array) -> Array:
        return part if self.case.batch_size is not None else part[:, 0]


def flat(states: Any) -> list[Any]:
    return [part for state in states for part in (state if isinstance(state, (tuple, list)) else (state,))]


def assert_equal(actual: list[Array], expected: list[Array], what: str) -> None:
    for one, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(one, other, what)


def assert_guarantees(rnn_backend: Subject, spec: Spec, case: Case) -> None:
    """Results and gradients equal the oracle's, and stay bit-for-bit equal with NaN in the padding."""
    dtype = available(rnn_backend, case.dtype)
    skip_if_refused(rnn_backend, spec, dtype, case.seed, lambda net: assert_results(Call(rnn_backend, spec, case, net)))
    call = Call(rnn_backend, spec, case)
    assert_results(call)
    if rnn_backend.backend.support.derivatives:
        assert_gradients(call)
    else:
        declare("gradients", rnn_backend.name, no_gradients(rnn_backend), lambda: assert_gradients(call))


def assert_results(call: Call) -> None:
    """Output and states equal the oracle's."""
    tolerance, dtype = call.rnn_backend.tolerance_of(call.case.dtype), call.case.dtype
    with checking(call.case.promises[0], "models"):
        output, states = call.run(call.input)
        expected, expected_states = call.expected()
    with checking(call.case.promises[0], "models", lambda: call.cause(output)):
        close(output, expected, tolerance, "output", scale=max(1, np.abs(expected).max(initial=0)))
        assert output.dtype == dtype, f"output: dtype {output.dtype}, expected {dtype}"
    with checking("state", "models"):
        for actual, state in zip(states, expected_states, strict=True):
            close(actual, state, tolerance, "state", scale=max(1, np.abs(state).max(initial=0)))
            assert actual.dtype == dtype, f"state: dtype {actual.dtype}, expected {dtype}"
    if call.padding.any() and not call.case.training:
        with checking("padding", "models"):
            again, again_states = call.run(call.filled())
            assert_equal([again, *again_states], [output, *states], "with NaN in the padding")


def assert_gradients(call: Call) -> None:
    """Each gradient equals the oracle's along one direction, and the padding's gradient is zero."""
    expected, expected_states = call.expected()
    tolerance = call.rnn_backend.tolerance_of(call.case.dtype)
    rng = np.random.default_rng(1)
    d_output = rng.standard_normal(expected.shape).astype(call.case.dtype)
    d_states = [rng.standard_normal(state.shape).astype(call.case.dtype) for state in expected_states]
    with checking("gradients", "models"):
        found = call.gradients(call.input, [d_output, *d_states])
    if call.padding.any():
        with checking("padding", "models"):
            with_nan = call.gradients(call.filled(), [d_output, *d_states])
            assert_equal(list(with_nan.values()), list(found.values()), "gradient with NaN in the padding")
    if call.case.batch_size is None:
        return  # the gradients themselves are checked in batched calls
    if "input" in found:
        with checking("padding", "models"):
            assert (found["input"][call.padding] == 0).all(), "gradient of the padding is not exactly 0"
    with checking("gradients", "models"):
        if isinstance(call.spec, EmbeddingSpec) and call.spec.padding_idx is not None:
            row = found["weight"][call.spec.padding_idx]
            assert not row.any(), "padding_idx is ignored: the gradient of its vector is not zero"
        assert_slopes(call, found, [d_output, *d_states], tolerance)


def assert_slopes(call: Call, found: dict[str, Array], d_results: list[Array], tolerance: float) -> None:
    """Each gradient equals the oracle's along one direction."""
    spec, rng = call.spec, np.random.default_rng(2)
    assert found.keys() - {"input"} >= spec.weight_shapes().keys() - set(spec.buffers)
    arrays = {"input": call.input, **call.weights}
    states = [None if state is None else tuple(part.astype(np.float64) for part in state) for state in call.states]
    names = {f"state[{k}][{j}]": (k, j) for k, state in enumerate(states) for j in range(len(state or ()))}
    cotangents = [d.astype(np.float64) for d in d_results]
    for name, gradient in found.items():
        oracle_name = name
        if name.startswith("hx"):
            oracle_name = "state" + name[2:] + ("[0]" if name.count("[") == 1 else "")
            k, j = names[oracle_name]
            shape = states[k][j].shape  # type: ignore[index]
        else:
            shape = arrays[name].shape
        direction = rng.choice([-1.0, 1.0], shape)
        slope = oracle.derivative(spec, arrays, states, cotangents, oracle_name, direction, **call.options)
        actual = float((gradient.astype(np.float64) * direction).sum())
        scale = max(1.0, float(np.abs(gradient).sum()))
        assert abs(actual - slope) <= 4 * tolerance * scale, f"gradient of {name}: {actual}, expected {slope}"


def cases() -> list[Any]:
    """Each spec with each case that is relevant to it, marked with the promises it checks."""
    return [
        pytest.param(spec, case, id=f"{name}, {how}", marks=pytest.mark.promise(*case.promises))
        for name, spec in SPECS.items()
        for how, case in CASES.items()
        if not (case.resets and not takes_resets(spec)) and not (case.training and is_random(spec))
    ]


@pytest.mark.parametrize(("spec", "case"), cases())
def test_guarantees(model_backend: Subject, spec: Spec, case: Case) -> None:
    assert_guarantees(model_backend, spec, case)


@pytest.mark.promise("numbers", "seq_length", "padding", "state", "gradients", "resets")
@settings(max_examples=30, suppress_health_check=[HealthCheck.filter_too_much])  # a backend may refuse most layers
@given(data=st.data())
def test_random_models(model_backend: Subject, data: st.DataObject) -> None:
    spec = data.draw(models())
    assume(refusal(model_backend, spec, available(model_backend, "float32")) is None)
    lengths = data.draw(st.none() | st.tuples(*[st.integers(0, STEPS)] * 3))
    assume(not spec.length_rules or spec.ends_steps or spec.output_lengths(STEPS))
    case = Case(
        lengths,
        resets=takes_resets(spec) and data.draw(st.booleans()),
        state=data.draw(st.booleans()),
        batch_size=3,
        dtype=data.draw(st.sampled_from(["float32", "float64"])),
        seed=data.draw(st.integers(0, 2**16)),
    )
    assert_guarantees(model_backend, spec, case)


STREAMS = {name: spec for name, spec in SPECS.items() if spec.can_stream and not is_random(spec)}


@pytest.mark.promise("steps")
@pytest.mark.parametrize("spec", STREAMS.values(), ids=STREAMS.keys())
def test_steps_and_chunks_are_one_call(model_backend: Subject, spec: Spec) -> None:
    call = Call(model_backend, spec, Case())
    whole, final = call.run(call.input)
    axis = 1 if is_batch_first(spec) else 0
    hx = call.arguments(call.input)["hx"]

    to_numpy = model_backend.to_numpy
    state, outputs = call.native(hx), []
    for t in range(STEPS):
        y, state = call.net.step(call.native(call.input.take(t, axis)), state)
        outputs.append(to_numpy(y))
    tolerance = model_backend.tolerance_of(call.case.dtype)
    close(np.stack(outputs, axis), whole, tolerance, "steps")
    for part, expected in zip(flat(state), final, strict=True):
        close(to_numpy(part), expected, tolerance, "state after the steps")

    state, outputs = call.native(hx), []
    for begin, end in ((0, 1), (1, STEPS)):
        chunk = call.native(call.input.take(range(begin, end), axis))
        y, state = call.net(chunk, hx=state, return_state=True)
        outputs.append(to_numpy(y))
    close(np.concatenate(outputs, axis), whole, tolerance, "chunks")
    for part, expected in zip(flat(state), final, strict=True):
        close(to_numpy(part), expected, tolerance, "state after the chunks")


@pytest.mark.promise("padding")
def test_running_statistics_see_valid_steps_only(model_backend: Subject) -> None:
    spec = BatchNormSpec(3, momentum=0.25)
    call = Call(model_backend, spec, Case(RAGGED, training=True))
    call.run(call.filled())
    found = model_backend.read(call.net)
    after, rows = found[1], call.input[~call.padding].astype(np.float64)
    tolerance = model_backend.tolerance_of(call.case.dtype)
    if not model_backend.backend.support.derivatives and not model_backend.backend.support.dropout:
        return
    given = spec, call.weights, call.input, call.lengths, after, tolerance
    with checking("padding", "models", lambda: statistics_cause(*given)):
        close(after["running_mean"], 0.25 * rows.mean(axis=0), tolerance, "running_mean")
        close(after["running_var"], 0.75 + 0.25 * rows.var(axis=0, ddof=1), tolerance, "running_var")


NEEDS_TWO_STEPS: dict[str, tuple[Spec, tuple[int, ...], list[int] | None, int]] = {
    "no sequence": (BatchNormSpec(3), (0, 4, 3), None, 0),
    "lengths of zero": (BatchNormSpec(3), (2, 4, 3), [0, 0], 0),
    "one valid step": (BatchNormSpec(3), (2, 4, 3), [0, 1], 1),
    "one step": (BatchNormSpec(3), (1, 1, 3), None, 1),
    "unbatched": (BatchNormSpec(3), (4, 3), [1], 1),
    "one sequence, pooled": (Sequential(BatchNormSpec(3), PoolSpec("mean"), BatchNormSpec(3)), (1, 4, 3), None, 1),
    "one long enough": (Sequential(BatchNormSpec(3), Conv1dSpec(3, 3, 4), BatchNormSpec(3)), (2, 4, 3), [3, 4], 1),
    "in a branch": (
        Sequential(
            GRUSpec(3, 3, batch_first=True), Concat(PoolSpec("max"), Sequential(PoolSpec("mean"), BatchNormSpec(3)))
        ),
        (1, 4, 3),
        [4],
        1,
    ),
}


@pytest.mark.promise("errors")
@pytest.mark.parametrize(("spec", "shape", "lengths", "count"), NEEDS_TWO_STEPS.values(), ids=NEEDS_TWO_STEPS.keys())
def test_one_step_has_no_variance_and_changes_no_statistics(
    model_backend: Subject, spec: Spec, shape: tuple[int, ...], lengths: list[int] | None, count: int
) -> None:
    if not model_backend.backend.support.dropout:
        raise DeclaredLimit(no_dropout(model_backend))
    net = model_backend.build(spec, seed=0)
    model_backend.backend.set_training(net, True)
    before = {name: np.array(array) for name, array in model_backend.read(net)[1].items()}
    x = model_backend.array(np.ones(shape, np.float32), net)
    numbers = lengths[0] if lengths and len(shape) == 2 else lengths
    words = rf"input: given {count} valid steps to BatchNormSpec\(3\) while training, expected at least 2"
    with pytest.raises(ArgumentError, match=words):
        net(x, seq_length=numbers)
    for name, array in model_backend.read(net)[1].items():
        np.testing.assert_array_equal(array, before[name], name)
    model_backend.backend.set_training(net, False)
    net(x, seq_length=numbers)


@pytest.mark.promise("dropout")
@pytest.mark.parametrize("locked", [False, True])
def test_dropout(model_backend: Subject, locked: bool) -> None:
    call = Call(model_backend, DropoutSpec(0.25, locked), Case(batch_size=2, training=True))
    ones = np.ones((2, 50, 40), call.case.dtype)
    output = model_backend.to_numpy(call.net(model_backend.array(ones, call.net)))
    assert_dropout(model_backend, output, ones)
    values = np.unique(output)
    np.testing.assert_allclose(values, [0, 1 / 0.75], rtol=1e-6)
    assert 0.55 < (output > 0).mean() < 0.9
    is_same = bool((output == output[:, :1]).all())
    assert is_same == locked, f"all steps drop the same: {is_same}, expected {locked}, as 'locked' says"


@pytest.mark.promise("seq_length")
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64"])
def test_lengths_of_the_output(model_backend: Subject, dtype: str) -> None:
    spec = Sequential(conv=Conv1dSpec(3, 4, 3, stride=2), encoder=GRUSpec(4, 3, batch_first=True))
    net = model_backend.build(spec, seed=0)
    lengths = np.array([127, 5, 1, 0], dtype)
    after = [net.output_lengths(lengths), net.output_lengths(lengths.tolist())]
    after.append(model_backend.to_numpy(net.output_lengths(model_backend.array(lengths, net))))
    assert [numbers.tolist() for numbers in after] == [[63, 2, 0, 0]] * 3
    assert net.output_lengths(5) == 2
    for wrong in ([1.5], None, True, "5"):
        with pytest.raises(DTypeError, match=r"seq_length: given \w+, expected integers"):
            net.output_lengths(wrong)


@pytest.mark.promise("state")
def test_states_of_a_batch(model_backend: Subject) -> None:
    spec = Sequential(conv=Conv1dSpec(3, 4, 3, padding="causal"), encoder=LSTMSpec(4, 5, batch_first=True))
    net = model_backend.build(spec, seed=0)
    zeros = unirnn.state.zeros(net, 3)
    shapes = [(2, 3, 3), (1, 3, 5), (1, 3, 5)]
    assert [tuple(part.shape) for part in flat(zeros)] == shapes
    x = model_backend.array(np.ones((3, 4, 3), np.float32), net)
    _, state = net(x, hx=zeros, seq_length=[4, 0, 2], return_state=True)
    found = {
        "select": (unirnn.state.select(state, [2, 1]), [2, 1]),
        "repeat": (unirnn.state.repeat(state, 2), [0, 0, 1, 1, 2, 2]),
        "where": (unirnn.state.where([True, True, False], state, zeros), [0, 1, 1]),  # the length of 1 is 0
    }
    if model_backend.backend.support.derivatives:
        found["detach"] = unirnn.detach(state), [0, 1, 2]
    for name, (result, rows) in found.items():
        for part, whole in zip(flat(result), flat(state), strict=True):
            actual, expected = map(model_backend.to_numpy, (part, whole))
            np.testing.assert_array_equal(actual, expected[:, rows], name)
    assert unirnn.state.zeros(model_backend.build(PoolSpec("mean")), 3) == ()


LAYER = Sequential(embedding=EmbeddingSpec(7, 3), encoder=GRUSpec(3, 4, batch_first=True))
STREAM = Sequential(encoder=LSTMSpec(3, 4, batch_first=True), head=LinearSpec(4, 2))
MISTAKES: dict[str, tuple[Spec, dict[str, Any], type[Exception], str]] = {
    "no input": (STREAM, {}, ArgumentError, "input is missing"),
    "a list": (STREAM, {"input": [[1.0]]}, ArgumentError, "input: given list, expected a"),
    "too few axes": (STREAM, {"input": (3,)}, ShapeError, r"input: given shape \(3,\), expected \(B, T, F\), or"),
    "the last axis": (STREAM, {"input": (2, 5, 4)}, ShapeError, r"input: given shape \(2, 5, 4\), expected 3 on"),
    "no steps": (STREAM, {"input": (2, 0, 3)}, ShapeError, "expected at least one time step"),
    "floats for tokens": (LAYER, {"input": (2, 5)}, DTypeError, "expected integers, which are tokens"),
    "no features": (ActivationSpec("softmax"), {"input": (2, 5, 0)}, ShapeError, "expected the features on the last"),
    "directions of an odd size": (
        SumDirectionsSpec(),
        {"input": (2, 5, 3)},
        ShapeError,
        r"input: given shape \(2, 5, 3\), wrong on the last axis: SumDirectionsSpec\(\): given 3 features",
    ),
    "directions to pool of an odd size": (
        PoolSpec("first_last"),
        {"input": (2, 5, 3)},
        ShapeError,
        r"PoolSpec\('first_last'\): given 3 features, expected those of two directions",
    ),
    "the size of a layer behind the first": (
        Concat(Sequential(), Sequential(SumDirectionsSpec(), LayerNormSpec(4))),
        {"input": (2, 5, 2)},
        ShapeError,
        r"Sequential: 0, SumDirectionsSpec\(\), gives 1 features, but 1, LayerNormSpec\(4\), takes 4",
    ),
    "too few steps": (
        Sequential(Conv1dSpec(3, 4, 5), GRUSpec(4, 4, batch_first=True)),
        {"input": (2, 4, 3)},
        ShapeError,
        "too few time steps: a convolution sees 5 steps, and is left with 4",
    ),
    "a state of another length": (
        STREAM,
        {"input": (2, 5, 3), "hx": ()},
        ArgumentError,
        "hx: given a tuple of 0, expected a tuple with an item for each layer that has a state: encoder",
    ),
    "a state of another shape": (
        STREAM,
        {"input": (2, 5, 3), "hx": (((1, 2, 4), (1, 2, 3)),)},
        ShapeError,
        r"hx\[0\]\[1\] \(encoder\): given shape \(1, 2, 3\), expected \(1, 2, 4\)",
    ),
    "a state of one array": (
        STREAM,
        {"input": (2, 5, 3), "hx": ((1, 2, 4),)},
        ArgumentError,
        r"hx\[0\] \(encoder\): given one .*, expected a pair",
    ),
    "a length beyond T": (
        STREAM,
        {"input": (2, 5, 3), "seq_length": [5, 6]},
        LengthError,
        r"seq_length\[1\]: given 6, expected 0 <= n <= 5",
    ),
    "resets of a convolution": (
        Sequential(Conv1dSpec(3, 3, 3, padding="causal"), GRUSpec(3, 4, batch_first=True)),
        {"input": (2, 5, 3), "resets": [[False] * 5] * 2},
        ArgumentError,
        "resets: given to a model with 0, Conv1dSpec.*would mix the sequences of a column",
    ),
    "resets of a convolution that adds steps": (
        Sequential(Conv1dSpec(3, 4, 1, padding=2), GRUSpec(4, 4, batch_first=True)),
        {"input": (2, 5, 3), "resets": [[False] * 5] * 2},
        ArgumentError,
        "resets: given to a model with 0, Conv1dSpec.*would mix the sequences of a column",
    ),
}


def arrays(rnn_backend: Subject, net: Any, value: Any) -> Any:
    """Shapes as arrays of zeros of a framework; lists as they are."""
    if isinstance(value, tuple) and all(isinstance(size, int) for size in value) and value:
        return rnn_backend.array(np.zeros(value, np.float32), net)
    return tuple(arrays(rnn_backend, net, part) for part in value) if isinstance(value, tuple) else value


@pytest.mark.promise("errors")
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(model_backend: Subject, mistake: tuple[Spec, dict[str, Any], type[Exception], str]) -> None:
    spec, arguments, exception, words = mistake
    net = model_backend.build(spec, seed=0)
    with pytest.raises(exception, match=words):
        net(**{name: arrays(model_backend, net, value) for name, value in arguments.items()})


@pytest.mark.promise("errors")
@pytest.mark.parametrize("token", [-1, 7])
def test_a_token_out_of_range(model_backend: Subject, token: int) -> None:
    net = model_backend.build(LAYER, seed=0)
    tokens = np.array([[1, 2, 6], [0, 3, token]])
    with pytest.raises(ArgumentError, match=f"input: given token {token}, expected 0 <= token < 7"):
        net(model_backend.array(tokens, net), seq_length=[3, 3])
    net(model_backend.array(tokens, net), seq_length=[3, 2])


@pytest.mark.promise("errors")
def test_steps_of_a_model_that_needs_whole_sequences(model_backend: Subject) -> None:
    spec = SPECS["classifier"]
    net = model_backend.build(spec, seed=0)
    with pytest.raises(ArgumentError, match=r"step: given a model with encoder, .*, which needs whole sequences"):
        net.step(model_backend.array(np.zeros(2, np.int64), net))


@pytest.mark.promise("building")
def test_one_seed_draws_the_same_model(model_backend: Subject) -> None:
    spec = SPECS["language model"]
    net = model_backend.build(spec, seed=5)
    found = model_backend.read(net)
    drawn = {name: array.astype("float32") for name, array in draw(spec, 5).items()}
    assert found[1].keys() == drawn.keys() == spec.weight_shapes().keys()
    for name, array in drawn.items():
        np.testing.assert_array_equal(found[1][name], array, name)
