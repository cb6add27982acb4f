"""Any two backends agree in outputs and gradients, and weights of one run on the other."""

import itertools
from typing import Any

import numpy as np
import pytest

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.contract.backend import Backend
from unirnn.contract.call import join_state
from unirnn.testing.subjects import Subject, subjects
from unirnn.testing.subjects import gradients as gradients_of
from unirnn.testing.tolerances import close

SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4, 2, bidirectional=True, nonlinearity="relu"),
    GRUSpec(3, 4, 3, bidirectional=True, batch_first=True),
    GRUSpec(3, 4, 2, bidirectional=True, reset_after=False),
    LSTMSpec(3, 4, 2, bidirectional=True, bias=False),
]


BACKENDS = [s.backend for s in subjects() if isinstance(s, Subject) and s.backend.support.derivatives]
PAIRS = list(itertools.combinations(BACKENDS, 2))


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize(("one", "other"), PAIRS, ids=[f"{a.name}-{b.name}" for a, b in PAIRS])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-5)])
def test_two_backends_agree(one: Backend, other: Backend, spec: RecurrentSpec, dtype: str, tolerance: float) -> None:
    rng = np.random.default_rng(0)
    modules = [spec.build(backend.name, dtype=dtype, seed=0) for backend in (one, other)]
    x = rng.standard_normal((4, 7, 3) if spec.batch_first else (7, 4, 3)).astype(dtype)
    hx = tuple(rng.standard_normal(shape).astype(dtype) for shape in spec.state_shapes(4).values())
    lengths = np.array([2, 7, 0, 5])
    width = spec.num_directions * spec.hidden_size
    d_output, d_state = rng.standard_normal((*x.shape[:2], width)).astype(dtype), hx

    results: list[Any] = []
    for backend, module in zip((one, other), modules, strict=True):
        state = join_state([backend.from_numpy(part, module) for part in hx])
        output, _ = module(backend.from_numpy(x, module), state, lengths)
        gradients = gradients_of(backend, module, x, hx, lengths, d_output, d_state)
        results.append({"output": backend.to_numpy(output), **gradients})
    assert results[0].keys() == results[1].keys()
    for name in results[0]:
        close(results[0][name], results[1][name].astype(np.float64), tolerance, name)

    there = unirnn.snapshot(modules[0]).build(other.name)
    output, _ = there(other.from_numpy(x, there), join_state([other.from_numpy(p, there) for p in hx]), lengths)
    np.testing.assert_array_equal(other.to_numpy(output), results[1]["output"])
