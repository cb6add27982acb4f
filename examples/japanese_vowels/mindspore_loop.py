"""The training loop in MindSpore."""

import contextlib
import os
from collections.abc import Iterable, Iterator

import mindspore
import numpy as np
from data import Utterances
from mindspore import Parameter, Tensor, nn, ops
from mindspore.experimental import optim
from numpy.typing import NDArray
from run import Run

__all__ = ["train"]

# By default MindSpore gives each operator to threads that wait for work by spinning. On few cores the spinning takes
# the time that the work itself needs. A small model trains three times as fast if MindSpore waits for each operator.
mindspore.runtime.launch_blocking()


def train(net: nn.Cell, run: Run, utterances: Utterances, batches: Iterable[NDArray[np.int64]]) -> Iterator[float]:
    """Train a model, and yield the loss of each batch; the arguments are those of `torch_loop.train`."""

    def forward(features: Tensor, lengths: Tensor, speakers: Tensor) -> Tensor:
        # nn.CrossEntropyLoss refuses float64.
        return ops.cross_entropy(net(features, seq_length=lengths), speakers)

    is_double = run.dtype == "float64"
    optimizer = (_float64_optimizer if is_double else _optimizer)(run, net.trainable_params())
    value_and_grad = mindspore.value_and_grad(forward, None, optimizer.parameters)
    net.set_train()
    with _uncompiled() if is_double else contextlib.nullcontext():
        for batch in batches:
            features, lengths = Tensor(utterances.features[batch]), Tensor(utterances.lengths[batch])
            loss, gradients = value_and_grad(features, lengths, Tensor(utterances.speakers[batch], mindspore.int32))
            optimizer(gradients)
            yield float(loss.asnumpy())


def _optimizer(run: Run, parameters: list[Parameter]) -> nn.Cell:
    if run.optimizer == "SGD":
        return nn.SGD(parameters, run.learning_rate)
    return nn.Adam(parameters, run.learning_rate, *run.betas, run.epsilon)


def _float64_optimizer(run: Run, parameters: list[Parameter]) -> nn.Cell:
    """Make the optimizers of MindSpore that take float64 on a CPU, which nn.SGD and nn.Adam do not.

    With momentum 0 and weight decay 0 they are SGD and Adam. Their scalars are float32, and what is computed with
    these is rounded to float32, so they are converted to float64.
    """
    if run.optimizer == "SGD":
        optimizer = nn.Momentum(parameters, run.learning_rate, momentum=0.0)
        scalars = [optimizer.learning_rate, optimizer.momentum]
    else:
        optimizer = optim.AdamW(parameters, run.learning_rate, run.betas, run.epsilon, weight_decay=0.0)
        scalars = [optimizer.state_step]
    for scalar in scalars:
        scalar.set_dtype(mindspore.float64)
    return optimizer


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Let MindSpore's optimizers run operator by operator.

    They compile themselves, and in the compiled AdamW of MindSpore 2.10 the square root of a float64 parameter is only
    as precise as float32. The losses of `model.MODEL` then differ by 8e-8, and operator by operator by 3e-15.
    """
    before = os.environ.get("MS_JIT")
    os.environ["MS_JIT"] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["MS_JIT"]
        else:
            os.environ["MS_JIT"] = before
