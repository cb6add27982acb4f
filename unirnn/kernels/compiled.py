"""Calls of the compiled kernels: one layer in one direction, over the memory of any framework's arrays.

The functions and structs of ``csrc/unirnn.h``, and how they are filled in. A framework says by a `Memory` where its
arrays lie; nothing is copied.
"""

import ctypes
import functools
import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from unirnn.reference import Weights
from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

from . import library

__all__ = [
    "KEPT",
    "Gradients",
    "Layer",
    "Memory",
    "OneDirection",
    "Step",
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
"""How many arrays `(H,)` a cell keeps for each valid step: the output, and what its backward pass needs besides."""

_CELLS = {name: k for k, name in enumerate(KEPT)}  # the order is that of ``enum unirnn_cell``
_DTYPES = {"float32": 0, "float64": 1}


class _Steps(ctypes.Structure):
    """An array `(T, B, F)`."""

    _fields_ = (("data", ctypes.c_void_p), ("step", ctypes.c_int64), ("sequence", ctypes.c_int64))


_NO_STEPS = _Steps()


class Layer(ctypes.Structure):
    """``unirnn_layer``; see `layer`."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("cell", "dtype", "reverse", "num_threads")),
        *((name, ctypes.c_int64) for name in ("steps", "batch_size", "input_size", "hidden_size", "proj_size")),
        *((name, ctypes.c_void_p) for name in ("lengths", "resets", *Weights._fields)),
        ("input", _Steps),
        *((name, ctypes.c_void_p) for name in ("h_0", "c_0")),
        ("output", _Steps),
        *((name, ctypes.c_void_p) for name in ("h_n", "c_n", "kept")),
    )


class Gradients(ctypes.Structure):
    """``unirnn_gradients``; see `gradients`."""

    _fields_ = (
        ("d_output", _Steps),
        *((name, ctypes.c_void_p) for name in ("d_h_n", "d_c_n")),
        ("d_input", _Steps),
        *((name, ctypes.c_void_p) for name in ("d_h_0", "d_c_0")),
        *((f"d_{name}", ctypes.c_void_p) for name in Weights._fields),
    )


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

    def _addresses(self, arrays: Iterable[Any]) -> list[int | None]:
        address = self.address
        return [None if array is None else address(array) for array in arrays]

    def _steps(self, array: Any) -> _Steps:
        return _NO_STEPS if array is None else _Steps(self.address(array), *self.strides(array))

    def _pair(self, state: Sequence[Any]) -> list[int | None]:
        """The addresses of h and c; an RNN or GRU has no c, and no state is zeros."""
        return [*self._addresses(state), None, None][:2]


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
) -> Layer:
    """Describe a layer to the compiled kernels; the arrays must live as long as it is used.

    Parameters
    ----------
    memory
        Where the arrays lie.
    cell
        See `cell_of`.
    dtype
        ``"float32"`` or ``"float64"``, of all arrays but the lengths.
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
    return Layer(
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
        memory._steps(x),
        *memory._pair(call.state),
        memory._steps(output),
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
) -> Gradients:
    """Describe the gradients of a layer's results, and those to be computed; their layout is that of `layer`.

    Parameters
    ----------
    memory
        Where the arrays lie.
    d_output, d_final
        Of the results; None and empty are zeros.
    d_x, d_state, d_weights
        To be written. None for d_x, or for all weights, if they are not wanted.
    """
    return Gradients(
        memory._steps(d_output),
        *memory._pair(d_final),
        memory._steps(d_x),
        *memory._pair(d_state),
        *memory._addresses(d_weights),
    )


class Step:
    """One time step of a stack of layers, described once for many steps: only a step's own arrays are filled in.

    Parameters
    ----------
    memory
        Where the weights lie; they are read there, and must stay there.
    cell, dtype
        See `layer`.
    weights
        Of each layer, contiguous.
    batch_size
        B.
    """

    def __init__(self, memory: Memory, cell: str, dtype: str, weights: Sequence[Weights], batch_size: int) -> None:
        hidden_size, proj_size = _sizes(weights[0])
        output_size, sequence = proj_size or hidden_size, batch_size * (4 if dtype == "float32" else 8)
        self._h_stride, self._c_stride = sequence * output_size, sequence * hidden_size
        self._run = _library().unirnn_forward
        self._layers = []
        for w in weights:
            input_size = w.weight_ih.shape[1]
            one = Layer(_CELLS[cell], _DTYPES[dtype], 0, 1, 1, batch_size, input_size, hidden_size, proj_size)
            for name, address in zip(Weights._fields, memory._addresses(w), strict=True):
                setattr(one, name, address)
            one.input.sequence, one.output.sequence = input_size, output_size
            self._layers.append(bytes(one))

    def run(self, x: int, state: Sequence[int], y: int, final: Sequence[int], num_threads: int) -> None:
        """Make a step.

        Parameters
        ----------
        x, y
            Addresses of the input `(B, I)` and of the output, of the size of h, which is written.
        state, final
            Addresses of the state before it, `(L, B, H)` each, empty for zeros; and of the state after it, which is
            written. With a projection, h is `(L, B, proj_size)`. All arrays are contiguous.
        num_threads
            How many threads may compute.

        Raises
        ------
        MemoryError
            If there is too little.
        """
        h, c, left = 0, 0, len(self._layers)
        for described in self._layers:
            one = Layer.from_buffer_copy(described)  # another thread may be making a step at the same time
            left -= 1
            one.num_threads, one.input.data = num_threads, x
            x = final[0] + h  # the output of a layer is its state, and the next one's input
            one.h_n, one.output.data = x, x if left else y
            if state:
                one.h_0 = state[0] + h
            if len(final) == 2:
                one.c_n = final[1] + c
                if state:
                    one.c_0 = state[1] + c
            _check(self._run(ctypes.byref(one)))
            h += self._h_stride
            c += self._c_stride


def _sizes(weights: Weights) -> tuple[int, int]:
    """``hidden_size`` and ``proj_size``, which is 0 without a projection."""
    if weights.weight_hr is None:
        return weights.weight_hh.shape[1], 0
    proj_size, hidden_size = weights.weight_hr.shape
    return hidden_size, proj_size


def forward(described: Layer) -> None:
    """Run a layer.

    Raises
    ------
    MemoryError
        If there is too little.
    """
    _check(_library().unirnn_forward(ctypes.byref(described)))


def backward(described: Layer, wanted: Gradients) -> None:
    """Compute a layer's gradients, after a forward pass that kept what they need.

    Raises
    ------
    MemoryError
        If there is too little.
    """
    _check(_library().unirnn_backward(ctypes.byref(described), ctypes.byref(wanted)))


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
