"""The frameworks that are installed: their training loops, and predictions in any of them."""

import importlib
import os
from collections.abc import Iterable
from typing import Any

from data import Utterances
from numpy.typing import NDArray
from rich.console import Console

import unirnn
from unirnn import registry
from unirnn.errors import MissingBackendError

__all__ = ["TITLES", "installed", "logits", "loop"]

TITLES = {"numpy": "NumPy", "torch": "PyTorch", "mindspore": "MindSpore", "onnxruntime": "ONNX Runtime"}


def installed(names: Iterable[str], console: Console) -> list[str]:
    """Leave out those that are not installed; print which, and how to install them."""
    # MindSpore warns at length of each kind of device that this machine lacks.
    os.environ.setdefault("GLOG_v", "3")
    found = []
    for name in names:
        try:
            registry.load(name)
        except MissingBackendError as error:
            # No markup: the brackets in 'unirnn[torch]' belong to the command.
            left_out = f"Left out: {TITLES[name]}. {error}"
            console.print(left_out, style="yellow", markup=False, highlight=False, soft_wrap=True)
        else:
            found.append(name)
    return found


def loop(framework: str) -> Any:
    """The module with the training loop of a framework."""
    return importlib.import_module(f"{framework}_loop")


def logits(trained: unirnn.Snapshot, framework: str, utterances: Utterances) -> NDArray[Any]:
    """Build a model in a framework, wherever it was trained, and return the logits `(B, 9)`."""
    net = trained.build(framework)
    features = registry.load(framework).from_numpy(utterances.features, net)
    return registry.to_numpy(net(features, seq_length=utterances.lengths))
