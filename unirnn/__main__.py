"""The command ``unirnn``, also as ``python -m unirnn``."""

import sys

from unirnn.errors import BackendError
from unirnn.registry import import_optional

__all__ = ["main"]


def main() -> None:
    """Run the command; if typer or rich can't be imported, say what to do, and exit with 1."""
    try:
        for package in ("typer", "rich"):
            import_optional(package, "the command", "cli")
    except BackendError as error:
        sys.exit(f"unirnn: {error}")
    from unirnn.cli.app import app

    app()


if __name__ == "__main__":
    main()
