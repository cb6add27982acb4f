"""The compiled kernels over NumPy's arrays; the same functions as those of `unirnn.kernels.fallback`."""

import ctypes
from typing import Any

import numpy as np

from unirnn.reference import Weights

from . import compiled
from .direction import Array, Direction, State

__all__ = ["backward", "forward"]


def _address(array: Array) -> int:
    try:  # takes half the time of `__array_interface__`, and a third of that of `array.ctypes.data`
        memory: Any = array  # NumPy's stubs lack the buffer interface before Python 3.12
        return ctypes.addressof(ctypes.c_char.from_buffer(memory))
    except (TypeError, ValueError, BufferError):  # it is read-only, in pieces, or empty
        address: int = array.__array_interface__["data"][0]
        return address


def _strides(array: Array) -> tuple[int, int]:
    step, sequence, _ = array.strides
    return step // array.itemsize, sequence // array.itemsize


_NAMES = {np.dtype(name): name for name in ("float32", "float64")}  # a dtype's own name costs microseconds
_MEMORY = compiled.Memory(_address, _strides)


def _layer(one: Direction, kept: Array | None, output: Array | None = None, final: State = ()) -> compiled.Layer:
    return compiled.layer(
        _MEMORY,
        compiled.cell_of(one.spec),
        _NAMES[one.x.dtype],
        one.weights,
        one.x,
        one.state,
        one.lengths,
        one.resets,
        reverse=one.reverse,
        num_threads=compiled.num_threads(),
        output=output,
        final=final,
        kept=kept,
    )


def forward(one: Direction, output: Array, final: State, *, keep: bool) -> Array | None:
    """Write the output and the final state; see `unirnn.kernels.fallback.forward`."""
    kept = None
    if keep:
        steps, batch_size, _ = one.x.shape
        rows = steps * batch_size if one.lengths is None else int(one.lengths.sum())
        kept = np.empty((rows, compiled.KEPT[compiled.cell_of(one.spec)] * output.shape[2]), one.x.dtype)
    compiled.forward(_layer(one, kept, output, final))
    return kept


def backward(one: Direction, kept: Array, d_output: Array, d_final: State, d_state: State) -> tuple[Array, Weights]:
    """Write the gradients of the initial state, and give the others; see `unirnn.kernels.fallback.backward`."""
    d_x, d_weights = np.empty(one.x.shape, one.x.dtype), one.blank_gradients()
    wanted = compiled.gradients(_MEMORY, d_output, d_final, d_x, d_state, d_weights)
    compiled.backward(_layer(one, kept), wanted)
    return d_x, d_weights
