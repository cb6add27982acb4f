"""Teach a pronouncer in PyTorch."""

from collections.abc import Iterable, Iterator, Sequence

import torch
from dictionary import Words
from torch import nn

__all__ = ["teach"]

torch.set_num_threads(1)  # a small model is slower with more threads, which wait for each other by spinning

EPSILON = 1e-14  # Adam's; the frameworks add it at different places, which makes no difference if it is this small


def teach(net: nn.Module, batches: Iterable[Words], rates: Sequence[float]) -> Iterator[float]:
    """Train a pronouncer, and yield the loss of each batch.

    Parameters
    ----------
    net
        What ``Pronouncer(...).build("torch", ...)`` has made.
    batches
        The words of each step.
    rates
        The learning rate of each step.
    """
    optimizer = torch.optim.Adam(net.parameters(), eps=EPSILON)
    for words, optimizer.param_groups[0]["lr"] in zip(batches, rates, strict=True):
        arrays = (words.letters, words.letter_counts, words.before, words.phoneme_counts, words.targets)
        *inputs, targets = map(torch.from_numpy, arrays)
        loss = nn.functional.cross_entropy(net(*inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()
