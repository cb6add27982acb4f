"""One training run gives the same losses in every framework, and NumPy's gradients are right.

The run is that of ``examples/japanese_vowels/same_run.py``, mostly with narrower layers, which are quicker.
"""

import dataclasses
import functools
import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import unirnn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples" / "japanese_vowels"))

import data
import numpy_loop
import same_run
from model import SPEC, Head, Run

GRU = dataclasses.replace(SPEC, hidden_size=16)
LSTM = unirnn.LSTMSpec(data.FEATURES, 16, batch_first=True)
RNN = unirnn.RNNSpec(data.FEATURES, 16, batch_first=True)

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
    return f"{run.optimizer}-{run.dtype}-{run.spec.kind}"


@functools.cache
def training() -> data.Utterances:
    return data.load()[0]


@functools.cache
def numpy_curve(run: Run) -> list[float]:
    return same_run.curve(run, numpy_loop, training())


@pytest.mark.parametrize("run", RUNS, ids=label)
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_the_losses_equal_those_of_numpy(framework: str, run: Run) -> None:
    losses = same_run.curve(run, importlib.import_module(f"{framework}_loop"), training())
    assert len(losses) == same_run.STEPS == 50
    assert same_run.difference(losses, numpy_curve(run)) <= {"float64": 1e-8, "float32": 1e-3}[run.dtype]


@pytest.mark.parametrize("run", RUNS, ids=label)
def test_numpy_learns(run: Run) -> None:
    losses = numpy_curve(run)
    assert losses[0] == pytest.approx(np.log(data.SPEAKERS), rel=0.1), "before the first step, the model should guess"
    assert np.mean(losses[-9:]) < 0.6 * losses[0], "in the last epoch, the model should have learnt"


@pytest.mark.parametrize("spec", [GRU, LSTM, RNN, dataclasses.replace(GRU, num_layers=2)], ids=repr)
def test_numpy_has_the_gradient_of_every_parameter(spec: unirnn.RecurrentSpec, rng: np.random.Generator) -> None:
    classifier = numpy_loop.SpeakerClassifier(
        spec.build("numpy", dtype="float64", seed=0), Head.draw(0, spec, "float64")
    )
    batch, count = training().astype("float64"), 5
    features, lengths, speakers = batch.features[:count], batch.lengths[:count], batch.speakers[-count:]

    logits, pullback = classifier.vjp(features, lengths)
    gradients = pullback(numpy_loop.cross_entropy(logits, speakers)[1])
    assert gradients.keys() == classifier.parameters.keys()

    step = 1e-5
    for name, parameter in classifier.parameters.items():
        kept, direction = parameter.copy(), rng.standard_normal(parameter.shape)
        losses = []
        for sign in (1, -1):
            parameter[...] = kept + sign * step * direction
            losses.append(numpy_loop.cross_entropy(classifier(features, lengths), speakers)[0])
        parameter[...] = kept
        slope = (losses[0] - losses[1]) / (2 * step)
        size = np.linalg.norm(gradients[name]) * np.linalg.norm(direction)
        assert size > 0
        assert abs(np.sum(gradients[name] * direction) - slope) <= 1e-7 * size, name


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1 + 2e-8, 1), (float("nan"), 1)])
def test_exit_status_is_1_if_a_loss_is_off(factor: float, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def curve(run: Run, loop: str, utterances: data.Utterances) -> list[float]:
        losses = [1.0] * same_run.STEPS
        if loop == "torch" and run == Run("Adam", "float64"):
            losses[20] = factor
        return losses

    monkeypatch.setattr(same_run, "installed", lambda names, console: {name: name for name in names})
    monkeypatch.setattr(same_run, "curve", curve)
    assert same_run.main([]) == status
