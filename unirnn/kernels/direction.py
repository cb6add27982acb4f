"""What the kernels over NumPy's arrays are given: one layer in one direction, in contiguous memory."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirnn.reference import Weights
from unirnn.specs import RecurrentSpec

__all__ = ["Array", "Direction", "State", "contiguous"]

Array = NDArray[Any]
State = tuple[Array, ...]


def contiguous(array: Array, dtype: np.dtype[Any]) -> Array:
    """The array in C's order of memory, and in a dtype; itself, if it is."""
    flags = array.flags
    if array.dtype == dtype and flags.c_contiguous and flags.aligned:
        return array
    return np.require(array, dtype, ["C", "A"])


class Direction(NamedTuple):
    """One layer in one direction, and what it is called with; all in float32, or all in float64.

    Parameters
    ----------
    spec
        The layer; its sizes are taken from the arrays.
    weights
        Of this layer and direction, contiguous.
    reverse
        Whether it runs from the last valid step to the first.
    x
        `(T, B, I)`, the last axis contiguous.
    state
        The initial state, `(B, H)` each (`(B, proj_size)` for h), contiguous.
    lengths
        `(B,)`, checked; None if every step is valid.
    resets
        `(T, B)` bool, contiguous: whether a new sequence begins at a step; None if none does.
    """

    spec: RecurrentSpec
    weights: Weights
    reverse: bool
    x: Array
    state: State
    lengths: NDArray[np.int64] | None
    resets: NDArray[np.bool_] | None = None

    @property
    def hidden_size(self) -> int:
        """H; the size of h is less with a projection."""
        return len(self.weights.weight_hh) // len(self.spec.gates)

    def blank_gradients(self) -> Weights:
        """Arrays for the gradients of the weights; None where there is no bias or projection."""
        return Weights(*(None if w is None else np.empty(w.shape, w.dtype) for w in self.weights))
