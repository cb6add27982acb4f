"""The command ``unirnn backends``."""

from typing import Any

from rich.text import Text

from unirnn import registry
from unirnn.errors import MissingBackendError
from unirnn.kernels import library

from .printing import AsJson, busy, new_table, print_json, print_parts, reason

__all__ = ["backends"]


def backends(as_json: AsJson = False) -> None:
    """Show the backends with their versions, devices and dtypes, and how to install those that are missing."""
    with busy("importing the backends"):
        entries = [_describe(name) for name in registry.backends()]
    if as_json:
        print_json(entries)
        return
    table = new_table("backend", "version", "devices", "dtypes")
    notes = []
    for entry in entries:
        version = Text(entry["version"] or "")
        if not entry["installed"]:
            version = Text("not installed", "yellow")
            notes.append((entry["backend"], f"to install it: {entry['install']}"))
        elif entry["error"]:
            version = Text("broken", "red")
            notes.append((entry["backend"], entry["error"]))
        table.add_row(entry["backend"], version, ", ".join(entry["devices"]), ", ".join(entry["dtypes"]))
    print_parts(table, *(f"{name}: {text}" for name, text in notes), _kernels())


def _kernels() -> str:
    """Say which compiled kernels are used on a CPU, or why there are none."""
    missing = library.why_not()
    compiled = None if missing else library.load()  # if the library is missing, load would also log the reason
    if compiled is None:
        return f"no compiled kernels: {missing}; NumPy computes, which is slower"
    return f"compiled kernels: {compiled.unirnn_isa().decode()}"


def _describe(name: str) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "backend": name,
        "installed": True,
        "version": None,
        "devices": [],
        "dtypes": [],
        "install": None,
        "error": None,
    }
    try:
        backend = registry.load(name)
        present = {
            "version": backend.version(),
            "devices": [str(device) for device in backend.devices()],
            "dtypes": list(backend.support.dtypes),
        }
    except MissingBackendError as error:
        return entry | {"installed": False, "install": registry.install_hint(name, error.name)}
    except Exception as error:  # any error of one backend must not stop the others
        return entry | {"error": reason(error)}
    return entry | present
