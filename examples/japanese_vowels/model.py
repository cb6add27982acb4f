"""The model, free of any framework: a bidirectional GRU and a linear head, and the file of their trained weights.

Also a `Run`: a training that every framework can repeat number by number.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from data import FEATURES, SPEAKERS
from numpy.typing import NDArray

import unirnn
from unirnn.state import last_layer

__all__ = [
    "BETAS",
    "EPSILON",
    "LEARNING_RATE",
    "SPEC",
    "Head",
    "Model",
    "Run",
    "classified_state",
    "load",
    "save",
]

SPEC = unirnn.GRUSpec(FEATURES, 64, batch_first=True, bidirectional=True)
LEARNING_RATE = 3e-3

# For a `Run`. MindSpore's optimizers have such numbers in float32, whatever the dtype of the parameters is. Powers of
# two and sums of few of them are exact in float32.
BETAS = (1 - 2**-3, 1 - 2**-10)
# Frameworks add it before or after the bias correction. If it is this small, there is no difference.
EPSILON = 2**-46

WEIGHTS = Path(__file__).with_name("weights.npz")


@dataclass(frozen=True)
class Head:
    """The linear layer from the last state of the GRU to one logit for each speaker.

    Parameters
    ----------
    weight
        `(9, D*H)`, as in ``torch.nn.Linear`` and ``mindspore.nn.Dense``.
    bias
        `(9,)`.
    """

    weight: NDArray[np.floating[Any]]
    bias: NDArray[np.floating[Any]]

    @classmethod
    def draw(cls, seed: int, spec: unirnn.RecurrentSpec = SPEC, dtype: str = "float32") -> "Head":
        """Draw the initial weights as the layers of both frameworks do, but equal, from one generator."""
        size = spec.num_directions * spec.output_size
        # With the seed alone, the generator would repeat the numbers of the GRU's weights.
        generator = np.random.default_rng([seed, 1])
        bound = 1 / math.sqrt(size)
        weight, bias = (generator.uniform(-bound, bound, shape) for shape in ((SPEAKERS, size), (SPEAKERS,)))
        return cls(weight.astype(dtype), bias.astype(dtype))


@dataclass(frozen=True)
class Model:
    """The weights of a trained classifier."""

    gru: unirnn.Snapshot
    head: Head


@dataclass(frozen=True)
class Run:
    """A training that gives the same losses in every framework.

    Parameters
    ----------
    optimizer
        Stochastic gradient descent without momentum, or Adam.
    dtype
        The dtype of all weights, states and features.
    spec
        The recurrent layers below the head.
    seed
        The seed of the initial weights.
    """

    optimizer: Literal["SGD", "Adam"]
    dtype: Literal["float64", "float32"]
    spec: unirnn.RecurrentSpec = SPEC
    seed: int = 0

    @property
    def learning_rate(self) -> float:
        """A power of two, which is exact in float32; see `BETAS`."""
        return 2**-2 if self.optimizer == "SGD" else 2**-8


def classified_state(spec: unirnn.RecurrentSpec, final: Any) -> Any:
    """The input of the head, `(B, D*H)`: the final state of the last layer (for an LSTM its h), in any framework."""
    return last_layer(spec, final[0] if isinstance(spec, unirnn.LSTMSpec) else final)


def save(model: Model, test_logits: NDArray[np.float32], path: Path = WEIGHTS) -> None:
    """Write a model, and the logits that it gave for the test utterances where it was trained."""
    arrays: dict[str, NDArray[Any]] = {f"gru.{name}": array for name, array in model.gru.weights.items()}
    arrays["head.weight"], arrays["head.bias"] = model.head.weight, model.head.bias
    arrays["test_logits"] = test_logits
    np.savez_compressed(path, spec=np.array(json.dumps(model.gru.spec.to_dict())), **arrays)


def load(path: Path = WEIGHTS) -> tuple[Model, NDArray[np.float32]]:
    """Read what `save` wrote."""
    with np.load(path) as file:
        spec = unirnn.RecurrentSpec.from_dict(json.loads(file["spec"].item()))
        gru = unirnn.Snapshot(spec, {name: file[f"gru.{name}"] for name in spec.weight_shapes()})
        return Model(gru, Head(file["head.weight"], file["head.bias"])), file["test_logits"]
