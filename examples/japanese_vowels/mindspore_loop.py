"""The classifier in MindSpore: a cell, a training loop and a run, as in ordinary MindSpore code.

Only the line that builds the layer uses unirnn.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

import mindspore
import mindspore.experimental.optim
import numpy as np
from data import Utterances
from mindspore import Parameter, Tensor, nn, ops
from model import BETAS, EPSILON, LEARNING_RATE, SPEC, Head, Model, Run, classified_state
from numpy.typing import NDArray

import unirnn

__all__ = ["SpeakerClassifier", "curve", "logits", "train"]

# By default MindSpore gives each operator to threads that wait for work by spinning. On few cores they take the time
# that the work itself needs. A small model trains three times as fast if each operator is waited for.
mindspore.runtime.launch_blocking()


class SpeakerClassifier(nn.Cell):
    """Predicts the speaker of each utterance.

    Parameters
    ----------
    recurrent
        A cell of `model.SPEC`, or of another spec.
    head
        The weights of the linear layer, of the same dtype.
    """

    def __init__(self, recurrent: nn.Cell, head: Head) -> None:
        super().__init__()
        self.recurrent = recurrent
        weight, bias = Tensor(head.weight), Tensor(head.bias)
        speakers, size = head.weight.shape
        self.head = nn.Dense(size, speakers, weight_init=weight, bias_init=bias, dtype=weight.dtype)

    def construct(self, features: Tensor, lengths: Tensor) -> Tensor:
        """`(B, T, 12)` and `(B,)` to `(B, 9)`."""
        _, final = self.recurrent(features, seq_length=lengths)
        return self.head(classified_state(self.recurrent.spec, final))


def training_step(
    classifier: SpeakerClassifier, optimizer: nn.Cell, utterances: Utterances
) -> Callable[[NDArray[np.int64]], float]:
    """Make a function that trains one step on a batch, given as indices `(B,)`, and returns the loss before it."""

    def forward(features: Tensor, lengths: Tensor, speakers: Tensor) -> Tensor:
        # nn.CrossEntropyLoss refuses float64.
        return ops.cross_entropy(classifier(features, lengths), speakers)

    value_and_grad = mindspore.value_and_grad(forward, None, optimizer.parameters)

    def step(batch: NDArray[np.int64]) -> float:
        features = Tensor(utterances.features[batch])
        lengths = Tensor(utterances.lengths[batch])
        speakers = Tensor(utterances.speakers[batch], mindspore.int32)
        loss, gradients = value_and_grad(features, lengths, speakers)
        optimizer(gradients)
        return float(loss.asnumpy())

    return step


def train(
    utterances: Utterances,
    epochs: Iterable[Sequence[NDArray[np.int64]]],
    seed: int,
    report: Callable[[float], None],
) -> Model:
    """Train a classifier; the arguments are those of `torch_loop.train`."""
    gru = SPEC.build("mindspore", seed=seed)
    classifier = SpeakerClassifier(gru, Head.draw(seed))
    optimizer = nn.Adam(classifier.trainable_params(), learning_rate=LEARNING_RATE)
    step = training_step(classifier, optimizer, utterances)

    classifier.set_train()
    for batches in epochs:
        losses = [step(batch) for batch in batches]
        report(sum(losses) / len(losses))

    head = Head(_numbers(classifier.head.weight), _numbers(classifier.head.bias))
    return Model(unirnn.snapshot(gru), head)


def curve(run: Run, utterances: Utterances, batches: Iterable[NDArray[np.int64]]) -> list[float]:
    """Train as `run` says, one step for each batch, and return the losses."""
    recurrent = run.spec.build("mindspore", dtype=run.dtype, seed=run.seed)
    classifier = SpeakerClassifier(recurrent, Head.draw(run.seed, run.spec, run.dtype))
    classifier.set_train()
    double = run.dtype == "float64"
    optimizer = (_float64_optimizer if double else _optimizer)(run, classifier.trainable_params())
    with _uncompiled() if double else contextlib.nullcontext():
        return list(map(training_step(classifier, optimizer, utterances), batches))


def _optimizer(run: Run, parameters: list[Parameter]) -> nn.Cell:
    if run.optimizer == "SGD":
        return nn.SGD(parameters, run.learning_rate)
    return nn.Adam(parameters, run.learning_rate, *BETAS, EPSILON)


def _float64_optimizer(run: Run, parameters: list[Parameter]) -> nn.Cell:
    """Make the optimizers of MindSpore that take float64 on a CPU, which nn.SGD and nn.Adam do not.

    With momentum 0 and weight decay 0 they are SGD and Adam. Their scalars are float32, and what is computed with
    those is rounded to float32, so they are made float64.
    """
    if run.optimizer == "SGD":
        optimizer = nn.Momentum(parameters, run.learning_rate, momentum=0.0)
        scalars = [optimizer.learning_rate, optimizer.momentum]
    else:
        optimizer = mindspore.experimental.optim.AdamW(parameters, run.learning_rate, BETAS, EPSILON, weight_decay=0.0)
        scalars = [optimizer.state_step]
    for scalar in scalars:
        scalar.set_dtype(mindspore.float64)
    return optimizer


@contextlib.contextmanager
def _uncompiled() -> Iterator[None]:
    """Let MindSpore's optimizers run operator by operator.

    They compile themselves, and in the compiled AdamW of MindSpore 2.10 the square root of a float64 parameter is only
    as precise as float32. The losses of `model.SPEC` then differ by 3e-8, and operator by operator by 4e-15.
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


def logits(model: Model, utterances: Utterances) -> NDArray[np.float32]:
    """Run a model, wherever it was trained, and return the logits `(B, 9)`."""
    classifier = SpeakerClassifier(model.gru.build("mindspore"), model.head)
    classifier.set_train(False)
    return _numbers(classifier(Tensor(utterances.features), Tensor(utterances.lengths)))


def _numbers(tensor: Tensor | Parameter) -> NDArray[np.float32]:
    # A copy, since asnumpy() returns MindSpore's own memory.
    return np.array(tensor.asnumpy())
