"""Building on every backend: seeds, weights, snapshots, and the names of arguments."""

from typing import Any

import numpy as np
import pytest

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.contract import weights as _weights
from unirnn.testing.conformance.cases import available
from unirnn.testing.subjects import Subject
from unirnn.testing.tolerances import close

SPECS = {
    "RNN": RNNSpec(3, 4, 2, nonlinearity="relu"),
    "GRU": GRUSpec(3, 4, bidirectional=True),
    "GRU-reset-before": GRUSpec(3, 4, reset_after=False),
    "LSTM": LSTMSpec(3, 4, 2, bias=False, bidirectional=True),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def weights(rnn_backend: Subject, module: Any) -> dict[str, Any]:
    return rnn_backend.read(module)[1]


@pytest.mark.promise("building")
@each_spec
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_seed_gives_the_same_bits_everywhere(rnn_backend: Subject, spec: RecurrentSpec, dtype: str) -> None:
    dtype = available(rnn_backend, dtype)
    expected = _weights.draw(spec, 7)
    rnn_backend.build(GRUSpec(5, 6), seed=1)  # earlier builds have no influence
    found = weights(rnn_backend, rnn_backend.build(spec, seed=7, dtype=dtype))
    assert list(found) == list(spec.weight_shapes())
    for name, array in expected.items():
        message = f"the weights are not those of the seed 7: {name}"
        np.testing.assert_array_equal(found[name], array.astype(dtype), message, strict=True)


@pytest.mark.promise("building", cell="GRU")
def test_a_seed_leaves_the_global_generator_alone(rnn_backend: Subject) -> None:
    """Building with a seed changes neither NumPy's global generator nor the framework's."""
    np.random.seed(0)
    expected = np.random.random_sample()
    np.random.seed(0)
    rnn_backend.build(GRUSpec(3, 4), seed=0)
    message = "a build with a seed moves the global generator"
    assert np.random.random_sample() == expected, message
    drawn = []
    for seeds in ((), (5,)):
        rnn_backend.backend.random_seed(1)
        for seed in seeds:
            rnn_backend.build(GRUSpec(3, 4), seed=seed)
        drawn.append(weights(rnn_backend, rnn_backend.build(GRUSpec(3, 4))))
    for name, array in drawn[0].items():
        np.testing.assert_array_equal(drawn[1][name], array, message)


@pytest.mark.promise("building", cell="GRU")
def test_without_a_seed_two_modules_differ(rnn_backend: Subject) -> None:
    first, second = (weights(rnn_backend, rnn_backend.build(GRUSpec(3, 4))) for _ in range(2))
    assert (first["weight_ih_l0"] != second["weight_ih_l0"]).any(), "without a seed, all modules have the same weights"
    assert np.abs(first["weight_ih_l0"]).max() <= 0.5


@pytest.mark.promise("weights")
@each_spec
def test_snapshot_round_trip(rnn_backend: Subject, spec: RecurrentSpec) -> None:
    module = rnn_backend.build(spec, seed=3)
    taken = unirnn.snapshot(module)
    assert taken.spec == spec
    again = rnn_backend.rebuild(taken)
    assert unirnn.snapshot(again) == taken
    on_numpy = taken.build("numpy")
    input = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    output, _ = rnn_backend.call(again, input, seq_length=[5, 2])
    close(output, on_numpy(input, seq_length=[5, 2])[0], rnn_backend.tolerance_of("float32"))


@pytest.mark.promise("weights")
@each_spec
def test_load_weights_replaces_them_in_place(rnn_backend: Subject, spec: RecurrentSpec) -> None:
    module, taken = rnn_backend.build(spec, seed=3), unirnn.snapshot(rnn_backend.build(spec, seed=4))
    input = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    for seq_length in (None, [5, 2]):
        rnn_backend.call(module, input, seq_length=seq_length)  # fill the module's caches
    unirnn.load_weights(module, taken)
    assert unirnn.snapshot(module) == taken
    fresh = rnn_backend.rebuild(taken)
    for seq_length in (None, [5, 2]):
        expected, _ = rnn_backend.call(fresh, input, seq_length=seq_length)
        output, _ = rnn_backend.call(module, input, seq_length=seq_length)
        message = "after load_weights, the module computes with wrong weights: it may keep a copy of earlier ones"
        np.testing.assert_array_equal(output, expected, message)


@pytest.mark.promise("weights", cell="GRU")
def test_load_weights_that_do_not_fit_changes_nothing(rnn_backend: Subject) -> None:
    module, wider = rnn_backend.build(GRUSpec(3, 4), seed=3), unirnn.snapshot(rnn_backend.build(GRUSpec(3, 5), seed=3))
    before = unirnn.snapshot(module)
    with pytest.raises(unirnn.errors.ShapeError, match=r"weights\['weight_ih_l0'\]: given shape \(15, 3\)"):
        unirnn.load_weights(module, wider)
    assert unirnn.snapshot(module) == before


@pytest.mark.promise("weights", cell="GRU")
def test_a_snapshot_is_a_read_only_copy(rnn_backend: Subject) -> None:
    module = rnn_backend.build(GRUSpec(3, 4), seed=0)
    taken, other = unirnn.snapshot(module), unirnn.snapshot(rnn_backend.build(GRUSpec(3, 4), seed=1))
    before = {name: array.copy() for name, array in taken.weights.items()}
    unirnn.load_weights(module, other)
    built = rnn_backend.rebuild(taken)
    unirnn.load_weights(built, other)
    for name, array in taken.weights.items():
        message = f"{name}: the snapshot has changed together with a module's weights, with which it shares memory"
        np.testing.assert_array_equal(array, before[name], message)
        with pytest.raises(ValueError, match="read-only"):
            array += 1


@pytest.mark.promise("building", cell="GRU")
@pytest.mark.parametrize("spelling", ["input", "x"])
@pytest.mark.parametrize("state", ["hx", "h_0"])
def test_argument_names_of_both_frameworks(rnn_backend: Subject, spelling: str, state: str) -> None:
    module = rnn_backend.build(GRUSpec(3, 4), seed=0)
    x = rnn_backend.array(np.ones((5, 2, 3), np.float32), module)
    h_0 = rnn_backend.array(np.ones((1, 2, 4), np.float32), module)
    expected = rnn_backend.to_numpy(module(x, h_0, [5, 0])[0])
    output, _ = module(**{spelling: x, state: h_0, "seq_length": [5, 0]})
    np.testing.assert_array_equal(rnn_backend.to_numpy(output), expected)
