"""Draw the rows of a benchmark, with a panel for each cell, each baseline, and for forward and with backward."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unirnn import registry
from unirnn.errors import FileError

from .baselines import DESCRIPTIONS

__all__ = ["check_plot_file", "plot"]

BASELINES = ("torch", "native", "usual")


def check_plot_file(path: Path) -> None:
    """Raise an error for a picture that can't be drawn, before anything is measured.

    Raises
    ------
    FileError
        If the path does not end in ``.png``.
    BackendError
        If matplotlib can't be imported.
    """
    if path.suffix != ".png":
        raise FileError(f"--plot: given {str(path)!r}, expected a name that ends in .png")
    registry.import_optional("matplotlib.figure", "--plot:", "matplotlib")


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw the ratios as bars from a line at 1, grouped by size and lengths, on a logarithmic scale.

    Parameters
    ----------
    rows
        The rows of a report, as `unirnn_bench.rows.measure_row` returns them.
    path
        A PNG file, which is replaced.
    """
    from matplotlib.figure import Figure

    cells = list(dict.fromkeys(row["cell"] for row in rows))
    groups = list(dict.fromkeys(_group(row) for row in rows))
    series = list(dict.fromkeys(_series(row) for row in rows))
    panels = [
        (backward, baseline)
        for baseline in BASELINES
        for backward in (False, True)
        if any(row["backward"] == backward and baseline in row["ratios"] for row in rows)
    ]
    width = min(max(4.0, 0.16 * len(groups) * (len(series) + 1)), 10.0)  # of a panel, in inches
    shape = (max(1, len(panels)), max(1, len(cells)))
    figure = Figure(figsize=(width * shape[1] + 1, 3.2 * shape[0] + 1), layout="constrained")
    axes = figure.subplots(*shape, squeeze=False, sharey="row", sharex=True)
    for (backward, baseline), row_of_axes in zip(panels, axes, strict=False):
        for cell, panel in zip(cells, row_of_axes, strict=True):
            for number, name in enumerate(series):
                found = {
                    _group(row): row["ratios"][baseline]
                    for row in rows
                    if (row["cell"], row["backward"], _series(row)) == (cell, backward, name)
                    and baseline in row["ratios"]
                }
                bar = 0.8 / len(series)
                places = [groups.index(group) + (number - (len(series) - 1) / 2) * bar for group in found]
                # Bars begin at 1, which means that both take the same time.
                heights = [ratio - 1 for ratio in found.values()]
                panel.bar(places, heights, bar, bottom=1, color=f"C{number}", label=name)
            panel.axhline(1, color="black", linewidth=1)
            panel.set_yscale("log", base=2)
            panel.yaxis.set_major_formatter(lambda ratio, _: f"{ratio:g}")
            panel.set_xticks(range(len(groups)), groups, rotation=45, ha="right")
            panel.grid(axis="y", alpha=0.3)
            panel.set_title(f"{cell}, {'with backward' if backward else 'forward'}")
        row_of_axes[0].set_ylabel(f"divided by {DESCRIPTIONS[baseline]}", fontsize="small")
    figure.suptitle("Time of unirnn, divided by that of a baseline; below 1, unirnn is faster")
    handles, labels = axes[0][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(path, dpi=120)


def _group(row: Mapping[str, Any]) -> str:
    stack = f" x{row['num_layers']}" if row["num_layers"] > 1 else ""
    return f"{row['size']}{stack}{' bidirectional' if row['bidirectional'] else ''} {row['lengths']}"


def _series(row: Mapping[str, Any]) -> str:
    return ", ".join((row["backend"], row["mode"], f"threads: {row['threads']}"))
