"""The oracle's two ways to differentiate agree, and one step agrees with a calculation by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.contract import weights as _weights
from unirnn.testing import oracle

SPECS = [
    RNNSpec(3, 4, 2, bidirectional=True),
    RNNSpec(3, 4, nonlinearity="relu", bias=False),
    GRUSpec(3, 4, 2, bidirectional=True, batch_first=True),
    GRUSpec(3, 4, 2, reset_after=False),
    GRUSpec(3, 4, reset_after=False, bias=False, bidirectional=True),
    LSTMSpec(3, 4, 3),
    LSTMSpec(3, 4, 2, proj_size=2, bidirectional=True),
    GRUSpec(3, 4, 2, gate_activation="hard_sigmoid", reverse=True),
    GRUSpec(3, 4, reset_after=False, gate_activation="hard_sigmoid_0.2"),
    LSTMSpec(3, 4, gate_activation="hard_sigmoid", bidirectional=True),
]
STEPS = 6


def draw(spec: RecurrentSpec, batch_size: int | None) -> tuple[dict[str, NDArray[Any]], tuple[NDArray[Any], ...]]:
    """The arrays of a call by name, and the cotangents of its results."""
    rng = np.random.default_rng(0)
    leading = (STEPS,) if batch_size is None else (STEPS, batch_size)
    if spec.batch_first:
        leading = leading[::-1]
    states = spec.state_shapes(batch_size)
    arrays = {
        "input": rng.standard_normal((*leading, spec.input_size)),
        **{f"{name}_0": rng.standard_normal(shape) for name, shape in states.items()},
        **_weights.draw(spec, 0),
    }
    d_output = rng.standard_normal((*leading, spec.num_directions * spec.output_size))
    return arrays, (d_output, *(rng.standard_normal(shape) for shape in states.values()))


@pytest.mark.parametrize("lengths", [(3, 6, 0, 5), None])
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_gradients_agree_with_the_complex_step(spec: RecurrentSpec, lengths: tuple[int, ...] | None) -> None:
    arrays, cotangents = draw(spec, 4)
    given = None if lengths is None else np.array(lengths)
    found = oracle.gradients(spec, arrays, given, cotangents)
    assert found.keys() == arrays.keys()
    rng = np.random.default_rng(1)
    for name, array in arrays.items():
        direction = rng.standard_normal(array.shape)
        expected = oracle.derivative(spec, arrays, given, cotangents, name, direction)
        assert (found[name] * direction).sum() == pytest.approx(expected, rel=1e-12, abs=1e-13), name


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_an_unbatched_call_is_a_batch_of_one(spec: RecurrentSpec) -> None:
    arrays, cotangents = draw(spec, None)
    axis = 0 if spec.batch_first else 1
    axes = {"input": axis, **{f"{name}_0": 1 for name in spec.states}}
    batch = {**arrays, **{name: np.expand_dims(arrays[name], axis) for name, axis in axes.items()}}
    d_batch = tuple(np.expand_dims(d, axis) for d, axis in zip(cotangents, axes.values(), strict=True))
    alone = oracle.gradients(spec, arrays, np.array([4]), cotangents)
    for name, expected in oracle.gradients(spec, batch, np.array([4]), d_batch).items():
        np.testing.assert_array_equal(alone[name], expected.squeeze(axes[name]) if name in axes else expected)


def test_padding_is_never_read() -> None:
    spec = LSTMSpec(3, 4, 2, bidirectional=True)
    arrays, cotangents = draw(spec, 4)
    lengths = np.array([3, 6, 0, 5])
    padding = np.arange(STEPS)[:, None] >= lengths
    arrays["input"][padding] = np.nan
    output, final = oracle.recurrent(spec, arrays, arrays["input"], (arrays["h_0"], arrays["c_0"]), lengths)
    found = oracle.gradients(spec, arrays, lengths, cotangents)
    assert not output[padding].any()
    assert not found["input"][padding].any()
    assert all(np.isfinite(array).all() for array in (output, *final, *found.values()))
    for part, initial in zip(final, (arrays["h_0"], arrays["c_0"]), strict=True):
        np.testing.assert_array_equal(part[:, 2], initial[:, 2])  # its length is 0


def test_one_step_by_hand() -> None:
    weights = {name: np.full(shape, 0.5) for name, shape in RNNSpec(2, 1).weight_shapes().items()}
    output, (h_n,) = oracle.recurrent(RNNSpec(2, 1), weights, np.array([[1.0, 2.0]]), (np.array([[3.0]]),), None)
    # 0.5 * (1 + 2) + 0.5 + 0.5 * 3 + 0.5
    np.testing.assert_allclose(output, np.tanh([[4.0]]), rtol=1e-15)
    np.testing.assert_array_equal(h_n, output)
