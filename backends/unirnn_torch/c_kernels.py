"""The C kernels of `unirnn.kernels` over the memory of tensors, on a CPU, in float32 and float64.

They are what ``kernel="compiled"`` names: a C library that comes with unirnn. They have nothing to do with
`torch.compile`.

`forward` and `backward` compute one layer in one direction, which a `Call` describes. `Prepared` computes a whole stack
without gradients. The kernels read and write memory, so this module checks every shape and dtype that it is given,
whatever calls it, except those of memory from `empty_results`. Only tensors that are not contiguous are copied.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unirnn import RecurrentSpec, reference
from unirnn.contract.call import Layout
from unirnn.contract.lengths import Sizes, parse_lengths
from unirnn.devices import short_name
from unirnn.errors import ArgumentError, DTypeError, ShapeError
from unirnn.kernels import compiled

__all__ = ["Call", "Prepared", "backward", "empty_kept", "empty_results", "forward", "num_states", "num_weights"]

_MEMORY = compiled.Memory(Tensor.data_ptr, lambda tensor: tensor.stride()[:2])
_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
_GATES = {"RNN": 1, "GRU": 3, "LSTM": 4}


class Call(NamedTuple):
    """One layer in one direction: what its forward and its backward pass are given.

    Parameters
    ----------
    cell
        As the C kernels call it; see `unirnn.kernels.compiled.cell_of`.
    x
        `(T, B, I)`.
    lengths
        `(B,)` int64; None if every step is valid.
    resets
        `(T, B)` bool; None if no sequence begins anew.
    state
        The initial state, `(B, H)` each. It may be empty, for zeros, in a forward pass that keeps nothing.
    weights
        Of this layer and direction. With a projection, h and the output have its size instead of H.
    reverse
        Whether it runs from the last valid step to the first.
    """

    cell: str
    x: Tensor
    lengths: Tensor | None
    resets: Tensor | None
    state: tuple[Tensor, ...]
    weights: reference.Weights
    reverse: bool

    @property
    def hidden_size(self) -> int:
        weight_hr = self.weights.weight_hr
        size: int = self.output_size if weight_hr is None else weight_hr.shape[1]
        return size

    @property
    def output_size(self) -> int:
        """The size of the output, and of h."""
        size: int = self.weights.weight_hh.shape[1]
        return size

    @property
    def state_sizes(self) -> tuple[int, ...]:
        """The size of each part of the state."""
        return (self.output_size, self.hidden_size)[: num_states(self.cell)]

    @classmethod
    def of_tensors(cls, cell: str, tensors: Sequence[Any], reverse: bool) -> "Call":
        """The call whose tensors these are; see `tensors`."""
        x, lengths, resets, *others = tensors
        states = num_states(cell)
        return cls(cell, x, lengths, resets, tuple(others[:states]), reference.Weights(*others[states:]), reverse)

    def tensors(self) -> tuple[Tensor | None, ...]:  # no property, which a graph can't read
        """``(x, lengths, resets, *state, *weights)``."""
        return self.x, self.lengths, self.resets, *self.state, *self.weights[: num_weights(self.cell)]

    def checked_lengths(self) -> NDArray[np.int64] | None:
        """The lengths, read from whatever device they are on.

        Raises
        ------
        LengthError
            If a length is below 0 or above T.
        """
        if self.lengths is None:
            return None
        steps, batch_size, _ = self.x.shape
        return parse_lengths(self.lengths.cpu().numpy(), Sizes(steps, batch_size))


def num_states(cell: str) -> int:
    """How many parts the state of a cell has."""
    return 2 if cell.startswith("LSTM") else 1


def num_weights(cell: str) -> int:
    """How many weights a cell can have; only an LSTM can have a projection."""
    return 5 if cell.startswith("LSTM") else 4


def empty_kept(call: Call, *, keep: bool) -> Tensor:
    """Memory for what the backward pass needs; empty unless ``keep``.

    A graph can't know the sum N of the lengths, so there are `T*B` rows. Only the first N are written, or ever touched.
    """
    steps, batch_size, _ = call.x.shape
    return call.x.new_empty((steps * batch_size if keep else 0, compiled.KEPT[call.cell] * call.hidden_size))


def empty_results(call: Call) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Memory for the output `(T, B, H)` and the final state, `(B, H)` each."""
    x = call.x
    steps, batch_size, _ = x.shape
    final = tuple([x.new_empty((batch_size, size)) for size in call.state_sizes])
    return x.new_empty((steps, batch_size, call.output_size)), final


def forward(call: Call, output: Tensor, final: Sequence[Tensor], kept: Tensor | None) -> None:
    """Run a layer.

    Parameters
    ----------
    call
        The layer. Its lengths must have been checked.
    output
        `(T, B, H)`, to be written; a part of a larger tensor's last axis will do.
    final
        `(B, H)` each, contiguous, to be written.
    kept
        From `empty_kept`, to be written; None if no backward pass will follow.
    """
    sizes = call.output_size, *call.state_sizes
    if (output.shape[2], *[part.shape[1] for part in final]) != sizes:
        raise ShapeError(f"weights: given those of hidden size {call.hidden_size}, expected those of the spec")
    call = _readable(call)  # held while its memory is read
    compiled.forward(_described(call, output=output, final=final, kept=kept))


def backward(
    call: Call, kept: Tensor, d_results: Sequence[Tensor | None], needed: tuple[bool, bool]
) -> tuple[Tensor | None, ...]:
    """Compute the gradients of a layer.

    Parameters
    ----------
    call
        As it was in the forward pass.
    kept
        What the forward pass has left.
    d_results
        The gradients of the output and of each part of the final state; None is zeros.
    needed
        Whether the gradient of x is needed, and whether any of a weight is.

    Returns
    -------
    tuple
        The gradients ``(x, *state, *weights)``; None where they are not needed, or there is no bias.
    """
    of_x, of_weights = needed
    call = _readable(call)
    x, state = call.x, call.state
    d_output, *d_final = d_results
    steps, batch_size, _ = x.shape
    d_output = (
        None
        if d_output is None
        else _checked_steps("d_output", d_output, (steps, batch_size, call.output_size), x.dtype)
    )
    d_final = [
        None if d is None else _checked("d_state", d, (batch_size, size), x.dtype)
        for d, size in zip(d_final, call.state_sizes, strict=True)
    ]
    _checked("kept", kept, (steps * batch_size, compiled.KEPT[call.cell] * call.hidden_size), x.dtype)
    d_x = x.new_empty((steps, batch_size, x.shape[2])) if of_x else None
    d_state = [torch.empty_like(part) for part in state]
    d_weights = reference.Weights(*(None if w is None or not of_weights else torch.empty_like(w) for w in call.weights))
    compiled.backward(
        _described(call, kept=kept), compiled.gradients(_MEMORY, d_output, d_final, d_x, d_state, d_weights)
    )
    return d_x, *d_state, *d_weights[: num_weights(call.cell)]


class Prepared:
    """A stack of layers, prepared for many calls with tensors of equal shapes, in which every step is valid.

    It computes no gradients.

    Parameters
    ----------
    spec
        The layers.
    weights
        Of each layer and direction.
    x
        An input with the shape, the strides and the dtype of all others.
    layout
        Its layout.
    """

    def __init__(self, spec: RecurrentSpec, weights: Sequence[reference.Weights], x: Tensor, layout: Layout) -> None:
        self._shape, self._strides, self._dtype = x.shape, x.stride(), x.dtype
        self._weights = _places(w for own in weights for w in own if w is not None)
        self._stack = compiled.Stack(_MEMORY, spec, _DTYPES[x.dtype], weights, x, layout)

    def __reduce__(self) -> Any:
        return type(None), ()  # it holds addresses, so a copy of a module begins without one

    @staticmethod
    def can_be_had(weights: Iterable[Tensor], x: Tensor) -> bool:
        """Whether the C kernels, which must be there, can run such calls."""
        readable = all(w.dtype is x.dtype and w.is_cpu and _contiguous(w) is w for w in weights)
        return readable and x.dtype in _DTYPES and x.is_cpu and x.numel() > 0 and x.stride(-1) == 1

    def fits(self, weights: Iterable[Tensor], x: Tensor, state: Sequence[Tensor]) -> bool:
        """Whether it can make a call: the weights have not moved, and the tensors have the same shapes and dtypes."""
        if x.shape != self._shape or x.stride() != self._strides or x.dtype is not self._dtype:
            return False
        if not x.is_cpu or x.is_neg():
            return False
        for part, shape in zip(state, self._stack.state_shapes, strict=False):
            if part.shape != shape or part.dtype is not self._dtype or not part.is_cpu:
                return False
        return _places(weights) == self._weights

    def run(self, x: Tensor, state: Sequence[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Make a call; without a state, start from zeros. Return the output and the final state in the layout of x."""
        given = [_contiguous(part) for part in state]
        return self._stack.run(_in_memory(x), given, x.new_empty, torch.get_num_threads())


def _places(tensors: Iterable[Tensor]) -> list[Any]:
    """Where tensors lie, and how: assigning to a parameter's ``data`` changes these, and not the parameter."""
    return [(t.data_ptr(), t.dtype, t.shape, t.stride(), t.is_neg()) for t in tensors]


def _contiguous(tensor: Tensor) -> Tensor:
    """The same tensor if its memory can be read as it is, or else a copy."""
    whole = tensor if tensor.is_contiguous() and not tensor.is_neg() else tensor.resolve_neg().contiguous()
    return _in_memory(whole)


def _in_memory(tensor: Tensor) -> Tensor:
    """The same tensor; an error if it has no memory, which would crash the kernels."""
    if not tensor.data_ptr() and tensor.numel():
        raise ArgumentError(
            "a tensor without memory is given, as a parameter is that FSDP has freed; expected one with its numbers"
        )
    return tensor


def _described(call: Call, *, output: Tensor | None = None, final: Sequence[Tensor] = (), kept: Tensor | None) -> bytes:
    dtype, threads = _DTYPES[call.x.dtype], torch.get_num_threads()
    return compiled.layer(_MEMORY, call.cell, dtype, call, threads, output=output, final=final, kept=kept)


def _readable(call: Call) -> Call:
    """The same call over tensors that the kernels can read.

    Raises
    ------
    ShapeError, DTypeError
        If the shape or dtype of a tensor does not match the others.
    """
    cell, x, lengths, resets, state, (weight_ih, weight_hh, bias_ih, bias_hh, weight_hr), reverse = call
    steps, batch_size, input_size = x.shape
    rows = _GATES[cell.partition("_")[0]] * call.hidden_size
    if x.dtype not in _DTYPES:
        raise DTypeError(f"x: given {short_name(x.dtype)}, expected float32 or float64")
    if (bias_ih is None) != (bias_hh is None):
        raise ShapeError("bias_ih, bias_hh: given one of them, expected both or none")
    if lengths is not None:
        lengths = _checked("lengths", lengths, (batch_size,), torch.int64)
    if resets is not None:
        resets = _checked("resets", resets, (steps, batch_size), torch.bool)
    dtype, of_bias = x.dtype, (rows,)
    weights = reference.Weights(
        _checked("weight_ih", weight_ih, (rows, input_size), dtype),
        _checked("weight_hh", weight_hh, (rows, call.output_size), dtype),
        None if bias_ih is None else _checked("bias_ih", bias_ih, of_bias, dtype),
        None if bias_hh is None else _checked("bias_hh", bias_hh, of_bias, dtype),
        None if weight_hr is None else _checked("weight_hr", weight_hr, (call.output_size, call.hidden_size), dtype),
    )
    sizes = zip(state, call.state_sizes, strict=False)
    begin = tuple([_checked("state", part, (batch_size, size), dtype) for part, size in sizes])
    return Call(cell, _checked_steps("x", x, x.shape, dtype), lengths, resets, begin, weights, reverse)


def _checked(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The tensor in contiguous memory, after a check of its shape, its dtype and its device."""
    if tensor.shape != shape or tensor.dtype is not dtype or not tensor.is_cpu:
        _refuse(name, tensor, shape, dtype)
    return _contiguous(tensor)


def _checked_steps(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The same for `(T, B, F)`, of which only the last axis need be contiguous."""
    if tensor.shape != shape or tensor.dtype is not dtype or not tensor.is_cpu:
        _refuse(name, tensor, shape, dtype)
    if tensor.is_neg():
        tensor = tensor.resolve_neg()
    return _in_memory(tensor if tensor.stride(2) == 1 or shape[2] == 1 else tensor.contiguous())


def _refuse(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> NoReturn:
    if tensor.shape != shape:
        raise ShapeError(f"{name}: given shape {tuple(tensor.shape)}, expected {tuple(shape)}")
    given, expected = short_name(tensor.dtype), short_name(dtype)
    raise DTypeError(f"{name}: given {given} on {tensor.device}, expected {expected} on the CPU")
