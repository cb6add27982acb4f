"""The module that the ``mindspore`` backend builds."""

import functools
from typing import Any

import numpy as np
from mindspore import GRAPH_MODE, Parameter, ParameterTuple, Tensor, get_context, nn, ops
from mindspore import dtype as mstype

from unirnn import RecurrentSpec
from unirnn.contract import call as _call
from unirnn.contract.backend import Arrays
from unirnn.contract.call import (
    Sizes,
    array_names,
    bind,
    check_arrays,
    check_call,
    check_lengths,
    check_resets,
    check_runs_forward,
    check_step,
    state_parts,
)
from unirnn.contract.module import Module
from unirnn.devices import short_name
from unirnn.errors import ArgumentError, LimitError, ShapeError

from . import dispatch
from .calls import end_mixed_precision
from .layers import Stack
from .lengths import in_graph
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
        self.output_size = spec.output_size
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
        checks = _traced_checks(spec, device, kernel)
        self._check_names, self._check_types, self._check_arrays, self._check_arrays_of_step = checks

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if get_context("mode") == GRAPH_MODE:  # values are known here, and no more when `construct` is compiled
            return super().__call__(*self._checked_on_host(*args, **kwargs))
        # For gradients of the module itself, MindSpore must see the caller's own arguments.
        try:
            return super().__call__(*args, **kwargs)
        except BaseException:
            end_mixed_precision(self)
            raise

    __call__.__doc__ = Module.__call__.__doc__

    def _checked_on_host(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, **aliases: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Check the arguments of a call, values included, and give those without aliases."""
        input, hx, seq_length, resets = bind(self.spec, input, hx, seq_length, resets, aliases)
        _, sizes, ns = check_call(self.spec, input, hx, self._on_host(seq_length), like=(Tensor, self._dtype()))
        if ns is not None:
            seq_length = Tensor(ns if sizes.batch_size is not None else ns[0])
        if resets is not None:
            on_host = self._on_host(resets)
            if _call.resets(on_host, sizes, self.batch_first) is None:
                resets = None
            elif not isinstance(resets, Tensor):
                resets = Tensor(np.asarray(on_host))
        return input, tuple(hx) if isinstance(hx, list) else hx, seq_length, resets

    def _checked(self, input: Any, hx: Any, seq_length: Any, resets: Any, **aliases: Any) -> Any:
        """Do the same when MindSpore compiles, and only shapes and dtypes are known; see below the class."""
        self._check_names(input is not None, hx is not None, tuple(aliases.keys()))
        return aliases.get("x", input), aliases.get("h_0", hx), seq_length, resets

    @staticmethod
    def _on_host(given: Any) -> Any:
        """Give lengths or resets as the core's checks read them."""
        return given.asnumpy() if isinstance(given, Tensor) else given

    def add_flags(self, **flags: Any) -> Any:
        """Set attributes, as MindSpore's `to_float` does for mixed precision."""
        if flags.get("bf16"):
            raise LimitError("to_float: given bfloat16, but mindspore has no bfloat16 layers; it has float16, float32")
        return super().add_flags(**flags)

    def construct(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, **aliases: Any
    ) -> Any:
        """Run the layers; see the call."""
        x, hx, seq_length, resets = self._checked(input, hx, seq_length, resets, **aliases)
        state, shapes, dtypes = self._described(x, hx, False)
        batched, empty = self._check_arrays(shapes, dtypes, self._dtype(), self._known(seq_length), self._known(resets))
        if not batched:
            x = x.expand_dims(1)
        elif self.batch_first:
            x = x.swapaxes(0, 1)
        if isinstance(seq_length, Tensor):
            if seq_length.ndim == 0:
                seq_length = seq_length.expand_dims(0)
            if seq_length.dtype != mstype.int64:  # in PyNative mode a cast would launch an operator, and be waited for
                seq_length = seq_length.astype(mstype.int64)
        elif isinstance(seq_length, int):
            seq_length = Tensor([seq_length], mstype.int64)
        elif seq_length is not None:
            seq_length = Tensor(seq_length, mstype.int64)
        if resets is not None:
            if not isinstance(resets, Tensor):
                resets = Tensor(resets, mstype.bool_)
            if not batched:
                resets = resets.expand_dims(1)
            elif self.batch_first:
                resets = resets.swapaxes(0, 1)

        output, h_n = self._run(x, state, seq_length, resets, batched, empty)
        if not batched:
            output = output.squeeze(1)
        elif self.batch_first:
            output = output.swapaxes(0, 1)
        return output, h_n

    def step(self, x: Any, state: Any = None) -> Any:
        parts, shapes, dtypes = self._described(x, state, True)
        batched, empty = self._check_arrays_of_step(shapes, dtypes, self._dtype())
        x = x.expand_dims(0) if batched else x.reshape((1, 1, -1))
        y, state = self._run(x, parts, None, None, batched, empty)
        return y.squeeze(0) if batched else y.reshape((-1,)), state

    def zero_state(self, batch_size: Any = None) -> Any:
        """Give the state before the first step of a sequence; see `unirnn.state.zeros`."""
        leading: Any = (self.num_layers * (2 if self.bidirectional else 1),)
        if batch_size is not None:
            leading += (batch_size,)
        h = ops.full((*leading, self.output_size), 0, dtype=self.weights[0].dtype)
        return (h, ops.full((*leading, self.hidden_size), 0, dtype=self.weights[0].dtype)) if self.is_lstm else h

    def _dtype(self) -> Any:
        """Give the dtype that the input must have; None where `to_float` casts it."""
        return None if self.fp16 or self.fp32 else self.weights[0].dtype

    def _described(self, x: Any, hx: Any, is_step: bool) -> Any:
        """Check that x and the state are tensors; give the state's parts, and the shapes and dtypes of all of them."""
        state: Any = ()
        in_pair = isinstance(hx, (tuple, list))
        if in_pair:
            state = tuple(hx)
        elif hx is not None:
            state = (hx,)
        tensors: Any = ()
        for array in (x, *state):
            tensors += (isinstance(array, Tensor),)
        self._check_types(tensors, in_pair, is_step)
        shapes: Any = ()
        dtypes: Any = ()
        for array in (x, *state):
            shapes += (array.shape,)
            dtypes += (array.dtype,)
        return state, shapes, dtypes

    def _known(self, given: Any) -> Any:
        """Give what a check can know of lengths or resets: a constant, or the shape and the dtype of a tensor."""
        return (None, given.shape, given.dtype) if isinstance(given, Tensor) else (given, None, None)

    def _cast(self, arrays: Any, kind: Any) -> Any:
        cast: Any = ()
        for array in arrays:
            cast += (array.astype(kind),)
        return cast

    def _run(self, x: Any, state: Any, seq_length: Any, resets: Any, batched: bool, empty: bool) -> Any:
        """Run the layers over `(T, B, I)`; the state is laid out as the caller's."""
        weights: Any = self.weights
        if self.fp16 or self.fp32:
            kind = mstype.float16 if self.fp16 else mstype.float32
            x = x.astype(kind)
            state = self._cast(state, kind)
            weights = self._cast(weights, kind)
        h_0: Any = None
        c_0: Any = None
        if len(state) > 0:
            h_0, c_0 = state[0], state[-1]
            if not batched:
                h_0, c_0 = h_0.expand_dims(1), c_0.expand_dims(1)
        if empty:  # MindSpore's operators fail for arrays without elements
            directions = 2 if self.bidirectional else 1
            output = ops.zeros((x.shape[0], 0, self.output_size * directions), x.dtype)
            h_n = ops.zeros((self.num_layers * directions, 0, self.output_size), x.dtype)
            c_n = ops.zeros((self.num_layers * directions, 0, self.hidden_size), x.dtype)
        else:
            output, h_n, c_n = self.stack(x, h_0, c_0, seq_length, resets, weights)
        if not batched:
            h_n, c_n = h_n.squeeze(1), c_n.squeeze(1)
        return output, (h_n, c_n) if self.is_lstm else h_n


def _checked(step: Any) -> Any:
    """Check the arguments of a step in PyNative mode. MindSpore compiles the wrapped function, with its own checks."""

    @functools.wraps(step)
    def checked(self: "Recurrent", x: Any, state: Any = None) -> tuple[Tensor, Any]:
        check_step(self.spec, x, state, like=(Tensor, self._dtype()))
        result: tuple[Tensor, Any] = step(self, x, state)
        return result

    checked.__doc__ = Module.step.__doc__
    return checked


# Not as decorators: automatic mixed precision copies the class to another module, without the functions of this one.
Recurrent._checked = in_graph(Recurrent._checked)(Recurrent._checked_on_host)  # type: ignore[method-assign]
Recurrent.step = _checked(Recurrent.step)  # type: ignore[method-assign]


@functools.cache  # making these takes as long as making the parameters
def _traced_checks(spec: RecurrentSpec, device: dispatch.DeviceKind, kernel: str) -> tuple[Any, ...]:
    """Make the core's checks functions that run while MindSpore compiles: of names, types, shapes and dtypes.

    The last two tell whether the arrays have an axis B, and whether B is 0.
    """

    def check_names(has_input: bool, has_state: bool, aliases: tuple[str, ...]) -> None:
        bind(spec, has_input or None, has_state or None, None, None, dict.fromkeys(aliases, True))

    def check_types(tensors: tuple[bool, ...], in_pair: bool, is_step: bool) -> None:
        if is_step:
            check_runs_forward(spec)
        for name, is_tensor in zip(array_names(spec, is_step=is_step), tensors, strict=False):
            if not is_tensor:
                raise ArgumentError(f"{name}: given something else, expected a mindspore.Tensor")
        if tensors[1:]:
            # The message only counts and names what was given, so anything may stand for the values.
            state_parts(spec, tensors[1:] if in_pair else Tensor(0), "state" if is_step else "hx")

    def check_call_arrays(shapes: Any, dtypes: Any, dtype: Any, seq_length: Any, resets: Any) -> tuple[bool, bool]:
        constant, shape, kind = seq_length
        begins, resets_shape, resets_kind = resets
        if any(None in each for each in (*shapes, shape or (), resets_shape or ())):
            has_resets = begins is not None or resets_shape is not None
            _check_unknown_sizes(spec, device, kernel, shapes[0], short_name(dtypes[0]), has_resets)
            return len(shapes[0]) == 3, False
        sizes = check_sizes(shapes, dtypes, dtype, is_step=False)
        if constant is not None:
            _call.lengths(constant, sizes)
        elif shape is not None:
            check_lengths(tuple(shape), short_name(kind), sizes)
        if begins is not None:
            _call.resets(begins, sizes, spec.batch_first)
        elif resets_shape is not None:
            check_resets(tuple(resets_shape), short_name(resets_kind), sizes, spec.batch_first)
        return sizes.batch_size is not None, sizes.batch_size == 0

    def check_step_arrays(shapes: Any, dtypes: Any, dtype: Any) -> tuple[bool, bool]:
        sizes = check_sizes(shapes, dtypes, dtype, is_step=True)
        return sizes.batch_size is not None, sizes.batch_size == 0

    def check_sizes(shapes: Any, dtypes: Any, dtype: Any, *, is_step: bool) -> Sizes:
        arrays = tuple((tuple(shape), short_name(kind)) for shape, kind in zip(shapes, dtypes, strict=True))
        name = None if dtype is None else short_name(dtype)
        return check_arrays(spec, name, arrays[0], arrays[1:] or None, is_step=is_step)

    at_compile_time = ops.constexpr(check=False)
    return tuple(
        shared(at_compile_time(check)) for check in (check_names, check_types, check_call_arrays, check_step_arrays)
    )


def _check_unknown_sizes(
    spec: RecurrentSpec,
    device: dispatch.DeviceKind,
    kernel: str,
    shape: tuple[Any, ...],
    dtype: str,
    has_resets: bool,
) -> None:
    """Refuse unknown sizes (None) of an input where the implementation must know them."""
    chosen = dispatch.route(spec, device, kernel, dtype, in_graph=True)
    if chosen == "compiled":
        raise ShapeError(
            f"input: given shape {tuple(shape)}, whose unknown sizes (None) the CPU's kernels must know when they are "
            "compiled; leave out set_inputs, and each new shape compiles anew"
        )
    by_step = f"{spec.kind} is" if chosen == "steps" else "with resets a layer is" if has_resets else None
    if by_step and shape[1 if spec.batch_first and len(shape) == 3 else 0] is None:
        raise ShapeError(
            f"input: given shape {tuple(shape)}, expected a known number of time steps: {by_step} exported step by step"
        )
