"""Fit a forecaster in PyTorch."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn

__all__ = ["fit"]

torch.set_num_threads(1)  # a small model is slower with more threads, which wait for each other by spinning

EPSILON = 1e-14  # Adam's; the frameworks add it at different places, which makes no difference if it is this small


def fit(net: nn.Module, batches: Iterable[tuple[NDArray[Any], NDArray[Any]]], rate: float) -> Iterator[float]:
    """Train a forecaster, and yield the loss of each batch.

    Parameters
    ----------
    net
        What ``MODEL.build("torch", ...)`` has made.
    batches
        The weather `(B, T, 6)` and the temperatures `(B, T, 7)` of the days after, scaled.
    rate
        The learning rate.
    """
    optimizer = torch.optim.Adam(net.parameters(), rate, eps=EPSILON)
    for weather, later in batches:
        loss = nn.functional.smooth_l1_loss(net(torch.from_numpy(weather)), torch.from_numpy(later))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.item()
