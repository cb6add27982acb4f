"""The kernels by NumPy, for where the compiled ones can't be had: slower, with the same results and gradients.

It goes step by step over the sequences that have the step, so the padding is never read.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from unirnn.reference import Weights
from unirnn.specs import GRUSpec, RecurrentSpec, RNNSpec

from .direction import Array, Direction, State

__all__ = ["backward", "forward"]


class _Step(NamedTuple):
    """What a step back needs of a step forward: see `_Cell`."""

    before: State
    after: State
    gates: tuple[Array, ...]


class _Cell(NamedTuple):
    """A cell: a step forward and a step back.

    Parameters
    ----------
    forward
        ``forward(from_input, state, w_hh, b_hh)``: the gates' part that comes from the input, `(n, gates*H)`, and the
        state, `(n, H)` each, to the next state and what the step back needs besides.
    backward
        ``backward(step, d_state, w_hh)``: the gradients of the gates' parts that come from the input and from the
        state, `(n, gates*H)` each, and of the state before.
    """

    forward: Callable[[Array, State, Array, Array | float], tuple[State, tuple[Array, ...]]]
    backward: Callable[[_Step, State, Array], tuple[Array, Array, State]]


def forward(one: Direction, output: Array, final: State, *, keep: bool) -> list[_Step] | None:
    """Run one layer in one direction.

    Parameters
    ----------
    one
        The layer, and what it is called with.
    output, final
        `(T, B, H)`, zero in the padding, and `(B, H)` each: to be written.
    keep
        Whether `backward` will be called.

    Returns
    -------
    object
        What `backward` needs of it; None without ``keep``.
    """
    cell, weights, kept = _cell(one.spec), one.weights, []
    bias_ih, bias_hh = (0.0 if bias is None else bias for bias in (weights.bias_ih, weights.bias_hh))
    output[...] = 0
    for part, initial in zip(final, one.state, strict=True):
        part[...] = initial
    for t, active, begins in _steps(one):
        before = tuple(part[active] for part in final)
        for part in before:
            part[begins] = 0
        from_input = one.x[t, active] @ weights.weight_ih.T + bias_ih
        after, gates = cell.forward(from_input, before, weights.weight_hh, bias_hh)
        if keep:
            kept.append(_Step(tuple(part.copy() for part in before), after, gates))
        for part, new in zip(final, after, strict=True):
            part[active] = new
        output[t, active] = after[0]
    return kept if keep else None


def backward(
    one: Direction, kept: list[_Step], d_output: Array, d_final: State, d_state: State
) -> tuple[Array, Weights]:
    """Compute the gradients of a layer from those of its results.

    Parameters
    ----------
    one
        As in `forward`.
    kept
        What that returned.
    d_output, d_final
        `(T, B, H)` and `(B, H)` each.
    d_state
        `(B, H)` each: the gradients of the initial state, to be written.

    Returns
    -------
    d_x
        `(T, B, I)`, zero in the padding.
    d_weights
        Those of the weights; None where there is no bias.
    """
    cell, w_hh = _cell(one.spec), one.weights.weight_hh
    d_x, d_weights = np.zeros(one.x.shape, one.x.dtype), one.blank_gradients()
    for gradient in d_weights:
        if gradient is not None:
            gradient[...] = 0
    for part, given in zip(d_state, d_final, strict=True):
        part[...] = given
    for (t, active, begins), step in zip(reversed(list(_steps(one))), reversed(kept), strict=True):
        d_after = tuple(part[active] for part in d_state)
        d_after = (d_after[0] + d_output[t, active], *d_after[1:])
        d_input, d_hidden, d_before = cell.backward(step, d_after, w_hh)
        for part, new in zip(d_state, d_before, strict=True):
            new[begins] = 0
            part[active] = new
        d_x[t, active] = d_input @ one.weights.weight_ih
        d_weights.weight_ih[...] += d_input.T @ one.x[t, active]
        for gates, factor in _factors(cell, step):
            d_weights.weight_hh[gates] += d_hidden[:, gates].T @ factor
        if d_weights.bias_ih is not None and d_weights.bias_hh is not None:
            d_weights.bias_ih[...] += d_input.sum(axis=0)
            d_weights.bias_hh[...] += d_hidden.sum(axis=0)
    return d_x, d_weights


def _factors(cell: _Cell, step: _Step) -> Iterator[tuple[slice, Array]]:
    """What W_hh multiplies: the state, except that a reset gate before the product comes between the state and W_hn."""
    h = step.before[0]
    split = 2 * h.shape[1] if cell is _GRU_RESET_BEFORE else None
    yield slice(None, split), h
    if split is not None:
        yield slice(split, None), step.gates[0] * h


def _steps(one: Direction) -> Iterator[tuple[int, slice | Array, slice | Array]]:
    """The steps in the order in which a direction takes them: each with the sequences that have it, and which of these
    begin anew with it, from zeros.
    """
    steps, lengths = len(one.x), one.lengths
    for t in reversed(range(steps)) if one.reverse else range(steps):
        active: slice | Array = slice(None) if lengths is None else np.flatnonzero(lengths > t)
        if isinstance(active, np.ndarray) and not len(active):
            continue
        begins: slice | Array = slice(0)
        if one.resets is not None and not one.reverse:
            begins = np.flatnonzero(one.resets[t, active])
        elif one.resets is not None and t + 1 < steps:  # what is read before step t is another sequence
            has_next = True if lengths is None else lengths[active] > t + 1
            begins = np.flatnonzero(one.resets[t + 1, active] & has_next)
        yield t, active, begins


def _sigmoid(a: Array) -> Array:
    """``1 / (1 + exp(-a))``, without its overflow."""
    result: Array = 0.5 * np.tanh(0.5 * a) + 0.5
    return result


def _split(array: Array, count: int) -> Sequence[Array]:
    """`(n, count*H)` as one array for each gate."""
    return np.split(array, count, axis=1)


def _rnn(activate: Callable[[Array], Array], slope: Callable[[Array], Array]) -> _Cell:
    """``h' = act(W x + U h)``; ``slope`` is the derivative of act, of its result."""

    def forward(from_input: Array, state: State, w_hh: Array, b_hh: Array | float) -> tuple[State, tuple[Array, ...]]:
        return (activate(from_input + (state[0] @ w_hh.T + b_hh)),), ()

    def backward(step: _Step, d_state: State, w_hh: Array) -> tuple[Array, Array, State]:
        d = d_state[0] * slope(step.after[0])
        return d, d, (d @ w_hh,)

    return _Cell(forward, backward)


def _gru_forward(from_input: Array, state: State, w_hh: Array, b_hh: Array | float) -> tuple[State, tuple[Array, ...]]:
    (h,) = state
    x_r, x_z, x_n = _split(from_input, 3)
    h_r, h_z, h_n = _split(h @ w_hh.T + b_hh, 3)
    r, z = _sigmoid(x_r + h_r), _sigmoid(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    return (n + z * (h - n),), (r, z, n, h_n)


def _gru_backward(step: _Step, d_state: State, w_hh: Array) -> tuple[Array, Array, State]:
    (d_h,), (h,), (r, z, n, h_n) = d_state, step.before, step.gates
    d_n = d_h * (1 - z) * (1 - n * n)
    d_z = d_h * (h - n) * z * (1 - z)
    d_r = d_n * h_n * r * (1 - r)
    d_input, d_hidden = np.hstack((d_r, d_z, d_n)), np.hstack((d_r, d_z, d_n * r))
    return d_input, d_hidden, (d_h * z + d_hidden @ w_hh,)


def _gru_reset_before_forward(
    from_input: Array, state: State, w_hh: Array, b_hh: Array | float
) -> tuple[State, tuple[Array, ...]]:
    (h,) = state
    size = h.shape[1]
    x_r, x_z, x_n = _split(from_input + b_hh, 3)
    h_r, h_z = _split(h @ w_hh[: 2 * size].T, 2)
    r, z = _sigmoid(x_r + h_r), _sigmoid(x_z + h_z)
    n = np.tanh(x_n + (r * h) @ w_hh[2 * size :].T)
    return (n + z * (h - n),), (r, z, n)


def _gru_reset_before_backward(step: _Step, d_state: State, w_hh: Array) -> tuple[Array, Array, State]:
    (d_h,), (h,), (r, z, n) = d_state, step.before, step.gates
    size = h.shape[1]
    d_n = d_h * (1 - z) * (1 - n * n)
    d_z = d_h * (h - n) * z * (1 - z)
    d_reset = d_n @ w_hh[2 * size :]
    d_r = d_reset * h * r * (1 - r)
    d = np.hstack((d_r, d_z, d_n))
    return d, d, (d_h * z + d_reset * r + d[:, : 2 * size] @ w_hh[: 2 * size],)


def _lstm_forward(from_input: Array, state: State, w_hh: Array, b_hh: Array | float) -> tuple[State, tuple[Array, ...]]:
    h, c = state
    a_i, a_f, a_g, a_o = _split(from_input + (h @ w_hh.T + b_hh), 4)
    i, f, g, o = _sigmoid(a_i), _sigmoid(a_f), np.tanh(a_g), _sigmoid(a_o)
    c = f * c + i * g
    return (o * np.tanh(c), c), (i, f, g, o)


def _lstm_backward(step: _Step, d_state: State, w_hh: Array) -> tuple[Array, Array, State]:
    (d_h, d_c), (_, c_before), (i, f, g, o) = d_state, step.before, step.gates
    tanh_c = np.tanh(step.after[1])
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
    d_i, d_f = d_c * g * i * (1 - i), d_c * c_before * f * (1 - f)
    d_g, d_o = d_c * i * (1 - g * g), d_h * tanh_c * o * (1 - o)
    d = np.hstack((d_i, d_f, d_g, d_o))
    return d, d, (d @ w_hh, d_c * f)


_RNN = {
    "tanh": _rnn(np.tanh, lambda h: 1 - h * h),
    "relu": _rnn(lambda a: np.maximum(a, 0), lambda h: (h > 0).astype(h.dtype)),
}
_GRU = _Cell(_gru_forward, _gru_backward)
_GRU_RESET_BEFORE = _Cell(_gru_reset_before_forward, _gru_reset_before_backward)
_LSTM = _Cell(_lstm_forward, _lstm_backward)


def _cell(spec: RecurrentSpec) -> _Cell:
    if isinstance(spec, RNNSpec):
        return _RNN[spec.nonlinearity]
    if isinstance(spec, GRUSpec):
        return _GRU if spec.reset_after else _GRU_RESET_BEFORE
    return _LSTM
