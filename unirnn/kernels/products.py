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

__all__ = ["ByGate", "SumOfGates", "pieces"]

Array = NDArray[Any]

_SMALL = 2**19
"""How many multiplications a piece has, at most."""
_NARROWEST = 32
"""How many columns a piece has, at least."""
_WIDEST, _ROWS = 64, 16
"""How many it has at most where it has more than so many rows, and so is gone through more than once."""


def _columns(rows: int, inputs: int, outputs: int) -> int:
    """The columns of a piece: as many as divide all and keep it small; all, if it would be too narrow."""
    widest = min(outputs, _WIDEST) if rows > _ROWS else outputs
    fitting = (n for n in range(widest, _NARROWEST - 1, -1) if outputs % n == 0 and rows * inputs * n <= _SMALL)
    return next(fitting, outputs)


def pieces(weight: Array, batch_size: int) -> Array:
    """A copy of `(K, O)` in pieces `(K / k, O / o, k, o)`, for up to ``batch_size`` rows.

    K is cut too, but not below 64, if no piece would be small otherwise.
    """
    inputs, outputs = weight.shape
    fitting = (k for k in range(inputs, 63, -1) if inputs % k == 0 and batch_size * k * _NARROWEST <= _SMALL)
    taken = next(fitting, inputs)
    columns = _columns(batch_size, taken, outputs)
    blocks = weight.reshape(inputs // taken, taken, outputs // columns, columns)
    return blocks.swapaxes(1, 2).copy()


class _Pieces:
    """Weights `(gates, I, O)` in blocks of columns, for up to ``batch_size`` rows."""

    def __init__(self, weight: Array, batch_size: int) -> None:
        gates, inputs, self.outputs = weight.shape
        self.columns = _columns(batch_size, inputs, self.outputs)
        blocks = weight.reshape(gates, inputs, self.outputs // self.columns, self.columns)
        self.weight = np.ascontiguousarray(blocks.swapaxes(1, 2))

    def of(self, products: Array) -> Array:
        """`(gates, n, O)` by pieces, `(gates, pieces, n, columns)`, a view."""
        gates, rows, _ = products.shape
        return products.reshape(gates, rows, self.outputs // self.columns, self.columns).swapaxes(1, 2)


class ByGate:
    """``h @ weight[gate]`` for each gate.

    Parameters
    ----------
    weight
        `(gates, I, O)`.
    batch_size
        B, the most rows that h has.
    """

    def __init__(self, weight: Array, batch_size: int) -> None:
        gates, inputs, outputs = weight.shape
        self._row: Any = None
        self._pieces = None
        if batch_size == 1:
            self._row = np.ascontiguousarray(weight.swapaxes(0, 1)).reshape(inputs, gates * outputs)
        else:
            self._pieces = _Pieces(weight, batch_size)

    def into(self, products: Array) -> Callable[[Array], object]:
        """What takes h, `(n, I)`, and leaves the products in `(gates, n, O)`."""
        if self._pieces is None:
            row, flat = self._row, products.reshape(1, -1)
            return lambda h: np.dot(h, row, out=flat)
        weight, by_pieces = self._pieces.weight, self._pieces.of(products)
        return lambda h: np.matmul(h, weight, out=by_pieces)


class SumOfGates:
    """``sum(d[gate] @ weight[gate] for each gate)``.

    Parameters
    ----------
    weight
        `(gates, I, O)`.
    batch_size
        B, the most rows that d has.
    """

    def __init__(self, weight: Array, batch_size: int) -> None:
        self._column: Any = None
        self._pieces = None
        if batch_size == 1:
            self._column = weight.reshape(-1, weight.shape[2])
        else:
            self._pieces = _Pieces(weight, batch_size)
            self._products = np.empty(weight.shape[0] * batch_size * weight.shape[2], weight.dtype)
            self._gates = weight.shape[0]

    def of(self, rows: int) -> Callable[[Array, Array], object]:
        """What takes d, `(gates, n, I)`, and leaves the sum in `(n, O)`, one piece of memory."""
        if self._pieces is None:
            column = self._column
            return lambda d, out: np.dot(d.reshape(1, -1), column, out=out)
        shape = self._gates, rows, self._pieces.outputs
        products = self._products[: self._gates * rows * self._pieces.outputs].reshape(shape)
        weight, by_pieces = self._pieces.weight, self._pieces.of(products)

        def multiply(d: Array, out: Array) -> None:
            np.matmul(d[:, None], weight, out=by_pieces)
            np.add.reduce(products, axis=0, out=out)

        return multiply
