"""Tell who speaks in utterances of different lengths: a GRU and a linear head, trained in PyTorch, run in NumPy."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "japanese_vowels"))

import data

Array = NDArray[Any]


def sigmoid(x: Array) -> Array:
    """The logistic function."""
    result: Array = 1 / (1 + np.exp(-x))
    return result


def last_state(weights: dict[str, Array], x: Array, lengths: Array, reverse: bool) -> Array:
    """Run one direction of the GRU, step by step: `(B, T, 12)` and `(B,)` to `(B, 64)`."""
    suffix = "_reverse" if reverse else ""
    weight_ih, weight_hh = weights[f"gru.weight_ih_l0{suffix}"], weights[f"gru.weight_hh_l0{suffix}"]
    bias_ih, bias_hh = weights[f"gru.bias_ih_l0{suffix}"], weights[f"gru.bias_hh_l0{suffix}"]
    h = np.zeros((len(x), 64), np.float32)
    steps = range(x.shape[1])
    for t in reversed(steps) if reverse else steps:
        i_r, i_z, i_n = np.split(x[:, t] @ weight_ih.T + bias_ih, 3, axis=1)
        h_r, h_z, h_n = np.split(h @ weight_hh.T + bias_hh, 3, axis=1)
        r, z = sigmoid(i_r + h_r), sigmoid(i_z + h_z)
        n = np.tanh(i_n + r * h_n)
        valid = (t < lengths)[:, None]
        h = np.where(valid, (1 - z) * n + z * h, h)
    return h


def logits(weights: dict[str, Array], x: Array, lengths: Array) -> Array:
    """`(B, T, 12)` and `(B,)` to `(B, 9)`."""
    h_n = [last_state(weights, x, lengths, reverse) for reverse in (False, True)]
    result: Array = np.concatenate(h_n, axis=1) @ weights["head.weight"].T + weights["head.bias"]
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
