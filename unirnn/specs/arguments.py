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
        The difference between the frameworks, in English and in Chinese; empty if there is none.
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
        difference="in PyTorch the fourth positional argument; in MindSpore by keyword only, the fourth is has_bias",
        difference_zh="在 PyTorch 中是第四个位置参数；在 MindSpore 中只能以关键字传入，第四个位置参数是 has_bias",
    ),
    Argument(
        "bias",
        "bias",
        "has_bias",
        difference="MindSpore has announced that has_bias will be renamed to bias",
        difference_zh="MindSpore 已预告将 has_bias 改名为 bias",
    ),
    Argument("batch_first", "batch_first", "batch_first"),
    Argument(
        "dropout",
        "dropout",
        "dropout",
        difference="MindSpore refuses an int; unirnn takes an int or a float, and passes on a float",
        difference_zh="MindSpore 不接受整数；unirnn 接受整数和浮点数，并统一以浮点数传入",
    ),
    Argument("bidirectional", "bidirectional", "bidirectional"),
    Argument(
        "reverse",
        None,
        None,
        without=False,
        difference="neither framework has it; Keras calls it go_backwards",
        difference_zh="两个框架都没有此参数；Keras 中对应的参数是 go_backwards",
    ),
    Argument(
        "reset_after",
        None,
        None,
        cells=("GRU",),
        without=True,
        difference="neither framework has it, and both compute the variant of True; Keras has it under this name",
        difference_zh="两个框架都没有此参数，其 GRU 相当于取 True；Keras 有同名参数",
    ),
    Argument(
        "proj_size",
        "proj_size",
        None,
        cells=("LSTM",),
        without=0,
        difference="only PyTorch has it; all of unirnn's backends compute it",
        difference_zh="仅 PyTorch 有此参数；unirnn 的所有后端都支持",
    ),
    Argument(
        "gate_activation",
        None,
        None,
        cells=("GRU", "LSTM"),
        without="sigmoid",
        difference="neither framework has it, and both have the sigmoid; Keras calls it recurrent_activation",
        difference_zh="两个框架都没有此参数，其门控激活函数均为 sigmoid；Keras 中对应的参数是 recurrent_activation",
    ),
    Argument(
        "device",
        "device",
        None,
        "build",
        difference="an argument of build; MindSpore has one device for the process, chosen by mindspore.set_device",
        difference_zh="是 build 的参数；MindSpore 的整个进程只使用一个设备，由 mindspore.set_device 指定",
    ),
    Argument(
        "dtype",
        "dtype",
        "dtype",
        "build",
        difference="an argument of build, as a name or as the framework's own object",
        difference_zh="是 build 的参数，可以是名称，也可以是框架自身的 dtype 对象",
    ),
    Argument("input", "input", "x", "call"),
    Argument(
        "hx",
        "h_0",
        "hx",
        "call",
        cells=("RNN", "GRU"),
        difference="PyTorch's documentation says h_0, its signature hx; None is zeros everywhere",
        difference_zh="PyTorch 的文档写作 h_0，函数签名中为 hx；None 始终表示全零",
    ),
    Argument(
        "hx",
        "h_0",
        "hx",
        "call",
        cells=("LSTM",),
        difference="a pair (h_0, c_0) in both",
        difference_zh="在两个框架中都是元组 (h_0, c_0)",
    ),
    Argument(
        "seq_length",
        None,
        "seq_length",
        "call",
        difference="PyTorch has pack_padded_sequence instead: lengths on the CPU, none of them 0, "
        "sorted unless enforce_sorted=False",
        difference_zh="PyTorch 使用 pack_padded_sequence：长度须在 CPU 上，不能为 0，"
        "且须按降序排列，除非设置 enforce_sorted=False",
    ),
    Argument(
        "resets",
        None,
        None,
        "call",
        difference="neither framework has it: where a new sequence begins at some step within a batch, "
        "people loop over single steps",
        difference_zh="两个框架都没有此参数：若有新序列在批次的中间时间步开始，通常只能逐步循环计算",
    ),
    Argument("output", "output", "output", "result"),
    Argument(
        "h_n",
        "h_n",
        "hx_n",
        "result",
        cells=("RNN", "GRU"),
        difference="only the names in the documentation differ; the layout is (L*D, B, H) in both",
        difference_zh="仅文档中的名称不同；两个框架中的布局均为 (L*D, B, H)",
    ),
    Argument(
        "(h_n, c_n)",
        "(h_n, c_n)",
        "hx_n",
        "result",
        cells=("LSTM",),
        difference="MindSpore has one name for the pair; the layout of each part is (L*D, B, H) in both",
        difference_zh="MindSpore 用一个名称表示这一对状态；两个框架中每个状态的布局均为 (L*D, B, H)",
    ),
)
"""The table."""


def arguments(cell: str, place: Place) -> tuple[Argument, ...]:
    """The rows of the table for one cell and place, in order.

    Examples
    --------
    >>> [a.mindspore for a in arguments("GRU", "call")]
    ['x', 'hx', 'seq_length', None]
    """
    return tuple(a for a in ARGUMENTS if cell in a.cells and a.place == place)


def missing_arguments(framework: str) -> tuple[str, ...]:
    """The arguments of specs that a framework's own layers do not have.

    Examples
    --------
    >>> missing_arguments("mindspore")
    ('reverse', 'reset_after', 'proj_size', 'gate_activation')
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
