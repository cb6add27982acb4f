"""One model, trained in a PyTorch loop and in a MindSpore loop, with the same predictions everywhere.

    python examples/japanese_vowels/demo.py

It learns to tell nine speakers apart, from utterances of 7 to 29 steps, with the same seed and the same order of
batches in both frameworks. Then the model with the weights from PyTorch runs in NumPy, MindSpore and ONNX Runtime. The
exit status is 1 if an accuracy is below 96 %, or if a prediction differs. Frameworks that are not installed are left
out. Without PyTorch, the trained weights are read from ``weights.npz``.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import data
import numpy as np
import weights
from loops import TITLES, installed, logits, loop
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from run import Run

import unirnn

Array = NDArray[Any]

COLOURS = {"torch": "#ee4c2c", "mindspore": "#123a6f"}
BATCH_SIZE = 30
LEAST_ACCURACY = 0.96
PICTURE = Path(__file__).with_name("out") / "loss.png"

console = Console()


@dataclass(frozen=True)
class Training:
    """The result of training in one framework."""

    trained: unirnn.Snapshot
    losses: list[float]
    seconds: float
    test_logits: Array


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo, and return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="number of epochs (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights and of the order (default 0)")
    parser.add_argument("--save-weights", action="store_true", help="write PyTorch's trained weights to weights.npz")
    options = parser.parse_args(arguments)
    if options.epochs < 1 or options.seed < 0:
        parser.error("--epochs must be at least 1, and --seed at least 0")

    run = Run(seed=options.seed)
    training, test = data.load()
    frameworks = installed(COLOURS, console)
    if options.save_weights and "torch" not in frameworks:
        parser.error("--save-weights needs PyTorch")
    for name, layer in run.model.children:
        console.print(f"{name:5}{layer!r}", highlight=False)
    console.print(f"\n{len(training)} utterances for training, {len(test)} for testing\n")

    trained = {name: train(name, run, training, test, options.epochs) for name in frameworks}
    if trained:
        draw_losses(trained, options.seed)
        console.print(f"\nLoss curves: {PICTURE}", soft_wrap=True)

    if "torch" in trained:
        source, best, expected = "PyTorch", trained["torch"].trained, trained["torch"].test_logits
    else:
        best, expected = weights.load()
        source = "PyTorch, from weights.npz"
    others = ["numpy", *(name for name in frameworks if name != "torch"), *installed(["onnxruntime"], console)]
    computed = {source: expected, **{TITLES[name]: logits(best, name, test) for name in others}}

    wrong = show_trainings(trained, test) + show_backends(computed, test)
    for complaint in wrong:
        console.print(f"[bold red]Failed:[/] {complaint}")
    if wrong:
        return 1
    if options.save_weights:
        weights.save(best, expected)
        console.print(f"Saved {weights.PATH}", soft_wrap=True)
    return 0


def train(name: str, run: Run, training: data.Utterances, test: data.Utterances, epochs: int) -> Training:
    """Train in one framework. Show progress as a bar on a terminal, and as a line now and then elsewhere."""
    batches = list(data.shuffled_batches(len(training), batch_size=BATCH_SIZE, epochs=epochs, seed=run.seed))
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs  {task.fields[loss]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(TITLES[name], total=epochs, loss="")
        start, framework = time.perf_counter(), loop(name)
        net = run.model.build(name, dtype=run.dtype, seed=run.seed)
        every_loss = framework.train(net, run, training, itertools.chain.from_iterable(batches))
        losses: list[float] = []
        for epoch in batches:
            losses.append(sum(itertools.islice(every_loss, len(epoch))) / len(epoch))
            progress.update(task, advance=1, loss=f"loss {losses[-1]:.5f}")
            if not console.is_terminal and (len(losses) % 10 == 0 or len(losses) == epochs):
                console.print(f"{TITLES[name]:<9} epoch {len(losses)} of {epochs}  loss {losses[-1]:.5f}")
        seconds = time.perf_counter() - start
    trained = unirnn.snapshot(net)
    return Training(trained, losses, seconds, logits(trained, name, test))


def accuracy(logits: Array, utterances: data.Utterances) -> float:
    """The fraction of utterances whose largest logit is that of their speaker."""
    return float(np.mean(logits.argmax(axis=1) == utterances.speakers))


def show_trainings(trained: dict[str, Training], test: data.Utterances) -> list[str]:
    """Print the result of each training, and return the complaints about them."""
    if not trained:
        return []
    table = Table("trained with", title="\nThe same seed, two training loops", title_justify="left")
    for heading in ("seconds", "last loss", "test accuracy"):
        table.add_column(heading, justify="right")
    wrong = []
    for name, training in trained.items():
        share = accuracy(training.test_logits, test)
        table.add_row(TITLES[name], f"{training.seconds:.1f}", f"{training.losses[-1]:.6f}", f"{share:.2%}")
        if share < LEAST_ACCURACY:
            wrong.append(f"{TITLES[name]} trained to an accuracy of {share:.2%}, expected {LEAST_ACCURACY:.0%}")
    if len(trained) > 1:
        table.caption = f"the losses differ by {curve_differences(trained).max():.1e} at most"
    console.print(table)
    return wrong


def show_backends(logits: dict[str, Array], test: data.Utterances) -> list[str]:
    """Compare the logits of each backend with those of the first, and return the complaints about them."""
    table = Table("computed by", title="\nPyTorch's trained weights, on every backend", title_justify="left")
    for heading in ("test accuracy", "same predictions", "logits differ by"):
        table.add_column(heading, justify="right")
    (source, expected), *others = logits.items()
    share = accuracy(expected, test)
    table.add_row(source, f"{share:.2%}", "", "")
    wrong = []
    for name, given in others:
        same = int(np.sum(given.argmax(axis=1) == expected.argmax(axis=1)))
        difference = np.abs(given - expected).max()
        table.add_row(name, f"{accuracy(given, test):.2%}", f"{same} of {len(test)}", f"{difference:.1e}")
        if same < len(test):
            wrong.append(
                f"{name} predicts another speaker than {source} for {len(test) - same} of {len(test)} utterances"
            )
    console.print(table)
    return wrong


def curve_differences(trained: dict[str, Training]) -> Array:
    """The difference of the two frameworks' losses in each epoch."""
    first, second = (np.array(training.losses) for training in trained.values())
    differences: Array = np.abs(first - second)
    return differences


def draw_losses(trained: dict[str, Training], seed: int) -> None:
    """Draw the loss curves and, if there are two, their difference below."""
    both = len(trained) > 1
    figure = Figure(figsize=(8, 6) if both else (8, 4.5), layout="constrained")
    panels = figure.subplots(2 if both else 1, sharex=True, squeeze=False, height_ratios=[3, 1] if both else [1])[:, 0]
    # The curves coincide: draw a broad one and a dashed one over it.
    styles: tuple[dict[str, Any], ...] = ({"linewidth": 6, "alpha": 0.45}, {"linewidth": 1.8, "linestyle": (0, (5, 3))})
    for (name, training), style in zip(trained.items(), styles if both else styles[1:], strict=True):
        epochs = np.arange(1, len(training.losses) + 1)
        panels[0].plot(epochs, training.losses, color=COLOURS[name], label=TITLES[name], **style)
    frameworks = " and ".join(TITLES[name] for name in trained)
    figure.suptitle(f"Japanese Vowels: one model from seed {seed}, trained in {frameworks}")
    panels[0].set_ylabel("cross-entropy, mean of the epoch")
    panels[0].legend(frameon=False)
    if both:
        panels[1].plot(epochs, curve_differences(trained), color="#555555", marker=".")
        panels[1].set_ylabel("difference")
    for panel in panels:
        panel.set_yscale("log")
        panel.grid(alpha=0.25)
        panel.spines[["top", "right"]].set_visible(False)
    panels[-1].set_xlabel("epoch")
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
