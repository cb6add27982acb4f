"""Pullbacks chunk by chunk: full or truncated gradients."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from subjects import close

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.contract.call import join_state

Array = NDArray[Any]
SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4, 2, nonlinearity="relu"),
    RNNSpec(3, 4, batch_first=True, bias=False),
    GRUSpec(3, 4, 2, batch_first=True),
    LSTMSpec(3, 4, 2),
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
        self.d_output = rng.standard_normal((*leading, 4))
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
