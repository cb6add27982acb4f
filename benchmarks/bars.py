r"""Compare the figures of a benchmark with the bars that the project has set itself.

    unirnn bench --size S --size M --size L --size long --size step \\
        --lengths dense --lengths full --lengths uniform --lengths short --threads 1 --threads 2 --json bench.json
    python benchmarks/overheads.py --json overheads.json
    python benchmarks/bars.py bench.json overheads.json

The exit status is 1 if a bar is missed. A bar that the figures don't cover is shown as not measured, and is no miss.
"""

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Bar:
    """The largest ratio of our time to a baseline's that is allowed in certain rows.

    Parameters
    ----------
    number
        The group that it belongs to: 1, PyTorch on dense input; 2, PyTorch on ragged input; 3, MindSpore compared with
        PyTorch; 4, NumPy compared with PyTorch; 5, time follows the number of valid steps; 6, ONNX Runtime, and NumPy
        at single steps; 7, import, build and memory.
    at_most
        The largest ratio.
    baseline
        Which ratio; see `unirnn_bench.baselines`. ``work`` stands for ours on dense input, per valid step.
    where
        Which rows: the value, or the possible values, of each key.
    """

    number: int
    at_most: float
    baseline: str
    where: Mapping[str, Any]

    def ratios(self, rows: Sequence[Row]) -> Iterator[tuple[float, Row]]:
        """Yield the ratio of each row that it applies to; a missing ratio is infinite."""
        for row in rows:
            if all(
                row.get(key) in (value if isinstance(value, tuple) else (value,)) for key, value in self.where.items()
            ):
                yield self._ratio(row), row

    def _ratio(self, row: Row) -> float:
        if "part" in row:
            return float(row["ratio"])
        name = "dense" if self.baseline == "work" else self.baseline
        ratio = float(row["ratios"].get(name, "inf"))
        return ratio / row["fill"] if self.baseline == "work" else ratio


def bars() -> list[Bar]:
    """List all bars."""
    found: list[Bar] = []

    def bar(number: int, at_most: float, baseline: str, backend: str, **where: Any) -> None:
        one = {"num_layers": 1, "bidirectional": False}
        found.append(Bar(number, at_most, baseline, {"backend": backend, **one, **where}))

    all_sizes = ("S", "M", "L")
    ragged = ("full", "uniform", "short")
    forward, training = {"backward": False}, {"backward": True}

    dense = {"lengths": "dense"}
    bar(1, 1.03, "native", "torch", cell=("GRU", "LSTM"), size=all_sizes, **dense, **forward)
    for size, at_most in (("S", 0.40), ("M", 0.70), ("L", 0.85)):
        bar(1, at_most, "native", "torch", cell="GRU", size=size, **dense, **training)
    bar(1, 1.0, "native", "torch", cell="RNN", size=all_sizes, **dense)
    bar(1, 1.03, "native", "torch", cell="LSTM", size=all_sizes, **dense, **training)

    for lengths, size, at_most in (
        ("uniform", "M", 0.50),
        ("uniform", "L", 0.45),
        ("short", "M", 0.20),
        ("short", "L", 0.15),
    ):
        bar(2, at_most, "native", "torch", cell="GRU", size=size, lengths=lengths, **training)
    for cell, at_most in (("RNN", 0.35), ("GRU", 0.35), ("LSTM", 0.95)):
        bar(2, at_most, "usual", "torch", cell=cell, size=all_sizes, lengths=ragged, **training)
    bar(2, 0.95, "usual", "torch", size=all_sizes, lengths=ragged, **forward)

    blocking = {"mode": ("eager", "jit")}
    bar(3, 1.3, "torch", "mindspore", size=all_sizes, **dense, **blocking)
    bar(3, 1.3, "torch", "mindspore", cell=("RNN", "GRU"), size=all_sizes, lengths=ragged, **blocking)
    bar(3, 1.3, "torch", "mindspore", cell="LSTM", size=("M", "L"), lengths=ragged, **blocking)
    bar(3, 5.0, "torch", "mindspore", cell="LSTM", size="S", lengths=ragged, **blocking)
    bar(3, 2.0, "torch", "mindspore", size=all_sizes, lengths=("dense", *ragged), mode="asynchronous")

    bar(4, 1.1, "torch", "numpy", cell=("RNN", "GRU"), size=("M", "L"), **dense, **forward)
    # PyTorch's LSTM is one operator of oneDNN, so ours is measured with numba.
    bar(4, 1.5, "torch", "numpy", cell="LSTM", size=("M", "L"), mode="numba", **dense)
    bar(4, 0.9, "torch", "numpy", cell=("RNN", "GRU"), size=("S", "long"), **dense, **forward)
    bar(4, 0.9, "torch", "numpy", cell="LSTM", size=("S", "long"), mode="numba", **dense, **forward)
    bar(4, 1.2, "torch", "numpy", cell=("RNN", "GRU"), size=("M", "L", "long"), **dense, **training)
    bar(4, 1.2, "torch", "numpy", cell="LSTM", size="long", mode="numba", **dense, **training)
    bar(4, 0.4, "torch", "numpy", cell=("RNN", "GRU"), size="S", **dense, **training)
    bar(4, 0.4, "torch", "numpy", cell="LSTM", size="S", mode="numba", **dense, **training)

    for backend, mode in (("numpy", "numba"), ("torch", "eager"), ("mindspore", "eager")):
        bar(5, 1.3, "work", backend, size=("M", "L"), lengths="short", mode=mode)

    for what, at_most in (("2 T / T", 2.1), ("2 B / B", 2.1), ("zero lengths / none", 1.1)):
        named = tuple(f"{framework}, {what}" for framework in ("numpy", "torch", "mindspore"))
        found.append(Bar(5, at_most, "other", {"part": "scaling", "what": named}))

    bar(6, 1.05, "native", "onnxruntime", size=(*all_sizes, "long"))
    bar(6, 3.0, "usual", "numpy", size="step")

    found += [Bar(7, at_most, "other", {"part": part}) for part, at_most in (("import", 1.2), ("build", 1.2))]
    found.append(Bar(7, 1.1, "other", {"part": "peak memory"}))
    return found


def describe(row: Row) -> str:
    """Describe a row, or the rows that a bar applies to, in a few words."""
    parts = []
    for key in ("part", "what", "backend", "mode", "threads", "cell", "size", "lengths", "backward"):
        value = row.get(key)
        if value is None:
            continue
        if key == "backward":
            parts.append("with backward" if value else "forward")
        elif key == "threads":
            parts.append(f"threads: {value}")
        else:
            parts.append("; ".join(value) if isinstance(value, tuple) else value)
    return ", ".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print each bar with its worst ratio and the rows that miss it; return 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a report of unirnn bench or overheads.py")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    for file in options.files:
        report = json.loads(file.read_text())
        rows += [*report.get("rows", ()), *report.get("overheads", ())]
    console = Console(soft_wrap=True, highlight=False)
    table = Table("bar", "what", "to", "at most", "worst", "holds", box=None)
    missed: list[str] = []
    for bar in bars():
        ratios = list(bar.ratios(rows))
        misses = [(ratio, row) for ratio, row in ratios if ratio > bar.at_most]
        missed += [f"bar {bar.number}: {ratio:.2f}, at most {bar.at_most}: {describe(row)}" for ratio, row in misses]
        worst = f"{max(ratio for ratio, _ in ratios):.2f}" if ratios else "-"
        holds = f"{len(ratios) - len(misses)} of {len(ratios)}" if ratios else "not measured"
        table.add_row(str(bar.number), describe(bar.where), bar.baseline, str(bar.at_most), worst, holds)
    console.print(table)
    for miss in missed:
        console.print(f"missed: {miss}")
    console.print(f"{len(missed)} misses")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
