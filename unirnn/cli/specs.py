"""How a layer is named on the command line."""

import ast
import json
from enum import Enum
from typing import Any

from unirnn import GRUSpec, LSTMSpec, RNNSpec, Spec
from unirnn.errors import SpecError

__all__ = ["Cell", "parse_spec"]


class Cell(str, Enum):
    """A cell, as an argument."""

    RNN = "RNN"
    GRU = "GRU"
    LSTM = "LSTM"


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
