"""The command ``unirnn parity``."""

import math
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from unirnn import RecurrentSpec
from unirnn import explain as explain_limits
from unirnn.testing import parity as _parity

from .printing import AsJson, busy, new_table, one_line, print_json, print_parts
from .specs import Cell

__all__ = ["parity"]


def parity(
    cell: Annotated[Cell, typer.Argument(case_sensitive=False)] = Cell.GRU,
    input_size: Annotated[int, typer.Option(help="Size of the input's last axis.")] = 10,
    hidden_size: Annotated[int, typer.Option(help="Size of the state's last axis.")] = 16,
    num_layers: Annotated[int, typer.Option(help="Number of layers.")] = 1,
    bidirectional: Annotated[bool, typer.Option("--bidirectional", help="Run in both directions.")] = False,
    batch_first: Annotated[bool, typer.Option("--batch-first", help="Lay the input out as (B, T, I).")] = False,
    bias: Annotated[bool, typer.Option("--bias/--no-bias", help="With biases.")] = True,
    nonlinearity: Annotated[str | None, typer.Option(help="Of an RNN: tanh or relu.")] = None,
    reset_after: Annotated[bool | None, typer.Option("--reset-after/--reset-before", help="Of a GRU: which.")] = None,
    steps: Annotated[int, typer.Option(help="Number of time steps, T.")] = 100,
    batch_size: Annotated[int, typer.Option(help="Number of sequences, B.")] = 8,
    seed: Annotated[int, typer.Option(help="Draws the weights and the batch.")] = 0,
    dtype: Annotated[
        list[str] | None,
        typer.Option(help="May be repeated. Without it: float32, and float64 where the backend has it."),
    ] = None,
    backend: Annotated[
        list[str] | None, typer.Option(help="May be repeated. Without it: every one that is installed.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare backends: the same weights, the same ragged batch, and NumPy in float64 as the oracle.

    The exit status is 1 if a backend is out of tolerance or fails.
    """
    arguments = {
        "kind": cell.value,
        "input_size": input_size,
        "hidden_size": hidden_size,
        "num_layers": num_layers,
        "bidirectional": bidirectional,
        "batch_first": batch_first,
        "bias": bias,
    }
    if nonlinearity is not None:
        arguments["nonlinearity"] = nonlinearity
    if reset_after is not None:
        arguments["reset_after"] = reset_after
    spec: RecurrentSpec = RecurrentSpec.from_dict(arguments)
    batch = {"steps": steps, "batch_size": batch_size, "seed": seed}
    with busy("comparing the backends"):
        found = _parity.compare(spec, backend or None, dtype or None, **batch)
    if as_json:
        print_json(
            {
                "spec": spec.to_dict(),
                **batch,
                "within": found.within,
                "comparisons": [_comparison(comparison) for comparison in found],
                "left_out": [asdict(note) for note in found.left_out],
                "failures": [asdict(note) for note in found.failures],
            }
        )
    else:
        _print_parity(found, f"T = {steps}, B = {batch_size}, seed {seed}")
    raise typer.Exit(0 if found.within else 1)


def _comparison(comparison: _parity.Comparison) -> dict[str, Any]:
    def number(difference: float | None) -> float | None:
        # JSON has no NaN.
        return difference if difference is not None and math.isfinite(difference) else None

    return {
        "backend": comparison.backend,
        "device": str(comparison.device),
        "dtype": comparison.dtype,
        "output": number(comparison.output),
        "state": number(comparison.state),
        "gradients": number(comparison.gradients),
        "tolerance": comparison.tolerance,
        "within": comparison.within,
    }


def _print_parity(found: _parity.Parity, batch: str) -> None:
    table = new_table("backend", "device", "dtype", "output", "state", "gradients", "tolerance", "within")
    notes = []
    for c in found:
        differences = [
            Text("-") if d is None else Text(f"{d:.1e}", "" if d <= c.tolerance else "red")
            for d in (c.output, c.state, c.gradients)
        ]
        verdict = Text("yes", "green") if c.within else Text("no", "bold red")
        table.add_row(c.backend, str(c.device), c.dtype, *differences, f"{c.tolerance:.1e}", verdict)
        if not c.within:
            # What the backend does differently, and says so, may be why.
            limits = explain_limits(found.spec, c.backend, c.device, dtype=c.dtype)
            notes += [f"{c.backend}, {c.device}, {c.dtype}: {limit}" for limit in limits]
    notes += [f"{note.backend}: failed: {one_line(note.reason)}" for note in found.failures]
    notes += [f"{note.backend}: left out: {one_line(note.reason)}" for note in found.left_out]
    print_parts(
        f"{found.spec!r}, {batch}: largest relative differences from {_parity.ORACLE} in float64", table, *notes
    )
