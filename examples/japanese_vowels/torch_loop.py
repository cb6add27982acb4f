"""The classifier in PyTorch: a module, a training loop, and a run, as they stand in anybody's PyTorch code.

The one line that is unirnn's is the line that builds the layer.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from data import Utterances
from model import LEARNING_RATE, SPEC, Head, Model
from numpy.typing import NDArray
from torch import Tensor, nn

import unirnn
from unirnn.state import last_layer

__all__ = ["SpeakerClassifier", "logits", "train"]

# A step of this small model is over before a second thread has helped; and where other programs want the cores
# as well, torch's threads wait for each other by spinning: twenty times slower, seen on two busy cores.
torch.set_num_threads(1)


class SpeakerClassifier(nn.Module):
    """Names the speaker of each utterance.

    Parameters
    ----------
    gru
        A module of `model.SPEC`.
    head
        The numbers of the linear layer.
    """

    def __init__(self, gru: nn.RNNBase, head: Head) -> None:
        super().__init__()
        self.gru = gru
        speakers, size = head.weight.shape
        self.head = nn.Linear(size, speakers)
        self.head.load_state_dict({"weight": torch.tensor(head.weight), "bias": torch.tensor(head.bias)})

    def forward(self, features: Tensor, lengths: Tensor) -> Tensor:
        """`(B, T, 12)` and `(B,)` to `(B, 9)`."""
        _, h_n = self.gru(features, seq_length=lengths)
        return self.head(last_layer(SPEC, h_n))  # type: ignore[no-any-return]


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
        To learn from.
    epochs
        The batches of each epoch, as indices of utterances.
    seed
        Of the first weights.
    report
        Called after each epoch with the mean of its losses.
    """
    features = torch.from_numpy(utterances.features)
    lengths = torch.from_numpy(utterances.lengths)
    speakers = torch.from_numpy(utterances.speakers)

    gru = SPEC.build("torch", seed=seed)
    classifier = SpeakerClassifier(gru, Head.draw(seed))
    optimizer = torch.optim.Adam(classifier.parameters(), lr=LEARNING_RATE)
    loss_function = nn.CrossEntropyLoss()

    classifier.train()
    for batches in epochs:
        losses = []
        for batch in batches:
            optimizer.zero_grad()
            loss = loss_function(classifier(features[batch], lengths[batch]), speakers[batch])
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        report(sum(losses) / len(losses))

    head = Head(classifier.head.weight.detach().numpy(), classifier.head.bias.detach().numpy())
    return Model(unirnn.snapshot(gru), head)


def logits(model: Model, utterances: Utterances) -> NDArray[np.float32]:
    """Run a model, wherever it was trained: `(B, 9)`."""
    classifier = SpeakerClassifier(model.gru.build("torch"), model.head).eval()
    with torch.no_grad():
        result = classifier(torch.from_numpy(utterances.features), torch.from_numpy(utterances.lengths))
    return result.numpy()  # type: ignore[no-any-return]
