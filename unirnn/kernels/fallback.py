"""The kernels in NumPy, for when the compiled ones are not available: slower, with the same results and gradients.

It goes step by step over the sequences that have the step, so the padding is never read.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from unirnn.reference import Weights
from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

from .direction import Array, Direction, State

__all__ = ["backward", "forward"]


class _Step(NamedTuple):
    """The values of a forward step that the backward step needs; see `_Cell`."""

    before: State
    after: State
    gates: tuple[Array, ...]
    hidden: Array  # h of the state after, before it is projected if there is a projection


class _Cell(NamedTuple):
    """A cell: a forward step and a backward step.

    Parameters
    ----------
    forward
        ``forward(from_input, state, w_hh, b_hh)``: the gates' part that comes from the input, `(n, gates*H)`, and the
        state, `(n, H)` each, to the next state and what the step back needs besides.
    backward
        ``backward(step, d_state, w_hh)``: the gradients of the gates' parts that come from the input and from the
        state, `(n, gates*H)` each, and of the state before.

    A projection is not part of the cell: the result of a forward step is projected later.
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
        hidden, *others = after
        if weights.weight_hr is not None:
            after = (hidden @ weights.weight_hr.T, *others)
        if keep:
            kept.append(_Step(tuple(part.copy() for part in before), after, gates, hidden))
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
        Those of the weights; None where there is no bias or projection.
    """
    cell, w_hh, w_hr = _cell(one.spec), one.weights.weight_hh, one.weights.weight_hr
    d_x, d_weights = np.zeros(one.x.shape, one.x.dtype), one.blank_gradients()
    for gradient in d_weights:
        if gradient is not None:
            gradient[...] = 0
    for part, given in zip(d_state, d_final, strict=True):
        part[...] = given
    for (t, active, begins), step in zip(reversed(list(_steps(one))), reversed(kept), strict=True):
        d_after = tuple(part[active] for part in d_state)
        d_after = (d_after[0] + d_output[t, active], *d_after[1:])
        if w_hr is not None and d_weights.weight_hr is not None:
            d_weights.weight_hr[...] += d_after[0].T @ step.hidden
            d_after = (d_after[0] @ w_hr, *d_after[1:])
        d_input, d_hidden, d_before = cell.backward(step, d_after, w_hh)
        for part, new in zip(d_state, d_before, strict=True):
            new[begins] = 0
            part[active] = new
        d_x[t, active] = d_input @ one.weights.weight_ih
        d_weights.weight_ih[...] += d_input.T @ one.x[t, active]
        for gates, factor in _factors(one.spec, step):
            d_weights.weight_hh[gates] += d_hidden[:, gates].T @ factor
        if d_weights.bias_ih is not None and d_weights.bias_hh is not None:
            d_weights.bias_ih[...] += d_input.sum(axis=0)
            d_weights.bias_hh[...] += d_hidden.sum(axis=0)
    return d_x, d_weights


def _factors(spec: RecurrentSpec, step: _Step) -> Iterator[tuple[slice, Array]]:
    """What W_hh multiplies: the state, except that a reset gate before the product comes between the state and W_hn."""
    h = step.before[0]
    split = 2 * h.shape[1] if isinstance(spec, GRUSpec) and not spec.reset_after else None
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
        elif one.resets is not None and t + 1 < steps:  # another sequence is read before step t
            has_next = True if lengths is None else lengths[active] > t + 1
            begins = np.flatnonzero(one.resets[t + 1, active] & has_next)
        yield t, active, begins


class _Gate(NamedTuple):
    """The function of the gates, and its derivative, of its result."""

    apply: Callable[[Array], Array]
    slope: Callable[[Array], Array]


def _sigmoid(a: Array) -> Array:
    """``1 / (1 + exp(-a))``, without its overflow."""
    result: Array = 0.5 * np.tanh(0.5 * a) + 0.5
    return result


def _line(slope: float) -> _Gate:
    """``slope * a + 0.5``, cut off at 0 and 1."""
    return _Gate(
        lambda a: np.clip(slope * a + 0.5, 0, 1),
        lambda gate: slope * ((gate > 0) & (gate < 1)).astype(gate.dtype),
    )


_GATES = {
    "sigmoid": _Gate(_sigmoid, lambda gate: gate * (1 - gate)),
    "hard_sigmoid": _line(1 / 6),
    "hard_sigmoid_0.2": _line(0.2),
}


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


def _gru_forward(
    gate: _Gate, from_input: Array, state: State, w_hh: Array, b_hh: Array | float
) -> tuple[State, tuple[Array, ...]]:
    (h,) = state
    x_r, x_z, x_n = _split(from_input, 3)
    h_r, h_z, h_n = _split(h @ w_hh.T + b_hh, 3)
    r, z = gate.apply(x_r + h_r), gate.apply(x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    return (n + z * (h - n),), (r, z, n, h_n)


def _gru_backward(gate: _Gate, step: _Step, d_state: State, w_hh: Array) -> tuple[Array, Array, State]:
    (d_h,), (h,), (r, z, n, h_n) = d_state, step.before, step.gates
    d_n = d_h * (1 - z) * (1 - n * n)
    d_z = d_h * (h - n) * gate.slope(z)
    d_r = d_n * h_n * gate.slope(r)
    d_input, d_hidden = np.hstack((d_r, d_z, d_n)), np.hstack((d_r, d_z, d_n * r))
    return d_input, d_hidden, (d_h * z + d_hidden @ w_hh,)


def _gru_reset_before_forward(
    gate: _Gate, from_input: Array, state: State, w_hh: Array, b_hh: Array | float
) -> tuple[State, tuple[Array, ...]]:
    (h,) = state
    size = h.shape[1]
    x_r, x_z, x_n = _split(from_input + b_hh, 3)
    h_r, h_z = _split(h @ w_hh[: 2 * size].T, 2)
    r, z = gate.apply(x_r + h_r), gate.apply(x_z + h_z)
    n = np.tanh(x_n + (r * h) @ w_hh[2 * size :].T)
    return (n + z * (h - n),), (r, z, n)


def _gru_reset_before_backward(gate: _Gate, step: _Step, d_state: State, w_hh: Array) -> tuple[Array, Array, State]:
    (d_h,), (h,), (r, z, n) = d_state, step.before, step.gates
    size = h.shape[1]
    d_n = d_h * (1 - z) * (1 - n * n)
    d_z = d_h * (h - n) * gate.slope(z)
    d_reset = d_n @ w_hh[2 * size :]
    d_r = d_reset * h * gate.slope(r)
    d = np.hstack((d_r, d_z, d_n))
    return d, d, (d_h * z + d_reset * r + d[:, : 2 * size] @ w_hh[: 2 * size],)


def _lstm_forward(
    gate: _Gate, from_input: Array, state: State, w_hh: Array, b_hh: Array | float
) -> tuple[State, tuple[Array, ...]]:
    h, c = state
    a_i, a_f, a_g, a_o = _split(from_input + (h @ w_hh.T + b_hh), 4)
    i, f, g, o = gate.apply(a_i), gate.apply(a_f), np.tanh(a_g), gate.apply(a_o)
    c = f * c + i * g
    return (o * np.tanh(c), c), (i, f, g, o)


def _lstm_backward(gate: _Gate, step: _Step, d_state: State, w_hh: Array) -> tuple[Array, Array, State]:
    (d_h, d_c), (_, c_before), (i, f, g, o) = d_state, step.before, step.gates
    tanh_c = np.tanh(step.after[1])
    d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
    d_i, d_f = d_c * g * gate.slope(i), d_c * c_before * gate.slope(f)
    d_g, d_o = d_c * i * (1 - g * g), d_h * tanh_c * gate.slope(o)
    d = np.hstack((d_i, d_f, d_g, d_o))
    return d, d, (d @ w_hh, d_c * f)


_RNN = {
    "tanh": _rnn(np.tanh, lambda h: 1 - h * h),
    "relu": _rnn(lambda a: np.maximum(a, 0), lambda h: (~(h <= 0)).astype(h.dtype)),
}


def _cell(spec: RecurrentSpec) -> _Cell:
    if isinstance(spec, RNNSpec):
        return _RNN[spec.nonlinearity]
    assert isinstance(spec, (GRUSpec, LSTMSpec))
    forward, backward = _lstm_forward, _lstm_backward
    if isinstance(spec, GRUSpec):
        forward, backward = _gru_forward, _gru_backward
        if not spec.reset_after:
            forward, backward = _gru_reset_before_forward, _gru_reset_before_backward
    gate = _GATES[spec.gate_activation]
    return _Cell(partial(forward, gate), partial(backward, gate))
