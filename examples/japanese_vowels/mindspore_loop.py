"""The classifier in MindSpore: a cell, a training loop, and a run, as they stand in anybody's MindSpore code.

The one line that is unirnn's is the line that builds the layer.
"""

from collections.abc import Callable, Iterable, Sequence

import mindspore
import numpy as np
from data import Utterances
from mindspore import Parameter, Tensor, nn
from model import LEARNING_RATE, SPEC, Head, Model
from numpy.typing import NDArray

import unirnn
from unirnn.state import last_layer

__all__ = ["SpeakerClassifier", "logits", "train"]

# By default each operator is handed to threads that wait for work by spinning. On a few cores they take the
# time that the work itself needs; a small model trains three times as fast when each operator is awaited.
mindspore.runtime.launch_blocking()


class SpeakerClassifier(nn.Cell):
    """Names the speaker of each utterance.

    Parameters
    ----------
    gru
        A cell of `model.SPEC`.
    head
        The numbers of the linear layer.
    """

    def __init__(self, gru: nn.Cell, head: Head) -> None:
        super().__init__()
        self.gru = gru
        speakers, size = head.weight.shape
        self.head = nn.Dense(size, speakers, weight_init=Tensor(head.weight), bias_init=Tensor(head.bias))

    def construct(self, features: Tensor, lengths: Tensor) -> Tensor:
        """`(B, T, 12)` and `(B,)` to `(B, 9)`."""
        _, h_n = self.gru(features, seq_length=lengths)
        return self.head(last_layer(SPEC, h_n))


def train(
    utterances: Utterances,
    epochs: Iterable[Sequence[NDArray[np.int64]]],
    seed: int,
    report: Callable[[float], None],
) -> Model:
    """Train a classifier; the parameters are those of `torch_loop.train`."""
    gru = SPEC.build("mindspore", seed=seed)
    classifier = SpeakerClassifier(gru, Head.draw(seed))
    optimizer = nn.Adam(classifier.trainable_params(), learning_rate=LEARNING_RATE)
    loss_function = nn.CrossEntropyLoss()

    def forward(features: Tensor, lengths: Tensor, speakers: Tensor) -> Tensor:
        return loss_function(classifier(features, lengths), speakers)

    value_and_grad = mindspore.value_and_grad(forward, None, optimizer.parameters)

    classifier.set_train()
    for batches in epochs:
        losses = []
        for batch in batches:
            features = Tensor(utterances.features[batch])
            lengths = Tensor(utterances.lengths[batch])
            speakers = Tensor(utterances.speakers[batch], mindspore.int32)
            loss, gradients = value_and_grad(features, lengths, speakers)
            optimizer(gradients)
            losses.append(float(loss.asnumpy()))
        report(sum(losses) / len(losses))

    head = Head(_numbers(classifier.head.weight), _numbers(classifier.head.bias))
    return Model(unirnn.snapshot(gru), head)


def logits(model: Model, utterances: Utterances) -> NDArray[np.float32]:
    """Run a model, wherever it was trained: `(B, 9)`."""
    classifier = SpeakerClassifier(model.gru.build("mindspore"), model.head)
    classifier.set_train(False)
    return _numbers(classifier(Tensor(utterances.features), Tensor(utterances.lengths)))


def _numbers(tensor: Tensor | Parameter) -> NDArray[np.float32]:
    # A copy: MindSpore lends its own memory.
    return np.array(tensor.asnumpy())
