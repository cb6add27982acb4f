"""What ``unirnn bench`` compares NumPy's modules with: the loop over time steps that one writes first.

It computes what our modules compute, backward too, one step at a time over all sequences, with `where` for those that
have ended; nothing is packed, and no product is shared between steps.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from unirnn_numpy.dispatch import SHORT

from unirnn import GRUSpec, kernels
from unirnn.contract.call import join_state
from unirnn_bench.harness import Calls, Work, floor

__all__ = ["MODES", "calls", "loop"]

Array = NDArray[Any]
State = tuple[Array, ...]
Back = Callable[[State], tuple[Array, Array, State]]
"""Gradients of a step's new state to those of its two products and, but for what goes through them, its old state."""


MODES = ("eager", "numba") if kernels.has_numba(GRUSpec(1, 1)) else ("eager",)


def calls(work: Work) -> Calls:
    """See `unirnn_bench.baselines`."""
    x, ns, d_output = work.input, work.seq_length, work.d_output
    # Where numba is installed it is what runs by itself, and a mode of its own; see `MODES`.
    calls_numpy = work.mode == "eager" and (work.d_output is not None or len(work.input) > SHORT)
    module: Any = work.spec.build("numpy", seed=0, kernel="packed" if calls_numpy else "auto")
    hx = None if work.hx is None else join_state(work.hx)
    found = {"floor": floor(work, np.asarray, lambda a, b, out: np.matmul(a, b, out=out))}
    if d_output is None:
        found["ours"] = lambda: module(x, hx, ns)[0]
        found["usual"] = lambda: loop(work, module.weights, None)["output"]
        if ns is not None:
            found["dense"] = lambda: module(x, hx)[0]
    else:
        found["ours"] = lambda: module.vjp(x, hx, ns)[2](d_output, None)
        found["usual"] = lambda: loop(work, module.weights, d_output)
        if ns is not None:
            found["dense"] = lambda: module.vjp(x, hx)[2](d_output, None)
    return found


def loop(work: Work, weights: dict[str, Array], d_output: Array | None) -> dict[str, Array]:
    """The output by its name or, if its gradient is given, the gradients of the input and of each weight."""
    spec = work.spec
    steps, batch_size, _ = work.input.shape
    initial = work.hx or tuple(np.zeros(shape, np.float32) for shape in spec.state_shapes(batch_size).values())
    valid = None
    if work.seq_length is not None:
        valid = (np.arange(steps)[:, None] < work.seq_length)[:, :, None]
    output, pulls = work.input, []
    for layer in range(spec.num_layers):
        outputs = []
        for backward in range(spec.num_directions):
            position = layer * spec.num_directions + backward
            suffix = spec.suffixes()[position]
            state = tuple(part[position] for part in initial)
            y, pull = _direction(spec.kind, suffix, weights, output, state, valid, bool(backward), d_output is not None)
            outputs.append(y)
            pulls.append(pull)
        output = np.concatenate(outputs, axis=-1)
    if d_output is None:
        return {"output": output}
    gradients: dict[str, Array] = {}
    d = d_output
    for layer in reversed(range(spec.num_layers)):
        parts = np.split(d, spec.num_directions, axis=-1)
        its = pulls[layer * spec.num_directions :][: spec.num_directions]
        d = np.sum([pull(part, gradients) for pull, part in zip(its, parts, strict=True)], axis=0)
    return {"input": d, **gradients}


def _direction(
    cell: str,
    suffix: str,
    weights: dict[str, Array],
    x: Array,
    state: State,
    valid: Array | None,
    backward: bool,
    learning: bool,
) -> tuple[Array, Callable[[Array, dict[str, Array]], Array]]:
    """One layer in one direction, and what adds its weights' gradients to a dict and returns the input's."""
    w_ih, w_hh, b_ih, b_hh = (weights[name + suffix] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    order = list(range(len(x)))[:: -1 if backward else 1]
    output = np.zeros((*x.shape[:2], w_hh.shape[1]), x.dtype)
    kept: list[tuple[Array, Back]] = []
    for t in order:
        new, back = _CELLS[cell](x[t] @ w_ih.T + b_ih, state[0] @ w_hh.T + b_hh, state)
        if learning:
            kept.append((state[0], back))
        if valid is None:
            state, output[t] = new, new[0]
        else:
            output[t] = np.where(valid[t], new[0], 0)
            state = tuple(np.where(valid[t], a, b) for a, b in zip(new, state, strict=True))

    def pull(d_output: Array, gradients: dict[str, Array]) -> Array:
        dx = np.zeros_like(x)
        names = [name + suffix for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        d_weights = [np.zeros_like(weights[name]) for name in names]
        d_state: State = tuple(np.zeros_like(part) for part in state)
        for t, (h, back) in zip(reversed(order), reversed(kept), strict=True):
            d_new = (d_state[0] + d_output[t], *d_state[1:])
            if valid is not None:
                d_new = tuple(np.where(valid[t], d, 0) for d in d_new)
            d_input, d_hidden, d_old = back(d_new)
            d_old = (d_old[0] + d_hidden @ w_hh, *d_old[1:])
            if valid is not None:
                d_old = tuple(np.where(valid[t], a, b) for a, b in zip(d_old, d_state, strict=True))
            d_state = d_old
            dx[t] = d_input @ w_ih
            for total, part in zip(
                d_weights, (d_input.T @ x[t], d_hidden.T @ h, d_input.sum(0), d_hidden.sum(0)), strict=True
            ):
                total += part
        gradients.update(zip(names, d_weights, strict=True))
        return dx

    return output, pull


def _sigmoid(a: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-a))
    return result


def _rnn(gi: Array, gh: Array, state: State) -> tuple[State, Back]:
    h = np.tanh(gi + gh)

    def back(d_state: State) -> tuple[Array, Array, State]:
        d = d_state[0] * (1 - h * h)
        return d, d, (np.zeros_like(d),)

    return (h,), back


def _gru(gi: Array, gh: Array, state: State) -> tuple[State, Back]:
    (h,) = state
    (i_r, i_z, i_n), (h_r, h_z, h_n) = np.split(gi, 3, axis=1), np.split(gh, 3, axis=1)
    r, z = _sigmoid(i_r + h_r), _sigmoid(i_z + h_z)
    n = np.tanh(i_n + r * h_n)

    def back(d_state: State) -> tuple[Array, Array, State]:
        (d,) = d_state
        d_n = d * (1 - z) * (1 - n * n)
        d_z = d * (h - n) * z * (1 - z)
        d_r = d_n * h_n * r * (1 - r)
        return np.concatenate((d_r, d_z, d_n), axis=1), np.concatenate((d_r, d_z, d_n * r), axis=1), (d * z,)

    return ((1 - z) * n + z * h,), back


def _lstm(gi: Array, gh: Array, state: State) -> tuple[State, Back]:
    _, c = state
    a_i, a_f, a_g, a_o = np.split(gi + gh, 4, axis=1)
    i, f, g, o = _sigmoid(a_i), _sigmoid(a_f), np.tanh(a_g), _sigmoid(a_o)
    new = f * c + i * g
    tanh_c = np.tanh(new)

    def back(d_state: State) -> tuple[Array, Array, State]:
        d_h, d_c = d_state
        d_c = d_c + d_h * o * (1 - tanh_c * tanh_c)
        d = np.concatenate(
            (
                d_c * g * i * (1 - i),
                d_c * c * f * (1 - f),
                d_c * i * (1 - g * g),
                d_h * tanh_c * o * (1 - o),
            ),
            axis=1,
        )
        return d, d, (np.zeros_like(d_h), d_c * f)

    return (o * tanh_c, new), back


_CELLS: dict[str, Callable[[Array, Array, State], tuple[State, Back]]] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}
