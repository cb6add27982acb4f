"""The loops of the frameworks that are installed."""

import importlib
import os
from collections.abc import Iterable
from types import ModuleType

from rich.console import Console

from unirnn import registry
from unirnn.errors import MissingBackendError

__all__ = ["TITLES", "installed"]

TITLES = {"numpy": "NumPy", "torch": "PyTorch", "mindspore": "MindSpore"}


def installed(names: Iterable[str], console: Console) -> dict[str, ModuleType]:
    """Import the loops of some frameworks; print which are not installed, and how to install them."""
    # MindSpore warns at length of each kind of device that this machine lacks.
    os.environ.setdefault("GLOG_v", "3")
    loops = {}
    for name in names:
        try:
            registry.load(name)
        except MissingBackendError as error:
            # No markup: the brackets in 'unirnn[torch]' belong to the command.
            left_out = f"Left out: {TITLES[name]}. {error}"
            console.print(left_out, style="yellow", markup=False, highlight=False, soft_wrap=True)
        else:
            loops[name] = importlib.import_module(f"{name}_loop")
    return loops
