"""One training run gives the same losses in every framework.

It is the run of ``examples/japanese_vowels/same_run.py``, mostly with narrower layers, to save time.
"""

import functools
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import unirnn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "japanese_vowels"))

import data
import same_run
from run import Run


def classifier(recurrent: unirnn.RecurrentSpec, pooling: str) -> unirnn.Sequential:
    head = unirnn.LinearSpec(out_features=data.SPEAKERS)
    return unirnn.Sequential(recurrent, unirnn.PoolSpec(pooling), head)  # type: ignore[arg-type]


GRU = classifier(unirnn.GRUSpec(data.FEATURES, 16, batch_first=True, bidirectional=True), "first_last")
LSTM = classifier(unirnn.LSTMSpec(data.FEATURES, 16, batch_first=True), "last")
RNN = classifier(unirnn.RNNSpec(data.FEATURES, 16, batch_first=True), "last")

RUNS = [
    Run("SGD", "float64", GRU),
    Run("SGD", "float32", GRU),
    Run("Adam", "float64"),  # at full width, where an optimizer that computes in float32 internally exceeds the bound
    Run("Adam", "float32", GRU),
    Run("SGD", "float64", LSTM),
    Run("SGD", "float64", RNN),
]
FRAMEWORKS = [name for name in ("torch", "mindspore") if find_spec(name)]


def label(run: Run) -> str:
    return f"{run.optimizer}-{run.dtype}-{next(iter(run.model)).kind}"


@functools.cache
def training() -> data.Utterances:
    return data.load()[0]


@functools.cache
def numpy_curve(run: Run) -> list[float]:
    return same_run.curve(run, "numpy", training())


@pytest.mark.parametrize("run", RUNS, ids=label)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_losses_equal_those_of_numpy(framework: str, run: Run) -> None:
    losses = same_run.curve(run, framework, training())
    assert len(losses) == same_run.STEPS == 50
    assert same_run.difference(losses, numpy_curve(run)) <= {"float64": 1e-8, "float32": 1e-3}[run.dtype]


@pytest.mark.parametrize("run", RUNS, ids=label)
def test_numpy_learns(run: Run) -> None:
    losses = numpy_curve(run)
    assert losses[0] == pytest.approx(np.log(data.SPEAKERS), rel=0.15), "before the first step, the model should guess"
    assert np.mean(losses[-9:]) < 0.6 * losses[0], "in the last epoch, the model should have learnt"


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1 + 2e-8, 1), (float("nan"), 1)])
def test_exit_status_is_1_if_a_loss_is_off(factor: float, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def curve(run: Run, framework: str, utterances: data.Utterances) -> list[float]:
        losses = [1.0] * same_run.STEPS
        if framework == "torch" and run == Run("Adam", "float64"):
            losses[20] = factor
        return losses

    monkeypatch.setattr(same_run, "installed", lambda names, console: list(names))
    monkeypatch.setattr(same_run, "curve", curve)
    assert same_run.main([]) == status
