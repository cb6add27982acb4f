"""The NumPy kernels: forward and backward over packed valid steps.

One idea makes them fast on a CPU, and keeps the promises without a mask:

1. *Pack.* Sort the sequences by length, longest first, and gather the valid steps into rows, step by step. The
   padding is never read. At step t the sequences that are still alive are the first ``alive[t]``.
2. *Project.* Chunk by chunk, one product makes the input's part of all gates for a few hundred rows.
3. *Step* on the rows still alive. A sequence that has ended, or in the reverse direction has not begun, simply stays
   in the state: so a sequence of length 0 ends in its initial state.
4. *Backward* is linear in the gradient of the state: chunk by chunk, whatever does not depend on that gradient is
   computed for many steps at once, a step is a few operations, and each weight's gradient is one product.

How a step's products are made, `products` says, and how its arrays lie, `memory`; what each trick is worth, and what
else was tried, the page "How the speed was got".

N is the number of rows, the sum of the lengths. float16 is computed in float32.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import memory
from .memory import arrays, empty
from .packing import Packing, Run
from .products import ByGate, SumOfGates
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


# Places in memory: what an operation writes to lies at another than what it reads, but for what it overwrites.
_BLOCKS, _STATES, _PRODUCTS, _REST = 0, 64, 128, 192


class _Kept(NamedTuple):
    """What the forward pass leaves of a run: its blocks, and each part of the state `(n, H)` before it."""

    blocks: Array
    before: State


class _Direction(ABC):
    """One layer in one direction: `forward`, then `backward`.

    A subclass is one cell. What it keeps of a step is a *block* of arrays `(n, H)`: first the gates, which hold the
    input's products, then the gates themselves. It comes twice: as `(n, H)` arrays, and flat, so that neighbouring
    gates are computed as one piece of memory. See `memory` for how the arrays lie: an operation writes over one of its
    inputs, or to another block.

    A sigmoid is ``(1 + tanh(a / 2)) / 2``: it can't overflow, and NumPy has no exp that is as fast. The half of a
    stands in the weights, which is exact; what is kept of such a gate is twice the gate, and the other half is taken
    of what it is multiplied with.
    """

    sigmoids: str
    """The gates that are sigmoids."""
    products: int
    """How many gates the state has a product with."""
    kept: int
    """How many arrays a block has: the gates, and what else the backward pass needs."""
    forgets = False
    """Whether the backward pass needs no blocks, since the state after a step tells all."""
    coefficients: int
    """How many arrays a step back takes: first the gradients of the gates' products with the state."""
    of_input: tuple[int, ...] = ()
    """Which of them are the gradients of the input's products, where these are not the same."""

    def __init__(self, spec: Spec, weights: Weights, packing: Packing, *, backward: bool) -> None:
        self.weights = weights
        self.packing = packing
        self.backwards = backward
        self.size = spec.hidden_size
        self.num_gates = len(spec.gates)
        self.batch_size = packing.shape[1]
        self.scales = [0.5 if gate in self.sigmoids else 1.0 for gate in spec.gates]
        # As arrays, since NumPy takes longer to convert a number than to add it.
        self.dtype = weights.weight_hh.dtype
        self.half, self.one = np.array(0.5, self.dtype), np.array(1, self.dtype)

    def _by_gate(self, weight: Array) -> Array:
        """`(gates*H, ...)` to `(gates, H, ...)`: a copy, of which the sigmoids' part is halved."""
        blocks = weight.reshape(self.num_gates, self.size, -1)
        scaled: Array = blocks * np.array(self.scales, weight.dtype)[:, None, None]
        return scaled.reshape(self.num_gates, self.size, *weight.shape[1:])

    def _input_bias(self, b_ih: Array, b_hh: Array) -> Array:
        """`(gates, H)`: what is added to the input's product; as a rule, both biases."""
        return self._by_gate(b_ih + b_hh)

    def _recurrent(self) -> Array:
        """`(products, H, H)`: what multiplies the state itself; as a rule, all of W_hh."""
        return self._by_gate(self.weights.weight_hh)

    def _blocks(self, runs: Sequence[Run], count: int, place: int, *, keep: bool) -> Iterator[Array]:
        return memory.blocks(runs, count, self.size, self.dtype, place, keep=keep)

    def forward(self, x: Array, initial: State, *, keep: bool) -> tuple[Array, State]:
        """`(N, I)` and the initial state `(B, H)` each, to `(N, H)` and the final state, which overwrites it.

        ``keep`` for a backward pass; without it no more memory is taken than a chunk needs.
        """
        w_ih, _, b_ih, b_hh = self.weights
        weight = self._by_gate(w_ih).reshape(w_ih.shape).T
        bias = None if b_ih is None else self._input_bias(b_ih, b_hh).reshape(-1)
        product = ByGate(self._recurrent().swapaxes(1, 2), self.batch_size)
        chunks = self.packing.chunks
        self.x = x
        self.outputs = empty((len(x), self.size), self.dtype, _STATES)
        self.runs: list[_Kept] = []
        projected = np.empty((max((chunk.size for chunk in chunks), default=0), weight.shape[1]), self.dtype)
        turn = -1 if self.backwards else 1
        runs = [run for chunk in chunks[::turn] for run in chunk.runs[::turn]]
        all_flat = self._blocks(runs, self.kept, _BLOCKS, keep=keep and not self.forgets)
        all_hidden = self._blocks([run._replace(steps=1) for run in runs], self.products, _PRODUCTS, keep=False)
        for chunk in chunks[::turn]:
            of_input = np.matmul(x[chunk.rows], weight, out=projected[: chunk.size])
            if bias is not None:
                of_input += bias
            for run in chunk.runs[::turn]:
                n = run.alive
                flat, (hidden_flat,) = next(all_flat), next(all_hidden)
                blocks, hidden = arrays(flat, n, self.size), arrays(hidden_flat, n, self.size)
                by_row = run.of(of_input).reshape(run.steps, n, self.num_gates, self.size)
                blocks[:, : self.num_gates] = by_row.swapaxes(1, 2)
                state = tuple(part[:n] for part in initial)
                if keep:
                    self.runs.append(_Kept(flat, tuple(part.copy() for part in state)))
                multiply = product.into(hidden)
                outputs = run.of(self.outputs[chunk.rows])
                now = state
                for whole, block, h in zip(flat[::turn], blocks[::turn], outputs[::turn], strict=True):
                    multiply(now[0])
                    now = self._step(whole, block, hidden_flat, hidden, now, h)
                for part, last in zip(state, now, strict=True):
                    part[...] = last
        return self.outputs, initial

    def _shift(self, steps: Array, first: Array, out: Array) -> None:
        """`(steps, n, H)` of a part of the state after each step of a run: to that before each step."""
        if self.backwards:
            out[-1], out[:-1] = first, steps[1:]
        else:
            out[0], out[1:] = first, steps[:-1]

    def backward(self, d_outputs: Array, d_final: State) -> tuple[Array, State, Weights]:
        """Gradients of outputs `(N, H)` and final state, overwritten, to those of x, initial state and weights."""
        w_ih, w_hh, b_ih, _ = self.weights
        longest = max((chunk.size for chunk in self.packing.chunks), default=0)

        def rows(width: int, place: int) -> Array:
            return empty((longest, width), self.dtype, place)

        chunk_before = tuple(rows(self.size, _STATES) for _ in d_final)
        chunk_hidden = rows(self.num_gates * self.size, _REST)
        chunk_input = rows(self.num_gates * self.size, _REST) if self.of_input else chunk_hidden
        d_state = tuple(empty(part.shape, self.dtype, _REST) for part in d_final)
        for part, given in zip(d_state, d_final, strict=True):
            part[...] = given
        self._begin_backward(longest)
        d_x = np.empty_like(self.x)
        d_weights = Weights(*(None if weight is None else np.zeros_like(weight) for weight in self.weights))
        of_weight_ih, of_weight_hh = (np.empty(weight.shape, weight.dtype) for weight in (w_ih, w_hh))
        turn = 1 if self.backwards else -1
        kept = reversed(self.runs)
        runs = [run for chunk in self.packing.chunks[::turn] for run in chunk.runs[::turn]]
        all_da = self._blocks(runs, self.coefficients, _PRODUCTS, keep=False)
        all_spare = empty((self.batch_size, self.size), self.dtype, _STATES)
        for chunk in self.packing.chunks[::turn]:
            for run in chunk.runs[::turn]:
                n = run.alive
                flat, first = next(kept)
                blocks, da = arrays(flat, n, self.size), arrays(next(all_da), n, self.size)
                outputs = run.of(self.outputs[chunk.rows])
                before = tuple(run.of(part) for part in chunk_before)
                for out, part, steps in zip(before, first, self._states(blocks, outputs), strict=True):
                    self._shift(steps, part, out)
                self._coefficients(run, blocks.swapaxes(0, 1), outputs, before, da.swapaxes(0, 1))
                alive = tuple(part[:n] for part in d_state)
                multiply, spare = self.product_back.of(n), all_spare[:n]
                d_steps = run.of(d_outputs[chunk.rows])
                for d_h, d_block, block in zip(d_steps[::turn], da[::turn], blocks[::turn], strict=True):
                    alive[0][...] += d_h
                    self._step_back(d_block, block, alive, spare, multiply)
                shape = (run.steps, n, self.num_gates, self.size)
                of_hidden, of_input = (d[run.rows].reshape(shape) for d in (chunk_hidden, chunk_input))
                of_hidden[...] = da[:, : self.num_gates].swapaxes(1, 2)
                for gate, place in enumerate(self.of_input):
                    of_input[:, :, gate] = da[:, place]
            d_input, d_hidden, h = (part[: chunk.size] for part in (chunk_input, chunk_hidden, chunk_before[0]))
            np.matmul(d_input, w_ih, out=d_x[chunk.rows])
            d_weights.weight_ih[...] += np.matmul(d_input.T, self.x[chunk.rows], out=of_weight_ih)
            d_weights.weight_hh[...] += self._recurrent_gradient(d_hidden, h, of_weight_hh)
            if b_ih is not None:
                d_weights.bias_ih[...] += d_input.sum(axis=0)
                d_weights.bias_hh[...] += d_hidden.sum(axis=0)
        return d_x, d_state, d_weights

    @abstractmethod
    def _step(self, flat: Array, block: Array, hidden_flat: Array, hidden: Array, state: State, h: Array) -> State:
        """One step: the block holds the input's products, and hidden the state's; h `(n, H)` is to be written.

        ``block`` `(kept, n, H)` and ``hidden`` `(products, n, H)`, which may be overwritten, come flat as well.
        Returns the next state, h first.
        """

    def _states(self, blocks: Array, outputs: Array) -> State:
        """`(steps, n, H)`: each part of the state after each step of a run."""
        return (outputs,)

    def _begin_backward(self, longest: int) -> None:
        """Make what all steps back share; ``longest`` is the size of the largest chunk."""
        weight = self.weights.weight_hh.reshape(self.num_gates, self.size, self.size)
        self.product_back = SumOfGates(weight[: self.products], self.batch_size)

    @abstractmethod
    def _coefficients(self, run: Run, blocks: Array, h: Array, before: State, da: Array) -> None:
        """The gradients of a run's blocks, but for the factor that a step brings.

        ``blocks`` `(kept, steps, n, H)`, h and the parts of the state before `(steps, n, H)` to
        ``da`` `(coefficients, steps, n, H)`.
        """

    @abstractmethod
    def _step_back(
        self, da: Array, block: Array, d_state: State, spare: Array, multiply: Callable[[Array, Array], object]
    ) -> None:
        """One step back: multiply the coefficients, and turn the gradient of the state into that before it.

        ``multiply(da, out)`` leaves the gradient that the products with the state bring; ``spare`` is `(n, H)`.
        """

    def _recurrent_gradient(self, d_hidden: Array, h: Array, out: Array) -> Array:
        """`(gates*H, H)`: the gradient of W_hh that a chunk brings."""
        return np.matmul(d_hidden.T, h, out=out)


class _RNN(_Direction):
    """``h' = act(x + W_hh h)``"""

    sigmoids = ""
    products = 1
    kept = 1
    forgets = True
    coefficients = 1

    def __init__(self, spec: Spec, weights: Weights, packing: Packing, *, backward: bool) -> None:
        super().__init__(spec, weights, packing, backward=backward)
        self.is_relu = isinstance(spec, RNNSpec) and spec.nonlinearity == "relu"

    def _step(self, flat: Array, block: Array, hidden_flat: Array, hidden: Array, state: State, h: Array) -> State:
        np.add(hidden, block, out=hidden)  # not flat: what is between the arrays would add up
        if self.is_relu:
            np.maximum(hidden[0], 0, out=h)
        else:
            np.tanh(hidden[0], out=h)
        return (h,)

    def _coefficients(self, run: Run, blocks: Array, h: Array, before: State, da: Array) -> None:
        if self.is_relu:
            np.greater(h, 0, out=da[0])
        else:
            _slope_of_tanh(h, out=da[0])

    def _step_back(
        self, da: Array, block: Array, d_state: State, spare: Array, multiply: Callable[[Array, Array], object]
    ) -> None:
        (dh,) = d_state
        np.multiply(da[0], dh, out=da[0])
        multiply(da, dh)


class _GRU(_Direction):
    """``r, z = s(x + W h)    n = tanh(x_n + r * (W_hn h + b_hn))    h' = n + z * (h - n)``.

    Kept are 2r, 2z, n, and the half of ``W_hn h + b_hn``, which is multiplied with 2r. The coefficients are those of
    r, z, ``W_hn h`` and n, since the reset gate comes between the latter two, and z.
    """

    sigmoids = "rz"
    products = 3
    kept = 4
    coefficients = 5
    of_input = (0, 1, 3)

    def _input_bias(self, b_ih: Array, b_hh: Array) -> Array:
        bias = self._by_gate(b_ih)
        bias[:2] += self._by_gate(b_hh)[:2]
        return bias

    def _recurrent(self) -> Array:
        recurrent = super()._recurrent()
        recurrent[2] *= self.half
        bias = self.weights.bias_hh
        self.half_bias_n = None
        if bias is not None:
            # For each row, since NumPy is quicker on arrays of one shape.
            self.half_bias_n = empty((self.batch_size, self.size), self.dtype, _REST)
            self.half_bias_n[...] = self.half * bias[2 * self.size :]
        return recurrent

    def _step(self, flat: Array, block: Array, hidden_flat: Array, hidden: Array, state: State, h: Array) -> State:
        rz, (r2, z2, n, hidden_n), spare = flat[:2], block, hidden[0]
        np.add(rz, hidden_flat[:2], out=rz)
        np.tanh(rz, out=rz)
        np.add(rz, self.one, out=rz)
        if self.half_bias_n is None:
            hidden_n[...] = hidden[2]
        else:
            np.add(hidden[2], self.half_bias_n[: len(h)], out=hidden_n)
        np.multiply(r2, hidden_n, out=spare)
        np.add(n, spare, out=n)
        np.tanh(n, out=n)
        np.subtract(state[0], n, out=spare)
        np.multiply(spare, z2, out=spare)
        np.multiply(spare, self.half, out=spare)
        np.add(spare, n, out=h)
        return (h,)

    def _coefficients(self, run: Run, blocks: Array, h: Array, before: State, da: Array) -> None:
        r2, z2, n, hidden_n = blocks
        d_r, d_z, d_hidden_n, d_n, z = da
        np.multiply(z2, self.half, out=z)
        _slope_of_tanh(n, out=d_n)
        np.subtract(1, z, out=d_z)
        d_n *= d_z
        d_z *= z
        np.subtract(before[0], n, out=d_hidden_n)
        d_z *= d_hidden_n
        np.multiply(d_n, r2, out=d_hidden_n)
        d_hidden_n *= self.half
        np.subtract(2, r2, out=d_r)
        d_r *= d_hidden_n
        d_r *= hidden_n

    def _step_back(
        self, da: Array, block: Array, d_state: State, spare: Array, multiply: Callable[[Array, Array], object]
    ) -> None:
        (dh,) = d_state
        gates = da[:4]
        np.multiply(gates, dh, out=gates)
        multiply(da[:3], spare)
        np.multiply(dh, da[4], out=dh)
        np.add(dh, spare, out=dh)


class _GRUResetBefore(_Direction):
    """``r, z = s(x + W h)    n = tanh(x_n + W_hn (r * h))    h' = n + z * (h - n)``.

    Kept are 2r, 2z, n and ``r * h``, which W_hn multiplies: a step has two products, and a step back as well. The
    coefficients are those of r, z and n, and z.
    """

    sigmoids = "rz"
    products = 2
    kept = 4
    coefficients = 4

    def _recurrent(self) -> Array:
        recurrent = super()._recurrent()
        self.product_n = ByGate(recurrent[2:].swapaxes(1, 2), self.batch_size)
        return recurrent[:2]

    def _step(self, flat: Array, block: Array, hidden_flat: Array, hidden: Array, state: State, h: Array) -> State:
        rz, (r2, z2, n, reset), spare = flat[:2], block, hidden[0]
        np.add(rz, hidden_flat, out=rz)
        np.tanh(rz, out=rz)
        np.add(rz, self.one, out=rz)
        np.multiply(r2, state[0], out=spare)
        np.multiply(spare, self.half, out=reset)
        self.product_n.into(hidden[:1])(reset)
        np.add(n, spare, out=n)
        np.tanh(n, out=n)
        np.subtract(state[0], n, out=spare)
        np.multiply(spare, z2, out=spare)
        np.multiply(spare, self.half, out=spare)
        np.add(spare, n, out=h)
        return (h,)

    def _begin_backward(self, longest: int) -> None:
        super()._begin_backward(longest)
        self.product_back_n = SumOfGates(self.weights.weight_hh[None, 2 * self.size :], self.batch_size)
        self.reset = empty((longest, self.size), self.dtype, _BLOCKS)

    def _coefficients(self, run: Run, blocks: Array, h: Array, before: State, da: Array) -> None:
        r2, z2, n, reset = blocks
        d_r, d_z, d_n, z = da
        run.of(self.reset)[...] = reset
        np.multiply(z2, self.half, out=z)
        _slope_of_tanh(n, out=d_n)
        np.subtract(1, z, out=d_z)
        d_n *= d_z
        d_z *= z
        np.subtract(before[0], n, out=d_r)
        d_z *= d_r
        np.multiply(r2, self.half, out=d_r)
        np.subtract(1, d_r, out=d_r)
        d_r *= reset

    def _step_back(
        self, da: Array, block: Array, d_state: State, spare: Array, multiply: Callable[[Array, Array], object]
    ) -> None:
        (dh,) = d_state
        zn = da[1:3]
        np.multiply(zn, dh, out=zn)
        self.product_back_n.of(len(dh))(da[2:3], spare)
        np.multiply(da[0], spare, out=da[0])
        np.multiply(dh, da[3], out=dh)
        np.multiply(spare, block[0], out=spare)
        np.multiply(spare, self.half, out=spare)
        np.add(dh, spare, out=dh)
        multiply(da[:2], spare)
        np.add(dh, spare, out=dh)

    def _recurrent_gradient(self, d_hidden: Array, h: Array, out: Array) -> Array:
        cut = 2 * self.size
        np.matmul(d_hidden[:, :cut].T, h, out=out[:cut])
        np.matmul(d_hidden[:, cut:].T, self.reset[: len(h)], out=out[cut:])
        return out


class _LSTM(_Direction):
    """``c' = f * c + i * g    h' = o * tanh(c')``.

    Kept are 2i, 2f, g, 2o, c' and ``tanh(c')``. The coefficients are those of the gates, that of h' with respect to
    c', and f.
    """

    sigmoids = "ifo"
    products = 4
    kept = 6
    coefficients = 6

    def _step(self, flat: Array, block: Array, hidden_flat: Array, hidden: Array, state: State, h: Array) -> State:
        gates, i_f, (i2, f2, g, o2, c, tanh_c), (spare, ig) = flat[:4], flat[:2], block, hidden[:2]
        np.add(gates, hidden_flat, out=gates)
        np.tanh(gates, out=gates)
        np.add(i_f, self.one, out=i_f)
        np.add(o2, self.one, out=o2)
        np.multiply(f2, state[1], out=spare)
        np.multiply(i2, g, out=ig)
        np.add(spare, ig, out=spare)
        np.multiply(spare, self.half, out=c)
        np.tanh(c, out=tanh_c)
        np.multiply(o2, tanh_c, out=spare)
        np.multiply(spare, self.half, out=h)
        return h, c

    def _states(self, blocks: Array, outputs: Array) -> State:
        return outputs, blocks[:, 4]

    def _coefficients(self, run: Run, blocks: Array, h: Array, before: State, da: Array) -> None:
        i2, f2, g, o2, _, tanh_c = blocks
        d_i, d_f, d_g, d_o, d_c, f = da
        _slope_of_tanh(tanh_c, out=d_c)
        d_c *= o2
        d_c *= self.half
        np.multiply(i2, self.half, out=f)
        _slope_of_tanh(g, out=d_g)
        d_g *= f
        np.subtract(1, f, out=d_i)
        d_i *= f
        d_i *= g
        np.multiply(o2, self.half, out=f)
        np.subtract(1, f, out=d_o)
        d_o *= f
        d_o *= tanh_c
        np.multiply(f2, self.half, out=f)
        np.subtract(1, f, out=d_f)
        d_f *= f
        d_f *= before[1]

    def _step_back(
        self, da: Array, block: Array, d_state: State, spare: Array, multiply: Callable[[Array, Array], object]
    ) -> None:
        dh, dc = d_state
        ifg, d_o = da[:3], da[3]
        np.multiply(dh, da[4], out=spare)
        np.add(dc, spare, out=dc)
        np.multiply(ifg, dc, out=ifg)
        np.multiply(d_o, dh, out=d_o)
        np.multiply(dc, da[5], out=dc)
        multiply(da[:4], dh)


def _slope_of_tanh(t: Array, out: Array) -> None:
    """``1 - t * t``, for t a tanh."""
    np.multiply(t, t, out=out)
    np.subtract(1, out, out=out)


_CELLS: dict[str, type[_Direction]] = {"RNN": _RNN, "GRU": _GRU, "LSTM": _LSTM}


def _cell(spec: Spec) -> type[_Direction]:
    return _GRUResetBefore if isinstance(spec, GRUSpec) and not spec.reset_after else _CELLS[spec.cell]


def _computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def direction(
    spec: Spec, weights: Weights, x: Array, state: State, lengths: NDArray[np.int64], *, backward: bool, keep: bool
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
    keep
        Whether the pullback will be called; without it no more memory is taken than a few hundred rows need.

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
    outputs, final = run.forward(packing.pack(widen(x)), tuple(packing.sort(widen(part)) for part in state), keep=keep)

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
    keep: bool,
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
    keep
        Whether the pullback will be called; see `direction`.

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
    if keep and np.may_share_memory(rows, input):
        rows = rows.copy()  # the caller may write over it before the backward pass
    for layer in range(spec.num_layers):
        outputs = []
        for backward in range(width):
            position = layer * width + backward
            w = Weights(*(cast(name + spec.suffixes()[position]) for name in Weights._fields))
            run = _cell(spec)(spec, w, packing, backward=bool(backward))
            out, final = run.forward(rows, tuple(part[position] for part in initial), keep=keep)
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

    output = from_time_major(packing.unpack(rows))
    if keep and np.may_share_memory(output, runs[-1].outputs):
        output = output.copy()
    return output, write_state(finals), pullback
