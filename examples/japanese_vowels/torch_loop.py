"""The classifier in PyTorch: a module, a training loop and a run, as in ordinary PyTorch code.

Only the line that builds the layer uses unirnn.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import cast

import numpy as np
import torch
from data import Utterances
from model import BETAS, EPSILON, LEARNING_RATE, SPEC, Head, Model, Run, classified_state
from numpy.typing import NDArray
from torch import Tensor, nn

import unirnn

__all__ = ["SpeakerClassifier", "curve", "logits", "train"]

# A second thread does not help in a step of this small model. And torch's threads wait for each other by spinning,
# which was twenty times slower on two busy cores.
torch.set_num_threads(1)


class SpeakerClassifier(nn.Module):
    """Predicts the speaker of each utterance.

    Parameters
    ----------
    recurrent
        A module of `model.SPEC`, or of another spec.
    head
        The weights of the linear layer, of the same dtype.
    """

    def __init__(self, recurrent: nn.RNNBase, head: Head) -> None:
        super().__init__()
        self.recurrent = recurrent
        self.spec = cast(unirnn.RecurrentSpec, recurrent.spec)
        numbers = {"weight": torch.tensor(head.weight), "bias": torch.tensor(head.bias)}
        speakers, size = head.weight.shape
        self.head = nn.Linear(size, speakers, dtype=numbers["weight"].dtype)
        self.head.load_state_dict(numbers)

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """`(B, T, 12)` and `(B,)` to `(B, 9)`."""
        _, final = self.recurrent(features, seq_length=lengths)
        return self.head(classified_state(self.spec, final))  # type: ignore[no-any-return]


def training_step(
    classifier: SpeakerClassifier, optimizer: torch.optim.Optimizer, utterances: Utterances
) -> Callable[[NDArray[np.int64]], float]:
    """Make a function that trains one step on a batch, given as indices `(B,)`, and returns the loss before it."""
    features = torch.from_numpy(utterances.features)
    lengths = torch.from_numpy(utterances.lengths)
    speakers = torch.from_numpy(utterances.speakers)
    loss_function = nn.CrossEntropyLoss()

    def step(batch: NDArray[np.int64]) -> float:
        optimizer.zero_grad()
        loss = loss_function(classifier(features[batch], lengths[batch]), speakers[batch])
        loss.backward()
        optimizer.step()
        return loss.item()  # type: ignore[no-any-return]

    return step


def train(
    utterances: Utterances,
    epochs: Iterable[Sequence[NDArray[np.int64]]],
    seed: int,
    report: Callable[[float], None],
) -> Model:
    """Train a classifier.

    Parameters
    ----------
    utterances
        The training set.
    epochs
        The batches of each epoch, as indices of utterances.
    seed
        The seed of the initial weights.
    report
        Called after each epoch with the mean of its losses.
    """
    gru = SPEC.build("torch", seed=seed)
    classifier = SpeakerClassifier(gru, Head.draw(seed))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=LEARNING_RATE)
    step = training_step(classifier, optimizer, utterances)

    classifier.train()
    for batches in epochs:
        losses = [step(batch) for batch in batches]
        report(sum(losses) / len(losses))

    head = Head(classifier.head.weight.detach().numpy(), classifier.head.bias.detach().numpy())
    return Model(unirnn.snapshot(gru), head)


def curve(run: Run, utterances: Utterances, batches: Iterable[NDArray[np.int64]]) -> list[float]:
    """Train as `run` says, one step for each batch, and return the losses."""
    recurrent = run.spec.build("torch", dtype=run.dtype, seed=run.seed)
    classifier = SpeakerClassifier(recurrent, Head.draw(run.seed, run.spec, run.dtype)).train()
    parameters, rate = classifier.parameters(), run.learning_rate
    optimizer: torch.optim.Optimizer
    if run.optimizer == "SGD":
        optimizer = torch.optim.SGD(parameters, lr=rate)
    else:
        optimizer = torch.optim.Adam(parameters, lr=rate, betas=BETAS, eps=EPSILON)
    return list(map(training_step(classifier, optimizer, utterances), batches))


def logits(model: Model, utterances: Utterances) -> NDArray[np.float32]:
    """Run a model, wherever it was trained, and return the logits `(B, 9)`."""
    classifier = SpeakerClassifier(model.gru.build("torch"), model.head).eval()
    with torch.no_grad():
        result = classifier(torch.from_numpy(utterances.features), torch.from_numpy(utterances.lengths))
    return result.numpy()  # type: ignore[no-any-return]
