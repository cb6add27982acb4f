"""The compiled kernels over NumPy's arrays; the same functions as those of `unirnn.kernels.fallback`."""

import ctypes
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from unirnn.contract.call import Layout
from unirnn.reference import Weights
from unirnn.specs import RecurrentSpec

from . import compiled, library
from .direction import Array, Direction, State, contiguous

__all__ = ["Prepared", "backward", "forward"]


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


def _layer(one: Direction, kept: Array | None, output: Array | None = None, final: State = ()) -> bytes:
    cell, dtype, threads = compiled.cell_of(one.spec), _NAMES[one.x.dtype], compiled.num_threads()
    return compiled.layer(_MEMORY, cell, dtype, one, threads, output=output, final=final, kept=kept)


def forward(one: Direction, output: Array, final: State, *, keep: bool) -> Array | None:
    """Write the output and the final state; see `unirnn.kernels.fallback.forward`."""
    kept = None
    if keep:
        steps, batch_size, _ = one.x.shape
        rows = steps * batch_size if one.lengths is None else int(one.lengths.sum())
        kept = np.empty((rows, compiled.KEPT[compiled.cell_of(one.spec)] * one.hidden_size), one.x.dtype)
    compiled.forward(_layer(one, kept, output, final))
    return kept


def backward(one: Direction, kept: Array, d_output: Array, d_final: State, d_state: State) -> tuple[Array, Weights]:
    """Write the gradients of the initial state, and return the others; see `unirnn.kernels.fallback.backward`."""
    d_x, d_weights = np.empty(one.x.shape, one.x.dtype), one.blank_gradients()
    wanted = compiled.gradients(_MEMORY, d_output, d_final, d_x, d_state, d_weights)
    compiled.backward(_layer(one, kept), wanted)
    return d_x, d_weights


class Prepared:
    """A stack of layers, prepared for many calls with arrays of equal shapes, in which every step is valid.

    Parameters
    ----------
    spec
        The layers.
    weights
        By the names of `Spec.weight_shapes`.
    x
        An input with the shape, the strides and the dtype of all others.
    layout
        Its layout.
    """

    def __init__(self, spec: RecurrentSpec, weights: Mapping[str, Array], x: Array, layout: Layout) -> None:
        self._weights, self._shape, self._strides, self._dtype = dict(weights), x.shape, x.strides, x.dtype
        layers = [Weights(*(weights.get(name + suffix) for name in Weights._fields)) for suffix in spec.suffixes()]
        self._stack = compiled.Stack(_MEMORY, spec, _NAMES[x.dtype], layers, x, layout)
        self._empty = functools.partial(np.empty, dtype=x.dtype)

    def __reduce__(self) -> Any:
        return type(None), ()  # it holds addresses, so a copy of a module begins without one

    @staticmethod
    def can_be_had(weights: Mapping[str, Array], x: Array) -> bool:
        """Whether the compiled kernels can run such calls."""
        return (
            library.load() is not None
            and x.dtype in _NAMES
            and x.size > 0
            and x.strides[-1] == x.itemsize
            and all(contiguous(array, x.dtype) is array for array in weights.values())
        )

    def fits(self, weights: Mapping[str, Array], x: Any, state: State) -> bool:
        """Whether it can make a call: with the same weights, and arrays of the same shapes and dtype."""
        if type(x) is not np.ndarray or x.shape != self._shape or x.dtype != self._dtype or x.strides != self._strides:
            return False
        for part, shape in zip(state, self._stack.state_shapes, strict=False):
            if type(part) is not np.ndarray or part.shape != shape or part.dtype != self._dtype:
                return False
        has_same = all(weights.get(name) is array for name, array in self._weights.items())
        return has_same and len(weights) == len(self._weights) and x.flags.aligned

    def run(self, x: Array, state: State) -> tuple[Array, State]:
        """Make a call; without a state, start from zeros. Return the output and the final state in the layout of x."""
        given = [contiguous(part, self._dtype) for part in state]
        return self._stack.run(x, given, self._empty, compiled.num_threads())
