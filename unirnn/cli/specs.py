"""Read a layer or a model from the command line: from a spec, or from the cell and options of a recurrent layer."""

import ast
import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import fields
from enum import Enum
from typing import Annotated, Any

import typer

from unirnn import RecurrentSpec, Spec, specs
from unirnn.errors import SpecError, UnirnnError
from unirnn.specs import ModelSpec

__all__ = ["Backends", "Cell", "parse_spec", "takes_spec"]

Backends = Annotated[
    list[str] | None,
    typer.Option("--backend", "-b", help="May be repeated. Default: every backend that is installed."),
]
"""The option of every command that runs a spec on backends."""


class Cell(str, Enum):
    """The cells, as values of an argument."""

    RNN = "RNN"
    GRU = "GRU"
    LSTM = "LSTM"


_SPECS: dict[str, type[Spec]] = {
    name: vars(specs)[name] for name in specs.__all__ if hasattr(vars(specs)[name], "kind") and name != "Model"
}
_DEFAULTS = {"input_size": 10, "hidden_size": 16}
"""The sizes of a layer that is given by its cell."""
_MOST_LAYERS = 10_000

_SPEC = Annotated[
    str,
    typer.Argument(
        metavar="SPEC",
        help="RNN, GRU or LSTM, described by the options; or a spec as Python prints it, "
        "'GRUSpec(10, 16, num_layers=2)'; or the JSON of its to_dict().",
    ),
]
_OPTIONS: dict[str, Any] = {
    "input_size": Annotated[int | None, typer.Option("--input-size", "-i", help="Size of the input's last axis.")],
    "hidden_size": Annotated[int | None, typer.Option("--hidden-size", "-H", help="Size of the state's last axis.")],
    "num_layers": Annotated[int | None, typer.Option("--num-layers", "-l", help="Number of layers.")],
    "bias": Annotated[bool | None, typer.Option("--bias/--no-bias", help="With biases, or without.")],
    "batch_first": Annotated[
        bool | None, typer.Option("--batch-first/--time-first", help="Input as (B, T, I), or as (T, B, I).")
    ],
    "bidirectional": Annotated[
        bool | None, typer.Option("--bidirectional/--unidirectional", help="In both directions, or in one.")
    ],
    "reverse": Annotated[
        bool | None, typer.Option("--reverse/--forward", help="From the last step to the first, or forward.")
    ],
    "dropout": Annotated[float | None, typer.Option("--dropout", help="Between layers, while training.")],
    "nonlinearity": Annotated[str | None, typer.Option("--nonlinearity", help="RNN only: tanh or relu.")],
    "reset_after": Annotated[
        bool | None,
        typer.Option(
            "--reset-after/--reset-before", help="GRU only: apply the reset gate after the product, or before."
        ),
    ],
    "proj_size": Annotated[int | None, typer.Option("--proj-size", help="LSTM only: size of the projected state.")],
    "gate_activation": Annotated[
        str | None,
        typer.Option("--gate-activation", help="GRU and LSTM only: sigmoid, hard_sigmoid or hard_sigmoid_0.2."),
    ],
}
"""The options for the arguments of specs, by their names in `RecurrentSpec.to_dict`."""


def takes_spec(command: Callable[..., None]) -> Callable[..., None]:
    """Replace the parameter ``spec`` of a command by the argument SPEC and the options that describe a layer.

    If the user gives both a whole spec and options, the options replace arguments of the spec. The annotation of the
    parameter determines whether the command takes any spec, or only recurrent layers.
    """
    wanted = command.__annotations__["spec"]

    @functools.wraps(command)
    def with_spec(spec: str, **arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in _OPTIONS}
        given = {name: value for name, value in options.items() if value is not None}
        parsed: Spec
        if spec.upper() in Cell.__members__:
            parsed = RecurrentSpec.from_dict({"kind": spec.upper(), **_DEFAULTS, **given})
        elif spec.isidentifier():
            raise SpecError(f"SPEC: given {spec!r}, expected RNN, GRU or LSTM, or a spec such as 'GRUSpec(10, 16)'")
        else:
            parsed = parse_spec(spec)
            if isinstance(parsed, RecurrentSpec):
                parsed = RecurrentSpec.from_dict({**parsed.to_dict(), **given})
            elif given or not isinstance(parsed, wanted):
                what = f" with the option {next(iter(given))}" if given else ""
                raise SpecError(f"SPEC: given {parsed!r}{what}, expected a recurrent layer")
        _check_layers(parsed)
        command(parsed, **arguments)

    keyword = inspect.Parameter.KEYWORD_ONLY
    own = list(inspect.signature(command).parameters.values())[1:]
    with_spec.__signature__ = inspect.Signature(  # type: ignore[attr-defined]  # which typer reads
        [
            inspect.Parameter("spec", inspect.Parameter.POSITIONAL_OR_KEYWORD, default="GRU", annotation=_SPEC),
            *(inspect.Parameter(name, keyword, default=None, annotation=kind) for name, kind in _OPTIONS.items()),
            *(parameter.replace(kind=keyword) for parameter in own),
        ]
    )
    with_spec.__annotations__ = {**command.__annotations__, **_OPTIONS, "spec": _SPEC}
    return with_spec


def parse_spec(text: str) -> Spec:
    """Parse a spec. Only literals and specs are evaluated.

    Parameters
    ----------
    text
        A spec as Python prints it, ``GRUSpec(10, 16, num_layers=2)`` or ``Sequential(...)``, optionally with
        ``unirnn.`` before each name, or the JSON of `Spec.to_dict`.

    Raises
    ------
    SpecError
        If it is neither of these, or has an invalid value.
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
        is_json = text.lstrip().startswith("{")
        spec = Spec.from_dict(json.loads(text)) if is_json else _read_call(ast.parse(text.strip(), mode="eval").body)
    except UnirnnError:
        raise
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        raise SpecError(
            f"SPEC: given {text!r}, expected what Python prints, such as 'GRUSpec(10, 16, num_layers=2)', "
            "or the JSON of its to_dict()"
        ) from None
    _check_layers(spec)
    return spec


def _check_layers(spec: Spec) -> None:
    """Raise SpecError for so many layers that it would take forever to name their weights."""
    for leaf in spec.leaves().values():
        if isinstance(leaf, RecurrentSpec) and leaf.num_layers > _MOST_LAYERS:
            raise SpecError(f"num_layers: given {leaf.num_layers}, expected at most {_MOST_LAYERS} in a command")


def _read_call(node: ast.AST) -> Spec:
    """Evaluate the call of a spec's class; raises ValueError for anything else."""
    if not isinstance(node, ast.Call):
        raise ValueError
    cls = _SPECS.get(ast.unparse(node.func).removeprefix("unirnn."))
    named = {keyword.arg: keyword.value for keyword in node.keywords if keyword.arg is not None}
    if cls is None or len(named) < len(node.keywords):  # an argument is given twice, or by ``**``
        raise ValueError
    if issubclass(cls, ModelSpec):
        return cls(*map(_read_call, node.args), **{name: _read_call(value) for name, value in named.items()})
    positional = [field.name for field in fields(cls) if not field.kw_only][: len(node.args)]
    if len(positional) < len(node.args) or named.keys() & {*positional}:
        raise ValueError
    values = {**dict(zip(positional, node.args, strict=True)), **named}
    return Spec.from_dict({"kind": cls.kind, **{name: ast.literal_eval(value) for name, value in values.items()}})
