"""The classifier in NumPy, with gradients and optimizers written by hand.

The losses of the frameworks are compared with those of this loop. Every equation is here or in unirnn's NumPy kernels.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from data import Utterances
from model import BETAS, EPSILON, Head, Model, Run, classified_state
from numpy.typing import NDArray

from unirnn.state import axes

__all__ = ["SGD", "Adam", "SpeakerClassifier", "cross_entropy", "curve", "logits"]

Array = NDArray[Any]


class SpeakerClassifier:
    """Predicts the speaker of each utterance.

    Parameters
    ----------
    recurrent
        A module of `model.SPEC`, or of another spec, of the ``numpy`` backend.
    head
        The weights of the linear layer, of the same dtype.

    Attributes
    ----------
    parameters
        All weights by name; write to the arrays to change them.
    """

    def __init__(self, recurrent: Any, head: Head) -> None:
        self.recurrent = recurrent
        self.weight, self.bias = head.weight.copy(), head.bias.copy()
        self.parameters: dict[str, Array] = {
            **recurrent.weights,
            "head.weight": self.weight,
            "head.bias": self.bias,
        }

    def __call__(self, features: Array, lengths: Array) -> Array:
        """`(B, T, 12)` and `(B,)` to `(B, 9)`."""
        return self.vjp(features, lengths)[0]

    def vjp(self, features: Array, lengths: Array) -> tuple[Array, Callable[[Array], dict[str, Array]]]:
        """Compute the logits, and return them with a function that computes the gradients.

        Returns
        -------
        logits
            `(B, 9)`.
        pullback
            ``pullback(d_logits)`` gives the gradients of ``sum(logits * d_logits)``, by the names of `parameters`.
        """
        spec = self.recurrent.spec
        output, final, pull_recurrent = self.recurrent.vjp(features, seq_length=lengths)
        state = classified_state(spec, final)

        def pullback(d_logits: Array) -> dict[str, Array]:
            # from `(B, D*H)`, directions side by side, to `(D, B, H)`
            by_direction = (d_logits @ self.weight).reshape(len(state), spec.num_directions, -1).swapaxes(0, 1)
            h_n, *others = final if isinstance(final, tuple) else (final,)
            d_h_n = np.zeros_like(h_n)
            axes(spec, d_h_n)[-1] = by_direction
            d_final = (d_h_n, *map(np.zeros_like, others)) if others else d_h_n
            gradients = pull_recurrent(np.zeros_like(output), d_final)
            return {
                **{name: gradients[name] for name in self.recurrent.weights},
                "head.weight": d_logits.T @ state,
                "head.bias": d_logits.sum(axis=0),
            }

        return state @ self.weight.T + self.bias, pullback


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


def curve(run: Run, utterances: Utterances, batches: Iterable[NDArray[np.int64]]) -> list[float]:
    """Train as `run` says, one step for each batch, and return the losses."""
    recurrent = run.spec.build("numpy", dtype=run.dtype, seed=run.seed)
    classifier = SpeakerClassifier(recurrent.train(), Head.draw(run.seed, run.spec, run.dtype))
    optimizer: Optimizer
    if run.optimizer == "SGD":
        optimizer = SGD(classifier.parameters, run.learning_rate)
    else:
        optimizer = Adam(classifier.parameters, run.learning_rate, BETAS, EPSILON)

    losses = []
    for batch in batches:
        predicted, pullback = classifier.vjp(utterances.features[batch], utterances.lengths[batch])
        loss, d_logits = cross_entropy(predicted, utterances.speakers[batch])
        optimizer(pullback(d_logits))
        losses.append(loss)
    return losses


def logits(model: Model, utterances: Utterances) -> Array:
    """Run a model, wherever it was trained, and return the logits `(B, 9)`."""
    return SpeakerClassifier(model.gru.build("numpy"), model.head)(utterances.features, utterances.lengths)
