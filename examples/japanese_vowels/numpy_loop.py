"""The training loop in NumPy, with its own cross-entropy, SGD and Adam.

The losses of the frameworks are compared with those of this loop.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from data import Utterances
from numpy.typing import NDArray
from run import Run

__all__ = ["SGD", "Adam", "cross_entropy", "train"]

Array = NDArray[Any]


def cross_entropy(logits: Array, speakers: Array) -> tuple[float, Array]:
    """Compute the cross-entropy of the speakers, and its gradient.

    With ``p = softmax(logits)``, the loss is the mean of ``-log p[speaker]``, and its gradient
    ``(p - onehot(speaker)) / B``.

    Parameters
    ----------
    logits
        `(B, 9)`.
    speakers
        `(B,)`.

    Returns
    -------
    loss
        The mean over the batch.
    d_logits
        `(B, 9)`.
    """
    rows = np.arange(len(logits))
    shifted = logits - logits.max(axis=1, keepdims=True)  # no exponential overflows
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    d_logits = np.exp(log_p)
    d_logits[rows, speakers] -= 1
    return float(-log_p[rows, speakers].mean()), d_logits / len(logits)


class Optimizer(Protocol):
    """Changes the parameters by their gradients."""

    def __call__(self, gradients: Mapping[str, Array]) -> None: ...


class SGD:
    """Stochastic gradient descent without momentum.

    For a parameter w with the gradient g::

        w = w - learning_rate * g

    Parameters
    ----------
    parameters
        Changed in place.
    learning_rate
        As above.
    """

    def __init__(self, parameters: Mapping[str, Array], learning_rate: float) -> None:
        self.parameters = parameters
        self.learning_rate = learning_rate

    def __call__(self, gradients: Mapping[str, Array]) -> None:
        """Take one step."""
        for name, parameter in self.parameters.items():
            parameter -= self.learning_rate * gradients[name]


class Adam:
    """Adam, as algorithm 1 of D. P. Kingma and J. Ba, "Adam: A Method for Stochastic Optimization" (ICLR 2015).

    For a parameter w with the gradient g, at step t = 1, 2, ..., from m = v = 0::

        m = beta1 * m + (1 - beta1) * g
        v = beta2 * v + (1 - beta2) * g**2
        w = w - learning_rate * (m / (1 - beta1**t)) / (sqrt(v / (1 - beta2**t)) + epsilon)

    Parameters
    ----------
    parameters
        Changed in place.
    learning_rate, betas, epsilon
        As above.
    """

    def __init__(
        self, parameters: Mapping[str, Array], learning_rate: float, betas: tuple[float, float], epsilon: float
    ) -> None:
        self.parameters = parameters
        self.learning_rate = learning_rate
        self.betas = betas
        self.epsilon = epsilon
        self.steps = 0
        self.moments = {name: (np.zeros_like(w), np.zeros_like(w)) for name, w in parameters.items()}

    def __call__(self, gradients: Mapping[str, Array]) -> None:
        """Take one step."""
        beta1, beta2 = self.betas
        self.steps += 1
        for name, parameter in self.parameters.items():
            gradient, (m, v) = gradients[name], self.moments[name]
            m[...] = beta1 * m + (1 - beta1) * gradient
            v[...] = beta2 * v + (1 - beta2) * gradient**2
            mean, square = m / (1 - beta1**self.steps), v / (1 - beta2**self.steps)
            parameter -= self.learning_rate * mean / (np.sqrt(square) + self.epsilon)


def train(net: Any, run: Run, utterances: Utterances, batches: Iterable[NDArray[np.int64]]) -> Iterator[float]:
    """Train a model, and yield the loss of each batch; the arguments are those of `torch_loop.train`."""
    optimizer: Optimizer
    if run.optimizer == "SGD":
        optimizer = SGD(net.weights, run.learning_rate)
    else:
        optimizer = Adam(net.weights, run.learning_rate, run.betas, run.epsilon)
    net.train()
    for batch in batches:
        logits, _, pullback = net.vjp(utterances.features[batch], seq_length=utterances.lengths[batch])
        loss, d_logits = cross_entropy(logits, utterances.speakers[batch])
        optimizer(pullback(d_logits))
        yield loss
