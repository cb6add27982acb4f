"""Calls of the compiled kernels: one layer in one direction, over the memory of any framework's arrays.

The functions and structs of ``csrc/unirnn.h``, and how they are filled in. A framework says by a `Memory` where its
arrays lie; nothing is copied.
"""

import ctypes
import functools
import os
import struct
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from unirnn.contract.call import Layout
from unirnn.reference import Weights
from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

from . import library

__all__ = [
    "KEPT",
    "Memory",
    "OneDirection",
    "Stack",
    "backward",
    "cell_of",
    "forward",
    "gradients",
    "layer",
    "num_threads",
]

_GATES = {"sigmoid": "", "hard_sigmoid": "_HARD_SIGMOID", "hard_sigmoid_0.2": "_HARD_SIGMOID_02"}

KEPT = {
    "RNN_TANH": 1,
    "RNN_RELU": 1,
    **{
        cell + gates: arrays
        for cell, arrays in {"GRU": 5, "GRU_RESET_BEFORE": 4, "LSTM": 6}.items()
        for gates in _GATES.values()
    },
}
"""How many arrays `(H,)` a cell keeps for each valid step: the output, and what its backward pass needs besides.

The library says the same, ``unirnn_kept``, but where operators are only traced, there may be no library.
"""

_CELLS = {name: k for k, name in enumerate(KEPT)}  # the order is that of ``enum unirnn_cell``
_DTYPES = {"float32": 0, "float64": 1}

# The structs of ``csrc/unirnn.h``, in their order: P is a pointer, and 0 the null pointer; Pqq is a ``unirnn_steps``.
_LAYER = struct.Struct("4i 5q 2P 5P Pqq 2P Pqq 2P P")
_GRADIENTS = struct.Struct("Pqq 2P Pqq 2P 5P")


class Memory(NamedTuple):
    """How to locate a framework's arrays in memory.

    Parameters
    ----------
    address
        The address of an array's first number.
    strides
        The strides of an array's first two axes, in numbers; the third axis must be contiguous.
    """

    address: Callable[[Any], int]
    strides: Callable[[Any], tuple[int, int]]

    def _addresses(self, arrays: Iterable[Any]) -> list[int]:
        address = self.address
        return [0 if array is None else address(array) for array in arrays]

    def _steps(self, array: Any) -> tuple[int, int, int]:
        return (0, 0, 0) if array is None else (self.address(array), *self.strides(array))

    def _pair(self, state: Sequence[Any]) -> list[int]:
        """The addresses of h and c, each 0 if it is not there."""
        return [*self._addresses(state), 0, 0][:2]


def cell_of(spec: RecurrentSpec) -> str:
    """The name of a spec's cell in the compiled kernels: a key of `KEPT`."""
    if isinstance(spec, RNNSpec):
        return f"RNN_{spec.nonlinearity.upper()}"
    assert isinstance(spec, (GRUSpec, LSTMSpec))
    cell = "GRU_RESET_BEFORE" if isinstance(spec, GRUSpec) and not spec.reset_after else spec.kind
    return cell + _GATES[spec.gate_activation]


@functools.cache  # asking takes as long as a small step
def num_threads() -> int:
    """How many threads a call may use if no framework sets it: OMP_NUM_THREADS, or the cores of this process.

    As in other libraries, the first call decides.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if wanted.isdecimal() and int(wanted):
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class OneDirection(Protocol):
    """One layer in one direction, and what it is called with, over the arrays of a framework."""

    @property
    def weights(self) -> Weights:
        """Of this layer and direction, contiguous. With a projection, h and the output are `(..., proj_size)`."""
        ...

    @property
    def x(self) -> Any:
        """`(T, B, I)`, the last axis contiguous."""
        ...

    @property
    def state(self) -> Sequence[Any]:
        """Initial state, `(B, H)` each, contiguous; empty for zeros."""
        ...

    @property
    def lengths(self) -> Any | None:
        """`(B,)` int64, contiguous; None if every step is valid."""
        ...

    @property
    def resets(self) -> Any | None:
        """`(T, B)` bool, contiguous: whether a new sequence begins at a step; None if none does."""
        ...

    @property
    def reverse(self) -> bool:
        """Whether it runs from the last valid step to the first."""
        ...


def layer(
    memory: Memory,
    cell: str,
    dtype: str,
    call: OneDirection,
    num_threads: int,
    *,
    output: Any = None,
    final: Sequence[Any] = (),
    kept: Any = None,
) -> bytes:
    """Describe a layer to the compiled kernels, as a ``unirnn_layer``; the arrays must live as long as it is used.

    Parameters
    ----------
    memory
        Where the arrays lie.
    cell
        See `cell_of`.
    dtype
        ``"float32"`` or ``"float64"``, of all arrays but the lengths and the resets.
    call
        The layer, and what it is called with.
    num_threads
        How many threads may compute.
    output, final
        The layout of ``x`` and ``state``, and the size of h: to be written; not in a backward pass.
    kept
        `(N, KEPT[cell] * H)` for the sum N of the lengths: what the forward pass leaves for the backward pass; None if
        there will be none.
    """
    x, weights = call.x, call.weights
    steps, batch_size, input_size = x.shape
    hidden_size, proj_size = _sizes(weights)
    return _LAYER.pack(
        _CELLS[cell],
        _DTYPES[dtype],
        call.reverse,
        num_threads,
        steps,
        batch_size,
        input_size,
        hidden_size,
        proj_size,
        *memory._addresses((call.lengths, call.resets, *weights)),
        *memory._steps(x),
        *memory._pair(call.state),
        *memory._steps(output),
        *memory._pair(final),
        *memory._addresses((kept,)),
    )


def gradients(
    memory: Memory,
    d_output: Any | None,
    d_final: Sequence[Any],
    d_x: Any | None,
    d_state: Sequence[Any],
    d_weights: Weights,
) -> bytes:
    """Describe the gradients of a layer's results, and those to be computed, as a ``unirnn_gradients``; see `layer`.

    Parameters
    ----------
    memory
        Where the arrays lie.
    d_output, d_final
        Of the results; None and empty are zeros.
    d_x, d_state, d_weights
        To be written. None for d_x, or for all weights, if they are not wanted.
    """
    return _GRADIENTS.pack(
        *memory._steps(d_output),
        *memory._pair(d_final),
        *memory._steps(d_x),
        *memory._pair(d_state),
        *memory._addresses(d_weights),
    )


class Stack:
    """A stack of layers, described once for many calls of equal shapes, in which every step is valid.

    Parameters
    ----------
    memory
        Where the arrays lie. The weights are read there at each call, and must stay there.
    spec
        The layers.
    dtype
        See `layer`.
    weights
        Of each layer and direction, in the order of the state; contiguous.
    x
        An input, laid out in memory as the inputs of all calls.
    layout
        The layout of x.

    Attributes
    ----------
    state_shapes
        The shape of each part of the state, in the layout of x.
    """

    def __init__(
        self, memory: Memory, spec: RecurrentSpec, dtype: str, weights: Sequence[Weights], x: Any, layout: Layout
    ) -> None:
        self._memory, self._layout, self._run = memory, layout, _library().unirnn_forward
        x = layout.canonical_steps(x)
        steps, batch_size, _ = x.shape
        hidden_size, proj_size = _sizes(weights[0])
        width, size, itemsize = spec.num_directions, spec.output_size, 4 if dtype == "float32" else 8
        self._output_shape = steps, batch_size, width * size
        self._output_strides = batch_size * width * size, width * size
        self.state_shapes = tuple(spec.state_shapes(batch_size if layout.batched else None).values())
        self._h_bytes, self._c_bytes = itemsize * batch_size * size, itemsize * batch_size * hidden_size
        self._layers = []
        no_lengths = no_resets = None
        for layer in range(spec.num_layers):
            directions = []
            for k in range(width):
                position = layer * width + k
                own = weights[position]
                which = _CELLS[cell_of(spec)], _DTYPES[dtype], spec.is_reverse(position)
                sizes = steps, batch_size, own.weight_ih.shape[1], hidden_size, proj_size
                fixed = *sizes, *memory._addresses((no_lengths, no_resets, *own))
                directions.append((which, fixed, k * size * itemsize))
            self._layers.append((self._output_strides if layer else memory.strides(x), directions))

    def run(
        self, x: Any, state: Sequence[Any], empty: Callable[[tuple[int, ...]], Any], num_threads: int
    ) -> tuple[Any, tuple[Any, ...]]:
        """Make a call.

        Parameters
        ----------
        x
            The input.
        state
            The initial state, contiguous; empty for zeros.
        empty
            Makes an array of a shape.
        num_threads
            How many threads may compute.

        Returns
        -------
        output, final_state
            In the layout of x.

        Raises
        ------
        MemoryError
            If there is too little.
        """
        address, h_offset, c_offset = self._memory.address, 0, 0
        final = tuple([empty(shape) for shape in self.state_shapes])
        before, after = [address(part) for part in state], [address(part) for part in final]
        held, target = [x], address(x)
        for input_strides, directions in self._layers:
            held = [held[-1], empty(self._output_shape)]  # what the layer reads, and what it writes
            source, target = target, address(held[1])
            for which, fixed, column in directions:
                described = _LAYER.pack(
                    *which,
                    num_threads,
                    *fixed,
                    source,
                    *input_strides,
                    before[0] + h_offset if before else 0,
                    before[1] + c_offset if len(before) == 2 else 0,
                    target + column,
                    *self._output_strides,
                    after[0] + h_offset,
                    after[1] + c_offset if len(after) == 2 else 0,
                    0,  # nothing is kept
                )
                _check(self._run(described))
                h_offset += self._h_bytes
                c_offset += self._c_bytes
        return self._layout.restore_steps(held[-1]), final


def _sizes(weights: Weights) -> tuple[int, int]:
    """``hidden_size`` and ``proj_size``, which is 0 without a projection."""
    if weights.weight_hr is None:
        return weights.weight_hh.shape[1], 0
    proj_size, hidden_size = weights.weight_hr.shape
    return hidden_size, proj_size


def forward(described: bytes) -> None:
    """Run a layer.

    Raises
    ------
    MemoryError
        If there is too little.
    """
    _check(_library().unirnn_forward(described))


def backward(described: bytes, wanted: bytes) -> None:
    """Compute a layer's gradients, after a forward pass that kept what they need.

    Raises
    ------
    MemoryError
        If there is too little.
    """
    _check(_library().unirnn_backward(described, wanted))


@functools.cache
def _library() -> ctypes.CDLL:
    found = library.load()
    if found is None:
        raise RuntimeError(f"no compiled kernels: {library.why_not()}")
    return found


def _check(status: int) -> None:
    if status == 1:
        raise MemoryError("the compiled kernels: too little memory for this call")
    if status:
        raise RuntimeError(f"the compiled kernels: error {status}; please report it to unirnn")
