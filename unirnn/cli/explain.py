"""The command ``unirnn explain``."""

from typing import Annotated

import typer

from unirnn import explain as explain_limits
from unirnn import registry
from unirnn.devices import Device, dtype_name

from .printing import busy, print_parts, reason
from .specs import parse_spec

__all__ = ["explain"]


def explain(
    spec: Annotated[
        str, typer.Argument(help="As Python prints it, 'GRUSpec(10, 16, num_layers=2)', or the JSON of its to_dict().")
    ],
    backend: Annotated[
        list[str] | None, typer.Option(help="May be repeated. Without it: every one that is installed.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="It need not be present. Without it: the backend's default.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float16, bfloat16, float32 or float64.")] = "float32",
) -> None:
    """Show what a backend can't do, or does differently, for a spec.

    The exit status is 1 if one of the backends can't build it.
    """
    parsed = parse_spec(spec)
    where = None if device is None else Device.parse(device)
    kind = dtype_name(dtype)
    texts, notes, builds = [], [], True
    for name in backend or registry.backends():
        try:
            with busy(f"importing {name}"):
                explanation = explain_limits(parsed, name, where, dtype=kind)
        except Exception as error:  # whatever a backend raises concerns that backend alone
            if backend:
                raise
            notes.append(f"{name}: left out: {reason(error)}")
        else:
            texts.append(str(explanation))
            builds = builds and explanation.builds
    print_parts(*texts, *notes)
    raise typer.Exit(0 if builds else 1)
