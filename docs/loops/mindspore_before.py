"""Tell two notes apart in waves of different lengths: a classifier in a training loop of MindSpore."""

import mindspore
import numpy as np
from mindspore import Tensor, nn, ops
from mindspore.dataset import GeneratorDataset
from numpy.typing import NDArray

EPOCHS = 3
CHECKPOINT = "classifier.ckpt"

# Wait for each operator. On a CPU this makes many small operators faster, whichever layer runs them.
mindspore.runtime.launch_blocking()


class Notes:
    """Noisy sine waves of 5 to 8 steps. The high note has a period of 3 steps, the low one of 7."""

    def __init__(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.labels = random.integers(2, size=count).astype(np.int32)
        self.waves = []
        for label in self.labels:
            steps = np.arange(random.integers(5, 9))
            wave = np.sin(2 * np.pi * (steps / (3 if label else 7) + random.random()))
            wave += 0.2 * random.standard_normal(len(steps))
            self.waves.append(wave.astype(np.float32)[:, None])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], np.int32, np.int32]:
        return self.waves[index], np.int32(len(self.waves[index])), self.labels[index]


def padded(notes: Notes, batch_size: int, shuffle: bool) -> GeneratorDataset:
    """Batches of waves, each padded to its longest: `(B, T, 1)`, their lengths, their labels."""
    dataset = GeneratorDataset(notes, ["x", "lengths", "labels"], shuffle=shuffle)
    return dataset.padded_batch(batch_size, pad_info={"x": ([None, 1], 0.0)})


class Classifier(nn.Cell):
    """A GRU, the mean of its outputs over the valid steps, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 16, batch_first=True)
        self.head = nn.Dense(16, 2)

    def construct(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`(B, T, 1)` and `(B,)` to `(B, 2)`."""
        output, _ = self.gru(x, None, lengths)
        return self.head(output.sum(1) / lengths.expand_dims(1))


def accuracy(classifier: Classifier, batches: GeneratorDataset) -> float:
    """The fraction of the waves that are classified correctly."""
    classifier.set_train(False)
    iterator = batches.create_tuple_iterator(num_epochs=1)
    right = [(classifier(x, lengths).argmax(1) == labels).asnumpy() for x, lengths, labels in iterator]
    return float(np.concatenate(right).mean())


def main() -> list[float]:
    """Train, save the best epoch, and return the loss of each epoch."""
    mindspore.set_seed(0)
    training = padded(Notes(160, seed=0), batch_size=16, shuffle=True)
    validation = padded(Notes(100, seed=1), batch_size=50, shuffle=False)
    classifier = Classifier()
    optimizer = nn.Adam(classifier.trainable_params(), learning_rate=0.04)

    def forward(x: Tensor, lengths: Tensor, labels: Tensor) -> Tensor:
        return ops.cross_entropy(classifier(x, lengths), labels)

    value_and_grad = mindspore.value_and_grad(forward, None, optimizer.parameters)
    iterator = training.create_tuple_iterator(num_epochs=EPOCHS)
    means, best = [], 0.0
    for epoch in range(EPOCHS):
        classifier.set_train()
        losses = []
        for x, lengths, labels in iterator:
            loss, gradients = value_and_grad(x, lengths, labels)
            optimizer(ops.clip_by_global_norm(gradients, 1.0))
            losses.append(float(loss))
        means.append(sum(losses) / len(losses))
        right = accuracy(classifier, validation)
        print(f"epoch {epoch}: loss {means[-1]:.4f}, {right:.0%} right")
        if right > best:
            best = right
            mindspore.save_checkpoint(classifier, CHECKPOINT)

    mindspore.load_param_into_net(classifier, mindspore.load_checkpoint(CHECKPOINT), strict_load=True)
    print(f"the best: {accuracy(classifier, validation):.0%} right")
    return means


if __name__ == "__main__":
    main()
