"""Tell who speaks in utterances of different lengths: a GRU and a linear head, trained in PyTorch, run in NumPy."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import unirnn
from unirnn.state import last_layer

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "japanese_vowels"))

import data

Array = NDArray[Any]


def logits(weights: dict[str, Array], x: Array, lengths: Array) -> Array:
    """`(B, T, 12)` and `(B,)` to `(B, 9)`."""
    spec = unirnn.GRUSpec(12, 64, batch_first=True, bidirectional=True)
    gru = unirnn.Snapshot(spec, {name: weights[f"gru.{name}"] for name in spec.weight_shapes()}).build("numpy")
    _, h_n = gru(x, seq_length=lengths)
    result: Array = last_layer(spec, h_n) @ weights["head.weight"].T + weights["head.bias"]
    return result


def main() -> Array:
    """Classify the test utterances, and return the logits."""
    with np.load(data.DATA.with_name("weights.npz")) as file:
        weights = dict(file)
    _, test = data.load()
    result = logits(weights, test.features, test.lengths)
    print(f"{np.mean(result.argmax(axis=1) == test.speakers):.1%} right")
    return result


if __name__ == "__main__":
    main()
