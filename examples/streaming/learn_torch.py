"""Learn in PyTorch."""

from collections.abc import Iterable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import unirnn

__all__ = ["learn"]

EPSILON = 1e-14  # Adam's; the frameworks add it at different places, which makes no difference if it is this small

torch.set_num_threads(1)  # a small model is slower with more threads, which wait for each other by spinning


def learn(net: nn.Module, chunks: Iterable[NDArray[np.int64]], rate: float) -> Iterator[float]:
    """Train a language model, and yield the loss of each step.

    Parameters
    ----------
    net
        What ``MODEL.build("torch", ...)`` has made.
    chunks
        `(T+1, B)` each: T characters to read, and the one after each of them. A chunk begins where the one before
        ended.
    rate
        The learning rate.
    """
    optimizer = torch.optim.Adam(net.parameters(), rate, eps=EPSILON)
    state = None
    for chunk in map(torch.from_numpy, chunks):
        logits, state = net(chunk[:-1], state, return_state=True)
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), chunk[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        state = unirnn.detach(state)  # the next chunk begins with this state, but no gradient flows back
        yield loss.item()
