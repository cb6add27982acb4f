"""The command ``unirnn bench``.

What measures is the package ``unirnn_bench``. It is imported when the command runs or shows its help, so that the
other commands do without it.
"""

import json
import shlex
import sys
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from typer.core import TyperCommand

from unirnn import registry
from unirnn.errors import BackendError, UnirnnError

from .printing import busy, new_table, one_line, print_parts
from .specs import Cell

__all__ = ["BenchCommand", "bench"]

BASELINES = {
    "native": "the framework's own layer on dense input, without lengths",
    "usual": "what one would otherwise write in this framework for the same call, with lengths",
    "torch": "torch's own layer on dense input",
    "floor": "the bare matrix products over the valid steps, which no implementation can do without",
}
"""What our time is divided by, and the legend of the table."""


def _benchmark() -> tuple[Any, Any]:
    """The modules that measure and that draw."""
    try:
        from unirnn_bench import harness, plot
    except ModuleNotFoundError as error:
        raise UnirnnError(
            f"bench: needs {error.name}, which is not installed; "
            f"to install it: {registry.install_hint('bench', error.name)}"
        ) from None
    return harness, plot


class BenchCommand(TyperCommand):
    """A command whose help says which sizes and lengths there are."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        harness, _ = _benchmark()
        known = {
            "SIZES": ", ".join(f"{name} {tuple(size)}" for name, size in harness.SIZES.items()),
            "LENGTHS": ", ".join(harness.LENGTHS),
        }
        for parameter in self.params:
            for name, text in known.items():
                if getattr(parameter, "help", None):
                    parameter.help = parameter.help.replace(name, text)  # type: ignore[attr-defined]
        super().format_help(ctx, formatter)


def bench(
    backend: Annotated[
        list[str] | None, typer.Option(help="May be repeated. Without it: every one that is installed.")
    ] = None,
    cell: Annotated[
        list[Cell] | None, typer.Option(case_sensitive=False, help="May be repeated. Without it: all three.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help="May be repeated; T, B, I, H: SIZES. Without it: S, M, step.")
    ] = None,
    layers: Annotated[list[int] | None, typer.Option(help="May be repeated. Without it: 1.")] = None,
    bidirectional: Annotated[
        bool | None, typer.Option("--bidirectional/--unidirectional", help="Without it: unidirectional.")
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated: LENGTHS. Without it: dense, uniform."),
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(help="May be repeated. Without it: 1.")] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="May be repeated, such as jit or cuda. Without it: all of each backend.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="How long a row is measured.")] = 0.5,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="All of what no option chooses, and what takes minutes to measure: hours."),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures there.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw them there, .png; needs matplotlib.")
    ] = None,
) -> None:
    """Measure what layers cost, forward and with backward, beside what one would use without unirnn.

    Ratios are ours to others', so below 1 ours is faster: to the framework's native dense layer, to what is usual in
    it, to torch's native dense layer, and to the floor, the bare matrix products.

    The exit status is 1 if something failed.
    """
    benchmark, benchmark_plot = _benchmark()
    if plot_file is not None:
        benchmark_plot.check(plot_file)
    with busy("importing the backends"):
        planned, versions, left_out = benchmark.jobs(
            backend or None,
            cells=[c.value for c in cell or Cell],
            sizes=size or (benchmark.SIZES if whole else ("S", "M", "step")),
            num_layers=layers or ((1, 2) if whole else (1,)),
            bidirectional=(False, True) if whole and bidirectional is None else (bool(bidirectional),),
            lengths=lengths or (benchmark.LENGTHS if whole else ("dense", "uniform")),
            threads=threads or (1,),
            modes=mode or None,
        )
    for file in (json_file, plot_file):
        if file is not None:
            file.touch()  # now an error, not after all is measured
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=sum(len(job.layers) for job in planned))
        for job in planned:
            done = len(rows)
            progress.update(bar, description=f"{job.backend}, {job.mode}, threads: {job.threads}")
            try:
                for row in benchmark.run(job, seconds=seconds, slow=whole):
                    rows.append(row)
                    progress.advance(bar)
            except BackendError as error:
                failures.append(one_line(error))
                progress.advance(bar, len(job.layers) - (len(rows) - done))
    failures += [f"{_about(row)}: {name}: {one_line(e)}" for row in rows for name, e in row["errors"].items()]
    if json_file is not None:
        command = shlex.join(["unirnn", *sys.argv[1:]])
        head = {"command": command, **benchmark.machine(), "versions": versions, "seconds": seconds}
        report = {**head, "rows": rows, "left_out": left_out, "failures": failures}
        json_file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", "utf-8")
    if plot_file is not None:
        benchmark_plot.plot(rows, plot_file)
    _print_bench(rows)
    print_parts(
        *(f"failed: {text}" for text in failures), *(f"{name}: left out: {text}" for name, text in left_out.items())
    )
    raise typer.Exit(1 if failures else 0)


def _about(row: dict[str, Any]) -> str:
    benchmark, _ = _benchmark()
    layer = benchmark.Layer(**{field.name: row[field.name] for field in fields(benchmark.Layer)})
    return f"{row['backend']}, {row['mode']}, {layer}"


def _print_bench(rows: list[dict[str, Any]]) -> None:
    for threads in dict.fromkeys(row["threads"] for row in rows):
        table = new_table("backend", "mode", "layer", "ms", *(f"/ {name}" for name in BASELINES))
        for before, row in zip((None, *rows), rows, strict=False):
            if row["threads"] != threads:
                continue
            if before is not None and before["backend"] != row["backend"]:
                table.add_section()
            backend, mode, layer = _about(row).split(", ", 2)
            ours = row["times"].get("ours")
            ratios = (row["ratios"].get(name) for name in BASELINES)
            table.add_row(
                backend,
                mode,
                layer,
                Text("-" if ours is None else f"{1e3 * ours['median']:.3g}"),
                *(Text("-") if r is None else Text(f"{r:.2f}", "green" if r <= 1 else "") for r in ratios),
            )
        print_parts(f"ours, and its ratio to the others; float32, threads: {threads}", table)
    if rows:
        print_parts("", *(f"/ {name}: ours divided by the time of {text}" for name, text in BASELINES.items()))
