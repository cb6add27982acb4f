"""The command ``unirnn names``."""

from enum import Enum
from typing import Annotated, get_args

import typer
from rich.console import RenderableType

from unirnn.specs import arguments

from .printing import new_table, print_parts
from .specs import Cell

__all__ = ["names"]


class Language(str, Enum):
    """The values of the option --language."""

    EN = "en"
    ZH = "zh"


_ZH = {"difference": "差异", "constructor": "构造函数", "build": "构建", "call": "调用", "result": "返回值"}
"""The words of the table, with their translations into Chinese."""


def names(
    cell: Annotated[Cell | None, typer.Argument(case_sensitive=False, help="Default: all three.")] = None,
    language: Annotated[
        Language, typer.Option("--language", "-l", help="Language of the column of differences.")
    ] = Language.EN,
) -> None:
    """Show what PyTorch, MindSpore and unirnn call each argument, and what differs."""
    words = _ZH if language is Language.ZH else {word: word for word in _ZH}
    shown: list[RenderableType] = []
    for kind in [cell] if cell else Cell:
        table = new_table(kind.value, "PyTorch", "MindSpore", "unirnn", words["difference"])
        for place in get_args(arguments.Place):
            for row in arguments.arguments(kind.value, place):
                difference = row.difference_zh if language is Language.ZH else row.difference
                table.add_row(words[place], row.torch or "-", row.mindspore or "-", row.name, difference)
            table.add_section()
        shown.append(table)
    print_parts(*shown)
