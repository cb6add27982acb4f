"""Tell two notes apart in waves of different lengths: a classifier in a training loop of PyTorch."""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
from torch.utils.data import DataLoader, Dataset

import unirnn

EPOCHS = 3
CHECKPOINT = "classifier.pt"


class Notes(Dataset[tuple[Tensor, int]]):
    """Noisy sine waves of 5 to 8 steps. The high note has a period of 3 steps, the low one of 7."""

    def __init__(self, count: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self.labels = random.integers(2, size=count).tolist()
        self.waves = []
        for label in self.labels:
            steps = np.arange(random.integers(5, 9))
            wave = np.sin(2 * np.pi * (steps / (3 if label else 7) + random.random()))
            wave += 0.2 * random.standard_normal(len(steps))
            self.waves.append(torch.tensor(wave, dtype=torch.float32).unsqueeze(1))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.waves[index], self.labels[index]


def collate(batch: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    """Pad the waves of a batch to the longest: `(B, T, 1)`, their lengths, their labels."""
    waves, labels = zip(*batch, strict=True)
    lengths = torch.tensor([len(wave) for wave in waves])
    return pad_sequence(list(waves), batch_first=True), lengths, torch.tensor(labels)


class Classifier(nn.Module):
    """A GRU, the mean of its outputs over the valid steps, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = unirnn.GRUSpec(1, 16, batch_first=True).build("torch")
        self.head = nn.Linear(16, 2)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """`(B, T, 1)` and `(B,)` to `(B, 2)`."""
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        output, _ = self.gru(packed)
        output, _ = pad_packed_sequence(output, batch_first=True)
        logits: Tensor = self.head(output.sum(1) / lengths.unsqueeze(1))
        return logits


def train(classifier: Classifier, batches: DataLoader[tuple[Tensor, int]], optimizer: torch.optim.Optimizer) -> float:
    """Train for one epoch, and return the mean loss."""
    loss_function = nn.CrossEntropyLoss()
    classifier.train()
    losses: list[float] = []
    for x, lengths, labels in batches:
        optimizer.zero_grad()
        loss = loss_function(classifier(x, lengths), labels)
        loss.backward()
        nn.utils.clip_grad_norm_(classifier.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)


@torch.no_grad()
def accuracy(classifier: Classifier, batches: DataLoader[tuple[Tensor, int]]) -> float:
    """The fraction of the waves that are classified correctly."""
    classifier.eval()
    right = [classifier(x, lengths).argmax(1) == labels for x, lengths, labels in batches]
    return float(torch.cat(right).float().mean())


def main() -> list[float]:
    """Train, save the best epoch, and return the loss of each epoch."""
    torch.manual_seed(0)
    training = DataLoader(Notes(160, seed=0), batch_size=16, shuffle=True, collate_fn=collate)
    validation = DataLoader(Notes(100, seed=1), batch_size=50, collate_fn=collate)
    classifier = Classifier()
    optimizer = torch.optim.Adam(classifier.parameters(), lr=0.04)

    losses, best = [], 0.0
    for epoch in range(EPOCHS):
        losses.append(train(classifier, training, optimizer))
        right = accuracy(classifier, validation)
        print(f"epoch {epoch}: loss {losses[-1]:.4f}, {right:.0%} right")
        if right > best:
            best = right
            torch.save(classifier.state_dict(), CHECKPOINT)

    classifier.load_state_dict(torch.load(CHECKPOINT, weights_only=True))
    print(f"the best: {accuracy(classifier, validation):.0%} right")
    return losses


if __name__ == "__main__":
    main()
