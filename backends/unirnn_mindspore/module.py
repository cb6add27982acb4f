"""The module that the ``mindspore`` backend builds."""

import functools
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, nn, ops
from mindspore import dtype as mstype

from unirnn import RecurrentSpec
from unirnn.contract.backend import Arrays
from unirnn.contract.call import bind, check_arrays, check_call, check_lengths, lengths, state_parts
from unirnn.contract.module import Module
from unirnn.devices import short_name
from unirnn.errors import ArgumentError, LimitError, ShapeError

from . import dispatch
from .layers import Stack
from .operators import shared

__all__ = ["Recurrent"]


class Recurrent(nn.Cell):
    """A stack of recurrent layers, whose parameters have the names of those of ``mindspore.nn.RNN``, ``GRU``, ``LSTM``.

    Parameters
    ----------
    spec
        The layers.
    weights
        By the names of `unirnn.Spec.weight_shapes`; copied.
    dtype
        The dtype of the parameters.
    device
        ``"cpu"``, ``"gpu"`` or ``"ascend"``: where it will run.
    kernel
        One of `unirnn_mindspore.dispatch.SUPPORT`.

    Attributes
    ----------
    spec
        The layers.
    weights
        Its parameters, in the order of `unirnn.Spec.weight_shapes`.

    Examples
    --------
    >>> import mindspore, unirnn
    >>> gru = unirnn.GRUSpec(3, 4).build("mindspore", seed=0)
    >>> output, h_n = gru(mindspore.ops.ones((5, 2, 3)), seq_length=[5, 0])
    >>> output.shape, float(output[:, 1].abs().max())
    ((5, 2, 4), 0.0)
    """

    def __init__(
        self,
        spec: RecurrentSpec,
        weights: Arrays,
        dtype: mstype.Type,
        device: dispatch.DeviceKind,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        self.spec = spec
        self.input_size = spec.input_size
        self.hidden_size = spec.hidden_size
        self.num_layers = spec.num_layers
        self.has_bias = spec.bias
        self.batch_first = spec.batch_first
        self.dropout = spec.dropout
        self.bidirectional = spec.bidirectional
        self.is_lstm = spec.kind == "LSTM"
        # `to_float`, with which `mindspore.amp` sets mixed precision, changes these.
        self.fp16 = self.fp32 = False
        kind = short_name(dtype)
        # Made of arrays, which MindSpore copies once; tensors would be copied twice.
        self.weights = ParameterTuple(
            [Parameter(np.asarray(weights[name], kind), name=name) for name in spec.weight_shapes()]
        )
        self.stack = Stack(spec, device, kernel)
        self._check_names, self._check_types, self._check_arrays = _traced_checks(spec, device, kernel)

    def __call__(self, input: Any = None, hx: Any = None, seq_length: Any = None, **aliases: Any) -> Any:
        # Here the values are known; when MindSpore compiles `construct`, only shapes and dtypes are.
        input, hx, seq_length = bind(self.spec, input, hx, seq_length, aliases)
        dtype = None if self.fp16 or self.fp32 else self.weights[0].dtype
        on_host = seq_length.asnumpy() if isinstance(seq_length, Tensor) else seq_length
        _, sizes, ns = check_call(self.spec, input, hx, on_host, like=(Tensor, dtype))
        if ns is not None:
            seq_length = Tensor(ns if sizes.batch_size is not None else ns[0])
        return super().__call__(input, tuple(hx) if isinstance(hx, list) else hx, seq_length)

    __call__.__doc__ = Module.__call__.__doc__

    def add_flags(self, **flags: Any) -> Any:
        """Set attributes, as MindSpore's `to_float` does for mixed precision."""
        if flags.get("bf16"):
            raise LimitError("to_float: given bfloat16, but mindspore has no bfloat16 layers; it has float16, float32")
        return super().add_flags(**flags)

    def construct(self, input: Any = None, hx: Any = None, seq_length: Any = None, **aliases: Any) -> Any:
        """Run the layers, as MindSpore compiles them; see the call."""
        self._check_names(input is not None, hx is not None, tuple(aliases.keys()))
        if "x" in aliases:
            input = aliases["x"]
        if "h_0" in aliases:
            hx = aliases["h_0"]
        state: Any = ()
        if isinstance(hx, (tuple, list)):
            state = tuple(hx)
        elif hx is not None:
            state = (hx,)
        tensors: Any = (isinstance(input, Tensor),)
        for part in state:
            tensors += (isinstance(part, Tensor),)
        self._check_types(tensors, isinstance(hx, (tuple, list)))
        shapes: Any = (input.shape,)
        dtypes: Any = (input.dtype,)
        for part in state:
            shapes += (part.shape,)
            dtypes += (part.dtype,)
        mixed = self.fp16 or self.fp32
        dtype = None if mixed else self.weights[0].dtype
        if isinstance(seq_length, Tensor):
            empty = self._check_arrays(shapes, dtypes, dtype, None, seq_length.shape, seq_length.dtype)
        else:
            empty = self._check_arrays(shapes, dtypes, dtype, seq_length, None, None)

        x = input
        weights: Any = self.weights
        if mixed:
            kind = mstype.float16 if self.fp16 else mstype.float32
            x = x.astype(kind)
            cast: Any = ()
            for part in state:
                cast += (part.astype(kind),)
            state = cast
            weights = ()
            for weight in self.weights:
                weights += (weight.astype(kind),)
        batched = x.ndim == 3
        if not batched:
            x = x.expand_dims(1)
        elif self.batch_first:
            x = x.swapaxes(0, 1)
        h_0: Any = None
        c_0: Any = None
        if hx is not None:
            h_0, c_0 = state[0], state[-1]
            if not batched:
                h_0, c_0 = h_0.expand_dims(1), c_0.expand_dims(1)
        if isinstance(seq_length, Tensor):
            if seq_length.ndim == 0:
                seq_length = seq_length.expand_dims(0)
            if seq_length.dtype != mstype.int64:  # in PyNative mode a cast would launch an operator, and be waited for
                seq_length = seq_length.astype(mstype.int64)
        elif isinstance(seq_length, int):
            seq_length = Tensor([seq_length], mstype.int64)
        elif seq_length is not None:
            seq_length = Tensor(seq_length, mstype.int64)

        if empty:  # MindSpore's operators fail for arrays without elements
            directions = 2 if self.bidirectional else 1
            output = ops.zeros((x.shape[0], 0, self.hidden_size * directions), x.dtype)
            h_n = ops.zeros((self.num_layers * directions, 0, self.hidden_size), x.dtype)
            c_n = h_n
        else:
            output, h_n, c_n = self.stack(x, h_0, c_0, seq_length, weights)
        if not batched:
            output, h_n, c_n = output.squeeze(1), h_n.squeeze(1), c_n.squeeze(1)
        elif self.batch_first:
            output = output.swapaxes(0, 1)
        if self.is_lstm:
            return output, (h_n, c_n)
        return output, h_n


@functools.cache  # making these takes as long as making the parameters
def _traced_checks(spec: RecurrentSpec, device: dispatch.DeviceKind, kernel: str) -> tuple[Any, Any, Any]:
    """Make the core's checks functions that run while MindSpore compiles: of names, types, shapes and dtypes."""

    def check_names(has_input: bool, has_state: bool, aliases: tuple[str, ...]) -> None:
        bind(spec, has_input or None, has_state or None, None, dict.fromkeys(aliases, True))

    def check_tensors(tensors: tuple[bool, ...], in_pair: bool) -> None:
        for name, is_tensor in zip(("input", *(f"{s}_0" for s in spec.states)), tensors, strict=False):
            if not is_tensor:
                raise ArgumentError(f"{name}: given something else, expected a mindspore.Tensor")
        if tensors[1:]:
            # The message only counts and names what was given, so anything may stand for the values.
            state_parts(spec, tensors[1:] if in_pair else Tensor(0))

    def check_shapes(
        shapes: tuple[tuple[Any, ...], ...],
        dtypes: tuple[Any, ...],
        dtype: Any,
        constant: Any,
        length_shape: tuple[Any, ...] | None,
        length_dtype: Any,
    ) -> bool:
        if any(None in shape for shape in (*shapes, length_shape or ())):
            _check_unknown_sizes(spec, device, kernel, shapes[0], short_name(dtypes[0]))
            return False
        arrays = tuple((tuple(shape), short_name(kind)) for shape, kind in zip(shapes, dtypes, strict=True))
        sizes = check_arrays(spec, None if dtype is None else short_name(dtype), arrays[0], arrays[1:] or None)
        if constant is not None:
            lengths(constant, sizes)
        elif length_shape is not None:
            check_lengths(tuple(length_shape), short_name(length_dtype), sizes)
        return sizes.batch_size == 0

    at_compile_time = ops.constexpr(check=False)
    return (
        shared(at_compile_time(check_names)),
        shared(at_compile_time(check_tensors)),
        shared(at_compile_time(check_shapes)),
    )


def _check_unknown_sizes(
    spec: RecurrentSpec, device: dispatch.DeviceKind, kernel: str, shape: tuple[Any, ...], dtype: str
) -> None:
    """Refuse unknown sizes (None) of an input where the implementation must know them."""
    chosen = dispatch.route(spec, device, kernel, dtype, in_graph=True)
    if chosen == "compiled":
        raise ShapeError(
            f"input: given shape {tuple(shape)}, whose unknown sizes (None) the CPU's kernels must know when they are "
            "compiled; leave out set_inputs, and each new shape compiles anew"
        )
    if chosen == "steps" and shape[1 if spec.batch_first and len(shape) == 3 else 0] is None:
        raise ShapeError(
            f"input: given shape {tuple(shape)}, expected a known number of time steps: {spec.kind} is exported step "
            "by step"
        )
