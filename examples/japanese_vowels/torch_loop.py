"""The training loop in PyTorch."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from data import Utterances
from numpy.typing import NDArray
from run import Run
from torch import nn

__all__ = ["train"]

# A second thread does not help in a step of this small model. On two busy cores it was even twenty times slower,
# because torch's threads wait for each other by spinning.
torch.set_num_threads(1)


def train(net: nn.Module, run: Run, utterances: Utterances, batches: Iterable[NDArray[np.int64]]) -> Iterator[float]:
    """Train a model, and yield the loss of each batch.

    Parameters
    ----------
    net
        What ``run.model.build("torch", ...)`` has made.
    run
        The optimizer and its hyperparameters.
    utterances
        The training set.
    batches
        The indices `(B,)` of the utterances of each batch.
    """
    features = torch.from_numpy(utterances.features)
    lengths = torch.from_numpy(utterances.lengths)
    speakers = torch.from_numpy(utterances.speakers)
    optimizer: torch.optim.Optimizer
    if run.optimizer == "SGD":
        optimizer = torch.optim.SGD(net.parameters(), run.learning_rate)
    else:
        optimizer = torch.optim.Adam(net.parameters(), run.learning_rate, run.betas, run.epsilon)
    net.train()
    for batch in batches:
        loss = nn.functional.cross_entropy(net(features[batch], seq_length=lengths[batch]), speakers[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()
