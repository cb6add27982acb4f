"""The oracle: computes recurrent layers one sequence and one time step at a time, in float64 and plain NumPy.

All backends are compared with it. So it is written to be easy to read, and it shares only the specs with them. It never
sees padding: of a sequence of length n, it is given n steps.

Derivatives are computed in two independent ways. `gradients` goes backward through the steps, by equations written next
to the forward ones. `derivative` needs no such equations: it runs the forward ones on complex numbers, whose imaginary
parts carry the derivative. For a direction v, ``f(x + i*h*v).imag / h`` is the directional derivative to machine
precision, since nothing is subtracted and h may be as small as 1e-30 (Squire and Trapp, 1998).
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

__all__ = ["derivative", "gradients", "names_of_state", "recurrent"]

Array = NDArray[Any]
Parts = tuple[Array, ...]
"""A state: `(h,)`, or `(h, c)` for LSTM."""
Back = Callable[..., tuple[Array, Parts, dict[str, Array]]]
"""Computes the gradients of a step's input, old state and weights from the gradient of its new state."""

IMAGINARY_STEP = 1e-30


def recurrent(
    spec: RecurrentSpec,
    weights: Mapping[str, Array],
    input: Array,
    hx: Parts,
    lengths: Array | None,
    resets: Array | None = None,
) -> tuple[Array, Parts]:
    """Compute the forward pass of a stack of layers.

    Parameters
    ----------
    spec
        The layers; their dropout is ignored.
    weights
        The weights, with the names and shapes of `RecurrentSpec.weight_shapes`.
    input
        `(T, B, I)`, or `(B, T, I)` if ``batch_first``, or `(T, I)` when unbatched.
    hx
        The initial state, ``(h_0,)`` or ``(h_0, c_0)``: `(L*D, B, H)` each, or `(L*D, H)` when unbatched.
    lengths
        The number of valid steps of each sequence, `(B,)`. None means T for all.
    resets
        Where new sequences begin: bools, of the shape of ``input`` without its last axis. None means nowhere.

    Returns
    -------
    output
        `(T, B, D*H)`, or the same in the layout of ``input``; 0 in the padding.
    final
        The final state, in the form of ``hx``.

    Examples
    --------
    >>> import numpy as np, unirnn
    >>> spec = unirnn.GRUSpec(3, 4)
    >>> module = spec.build("numpy", dtype="float64", seed=0)
    >>> x, h_0 = np.ones((5, 2, 3)), np.zeros((1, 2, 4))
    >>> expected, (h_n,) = recurrent(spec, unirnn.snapshot(module).weights, x, (h_0,), np.array([5, 2]))
    >>> output, _ = module(x, h_0, [5, 2])
    >>> bool(np.abs(output - expected).max() < 1e-12)
    True
    """
    dtype = np.result_type(input, *hx, *weights.values(), np.float64)
    output = np.zeros((*input.shape[:-1], spec.num_directions * spec.output_size), dtype)
    final = tuple(part.astype(dtype) for part in hx)
    for at, state_at, n in _positions(spec, input, lengths):
        column = input[at][:n]
        starts = None if resets is None else resets[at][:n]
        output[at][:n], state, _ = _column(spec, weights, column, tuple(part[state_at] for part in hx), starts)
        for part, value in zip(final, state, strict=True):
            part[state_at] = value
    return output, final


def gradients(
    spec: RecurrentSpec,
    arrays: Mapping[str, Array],
    lengths: Array | None,
    cotangents: Parts,
    resets: Array | None = None,
) -> dict[str, Array]:
    """Differentiate ``sum(output * d_output) + sum(state * d_state)`` with respect to every array.

    Parameters
    ----------
    spec
        The layers.
    arrays
        ``input``, ``h_0`` (and ``c_0``), and each weight, with the shapes that `recurrent` takes, in float64.
    lengths
        See `recurrent`.
    cotangents
        ``(d_output, d_h_n)``, or ``(d_output, d_h_n, d_c_n)``, with the shapes that `recurrent` returns.
    resets
        See `recurrent`.

    Returns
    -------
    dict
        The gradient of each array, by the array's name and of its shape; 0 in the padding of the input.

    Examples
    --------
    >>> import numpy as np, unirnn
    >>> spec = unirnn.RNNSpec(3, 4)
    >>> arrays = {"input": np.ones((5, 2, 3)), "h_0": np.zeros((1, 2, 4))}
    >>> arrays |= unirnn.snapshot(spec.build("numpy", dtype="float64", seed=0)).weights
    >>> found = gradients(spec, arrays, np.array([5, 2]), (np.ones((5, 2, 4)), np.ones((1, 2, 4))))
    >>> found["weight_hh_l0"].shape, float(np.abs(found["input"][2:, 1]).max())
    ((4, 4), 0.0)
    """
    weights = {name: arrays[name] for name in spec.weight_shapes()}
    input, hx = arrays["input"], tuple(arrays[f"{name}_0"] for name in spec.states)
    d_output, *d_final = cotangents
    found = {name: np.zeros(array.shape) for name, array in arrays.items()}
    for at, state_at, n in _positions(spec, input, lengths):
        starts = None if resets is None else resets[at][:n]
        _, _, back = _column(spec, weights, input[at][:n], tuple(part[state_at] for part in hx), starts)
        found["input"][at][:n], d_state = back(d_output[at][:n], tuple(part[state_at] for part in d_final), found)
        for name, value in zip(spec.states, d_state, strict=True):
            found[f"{name}_0"][state_at] = value
    return found


def names_of_state(spec: RecurrentSpec) -> dict[str, str]:
    """Map the names of the parts of the initial state in `Backend.gradients` to those in `gradients`.

    Examples
    --------
    >>> import unirnn
    >>> names_of_state(unirnn.LSTMSpec(3, 4))
    {'hx[0]': 'h_0', 'hx[1]': 'c_0'}
    """
    if len(spec.states) == 1:
        return {"hx": "h_0"}
    return {f"hx[{k}]": f"{name}_0" for k, name in enumerate(spec.states)}


def renamed(spec: RecurrentSpec, found: Mapping[str, Any]) -> dict[str, Any]:
    """Rename the gradients that `Backend.gradients` returns, from its names to those of `gradients`.

    Examples
    --------
    >>> import unirnn
    >>> renamed(unirnn.GRUSpec(3, 4), {"input": 1, "hx": 2})
    {'input': 1, 'h_0': 2}
    """
    names = names_of_state(spec)
    return {names.get(name, name): gradient for name, gradient in found.items()}


def derivative(
    spec: RecurrentSpec,
    arrays: Mapping[str, Array],
    lengths: Array | None,
    cotangents: Parts,
    name: str,
    direction: Array,
    resets: Array | None = None,
) -> float:
    """Differentiate the same sum as `gradients`, along a direction in one of the arrays, by a complex step.

    Parameters
    ----------
    spec, arrays, lengths, cotangents
        See `gradients`.
    name, direction
        The name of the array that is moved, and the direction, which has the same shape.
    resets
        See `recurrent`.

    Examples
    --------
    >>> import numpy as np, unirnn
    >>> spec = unirnn.GRUSpec(3, 4)
    >>> arrays = {"input": np.ones((5, 2, 3)), "h_0": np.zeros((1, 2, 4))}
    >>> arrays |= unirnn.snapshot(spec.build("numpy", dtype="float64", seed=0)).weights
    >>> cotangents = (np.ones((5, 2, 4)), np.zeros((1, 2, 4)))
    >>> slope = derivative(spec, arrays, None, cotangents, "input", np.ones((5, 2, 3)))
    >>> bool(abs(slope - gradients(spec, arrays, None, cotangents)["input"].sum()) < 1e-12)
    True
    """
    moved = {**arrays, name: arrays[name] + 1j * IMAGINARY_STEP * direction}
    hx = tuple(moved.pop(f"{state}_0") for state in spec.states)
    output, final = recurrent(spec, moved, moved.pop("input"), hx, lengths, resets)
    total = sum((result * d).sum() for result, d in zip((output, *final), cotangents, strict=True))
    return float(np.imag(total) / IMAGINARY_STEP)


# ---- one step of each cell, forward and backward -------------------------------------------------


class _Weights(NamedTuple):
    """The weights of one layer in one direction. Biases of a layer without any are 0."""

    ih: Array
    hh: Array
    b_ih: Array
    b_hh: Array
    hr: Array | None


def _weights(weights: Mapping[str, Array], suffix: str) -> _Weights:
    zeros = np.zeros(len(weights["weight_ih" + suffix]))
    return _Weights(
        weights["weight_ih" + suffix],
        weights["weight_hh" + suffix],
        weights.get("bias_ih" + suffix, zeros),
        weights.get("bias_hh" + suffix, zeros),
        weights.get("weight_hr" + suffix),
    )


def _d_weights(x: Array, h: Array, d_x: Array, d_h: Array) -> dict[str, Array]:
    """Gradients of the weights and biases, from those of ``W_ih x + b_ih`` and ``W_hh h + b_hh``."""
    return {"weight_ih": np.outer(d_x, x), "weight_hh": np.outer(d_h, h), "bias_ih": d_x, "bias_hh": d_h}


def _step(spec: RecurrentSpec, w: _Weights, x: Array, state: Parts) -> tuple[Parts, Back]:
    """One step from an input `(I,)` and a state with parts `(H,)`: the new state, and the backward pass of the step."""
    if isinstance(spec, RNNSpec):
        return _rnn(spec, w, x, *state)
    if isinstance(spec, GRUSpec):
        return (_gru if spec.reset_after else _gru_reset_before)(spec, w, x, *state)
    assert isinstance(spec, LSTMSpec)
    return _lstm(spec, w, x, *state)


def _rnn(spec: RNNSpec, w: _Weights, x: Array, h: Array) -> tuple[Parts, Back]:
    a = w.ih @ x + w.b_ih + w.hh @ h + w.b_hh
    new = np.tanh(a) if spec.nonlinearity == "tanh" else np.where(a.real > 0, a, 0)

    def back(d_new: Array) -> tuple[Array, Parts, dict[str, Array]]:
        d_a = d_new * (1 - new**2 if spec.nonlinearity == "tanh" else a > 0)
        return w.ih.T @ d_a, (w.hh.T @ d_a,), _d_weights(x, h, d_a, d_a)

    return (new,), back


def _gru(spec: GRUSpec, w: _Weights, x: Array, h: Array) -> tuple[Parts, Back]:
    x_r, x_z, x_n = np.split(w.ih @ x + w.b_ih, 3)
    h_r, h_z, h_n = np.split(w.hh @ h + w.b_hh, 3)
    (r, slope_r), (z, slope_z) = _gate(spec, x_r + h_r), _gate(spec, x_z + h_z)
    n = np.tanh(x_n + r * h_n)
    new = (1 - z) * n + z * h

    def back(d_new: Array) -> tuple[Array, Parts, dict[str, Array]]:
        # with respect to the arguments of the gates' functions and of tanh
        d_n = d_new * (1 - z) * (1 - n**2)
        d_z = d_new * (h - n) * slope_z
        d_r = d_n * h_n * slope_r
        d_x, d_h = np.concatenate([d_r, d_z, d_n]), np.concatenate([d_r, d_z, d_n * r])
        return w.ih.T @ d_x, (d_new * z + w.hh.T @ d_h,), _d_weights(x, h, d_x, d_h)

    return (new,), back


def _gru_reset_before(spec: GRUSpec, w: _Weights, x: Array, h: Array) -> tuple[Parts, Back]:
    x_r, x_z, x_n = np.split(w.ih @ x + w.b_ih, 3)
    (hh_r, hh_z, hh_n), (b_r, b_z, b_n) = np.split(w.hh, 3), np.split(w.b_hh, 3)
    (r, slope_r), (z, slope_z) = _gate(spec, x_r + hh_r @ h + b_r), _gate(spec, x_z + hh_z @ h + b_z)
    n = np.tanh(x_n + hh_n @ (r * h) + b_n)
    new = (1 - z) * n + z * h

    def back(d_new: Array) -> tuple[Array, Parts, dict[str, Array]]:
        d_n = d_new * (1 - z) * (1 - n**2)
        d_z = d_new * (h - n) * slope_z
        d_rh = hh_n.T @ d_n
        d_r = d_rh * h * slope_r
        d_a = np.concatenate([d_r, d_z, d_n])
        d_w = _d_weights(x, h, d_a, d_a)
        d_w["weight_hh"][-len(h) :] = np.outer(d_n, r * h)
        return w.ih.T @ d_a, (d_new * z + d_rh * r + hh_r.T @ d_r + hh_z.T @ d_z,), d_w

    return (new,), back


def _lstm(spec: LSTMSpec, w: _Weights, x: Array, h: Array, c: Array) -> tuple[Parts, Back]:
    a_i, a_f, a_g, a_o = np.split(w.ih @ x + w.b_ih + w.hh @ h + w.b_hh, 4)
    (i, slope_i), (f, slope_f), (o, slope_o) = (_gate(spec, a) for a in (a_i, a_f, a_o))
    g = np.tanh(a_g)
    new_c = f * c + i * g
    gated = o * np.tanh(new_c)
    new_h = gated if w.hr is None else w.hr @ gated

    def back(d_h: Array, d_c: Array) -> tuple[Array, Parts, dict[str, Array]]:
        d_gated = d_h if w.hr is None else w.hr.T @ d_h
        d_c = d_c + d_gated * o * (1 - np.tanh(new_c) ** 2)
        d_i, d_f, d_g = d_c * g * slope_i, d_c * c * slope_f, d_c * i * (1 - g**2)
        d_o = d_gated * np.tanh(new_c) * slope_o
        d_a = np.concatenate([d_i, d_f, d_g, d_o])
        d_w = _d_weights(x, h, d_a, d_a)
        if w.hr is not None:
            d_w["weight_hr"] = np.outer(d_h, gated)
        return w.ih.T @ d_a, (w.hh.T @ d_a, d_c * f), d_w

    return (new_h, new_c), back


def sigmoid(a: Array) -> Array:
    """The logistic function, of real or complex numbers."""
    return np.asarray(0.5 * np.tanh(0.5 * a) + 0.5)  # 1 / (1 + exp(-a)) without overflow


def _gate(spec: GRUSpec | LSTMSpec, a: Array) -> tuple[Array, Array]:
    """The value of the gates' function, and its slope."""
    if spec.gate_activation == "sigmoid":
        s = sigmoid(a)
        return s, s * (1 - s)
    slope = {"hard_sigmoid": 1 / 6, "hard_sigmoid_0.2": 0.2}[spec.gate_activation]
    line = slope * a + 0.5
    inside = (line.real > 0) & (line.real < 1)
    return np.where(inside, line, line.real >= 1), np.where(inside, slope, 0)


# ---- one sequence, forward and backward ----------------------------------------------------------


def _sequence(
    spec: RecurrentSpec, weights: Mapping[str, Array], x: Array, initial: Parts
) -> tuple[Array, Parts, Callable[[Array, Parts, dict[str, Array]], tuple[Array, Parts]]]:
    """Run a sequence `(n, I)` through all layers. Return its output `(n, D*H)`, its final state, and a backward pass.

    Each part of the initial and of the final state is `(L*D, H)`. The backward pass takes the gradients of the output
    and the final state, and a dict with an array for each weight. It returns the gradients of the input and the initial
    state, and adds those of the weights to the arrays in the dict.
    """
    steps, suffixes = range(len(x)), spec.suffixes()
    finals: list[Parts] = []
    backs: list[list[Any]] = [[None] * len(x) for _ in suffixes]

    def order(position: int) -> Any:
        return reversed(steps) if spec.is_reverse(position) else steps

    rows = list(x)
    for first in range(0, len(suffixes), spec.num_directions):
        columns = []
        for position in range(first, first + spec.num_directions):
            w = _weights(weights, suffixes[position])
            state, outputs = tuple(part[position] for part in initial), [None] * len(x)
            for t in order(position):
                state, backs[position][t] = _step(spec, w, rows[t], state)
                outputs[t] = state[0]
            finals.append(state)
            columns.append(outputs)
        rows = [np.concatenate(parts) for parts in zip(*columns, strict=True)]

    def back(d_output: Array, d_final: Parts, d_weights: dict[str, Array]) -> tuple[Array, Parts]:
        d_rows = d_output
        d_initial = tuple(np.zeros(part.shape) for part in d_final)
        for first in reversed(range(0, len(suffixes), spec.num_directions)):
            d_outputs = np.split(d_rows, spec.num_directions, axis=1)
            d_rows = np.zeros((len(x), weights["weight_ih" + suffixes[first]].shape[1]))
            for position, d_column in enumerate(d_outputs, first):
                d_state = tuple(part[position] for part in d_final)
                for t in reversed(list(order(position))):
                    d_x, d_state, found = backs[position][t](d_state[0] + d_column[t], *d_state[1:])
                    d_rows[t] += d_x
                    for name, gradient in found.items():
                        if name + suffixes[position] in d_weights:  # a layer without biases has no gradients of them
                            d_weights[name + suffixes[position]] += gradient
                for part, value in zip(d_initial, d_state, strict=True):
                    part[position] = value
        return d_rows, d_initial

    output = np.stack(rows) if rows else np.zeros((0, spec.num_directions * spec.output_size))
    return output, tuple(np.stack(part) for part in zip(*finals, strict=True)), back


# ---- the sequences of a column, forward and backward ---------------------------------------------


def _column(
    spec: RecurrentSpec, weights: Mapping[str, Array], x: Array, initial: Parts, resets: Array | None
) -> tuple[Array, Parts, Callable[[Array, Parts, dict[str, Array]], tuple[Array, Parts]]]:
    """Like `_sequence`, for the valid steps `(n, I)` of a column, which resets split into several sequences.

    Forward, the first sequence begins with the initial state unless there is a reset at step 0, and the last sequence
    gives the final state. In the reverse direction, the last sequence begins with the initial state, and the first one
    gives the final state.
    """
    if resets is None or not resets.any():
        return _sequence(spec, weights, x, initial)
    cuts = [0, *(t for t in range(1, len(x)) if resets[t]), len(x)]
    pieces = list(itertools.pairwise(cuts))
    first, last = 0, len(pieces) - 1
    reverse = np.array([spec.is_reverse(position) for position in range(len(initial[0]))])
    takes_initial = [np.where(reverse, k == last, k == first and not resets[0])[:, None] for k in range(len(pieces))]
    gives_final = [np.where(reverse, k == first, k == last)[:, None] for k in range(len(pieces))]

    outputs, backs, final = [], [], tuple(np.zeros_like(part) for part in initial)
    for (begin, end), takes, gives in zip(pieces, takes_initial, gives_final, strict=True):
        state = tuple(np.where(takes, part, 0) for part in initial)
        output, state, back_of_piece = _sequence(spec, weights, x[begin:end], state)
        outputs.append(output)
        backs.append(back_of_piece)
        final = tuple(np.where(gives, new, old) for new, old in zip(state, final, strict=True))

    def back(d_output: Array, d_final: Parts, d_weights: dict[str, Array]) -> tuple[Array, Parts]:
        d_rows, d_initial = [], tuple(np.zeros(part.shape) for part in d_final)
        for (begin, end), takes, gives, back_of_piece in zip(pieces, takes_initial, gives_final, backs, strict=True):
            d_state = tuple(np.where(gives, part, 0) for part in d_final)
            d_x, d_state = back_of_piece(d_output[begin:end], d_state, d_weights)
            d_rows.append(d_x)
            d_initial = tuple(np.where(takes, new, old) for new, old in zip(d_state, d_initial, strict=True))
        return np.concatenate(d_rows), d_initial

    return np.concatenate(outputs), final, back


def _positions(spec: RecurrentSpec, input: Array, lengths: Array | None) -> Iterator[tuple[Any, Any, int]]:
    """Yield the index of each sequence in arrays with the input's layout, its index in the state, and its length."""
    if input.ndim == 2:
        yield (), (), len(input) if lengths is None else int(np.reshape(lengths, ()))
        return
    steps, batch_size = input.shape[:2][:: -1 if spec.batch_first else 1]
    for b in range(batch_size):
        at = (b,) if spec.batch_first else (slice(None), b)
        yield at, (slice(None), b), steps if lengths is None else int(lengths[b])
