"""The command ``unirnn``: what there is, whether it agrees, what it can't do, and what it is called elsewhere.

Results go to the standard output: tables as wide as the terminal, or, in a pipe or a file, as wide as they
are. Errors of unirnn, and those of files, go to the standard error, in one line. The exit status is

- 0 if all is well;
- 1 if a backend is out of tolerance, fails, or can't build what is explained;
- 2 if what was asked for is wrong, or not there.
"""

import ast
import json
import math
import shlex
import sys
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.status import Status
from rich.table import Table
from rich.text import Text
from typer.core import TyperGroup
from unirnn_bench import harness as benchmark
from unirnn_bench import plot as benchmark_plot

from unirnn import GRUSpec, LSTMSpec, RNNSpec, Spec, __version__, files, registry
from unirnn import explain as explain_limits
from unirnn.devices import Device, dtype_name
from unirnn.errors import BackendError, MissingBackendError, SpecError, UnirnnError
from unirnn.specs import arguments as _names
from unirnn.testing import parity as _parity

__all__ = ["app", "parse_spec"]


class Cell(str, Enum):
    """A cell, as an argument."""

    RNN = "RNN"
    GRU = "GRU"
    LSTM = "LSTM"


class Language(str, Enum):
    """A language, as an option."""

    EN = "en"
    ZH = "zh"


class _Commands(TyperGroup):
    """The commands, with unirnn's errors as a line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (UnirnnError, OSError) as error:
            if isinstance(error, OSError) and error.filename is None and not isinstance(error, UnirnnError):
                raise  # not of a file: a broken pipe
            typer.echo(f"unirnn: {_one_line(error)}", err=True)
            raise typer.Exit(2) from None


app = typer.Typer(
    name="unirnn",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The command."""

_AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"unirnn {__version__}")
        raise typer.Exit


@app.callback()
def _unirnn(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """One spec for RNN, GRU and LSTM layers; native modules on NumPy, PyTorch, MindSpore and others."""


# ---- unirnn backends -----------------------------------------------------------------------------


@app.command()
def backends(as_json: _AsJson = False) -> None:
    """Show the backends: versions, devices and dtypes, and what installs those that are missing."""
    with _busy("importing the backends"):
        entries = [_describe(name) for name in registry.backends()]
    if as_json:
        _print_json(entries)
        return
    table = _table("backend", "version", "devices", "dtypes")
    notes = []
    for entry in entries:
        version = Text(entry["version"] or "")
        if not entry["installed"]:
            version = Text("not installed", "yellow")
            notes.append((entry["backend"], f"to install it: {entry['install']}"))
        elif entry["error"]:
            version = Text("broken", "red")
            notes.append((entry["backend"], entry["error"]))
        table.add_row(entry["backend"], version, ", ".join(entry["devices"]), ", ".join(entry["dtypes"]))
    _print(table, *(f"{name}: {text}" for name, text in notes))


def _describe(name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "backend": name,
        "installed": True,
        "version": None,
        "devices": [],
        "dtypes": [],
        "install": None,
        "error": None,
    }
    try:
        room = registry.load(name)
        present = {
            "version": room.version(),
            "devices": [str(device) for device in room.devices()],
            "dtypes": list(room.support.dtypes),
        }
    except MissingBackendError as error:
        return entry | {"installed": False, "install": registry.install_hint(name, error.name)}
    except Exception as error:  # whatever a backend raises concerns that backend alone
        return entry | {"error": _reason(error)}
    return entry | present


# ---- unirnn parity -------------------------------------------------------------------------------


@app.command()
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
    as_json: _AsJson = False,
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
    spec: Spec = Spec.from_dict(arguments)
    batch = {"steps": steps, "batch_size": batch_size, "seed": seed}
    with _busy("comparing the backends"):
        found = _parity.compare(spec, backend or None, dtype or None, **batch)
    if as_json:
        _print_json(
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
    table = _table("backend", "device", "dtype", "output", "state", "gradients", "tolerance", "within")
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
    notes += [f"{note.backend}: failed: {_one_line(note.reason)}" for note in found.failures]
    notes += [f"{note.backend}: left out: {_one_line(note.reason)}" for note in found.left_out]
    _print(f"{found.spec!r}, {batch}: largest relative differences from {_parity.ORACLE} in float64", table, *notes)


# ---- unirnn bench --------------------------------------------------------------------------------

_SIZES = ", ".join(f"{name} {tuple(size)}" for name, size in benchmark.SIZES.items())


@app.command()
def bench(
    backend: Annotated[
        list[str] | None, typer.Option(help="May be repeated. Without it: every one that is installed.")
    ] = None,
    cell: Annotated[
        list[Cell] | None, typer.Option(case_sensitive=False, help="May be repeated. Without it: all three.")
    ] = None,
    size: Annotated[
        list[str] | None, typer.Option(help=f"May be repeated; T, B, I, H: {_SIZES}. Without it: S, M, step.")
    ] = None,
    layers: Annotated[list[int] | None, typer.Option(help="May be repeated. Without it: 1.")] = None,
    bidirectional: Annotated[
        bool | None, typer.Option("--bidirectional/--unidirectional", help="Without it: unidirectional.")
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option(help=f"May be repeated: {', '.join(benchmark.LENGTHS)}. Without it: dense, uniform."),
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
    if plot_file is not None:
        benchmark_plot.check(plot_file)
    with _busy("importing the backends"):
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
                failures.append(_one_line(error))
                progress.advance(bar, len(job.layers) - (len(rows) - done))
    failures += [f"{_about(row)}: {name}: {_one_line(e)}" for row in rows for name, e in row["errors"].items()]
    if json_file is not None:
        command = shlex.join(["unirnn", *sys.argv[1:]])
        head = {"command": command, **benchmark.machine(), "versions": versions, "seconds": seconds}
        report = {**head, "rows": rows, "left_out": left_out, "failures": failures}
        json_file.write_text(json.dumps(report, indent=2, allow_nan=False) + "\n", "utf-8")
    if plot_file is not None:
        benchmark_plot.plot(rows, plot_file)
    _print_bench(rows)
    _print(*(f"failed: {text}" for text in failures), *(f"{name}: left out: {text}" for name, text in left_out.items()))
    raise typer.Exit(1 if failures else 0)


def _about(row: dict[str, Any]) -> str:
    layer = benchmark.Layer(**{field.name: row[field.name] for field in fields(benchmark.Layer)})
    return f"{row['backend']}, {row['mode']}, {layer}"


def _print_bench(rows: list[dict[str, Any]]) -> None:
    others = ("native", "usual", "torch", "floor")
    for threads in dict.fromkeys(row["threads"] for row in rows):
        table = _table("backend", "mode", "layer", "ms", *(f"/ {name}" for name in others))
        for before, row in zip((None, *rows), rows, strict=False):
            if row["threads"] != threads:
                continue
            if before is not None and before["backend"] != row["backend"]:
                table.add_section()
            backend, mode, layer = _about(row).split(", ", 2)
            ours = row["times"].get("ours")
            ratios = (row["ratios"].get(name) for name in others)
            table.add_row(
                backend,
                mode,
                layer,
                Text("-" if ours is None else f"{1e3 * ours['median']:.3g}"),
                *(Text("-") if r is None else Text(f"{r:.2f}", "green" if r <= 1 else "") for r in ratios),
            )
        _print(f"ours, and its ratio to the others; float32, threads: {threads}", table)


# ---- unirnn explain ------------------------------------------------------------------------------


@app.command()
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
            with _busy(f"importing {name}"):
                explanation = explain_limits(parsed, name, where, dtype=kind)
        except Exception as error:  # whatever a backend raises concerns that backend alone
            if backend:
                raise
            notes.append(f"{name}: left out: {_reason(error)}")
        else:
            texts.append(str(explanation))
            builds = builds and explanation.builds
    _print(*texts, *notes)
    raise typer.Exit(0 if builds else 1)


def parse_spec(text: str) -> Spec:
    """Read a spec; nothing in it is evaluated but literals.

    Parameters
    ----------
    text
        What Python prints, ``GRUSpec(10, 16, num_layers=2)``, also with ``unirnn.`` before it, or the JSON of
        `Spec.to_dict`.

    Raises
    ------
    SpecError
        If it is neither, or not a spec that a layer can have.
    ArgumentError
        If an argument is unknown, missing, of the wrong type, or given twice.

    Examples
    --------
    >>> parse_spec("unirnn.GRUSpec(10, 16, num_layers=2)")
    GRUSpec(10, 16, num_layers=2)
    >>> parse_spec('{"kind": "GRU", "input_size": 10, "hidden_size": 16}')
    GRUSpec(10, 16)
    """
    try:
        values = json.loads(text) if text.lstrip().startswith("{") else _read_call(text)
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        raise SpecError(
            f"SPEC: given {text!r}, expected what Python prints, such as 'GRUSpec(10, 16, num_layers=2)', "
            "or the JSON of its to_dict()"
        ) from None
    spec: Spec = Spec.from_dict(values)
    return spec


_CELLS = {cls.__name__: cls.kind for cls in (RNNSpec, GRUSpec, LSTMSpec)}


def _read_call(text: str) -> dict[str, Any]:
    """The call of a spec's class in the form of `Spec.to_dict`; a ValueError if it is anything else."""
    call = ast.parse(text.strip(), mode="eval").body
    if not isinstance(call, ast.Call):
        raise ValueError
    kind = ast.unparse(call.func).removeprefix("unirnn.")
    nodes = dict(zip(("input_size", "hidden_size", "num_layers"), call.args, strict=False))
    nodes |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    # Fewer nodes than arguments: more than three by position, one of them given twice, or ``**``.
    if kind not in _CELLS or len(nodes) < len(call.args) + len(call.keywords):
        raise ValueError
    return {"kind": _CELLS[kind], **{name: ast.literal_eval(node) for name, node in nodes.items()}}


# ---- unirnn show ---------------------------------------------------------------------------------

_File = Annotated[Path, typer.Argument(metavar="FILE", help=f"Ends in {', '.join(files.READ)}.", show_default=False)]


@app.command()
def show(file: _File, as_json: _AsJson = False) -> None:
    """Show what a file holds: a snapshot, or the recurrent layers in somebody else's, with the prefixes to use.

    Bytes and dtypes are those of the weights once they are read: bfloat16 becomes float32.
    """
    with _busy(f"reading {file}"):
        found = files.contents(file)
    layers = [_layer(prefix, layer) for prefix, layer in found.layers.items()]
    if as_json:
        _print_json({"file": str(file), "format": found.format, "version": found.version, "layers": layers})
    elif found.version is None:
        table = _table("prefix", "layer", "parameters", "bytes", "dtype")
        notes = []
        for (prefix, layer), entry in zip(found.layers.items(), layers, strict=True):
            if entry["spec"] is None:
                table.add_row(repr(prefix), Text("-"), "-", "-", "-")
                notes.append(f"{prefix!r}: {_one_line(layer.spec)}")
                continue
            dtypes = dict.fromkeys(weight["dtype"] for weight in entry["weights"])
            table.add_row(
                repr(prefix), repr(layer.spec), str(entry["parameters"]), str(entry["bytes"]), ", ".join(dtypes)
            )
        title = f"{file}: {found.format}, no unirnn snapshot"
        _print(*([f"{title}: no recurrent layer in it"] if not layers else [title, table, *notes]))
    else:
        table = _table("weight", "shape", "dtype")
        (entry,) = layers
        for weight in entry["weights"]:
            table.add_row(weight["name"], str(tuple(weight["shape"])), weight["dtype"])
        _print(
            f"{file}: unirnn snapshot, {found.format}, format {found.version}",
            *(repr(layer.spec) for layer in found.layers.values()),
            f"{entry['parameters']} parameters, {entry['bytes']} bytes",
            table,
        )


def _layer(prefix: str, layer: files.Layer) -> dict[str, Any]:
    known = isinstance(layer.spec, Spec)
    return {
        "prefix": prefix,
        "spec": layer.spec.to_dict() if isinstance(layer.spec, Spec) else None,
        "error": None if known else _one_line(layer.spec),
        "parameters": layer.num_weights if known else None,
        "bytes": layer.num_bytes if known else None,
        "weights": [
            {"name": name, "shape": list(shape), "dtype": dtype} for name, (shape, dtype) in layer.weights.items()
        ],
    }


# ---- unirnn convert ------------------------------------------------------------------------------


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help=f"Ends in {', '.join(files.READ)}.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help=f"Ends in {', '.join(files.WRITTEN)}; replaced.")],
    prefix: Annotated[
        str | None, typer.Option(help="Of a file of several layers: what the names of one begin with; see show.")
    ] = None,
    spec: Annotated[
        str | None,
        typer.Option(help="What the layer is, where the file does not say: tanh or relu, batch_first; see explain."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float16, float32 or float64, rounded to. Without it: as it is.")
    ] = None,
) -> None:
    """Read a recurrent layer from a file, and write it to a file of another kind, whole or not at all."""
    parsed = None if spec is None else parse_spec(spec)
    with _busy(f"converting {source}"):
        snapshot = files.load(source, prefix=prefix, spec=parsed)
        if dtype is not None:
            snapshot = snapshot.cast(dtype)
        files.save(snapshot, target)
    _print(f"{target}: {snapshot.spec!r}, {snapshot.spec.num_weights} parameters, {snapshot.dtype}")


# ---- unirnn names --------------------------------------------------------------------------------

_WORDS = {
    Language.EN: {
        "difference": "difference",
        "constructor": "constructor",
        "build": "build",
        "call": "call",
        "result": "result",
    },
    Language.ZH: {"difference": "差异", "constructor": "构造函数", "build": "构建", "call": "调用", "result": "返回值"},
}


@app.command()
def names(
    cell: Annotated[Cell | None, typer.Argument(case_sensitive=False, help="Without it: all three.")] = None,
    language: Annotated[Language, typer.Option(help="Of the differences.")] = Language.EN,
) -> None:
    """Show what PyTorch, MindSpore and unirnn call each argument, and what differs."""
    words = _WORDS[language]
    shown: list[RenderableType] = []
    for kind in [cell] if cell else Cell:
        table = _table(kind.value, "PyTorch", "MindSpore", "unirnn", words["difference"])
        for place in get_args(_names.Place):
            for row in _names.arguments(kind.value, place):
                difference = row.difference_zh if language is Language.ZH else row.difference
                table.add_row(words[place], row.torch or "-", row.mindspore or "-", row.name, difference)
            table.add_section()
        shown.append(table)
    _print(*shown)


# ---- printing ------------------------------------------------------------------------------------


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _print(*parts: RenderableType) -> None:
    """Print tables, and lines that are not wrapped, so that a command in one can be copied."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000  # nothing to fit into: a table is then as wide as what it holds
    for before, part in enumerate(parts):
        if before and (isinstance(part, Table) or isinstance(parts[before - 1], Table)):
            console.print()
        console.print(part, soft_wrap=not isinstance(part, Table))


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def _busy(what: str) -> Status:
    """A sign of life while frameworks are imported and run; on a terminal only."""
    return Console(stderr=True).status(f"{what} ...")


def _reason(error: Exception) -> str:
    """What an error says; its type as well, if it is none of unirnn's own, which say all by themselves."""
    text = _one_line(error)
    return text if isinstance(error, UnirnnError) else f"{type(error).__name__}: {text}"


def _one_line(message: object) -> str:
    return "; ".join(line.strip() for line in str(message).splitlines())
