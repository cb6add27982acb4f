"""The compiled kernels over NumPy's arrays; the same functions as those of `unirnn.kernels.fallback`."""

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np

from unirnn.reference import Weights
from unirnn.specs import RecurrentSpec

from . import compiled, library
from .direction import Array, Direction, State

__all__ = ["Step", "backward", "forward"]


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


class Step:
    """One time step of a stack of layers in one direction, prepared for many steps of equal shapes.

    Parameters
    ----------
    spec
        The layers.
    weights
        By the names of `Spec.weight_shapes`.
    x
        `(B, I)` or `(I,)`, an input with the shape and the dtype of all others.
    """

    def __init__(self, spec: RecurrentSpec, weights: Mapping[str, Array], x: Array) -> None:
        self._weights, self._shape, self._dtype = dict(weights), x.shape, x.dtype
        self._y_shape = (*x.shape[:-1], spec.output_size)
        self._state_shapes = list(spec.state_shapes(x.shape[0] if x.ndim == 2 else None).values())
        layers = [Weights(*(weights.get(name + suffix) for name in Weights._fields)) for suffix in spec.suffixes()]
        batch_size = x.shape[0] if x.ndim == 2 else 1
        self._run = compiled.Step(_MEMORY, compiled.cell_of(spec), _NAMES[x.dtype], layers, batch_size).run

    def __reduce__(self) -> Any:
        return type(None), ()  # it holds addresses, so a copy of a module begins without one

    @staticmethod
    def can_be_had(spec: RecurrentSpec, weights: Mapping[str, Array], x: Array) -> bool:
        """Whether the compiled kernels can run such steps."""
        return (
            library.load() is not None
            and spec.can_stream
            and x.dtype in _NAMES
            and all(array.dtype == x.dtype and _is_whole(array) for array in weights.values())
        )

    def fits(self, weights: Mapping[str, Array], x: Any, state: State) -> bool:
        """Whether it can make a step: with the same weights, and arrays of the same shapes and dtype."""
        if type(x) is not np.ndarray or x.shape != self._shape or x.dtype != self._dtype:
            return False
        for part, shape in zip(state, self._state_shapes, strict=False):
            if type(part) is not np.ndarray or part.shape != shape or part.dtype != self._dtype:
                return False
        return all(weights.get(name) is array for name, array in self._weights.items())

    def run(self, x: Array, state: State) -> tuple[Array, State]:
        """Run a step; return the output, `(B, H)` or `(H,)`, and the next state. Without a state, start from zeros."""
        y = np.empty(self._y_shape, self._dtype)
        final = tuple([np.empty(shape, self._dtype) for shape in self._state_shapes])
        given = [part if _is_whole(part) else np.require(part, None, ["C", "A"]) for part in (x, *state)]
        at, *before = [_address(part) for part in given]
        self._run(at, before, _address(y), [_address(part) for part in final], compiled.num_threads())
        return y, final


def _is_whole(array: Array) -> bool:
    """Whether an array is contiguous in memory, as the kernels need it."""
    flags = array.flags
    return flags.c_contiguous and flags.aligned
