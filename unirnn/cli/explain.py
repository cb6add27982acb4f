"""The command ``unirnn explain``."""

from typing import Annotated

import typer
from rich.console import RenderableType
from rich.padding import Padding

from unirnn import Spec, registry
from unirnn import explain as explain_limits
from unirnn.devices import Device, dtype_name

from .printing import busy, print_parts, reason
from .specs import Backends, takes_spec

__all__ = ["explain"]


@takes_spec
def explain(
    spec: Spec,
    backend: Backends = None,
    device: Annotated[
        str | None,
        typer.Option("--device", help="May be a device that is not present. Default: the backend's default device."),
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", "-d", help="float16, bfloat16, float32 or float64.")] = "float32",
    kernels: Annotated[bool, typer.Option("--kernels", "-k", help="Also say which kernel runs when.")] = False,
) -> None:
    """Show what backends can't do, or do differently, for a layer or a model.

    The exit status is 1 if one of the backends can't build it.
    """
    where = None if device is None else Device.parse(device)
    checked = dtype_name(dtype)
    parts: list[RenderableType] = []
    notes, builds = [], True
    for name in backend or registry.backends():
        try:
            with busy(f"importing {name}"):
                explanation = explain_limits(spec, name, where, dtype=checked)
        except Exception as error:  # any error of one backend must not stop the others
            if backend:
                raise
            notes.append(f"{name}: left out: {reason(error)}")
            continue
        builds = builds and explanation.builds
        head, *limits = str(explanation).splitlines()
        lines = [*map(str.strip, limits), *(explanation.kernel_sentences if kernels else ())]
        parts += [head, *(Padding(line, (0, 0, 0, 2), expand=False) for line in lines)]
    print_parts(*parts, *notes)
    raise typer.Exit(0 if builds else 1)
