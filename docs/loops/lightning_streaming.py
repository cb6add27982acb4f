"""Truncated backpropagation through time in Lightning 2, with manual optimization for each chunk."""

from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import unirnn


class Echo(lightning.LightningModule):
    """Repeats at each step the input of the step before, which only the state knows at the first step of a chunk."""

    def __init__(self, chunk_size: int, learning_rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.gru = unirnn.GRUSpec(1, 16, batch_first=True).build("torch", seed=0)
        self.head = nn.Linear(16, 1)

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor]) -> None:
        """Take one step of the optimizer for each chunk."""
        x, lengths, target = batch
        optimizer: Any = self.optimizers()
        size, state = self.hparams["chunk_size"], None
        for start in range(0, x.shape[1], size):
            chunk, wanted = x[:, start : start + size], target[:, start : start + size]
            left = (lengths - start).clamp(0, chunk.shape[1])
            output, state = self.gru(chunk, state, left)
            valid = torch.arange(chunk.shape[1], device=left.device) < left.unsqueeze(1)
            loss = (self.head(output) - wanted)[valid].square().sum() / len(x)

            optimizer.zero_grad()
            self.manual_backward(loss)
            self.clip_gradients(optimizer, gradient_clip_val=1.0, gradient_clip_algorithm="norm")
            optimizer.step()
            state = unirnn.detach(state)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer, as in any Lightning module."""
        return torch.optim.Adam(self.parameters(), self.hparams["learning_rate"])


def collate(sounds: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Make a ragged batch: the inputs, their lengths, and the targets."""
    lengths = torch.tensor([len(sound) for sound in sounds])
    x = pad_sequence(sounds, batch_first=True)
    return x, lengths, nn.functional.pad(x, (0, 0, 1, 0))[:, :-1]


def main() -> Echo:
    """Train on sounds of 4 to 12 steps, in chunks of 5."""
    torch.manual_seed(0)
    sounds = [torch.randn(int(steps), 1) for steps in torch.randint(4, 13, (64,))]
    batches: DataLoader[Any] = DataLoader(sounds, batch_size=16, collate_fn=collate)  # type: ignore[arg-type]
    model = Echo(chunk_size=5, learning_rate=0.02)
    trainer = lightning.Trainer(
        max_epochs=8,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, batches)
    return model


if __name__ == "__main__":
    main()
