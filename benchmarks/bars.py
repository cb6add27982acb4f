r"""Compare the figures of a benchmark with the bars that the project has set itself.

    unirnn bench --backend numpy --backend torch --threads 1 --threads 2 --size S --size M --size L --size wide \\
        --size long --size step --lengths dense --lengths uniform --lengths short --json bench.json
    python benchmarks/overheads.py --json overheads.json
    python benchmarks/bars.py bench.json overheads.json

The exit status is 1 if a bar is missed. A bar for which there are no figures is shown as not measured, and is not a
miss.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

Row = Mapping[str, Any]

FIGURES: dict[str, tuple[str, Callable[[Row], float | None]]] = {
    "peak": ("share of the peak", lambda row: row.get("peak")),
    "speed-up": ("speed-up by threads", lambda row: row.get("speed_up")),
    "work": ("time of a valid step / of a dense one", lambda row: _ratio(row, "dense") / row["fill"]),
    "microseconds": ("microseconds", lambda row: 1e6 * row["times"]["ours"]["median"]),
    "part": ("ours / other", lambda row: row["ratio"]),
    "difference": ("ours - other, ms", lambda row: row["ours"] - row["other"]),
}
"""Figures by name, each with a heading and a function that finds it in a row, or gives None. Any other name is that of
a ratio; see `unirnn_bench.baselines`."""

AT_LEAST = ("peak", "speed-up")
"""The figures for which a higher value is better."""


def _ratio(row: Row, name: str) -> float:
    """The ratio to a baseline; a missing one is infinite."""
    return float(row["ratios"].get(name, "inf"))


@dataclass(frozen=True)
class Bar:
    """The upper or lower limit of a figure in certain rows.

    Parameters
    ----------
    title
        The group of bars to which it belongs.
    limit
        The value that the figure must reach, or must not exceed.
    figure
        A key of `FIGURES`, or the name of a ratio.
    where
        The rows to which it applies: for each key, the value or a tuple of possible values.
    """

    title: str
    limit: float
    figure: str
    where: Mapping[str, Any]

    def figures(self, rows: Sequence[Row]) -> Iterator[tuple[float, Row]]:
        """Yield each row to which the bar applies, with its figure, if it has this figure."""
        for row in rows:
            if all(
                row.get(key) in (value if isinstance(value, tuple) else (value,)) for key, value in self.where.items()
            ):
                value = FIGURES[self.figure][1](row) if self.figure in FIGURES else _ratio(row, self.figure)
                if value is not None:
                    yield value, row

    def misses(self, value: float) -> bool:
        """Whether a figure misses the bar."""
        return value < self.limit if self.figure in AT_LEAST else value > self.limit

    def __str__(self) -> str:
        return f"at {'least' if self.figure in AT_LEAST else 'most'} {self.limit}"


SIZES = ("S", "long", "M", "L", "wide")
FORWARD, BACKWARD = {"backward": False}, {"backward": True}
DENSE = {"lengths": "dense"}
BLOCKING = ("eager", "jit")  # MindSpore's modes that wait for each result

# The limits are in the order of SIZES; the first tuple is forward, the second with backward.
PEAK = (0.45, 0.40, 0.65, 0.65, 0.50), (0.30, 0.25, 0.55, 0.60, 0.45)
TO_ONNXRUNTIME = (0.55, 0.40, 0.75, 0.75, 0.9)
TO_TORCH = {
    "GRU": ((0.10, 0.05, 0.70, 0.75, 0.8), (0.05, 0.03, 0.45, 0.55, 0.7)),
    "LSTM": ((0.6, 0.6, 0.65, 0.75, 0.9), (0.4, 0.4, 0.55, 0.7, 0.8)),
}
MINDSPORE_TO_TORCH = {
    "GRU": ((0.5, 0.3, 0.8, 0.8, 1.0), (0.3, 0.2, 0.6, 0.7, 0.9)),
    "LSTM": ((1.2, 1.2, 0.8, 0.8, 1.0), (1.2, 1.2, 0.6, 0.7, 0.9)),
}
# The peak memory of a training step before there were compiled kernels, divided by that of torch.nn's layer.
MEMORY = {
    "numpy": {"RNN": 0.71, "GRU": 0.66, "LSTM": 0.62},
    "torch": {"RNN": 0.61, "GRU": 0.73, "LSTM": 1.0},
    "mindspore": {"RNN": 1.04, "GRU": 0.82, "LSTM": 0.76},
}


def bars() -> list[Bar]:
    """List all bars."""
    return [*_compiled(), *_torch(), *_mindspore(), *_other()]


def _rows(**where: Any) -> dict[str, Any]:
    """Select rows of one layer in one direction, in the mode eager."""
    return {"mode": "eager", "num_layers": 1, "bidirectional": False, **where}


def _compiled() -> Iterator[Bar]:
    """Yield the bars of the compiled kernels, in NumPy and PyTorch."""
    both = _rows(backend=("numpy", "torch"), **DENSE)
    one = {**both, "threads": 1}
    for limits, way in zip(PEAK, (FORWARD, BACKWARD), strict=True):
        for size, limit in zip(SIZES, limits, strict=True):
            yield Bar("share of the peak", limit, "peak", {**one, "cell": ("GRU", "LSTM"), "size": size, **way})
    for size, limit in zip(SIZES, TO_ONNXRUNTIME, strict=True):
        yield Bar("ONNX Runtime's session", limit, "onnxruntime", {**one, "cell": "GRU", "size": size, **FORWARD})
    for cell, pair in TO_TORCH.items():
        for limits, way in zip(pair, (FORWARD, BACKWARD), strict=True):
            for size, limit in zip(SIZES, limits, strict=True):
                yield Bar(f"PyTorch's {cell}", limit, "torch", {**one, "cell": cell, "size": size, **way})
    two = {**both, "threads": 2, "cell": ("GRU", "LSTM"), "size": ("M", "L")}
    yield Bar("two threads", 1.6, "speed-up", two)
    yield Bar("two threads", 1.6, "speed-up", {**two, "backend": "mindspore", "mode": BLOCKING})
    ragged = {**one, "size": ("M", "L"), "lengths": ("uniform", "short")}
    yield Bar("ragged: time follows the lengths", 1.3, "work", ragged)
    yield Bar("ragged: time follows the lengths", 1.3, "work", {**ragged, "backend": "mindspore", "mode": BLOCKING})
    for backend, limit in (("numpy", 20), ("torch", 40)):
        where = {**one, "backend": backend, "cell": "GRU", "size": "step"}
        yield Bar("streaming, one step", limit, "microseconds", where)
    policy = {"threads": 1, "cell": ("GRU", "LSTM"), "size": "policy", "lengths": "resets", **BACKWARD}
    yield Bar("resets, and a loop over single steps", 0.1, "usual", {**_rows(backend="torch"), **policy})
    yield Bar("resets, and the same call without", 1.0, "dense", {**_rows(backend=("numpy", "torch")), **policy})
    yield Bar("resets, and the same call without", 1.0, "dense", {**_rows(backend="mindspore"), **policy})
    for backend, size, limit in (("torch", "step", 0.9), ("torch", "step64", 0.8), ("mindspore", "step", 0.5)):
        where = _rows(backend=backend, threads=1, cell="LSTM", size=size)
        yield Bar("a step, and the framework's own cell", limit, "usual", where)
    yield Bar("first call", 5, "difference", {"part": "first call"})


def _torch() -> Iterator[Bar]:
    """Yield the other bars of PyTorch on a CPU."""
    small, ragged = ("S", "M", "L"), ("full", "uniform", "short")
    torch = _rows(backend="torch")
    yield Bar("PyTorch's RNN", 1.0, "native", {**torch, "cell": "RNN", "size": small, **DENSE})
    for lengths, size, limit in (
        ("uniform", "M", 0.50),
        ("uniform", "L", 0.45),
        ("short", "M", 0.20),
        ("short", "L", 0.15),
    ):
        where = {**torch, "cell": "GRU", "size": size, "lengths": lengths, **BACKWARD}
        yield Bar("PyTorch, ragged, and its dense layer", limit, "native", where)
    for cell, limit in (("RNN", 0.35), ("GRU", 0.35), ("LSTM", 0.95)):
        where = {**torch, "cell": cell, "size": small, "lengths": ragged, **BACKWARD}
        yield Bar("PyTorch, packing and padding", limit, "usual", where)
    yield Bar("PyTorch, packing and padding", 0.95, "usual", {**torch, "size": small, "lengths": ragged, **FORWARD})


def _mindspore() -> Iterator[Bar]:
    """Yield the bars of MindSpore, which is compared with PyTorch."""
    small, ragged = ("S", "M", "L"), ("full", "uniform", "short")
    blocking = {**_rows(backend="mindspore"), "mode": BLOCKING}
    for cell, pair in MINDSPORE_TO_TORCH.items():
        for limits, way in zip(pair, (FORWARD, BACKWARD), strict=True):
            for size, limit in zip(SIZES, limits, strict=True):
                where = {**blocking, "threads": 1, "cell": cell, "size": size, **DENSE, **way}
                yield Bar(f"MindSpore and PyTorch's {cell}", limit, "torch", where)
    title = "MindSpore and PyTorch"
    yield Bar(title, 1.3, "torch", {**blocking, "cell": "RNN", "size": small, **DENSE})
    yield Bar(title, 1.3, "torch", {**blocking, "cell": ("RNN", "GRU"), "size": small, "lengths": ragged})
    yield Bar(title, 1.3, "torch", {**blocking, "cell": "LSTM", "size": ("M", "L"), "lengths": ragged})
    yield Bar(title, 5.0, "torch", {**blocking, "cell": "LSTM", "size": "S", "lengths": ragged})
    yield Bar(title, 2.0, "torch", {**_rows(backend="mindspore"), "mode": "asynchronous", "size": small})


def _other() -> Iterator[Bar]:
    """Yield the bars of NumPy's RNN, of ONNX Runtime, and of costs other than the time of a call."""
    rnn = _rows(backend="numpy", cell="RNN", **DENSE)
    for sizes, forward, backward in ((("M", "L"), 1.1, 1.2), (("S",), 0.9, 0.4), (("long",), 0.9, 1.2)):
        yield Bar("NumPy and PyTorch's RNN", forward, "torch", {**rnn, "size": sizes, **FORWARD})
        yield Bar("NumPy and PyTorch's RNN", backward, "torch", {**rnn, "size": sizes, **BACKWARD})
    where = _rows(backend="onnxruntime", size=("S", "M", "L", "long"))
    yield Bar("the backend onnxruntime", 1.05, "native", where)
    for what, limit in (("2 T / T", 2.1), ("2 B / B", 2.1), ("zero lengths / none", 1.1)):
        named = tuple(f"{framework}, {what}" for framework in ("numpy", "torch", "mindspore"))
        yield Bar("time follows the work", limit, "part", {"part": "scaling", "what": named})
    yield Bar("import and build", 1.2, "part", {"part": ("import", "build")})
    for framework, cells in MEMORY.items():
        for cell, limit in cells.items():
            where = {"part": "peak memory", "what": f"{framework}, {cell} / torch.nn"}
            yield Bar("memory of a training step", limit, "part", where)


def with_speed_ups(rows: Sequence[Row]) -> list[Row]:
    """Add the speed-up over one thread to each row with several threads.

    The two rows may come from different runs, between which the speed of the machine may have changed. So the speed-up
    is computed from their shares of the peak, not from their times.
    """
    names = ("backend", "mode", "cell", "size", "num_layers", "bidirectional", "lengths", "backward")

    def key(row: Row) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in names)

    one = {key(row): row["peak"] for row in rows if row.get("threads") == 1 and row.get("peak")}
    found: list[Row] = []
    for row in rows:
        known = row.get("peak") and key(row) in one
        found.append({**row, "speed_up": row["threads"] * row["peak"] / one[key(row)]} if known else row)
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
    """Print each bar with its worst figure, and the rows that miss it; return 1 if there are any."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="a report of unirnn bench or overheads.py")
    options = parser.parse_args(arguments)
    rows: list[Row] = []
    for file in options.files:
        report = json.loads(file.read_text())
        rows += [*report.get("rows", ()), *report.get("overheads", ())]
    rows = with_speed_ups(rows)
    console = Console(soft_wrap=True, highlight=False)
    if not console.is_terminal:
        console.width = 10_000  # in a pipe or a file, the table is as wide as its contents
    table = Table("bar", "what", "figure", "limit", "worst", "holds", box=None)
    missed: list[str] = []
    for bar in bars():
        figures = list(bar.figures(rows))
        misses = [(value, row) for value, row in figures if bar.misses(value)]
        missed += [f"{bar.title}: {value:.3g}, {bar}: {describe(row)}" for value, row in misses]
        values = [value for value, _ in figures]
        worst = f"{min(values) if bar.figure in AT_LEAST else max(values):.3g}" if values else "-"
        holds = f"{len(figures) - len(misses)} of {len(figures)}" if figures else "not measured"
        name = FIGURES[bar.figure][0] if bar.figure in FIGURES else f"ours / {bar.figure}"
        table.add_row(bar.title, describe(bar.where), name, str(bar), worst, holds)
    console.print(table)
    for miss in missed:
        console.print(f"missed: {miss}")
    console.print(f"{len(missed)} misses")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
