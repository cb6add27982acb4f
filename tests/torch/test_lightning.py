"""In Lightning's trainer, a module fits, checkpoints, and resumes to exactly the same weights."""

from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

pytestmark = [
    # Lightning's use of torch, not ours
    pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"),
    # raised on machines with many cores; the data are in memory, so workers would not help
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning"),
    # the folder of a resumed run
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty:UserWarning"),
]
SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4, batch_first=True),
    GRUSpec(3, 4, 2, bidirectional=True, batch_first=True),
    LSTMSpec(3, 4, batch_first=True),
]
each = pytest.mark.parametrize("spec", SPECS, ids=repr)
EPOCHS = 4


class Echo(lightning.LightningModule):
    """Repeats its input at each step.

    Parameters
    ----------
    spec
        The result of `Spec.to_dict`: plain values, which ``weights_only`` can read from a checkpoint.
    learning_rate, seed
        The learning rate of the optimizer, and the seed of the initial weights.
    """

    def __init__(self, spec: dict[str, Any], learning_rate: float, seed: int) -> None:
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(seed)
        kind: RecurrentSpec = RecurrentSpec.from_dict(spec)
        self.layers = kind.build("torch", seed=seed)
        self.head = nn.Linear(kind.output_size * kind.num_directions, kind.input_size)

    def training_step(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean of the squared errors over the valid steps."""
        x, lengths = batch
        output, _ = self.layers(x, seq_length=lengths)
        valid = torch.arange(x.shape[1]) < lengths.unsqueeze(1)
        return nn.functional.mse_loss(self.head(output)[valid], x[valid])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Adam, which has a state of its own."""
        return torch.optim.Adam(self.parameters(), self.hparams["learning_rate"])


def echo(spec: RecurrentSpec, seed: int = 0) -> Echo:
    return Echo(spec.to_dict(), learning_rate=0.01, seed=seed)


def utterances() -> DataLoader[Any]:
    """Ragged batches, in one order, with garbage in the padding; one sequence has no step."""
    generator = torch.Generator().manual_seed(0)
    sequences = [torch.randn(steps, 3, generator=generator) for steps in (5, 0, 3, 2, 6, 1)]

    def collate(batch: list[Tensor]) -> tuple[Tensor, Tensor]:
        return pad_sequence(batch, True, torch.nan), torch.tensor([len(sequence) for sequence in batch])

    return DataLoader(sequences, batch_size=3, collate_fn=collate)  # type: ignore[arg-type]


def trainer(folder: Path) -> Any:
    return lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
    )


def assert_same_bits(actual: Any, expected: Any) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)


@each
def test_resuming_leads_to_the_very_same_weights(spec: RecurrentSpec, tmp_path: Path) -> None:
    model = echo(spec)
    batch = next(iter(utterances()))
    before, first = model.training_step(batch), unirnn.snapshot(model.layers)
    whole = trainer(tmp_path)
    whole.fit(model, utterances())
    assert model.training_step(batch) < before
    assert unirnn.snapshot(model.layers) != first

    resumed = echo(spec, seed=1)  # its initial weights must not matter
    rest = trainer(tmp_path)
    steps: list[Any] = []
    resumed.layers.register_forward_hook(lambda *_: steps.append(_))
    rest.fit(resumed, utterances(), ckpt_path=tmp_path / f"epoch={EPOCHS // 2 - 1}.ckpt", weights_only=True)

    assert len(steps) == EPOCHS // 2 * len(utterances())
    assert rest.global_step == whole.global_step == EPOCHS * len(utterances())
    assert_same_bits(resumed.state_dict(), model.state_dict())
    for ours, theirs in zip(rest.optimizers, whole.optimizers, strict=True):
        assert theirs.state_dict()["state"]
        assert_same_bits(ours.state_dict(), theirs.state_dict())


@each
def test_a_checkpoint_holds_the_spec_and_the_native_layers_weights(spec: RecurrentSpec, tmp_path: Path) -> None:
    model = echo(spec)
    trainer(tmp_path).fit(model, utterances())
    path = tmp_path / f"epoch={EPOCHS - 1}.ckpt"

    loaded = Echo.load_from_checkpoint(path, weights_only=True)
    assert loaded.layers.spec == spec
    assert_same_bits(loaded.state_dict(), model.state_dict())

    native = getattr(nn, spec.kind)(**spec.to_kwargs("torch"))
    saved = torch.load(path, weights_only=True)["state_dict"]
    prefix = "layers."
    native.load_state_dict({n.removeprefix(prefix): w for n, w in saved.items() if n.startswith(prefix)}, strict=True)
    x = torch.ones(2, 5, 3)
    torch.testing.assert_close(loaded.layers(x), native(x))
