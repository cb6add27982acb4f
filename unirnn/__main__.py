"""The command ``unirnn``, also as ``python -m unirnn``."""

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command; if what it is made of is not installed, say what installs it, and exit with 1."""
    try:
        from unirnn.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        sys.exit(
            f"unirnn: the command needs {error.name}, which is not installed; "
            "to install it: python -m pip install 'unirnn[cli]'"
        )
    app()


if __name__ == "__main__":
    main()
