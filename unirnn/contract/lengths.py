"""The rules for ``seq_length`` and ``resets``, and the checks of what is given for them, for every backend.

The rule for ``seq_length``:

- one integer for each sequence, in any order: ``0 <= n <= T``; for an unbatched input, one integer;
- from step n on the output is exactly 0, in both directions and every layer;
- the forward final state is the state after step n-1; the reverse direction starts at step n-1, and its final state is
  the one after step 0; **for n = 0 both are the initial state**;
- the output keeps its T steps, whatever the longest n is;
- padding has no influence: what stands in steps t >= n changes no output, no state and no gradient.

The rule for ``resets``, one bool for each step:

- at a step where it is true, a new sequence begins, whose state before that step is zeros; no gradient passes;
- so a column of the batch is several sequences, one after another: the first begins from the initial state (unless its
  step 0 is a reset), the others from zeros, and the final state is that of the last one;
- the reverse direction reads each of them from its own end to its own beginning. So it begins with the last one, from
  the initial state, and the final state is the one after step 0;
- what stands in the padding has no influence.

`parse_lengths` and `parse_resets` read the values on the host. `check_lengths` and `check_resets` look only at shape
and dtype, for arrays whose values can't be read there. Nothing here computes a layer: `unirnn.reference.lengths` has
the masks and the order of steps by which the reference keeps the rule for lengths, `unirnn.reference.layers` keeps the
one for resets step by step, and `unirnn.contract.sequences` parts a batch at its resets.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirnn.errors import ArgumentError, DTypeError, LengthError, ShapeError

from .arrays import as_plain, type_name

__all__ = ["Sizes", "check_lengths", "check_resets", "parse_lengths", "parse_resets"]


class Sizes(NamedTuple):
    """T and B of a call; B is None for an unbatched input."""

    steps: int
    batch_size: int | None


def check_lengths(shape: tuple[int, ...], dtype: str, sizes: Sizes) -> None:
    """Check the shape and the dtype of ``seq_length``, without looking at its values.

    Parameters
    ----------
    shape, dtype
        Its shape, and its dtype's name.
    sizes
        T and B of the call.

    Raises
    ------
    ShapeError
        If it is not one integer for each sequence.
    DTypeError
        If it does not hold integers.
    """
    if not dtype.startswith(("int", "uint")):
        raise DTypeError(f"seq_length: given dtype {dtype}, expected integers")
    expected = () if sizes.batch_size is None else (sizes.batch_size,)
    if shape != expected:
        raise ShapeError(
            f"seq_length: given shape {shape}, expected {expected}, "
            + ("one integer for each sequence" if expected else "one integer for an unbatched input")
        )


def parse_lengths(seq_length: Any, sizes: Sizes) -> NDArray[np.int64]:
    """Check ``seq_length`` and make it one int64 array.

    Parameters
    ----------
    seq_length
        Integers as a list, a tuple, or anything that NumPy reads; one integer for an unbatched input.
    sizes
        T and B of the call.

    Returns
    -------
    numpy.ndarray
        `(B,)`, or `(1,)` for an unbatched input.

    Raises
    ------
    ShapeError
        If it is not one integer for each sequence.
    DTypeError
        If it does not hold integers.
    LengthError
        If a value is below 0 or above T; the message names its position.
    """
    values = _read_values("seq_length", seq_length, "integers")
    # An empty list is an array of floats. Getting a dtype's name, and NumPy's min and max, are slow for small batches.
    is_integer = values.dtype.kind in "iu" or not values.size
    check_lengths(values.shape, "int64" if is_integer else values.dtype.name, sizes)
    values = values.reshape(-1)
    numbers = values.tolist()
    if numbers and (min(numbers) < 0 or max(numbers) > sizes.steps):
        position = next(i for i, n in enumerate(numbers) if not 0 <= n <= sizes.steps)
        raise LengthError(
            f"seq_length[{position}]: given {numbers[position]}, "
            f"expected 0 <= n <= {sizes.steps}, the number of time steps"
        )
    return values.astype(np.int64)


def _read_values(argument: str, given: Any, expected: str) -> NDArray[Any]:
    """A NumPy array of lengths or resets; a DTypeError if NumPy can't read them."""
    try:
        return as_plain(argument, given)
    except ArgumentError:
        raise
    except Exception as error:  # whatever an array of some framework raises
        raise DTypeError(f"{argument}: given {type_name(type(given))}, expected {expected} ({error})") from None


def check_resets(shape: tuple[int, ...], dtype: str, sizes: Sizes, batch_first: bool) -> None:
    """Check the shape and the dtype of ``resets``, without looking at its values.

    Parameters
    ----------
    shape, dtype
        Its shape, and its dtype's name.
    sizes
        T and B of the call.
    batch_first
        Whether its shape is `(B, T)`.

    Raises
    ------
    ShapeError
        If it is not one bool for each step.
    DTypeError
        If it does not hold bools.
    """
    if dtype != "bool":
        raise DTypeError(f"resets: given dtype {dtype}, expected bool; cast it")
    steps, batch_size = sizes
    expected: tuple[int | None, ...]
    if batch_size is None:
        layout, expected = "(T,) for an unbatched input", (steps,)
    elif batch_first:
        layout, expected = "(B, T)", (batch_size, steps)
    else:
        layout, expected = "(T, B)", (steps, batch_size)
    if shape != expected:
        raise ShapeError(f"resets: given shape {shape}, expected {expected}, {layout}: one bool for each step")


def parse_resets(resets: Any, sizes: Sizes, batch_first: bool) -> NDArray[np.bool_] | None:
    """Check ``resets`` and make it one array of bools.

    Parameters
    ----------
    resets
        Bools in lists or tuples, or anything that NumPy reads: `(T, B)`, `(B, T)` if ``batch_first``, or `(T,)`.
    sizes
        T and B of the call.
    batch_first
        Whether it is `(B, T)`.

    Returns
    -------
    numpy.ndarray or None
        `(T, B)`; `(T, 1)` for an unbatched input. None if no step is a reset.

    Raises
    ------
    ShapeError
        If it is not one bool for each step.
    DTypeError
        If it does not hold bools.
    """
    values = _read_values("resets", resets, "bools")
    # An empty list is an array of floats.
    check_resets(values.shape, values.dtype.name if values.size else "bool", sizes, batch_first)
    if not values.any():
        return None
    if sizes.batch_size is None:
        values = values[:, None]
    elif batch_first:
        values = values.T
    return np.array(values, order="C")
