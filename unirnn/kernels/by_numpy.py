"""The cells by NumPy: a step is a dozen calls of it, each over whole arrays.

`by_numba` has the same without the calls. How a step's products are made, `products` says; what each trick is worth,
and what else was tried, the page "How the speed was got".
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.kernels import memory
from unirnn.kernels.directions import Direction, StepsBack, Weights
from unirnn.kernels.memory import arrays, empty
from unirnn.kernels.packing import Part, Run
from unirnn.kernels.products import ByGate, SumOfGates
from unirnn.specs import RecurrentSpec, RNNSpec

__all__ = ["CELLS", "GRUResetBefore"]

Array = NDArray[Any]
State = tuple[Array, ...]


class _ByNumPy(Direction):
    """Steps by calls of NumPy.

    The gates of a block first hold the input's products. It comes twice: as `(n, H)` arrays, and flat, so that
    neighbouring gates are computed as one piece of memory. An operation writes over one of its inputs, or to another
    block. What is kept of a sigmoid is twice the gate; the other half is taken of what it is multiplied with.

    Going back, whatever of a gradient does not depend on that of the state is computed for a whole run at once: its
    *coefficients*.
    """

    products: int
    """How many gates the state itself has a product with."""
    coefficients: int
    """How many arrays a step back takes: first the gradients of the gates' products with the state."""
    of_input: tuple[int, ...] = ()
    """Which of them are the gradients of the input's products, where these are not the same."""

    def __init__(self, spec: RecurrentSpec, weights: Weights, part: Part, *, backward: bool) -> None:
        super().__init__(spec, weights, part, backward=backward)
        # As arrays, since NumPy takes longer to convert a number than to add it.
        self.half, self.one = np.array(0.5, self.dtype), np.array(1, self.dtype)

    def _recurrent(self) -> Array:
        """`(products, H, H)`: what multiplies the state itself; as a rule, all of W_hh."""
        return self._by_gate(self.weights.weight_hh)

    def _begin(self, runs: Sequence[Run]) -> None:
        self.product = ByGate(self._recurrent().swapaxes(1, 2), self.batch_size)
        steps = [run._replace(steps=1) for run in runs]
        self._hidden = self._blocks(steps, self.products, memory.PRODUCTS, keep=False)

    def _run(self, of_input: Array, flat: Array, state: State, outputs: Array) -> None:
        steps, n, _ = of_input.shape
        (hidden_flat,) = next(self._hidden)
        blocks, hidden = arrays(flat, n, self.size), arrays(hidden_flat, n, self.size)
        blocks[:, : self.num_gates] = of_input.reshape(steps, n, self.num_gates, self.size).swapaxes(1, 2)
        multiply = self.product.into(hidden)
        turn = -1 if self.backwards else 1
        now = state
        for whole, block, h in zip(flat[::turn], blocks[::turn], outputs[::turn], strict=True):
            multiply(now[0])
            now = self._step(whole, block, hidden_flat, hidden, now, h)
        for part, last in zip(state, now, strict=True):
            part[...] = last

    def _begin_back(self, runs: Sequence[Run], longest: int) -> None:
        weight = self.weights.weight_hh.reshape(self.num_gates, self.size, self.size)
        self.product_back = SumOfGates(weight[: self.products], self.batch_size)
        self._da = self._blocks(runs, self.coefficients, memory.PRODUCTS, keep=False)
        self._spare = empty((self.batch_size, self.size), self.dtype, memory.STATES)

    def _run_back(self, back: StepsBack) -> None:
        run, d_state, n = back.run, back.d_state, back.run.alive
        blocks, da = arrays(back.blocks, n, self.size), arrays(next(self._da), n, self.size)
        self._coefficients(run, blocks.swapaxes(0, 1), back.outputs, back.before, da.swapaxes(0, 1))
        multiply, spare = self.product_back.of(n), self._spare[:n]
        turn = 1 if self.backwards else -1
        for d_h, d_block, block in zip(back.d_outputs[::turn], da[::turn], blocks[::turn], strict=True):
            d_state[0][...] += d_h
            self._step_back(d_block, block, d_state, spare, multiply)
        shape = (run.steps, n, self.num_gates, self.size)
        back.d_hidden.reshape(shape)[...] = da[:, : self.num_gates].swapaxes(1, 2)
        for gate, place in enumerate(self.of_input):
            back.d_input.reshape(shape)[:, :, gate] = da[:, place]

    @abstractmethod
    def _step(self, flat: Array, block: Array, hidden_flat: Array, hidden: Array, state: State, h: Array) -> State:
        """One step: the block holds the input's products, and hidden the state's; h `(n, H)` is to be written.

        ``block`` `(kept, n, H)` and ``hidden`` `(products, n, H)`, which may be overwritten, come flat as well.
        Returns the next state, h first.
        """

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


class RNN(_ByNumPy):
    """``h' = act(x + W_hh h)``"""

    products = 1
    kept = 1
    forgets = True
    coefficients = 1

    def __init__(self, spec: RecurrentSpec, weights: Weights, part: Part, *, backward: bool) -> None:
        super().__init__(spec, weights, part, backward=backward)
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


class GRU(_ByNumPy):
    """``r, z = s(x + W h)    n = tanh(x_n + r * (W_hn h + b_hn))    h' = n + z * (h - n)``.

    Kept are 2r, 2z, n, and the half of ``W_hn h + b_hn``, which is multiplied with 2r. The coefficients are those of
    r, z, ``W_hn h`` and n, since the reset gate comes between the latter two, and z.
    """

    halved = "rz"
    products = 3
    kept = 4
    coefficients = 5
    inputs_differ = True
    of_input = (0, 1, 3)
    bias_with_product = (2,)

    def _recurrent(self) -> Array:
        recurrent = super()._recurrent()
        recurrent[2] *= self.half
        bias = self.weights.bias_hh
        self.half_bias_n = None
        if bias is not None:
            # For each row, since NumPy is quicker on arrays of one shape.
            self.half_bias_n = empty((self.batch_size, self.size), self.dtype, memory.REST)
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
        _new_state(n, z2, self.half, state[0], spare, h)
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


class GRUResetBefore(_ByNumPy):
    """``r, z = s(x + W h)    n = tanh(x_n + W_hn (r * h))    h' = n + z * (h - n)``.

    Kept are 2r, 2z, n and ``r * h``, which W_hn multiplies: a step has two products, and a step back as well. The
    coefficients are those of r, z and n, and z.
    """

    halved = "rz"
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
        _new_state(n, z2, self.half, state[0], spare, h)
        return (h,)

    def _begin_back(self, runs: Sequence[Run], longest: int) -> None:
        super()._begin_back(runs, longest)
        self.product_back_n = SumOfGates(self.weights.weight_hh[None, 2 * self.size :], self.batch_size)
        self.reset = empty((longest, self.size), self.dtype, memory.BLOCKS)

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
        self.matmul(d_hidden[:, :cut].T, h, out[:cut])
        self.matmul(d_hidden[:, cut:].T, self.reset[: len(h)], out[cut:])
        return out


class LSTM(_ByNumPy):
    """``c' = f * c + i * g    h' = o * tanh(c')``.

    Kept are 2i, 2f, g, 2o, c' and ``tanh(c')``. The coefficients are those of the gates, that of h' with respect to
    c', and f.
    """

    halved = "ifo"
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


def _new_state(n: Array, z2: Array, half: Array, before: Array, spare: Array, h: Array) -> None:
    """``n = tanh(n)    h = n + z * (before - n)``, as both variants of a GRU have it."""
    np.tanh(n, out=n)
    np.subtract(before, n, out=spare)
    np.multiply(spare, z2, out=spare)
    np.multiply(spare, half, out=spare)
    np.add(spare, n, out=h)


def _slope_of_tanh(t: Array, out: Array) -> None:
    """``1 - t * t``, for t a tanh."""
    np.multiply(t, t, out=out)
    np.subtract(1, out, out=out)


CELLS: dict[str, type[Direction]] = {"RNN": RNN, "GRU": GRU, "LSTM": LSTM}
"""By `unirnn.Spec.kind`; torch's GRU, whose reset gate comes after the product."""
