"""The loops in the documentation run and learn, and differ from each other only as their pages say."""

import difflib
import re
import runpy
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unirnn.testing.tolerances import close

LOOPS = Path(__file__).resolve().parent.parent / "docs" / "loops"
needs_torch = pytest.mark.skipif(not find_spec("torch"), reason="needs torch")
needs_mindspore = pytest.mark.skipif(not find_spec("mindspore"), reason="needs mindspore")
needs_lightning = pytest.mark.skipif(not find_spec("lightning"), reason="needs lightning")


@pytest.fixture(autouse=True)
def temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run in a temporary folder, since loops write checkpoints; restore ``sys.path``, which one of them changes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch with one thread: several threads spin while they wait, which is slow on busy cores."""
    if not find_spec("torch"):
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def run_script(name: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], Any, str]:
    """A script's namespace, the result of its main function, and its output."""
    namespace = runpy.run_path(str(LOOPS / f"{name}.py"))
    capsys.readouterr()
    return namespace, namespace["main"](), capsys.readouterr().out


def best_accuracy(printed: str) -> float:
    """The accuracy that a loop prints last."""
    match = re.fullmatch(r"the best: (\d+)% right", printed.splitlines()[-1])
    assert match is not None, printed
    return int(match[1]) / 100


def changed_lines(before: str, after: str) -> tuple[list[str], list[str]]:
    """The removed lines and the added lines."""
    old, new = ((LOOPS / f"{name}.py").read_text("utf-8").splitlines() for name in (before, after))
    diff = list(difflib.unified_diff(old, new, n=0, lineterm=""))[2:]
    removed, added = ([line[1:] for line in diff if line[0] == sign] for sign in "-+")
    return removed, added


@pytest.mark.parametrize("framework", ["torch", "mindspore"])
def test_only_the_line_that_builds_the_layer_changes(framework: str) -> None:
    removed, added = changed_lines(f"{framework}_before", f"{framework}_after")
    assert removed == ["        self.gru = nn.GRU(1, 16, batch_first=True)"]
    layer = f'        self.gru = unirnn.GRUSpec(1, 16, batch_first=True).build("{framework}")'
    assert added == ["", "import unirnn", layer]


def test_without_packing_only_the_packing_is_removed() -> None:
    removed, added = changed_lines("torch_after", "torch_lengths")
    assert added == [
        "from torch.nn.utils.rnn import pad_sequence",
        "        output, _ = self.gru(x, seq_length=lengths)",
    ]
    assert len(removed) == 4
    assert all("pack" in line for line in removed if "self.gru(packed)" not in line)


def test_in_numpy_one_call_replaces_the_loop() -> None:
    removed, added = changed_lines("numpy_before", "numpy_after")
    assert any("for t in" in line for line in removed)
    assert sum("gru(" in line for line in added) == 1
    assert len(removed) > 3 * len(added)


@needs_torch
def test_losses_and_checkpoints_of_torch_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    before, losses, printed = run_script("torch_before", capsys)
    native = torch.load(before["CHECKPOINT"], weights_only=True)
    after, ours, printed_by_ours = run_script("torch_after", capsys)
    assert len(losses) == before["EPOCHS"]
    assert losses[-1] < 0.3 * losses[0]
    assert best_accuracy(printed) >= 0.95
    close(np.array(ours), np.array(losses), 1e-5, "losses")
    assert best_accuracy(printed_by_ours) >= 0.95

    kinds = [type(namespace["Classifier"]().gru) for namespace in (before, after)]
    assert kinds[0] is torch.nn.GRU
    assert kinds[1].__module__.startswith("unirnn_torch")
    checkpoint = torch.load(after["CHECKPOINT"], weights_only=True)
    assert checkpoint.keys() == native.keys()
    for name, weight in checkpoint.items():
        close(weight.numpy(), native[name].numpy(), 1e-4, name)
    for namespace, saved in ((before, checkpoint), (after, native)):
        namespace["Classifier"]().load_state_dict(saved, strict=True)


@needs_torch
def test_losses_of_torch_without_packing(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    _, packed, _ = run_script("torch_after", capsys)
    namespace, losses, printed = run_script("torch_lengths", capsys)
    close(np.array(losses), np.array(packed), 1e-5, "losses")
    assert best_accuracy(printed) >= 0.95

    x, lengths = torch.ones(2, 5, 1), torch.tensor([5, 0])
    assert namespace["Classifier"]().gru(x, seq_length=lengths)[0].shape == (2, 5, 16)
    with pytest.raises(RuntimeError, match="has to be greater than 0"):
        torch.nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)


@needs_mindspore
def test_losses_of_mindspore_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    import mindspore

    before, losses, printed = run_script("mindspore_before", capsys)
    native = mindspore.load_checkpoint(before["CHECKPOINT"])
    after, ours, printed_by_ours = run_script("mindspore_after", capsys)
    assert len(losses) == before["EPOCHS"]
    assert losses[-1] < 0.3 * losses[0]
    assert best_accuracy(printed) >= 0.95
    close(np.array(ours), np.array(losses), 1e-4, "losses")
    assert best_accuracy(printed_by_ours) >= 0.95

    kinds = [type(namespace["Classifier"]().gru) for namespace in (before, after)]
    assert kinds[0] is mindspore.nn.GRU
    assert kinds[1].__module__.startswith("unirnn_mindspore")
    checkpoint = mindspore.load_checkpoint(after["CHECKPOINT"])
    assert checkpoint.keys() == native.keys()
    for name, weight in checkpoint.items():
        close(weight.asnumpy(), native[name].asnumpy(), 1e-3, name)
    for namespace, saved in ((before, checkpoint), (after, native)):
        mindspore.load_param_into_net(namespace["Classifier"](), saved, strict_load=True)


def test_logits_of_numpy_are_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    _, expected, printed = run_script("numpy_before", capsys)
    _, actual, printed_by_ours = run_script("numpy_after", capsys)
    close(actual, expected, 1e-6, "logits")
    assert printed == printed_by_ours == "98.1% right\n"


@needs_lightning
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning")
def test_lightning_learns_across_chunks(capsys: pytest.CaptureFixture[str]) -> None:
    """At the first step of a chunk, only the state holds the target."""
    import torch

    namespace, model, _ = run_script("lightning_streaming", capsys)
    chunks, batches, epochs, size = 3, 4, 8, model.hparams["chunk_size"]
    assert model.trainer.global_step == chunks * batches * epochs

    batch = namespace["collate"]([torch.randn(size * 2, 1) for _ in range(100)])
    calls: list[Any] = []
    model.gru.register_forward_hook(lambda _, arguments, result: calls.append((arguments, result)))
    model.training_step(batch)
    ((_, begun, _), (_, ended)), ((second, carried, _), (output, _)) = calls
    assert begun is None
    assert ended.requires_grad
    assert not carried.requires_grad
    assert torch.equal(carried, ended)

    with torch.no_grad():
        without_state, _ = model.gru(second)
        errors = [(model.head(o) - batch[2][:, size:])[:, 0].square().mean().item() for o in (output, without_state)]
    assert errors[0] < 0.05
    assert errors[1] > 0.5
