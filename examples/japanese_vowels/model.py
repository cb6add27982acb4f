"""What is learned, free of any framework: a bidirectional GRU and a linear head, and the file that ships with them."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from data import FEATURES, SPEAKERS, Utterances
from numpy.typing import NDArray

import unirnn
from unirnn.state import last_layer

__all__ = ["LEARNING_RATE", "SPEC", "Head", "Model", "load", "logits", "save"]

SPEC = unirnn.GRUSpec(FEATURES, 64, batch_first=True, bidirectional=True)
LEARNING_RATE = 3e-3

WEIGHTS = Path(__file__).with_name("weights.npz")


@dataclass(frozen=True)
class Head:
    """The linear layer from the GRU's last state to one number a speaker.

    Parameters
    ----------
    weight
        `(9, 128)`: as ``torch.nn.Linear`` and ``mindspore.nn.Dense`` both keep it.
    bias
        `(9,)`.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    @classmethod
    def draw(cls, seed: int) -> "Head":
        """Draw first numbers as both frameworks' layers do, but from one generator, so that they are equal."""
        size = SPEC.num_directions * SPEC.output_size
        # A stream of its own: with the bare seed it would repeat the numbers that make the GRU's weights.
        generator = np.random.default_rng([seed, 1])
        bound = 1 / math.sqrt(size)
        weight, bias = (generator.uniform(-bound, bound, shape) for shape in ((SPEAKERS, size), (SPEAKERS,)))
        return cls(weight.astype(np.float32), bias.astype(np.float32))


@dataclass(frozen=True)
class Model:
    """The weights of a trained classifier."""

    gru: unirnn.Snapshot
    head: Head


def logits(model: Model, utterances: Utterances) -> NDArray[np.float32]:
    """Run a model on NumPy alone: `(B, 9)`."""
    gru = model.gru.build("numpy")
    _, h_n = gru(utterances.features, seq_length=utterances.lengths)
    result: NDArray[np.float32] = last_layer(gru.spec, h_n) @ model.head.weight.T + model.head.bias
    return result


def save(model: Model, test_logits: NDArray[np.float32], path: Path = WEIGHTS) -> None:
    """Write a model, and the numbers that it gave for the test utterances where it was trained."""
    arrays: dict[str, NDArray[Any]] = {f"gru.{name}": array for name, array in model.gru.weights.items()}
    arrays["head.weight"], arrays["head.bias"] = model.head.weight, model.head.bias
    arrays["test_logits"] = test_logits
    np.savez_compressed(path, spec=np.array(json.dumps(model.gru.spec.to_dict())), **arrays)


def load(path: Path = WEIGHTS) -> tuple[Model, NDArray[np.float32]]:
    """Read what `save` wrote."""
    with np.load(path) as file:
        spec = unirnn.Spec.from_dict(json.loads(file["spec"].item()))
        gru = unirnn.Snapshot(spec, {name: file[f"gru.{name}"] for name in spec.weight_shapes()})
        return Model(gru, Head(file["head.weight"], file["head.bias"])), file["test_logits"]
