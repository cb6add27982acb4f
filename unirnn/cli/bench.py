"""The command ``unirnn bench``. The measurements are made by the package ``unirnn_bench``."""

import json
import shlex
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from unirnn_bench import plotting, processes
from unirnn_bench.baselines import DESCRIPTIONS
from unirnn_bench.jobs import WHOLE, Grid, Job, plan
from unirnn_bench.work import LENGTHS, SIZES, Layer

from unirnn.errors import BackendError

from .printing import busy, new_table, one_line, print_parts
from .specs import Cell

__all__ = ["bench"]

_SIZES = ", ".join(f"{name} {tuple(size)}" for name, size in SIZES.items())


def bench(
    backend: Annotated[
        list[str] | None, typer.Option(help="May be repeated. Default: every backend that is installed.")
    ] = None,
    cell: Annotated[
        list[Cell] | None, typer.Option(case_sensitive=False, help="May be repeated. Default: all three.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help=f"May be repeated; with T, B, I, H: {_SIZES}. Default: S, M, step.")
    ] = None,
    layers: Annotated[list[int] | None, typer.Option(help="May be repeated. Default: 1.")] = None,
    bidirectional: Annotated[
        bool | None, typer.Option("--bidirectional/--unidirectional", help="Default: unidirectional.")
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(help=f"May be repeated: {', '.join(LENGTHS)}. Default: dense, uniform."),
    ] = None,
    threads: Annotated[list[int] | None, typer.Option(help="May be repeated. Default: 1.")] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="Such as jit or cuda; may be repeated. Default: all modes of each backend.")
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="How long each row is measured.")] = 0.5,
    whole: Annotated[
        bool,
        typer.Option("--whole", help="Measure everything that no other option excludes; takes hours."),
    ] = False,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write the figures to it.")] = None,
    plot_file: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="Draw the figures in it; a .png; needs matplotlib.")
    ] = None,
) -> None:
    """Measure the time of layers, forward and with backward, and of what one would use without unirnn.

    A ratio is the time of unirnn divided by that of a baseline, so below 1, unirnn is faster. The baselines are the
    framework's own layer on dense input, the usual code in that framework, torch's own layer on dense input, a bare
    session of ONNX Runtime, and the floor, which is only the matrix products. The peak is the share of the processor's
    peak speed that unirnn reaches.

    The exit status is 1 if something failed.
    """
    if plot_file is not None:
        plotting.check_plot_file(plot_file)
    options: dict[str, Any] = {
        "cells": [c.value for c in cell or ()],
        "sizes": size,
        "num_layers": layers,
        "bidirectional": None if bidirectional is None else [bidirectional],
        "lengths": lengths,
        "threads": threads,
        "modes": mode,
    }
    grid = replace(WHOLE if whole else Grid(), **{name: tuple(given) for name, given in options.items() if given})
    with busy("importing the backends"):
        jobs, versions, left_out = plan(grid, backend or None)
    for file in (json_file, plot_file):
        if file is not None:
            file.touch()  # if the file can't be written, raise the error before the measurement, not after it
    rows, failures = _measure(jobs, seconds, slow=whole)
    if json_file is not None:
        found = {"versions": versions, "seconds": seconds, "rows": rows, "left_out": left_out, "failures": failures}
        _write_report(json_file, found)
    if plot_file is not None:
        plotting.plot(rows, plot_file)
    _print_bench(rows)
    print_parts(
        *(f"failed: {text}" for text in failures), *(f"{name}: left out: {text}" for name, text in left_out.items())
    )
    raise typer.Exit(1 if failures else 0)


def _write_report(file: Path, found: dict[str, Any]) -> None:
    """Write a report with the command, a description of the machine, and the figures."""
    report = {"command": shlex.join(["unirnn", *sys.argv[1:]]), **processes.describe_machine(), **found}
    file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", "utf-8")


def _measure(jobs: list[Job], seconds: float, *, slow: bool) -> tuple[list[dict[str, Any]], list[str]]:
    """Run the jobs and show a progress bar. Return the rows, and descriptions of what failed."""
    rows: list[dict[str, Any]] = []
    failures: list[str] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=sum(len(job.layers) for job in jobs))
        for job in jobs:
            done = len(rows)
            progress.update(bar, description=f"{job.backend}, {job.mode}, threads: {job.threads}")
            try:
                for row in processes.run(job, seconds=seconds, slow=slow):
                    rows.append(row)
                    progress.advance(bar)
            except BackendError as error:
                failures.append(one_line(error))
                progress.advance(bar, len(job.layers) - (len(rows) - done))
    failures += [f"{_describe(row)}: {name}: {one_line(e)}" for row in rows for name, e in row["errors"].items()]
    return rows, failures


def _describe(row: dict[str, Any]) -> str:
    layer = Layer(**{field.name: row[field.name] for field in fields(Layer)})
    return f"{row['backend']}, {row['mode']}, {layer}"


def _print_bench(rows: list[dict[str, Any]]) -> None:
    for threads in dict.fromkeys(row["threads"] for row in rows):
        table = new_table("backend", "mode", "layer", "ms", "peak", *(f"/ {name}" for name in DESCRIPTIONS))
        for before, row in zip((None, *rows), rows, strict=False):
            if row["threads"] != threads:
                continue
            if before is not None and before["backend"] != row["backend"]:
                table.add_section()
            backend, mode, layer = _describe(row).split(", ", 2)
            ours = row["times"].get("ours")
            ratios = (row["ratios"].get(name) for name in DESCRIPTIONS)
            table.add_row(
                backend,
                mode,
                layer,
                Text("-" if ours is None else f"{1e3 * ours['median']:.3g}"),
                Text("-" if row["peak"] is None else f"{row['peak']:.0%}"),
                *(Text("-") if r is None else Text(f"{r:.2f}", "green" if r <= 1 else "") for r in ratios),
            )
        print_parts(f"The time of unirnn, and its ratio to others; float32, threads: {threads}", table)
    if rows:
        print_parts("", "peak: the share of the processor's peak of fused multiply-adds that unirnn reaches")
        print_parts(*(f"/ {name}: divided by the time of {text}" for name, text in DESCRIPTIONS.items()))
