"""Teach a pronouncer in MindSpore."""

from collections.abc import Iterable, Iterator, Sequence

import mindspore
from dictionary import Words
from mindspore import Tensor, nn, ops

__all__ = ["teach"]

mindspore.runtime.launch_blocking()  # a small model is faster on a CPU if MindSpore waits for each operator

EPSILON = 1e-14  # Adam's; the frameworks add it at different places, which makes no difference if it is this small


def teach(net: nn.Cell, batches: Iterable[Words], rates: Sequence[float]) -> Iterator[float]:
    """Train a pronouncer, and yield the loss of each batch; see `teach_torch.teach`."""

    def forward(*arrays: Tensor) -> Tensor:
        *inputs, targets = arrays
        return ops.cross_entropy(net(*inputs).flatten(0, 1), targets.flatten())

    optimizer = nn.Adam(net.trainable_params(), list(rates), eps=EPSILON)
    value_and_grad = mindspore.value_and_grad(forward, None, optimizer.parameters)
    for words in batches:
        arrays = (words.letters, words.letter_counts, words.before, words.phoneme_counts, words.targets)
        loss, gradients = value_and_grad(*map(Tensor, arrays))
        optimizer(gradients)
        yield float(loss.asnumpy())
