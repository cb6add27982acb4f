"""What to train, and how: a `Run`, whose losses every framework reproduces."""

from dataclasses import dataclass
from typing import Literal

from model import MODEL

import unirnn

__all__ = ["Run"]


@dataclass(frozen=True)
class Run:
    """A training that gives the same losses in every framework.

    MindSpore's optimizers store their hyperparameters in float32, whatever the dtype of the parameters is. So the
    hyperparameters here are powers of two and sums of few of them, which are exact in float32.

    Parameters
    ----------
    optimizer
        Stochastic gradient descent without momentum, or Adam.
    dtype
        The dtype of all weights, states and features.
    model
        What is trained.
    seed
        The seed of the initial weights and of the order of the utterances.
    betas
        Adam's.
    epsilon
        Adam's. Frameworks add it before or after the bias correction, which makes no difference if it is this small.
    """

    optimizer: Literal["SGD", "Adam"] = "Adam"
    dtype: Literal["float64", "float32"] = "float32"
    model: unirnn.Sequential = MODEL
    seed: int = 0
    betas: tuple[float, float] = (1 - 2**-3, 1 - 2**-10)
    epsilon: float = 2**-46

    @property
    def learning_rate(self) -> float:
        """The step size."""
        return 2**-2 if self.optimizer == "SGD" else 2**-8
