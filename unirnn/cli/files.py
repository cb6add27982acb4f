"""The commands on files: ``unirnn show`` and ``unirnn convert``."""

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from unirnn import Spec, files
from unirnn.errors import ArgumentError, AssumptionWarning
from unirnn.specs import ModelSpec
from unirnn.specs.summary import COLUMNS

from .printing import AsJson, busy, new_table, one_line, print_json, print_parts
from .specs import parse_spec

__all__ = ["convert", "show"]

_UNKNOWN = "batch_first is not said by such a file; give convert --batch-first or --no-batch-first"

_File = Annotated[Path, typer.Argument(metavar="FILE", help=f"Ends in {', '.join(files.READ)}.", show_default=False)]


def show(file: _File, as_json: AsJson = False) -> None:
    """Show what a file holds: a snapshot, or the recurrent layers in any other checkpoint, with their prefixes.

    Of a model, the layers are shown. Their multiply-adds are for one sequence and one time step of the input.

    Bytes and dtypes are those of the weights after reading: bfloat16 becomes float32.
    """
    with busy(f"reading {file}"):
        found = files.contents(file)
    layers = [_layer(prefix, layer) for prefix, layer in found.layers.items()]
    if as_json:
        print_json({"file": str(file), "format": found.format, "version": found.version, "layers": layers})
    elif found.version is None:
        table = new_table("prefix", "layer", "parameters", "bytes", "dtype")
        notes = []
        for (prefix, layer), entry in zip(found.layers.items(), layers, strict=True):
            if entry["spec"] is None:
                table.add_row(repr(prefix), Text("-"), "-", "-", "-")
                notes.append(f"{prefix!r}: {one_line(layer.spec)}")
                continue
            dtypes = dict.fromkeys(weight["dtype"] for weight in entry["weights"])
            table.add_row(
                repr(prefix), repr(layer.spec), str(entry["parameters"]), str(entry["bytes"]), ", ".join(dtypes)
            )
            if layer.note:
                notes.append(f"{prefix!r}: {layer.note}")
        if any(layer.assumed for layer in found.layers.values()):
            notes.append(_UNKNOWN)
        title = f"{file}: {found.format}, no unirnn snapshot"
        print_parts(*([f"{title}: no recurrent layer in it"] if not layers else [title, table, *notes]))
    else:
        table = new_table("weight", "shape", "dtype")
        (entry,) = layers
        for weight in entry["weights"]:
            table.add_row(weight["name"], str(tuple(weight["shape"])), weight["dtype"])
        print_parts(
            f"{file}: unirnn snapshot, {found.format}, format {found.version}",
            *(_described(layer.spec) for layer in found.layers.values()),
            f"{entry['parameters']} parameters, {entry['bytes']} bytes",
            table,
        )


def _described(spec: object) -> RenderableType:
    """A table of the layers of a model, or the spec of a layer."""
    if not isinstance(spec, ModelSpec):
        return repr(spec)
    table = new_table(*COLUMNS)
    for line in spec.summary().lines:
        table.add_row(*map(Text, line))
    return table


def _layer(prefix: str, layer: files.Layer) -> dict[str, Any]:
    known = isinstance(layer.spec, Spec)
    return {
        "prefix": prefix,
        "spec": layer.spec.to_dict() if isinstance(layer.spec, Spec) else None,
        "error": None if known else one_line(layer.spec),
        "parameters": layer.spec.summary().parameters if isinstance(layer.spec, Spec) else None,
        "bytes": layer.num_bytes if known else None,
        "assumed": list(layer.assumed),
        "weights": [
            {"name": name, "shape": list(shape), "dtype": dtype} for name, (shape, dtype) in layer.weights.items()
        ],
    }


def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help=f"Ends in {', '.join(files.READ)}.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=f"Ends in {', '.join(files.WRITTEN)}; replaced.")],
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix",
            "-p",
            help="Which layer, if the file holds several: how its names begin; 'unirnn show' lists them.",
        ),
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(
            help="The layer, if the file does not say all of it (tanh or relu, batch_first): "
            "'RNNSpec(2, 3, nonlinearity=\"relu\")'; or the model whose weights it has, also as JSON."
        ),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--rename",
            "-r",
            metavar="OLD=NEW",
            help="With a model as --spec: a new beginning for the names that begin so. May be repeated.",
        ),
    ] = None,
    batch_first: Annotated[
        bool | None,
        typer.Option(
            "--batch-first/--no-batch-first",
            help="Whether the layer takes (B, T, I), if neither the file nor --spec says it.",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", "-d", help="Round to float16, float32 or float64. Default: keep the dtype."),
    ] = None,
) -> None:
    """Read a layer or a model from a file and write it to a file of another format.

    The output is written as a whole or, after an error, not at all.
    """
    parsed = None if spec is None else parse_spec(spec)
    pairs = [pair.partition("=") for pair in rename or ()]
    for old, separator, _ in pairs:
        if not separator:
            raise ArgumentError(f"--rename: given {old!r}, expected OLD=NEW")
    renamed = {old: new for old, _, new in pairs} if pairs else None
    with busy(f"converting {source}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)  # it is said below
        snapshot = files.load(source, prefix=prefix, spec=parsed, rename=renamed, batch_first=batch_first)
        if dtype is not None:
            snapshot = snapshot.cast(dtype)
        files.save(snapshot, target)
    written = f"{target}: {snapshot.spec!r}, {snapshot.spec.summary().parameters} parameters, {snapshot.dtype}"
    print_parts(written, *([_UNKNOWN] if snapshot.assumed else []))
