"""Draw the pictures of the documentation: from the figures of the benchmark, and from the specs of a model.

``python docs/make_pictures.py`` reads the reports in ``benchmarks/figures`` and writes ``docs/speed*.png`` and
``docs/lengths.png``.
"""

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from unirnn import Conv1dSpec, EmbeddingSpec, GRUSpec, PoolSpec, Spec

DOCS = Path(__file__).resolve().parent
FIGURES = DOCS.parent / "benchmarks" / "figures"

CELLS = ("RNN", "GRU", "LSTM")
LENGTHS = ("dense", "uniform", "short")
COLORS = {
    "PyTorch's own": "#9a9a9a",
    "unirnn, PyTorch": "#d9512c",
    "unirnn, NumPy": "#3b75af",
    "unirnn, MindSpore": "#3a9a76",
    "unirnn, ONNX Runtime": "#8a5fb0",
}

Row = Mapping[str, Any]


def find(report: str, **wanted: Any) -> Row:
    """Return the row of a report that has these values, for one layer in one direction."""
    rows: list[Row] = json.loads((FIGURES / f"{report}.json").read_text("utf-8"))["rows"]
    wanted = {"num_layers": 1, "bidirectional": False, **wanted}
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


def seconds(row: Row, name: str = "ours") -> float:
    """Return the median time of an implementation."""
    return float(row["times"][name]["median"])


def draw_training(axes: Axes) -> None:
    """Draw how many times as fast a training step is as what is usual in the framework, on ragged batches."""
    frameworks = (
        ("NumPy,\nvs. a loop with masks", "threads1", "numpy", "eager"),
        ("PyTorch on a CPU,\nvs. packing and padding", "threads1", "torch", "eager"),
        ("PyTorch on an H100,\nvs. packing and padding", "cuda", "torch", "cuda"),
        ("MindSpore,\nvs. its own seq_length", "threads1-mindspore", "mindspore", "eager"),
    )
    longest = 1.0
    for number, cell in enumerate(CELLS):
        factors = [
            1
            / find(report, backend=name, mode=mode, cell=cell, size="M", lengths="uniform", backward=True)["ratios"][
                "usual"
            ]
            for _, report, name, mode in frameworks
        ]
        longest = max(longest, *factors)
        places = [place + (number - 1) * 0.26 for place in range(len(frameworks))]
        bars = axes.barh(places, factors, 0.25, label=cell, color=("#f0b49e", "#d9512c", "#8c2f14")[number])
        axes.bar_label(
            bars, [f" {factor:.1f}×" if factor < 10 else f" {factor:.0f}×" for factor in factors], fontsize=8
        )
    axes.set_yticks(range(len(frameworks)), [name for name, *_ in frameworks])
    axes.invert_yaxis()
    axes.set_xscale("log")
    ticks = [tick for tick in (1, 2, 5, 10, 20, 50, 100, 200) if tick < 1.6 * longest]
    axes.set_xlim(1, 1.6 * longest)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set_xlabel("times as fast")
    axes.set_title("A training step on a ragged batch: unirnn and what is usual")


def draw_lengths(axes: Axes) -> None:
    """Draw the time of a GRU's training step by the kind of its lengths, relative to PyTorch's dense layer."""
    where = {"cell": "GRU", "size": "M", "backward": True}
    series: dict[str, list[float]] = {name: [] for name in COLORS if "ONNX" not in name}
    for lengths in LENGTHS:
        torch = find("threads1", backend="torch", mode="eager", lengths=lengths, **where)
        series["PyTorch's own"].append(
            seconds(torch, "usual" if lengths != "dense" else "native") / seconds(torch, "torch")
        )
        series["unirnn, PyTorch"].append(torch["ratios"]["torch"])
        numpy = find("threads1", backend="numpy", mode="eager", lengths=lengths, **where)
        series["unirnn, NumPy"].append(numpy["ratios"]["torch"])
        mindspore = find("threads1-mindspore", backend="mindspore", mode="eager", lengths=lengths, **where)
        series["unirnn, MindSpore"].append(mindspore["ratios"]["torch"])
    shares = [find("threads1", backend="torch", mode="eager", lengths=lengths, **where)["fill"] for lengths in LENGTHS]
    draw_groups(axes, series, ["no lengths", *(f"{share:.0%} of the\nsteps valid" for share in shares[1:])])
    axes.set_ylabel("time, PyTorch's dense layer = 1")
    axes.set_title("A GRU's training step: padding is not computed")


def draw_dense(axes: Axes, backward: bool) -> None:
    """Draw the time of each cell on dense input, relative to PyTorch's layer."""
    where = {"size": "M", "lengths": "dense", "backward": backward}
    backends = [
        ("unirnn, PyTorch", "threads1", "torch", "eager"),
        ("unirnn, NumPy", "threads1", "numpy", "eager"),
        ("unirnn, MindSpore", "threads1-mindspore", "mindspore", "eager"),
    ]
    if not backward:
        backends.append(("unirnn, ONNX Runtime", "threads1", "onnxruntime", "eager"))
    series = {
        label: [find(report, backend=name, mode=mode, cell=cell, **where)["ratios"]["torch"] for cell in CELLS]
        for label, report, name, mode in backends
    }
    draw_groups(axes, series, CELLS)
    axes.set_title("training step" if backward else "inference")


def draw_gpu(axes: Axes) -> None:
    """Draw the time of a GRU's training step on a GPU with lengths, relative to PyTorch's dense layer."""
    sizes = {"S": "B 1\nH 64", "M": "B 32\nH 128", "L": "B 64\nH 256", "wide": "B 8\nH 512"}
    rows = [
        find("cuda", backend="torch", mode="cuda", cell="GRU", size=size, lengths="uniform", backward=True)
        for size in sizes
    ]
    series = {
        "PyTorch's own": [seconds(row, "usual") / seconds(row, "torch") for row in rows],
        "unirnn, PyTorch": [row["ratios"]["torch"] for row in rows],
    }
    draw_groups(axes, series, list(sizes.values()))
    axes.set_ylabel("time, PyTorch's dense layer = 1")
    axes.set_title("A GRU's training step on an H100, half of the steps valid")


def draw_streaming(axes: Axes) -> None:
    """Draw the time of one step."""
    where = {"cell": "GRU", "size": "step", "mode": "eager"}
    torch = find("threads1-steps", backend="torch", **where)
    times = {
        "torch.nn.GRUCell": seconds(torch, "usual"),
        "torch.nn.GRU": seconds(torch, "native"),
        "unirnn, PyTorch": seconds(torch),
        "unirnn, NumPy": seconds(find("threads1-steps", backend="numpy", **where)),
        "unirnn, ONNX Runtime": seconds(find("threads1-steps", backend="onnxruntime", **where)),
    }
    colors = [COLORS.get(name, COLORS["PyTorch's own"]) for name in times]
    bars = axes.barh(list(times), [1e6 * time for time in times.values()], 0.6, color=colors)
    axes.bar_label(bars, [f" {1e6 * time:.0f} µs" for time in times.values()])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("microseconds")
    axes.set_title("Streaming: one step of a GRU with H = 128")


def draw_steps() -> Figure:
    """Draw which steps of three sequences are valid after each layer of a model."""
    stages: list[tuple[str, Spec]] = [
        ("embedding", EmbeddingSpec(5000, 64)),
        ("convolution,\nstride 2", Conv1dSpec(64, 96, 3, stride=2)),
        ("GRU", GRUSpec(96, 128, bidirectional=True)),
        ("mean", PoolSpec("mean")),
    ]
    given = (9, 4, 1)
    columns: list[tuple[str, int, Sequence[int]]] = [("tokens", max(given), given)]
    for name, spec in stages:
        _, steps, lengths = columns[-1]
        if spec.ends_steps:
            columns.append((name, 1, [int(n > 0) for n in lengths]))
        else:
            columns.append((name, spec.output_lengths(steps), [spec.output_lengths(n) for n in lengths]))
    figure = Figure(figsize=(7, 1.15), layout="constrained")
    panels = figure.subplots(1, len(columns), width_ratios=[max(steps, 3) for _, steps, _ in columns])
    for axes, (name, steps, lengths) in zip(panels, columns, strict=True):
        for row, n in enumerate(lengths):
            for t in range(steps):
                color = COLORS["unirnn, NumPy"] if t < n else "#e4e4e4"
                axes.add_patch(Rectangle((t + 0.08, row + 0.08), 0.84, 0.84, color=color, linewidth=0))
        axes.set_title(name, fontsize=8, loc="left")
        axes.set(xlim=(0, max(steps, 3)), ylim=(len(lengths), 0), aspect="equal", xticks=[], yticks=[], anchor="N")
        axes.spines[:].set_visible(False)
    panels[0].set_yticks([row + 0.5 for row in range(len(given))], [f"n = {n}" for n in given], fontsize=8)
    panels[0].tick_params(length=0)
    return figure


def draw_groups(axes: Axes, series: Mapping[str, list[float]], groups: Sequence[str]) -> None:
    """Draw bars in groups, one of each series in a group, with a line at 1."""
    width = 0.8 / len(series)
    for number, (name, heights) in enumerate(series.items()):
        places = [place + (number - (len(series) - 1) / 2) * width for place in range(len(groups))]
        bars = axes.bar(places, heights, 0.95 * width, label=name, color=COLORS[name])
        axes.bar_label(bars, [f"{height:.2f}" if height < 2 else f"{height:.1f}" for height in heights], fontsize=7)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_xticks(range(len(groups)), groups)


def picture(draw: Callable[[Axes], None], height: float) -> Figure:
    """Make a picture of one panel, 7 inches wide."""
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    draw(axes)
    finish(figure)
    return figure


def finish(figure: Figure) -> None:
    """Remove the frames, and add a legend below."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    handles = {
        label: handle for axes in figure.axes for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    if handles:
        figure.legend(
            handles.values(),
            handles.keys(),
            loc="outside lower center",
            ncols=4,
            frameon=False,
            fontsize=9,
            columnspacing=1.5,
        )


def pictures() -> dict[str, Figure]:
    """Make every picture, by the name of its file."""
    dense = Figure(figsize=(7, 3.2), layout="constrained")
    for backward, axes in zip((False, True), dense.subplots(1, 2, sharey=True), strict=True):
        draw_dense(axes, backward)
    dense.axes[0].set_ylabel("time, PyTorch's layer = 1")
    finish(dense)
    return {
        "lengths.png": draw_steps(),
        "speed.png": picture(draw_training, 3.6),
        "speed-lengths.png": picture(draw_lengths, 3.2),
        "speed-dense.png": dense,
        "speed-gpu.png": picture(draw_gpu, 3.2),
        "speed-streaming.png": picture(draw_streaming, 2.6),
    }


def main() -> None:
    """Write the pictures."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the documentation.")
    parser.add_argument("--folder", type=Path, default=DOCS, help="where to write them (default: docs)")
    folder = parser.parse_args().folder
    for name, figure in pictures().items():
        # Without the version of matplotlib, equal pictures are equal files.
        figure.savefig(folder / name, dpi=160, metadata={"Software": None})


if __name__ == "__main__":
    main()
