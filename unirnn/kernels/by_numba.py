"""The cells by numba: the steps of `by_numpy` as compiled loops.

A step of a small layer costs NumPy's calls more than what they compute. Here all steps of a run are one call. Their
products are those of a BLAS, which numba takes from SciPy.

The equations are those of `by_numpy`; what is kept of a step are the gates themselves. The loops are short and have few
arrays each, since a compiler looks at every pair of them before it turns a loop into operations on vectors. numba
compiles a function when it is first called, for each dtype, in a few seconds, and keeps the result on disk.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import njit, types
from numba.extending import overload
from numpy.typing import NDArray

from unirnn.kernels.directions import Direction, StepsBack, Weights
from unirnn.kernels.packing import Part, Run
from unirnn.kernels.products import pieces
from unirnn.specs import RecurrentSpec, RNNSpec

__all__ = ["CELLS", "compiled", "tanh"]

Array = NDArray[Any]
State = tuple[Array, ...]


def compiled(function: Callable[..., None]) -> Callable[..., None]:
    """Compile a function of arrays at its first call, and keep the result on disk."""
    # A product and a sum may be one operation; nothing else that could change a NaN, an infinity or an order.
    options: dict[str, Any] = {"error_model": "numpy", "fastmath": {"contract"}, "nogil": True}
    try:
        of_numba: Callable[..., None] = njit(cache=True, **options)(function)
    except RuntimeError:  # nothing can be written, neither beside this file nor in the user's cache
        of_numba = njit(**options)(function)
    return of_numba


# ---- what all cells share ------------------------------------------------------------------------


def tanh(x: Any) -> Any:
    """``tanh(x) = e / (e + 2)``, ``e = exp(2x) - 1``, within three units in the last place.

    With ``2x = k ln 2 + r``, ``exp(2x) - 1 = 2^k (exp(r) - 1) + (2^k - 1)``, and the series of ``exp(r) - 1`` is short.
    All of it is arithmetic, so a compiler turns it into operations on vectors, which it can't with a library's tanh.
    Where numba compiles nothing (``NUMBA_DISABLE_JIT``), it is NumPy's.
    """
    return np.tanh(x)


def _tanh_of(
    kind: Any, bits: Any, digits: int, bias: int, ln2: tuple[float, float], terms: int
) -> Callable[[Any], Any]:
    """`tanh` for a dtype whose mantissa has so many binary digits.

    ``ln2`` is ln 2 in two parts, the first with so few digits that k times it is exact.
    """
    largest, two, one, log2e = kind(40), kind(2), kind(1), kind(1 / math.log(2))
    high, low = kind(ln2[0]), kind(ln2[1])
    # Added to a number it rounds it, and leaves the integer in the last digits.
    rounder = kind(1.5 * 2**digits)
    offset = int(rounder.view(bits)) - bias
    series = tuple(kind(1 / math.factorial(k)) for k in range(terms, 0, -1))

    def tanh(x: Any) -> Any:
        y = min(max(x + x, -largest), largest)
        rounded = y * log2e + rounder
        k = rounded - rounder
        r = (y - k * high) - k * low
        total = series[0]
        for term in series[1:]:
            total = total * r + term
        power = bits((kind(rounded).view(bits) - offset) << digits).view(kind)
        e = power * (total * r) + (power - one)
        return e / (e + two)

    return tanh


@overload(tanh)
def _choose_tanh(x: Any) -> Any:
    if x == types.float32:
        return _tanh_of(np.float32, np.int32, 23, 127, (0.693359375, -2.12194440e-4), 7)
    return _tanh_of(np.float64, np.int64, 52, 1023, (6.93147180369123816490e-01, 1.90821492927058770002e-10), 13)


@compiled
def _add_product(a: Any, weight: Any, part: Any, product: Any, out: Any) -> None:
    """``out += a @ weight``, piece by piece.

    Parameters
    ----------
    a
        `(n, K)`.
    weight
        In pieces, `(K / k, O / o, k, o)`; see `products.pieces`.
    part, product
        `(n, k)` and `(n, o)`, to be overwritten.
    out
        `(n, O)`.
    """
    cuts, columns, inputs, outputs = weight.shape
    for cut in range(cuts):
        if cuts > 1:
            part[:] = a[:, cut * inputs : (cut + 1) * inputs]
        for column in range(columns):
            np.dot(a if cuts == 1 else part, weight[cut, column], product)
            for i in range(len(out)):
                to, of = out[i, column * outputs : (column + 1) * outputs], product[i]
                for j in range(outputs):
                    to[j] += of[j]


@compiled
def _sigmoid(a: Any, out: Any) -> None:
    half = a.dtype.type(0.5)
    for j in range(out.size):
        out[j] = half + half * tanh(half * a[j])


@compiled
def _add(a: Any, out: Any) -> None:
    for j in range(out.size):
        out[j] += a[j]


class _Product:
    """A weight `(K, O)` in pieces, and the memory that `_add_product` takes besides."""

    def __init__(self, weight: Array, batch_size: int) -> None:
        self.weight = pieces(weight, batch_size)
        _, _, inputs, outputs = self.weight.shape
        self._part, self._product = (np.empty(batch_size * width, weight.dtype) for width in (inputs, outputs))

    def of(self, rows: int) -> tuple[Array, Array, Array]:
        """For so many rows, what `_add_product` takes between its first argument and its last."""
        _, _, inputs, outputs = self.weight.shape
        part, product = self._part[: rows * inputs], self._product[: rows * outputs]
        return self.weight, part.reshape(rows, inputs), product.reshape(rows, outputs)


class _ByNumba(Direction):
    """Steps by two compiled functions, a run at a time; a subclass brings them, and what they take."""

    def _begin(self, runs: Sequence[Run]) -> None:
        weight = self._by_gate(self.weights.weight_hh).reshape(-1, self.size)
        self._product = _Product(weight.T, self.batch_size)

    def _begin_back(self, runs: Sequence[Run], longest: int) -> None:
        self._product_back = _Product(self.weights.weight_hh, self.batch_size)
        self._d_steps = np.empty(longest * self.size, self.dtype)

    def _order(self, steps: int, *, back: bool) -> tuple[int, int, int]:
        """The first step of a run, where to stop, and the way."""
        return (0, steps, 1) if back == self.backwards else (steps - 1, -1, -1)

    def _contiguous(self, d_steps: Array) -> Array:
        """A copy: for each other way in which a gradient may lie, numba would compile again."""
        copy = self._d_steps[: d_steps.size].reshape(d_steps.shape)
        copy[...] = d_steps
        return copy


# ---- RNN -----------------------------------------------------------------------------------------


class _RNN(_ByNumba):
    """``h' = act(x + W_hh h)``"""

    kept = 0
    forgets = True

    def __init__(self, spec: RecurrentSpec, weights: Weights, part: Part, *, backward: bool) -> None:
        super().__init__(spec, weights, part, backward=backward)
        self.is_relu = isinstance(spec, RNNSpec) and spec.nonlinearity == "relu"

    def _run(self, of_input: Array, flat: Array, state: State, outputs: Array) -> None:
        order = self._order(len(outputs), back=False)
        _rnn(of_input, *state, outputs, *self._product.of(len(state[0])), self.is_relu, order)

    def _run_back(self, back: StepsBack) -> None:
        product, order = self._product_back.of(back.run.alive), self._order(back.run.steps, back=True)
        d_steps = self._contiguous(back.d_outputs)
        _rnn_back(back.outputs, d_steps, *back.d_state, back.d_hidden, *product, self.is_relu, order)


@compiled
def _rnn(
    x: Any, h: Any, outputs: Any, weight: Any, part: Any, product: Any, is_relu: bool, order: tuple[int, int, int]
) -> None:
    zero = x.dtype.type(0)
    for s in range(order[0], order[1], order[2]):
        _add_product(h, weight, part, product, x[s])
        for i in range(len(h)):
            a, out = x[s, i], outputs[s, i]
            if is_relu:
                for j in range(out.size):
                    out[j] = zero if a[j] <= zero else a[j]  # so a NaN stays one
            else:
                for j in range(out.size):
                    out[j] = tanh(a[j])
            h[i] = out


@compiled
def _rnn_back(
    outputs: Any,
    d_steps: Any,
    dh: Any,
    d_hidden: Any,
    weight: Any,
    part: Any,
    product: Any,
    is_relu: bool,
    order: tuple[int, int, int],
) -> None:
    zero, one = dh.dtype.type(0), dh.dtype.type(1)
    for s in range(order[0], order[1], order[2]):
        for i in range(len(dh)):
            d, d_a, h = dh[i], d_hidden[s, i], outputs[s, i]
            _add(d_steps[s, i], d)
            if is_relu:
                for j in range(d.size):
                    d_a[j] = d[j] if h[j] > zero else d[j] * zero
            else:
                for j in range(d.size):
                    d_a[j] = d[j] * (one - h[j] * h[j])
            d[:] = zero
        _add_product(d_hidden[s], weight, part, product, dh)


# ---- GRU -----------------------------------------------------------------------------------------


class _GRU(_ByNumba):
    """``r, z = s(x + W h)    n = tanh(x_n + r * (W_hn h + b_hn))    h' = n + z * (h - n)``.

    Kept are r, z, n and ``W_hn h + b_hn``.
    """

    bias_with_product = (2,)
    kept = 4
    inputs_differ = True

    def _begin(self, runs: Sequence[Run]) -> None:
        super()._begin(runs)
        bias = self.weights.bias_hh
        self._bias_n = np.zeros(self.size, self.dtype) if bias is None else bias[2 * self.size :].copy()
        self._hidden = np.empty(self.batch_size * 3 * self.size, self.dtype)

    def _run(self, of_input: Array, flat: Array, state: State, outputs: Array) -> None:
        n = len(state[0])
        hidden = self._hidden[: n * 3 * self.size].reshape(n, 3 * self.size)
        order = self._order(len(outputs), back=False)
        _gru(of_input, *state, outputs, flat, *self._product.of(n), hidden, self._bias_n, order)

    def _run_back(self, back: StepsBack) -> None:
        product, order = self._product_back.of(back.run.alive), self._order(back.run.steps, back=True)
        d_steps = self._contiguous(back.d_outputs)
        _gru_back(back.blocks, *back.before, d_steps, *back.d_state, back.d_hidden, back.d_input, *product, order)


@compiled
def _gru(
    x: Any,
    h: Any,
    outputs: Any,
    kept: Any,
    weight: Any,
    part: Any,
    product: Any,
    hidden: Any,
    bias_n: Any,
    order: tuple[int, int, int],
) -> None:
    size = h.shape[1]
    for s in range(order[0], order[1], order[2]):
        for i in range(len(h)):
            hidden[i, : 2 * size] = x[s, i, : 2 * size]
            hidden[i, 2 * size :] = bias_n
        _add_product(h, weight, part, product, hidden)
        for i in range(len(h)):
            a, x_n, at = hidden[i], x[s, i, 2 * size :], slice(i * size, (i + 1) * size)
            r, z, n, hidden_n = kept[s, 0, at], kept[s, 1, at], kept[s, 2, at], kept[s, 3, at]
            out, before = outputs[s, i], h[i]
            _sigmoid(a[:size], r)
            _sigmoid(a[size : 2 * size], z)
            hidden_n[:] = a[2 * size :]
            for j in range(size):
                n[j] = tanh(x_n[j] + r[j] * hidden_n[j])
            for j in range(size):
                out[j] = n[j] + z[j] * (before[j] - n[j])
            before[:] = out


@compiled
def _gru_back(
    kept: Any,
    before: Any,
    d_steps: Any,
    dh: Any,
    d_hidden: Any,
    d_input: Any,
    weight: Any,
    part: Any,
    product: Any,
    order: tuple[int, int, int],
) -> None:
    size, one = dh.shape[1], dh.dtype.type(1)
    for s in range(order[0], order[1], order[2]):
        for i in range(len(dh)):
            at = slice(i * size, (i + 1) * size)
            r, z, n, hidden_n = kept[s, 0, at], kept[s, 1, at], kept[s, 2, at], kept[s, 3, at]
            d, h = dh[i], before[s, i]
            d_r, d_z, d_hidden_n = d_hidden[s, i, :size], d_hidden[s, i, size : 2 * size], d_hidden[s, i, 2 * size :]
            d_n = d_input[s, i, 2 * size :]
            _add(d_steps[s, i], d)
            for j in range(size):
                d_n[j] = d[j] * (one - z[j]) * (one - n[j] * n[j])
            for j in range(size):
                d_hidden_n[j] = d_n[j] * r[j]
            for j in range(size):
                d_r[j] = d_n[j] * hidden_n[j] * r[j] * (one - r[j])
            for j in range(size):
                d_z[j] = d[j] * (h[j] - n[j]) * z[j] * (one - z[j])
            for j in range(size):
                d[j] *= z[j]
            d_input[s, i, : 2 * size] = d_hidden[s, i, : 2 * size]
        _add_product(d_hidden[s], weight, part, product, dh)


# ---- LSTM ----------------------------------------------------------------------------------------


class _LSTM(_ByNumba):
    """``c' = f * c + i * g    h' = o * tanh(c')``.

    Kept are i, f, g, o and c'.
    """

    kept = 5

    def _run(self, of_input: Array, flat: Array, state: State, outputs: Array) -> None:
        order = self._order(len(outputs), back=False)
        _lstm(of_input, *state, outputs, flat, *self._product.of(len(state[0])), order)

    def _states(self, blocks: Array, outputs: Array) -> State:
        return outputs, blocks[:, 4]

    def _run_back(self, back: StepsBack) -> None:
        product, order = self._product_back.of(back.run.alive), self._order(back.run.steps, back=True)
        d_steps = self._contiguous(back.d_outputs)
        _lstm_back(back.blocks, back.before[1], d_steps, *back.d_state, back.d_hidden, *product, order)


@compiled
def _lstm(
    x: Any,
    h: Any,
    c: Any,
    outputs: Any,
    kept: Any,
    weight: Any,
    part: Any,
    product: Any,
    order: tuple[int, int, int],
) -> None:
    size = h.shape[1]
    for s in range(order[0], order[1], order[2]):
        _add_product(h, weight, part, product, x[s])
        for i in range(len(h)):
            a, out, at = x[s, i], outputs[s, i], slice(i * size, (i + 1) * size)
            i_, f, g, o = kept[s, 0, at], kept[s, 1, at], kept[s, 2, at], kept[s, 3, at]
            new_c, old_c, a_g = kept[s, 4, at], c[i], a[2 * size : 3 * size]
            _sigmoid(a[:size], i_)
            _sigmoid(a[size : 2 * size], f)
            for j in range(size):
                g[j] = tanh(a_g[j])
            _sigmoid(a[3 * size :], o)
            for j in range(size):
                new_c[j] = f[j] * old_c[j] + i_[j] * g[j]
            for j in range(size):
                out[j] = o[j] * tanh(new_c[j])
            h[i], c[i] = out, new_c


@compiled
def _lstm_back(
    kept: Any,
    before: Any,
    d_steps: Any,
    dh: Any,
    dc: Any,
    d_hidden: Any,
    weight: Any,
    part: Any,
    product: Any,
    order: tuple[int, int, int],
) -> None:
    size, one = dh.shape[1], dh.dtype.type(1)
    for s in range(order[0], order[1], order[2]):
        for i in range(len(dh)):
            at = slice(i * size, (i + 1) * size)
            i_, f, g, o, new_c = kept[s, 0, at], kept[s, 1, at], kept[s, 2, at], kept[s, 3, at], kept[s, 4, at]
            d, d_c, c, d_a = dh[i], dc[i], before[s, i], d_hidden[s, i]
            d_i, d_f, d_g, d_o = d_a[:size], d_a[size : 2 * size], d_a[2 * size : 3 * size], d_a[3 * size :]
            _add(d_steps[s, i], d)
            for j in range(size):
                d_o[j] = tanh(new_c[j])
            for j in range(size):
                d_c[j] += d[j] * o[j] * (one - d_o[j] * d_o[j])
            for j in range(size):
                d_o[j] *= d[j] * o[j] * (one - o[j])
            for j in range(size):
                d_i[j] = d_c[j] * g[j] * i_[j] * (one - i_[j])
            for j in range(size):
                d_g[j] = d_c[j] * i_[j] * (one - g[j] * g[j])
            for j in range(size):
                d_f[j] = d_c[j] * c[j] * f[j] * (one - f[j])
            for j in range(size):
                d_c[j] *= f[j]
            d[:] = dh.dtype.type(0)
        _add_product(d_hidden[s], weight, part, product, dh)


CELLS: dict[str, type[Direction]] = {"RNN": _RNN, "GRU": _GRU, "LSTM": _LSTM}
"""By `unirnn.Spec.kind`; torch's GRU, whose reset gate comes after the product."""
