"""Functions with which commands print tables, lines and JSON, and show a spinner while the user waits."""

import json
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console, RenderableType
from rich.status import Status
from rich.table import Table
from rich.text import Text

from unirnn.errors import UnirnnError

__all__ = ["AsJson", "busy", "new_table", "one_line", "print_json", "print_parts", "reason", "visible"]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
"""The option of every command that can print JSON."""


def visible(text: object) -> str:
    """Escape the control characters in a text, which could move the cursor of a terminal or change its colours."""
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(text))


class _Table(Table):
    """A table that makes the text of its cells `visible`."""

    def add_row(self, *cells: Any, **options: Any) -> None:
        super().add_row(
            *(
                Text(visible(cell.plain), cell.style) if isinstance(cell, Text) else Text(visible(cell))
                for cell in cells
            ),
            **options,
        )


def new_table(*columns: str) -> Table:
    """Make a table whose cells contain text, which is folded and never cut off."""
    table = _Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def print_parts(*parts: RenderableType) -> None:
    """Print tables and text. A str is made `visible`, and is not wrapped, so that commands in it can be copied."""
    console = Console(markup=False, highlight=False, emoji=False)
    if not console.is_terminal:
        console.width = 10_000  # in a pipe or a file, a table is as wide as its contents
    for before, part in enumerate(parts):
        if before and (isinstance(part, Table) or isinstance(parts[before - 1], Table)):
            console.print()
        console.print(visible(part) if isinstance(part, str) else part, soft_wrap=isinstance(part, str))


def print_json(value: Any) -> None:
    """Print a value as JSON; NaN, which JSON lacks, is an error."""
    typer.echo(json.dumps(value, indent=2, allow_nan=False))


def busy(what: str) -> Status:
    """Show a spinner, only on a terminal, while frameworks are imported and run."""
    return Console(stderr=True).status(Text(f"{visible(what)} ..."))


def reason(error: Exception) -> str:
    """The message of an error. Unless it is an error of unirnn, its type comes first."""
    text = one_line(error)
    return text if isinstance(error, UnirnnError) else f"{type(error).__name__}: {text}"


def one_line(message: object) -> str:
    """Join the lines of a message, and make it `visible`."""
    return visible("; ".join(line.strip() for line in str(message).splitlines()))
