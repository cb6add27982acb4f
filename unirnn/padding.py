"""Batches that are padded on the left, and masks: how to get from them to ``seq_length`` and padding on the right.

The tensors stay those of their framework, on their device, and gradients flow through.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn import registry, state
from unirnn.contract.lengths import Sizes, parse_lengths
from unirnn.errors import ArgumentError, DTypeError, ShapeError

__all__ = ["left_to_right", "lengths_of", "right_to_left"]


def lengths_of(mask: Any) -> NDArray[np.int64]:
    """The lengths of the sequences of a batch, from a mask whose ones are the valid steps.

    Parameters
    ----------
    mask
        `(B, T)` bool, or integers 0 and 1: in each row ones and then zeros, as tokenizers give it as
        ``attention_mask``. Of NumPy, or of the framework of a backend.

    Returns
    -------
    numpy.ndarray
        `(B,)` int64, which is a ``seq_length``.

    Raises
    ------
    ShapeError, DTypeError
        If it is not `(B, T)`, or neither of bools nor of integers.
    ArgumentError
        If a number is neither 0 nor 1, or a row has a one after a zero; the message shows the first such row.

    Examples
    --------
    >>> import unirnn
    >>> unirnn.lengths_of([[1, 1, 0], [1, 1, 1], [0, 0, 0]])
    array([2, 3, 0])
    """
    try:
        given = registry.to_numpy(mask)
    except ValueError as error:  # rows of several lengths
        raise ShapeError(f"mask: given rows of several lengths, expected (B, T) ({error})") from None
    if given.ndim != 2:
        raise ShapeError(f"mask: given shape {given.shape}, expected (B, T), one row for each sequence")
    if given.dtype.kind not in "biu":
        raise DTypeError(f"mask: given dtype {given.dtype}, expected bool, or integers 0 and 1")
    valid = given.astype(bool)
    wrong = np.argwhere(given != valid)
    if len(wrong):
        row, step = wrong[0]
        raise ArgumentError(f"mask[{row}, {step}]: given {given[row, step]}, expected 0 or 1")
    found: NDArray[np.int64] = valid.sum(axis=1, dtype=np.int64)
    is_padded_right = (valid == (np.arange(valid.shape[1]) < found[:, None])).all(axis=1)
    if not is_padded_right.all():
        row = int(np.argmin(is_padded_right))
        raise ArgumentError(f"mask[{row}]: given {_shown(given[row])}, expected ones and then zeros{_advice(valid)}")
    return found


def _shown(row: NDArray[Any]) -> str:
    """A row of a mask, shortened."""
    return str(row.astype(int).tolist() if len(row) <= 32 else f"[{', '.join(map(str, row[:32].astype(int)))}, ...]")


def _advice(valid: NDArray[np.bool_]) -> str:
    """What to do if the padding is on the left in all rows."""
    steps = valid.shape[1]
    if not (valid == (np.arange(steps) >= steps - valid.sum(axis=1)[:, None])).all():
        return ""
    return (
        "; if the batch is padded on the left, its lengths are mask.sum(1), and unirnn.left_to_right(x, lengths, "
        "batch_first=...) moves its steps; if the ones are the padding, invert the mask"
    )


def left_to_right(x: Any, seq_length: Any, *, batch_first: bool) -> Any:
    """Move the steps of a batch that is padded on the left, so that it is padded on the right.

    Parameters
    ----------
    x
        `(T, B, ...)`, or `(B, T, ...)` with ``batch_first``; an array of NumPy or of the framework of a backend.
    seq_length
        `(B,)` integers, ``0 <= n <= T``: of each sequence the last n steps are valid.
    batch_first
        Whether the batch is the first axis. It has no default: if T equals B, a wrong one would go unnoticed.

    Returns
    -------
    array
        As ``x``: each sequence begins at step 0, and its padding follows. Gradients flow through.

    Raises
    ------
    ArgumentError
        If x is not an array, or not of a framework that is in use.
    ShapeError, DTypeError, LengthError
        If the array has no two axes, or the lengths are not one integer for each sequence, from 0 to T.

    Examples
    --------
    >>> import numpy, unirnn
    >>> unirnn.left_to_right(numpy.array([[0, 0, 1, 2], [3, 4, 5, 6]]), [2, 4], batch_first=True)
    array([[1, 2, 0, 0],
           [3, 4, 5, 6]])
    """
    return _rotate(x, seq_length, batch_first, -1)


def right_to_left(x: Any, seq_length: Any, *, batch_first: bool) -> Any:
    """Undo `left_to_right`: move the steps of a batch that is padded on the right, so that it is padded on the left.

    Parameters
    ----------
    x, seq_length, batch_first
        As in `left_to_right`, where of each sequence the first n steps are valid: an output, for example.

    Returns
    -------
    array
        As ``x``: each sequence ends at the last step, and its padding comes before. Gradients flow through.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError, LengthError
        As `left_to_right`.

    Examples
    --------
    >>> import numpy, unirnn
    >>> unirnn.right_to_left(numpy.array([[1, 2, 0, 0], [3, 4, 5, 6]]), [2, 4], batch_first=True)
    array([[0, 0, 1, 2],
           [3, 4, 5, 6]])
    """
    return _rotate(x, seq_length, batch_first, 1)


def _rotate(x: Any, seq_length: Any, batch_first: bool, by: int) -> Any:
    """Move the steps of each sequence around, by the number of steps that are padding, so that none is lost."""
    if not isinstance(batch_first, bool):
        raise ArgumentError(f"batch_first: given {batch_first!r}, expected True or False")
    if not hasattr(x, "shape"):
        raise ArgumentError(f"x: given {type(x).__name__}, expected an array")
    shape = tuple(x.shape)
    if len(shape) < 2:
        raise ShapeError(f"x: given shape {shape}, expected {'(B, T, ...)' if batch_first else '(T, B, ...)'}")
    batch_size, steps = shape[:2] if batch_first else shape[1::-1]
    counts = parse_lengths(registry.to_numpy(seq_length), Sizes(steps, batch_size))
    if not math.prod(shape):
        return x
    rows, step = np.arange(batch_size)[:, None], np.arange(steps)
    source = (step - by * (steps - counts[:, None])) % steps
    index = rows * steps + source if batch_first else (source * batch_size + rows).T
    # One axis for all steps of all sequences, from which `select` takes as it does from the states of a batch.
    moved = state.select(_reshaped(x, (1, batch_size * steps, math.prod(shape[2:]))), index.reshape(-1))
    return _reshaped(moved, shape)


def _reshaped(x: Any, shape: tuple[int, ...]) -> Any:
    """An array in another shape: by the function of the array API standard, or by the method, where it has none."""
    get = getattr(x, "__array_namespace__", None)
    return x.reshape(shape) if get is None else get().reshape(x, shape)
