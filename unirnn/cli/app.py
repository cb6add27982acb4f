"""The command ``unirnn``: its subcommands, and how errors are shown.

Results are written to standard output. Tables are as wide as the terminal or, in a pipe or a file, as wide as their
contents. Errors of unirnn, of files and of memory are written to standard error as a single line. Control characters in
names are escaped, and so are characters that the encoding of the terminal lacks. The exit status is

- 0 if the command succeeds;
- 1 if a backend is out of tolerance, fails, or can't build the layer that is explained;
- 2 if the arguments are wrong, or name something that does not exist.
"""

import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from unirnn import __version__, registry
from unirnn.errors import UnirnnError

from . import backends, explain, files, names, new_backend, parity
from .printing import one_line, visible

__all__ = ["app"]


_UsageError: Any = typer.BadParameter.__base__  # click's class; newer versions of typer have a copy of click


class _Commands(TyperGroup):
    """A group of commands that shows errors of unirnn and of the system as one line instead of a traceback."""

    def main(self, *args: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):
                stream.reconfigure(errors="backslashreplace")  # a terminal may lack characters of names
        try:
            return super().main(*args, **options)
        except UnirnnError as error:
            message = one_line(error)
        except MemoryError as error:
            message = f"too little memory: {one_line(error)}"
        except OSError as error:  # from a file or from the output, such as a full disk
            if error.errno is None:
                raise
            message = one_line(error)
        _discard_output()
        typer.echo(f"unirnn: {message}", err=True)
        sys.exit(2)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            error.message = visible(error.message)
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] == "bench":
            self.commands["bench"] = _import_bench()
        return super().resolve_command(ctx, args)


def _discard_output() -> None:
    """Discard output that could not be written. Python would try to write it again at exit, and print another error."""
    try:
        sys.stdout.flush()
    except OSError:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _import_bench() -> Any:
    """Import the command ``bench``, the only one that needs the package ``unirnn_bench``."""
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
app.command(no_args_is_help=True)(new_backend.new_backend)


@app.command("bench")
def _bench() -> None:
    """Measure the time of layers, and of what one would use without unirnn."""  # shown in the list of commands
