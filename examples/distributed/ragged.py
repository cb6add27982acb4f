"""The sequences that the scripts learn from. They have different lengths, and are the same in every process."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["SIZE", "sequences"]

SIZE = 16  # Ascend's GRU takes hidden sizes that are multiples of 16
LENGTHS = [12, 0, 9, 3, 7, 1, 12]


def sequences() -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.float32]]:
    """Make the inputs, their lengths, and the targets: at each step, the input of the step before.

    Returns
    -------
    x
        `(T, B, 16)`, time first.
    lengths
        `(B,)`; one of them is 0.
    targets
        `(T, B, 16)`; zero in the padding, like the output of a layer.
    """
    lengths = np.array(LENGTHS)
    shape = (lengths.max(), len(lengths), SIZE)
    x = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
    targets = np.zeros_like(x)
    targets[1:] = x[:-1]
    targets[np.arange(shape[0])[:, None] >= lengths] = 0
    return x, lengths, targets
