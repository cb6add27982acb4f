"""The command ``unirnn`` as a whole: its commands, and how errors are shown.

Results go to the standard output: tables as wide as the terminal, or, in a pipe or a file, as wide as their contents.
Errors of unirnn, and those of files, go to the standard error, in one line. The exit status is

- 0 if all is well;
- 1 if a backend is out of tolerance, fails, or can't build the layer that is explained;
- 2 if the arguments are wrong, or name something that is not there.
"""

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unirnn import __version__, registry
from unirnn.errors import UnirnnError

from . import backends, explain, files, names, parity
from .printing import one_line

__all__ = ["app"]


class _Commands(TyperGroup):
    """The commands, which show unirnn's errors as one line instead of a traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (UnirnnError, OSError) as error:
            if isinstance(error, OSError) and error.filename is None and not isinstance(error, UnirnnError):
                raise  # no error of a file: a broken pipe
            typer.echo(f"unirnn: {one_line(error)}", err=True)
            raise typer.Exit(2) from None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] == "bench":
            self.commands["bench"] = _import_bench()
        return super().resolve_command(ctx, args)


def _import_bench() -> Any:
    """The command ``bench``, which alone needs the package ``unirnn_bench``."""
    try:
        from .bench import bench
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        where = "is installed with unirnn; in a source tree: python -m pip install -e ."
        if missing != "unirnn_bench":
            where = f"is not installed; to install it: {registry.install_hint('bench', missing)}"
        raise UnirnnError(f"bench: needs {missing}, which {where}") from None
    only = typer.Typer(add_completion=False)
    only.command()(bench)
    return typer.main.get_command(only)


app = typer.Typer(
    name="unirnn",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
"""The command."""


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


app.command()(backends.backends)
app.command()(parity.parity)
app.command()(explain.explain)
app.command(no_args_is_help=True)(files.show)
app.command(no_args_is_help=True)(files.convert)
app.command()(names.names)


@app.command("bench")
def _bench() -> None:
    """Measure the time of layers, and of what one would use without unirnn."""  # shown in the list of commands
