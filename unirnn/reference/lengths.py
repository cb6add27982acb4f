"""Lengths on the reference path: which steps are valid, and how a sequence is read in the reverse direction.

Padding is kept out by selection, never by multiplication with a mask: 0 * NaN is NaN, in the gradient too. The input is
cleaned before anything is computed from it, so nothing after it can meet a NaN of the padding.

What ``seq_length`` means, and the checks of what a caller gives, are in `unirnn.contract.lengths`. Lengths have been
checked when they come here.
"""

from typing import Any

__all__ = ["Lengths", "device_of", "last_valid", "turn"]

Array = Any


class Lengths:
    """The lengths of one batch, and arrays that follow from them.

    Parameters
    ----------
    xp
        The namespace.
    lengths
        `(B,)` integers, 0 <= n <= T.
    steps
        T.

    Attributes
    ----------
    values
        `(B,)`, the lengths as given.
    valid
        `(T, B)` bool: ``t < n``.
    has_begun
        `(B,)` bool: ``n > 0``.
    last
        `(B,)` int: the row of step n-1 in the flattened `(T*B,)` order; for n = 0, some row.
    """

    def __init__(self, xp: Any, lengths: Array, steps: int) -> None:
        batch_size = lengths.shape[0]
        kind = {"dtype": lengths.dtype, "device": device_of(lengths)}
        self._step = xp.arange(steps, **kind)[:, None]
        self._row = xp.arange(batch_size, **kind)
        self._reversal: Array = None
        self.values = lengths
        self.valid = self._step < lengths
        self.has_begun = lengths > 0
        self.last = xp.where(self.has_begun, lengths - 1, 0) * batch_size + self._row

    def select(self, xp: Any, array: Array) -> Array:
        """`(T, B, F)` with exact zeros in the padding."""
        return xp.where(self.valid[..., None], array, xp.zeros_like(array))

    def begun(self, xp: Any, array: Array) -> Array:
        """`(B, H)` with exact zeros where n = 0."""
        return xp.where(self.has_begun[:, None], array, xp.zeros_like(array))

    def reverse(self, xp: Any, array: Array) -> Array:
        """`(T, B, F)` with each sequence's valid steps in the opposite order."""
        if self._reversal is None:
            # `(T*B,)`: the row of step t of the reversed sequence, in the flattened order. Padding is not moved, so
            # this is its own inverse.
            step = xp.where(self.valid, self.values - 1 - self._step, self._step)
            self._reversal = xp.reshape(step * self.values.shape[0] + self._row, (-1,))
        return xp.reshape(xp.take(_flat(xp, array), self._reversal, axis=0), array.shape)


def device_of(array: Array) -> Any:
    """The array's device, as the namespace takes it."""
    # NumPy 1's arrays have no device, and its namespace takes None for it.
    return getattr(array, "device", None)


def _flat(xp: Any, array: Array) -> Array:
    return xp.reshape(array, (array.shape[0] * array.shape[1], array.shape[2]))


def last_valid(xp: Any, steps: Array, initial: Array, lengths: Lengths) -> Array:
    """The state after step n-1, or the initial state where n = 0.

    Parameters
    ----------
    steps
        `(T, B, H)`, the state after each step.
    initial
        `(B, H)`.
    """
    after = xp.take(_flat(xp, steps), lengths.last, axis=0)
    return xp.where(lengths.has_begun[:, None], after, initial)


def turn(xp: Any, x: Array, lengths: Lengths | None) -> Array:
    """`(T, B, F)` with each sequence's valid steps in the opposite order."""
    return xp.flip(x, axis=0) if lengths is None else lengths.reverse(xp, x)
