"""Pullbacks chunk by chunk: full or truncated gradients; and calls and steps one after the other."""

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, errors
from unirnn.contract.call import join_state, state_parts
from unirnn.testing.tolerances import close

Array = NDArray[Any]
SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4, 2, nonlinearity="relu"),
    RNNSpec(3, 4, batch_first=True, bias=False),
    GRUSpec(3, 4, 2, batch_first=True),
    LSTMSpec(3, 4, 2),
    LSTMSpec(3, 4, 2, proj_size=2, gate_activation="hard_sigmoid_0.2"),
]
each = pytest.mark.parametrize("spec", SPECS, ids=repr)
STEPS = 7
LENGTHS = np.array([7, 0, 3, 5])
STARTS = [0, 3, 4]


def chunks(spec: RecurrentSpec, array: Array) -> list[Array]:
    """Split the steps of an array at the starts of the chunks."""
    return np.split(array, STARTS[1:], axis=1 if spec.batch_first else 0)


class Streamed:
    """A module and a ragged batch, with all gradients of one call or of several chunks.

    Parameters
    ----------
    spec
        The layers.
    """

    def __init__(self, spec: RecurrentSpec) -> None:
        rng = np.random.default_rng(0)
        leading = (len(LENGTHS), STEPS) if spec.batch_first else (STEPS, len(LENGTHS))
        self.spec = spec
        self.module = spec.build("numpy", dtype="float64", seed=0)
        self.input = rng.standard_normal((*leading, 3))
        self.d_output = rng.standard_normal((*leading, spec.output_size))
        shapes = spec.state_shapes(len(LENGTHS)).values()
        self.state, self.d_state = (join_state([rng.standard_normal(shape) for shape in shapes]) for _ in range(2))

    def whole(self) -> dict[str, Array]:
        _, _, pullback = self.module.vjp(self.input, self.state, LENGTHS)
        gradients: dict[str, Array] = pullback(self.d_output, self.d_state)
        return gradients

    def chunked(self, truncated: bool) -> dict[str, Array]:
        pullbacks, state = [], self.state
        for start, chunk in zip(STARTS, chunks(self.spec, self.input), strict=True):
            left = np.clip(LENGTHS - start, 0, chunk.shape[1 if self.spec.batch_first else 0])
            _, state, pullback = self.module.vjp(chunk, unirnn.detach(state), left)
            pullbacks.append(pullback)

        total = {name: np.zeros_like(weight) for name, weight in self.module.weights.items()}
        d_inputs: list[Array] = []
        d_state = self.d_state
        for pullback, d_output in zip(pullbacks[::-1], chunks(self.spec, self.d_output)[::-1], strict=True):
            found = pullback(d_output, d_state)
            for name in total:
                total[name] += found[name]
            d_inputs.insert(0, found["input"])
            d_state = None if truncated else join_state([found[f"{name}_0"] for name in self.spec.states])
        total["input"] = np.concatenate(d_inputs, axis=1 if self.spec.batch_first else 0)
        return total | {f"{name}_0": found[f"{name}_0"] for name in self.spec.states}


@each
def test_gradients_of_chunks_add_up_to_those_of_one_call(spec: RecurrentSpec) -> None:
    streamed = Streamed(spec)
    actual, expected = streamed.chunked(truncated=False), streamed.whole()
    assert actual.keys() == expected.keys()
    for name, gradient in actual.items():
        close(gradient, expected[name], 1e-12, name)


@each
def test_truncated_gradients_ignore_later_chunks(spec: RecurrentSpec) -> None:
    streamed = Streamed(spec)
    truncated, whole = (chunks(spec, g["input"]) for g in (streamed.chunked(truncated=True), streamed.whole()))
    np.testing.assert_allclose(truncated[-1], whole[-1], rtol=0, atol=1e-12)
    for before, expected in zip(truncated[:-1], whole[:-1], strict=True):
        assert np.abs(before - expected).max() > 1e-3
    # Later chunks do not affect it.
    streamed.d_output[(slice(None), slice(STARTS[1], None)) if spec.batch_first else slice(STARTS[1], None)] = 0
    streamed.d_state = None
    first = chunks(spec, streamed.chunked(truncated=True)["input"])[0]
    np.testing.assert_array_equal(first, truncated[0])


# ---- prepared calls and steps --------------------------------------------------------------------


PREPARED = [
    *SPECS,
    GRUSpec(3, 4, 3, bidirectional=True),
    LSTMSpec(3, 4, 2, proj_size=2, bidirectional=True, batch_first=True),
    RNNSpec(3, 4, reverse=True),
]


@pytest.mark.parametrize("spec", PREPARED, ids=repr)
def test_a_prepared_call_gives_the_same_numbers(spec: RecurrentSpec) -> None:
    module, rng = spec.build("numpy", seed=0), np.random.default_rng(0)
    for shape, batch_size in (((5, 2, 3), 5 if spec.batch_first else 2), ((5, 3), None)):
        x = rng.standard_normal(shape).astype(np.float32)
        parts = [rng.standard_normal(size).astype(np.float32) for size in spec.state_shapes(batch_size).values()]
        full = shape[1] if batch_size == shape[0] else shape[0]
        for given, hx in ((x, None), (x, join_state(parts)), (x[::-1], None), (np.asfortranarray(x), None)):
            wanted, final = module(given, hx, full if batch_size is None else [full] * batch_size)
            for _ in range(3):  # the second one is prepared
                output, found = module(given, hx)
                close(output, wanted, 1e-6)
                for part, expected in zip(state_parts(spec, found) or (), state_parts(spec, final) or (), strict=True):
                    close(part, expected, 1e-6)


@pytest.mark.parametrize("steps", [None, 2], ids=["step", "call"])
def test_the_current_weights_are_used(steps: int | None) -> None:
    gru = GRUSpec(3, 4, 2).build("numpy", seed=0)
    run, x = (gru, np.ones((steps, 2, 3), np.float32)) if steps else (gru.step, np.ones((2, 3), np.float32))
    _, state = run(x)
    before, _ = run(x, state)
    gru.weights["weight_hh_l0"] *= 0.5
    written, _ = run(x, state)
    gru.weights["weight_ih_l1"] = gru.weights["weight_ih_l1"] * 0.5
    replaced, _ = run(x, state)
    assert len({float(y.sum()) for y in (before, written, replaced)}) == 3
    wanted, _ = gru(x if steps else x[None], state, [steps or 1] * 2)
    close(replaced, wanted if steps else wanted[0], 1e-6)


def test_weights_of_other_names_are_used() -> None:
    gru = GRUSpec(3, 4, bias=False).build("numpy", seed=0)
    x = np.ones((2, 1, 3), np.float32)
    before = [gru(x)[0] for _ in range(3)][-1]
    gru.weights |= {"bias_ih_l0": np.ones(12, np.float32), "bias_hh_l0": np.ones(12, np.float32)}
    after, _ = gru(x)
    np.testing.assert_array_equal(after, gru(x, seq_length=[2])[0])
    assert np.abs(after - before).max() > 0.1


@pytest.mark.parametrize("name", ["weight_ih_l0", "weight_hh_l0", "bias_hh_l0"])
def test_weights_of_a_wrong_shape_are_refused_at_each_call(name: str) -> None:
    """The kernels would read and write memory of others."""
    gru = GRUSpec(3, 4).build("numpy", seed=0)
    x = np.ones((2, 1, 3), np.float32)
    gru.weights[name] = np.zeros((180, 60)[: gru.weights[name].ndim], np.float32)
    runs: list[Callable[[], Any]] = [lambda: gru(x), lambda: gru.step(x[0]), lambda: gru.vjp(x)]
    for run in [*runs, *runs]:
        with pytest.raises(errors.ShapeError, match=rf"weights\['{name}'\]: given shape \(180"):
            run()
    del gru.weights["bias_ih_l0"]
    gru.weights[name] = GRUSpec(3, 4).build("numpy", seed=0).weights[name]
    with pytest.raises(errors.ShapeError, match="given one of bias_ih_l0 and bias_hh_l0, expected both or none"):
        gru(x)


def test_numbers_in_the_other_byte_order() -> None:
    gru = GRUSpec(3, 4).build("numpy", seed=0)
    x = np.ones((2, 1, 3), np.float32)
    wanted, _ = gru(x)
    gru.weights = {name: array.astype(">f4") for name, array in gru.weights.items()}
    for _ in range(3):
        output, _ = gru(x.astype(">f4"))
        assert output.dtype == ">f4"
        np.testing.assert_array_equal(output, wanted)


def test_a_prepared_step_takes_other_shapes_and_layouts() -> None:
    lstm = LSTMSpec(3, 4, 2).build("numpy", seed=0)
    rng = np.random.default_rng(0)
    for size in (2, 5, 2):
        x = rng.standard_normal((3, size)).astype(np.float32).T  # not contiguous
        read_only = x.copy()
        read_only.flags.writeable = False
        unaligned = np.frombuffer(b"x" + x.tobytes("C"), np.uint8)[1:].view(np.float32).reshape(size, 3)
        for given in (x, x[::-1], read_only, unaligned, x[0]):
            _, state = lstm.step(given)
            for part in (state, tuple(np.asfortranarray(part) for part in state)):
                y, (h, c) = lstm.step(given, part)
                wanted, (h_n, c_n) = lstm(np.stack([given, given]))
                close(y, wanted[1], 1e-6)
                close(h, h_n, 1e-6)
                close(c, c_n, 1e-6)
    for wrong in (np.zeros((2, 4), np.float32), np.zeros((2, 3)), np.zeros((1, 2, 3), np.float32), [[0.0] * 3]):
        with pytest.raises(errors.UnirnnError, match="x: given"):
            lstm.step(wrong)


def test_a_module_that_has_made_calls_and_steps_can_be_copied() -> None:
    gru = GRUSpec(3, 4).build("numpy", seed=0)
    x = np.ones((2, 3), np.float32)
    for _ in range(2):
        gru(x[None])
        wanted, _ = gru.step(x)
    for other in (copy.deepcopy(gru), pickle.loads(pickle.dumps(gru))):
        np.testing.assert_array_equal(other.step(x)[0], wanted)
        other.weights["weight_ih_l0"][...] = 0
    np.testing.assert_array_equal(gru.step(x)[0], wanted)


def test_threads_make_steps_at_the_same_time() -> None:
    gru = GRUSpec(64, 64, 2).build("numpy", seed=0)
    inputs = np.random.default_rng(0).standard_normal((8, 64, 64)).astype(np.float32)

    def run(x: Array) -> Array:
        state, outputs = None, []
        for _ in range(20):
            y, state = gru.step(x, state)
            outputs.append(y)
        return np.stack(outputs)

    expected = [run(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(run, inputs)), expected)
