"""The command ``unirnn``, also as ``python -m unirnn``."""

import sys

from unirnn.registry import install_hint

__all__ = ["main"]


def main() -> None:
    """Run the command; if typer or rich is not installed, say how to install them, and exit with 1."""
    try:
        from unirnn.cli.app import app
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("typer", "rich"):
            raise
        sys.exit(f"unirnn: the command needs {missing}, which is not installed; to install it: {install_hint('cli')}")
    app()


if __name__ == "__main__":
    main()
