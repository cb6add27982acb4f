"""What is learned, free of any framework: a bidirectional GRU and a linear head, and the file that ships with them.

Besides it, a `Run`: a training that every framework can repeat number by number.
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

# For a `Run`. MindSpore's optimizers keep such numbers in float32, whatever the parameters are: all of these are
# powers of two, or sums of few, which float32 holds exactly.
BETAS = (1 - 2**-3, 1 - 2**-10)
# Frameworks add it in different places, before the bias is corrected or after. This small it makes no difference.
EPSILON = 2**-46

WEIGHTS = Path(__file__).with_name("weights.npz")


@dataclass(frozen=True)
class Head:
    """The linear layer from the GRU's last state to one number a speaker.

    Parameters
    ----------
    weight
        `(9, D*H)`: as ``torch.nn.Linear`` and ``mindspore.nn.Dense`` both keep it.
    bias
        `(9,)`.
    """

    weight: NDArray[np.floating[Any]]
    bias: NDArray[np.floating[Any]]

    @classmethod
    def draw(cls, seed: int, spec: unirnn.RecurrentSpec = SPEC, dtype: str = "float32") -> "Head":
        """Draw first numbers as both frameworks' layers do, but from one generator, so that they are equal."""
        size = spec.num_directions * spec.output_size
        # A stream of its own: with the bare seed it would repeat the numbers that make the GRU's weights.
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
        Plain stochastic gradient descent, or Adam.
    dtype
        Of all the weights, states and features.
    spec
        The recurrent layers below the head.
    seed
        Of the first weights.
    """

    optimizer: Literal["SGD", "Adam"]
    dtype: Literal["float64", "float32"]
    spec: unirnn.RecurrentSpec = SPEC
    seed: int = 0

    @property
    def learning_rate(self) -> float:
        """A power of two, for the reason that `BETAS` are."""
        return 2**-2 if self.optimizer == "SGD" else 2**-8


def classified_state(spec: unirnn.RecurrentSpec, final: Any) -> Any:
    """What the head sees: the last layer's final state, of an LSTM its h, on any framework's arrays: `(B, D*H)`."""
    return last_layer(spec, final[0] if isinstance(spec, unirnn.LSTMSpec) else final)


def save(model: Model, test_logits: NDArray[np.float32], path: Path = WEIGHTS) -> None:
    """Write a model, and the numbers that it gave for the test utterances where it was trained."""
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
