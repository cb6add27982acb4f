"""The table of argument names: what unirnn, PyTorch and MindSpore call each argument.

Everything that depends on spelling reads `ARGUMENTS`: the spellings that specs and calls accept, the translation of a
spec into a framework's keyword arguments and back, the command ``unirnn names``, and the documentation's pages of
names in English and Chinese.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from unirnn.errors import ArgumentError

__all__ = ["ARGUMENTS", "FRAMEWORKS", "Argument", "arguments", "canonical", "missing_arguments"]

Cell = Literal["RNN", "GRU", "LSTM"]
Place = Literal["constructor", "build", "call", "result"]

FRAMEWORKS = ("torch", "mindspore")
"""The frameworks whose names are in the table."""

_ALL: tuple[Cell, ...] = ("RNN", "GRU", "LSTM")


@dataclass(frozen=True)
class Argument:
    """One row of the table.

    Parameters
    ----------
    name
        unirnn's name.
    torch, mindspore
        The framework's name for it; None if it has no such argument.
    place
        Where it belongs: to the constructor; to `Spec.build` (an argument of the frameworks' constructors); to the
        call; or to the result of the call.
    cells
        The cells that have it.
    without
        The value that corresponds to a framework without this argument, if it is one of the constructor's.
    difference, difference_zh
        The difference between the frameworks, in English and in Chinese.
    """

    name: str
    torch: str | None
    mindspore: str | None
    place: Place = "constructor"
    cells: tuple[Cell, ...] = _ALL
    without: Any = None
    difference: str = ""
    difference_zh: str = ""

    @property
    def spellings(self) -> tuple[str, ...]:
        """Every name that unirnn accepts for the argument, its own first."""
        return tuple(dict.fromkeys(n for n in (self.name, self.torch, self.mindspore) if n))

    def name_in(self, framework: str) -> str | None:
        """The framework's name for it, or None if it has no such argument."""
        if framework not in FRAMEWORKS:
            raise ArgumentError(f"framework: given {framework!r}, expected one of {', '.join(map(repr, FRAMEWORKS))}")
        return {"torch": self.torch, "mindspore": self.mindspore}[framework]


ARGUMENTS: tuple[Argument, ...] = (
    Argument("input_size", "input_size", "input_size"),
    Argument("hidden_size", "hidden_size", "hidden_size"),
    Argument("num_layers", "num_layers", "num_layers"),
    Argument(
        "nonlinearity",
        "nonlinearity",
        "nonlinearity",
        cells=("RNN",),
        difference="PyTorch's fourth positional argument; by keyword only in MindSpore, whose fourth is has_bias",
        difference_zh="PyTorch 的第四个位置参数；MindSpore 只接受关键字形式，其第四个位置参数是 has_bias",
    ),
    Argument(
        "bias",
        "bias",
        "has_bias",
        difference="another name; MindSpore announces that has_bias becomes bias",
        difference_zh="名称不同；MindSpore 已预告 has_bias 将改名为 bias",
    ),
    Argument("batch_first", "batch_first", "batch_first"),
    Argument(
        "dropout",
        "dropout",
        "dropout",
        difference="MindSpore refuses an int; unirnn accepts both and passes on a float",
        difference_zh="MindSpore 不接受整数；unirnn 两者都接受，并以浮点数传递",
    ),
    Argument("bidirectional", "bidirectional", "bidirectional"),
    Argument(
        "reset_after",
        None,
        None,
        cells=("GRU",),
        without=True,
        difference="neither has it, and both compute what True means; Keras has it under this name",
        difference_zh="两者均无此参数，其 GRU 相当于 True；Keras 有同名参数",
    ),
    Argument(
        "proj_size",
        "proj_size",
        None,
        cells=("LSTM",),
        without=0,
        difference="PyTorch only; of the other backends, array_api computes it and the rest refuse it",
        difference_zh="仅 PyTorch 支持；其他后端中只有 array_api 能计算，其余后端会拒绝",
    ),
    Argument(
        "device",
        "device",
        None,
        "build",
        difference="an argument of build; MindSpore has one device for the process, chosen by mindspore.set_device",
        difference_zh="属于 build 的参数；MindSpore 整个进程使用同一设备，由 mindspore.set_device 选择",
    ),
    Argument(
        "dtype",
        "dtype",
        "dtype",
        "build",
        difference="an argument of build, by name or as the framework's own object",
        difference_zh="属于 build 的参数，可用名称或框架自身的对象",
    ),
    Argument("input", "input", "x", "call", difference="another name", difference_zh="名称不同"),
    Argument(
        "hx",
        "h_0",
        "hx",
        "call",
        cells=("RNN", "GRU"),
        difference="PyTorch's documentation says h_0, its signature hx; None is zeros everywhere",
        difference_zh="PyTorch 文档写作 h_0，函数签名为 hx；None 在各处均表示全零",
    ),
    Argument(
        "hx",
        "h_0",
        "hx",
        "call",
        cells=("LSTM",),
        difference="a tuple (h_0, c_0) in both",
        difference_zh="两者均为元组 (h_0, c_0)",
    ),
    Argument(
        "seq_length",
        None,
        "seq_length",
        "call",
        difference="PyTorch has pack_padded_sequence instead: sorted by length, or enforce_sorted=False; "
        "lengths on the CPU; no length 0",
        difference_zh="PyTorch 使用 pack_padded_sequence：序列须按长度降序排列，或设 enforce_sorted=False；"
        "长度须在 CPU 上，且不允许为 0",
    ),
    Argument("output", "output", "output", "result", difference="the same", difference_zh="相同"),
    Argument(
        "h_n",
        "h_n",
        "hx_n",
        "result",
        cells=("RNN", "GRU"),
        difference="another name in the documentation; the same layout (L*D, B, H)",
        difference_zh="文档中的名称不同；布局相同，均为 (L*D, B, H)",
    ),
    Argument(
        "(h_n, c_n)",
        "(h_n, c_n)",
        "hx_n",
        "result",
        cells=("LSTM",),
        difference="MindSpore names the pair; the same layout (L*D, B, H) each",
        difference_zh="MindSpore 以一个名称表示这一对状态；布局相同，均为 (L*D, B, H)",
    ),
)
"""The table."""


def arguments(cell: str, place: Place) -> tuple[Argument, ...]:
    """The rows of the table for one cell and place, in order.

    Examples
    --------
    >>> [a.mindspore for a in arguments("GRU", "call")]
    ['x', 'hx', 'seq_length']
    """
    return tuple(a for a in ARGUMENTS if cell in a.cells and a.place == place)


def missing_arguments(framework: str) -> tuple[str, ...]:
    """The arguments of specs that a framework's own layers do not have.

    Examples
    --------
    >>> missing_arguments("mindspore")
    ('reset_after', 'proj_size')
    """
    return tuple(row.name for row in ARGUMENTS if row.place == "constructor" and row.name_in(framework) is None)


def canonical(cell: str, place: Place, given: Mapping[str, Any], *, already: tuple[str, ...] = ()) -> dict[str, Any]:
    """Rename arguments to unirnn's own names.

    Parameters
    ----------
    cell
        ``"RNN"``, ``"GRU"`` or ``"LSTM"``.
    place
        Whether they are arguments of the constructor or of the call.
    given
        Arguments by name, in any spelling.
    already
        Arguments that were also given, by position or by unirnn's names; these are unirnn's names.

    Returns
    -------
    dict
        The same values under unirnn's names.

    Raises
    ------
    ArgumentError
        If a name is unknown, or one argument is given under two spellings.

    Examples
    --------
    >>> canonical("GRU", "constructor", {"has_bias": False})
    {'bias': False}
    """
    rows = arguments(cell, place)
    by_spelling = {spelling: row.name for row in rows for spelling in row.spellings}
    spelled = {name: name for name in already}
    renamed: dict[str, Any] = {}
    for spelling, value in given.items():
        name = by_spelling.get(spelling)
        if name is None:
            known = ", ".join(dict.fromkeys(s for row in rows for s in row.spellings))
            raise ArgumentError(f"{cell}: unknown argument {spelling!r}; expected one of {known}")
        if name in spelled:
            raise ArgumentError(
                f"{cell}: {spelled[name]!r} and {spelling!r} are two spellings of one argument; give one"
            )
        spelled[name] = spelling
        renamed[name] = value
    return renamed
