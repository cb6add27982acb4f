"""The oracle: the equations, one sequence and one step at a time, in NumPy.

It shares nothing with the code under test but the specs. It computes in float64, or in complex128, whose
imaginary part carries a derivative through the equations: for a direction v,
``f(x + i*h*v).imag / h`` is the directional derivative to machine precision, since nothing is subtracted and h may
be 1e-30 (Squire and Trapp, 1998). A central difference of the same function would lose half of the digits.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn import GRUSpec, RecurrentSpec, RNNSpec

Array = NDArray[Any]
STEP = 1e-30


def sigmoid(a: Array) -> Array:
    result: Array = 0.5 * np.tanh(0.5 * a) + 0.5  # 1 / (1 + exp(-a)), without the overflow
    return result


def step(
    spec: RecurrentSpec, weights: Mapping[str, Array], suffix: str, x: Array, state: tuple[Array, ...]
) -> tuple[Array, ...]:
    """`(I,)` and `(H,)` each to `(H,)` each."""
    rows = weights["weight_ih" + suffix].shape[0]
    zeros = np.zeros(rows)
    from_input = weights["weight_ih" + suffix] @ x + weights.get("bias_ih" + suffix, zeros)
    from_state = weights["weight_hh" + suffix] @ state[0] + weights.get("bias_hh" + suffix, zeros)
    if isinstance(spec, RNNSpec):
        a = from_input + from_state
        return (np.tanh(a) if spec.nonlinearity == "tanh" else np.where(a.real > 0, a, 0),)
    if isinstance(spec, GRUSpec):
        x_r, x_z, x_n = np.split(from_input, 3)
        h_r, h_z, h_n = np.split(from_state, 3)
        r, z = sigmoid(x_r + h_r), sigmoid(x_z + h_z)
        if spec.reset_after:
            n = np.tanh(x_n + r * h_n)
        else:
            w_n, b_n = weights["weight_hh" + suffix], weights.get("bias_hh" + suffix, zeros)
            n = np.tanh(x_n + (w_n @ (r * state[0]) + b_n)[-spec.hidden_size :])
        return ((1 - z) * n + z * state[0],)
    i, f, g, o = np.split(from_input + from_state, 4)
    c = sigmoid(f) * state[1] + sigmoid(i) * np.tanh(g)
    h = sigmoid(o) * np.tanh(c)
    if "weight_hr" + suffix in weights:
        h = weights["weight_hr" + suffix] @ h
    return (h, c)


def recurrent(
    spec: RecurrentSpec, weights: Mapping[str, Array], x: Array, hx: tuple[Array, ...], lengths: Array | None
) -> tuple[Array, tuple[Array, ...]]:
    """A whole stack, in the spec's layout; ``lengths`` `(B,)`, or None."""
    if x.ndim == 2:
        one = None if lengths is None else np.reshape(lengths, 1)
        axis = 0 if spec.batch_first else 1
        output, final = recurrent(spec, weights, np.expand_dims(x, axis), tuple(p[:, None] for p in hx), one)
        return output.squeeze(axis), tuple(p[:, 0] for p in final)
    if spec.batch_first:
        x = x.swapaxes(0, 1)
    steps, batch_size, _ = x.shape
    kind = np.result_type(x, *hx, *weights.values(), np.float64)
    output = np.zeros((steps, batch_size, spec.num_directions * spec.output_size), kind)
    final = tuple(p.astype(kind) for p in hx)
    for b in range(batch_size):
        n = steps if lengths is None else int(lengths[b])
        layer_input = [x[t, b] for t in range(n)]
        for layer in range(spec.num_layers):
            columns = []
            for d in range(spec.num_directions):
                position = layer * spec.num_directions + d
                suffix = f"_l{layer}" + ("_reverse" if d else "")
                state = tuple(p[position, b] for p in hx)
                outputs: list[Any] = [None] * n
                for t in reversed(range(n)) if d else range(n):
                    state = step(spec, weights, suffix, layer_input[t], state)
                    outputs[t] = state[0]
                columns.append(outputs)
                for part, value in zip(final, state, strict=True):
                    part[position, b] = value
            layer_input = [np.concatenate(parts) for parts in zip(*columns, strict=True)]
        for t in range(n):
            output[t, b] = layer_input[t]
    return output.swapaxes(0, 1) if spec.batch_first else output, final


def derivative(
    spec: RecurrentSpec,
    arrays: Mapping[str, Array],
    lengths: Array | None,
    cotangents: tuple[Array, ...],
    name: str,
    direction: Array,
) -> float:
    """The derivative of ``sum(output * d_output) + sum(state * d_state)`` along a direction of one array.

    ``arrays`` holds ``input``, ``h_0`` (and ``c_0``), and each weight, in float64.
    """
    moved = {**arrays, name: arrays[name] + 1j * STEP * direction}
    hx = tuple(moved.pop(f"{state}_0") for state in spec.states)
    output, final = recurrent(spec, moved, moved.pop("input"), hx, lengths)
    total = sum((r * d).sum() for r, d in zip((output, *final), cotangents, strict=True))
    return float(np.imag(total) / STEP)
