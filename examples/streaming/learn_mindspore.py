"""Learn in MindSpore."""

from collections.abc import Iterable, Iterator
from typing import Any

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops
from numpy.typing import NDArray

import unirnn

__all__ = ["learn"]

EPSILON = 1e-14  # Adam's; the frameworks add it at different places, which makes no difference if it is this small

mindspore.runtime.launch_blocking()  # a small model is faster on a CPU if MindSpore waits for each operator


def learn(net: nn.Cell, chunks: Iterable[NDArray[np.int64]], rate: float) -> Iterator[float]:
    """Train a language model, and yield the loss of each step; see `learn_torch.learn`."""

    def forward(chunk: Tensor, state: Any) -> Any:
        logits, state = net(chunk[:-1], state, return_state=True)
        return ops.cross_entropy(logits.flatten(0, 1), chunk[1:].flatten()), state

    optimizer = nn.Adam(net.trainable_params(), rate, eps=EPSILON)
    value_and_grad = mindspore.value_and_grad(forward, None, optimizer.parameters, has_aux=True)
    state = None
    for chunk in map(Tensor, chunks):
        (loss, state), gradients = value_and_grad(chunk, state)
        optimizer(gradients)
        state = unirnn.detach(state)
        yield float(loss.asnumpy())
