"""The same training in NumPy, PyTorch and MindSpore, with the same losses.

    python examples/japanese_vowels/same_run.py

With one seed and one order of the batches, the model of the demo takes 50 steps of SGD without momentum, and 50
steps of Adam, in float64 and in float32, each framework with its own optimizer. The exit status is 1 if at any step a
loss differs from NumPy's by more than 1e-8 of its value in float64, or 1e-3 in float32. Frameworks that are not
installed are left out.
"""

import argparse
import itertools
import sys
from collections.abc import Sequence

import data
import numpy as np
from loops import TITLES, installed, loop
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from run import Run

__all__ = ["BOUNDS", "RUNS", "batches", "curve", "difference", "main"]

STEPS = 50
BATCH_SIZE = 30
BOUNDS = {"float64": 1e-8, "float32": 1e-3}
RUNS = [Run("SGD", "float64"), Run("SGD", "float32"), Run("Adam", "float64"), Run("Adam", "float32")]

console = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run them all, and return the exit status."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(
        arguments
    )
    training, _ = data.load()
    frameworks = installed(("numpy", "torch", "mindspore"), console)
    table = Table(
        "optimizer", "dtype", "framework", title="Losses, and how they differ from NumPy's", title_justify="left"
    )
    for heading in ("step 1", f"step {STEPS}", "differs by", "bound"):
        table.add_column(heading, justify="right")
    passed = True
    for run in RUNS:
        bound = BOUNDS[run.dtype]
        curves = {name: curve(run, name, training) for name in frameworks}
        for name, losses in curves.items():
            cells = [run.optimizer, run.dtype, TITLES[name], f"{losses[0]:.6f}", f"{losses[-1]:.6f}"]
            if name != "numpy":
                apart = difference(losses, curves["numpy"])
                # Not `>`, which would let a NaN pass.
                fits = apart <= bound
                passed = passed and fits
                cells += [f"{apart:.1e}" if fits else f"[bold red]{apart:.1e}[/]", f"{bound:.0e}"]
            table.add_row(*cells, end_section=name == list(curves)[-1])
    console.print(table)
    return 0 if passed else 1


def curve(run: Run, framework: str, utterances: data.Utterances) -> list[float]:
    """The losses of a run in one framework."""
    train = loop(framework).train
    net = run.model.build(framework, dtype=run.dtype, seed=run.seed)
    return list(train(net, run, utterances.astype(run.dtype), batches(utterances, run.seed)))


def batches(utterances: data.Utterances, seed: int) -> list[NDArray[np.int64]]:
    """The batches of a run, one for each step, as indices of utterances."""
    epochs = data.shuffled_batches(len(utterances), batch_size=BATCH_SIZE, epochs=STEPS, seed=seed)
    return list(itertools.islice(itertools.chain.from_iterable(epochs), STEPS))


def difference(losses: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative difference between the losses and those expected."""
    return float(np.max(np.abs(np.divide(losses, expected) - 1)))


if __name__ == "__main__":
    sys.exit(main())
