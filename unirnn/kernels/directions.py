"""One layer in one direction, forward and backward: what does not depend on how a step is computed.

N is the number of rows, the sum of the lengths.
"""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirnn.kernels import memory
from unirnn.kernels.memory import arrays, empty
from unirnn.kernels.packing import Part, Run
from unirnn.specs import RecurrentSpec

__all__ = ["Direction", "Kept", "StepsBack", "Weights"]

Array = NDArray[Any]
State = tuple[Array, ...]


class Weights(NamedTuple):
    """Weights of one layer and direction, or their gradients; the biases are None together."""

    weight_ih: Any
    weight_hh: Any
    bias_ih: Any
    bias_hh: Any


class Kept(NamedTuple):
    """Memory of the caller's for what the backward pass needs of the forward pass; see `Direction.forward`.

    Parameters
    ----------
    outputs
        `(N, H)`.
    blocks
        `(N * kept * H,)` at least; None: none of the caller's.
    """

    outputs: Array
    blocks: Array | None

    def of(self, part: Part, width: int) -> "Kept":
        """Those of a part, where a row keeps ``width`` arrays `(H,)`."""
        rows, size = part.rows, width * self.outputs.shape[1]
        blocks = None if self.blocks is None else self.blocks[rows.start * size : rows.stop * size]
        return Kept(self.outputs[rows], blocks)


class StepsBack(NamedTuple):
    """What going back through a run reads and writes; n sequences are alive.

    Parameters
    ----------
    run
        The run.
    blocks
        Its blocks, flat; they must stay as they are, since a pullback may be called again.
    outputs
        `(steps, n, H)`.
    before
        `(steps, n, H)` each: the parts of the state before each step.
    d_outputs
        `(steps, n, H)`.
    d_state
        `(n, H)` each: the gradient of the state after the run, to be overwritten with that before it.
    d_hidden, d_input
        `(steps, n, gates*H)`: the gradients of the state's and of the input's products, to be written; one array
        unless ``inputs_differ``.
    """

    run: Run
    blocks: Array
    outputs: Array
    before: State
    d_outputs: Array
    d_state: State
    d_hidden: Array
    d_input: Array


class Direction(ABC):
    """One layer in one direction: `forward`, then `backward`, chunk by chunk.

    A subclass is one cell, and steps. What it keeps of a step is a *block* of arrays `(n, H)`, the gates first; a run's
    blocks come flat, `(steps, kept, stride)`. See `memory` for how they lie.

    A sigmoid is ``(1 + tanh(a / 2)) / 2``: it can't overflow, and NumPy has no exp that is as fast. The half of a
    may stand in the weights, which is exact.
    """

    halved: str = ""
    """The gates whose weights are halved."""
    bias_with_product: tuple[int, ...] = ()
    """The gates whose recurrent bias belongs to the state's product, not to the input's."""
    kept: int
    """How many arrays a block has: the gates, and what else the backward pass needs."""
    forgets = False
    """Whether the backward pass needs no blocks, since the state after a step tells all."""
    inputs_differ = False
    """Whether the gradients of the input's products are not those of the state's."""
    matmul: Callable[[Any, Any, Any], Any] = staticmethod(np.matmul)
    """Multiplies many rows: the first two into the third, which it returns. A framework may put its own here; then x,
    its gradient and W_ih may be tensors of that framework."""

    def __init__(self, spec: RecurrentSpec, weights: Weights, part: Part, *, backward: bool) -> None:
        self.weights = weights
        self.chunks = part.chunks
        self.backwards = backward
        self.size = spec.hidden_size
        self.num_gates = len(spec.gates)
        self.batch_size = part.batch_size
        self.scales = [0.5 if gate in self.halved else 1.0 for gate in spec.gates]
        self.dtype = weights.weight_hh.dtype
        self._lock = threading.Lock()

    def _by_gate(self, weight: Array) -> Array:
        """`(gates*H, ...)` to `(gates, H, ...)`: a copy, if any gate's part is to be halved."""
        blocks = weight.reshape(self.num_gates, self.size, -1)
        if self.halved:
            blocks = blocks * np.array(self.scales, weight.dtype)[:, None, None]
        return blocks.reshape(self.num_gates, self.size, *weight.shape[1:])

    def _input_bias(self, b_ih: Array, b_hh: Array) -> Array:
        """`(gates*H,)`: what is added to the input's product."""
        if self.bias_with_product:
            b_hh = b_hh.copy()
            b_hh.reshape(self.num_gates, self.size)[list(self.bias_with_product)] = 0
        return self._by_gate(b_ih + b_hh).reshape(-1)

    def _blocks(
        self, runs: Sequence[Run], count: int, place: int, *, keep: bool, space: Array | None = None
    ) -> Iterator[Array]:
        return memory.blocks(runs, count, self.size, self.dtype, place, keep=keep, space=space)

    def forward(self, x: Any, initial: State, *, keep: bool, into: Kept | None = None) -> tuple[Array, State]:
        """`(N, I)` and the initial state `(B, H)` each, to `(N, H)` and the final state, which overwrites it.

        ``keep`` for a backward pass; without it no more memory is taken than a chunk needs. What is kept is put
        ``into`` the caller's memory, if that is given, from where another object can `resume`.
        """
        w_ih, _, b_ih, b_hh = self.weights
        weight = self._by_gate(w_ih).reshape(w_ih.shape).T
        bias = None if b_ih is None else self._input_bias(b_ih, b_hh)
        chunks = self.chunks
        outputs = empty((len(x), self.size), self.dtype, memory.STATES) if into is None else into.outputs
        projected = np.empty((max((chunk.size for chunk in chunks), default=0), weight.shape[1]), self.dtype)
        if keep:
            self.resume(x, tuple(part.copy() for part in initial), into or Kept(outputs, None))
        order = self._in_order()
        runs = [run for _, run in order]
        blocks = iter(self.blocks) if keep else self._blocks(runs, self.kept, memory.BLOCKS, keep=False)
        self._begin(runs)
        turn = -1 if self.backwards else 1
        for chunk in chunks[::turn]:
            of_input = self.matmul(x[chunk.rows], weight, projected[: chunk.size])
            if bias is not None:
                of_input += bias
            for run in chunk.runs[::turn]:
                state = tuple(part[: run.alive] for part in initial)
                self._run(run.of(of_input), next(blocks), state, run.of(outputs[chunk.rows]))
        return outputs, initial

    def resume(self, x: Any, initial: State, kept: Kept) -> None:
        """Hold what the backward pass needs; if a forward pass has put it there, `backward` may follow."""
        self.x, self.initial, self.outputs = x, initial, kept.outputs
        runs = [run for _, run in self._in_order()]
        self.blocks = list(self._blocks(runs, self.kept, memory.BLOCKS, keep=not self.forgets, space=kept.blocks))

    def _in_order(self) -> list[tuple[slice, Run]]:
        """The runs as the direction comes to them, with the rows of their chunks."""
        turn = -1 if self.backwards else 1
        return [(chunk.rows, run) for chunk in self.chunks[::turn] for run in chunk.runs[::turn]]

    def backward(self, d_outputs: Array, d_final: State, *, d_x: Any, of_weights: bool = True) -> tuple[State, Weights]:
        """Gradients of outputs `(N, H)` and final state to those of the initial state, and of the weights, if wanted.

        ``d_x`` `(N, I)`, if it is not None, is filled with that of x. One at a time, if several threads call: what is
        scratch is shared.
        """
        with self._lock:
            return self._backward(d_outputs, d_final, d_x, of_weights)

    def _backward(self, d_outputs: Array, d_final: State, d_x: Any, of_weights: bool) -> tuple[State, Weights]:
        w_ih, w_hh, b_ih, _ = self.weights
        longest = max((chunk.size for chunk in self.chunks), default=0)

        def rows(width: int, place: int) -> Array:
            return empty((longest, width), self.dtype, place)

        chunk_before = tuple(rows(self.size, memory.STATES) for _ in d_final)
        chunk_hidden = rows(self.num_gates * self.size, memory.REST)
        chunk_input = rows(self.num_gates * self.size, memory.REST) if self.inputs_differ else chunk_hidden
        d_state = tuple(empty(part.shape, self.dtype, memory.REST) for part in d_final)
        for part, given in zip(d_state, d_final, strict=True):
            part[...] = given
        d_weights = Weights(
            *(np.zeros(w.shape, self.dtype) if of_weights and w is not None else None for w in self.weights)
        )
        of_weight_ih, of_weight_hh = (np.empty(weight.shape, self.dtype) for weight in (w_ih, w_hh))
        turn = 1 if self.backwards else -1
        order = self._in_order()
        self._begin_back([run for _, run in reversed(order)], longest)
        at = len(order)
        for chunk in self.chunks[::turn]:
            for run in chunk.runs[::turn]:
                at -= 1
                outputs = run.of(self.outputs[chunk.rows])
                before = tuple(run.of(part) for part in chunk_before)
                for out, first, steps in zip(before, self._before(order, at), self._after(order, at), strict=True):
                    self._shift(steps, first, out)
                alive = tuple(part[: run.alive] for part in d_state)
                d_steps, d_hidden, d_input = map(run.of, (d_outputs[chunk.rows], chunk_hidden, chunk_input))
                self._run_back(StepsBack(run, self.blocks[at], outputs, before, d_steps, alive, d_hidden, d_input))
            d_input, d_hidden, h = (part[: chunk.size] for part in (chunk_input, chunk_hidden, chunk_before[0]))
            if d_x is not None:
                self.matmul(d_input, w_ih, d_x[chunk.rows])
            if of_weights:
                d_weights.weight_ih[...] += self.matmul(d_input.T, self.x[chunk.rows], of_weight_ih)
                d_weights.weight_hh[...] += self._recurrent_gradient(d_hidden, h, of_weight_hh)
                if b_ih is not None:
                    d_weights.bias_ih[...] += d_input.sum(axis=0)
                    d_weights.bias_hh[...] += d_hidden.sum(axis=0)
        return d_state, d_weights

    def _after(self, order: Sequence[tuple[slice, Run]], at: int) -> State:
        """`(steps, n, H)`: each part of the state after each step of a run."""
        rows, run = order[at]
        return self._states(arrays(self.blocks[at], run.alive, self.size), run.of(self.outputs[rows]))

    def _before(self, order: Sequence[tuple[slice, Run]], at: int) -> State:
        """`(n, H)`: each part of the state from which a run went on; what began with it has its initial state."""
        n = order[at][1].alive
        if at == 0:
            return tuple(part[:n] for part in self.initial)
        last = 0 if self.backwards else -1
        return tuple(
            np.concatenate((steps[last, :n], part[steps.shape[1] : n]))
            for steps, part in zip(self._after(order, at - 1), self.initial, strict=True)
        )

    def _shift(self, steps: Array, first: Array, out: Array) -> None:
        """`(steps, n, H)` of a part of the state after each step of a run: to that before each step."""
        if self.backwards:
            out[-1], out[:-1] = first, steps[1:]
        else:
            out[0], out[1:] = first, steps[:-1]

    def _states(self, blocks: Array, outputs: Array) -> State:
        """`(steps, n, H)`: each part of the state after each step of a run."""
        return (outputs,)

    def _recurrent_gradient(self, d_hidden: Array, h: Array, out: Array) -> Array:
        """`(gates*H, H)`: the gradient of W_hh that a chunk brings."""
        gradient: Array = self.matmul(d_hidden.T, h, out)
        return gradient

    @abstractmethod
    def _begin(self, runs: Sequence[Run]) -> None:
        """Make what all steps share; the runs are in the order in which they will be taken."""

    @abstractmethod
    def _run(self, of_input: Array, flat: Array, state: State, outputs: Array) -> None:
        """Step through a run, in the direction's order.

        Parameters
        ----------
        of_input
            `(steps, n, gates*H)`: the input's products, biases included.
        flat
            `(steps, kept, stride)`: the blocks, to be written.
        state
            `(n, H)` each: that before the run, to be overwritten with that after it.
        outputs
            `(steps, n, H)`, to be written.
        """

    @abstractmethod
    def _begin_back(self, runs: Sequence[Run], longest: int) -> None:
        """Make what all steps back share; ``longest`` is the size of the largest chunk."""

    @abstractmethod
    def _run_back(self, back: StepsBack) -> None:
        """Step back through a run."""
