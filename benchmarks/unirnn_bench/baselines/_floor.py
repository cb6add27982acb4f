"""The baseline ``floor``: only the matrix products of a row, with the arrays of any framework."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn_bench.work import Work

__all__ = ["floor"]


def floor(
    work: Work, array: Callable[[NDArray[Any]], Any], multiply: Callable[[Any, Any, Any], object]
) -> Callable[[], object]:
    """Prepare the matrix products of a row, over its valid steps only.

    For each layer and direction, these are one product of the input and its weight, and at each step one product of the
    state and the recurrent weight. A backward pass adds one more product at each step, and one each for the gradients
    of the input and of the two weights.

    Parameters
    ----------
    work
        The work of the row.
    array
        A function that makes an array of the framework from a NumPy array.
    multiply
        ``multiply(a, b, out)`` multiplies two matrices; it need not use ``out``.
    """
    active, hidden_size = work.active, work.spec.hidden_size
    rows = sum(active)
    slices = [slice(end - n, end) for n, end in zip(active, itertools.accumulate(active), strict=True)]
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return array(rng.standard_normal(shape, np.float32))

    products: list[tuple[Any, Any, Any]] = []
    shapes = work.spec.weight_shapes()
    for suffix in work.spec.suffixes():
        gates, width = shapes["weight_ih" + suffix]
        x, h, d = normal(rows, width), normal(rows, hidden_size), normal(rows, gates)
        h_t, w_hh_t, w_ih_t = normal(max(active), hidden_size), normal(hidden_size, gates), normal(width, gates)
        gates_t = normal(max(active), gates)
        products.append((x, w_ih_t, normal(rows, gates)))
        products += [(h_t[:n], w_hh_t, gates_t[:n]) for n in active]
        if work.d_output is not None:
            w_hh, w_ih = normal(gates, hidden_size), normal(gates, width)
            products += [(d[at], w_hh, h_t[:n]) for n, at in zip(active, slices, strict=True)]
            products.append((d, w_ih, normal(rows, width)))
            products += [(d.T, x, normal(gates, width)), (d.T, h, normal(gates, hidden_size))]

    def run() -> None:
        for a, b, out in products:
            multiply(a, b, out)

    return run
