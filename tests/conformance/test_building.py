"""Building on every backend: seeds, weights, snapshots, and the examples of the frameworks' documentation."""

from typing import Any

import numpy as np
import pytest
from cases import available
from subjects import Subject, close

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.contract import weights as _weights

SPECS = {
    "RNN": RNNSpec(3, 4, 2, nonlinearity="relu"),
    "GRU": GRUSpec(3, 4, bidirectional=True),
    "GRU-reset-before": GRUSpec(3, 4, reset_after=False),
    "LSTM": LSTMSpec(3, 4, 2, bias=False, bidirectional=True),
}
each_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def weights(subject: Subject, module: Any) -> dict[str, Any]:
    found = subject.backend.read(module)
    assert found is not None
    return found[1]


@each_spec
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_seed_gives_the_same_bits_everywhere(subject: Subject, spec: RecurrentSpec, dtype: str) -> None:
    dtype = available(subject, dtype)
    expected = _weights.draw(spec, 7)
    subject.build(GRUSpec(5, 6), seed=1)  # earlier builds have no influence
    found = weights(subject, subject.build(spec, seed=7, dtype=dtype))
    assert list(found) == list(spec.weight_shapes())
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array.astype(dtype), strict=True)


def test_a_seed_leaves_the_global_generator_alone(subject: Subject) -> None:
    np.random.seed(0)
    expected = np.random.random_sample()
    np.random.seed(0)
    subject.build(GRUSpec(3, 4), seed=0)
    assert np.random.random_sample() == expected


def test_without_a_seed_two_modules_differ(subject: Subject) -> None:
    first, second = (weights(subject, subject.build(GRUSpec(3, 4))) for _ in range(2))
    assert (first["weight_ih_l0"] != second["weight_ih_l0"]).any()
    assert np.abs(first["weight_ih_l0"]).max() <= 0.5


@each_spec
def test_snapshot_round_trip(subject: Subject, spec: RecurrentSpec) -> None:
    module = subject.build(spec, seed=3)
    taken = unirnn.snapshot(module)
    assert taken.spec == spec
    again = subject.rebuild(taken)
    assert unirnn.snapshot(again) == taken
    on_numpy = taken.build("numpy")
    input = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    output, _ = subject.call(again, input, seq_length=[5, 2])
    close(output, on_numpy(input, seq_length=[5, 2])[0], 1e-6 * subject.tolerance_factor)


@each_spec
def test_load_weights_replaces_them_in_place(subject: Subject, spec: RecurrentSpec) -> None:
    module, taken = subject.build(spec, seed=3), unirnn.snapshot(subject.build(spec, seed=4))
    input = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    for seq_length in (None, [5, 2]):
        subject.call(module, input, seq_length=seq_length)  # so that the module has cached what it caches
    unirnn.load_weights(module, taken)
    assert unirnn.snapshot(module) == taken
    fresh = subject.rebuild(taken)
    for seq_length in (None, [5, 2]):
        expected, _ = subject.call(fresh, input, seq_length=seq_length)
        np.testing.assert_array_equal(subject.call(module, input, seq_length=seq_length)[0], expected)


def test_load_weights_that_do_not_fit_changes_nothing(subject: Subject) -> None:
    module, wider = subject.build(GRUSpec(3, 4), seed=3), unirnn.snapshot(subject.build(GRUSpec(3, 5), seed=3))
    before = unirnn.snapshot(module)
    with pytest.raises(unirnn.errors.ShapeError, match=r"weights\['weight_ih_l0'\]: given shape \(15, 3\)"):
        unirnn.load_weights(module, wider)
    assert unirnn.snapshot(module) == before


def test_a_snapshot_is_a_read_only_copy(subject: Subject) -> None:
    module = subject.build(GRUSpec(3, 4), seed=0)
    taken, other = unirnn.snapshot(module), unirnn.snapshot(subject.build(GRUSpec(3, 4), seed=1))
    before = {name: array.copy() for name, array in taken.weights.items()}
    unirnn.load_weights(module, other)
    built = subject.rebuild(taken)
    unirnn.load_weights(built, other)
    for name, array in taken.weights.items():
        np.testing.assert_array_equal(array, before[name])
        with pytest.raises(ValueError, match="read-only"):
            array += 1


def test_the_rnn_example_of_mindspores_documentation(subject: Subject) -> None:
    spec = RNNSpec(2, 3, 4, nonlinearity="relu", bias=False)
    module = subject.build(spec, seed=0)
    x = np.array([[[3.0, 4.0]]], np.float32)
    h_0 = np.array([[[1, 2, 3]], [[3, 4, 5]], [[3, 4, 5]], [[3, 4, 5]]], np.float32)
    output, (h_n,) = subject.call(module, x, (h_0,))

    h, expected = x[0, 0].astype(np.float64), []
    for layer in range(4):
        w = {name: array.astype(np.float64) for name, array in weights(subject, module).items()}
        h = np.maximum(w[f"weight_ih_l{layer}"] @ h + w[f"weight_hh_l{layer}"] @ h_0[layer, 0], 0)
        expected.append(h)
    close(output, h[None, None], 1e-6)
    close(h_n, np.stack(expected)[:, None], 1e-6)


def test_the_gru_example_of_mindspores_documentation(subject: Subject) -> None:
    module = subject.build(GRUSpec(10, 16, 2, batch_first=True), seed=0)
    output, (h_n,) = subject.call(module, np.ones((3, 5, 10), np.float32), (np.ones((2, 3, 16), np.float32),))
    assert output.shape == (3, 5, 16)
    assert h_n.shape == (2, 3, 16)


@pytest.mark.parametrize("spelling", ["input", "x"])
@pytest.mark.parametrize("state", ["hx", "h_0"])
def test_argument_names_of_both_frameworks(subject: Subject, spelling: str, state: str) -> None:
    module = subject.build(GRUSpec(3, 4), seed=0)
    x = subject.array(np.ones((5, 2, 3), np.float32), module)
    h_0 = subject.array(np.ones((1, 2, 4), np.float32), module)
    expected = subject.backend.to_numpy(module(x, h_0, [5, 0])[0])
    output, _ = module(**{spelling: x, state: h_0, "seq_length": [5, 0]})
    np.testing.assert_array_equal(subject.backend.to_numpy(output), expected)
