"""Fit a forecaster in MindSpore."""

from collections.abc import Iterable, Iterator
from typing import Any

import mindspore
from mindspore import Tensor, nn, ops
from numpy.typing import NDArray

__all__ = ["fit"]

mindspore.runtime.launch_blocking()  # a small model is faster on a CPU if MindSpore waits for each operator

EPSILON = 1e-14  # Adam's; the frameworks add it at different places, which makes no difference if it is this small


def fit(net: nn.Cell, batches: Iterable[tuple[NDArray[Any], NDArray[Any]]], rate: float) -> Iterator[float]:
    """Train a forecaster, and yield the loss of each batch; see `fit_torch.fit`."""

    def forward(weather: Tensor, later: Tensor) -> Tensor:
        return ops.smooth_l1_loss(net(weather), later, reduction="mean")

    optimizer = nn.Adam(net.trainable_params(), rate, eps=EPSILON)
    value_and_grad = mindspore.value_and_grad(forward, None, optimizer.parameters)
    for weather, later in batches:
        loss, gradients = value_and_grad(Tensor(weather), Tensor(later))
        optimizer(gradients)
        yield float(loss.asnumpy())
