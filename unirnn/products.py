"""The products of one step with the weights of all gates: small, many, and most of what a layer costs.

They are cut into pieces. OpenBLAS, which NumPy's wheels bring, multiplies small matrices without rearranging them
first, on processors with AVX-512 up to about a million multiplications, and is up to four times as fast there as just
beyond, and up to twice as fast as MKL; elsewhere the pieces cost little. So the weight of a gate stands in blocks of
columns, ``(gates, pieces, I, columns)``, and a product of a step is one batched product. One row alone has no use
for pieces: there all gates are one product of a vector.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["by_gate", "sum_of_gates"]

Array = NDArray[Any]

_SMALL = 2**19
"""How many multiplications a piece has, at most."""
_NARROWEST = 32
"""How many columns a piece has, at least."""


def _columns(rows: int, inputs: int, outputs: int) -> int:
    """The columns of a piece: as many as divide all and keep it small; all, if it would be too narrow."""
    fitting = (n for n in range(outputs, _NARROWEST - 1, -1) if outputs % n == 0 and rows * inputs * n <= _SMALL)
    return next(fitting, outputs)


class _Pieces:
    """Weights `(gates, I, O)` in blocks of columns, for up to ``batch_size`` rows."""

    def __init__(self, weight: Array, batch_size: int) -> None:
        gates, inputs, outputs = weight.shape
        self.shape = gates, outputs
        self.columns = _columns(batch_size, inputs, outputs)
        blocks = weight.reshape(gates, inputs, outputs // self.columns, self.columns)
        self.weight = np.ascontiguousarray(blocks.swapaxes(1, 2))
        self._space = np.empty(gates * batch_size * outputs, weight.dtype)

    def space(self, rows: int) -> tuple[Array, Array]:
        """Where products go: `(gates, rows, O)`, one piece of memory, and the same by pieces."""
        gates, outputs = self.shape
        out = self._space[: gates * rows * outputs].reshape(gates, rows, outputs)
        return out, out.reshape(gates, rows, -1, self.columns).swapaxes(1, 2)


def by_gate(weight: Array, batch_size: int) -> Callable[[int], tuple[Array, Callable[[Array], object]]]:
    """``h @ weight[gate]`` for each gate.

    Parameters
    ----------
    weight
        `(gates, I, O)`.
    batch_size
        B, the most rows that h has.

    Returns
    -------
    callable
        For a number of rows n: where the products are left, `(gates, n, O)`, one piece of memory, and what takes h,
        `(n, I)`, and makes them.
    """
    gates, inputs, outputs = weight.shape
    if batch_size == 1:
        row = np.ascontiguousarray(weight.swapaxes(0, 1)).reshape(inputs, gates * outputs)
        out = np.empty((gates, 1, outputs), weight.dtype)
        flat = out.reshape(1, -1)
        return lambda rows: (out, lambda h: np.dot(h, row, out=flat))
    pieces = _Pieces(weight, batch_size)

    def of(rows: int) -> tuple[Array, Callable[[Array], object]]:
        out, by_pieces = pieces.space(rows)
        return out, lambda h: np.matmul(h, pieces.weight, out=by_pieces)

    return of


def sum_of_gates(weight: Array, batch_size: int) -> Callable[[int], Callable[[Array, Array], object]]:
    """``sum(d[gate] @ weight[gate] for each gate)``.

    Parameters
    ----------
    weight
        `(gates, I, O)`.
    batch_size
        B, the most rows that d has.

    Returns
    -------
    callable
        For a number of rows n: what takes d, `(gates, n, I)`, one piece of memory, and leaves the sum in `(n, O)`.
    """
    if batch_size == 1:
        column = weight.reshape(-1, weight.shape[2])
        return lambda rows: lambda d, out: np.dot(d.reshape(1, -1), column, out=out)
    pieces = _Pieces(weight, batch_size)

    def of(rows: int) -> Callable[[Array, Array], object]:
        products, by_pieces = pieces.space(rows)

        def multiply(d: Array, out: Array) -> None:
            np.matmul(d[:, None], pieces.weight, out=by_pieces)
            np.add.reduce(products, axis=0, out=out)

        return multiply

    return of
