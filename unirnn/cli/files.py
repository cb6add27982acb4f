"""The commands for files: ``unirnn show`` and ``unirnn convert``."""

import re
import shlex
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.text import Text

from unirnn import Spec, files
from unirnn.contract.weights import format_names
from unirnn.errors import ArgumentError, AssumptionWarning, UnirnnError
from unirnn.specs import ModelSpec
from unirnn.specs.summary import COLUMNS

from .printing import AsJson, busy, new_table, one_line, print_json, print_parts
from .specs import parse_spec

__all__ = ["convert", "show"]

_UNKNOWN = "batch_first is not said by such a file; give convert --batch-first or --time-major"
_ADVICE = re.compile(r"give as spec (\w+\([^()]*\))")
"""Finds the spec that an error suggests, the first one if there are several."""
_READ = "A file of PyTorch, MindSpore, ONNX, NumPy, Keras or safetensors, with any suffix."
_File = Annotated[Path, typer.Argument(metavar="FILE", help=_READ, show_default=False)]
_Format = Annotated[
    str | None,
    typer.Option("--format", "-f", help=f"Needed if the content does not show it: {', '.join(files.FORMATS)}."),
]


def show(file: _File, format: _Format = None, as_json: AsJson = False) -> None:
    """Show what a file contains: a snapshot, or the recurrent layers of any other checkpoint with their prefixes.

    The last lines show how to convert or load the file.

    For a model, its layers are shown. Their multiply-adds are for one sequence and one time step of the input.

    Bytes and dtypes are those of the weights after reading, which turns bfloat16 into float32.
    """
    with busy(f"reading {file}"):
        found = files.contents(file, format=format)
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
        if layers:
            print_parts(title, table, *notes, *_others(found), *_next(file, found))
        else:
            print_parts(f"{title}: no recurrent layer in it", *_others(found))
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
            *_next(file, found),
        )


def _others(found: files.Contents) -> list[str]:
    """Describe what else is in the file: arrays that are not of a recurrent layer, or the reason why there are none."""
    prefixes = tuple(filter(None, found.layers))
    of_whole = found.layers[""].weights if "" in found.layers else {}
    others = [
        f"{one_line(name[:80])} {array.shape}"
        for name, array in found.arrays.items()
        # The names of a cell's arrays don't have the number of a layer.
        if not name.startswith(prefixes) and name not in of_whole and f"{name}_l0" not in of_whole
    ]
    if others:
        layers = "" if found.layers else "; a layer's would have names such as rnn.weight_ih_l0"
        return [f"{'other ' if found.layers else ''}arrays: {format_names(others)}{layers}"]
    if found.layers or found.arrays:
        return []
    try:
        found.read(files.Choice())
    except UnirnnError as error:
        return [one_line(error)]
    return []


def _next(file: Path, found: files.Contents) -> list[str]:
    """The command and the call that read the first layer whose spec is known or suggested."""
    known = [prefix for prefix, layer in found.layers.items() if isinstance(layer.spec, Spec)]
    advice = {prefix: match[1] for prefix, layer in found.layers.items() if (match := _ADVICE.search(str(layer.spec)))}
    if not known and not advice:
        return []
    prefix = (known or list(advice))[0]
    options, arguments = [shlex.quote(str(file)), "out.safetensors"], [repr(str(file))]
    if len(found.layers) > 1:
        options.append(f"--prefix {shlex.quote(prefix)}")
        arguments.append(f"prefix={prefix!r}")
    if not known:
        options.append(f"--spec {shlex.quote(advice[prefix])}")
        arguments.append(f"spec=unirnn.{advice[prefix]}")
    return [
        f"to convert it: unirnn convert {' '.join(options)}",
        f"in Python:     unirnn.load({', '.join(arguments)})",
    ]


def _described(spec: object) -> RenderableType:
    """A table with the layers of a model, or the spec of a layer."""
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
    source: Annotated[Path, typer.Argument(metavar="IN", help=_READ)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=f"Ends in {', '.join(files.WRITTEN)}; replaced.")],
    prefix: Annotated[
        str | None,
        typer.Option(
            "--prefix",
            "-p",
            help="The layer to read if the file has several: how its names begin; 'unirnn show' lists the prefixes.",
        ),
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(
            help="The spec of the layer, if the file lacks part of it (tanh or relu, batch_first), such as "
            "'RNNSpec(2, 3, nonlinearity=\"relu\")'; or that of the model whose weights it has; also as JSON."
        ),
    ] = None,
    rename: Annotated[
        list[str] | None,
        typer.Option(
            "--rename",
            "-r",
            metavar="OLD=NEW",
            help="With a model as --spec: replace the beginning OLD of names by NEW. May be repeated.",
        ),
    ] = None,
    batch_first: Annotated[
        bool | None,
        typer.Option(
            "--batch-first/--time-major",
            help="Whether the layer takes (B, T, I) or (T, B, I), if neither the file nor --spec determines it.",
            show_default=False,
        ),
    ] = None,
    format: _Format = None,
    dtype: Annotated[
        str | None,
        typer.Option("--dtype", "-d", help="Round to float16, float32 or float64. Default: keep the dtype."),
    ] = None,
) -> None:
    """Read a layer or a model from a file and write it to a file of another format.

    The output is either written completely or, after an error, not at all.
    """
    parsed = None if spec is None else parse_spec(spec)
    pairs = [pair.partition("=") for pair in rename or ()]
    for old, separator, _ in pairs:
        if not separator:
            raise ArgumentError(f"--rename: given {old!r}, expected OLD=NEW")
    renamed = {old: new for old, _, new in pairs} if pairs else None
    with busy(f"converting {source}"), warnings.catch_warnings():
        warnings.simplefilter("ignore", AssumptionWarning)  # _UNKNOWN replaces it below
        snapshot = files.load(
            source, prefix=prefix, spec=parsed, rename=renamed, batch_first=batch_first, format=format
        )
        if dtype is not None:
            snapshot = snapshot.cast(dtype)
        files.save(snapshot, target)
    written = f"{target}: {snapshot.spec!r}, {snapshot.spec.summary().parameters} parameters, {snapshot.dtype}"
    print_parts(written, *([_UNKNOWN] if snapshot.assumed else []))
