"""The file of the weights that were trained in PyTorch, and of its logits for the test utterances."""

from pathlib import Path
from typing import Any

import numpy as np
from model import MODEL
from numpy.typing import NDArray

import unirnn

__all__ = ["PATH", "load", "save"]

PATH = Path(__file__).with_name("weights.npz")


def save(trained: unirnn.Snapshot, logits: NDArray[Any]) -> None:
    """Write trained weights, and the logits `(B, 9)` that they gave in PyTorch."""
    np.savez_compressed(PATH, test_logits=logits, **trained.weights)


def load() -> tuple[unirnn.Snapshot, NDArray[np.float32]]:
    """Read what `save` wrote."""
    with np.load(PATH) as file:
        return unirnn.Snapshot(MODEL, {name: file[name] for name in MODEL.weight_shapes()}), file["test_logits"]
