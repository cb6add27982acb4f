"""NumPy's baseline: a simple loop over the time steps.

It computes the same results and gradients as the modules of unirnn, one step at a time for all sequences, with `where`
for those that have ended. Nothing is packed, and no matrix product spans several steps. A baseline must not run code of
unirnn, so the equations of the cells are repeated here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.contract.call import join_state
from unirnn_bench.baselines import Call, Calls
from unirnn_bench.baselines._floor import floor
from unirnn_bench.work import Work

__all__ = ["MODES", "calls"]

Array = NDArray[Any]
State = tuple[Array, ...]
Backward = Callable[[State], tuple[Array, Array, State]]
"""Computes the gradients of a step's two products and of its old state from the gradient of its new state."""

MODES = ("eager",)


def calls(work: Work) -> Calls:
    """Prepare the calls; see `unirnn_bench.baselines.Baselines`."""
    x, ns, resets, d_output = work.input, work.seq_length, work.resets, work.d_output
    module: Any = (work.model or work.spec).build("numpy", seed=0)

    def call(*lengths_and_resets: Any) -> Call:
        if d_output is not None:
            return lambda: module.vjp(x, None, *lengths_and_resets)[2](d_output, None)
        if work.model is not None:
            return lambda: module(x, None, *lengths_and_resets)
        return lambda: module(x, None, *lengths_and_resets)[0]

    found = {"ours": call(ns, resets), "floor": floor(work, np.asarray, lambda a, b, out: np.matmul(a, b, out=out))}
    if work.hx is not None:
        one, hx = x[0], join_state(work.hx)
        found["ours"] = lambda: module.step(one, hx)[0]
    if ns is not None or resets is not None:
        found["dense"] = call()
    if work.model is None:  # it is not usual to write models with NumPy alone
        found["usual"] = lambda: _loop(work, module.weights)
    return found


def _loop(work: Work, weights: dict[str, Array]) -> Array | dict[str, Array]:
    """Run the loop over all layers and directions. Return the output, or all gradients if there is ``d_output``."""
    spec, d = work.spec, work.d_output
    steps, batch_size, _ = work.input.shape
    initial = work.hx or tuple(np.zeros(shape, np.float32) for shape in spec.state_shapes(batch_size).values())
    valid = None
    if work.seq_length is not None:
        valid = (np.arange(steps)[:, None] < work.seq_length)[:, :, None]
    begins: list[Array | None] = [None, None]
    if work.resets is not None:
        after = np.concatenate((work.resets[1:], np.zeros_like(work.resets[:1])))  # where the reverse direction begins
        begins = [work.resets[:, :, None], after[:, :, None]]
    output, directions = work.input, []
    for layer in range(spec.num_layers):
        outputs = []
        for reverse in range(spec.num_directions):
            position = layer * spec.num_directions + reverse
            direction = _Direction(spec.kind, spec.suffixes()[position], weights, valid, begins[reverse], bool(reverse))
            state = tuple(part[position] for part in initial)
            outputs.append(direction.forward(output, state, with_backward=d is not None))
            directions.append(direction)
        output = np.concatenate(outputs, axis=-1)
    if d is None:
        return output
    gradients: dict[str, Array] = {}
    for layer in reversed(range(spec.num_layers)):
        parts = np.split(d, spec.num_directions, axis=-1)
        of_layer = directions[layer * spec.num_directions :][: spec.num_directions]
        d = np.sum([one.backward(part, gradients) for one, part in zip(of_layer, parts, strict=True)], axis=0)
    return {"input": d, **gradients}


class _Direction:
    """One layer in one direction: a forward pass, and a backward pass over what it saved."""

    def __init__(
        self,
        kind: str,
        suffix: str,
        weights: dict[str, Array],
        valid: Array | None,
        begins: Array | None,
        reverse: bool,
    ) -> None:
        self.names = [name + suffix for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")]
        self.weights = [weights[name] for name in self.names]
        self.step = _STEPS[kind]
        self.valid = valid
        self.begins = begins
        self.reverse = reverse

    def forward(self, x: Array, state: State, *, with_backward: bool) -> Array:
        """Return the output `(T, B, H)` of an input `(T, B, I)`."""
        w_ih, w_hh, b_ih, b_hh = self.weights
        output = np.zeros((*x.shape[:2], w_hh.shape[1]), x.dtype)
        self.x = x
        self.saved: list[tuple[int, State, Backward]] = []
        for t in reversed(range(len(x))) if self.reverse else range(len(x)):
            if self.begins is not None:
                state = tuple(np.where(self.begins[t], 0, part) for part in state)
            new, backward = self.step(x[t] @ w_ih.T + b_ih, state[0] @ w_hh.T + b_hh, state)
            if with_backward:
                self.saved.append((t, state, backward))
            if self.valid is None:
                state, output[t] = new, new[0]
            else:
                valid = self.valid[t]
                output[t] = np.where(valid, new[0], 0)
                state = tuple(np.where(valid, a, b) for a, b in zip(new, state, strict=True))
        return output

    def backward(self, d_output: Array, gradients: dict[str, Array]) -> Array:
        """Put the gradients of the weights into ``gradients``, and return the gradient of the input."""
        w_ih, w_hh, _, _ = self.weights
        dx = np.zeros_like(self.x)
        d_weights = [np.zeros_like(weight) for weight in self.weights]
        d_state: State = tuple(np.zeros_like(part) for part in self.saved[0][1])
        for t, state, backward in reversed(self.saved):
            d_new = (d_state[0] + d_output[t], *d_state[1:])
            if self.valid is not None:
                d_new = tuple(np.where(self.valid[t], d, 0) for d in d_new)
            d_input, d_hidden, d_old = backward(d_new)
            d_old = (d_old[0] + d_hidden @ w_hh, *d_old[1:])
            if self.valid is not None:
                d_old = tuple(np.where(self.valid[t], a, b) for a, b in zip(d_old, d_state, strict=True))
            if self.begins is not None:
                d_old = tuple(np.where(self.begins[t], 0, part) for part in d_old)
            d_state = d_old
            dx[t] = d_input @ w_ih
            parts = (d_input.T @ self.x[t], d_hidden.T @ state[0], d_input.sum(0), d_hidden.sum(0))
            for total, part in zip(d_weights, parts, strict=True):
                total += part
        gradients.update(zip(self.names, d_weights, strict=True))
        return dx


def _sigmoid(a: Array) -> Array:
    result: Array = 1 / (1 + np.exp(-a))
    return result


def _rnn(gi: Array, gh: Array, state: State) -> tuple[State, Backward]:
    h = np.tanh(gi + gh)

    def backward(d_state: State) -> tuple[Array, Array, State]:
        d = d_state[0] * (1 - h * h)
        return d, d, (np.zeros_like(d),)

    return (h,), backward


def _gru(gi: Array, gh: Array, state: State) -> tuple[State, Backward]:
    (h,) = state
    (i_r, i_z, i_n), (h_r, h_z, h_n) = np.split(gi, 3, axis=1), np.split(gh, 3, axis=1)
    r, z = _sigmoid(i_r + h_r), _sigmoid(i_z + h_z)
    n = np.tanh(i_n + r * h_n)

    def backward(d_state: State) -> tuple[Array, Array, State]:
        (d,) = d_state
        d_n = d * (1 - z) * (1 - n * n)
        d_z = d * (h - n) * z * (1 - z)
        d_r = d_n * h_n * r * (1 - r)
        return np.concatenate((d_r, d_z, d_n), axis=1), np.concatenate((d_r, d_z, d_n * r), axis=1), (d * z,)

    return ((1 - z) * n + z * h,), backward


def _lstm(gi: Array, gh: Array, state: State) -> tuple[State, Backward]:
    _, c = state
    a_i, a_f, a_g, a_o = np.split(gi + gh, 4, axis=1)
    i, f, g, o = _sigmoid(a_i), _sigmoid(a_f), np.tanh(a_g), _sigmoid(a_o)
    new = f * c + i * g
    tanh_c = np.tanh(new)

    def backward(d_state: State) -> tuple[Array, Array, State]:
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

    return (o * tanh_c, new), backward


_STEPS: dict[str, Callable[[Array, Array, State], tuple[State, Backward]]] = {"RNN": _rnn, "GRU": _gru, "LSTM": _lstm}
