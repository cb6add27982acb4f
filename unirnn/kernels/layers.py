"""A whole stack of layers on a CPU, over NumPy's arrays: forward and backward.

Each layer in each direction is one call of the compiled kernels (`unirnn.kernels.arrays`), or, if they are not
available, of their NumPy version (`unirnn.kernels.fallback`). Both compute the valid steps only and never read the
padding. float16 is computed in float32.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unirnn.contract.call import Batch
from unirnn.contract.limits import Support
from unirnn.errors import LimitError, ShapeError
from unirnn.reference import Weights
from unirnn.specs import RecurrentSpec

from . import arrays, fallback, library
from .direction import Array, Direction, State, contiguous

__all__ = ["SUPPORT", "KernelName", "Pullback", "check_compiled", "is_compiled", "recurrent"]

Gradients = dict[str, Array]
Pullback = Callable[[Array, State], Gradients]
KernelName = Literal["compiled", "fallback"]

_DTYPES = ("float16", "float32", "float64")

SUPPORT = {
    "compiled": Support("the compiled kernel", devices=("cpu",), dtypes=_DTYPES, derivatives=1),
    "fallback": Support("the fallback kernel", devices=("cpu",), dtypes=_DTYPES, derivatives=1),
}
"""What the kernels compute: compiled, and by NumPy."""


def is_compiled() -> bool:
    """Whether the compiled kernels can be used; if not, the reason is logged."""
    return library.load() is not None


def check_compiled() -> None:
    """Refuse the kernel ``"compiled"`` if it is not available.

    Raises
    ------
    LimitError
        With the reason.
    """
    reason = library.why_not()
    if reason is not None:
        raise LimitError(f"kernel: given 'compiled', but {reason}; build with 'auto'")


_NAMES = Weights._fields
_MODULES: dict[KernelName, Any] = {"compiled": arrays, "fallback": fallback}
"""What computes one layer in one direction: two modules with the same functions."""


class _Layers:
    """The layers of a call; see `recurrent` for the parameters."""

    def __init__(
        self,
        spec: RecurrentSpec,
        weights: Mapping[str, Array],
        lengths: NDArray[np.int64] | None,
        resets: NDArray[np.bool_] | None,
        noise: Array | None,
        kernel: KernelName,
    ) -> None:
        self._spec, self._weights, self._noise = spec, weights, noise
        self._lengths, self._resets = lengths, resets
        self._kernel = _MODULES[kernel]
        self._computed: list[tuple[Direction, Any]] = []

    def forward(self, x: Array, initial: State, final: State, *, keep: bool) -> Array:
        """Give the output, `(T, B, D*H)`, and write the final state; all in the dtype that is computed with."""
        spec, width, size = self._spec, self._spec.num_directions, self._spec.output_size
        for layer in range(spec.num_layers):
            output = np.empty((*x.shape[:2], width * size), x.dtype)
            for k in range(width):
                position = layer * width + k
                suffix = spec.suffixes()[position]
                weights = Weights(*[_get(self._weights, name + suffix, x.dtype) for name in _NAMES])
                _check_shapes(spec, suffix, weights, x.shape[2])
                one = Direction(
                    spec, weights, spec.is_reverse(position), x, _at(position, initial), self._lengths, self._resets
                )
                into = output[:, :, k * size : (k + 1) * size]
                kept = self._kernel.forward(one, into, _at(position, final), keep=keep)
                if keep:
                    self._computed.append((one, kept))
            x = self._drop(output, layer)
        return x

    def backward(self, d_output: Array, d_final: State, d_initial: State) -> Gradients:
        """Give the gradients of the input and the weights, and write those of the initial state."""
        spec, width, size = self._spec, self._spec.num_directions, self._spec.output_size
        gradients: Gradients = {}
        for layer in reversed(range(spec.num_layers)):
            d_output = self._drop(d_output, layer)
            d_inputs = []
            for k in range(width):
                position = layer * width + k
                d_into = d_output[:, :, k * size : (k + 1) * size]
                d_x, d_weights = self._kernel.backward(
                    *self._computed[position], d_into, _at(position, d_final), _at(position, d_initial)
                )
                d_inputs.append(d_x)
                suffix = spec.suffixes()[position]
                gradients |= {name + suffix: d for name, d in zip(_NAMES, d_weights, strict=True) if d is not None}
            d_output = d_inputs[0] if width == 1 else d_inputs[0] + d_inputs[1]
        return {"input": d_output, **gradients}

    def _drop(self, rows: Array, layer: int) -> Array:
        """Apply dropout to the output of a layer, or to its gradient; that of the last layer has none."""
        if self._noise is None or layer == self._spec.num_layers - 1:
            return rows
        dropped: Array = rows * self._noise[layer].astype(rows.dtype)
        return dropped


def recurrent(
    spec: RecurrentSpec,
    weights: Mapping[str, Array],
    batch: Batch,
    *,
    noise: Array | None = None,
    keep: bool,
    kernel: KernelName | None = None,
) -> tuple[Array, State, Pullback]:
    """Run a whole stack of layers.

    Parameters
    ----------
    spec
        The layers.
    weights
        By the names of `Spec.weight_shapes`, of the input's dtype.
    batch
        The input, in float16, float32 or float64, the initial state, the lengths and the resets.
    noise
        `(L-1, T, B, D*H)`: what the output of every layer but the last is multiplied with (dropout).
    keep
        Whether the pullback will be called.
    kernel
        ``"compiled"`` or ``"fallback"``; None: compiled, if that can be had.

    Returns
    -------
    output
        `(T, B, D*H)`, zero in the padding.
    final_state
        `(L*D, B, H)` each.
    pullback
        ``pullback(d_output, d_final_state)`` gives the gradients by name: ``input`` `(T, B, I)`, ``h_0`` (and
        ``c_0``), and each weight.

    Raises
    ------
    ShapeError
        If a weight has the wrong shape.
    """
    x, hx, lengths, resets = batch
    dtype = x.dtype
    computed = np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")
    rows = _steps(x, computed)
    if keep and np.may_share_memory(rows, x):
        rows = rows.copy()  # the caller may write over it before the backward pass
    if hx is None:
        initial = tuple(np.zeros(shape, computed) for shape in spec.state_shapes(x.shape[1]).values())
    else:
        initial = tuple([np.array(p, computed, order="C") if keep else contiguous(p, computed) for p in hx])
    final = tuple([np.empty(part.shape, computed) for part in initial])
    if resets is not None:
        resets = np.array(resets, order="C") if keep else np.ascontiguousarray(resets)
    kernel = kernel or ("compiled" if is_compiled() else "fallback")
    stack = _Layers(spec, weights, lengths, resets, noise, kernel)
    output = stack.forward(rows, initial, final, keep=keep)

    def pullback(d_output: Array, d_final: State) -> Gradients:
        d_initial = tuple(np.empty(part.shape, computed) for part in initial)
        gradients = stack.backward(
            _steps(d_output, computed), tuple(contiguous(part, computed) for part in d_final), d_initial
        )
        gradients.update({f"{name}_0": part for name, part in zip(spec.states, d_initial, strict=True)})
        return {name: gradient.astype(dtype, copy=False) for name, gradient in gradients.items()}

    if computed == dtype:
        return output, final, pullback
    return output.astype(dtype), tuple(part.astype(dtype) for part in final), pullback


def _at(position: int, state: State) -> State:
    """`(B, H)` each of the `(L*D, B, H)` of all layers and directions."""
    return tuple([part[position] for part in state])


def _check_shapes(spec: RecurrentSpec, suffix: str, weights: Weights, input_size: int) -> None:
    """Refuse weights that don't fit the spec, as the kernels would read and write other memory; raises ShapeError."""
    rows, size = len(spec.gates) * spec.hidden_size, spec.output_size
    expected = (rows, input_size), (rows, size), (rows,), (rows,), (size, spec.hidden_size)
    for name, array, shape in zip(_NAMES, weights, expected, strict=True):
        if array is not None and array.shape != shape:
            raise ShapeError(f"weights[{name + suffix!r}]: given shape {array.shape}, expected {shape}")
    if (weights.bias_ih is None) != (weights.bias_hh is None):
        raise ShapeError(f"weights: given one of bias_ih{suffix} and bias_hh{suffix}, expected both or none")


def _get(weights: Mapping[str, Array], name: str, dtype: np.dtype[Any]) -> Array | None:
    array = weights.get(name)
    return None if array is None else contiguous(array, dtype)


def _steps(array: Array, dtype: np.dtype[Any]) -> Array:
    """`(T, B, F)` with a contiguous last axis; itself, if it is."""
    strides = array.strides
    if array.dtype == dtype and array.flags.aligned and strides[2] == dtype.itemsize:
        return array
    return contiguous(array, dtype)
