"""One time step of each cell, in the array API standard: the equations that everything else is checked against.

`step` is the whole step. `unirnn.reference.layers` makes the input's products of all time steps at once by `project`,
and then goes from state to state by `cell`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

__all__ = ["State", "Weights", "cell", "project", "sigmoid", "step"]

Array = Any
State = tuple[Array, ...]
"""The state's parts: `(h,)`, or `(h, c)` for LSTM."""
Step = Callable[[Array, State], State]
"""``step(projected, state)``: from the input's products `(B, gates*H)` and a state to the next state."""


class Weights(NamedTuple):
    """The weights of one layer and direction."""

    weight_ih: Array
    """`(gates*H, I)`"""
    weight_hh: Array
    """`(gates*H, H)`"""
    bias_ih: Array | None
    """`(gates*H,)`"""
    bias_hh: Array | None
    """`(gates*H,)`"""
    weight_hr: Array | None = None
    """`(proj_size, H)`, of an LSTM with a projection."""


def step(xp: Any, spec: RecurrentSpec, weights: Weights, x: Array, state: State) -> State:
    """Compute one time step of one layer in one direction.

    The equations stand in the docstrings of `unirnn.RNNSpec`, `unirnn.GRUSpec` and `unirnn.LSTMSpec`.

    Parameters
    ----------
    xp
        A namespace of the array API standard.
    spec
        The layer; its sizes are read off the arrays.
    weights
        Of this layer and direction.
    x
        `(B, I)`, the input at this time step.
    state
        The state before it: ``(h,)``, or ``(h, c)`` for LSTM, `(B, H)` each.

    Returns
    -------
    tuple
        The state after it; its first part is the output.

    Examples
    --------
    >>> import numpy as np, unirnn
    >>> import array_api_compat.numpy as xp
    >>> spec = unirnn.GRUSpec(3, 4)
    >>> arrays = unirnn.snapshot(spec.build("numpy", seed=0)).weights
    >>> weights = Weights(*(arrays[f"{name}_l0"] for name in Weights._fields[:4]))
    >>> (h,) = step(xp, spec, weights, np.ones((2, 3), "float32"), (np.zeros((2, 4), "float32"),))
    >>> h.shape
    (2, 4)
    """
    return cell(xp, spec, weights)(project(xp, weights, x), state)


def project(xp: Any, weights: Weights, x: Array) -> Array:
    """Multiply inputs with the input's weights: `(..., I)` to `(..., gates*H)`, ``W_ih x + b_ih``."""
    return _affine(xp, weights.weight_ih, weights.bias_ih)(x)


def cell(xp: Any, spec: RecurrentSpec, weights: Weights) -> Step:
    """Prepare the step of a layer and direction from the input's products; see `project`."""
    if isinstance(spec, RNNSpec):
        return _rnn(xp, spec, weights)
    if isinstance(spec, GRUSpec):
        return _gru(xp, spec, weights) if spec.reset_after else _gru_reset_before(xp, spec, weights)
    assert isinstance(spec, LSTMSpec)
    return _lstm(xp, spec, weights)


def _rnn(xp: Any, spec: RNNSpec, weights: Weights) -> Step:
    hidden = _affine(xp, weights.weight_hh, weights.bias_hh)

    def step(x: Array, state: State) -> State:
        a = x + hidden(state[0])
        return (xp.tanh(a) if spec.nonlinearity == "tanh" else xp.where(a <= 0, xp.zeros_like(a), a),)

    return step


def _gru(xp: Any, spec: GRUSpec, weights: Weights) -> Step:
    hidden = _affine(xp, weights.weight_hh, weights.bias_hh)
    s = _gate(xp, spec)

    def step(x: Array, state: State) -> State:
        (h,) = state
        x_r, x_z, x_n = _split(spec, x)
        h_r, h_z, h_n = _split(spec, hidden(h))
        r = s(x_r + h_r)
        z = s(x_z + h_z)
        n = xp.tanh(x_n + r * h_n)
        return ((1 - z) * n + z * h,)

    return step


def _gru_reset_before(xp: Any, spec: GRUSpec, weights: Weights) -> Step:
    size = spec.hidden_size
    # The weights are cut once, not in each step: the gradient of a cut is as large as the whole weight.
    hidden, hidden_n = (
        _affine(xp, weights.weight_hh[rows, :], None if weights.bias_hh is None else weights.bias_hh[rows])
        for rows in (slice(None, 2 * size), slice(2 * size, None))
    )
    s = _gate(xp, spec)

    def step(x: Array, state: State) -> State:
        (h,) = state
        gates = s(x[:, : 2 * size] + hidden(h))
        r, z = gates[:, :size], gates[:, size:]
        n = xp.tanh(x[:, 2 * size :] + hidden_n(r * h))
        return ((1 - z) * n + z * h,)

    return step


def _lstm(xp: Any, spec: LSTMSpec, weights: Weights) -> Step:
    hidden = _affine(xp, weights.weight_hh, weights.bias_hh)
    s = _gate(xp, spec)
    # (o * tanh(c')) is the output, or what is projected to it.
    projection = None if weights.weight_hr is None else _affine(xp, weights.weight_hr, None)

    def step(x: Array, state: State) -> State:
        h, c = state
        a_i, a_f, a_g, a_o = _split(spec, x + hidden(h))
        i, f, o = s(a_i), s(a_f), s(a_o)
        c = f * c + i * xp.tanh(a_g)
        h = o * xp.tanh(c)
        return (h if projection is None else projection(h), c)

    return step


def _affine(xp: Any, weight: Array, bias: Array | None) -> Callable[[Array], Array]:
    """``x -> W x + b``: `(..., I)` to `(..., O)`."""
    transposed = xp.matrix_transpose(weight)
    return lambda x: xp.matmul(x, transposed) if bias is None else xp.matmul(x, transposed) + bias


def _split(spec: RecurrentSpec, array: Array) -> list[Array]:
    """`(B, gates*H)` as one array `(B, H)` for each gate."""
    size = spec.hidden_size
    return [array[:, k * size : (k + 1) * size] for k in range(len(spec.gates))]


def _gate(xp: Any, spec: GRUSpec | LSTMSpec) -> Callable[[Array], Array]:
    """The function of the gates; see `unirnn.GRUSpec`."""
    match spec.gate_activation:
        case "sigmoid":
            return lambda a: sigmoid(xp, a)
        case "hard_sigmoid":
            return lambda a: _between_0_and_1(xp, a / 6 + 0.5)
        case _:
            return lambda a: _between_0_and_1(xp, 0.2 * a + 0.5)


def _between_0_and_1(xp: Any, a: Array) -> Array:
    """Cut off below 0 and above 1; NaN stays NaN."""
    above = xp.where(a < 0, xp.zeros_like(a), a)
    return xp.where(above > 1, xp.ones_like(a), above)


def sigmoid(xp: Any, a: Array) -> Array:
    """``1 / (1 + exp(-a))``, without its overflow."""
    return 0.5 * xp.tanh(0.5 * a) + 0.5
