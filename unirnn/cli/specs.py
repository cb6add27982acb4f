"""How a layer is named on the command line: by a spec, or by its cell and options."""

import ast
import functools
import inspect
import json
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.errors import SpecError

__all__ = ["Cell", "parse_spec", "takes_spec"]


class Cell(str, Enum):
    """A cell, as an argument."""

    RNN = "RNN"
    GRU = "GRU"
    LSTM = "LSTM"


_SPECS = {cls.__name__: cls for cls in (RNNSpec, GRUSpec, LSTMSpec)}
_DEFAULTS = {"input_size": 10, "hidden_size": 16}
"""Of a layer that is given by its cell alone."""

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
    "dropout": Annotated[float | None, typer.Option("--dropout", help="Between layers, while training.")],
    "nonlinearity": Annotated[str | None, typer.Option("--nonlinearity", help="RNN only: tanh or relu.")],
    "reset_after": Annotated[
        bool | None,
        typer.Option(
            "--reset-after/--reset-before", help="GRU only: apply the reset gate after the product, or before."
        ),
    ],
    "proj_size": Annotated[int | None, typer.Option("--proj-size", help="LSTM only: size of the projected state.")],
}
"""The arguments of specs as options, by their names in `RecurrentSpec.to_dict`."""


def takes_spec(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument SPEC and the options that describe a layer, in the place of its parameter ``spec``.

    Where both a whole spec and options are given, an option replaces the argument of the spec.
    """

    @functools.wraps(command)
    def with_spec(spec: str, **arguments: Any) -> None:
        options = {name: arguments.pop(name) for name in _OPTIONS}
        given = {name: value for name, value in options.items() if value is not None}
        if spec.upper() in Cell.__members__:
            values = {"kind": spec.upper(), **_DEFAULTS, **given}
        elif spec.isidentifier():
            raise SpecError(f"SPEC: given {spec!r}, expected RNN, GRU or LSTM, or a spec such as 'GRUSpec(10, 16)'")
        else:
            values = {**parse_spec(spec).to_dict(), **given}
        command(RecurrentSpec.from_dict(values), **arguments)

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


def parse_spec(text: str) -> RecurrentSpec:
    """Read a spec; only literals are evaluated.

    Parameters
    ----------
    text
        What Python prints, ``GRUSpec(10, 16, num_layers=2)``, also with ``unirnn.`` before it, or the JSON of
        `Spec.to_dict`.

    Raises
    ------
    SpecError
        If it is neither, or no layer can have one of its values.
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
    spec: RecurrentSpec = RecurrentSpec.from_dict(values)
    return spec


def _read_call(text: str) -> dict[str, Any]:
    """Read the call of a spec's class into the form of `Spec.to_dict`; a ValueError if it is anything else."""
    call = ast.parse(text.strip(), mode="eval").body
    if not isinstance(call, ast.Call):
        raise ValueError
    name = ast.unparse(call.func).removeprefix("unirnn.")
    nodes = dict(zip(("input_size", "hidden_size", "num_layers"), call.args, strict=False))
    nodes |= {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg is not None}
    # There are fewer nodes than arguments if more than three are given by position, one is given twice, or by ``**``.
    if name not in _SPECS or len(nodes) < len(call.args) + len(call.keywords):
        raise ValueError
    return {"kind": _SPECS[name].kind, **{name: ast.literal_eval(node) for name, node in nodes.items()}}
