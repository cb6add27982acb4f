"""The command ``unirnn parity``."""

import math
import sys
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from unirnn import RecurrentSpec, registry
from unirnn import explain as explain_limits
from unirnn.errors import ArgumentError
from unirnn.testing import parity as comparing
from unirnn.testing.subjects import launch_blocking

from .printing import AsJson, busy, new_table, one_line, print_json, print_parts
from .specs import Backends, takes_spec

__all__ = ["parity"]


@takes_spec
def parity(
    spec: RecurrentSpec,
    steps: Annotated[int, typer.Option("--steps", "-T", help="Number of time steps.")] = 100,
    batch_size: Annotated[int, typer.Option("--batch-size", "-B", help="Number of sequences.")] = 8,
    seed: Annotated[int, typer.Option("--seed", "-s", help="Draws the weights and the batch.")] = 0,
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", "-d", help="May be repeated. Default: float32, and float64 where the backend has it."),
    ] = None,
    backend: Backends = None,
    as_json: AsJson = False,
) -> None:
    """Compare backends with an oracle in float64, with the same weights and the same ragged batch.

    The oracle, unirnn.testing.oracle, computes step by step in NumPy, and shares no code with any backend.

    The exit status is 1 if a backend is out of tolerance or fails.
    """
    _check_sizes(spec, steps, batch_size)
    batch = {"steps": steps, "batch_size": batch_size, "seed": seed}
    with busy("comparing the backends"):
        # Don't change how MindSpore runs if it was imported before the command.
        if "mindspore" in (backend or registry.backends()) and "mindspore" not in sys.modules:
            launch_blocking()
        found = comparing.compare(spec, backend or None, dtype or None, **batch)
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
        _print(found, f"T = {steps}, B = {batch_size}, seed {seed}")
    raise typer.Exit(0 if found.within else 1)


def _check_sizes(spec: RecurrentSpec, steps: int, batch_size: int) -> None:
    """Raise one error for all sizes that fit into no memory. NumPy's own error depends on the size."""
    largest = max(spec.num_weights, steps * batch_size * max(spec.input_size, spec.output_size))
    if largest > 2**40:
        raise ArgumentError(
            f"parity: given {spec!r}, T = {steps}, B = {batch_size}, which needs {largest:.0e} numbers, expected at "
            "most 1e12; give smaller sizes"
        )


def _comparison(comparison: comparing.Comparison) -> dict[str, Any]:
    def number(difference: float | None) -> float | None:
        # JSON has no NaN.
        return difference if difference is not None and math.isfinite(difference) else None

    return {
        **asdict(comparison),
        "device": str(comparison.device),
        **{name: number(getattr(comparison, name)) for name in ("output", "state", "gradients")},
        "tolerance": comparison.tolerance,
        "within": comparison.within,
    }


def _print(found: comparing.Parity, batch: str) -> None:
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
            if c.cause is not None:
                notes.append(f"{c.backend}, {c.device}, {c.dtype}: usual cause: {c.cause}")
            # The reason may be a limit that the backend declares.
            limits = explain_limits(found.spec, c.backend, c.device, dtype=c.dtype)
            notes += [f"{c.backend}, {c.device}, {c.dtype}: {limit}" for limit in limits]
    notes += [f"{note.backend}: failed: {one_line(note.reason)}" for note in found.failures]
    notes += [f"{note.backend}: left out: {one_line(note.reason)}" for note in found.left_out]
    print_parts(
        f"{found.spec!r}, {batch}",
        "Largest relative differences from the oracle, which computes in float64:",
        table,
        *notes,
    )
