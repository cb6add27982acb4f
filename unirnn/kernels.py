"""The NumPy kernels: forward and backward over packed valid steps.

One idea makes them fast on a CPU, and keeps the promises without a mask:

1. *Pack.* Sort the sequences by length, longest first, and gather the valid steps into rows, step by step. The
   padding is never read. At step t the sequences that are still alive are the first ``alive[t]``.
2. *Project.* One product makes the input's part of all gates for all rows.
3. *Step* on the rows still alive, in place in the state. A sequence that has ended, or in the reverse
   direction has not begun, simply stays in the state: so a sequence of length 0 ends in its initial state.
4. *Backward* is linear in the gradient of the state: whatever does not depend on that gradient is
   computed for all rows at once, a step is a few operations, and each weight's gradient is one product.

N is the number of rows, the sum of the lengths. float16 is computed in float32.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .packing import Packing
from .specs import GRUSpec, RNNSpec, Spec

__all__ = ["Weights", "direction", "recurrent"]

Array = NDArray[Any]
State = tuple[Array, ...]
Gradients = dict[str, Array]
Pullback = Callable[[Array, State], Gradients]


class Weights(NamedTuple):
    """Weights of one layer and direction, or their gradients; the biases are None together."""

    weight_ih: Any
    weight_hh: Any
    bias_ih: Any
    bias_hh: Any


class _Direction(ABC):
    """One layer in one direction: `forward`, then `backward`.

    A subclass is one cell. It steps on views of the rows of one step: ``gates`` `(n, gates*H)` holds the
    input's product, and is overwritten by the gates; ``state`` `(n, H)` each is overwritten by the next state;
    ``extra`` `(n, H)` is for one thing more that the backward pass needs.
    """

    def __init__(self, spec: Spec, weights: Weights, packing: Packing, *, backward: bool) -> None:
        self.spec = spec
        self.weights = weights
        self.packing = packing
        self.backwards = backward
        self.size = spec.hidden_size
        # What multiplies the state itself: as a rule, all of W_hh.
        self.recurrent = weights.weight_hh
        self.recurrent_bias = weights.bias_hh

    def _gate(self, gates: Array, name: str) -> Array:
        start = self.spec.gates.index(name) * self.size
        return gates[:, start : start + self.size]

    def forward(self, x: Array, initial: State) -> tuple[Array, State]:
        """`(N, I)` and the initial state `(B, H)` each, to `(N, H)` and the final state, which overwrites it."""
        w_ih, _, b_ih, _ = self.weights
        self.x = x
        self.gates = x @ w_ih.T
        if b_ih is not None:
            self.gates += b_ih
        # A transposed view costs up to 2.7 times as much in each of the T products.
        recurrent = np.ascontiguousarray(self.recurrent.T)
        state = initial
        rows, dtype = x.shape[0], x.dtype
        self.before = tuple(np.empty((rows, self.size), dtype) for _ in initial)
        self.extra = np.empty((rows, self.size), dtype)
        outputs = np.empty((rows, self.size), dtype)
        product = np.empty((initial[0].shape[0], recurrent.shape[1]), dtype)
        for n, at in self.packing.steps(backward=self.backwards):
            alive = tuple(part[:n] for part in state)
            for kept, part in zip(self.before, alive, strict=True):
                kept[at] = part
            hidden = np.matmul(alive[0], recurrent, out=product[:n])
            if self.recurrent_bias is not None:
                hidden += self.recurrent_bias
            self._step(self.gates[at], hidden, alive, self.extra[at])
            outputs[at] = alive[0]
        self.outputs = outputs
        return outputs, state

    def backward(self, d_outputs: Array, d_final: State) -> tuple[Array, State, Weights]:
        """Gradients of outputs `(N, H)` and final state, overwritten, to those of x, initial state and weights."""
        w_ih, _, b_ih, _ = self.weights
        d_state = d_final
        d_hidden = self._coefficients()
        d_product = d_hidden[:, : len(self.recurrent)]
        for n, at in self.packing.steps(backward=not self.backwards):
            alive = tuple(part[:n] for part in d_state)
            alive[0][...] += d_outputs[at]
            self._step_back(at, alive)
            alive[0][...] += d_product[at] @ self.recurrent
        d_input = self._input_gradient(d_hidden)
        d_weights = Weights(
            d_input.T @ self.x,
            self._recurrent_gradient(d_hidden),
            None if b_ih is None else d_input.sum(axis=0),
            None if b_ih is None else d_hidden.sum(axis=0),
        )
        return d_input @ w_ih, d_state, d_weights

    @abstractmethod
    def _step(self, gates: Array, hidden: Array, state: State, extra: Array) -> None:
        """One step: products of the input `(n, gates*H)` and of the state, and the state, in place."""

    @abstractmethod
    def _coefficients(self) -> Array:
        """`(N, gates*H)`: the gradient of the products with W_hh, but for the factor that a step brings."""

    @abstractmethod
    def _step_back(self, at: slice, d_state: State) -> None:
        """One step back: multiply the coefficients of its rows, and leave the direct part of the gradient."""

    def _input_gradient(self, d_hidden: Array) -> Array:
        """`(N, gates*H)`: the gradient of the input's product, after the last step back."""
        return d_hidden

    def _recurrent_gradient(self, d_hidden: Array) -> Array:
        """`(gates*H, H)`: the gradient of W_hh."""
        gradient: Array = d_hidden.T @ self.before[0]
        return gradient


class _RNN(_Direction):
    """``h' = act(x + W_hh h)``"""

    def _step(self, gates: Array, hidden: Array, state: State, extra: Array) -> None:
        gates += hidden
        if isinstance(self.spec, RNNSpec) and self.spec.nonlinearity == "relu":
            np.maximum(gates, 0, out=state[0])
        else:
            np.tanh(gates, out=state[0])

    def _coefficients(self) -> Array:
        h = self.outputs
        if isinstance(self.spec, RNNSpec) and self.spec.nonlinearity == "relu":
            self.da = (h > 0).astype(h.dtype)
        else:
            self.da = 1 - h * h
        return self.da

    def _step_back(self, at: slice, d_state: State) -> None:
        (dh,) = d_state
        self.da[at] *= dh
        dh[...] = 0


class _GRU(_Direction):
    """``r, z = s(x + W h)    n = tanh(x_n + r * (W_hn h))    h' = n + z * (h - n)``; extra is ``W_hn h``."""

    def _step(self, gates: Array, hidden: Array, state: State, extra: Array) -> None:
        size = self.size
        (h,) = state
        rz, n = gates[:, : 2 * size], gates[:, 2 * size :]
        extra[...] = hidden[:, 2 * size :]
        rz += hidden[:, : 2 * size]
        _sigmoid(rz)
        n += rz[:, :size] * extra
        np.tanh(n, out=n)
        h -= n
        h *= rz[:, size:]
        h += n

    def _coefficients(self) -> Array:
        r, z, n = (self._gate(self.gates, name) for name in "rzn")
        h = self.before[0]
        rows, size = self.extra.shape
        self.z = z
        # n stands twice, since the reset gate comes between: with respect to W_hn h, then to x_n.
        self.da = np.empty((rows, 4, size), r.dtype)
        dn = (1 - z) * (1 - n * n)
        self.da[:, 0] = dn * self.extra * r * (1 - r)
        self.da[:, 1] = (h - n) * z * (1 - z)
        self.da[:, 2] = dn * r
        self.da[:, 3] = dn
        return self.da.reshape(rows, 4 * size)[:, : 3 * size]

    def _step_back(self, at: slice, d_state: State) -> None:
        (dh,) = d_state
        self.da[at] *= dh[:, None]
        dh *= self.z[at]

    def _input_gradient(self, d_hidden: Array) -> Array:
        return self.da[:, (0, 1, 3)].reshape(d_hidden.shape)


class _GRUResetBefore(_Direction):
    """``r, z = s(x + W h)    n = tanh(x_n + W_hn (r * h))    h' = n + z * (h - n)``; extra is ``r * h``.

    W_hn multiplies ``r * h``, so a step has two products, and a step back as well.
    """

    def __init__(self, spec: Spec, weights: Weights, packing: Packing, *, backward: bool) -> None:
        super().__init__(spec, weights, packing, backward=backward)
        cut = 2 * self.size
        self.recurrent, self.recurrent_n = weights.weight_hh[:cut], weights.weight_hh[cut:]
        self.bias_n = None
        if weights.bias_hh is not None:
            self.recurrent_bias, self.bias_n = weights.bias_hh[:cut], weights.bias_hh[cut:]
        self.recurrent_n_t = np.ascontiguousarray(self.recurrent_n.T)

    def _step(self, gates: Array, hidden: Array, state: State, extra: Array) -> None:
        size = self.size
        (h,) = state
        rz, n = gates[:, : 2 * size], gates[:, 2 * size :]
        rz += hidden
        _sigmoid(rz)
        np.multiply(rz[:, :size], h, out=extra)
        n += extra @ self.recurrent_n_t
        if self.bias_n is not None:
            n += self.bias_n
        np.tanh(n, out=n)
        h -= n
        h *= rz[:, size:]
        h += n

    def _coefficients(self) -> Array:
        r, z, n = (self._gate(self.gates, name) for name in "rzn")
        rows, size = self.extra.shape
        self.r, self.z = r, z
        self.da = np.empty((rows, 3, size), r.dtype)
        self.da[:, 0] = self.extra * (1 - r)
        self.da[:, 1] = (self.before[0] - n) * z * (1 - z)
        self.da[:, 2] = (1 - z) * (1 - n * n)
        return self.da.reshape(rows, 3 * size)

    def _step_back(self, at: slice, d_state: State) -> None:
        (dh,) = d_state
        self.da[at, 1:] *= dh[:, None]
        d_extra = self.da[at, 2] @ self.recurrent_n
        self.da[at, 0] *= d_extra
        d_extra *= self.r[at]
        dh *= self.z[at]
        dh += d_extra

    def _recurrent_gradient(self, d_hidden: Array) -> Array:
        cut = 2 * self.size
        return np.concatenate((d_hidden[:, :cut].T @ self.before[0], d_hidden[:, cut:].T @ self.extra))


class _LSTM(_Direction):
    """``c' = f * c + i * g    h' = o * tanh(c')``; extra is ``tanh(c')``."""

    def _step(self, gates: Array, hidden: Array, state: State, extra: Array) -> None:
        size = self.size
        h, c = state
        gates += hidden
        i, f, g, o = (self._gate(gates, name) for name in "ifgo")
        _sigmoid(gates[:, : 2 * size])
        np.tanh(g, out=g)
        _sigmoid(o)
        c *= f
        c += i * g
        np.tanh(c, out=extra)
        np.multiply(o, extra, out=h)

    def _coefficients(self) -> Array:
        i, f, g, o = (self._gate(self.gates, name) for name in "ifgo")
        tanh_c, c = self.extra, self.before[1]
        rows, size = tanh_c.shape
        self.f = f
        self.dc = o * (1 - tanh_c * tanh_c)
        self.da = np.empty((rows, 4, size), f.dtype)
        self.da[:, 0] = g * i * (1 - i)
        self.da[:, 1] = c * f * (1 - f)
        self.da[:, 2] = i * (1 - g * g)
        self.da[:, 3] = tanh_c * o * (1 - o)
        return self.da.reshape(rows, 4 * size)

    def _step_back(self, at: slice, d_state: State) -> None:
        dh, dc = d_state
        dc += dh * self.dc[at]
        self.da[at, :3] *= dc[:, None]
        self.da[at, 3] *= dh
        dc *= self.f[at]
        dh[...] = 0


def _sigmoid(a: Array) -> None:
    """In place, by tanh: it can't overflow, and NumPy has no exp that is as fast."""
    a *= 0.5
    np.tanh(a, out=a)
    a += 1
    a *= 0.5


_CELLS: dict[str, type[_Direction]] = {"RNN": _RNN, "GRU": _GRU, "LSTM": _LSTM}


def _cell(spec: Spec) -> type[_Direction]:
    return _GRUResetBefore if isinstance(spec, GRUSpec) and not spec.reset_after else _CELLS[spec.cell]


def _computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def direction(
    spec: Spec, weights: Weights, x: Array, state: State, lengths: NDArray[np.int64], *, backward: bool
) -> tuple[Array, State, Callable[[Array, State], tuple[Array, State, Weights]]]:
    """Run one layer in one direction.

    Parameters
    ----------
    spec
        What the layer is; its sizes are read off the arrays.
    weights
        Of this layer and direction.
    x
        `(T, B, I)`; float16, float32 or float64.
    state
        Initial state, `(B, H)` each.
    lengths
        `(B,)`, checked.
    backward
        Whether it runs from the last valid step to the first.

    Returns
    -------
    outputs
        `(T, B, H)`, zero in the padding.
    final_state
        `(B, H)` each.
    pullback
        ``pullback(d_outputs, d_final_state)`` gives the gradients of x, the initial state and the weights.
    """
    compute = _computed(x.dtype)

    def widen(array: Any) -> Any:
        return None if array is None else array.astype(compute, copy=False)

    def narrow(array: Any) -> Any:
        return None if array is None else array.astype(x.dtype, copy=False)

    packing = Packing(lengths, x.shape[0])
    run = _cell(spec)(spec, Weights(*map(widen, weights)), packing, backward=backward)
    outputs, final = run.forward(packing.pack(widen(x)), tuple(packing.sort(widen(part)) for part in state))

    def pullback(d_outputs: Array, d_final: State) -> tuple[Array, State, Weights]:
        d_rows, d_state, d_weights = run.backward(
            packing.pack(widen(d_outputs)), tuple(packing.sort(widen(part)) for part in d_final)
        )
        return (
            narrow(packing.unpack(d_rows)),
            tuple(narrow(packing.unsort(part)) for part in d_state),
            Weights(*map(narrow, d_weights)),
        )

    return narrow(packing.unpack(outputs)), tuple(narrow(packing.unsort(part)) for part in final), pullback


def recurrent(
    spec: Spec,
    weights: Mapping[str, Array],
    input: Array,
    hx: State | None,
    lengths: NDArray[np.int64] | None,
    *,
    noise: Array | None = None,
) -> tuple[Array, State, Pullback]:
    """Run a whole stack of layers.

    Parameters
    ----------
    spec
        The layers; ``proj_size`` must be 0.
    weights
        By the names of `Spec.weight_shapes`, of the input's dtype.
    input
        `(T, B, I)`, `(B, T, I)` if ``batch_first``, or `(T, I)`; float16, float32 or float64.
    hx
        Initial state, `(L*D, B, H)` each, or `(L*D, H)`; None is zeros.
    lengths
        `(B,)`, checked; None if every step is valid.
    noise
        `(L-1, T, B, D*H)`: what the output of every layer but the last is multiplied with (dropout).

    Returns
    -------
    output
        As the input, with D*H on the last axis; zero in the padding.
    final_state
        As ``hx``.
    pullback
        ``pullback(d_output, d_final_state)`` gives the gradients by name: ``input``, ``h_0`` (and
        ``c_0``), and each weight.
    """
    dtype = input.dtype
    compute = _computed(dtype)
    batched = input.ndim == 3

    def to_time_major(array: Array) -> Array:
        """`(B, T, F)`, `(T, B, F)` or `(T, F)` to `(T, B, F)`."""
        array = array.astype(compute, copy=False)
        if not batched:
            return array[:, None]
        return array.swapaxes(0, 1) if spec.batch_first else array

    def from_time_major(array: Array) -> Array:
        array = array.astype(dtype, copy=False)
        if not batched:
            return array[:, 0]
        return np.ascontiguousarray(array.swapaxes(0, 1)) if spec.batch_first else array

    x = to_time_major(input)
    steps, batch_size = x.shape[:2]
    packing = Packing(np.full(batch_size, steps) if lengths is None else lengths, steps)
    shapes = spec.state_shapes(batch_size).values()

    def read_state(state: State) -> State:
        return tuple(
            packing.sort(part.astype(compute, copy=False).reshape(shape))
            for part, shape in zip(state, shapes, strict=True)
        )

    def write_state(directions: list[State]) -> State:
        stacked = (packing.unsort(np.stack(part)).astype(dtype, copy=False) for part in zip(*directions, strict=True))
        return tuple(part if batched else part[:, 0] for part in stacked)

    def cast(name: str) -> Array | None:
        return weights[name].astype(compute, copy=False) if name in weights else None

    initial = tuple(np.zeros(shape, compute) for shape in shapes) if hx is None else read_state(hx)
    rows_noise = None if noise is None else [packing.pack(layer.astype(compute, copy=False)) for layer in noise]
    width = spec.num_directions
    runs: list[_Direction] = []
    finals: list[State] = []
    rows = packing.pack(x)
    for layer in range(spec.num_layers):
        outputs = []
        for backward in range(width):
            position = layer * width + backward
            w = Weights(*(cast(name + spec.suffixes()[position]) for name in Weights._fields))
            run = _cell(spec)(spec, w, packing, backward=bool(backward))
            out, final = run.forward(rows, tuple(part[position] for part in initial))
            outputs.append(out)
            finals.append(final)
            runs.append(run)
        rows = outputs[0] if width == 1 else np.concatenate(outputs, axis=1)
        if rows_noise is not None and layer < spec.num_layers - 1:
            rows = rows * rows_noise[layer]

    def pullback(d_output: Array, d_final: State) -> Gradients:
        d_rows = packing.pack(to_time_major(d_output))
        d_finals = read_state(d_final)
        gradients: Gradients = {}
        d_initials: list[State] = [()] * len(runs)
        for layer in reversed(range(spec.num_layers)):
            if rows_noise is not None and layer < spec.num_layers - 1:
                d_rows = d_rows * rows_noise[layer]
            d_x: Array | None = None
            for backward in range(width):
                position = layer * width + backward
                d_out = d_rows[:, backward * spec.hidden_size : (backward + 1) * spec.hidden_size]
                part, d_initials[position], d_weights = runs[position].backward(
                    d_out, tuple(d[position] for d in d_finals)
                )
                d_x = part if d_x is None else d_x + part
                for name, gradient in zip(Weights._fields, d_weights, strict=True):
                    if gradient is not None:
                        gradients[name + spec.suffixes()[position]] = gradient.astype(dtype, copy=False)
            assert d_x is not None
            d_rows = d_x
        d_hx = {f"{name}_0": part for name, part in zip(spec.states, write_state(d_initials), strict=True)}
        return {"input": from_time_major(packing.unpack(d_rows)), **d_hx, **gradients}

    return from_time_major(packing.unpack(rows)), write_state(finals), pullback
