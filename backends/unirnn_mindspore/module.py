"""The module that the ``mindspore`` backend builds."""

import functools
from typing import Any

import numpy as np
from mindspore import Parameter, ParameterTuple, Tensor, ops
from mindspore import dtype as mstype

from unirnn import RecurrentSpec
from unirnn.contract.backend import Arrays
from unirnn.contract.call import bind, check_call, check_step
from unirnn.contract.lengths import parse_resets
from unirnn.contract.module import Module
from unirnn.devices import short_name

from . import dispatch
from .calls import CheckedCell, as_lengths, as_resets, described, described_state, known, on_host, traced_recurrent
from .layers import Stack
from .lengths import in_graph, is_compiling

__all__ = ["Recurrent"]


class Recurrent(CheckedCell):
    """A stack of recurrent layers, with the parameters' names of ``mindspore.nn.RNN``, ``GRU`` and ``LSTM``.

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
        self.check, self.check_step, self.is_empty = traced_recurrent(spec, device, kernel)

    def _checked_on_host(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, **aliases: Any
    ) -> tuple[Any, Any, Any, Any]:
        """Check the arguments of a call, values included, and give those without aliases."""
        input, hx, seq_length, resets = bind(self.spec, input, hx, seq_length, resets, aliases)
        _, sizes, ns = check_call(self.spec, input, hx, on_host(seq_length), like=(Tensor, self._dtype()))
        if ns is not None:
            seq_length = Tensor(ns if sizes.batch_size is not None else ns[0])
        if resets is not None:
            given = on_host(resets)
            if parse_resets(given, sizes, self.batch_first) is None:
                resets = None
            elif not isinstance(resets, Tensor):
                resets = Tensor(np.asarray(given))
        return input, tuple(hx) if isinstance(hx, list) else hx, seq_length, resets

    def _checked(self, input: Any, hx: Any, seq_length: Any, resets: Any, **aliases: Any) -> Any:
        """Do the same when MindSpore compiles, and only shapes and dtypes are known; see below the class."""
        names = (input is not None, hx is not None, tuple(aliases.keys()))
        x, state = aliases.get("x", input), aliases.get("h_0", hx)
        self.check(names, described(x), described_state(state), self._dtype(), known(seq_length), known(resets))
        return x, state, seq_length, resets

    def construct(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, **aliases: Any
    ) -> Any:
        x, hx, seq_length, resets = self._checked(input, hx, seq_length, resets, **aliases)
        batched = x.ndim == 3
        begins = as_resets(resets)
        if begins is not None:
            begins = self._steps_first(begins, batched)
        output, h_n = self._run(self._steps_first(x, batched), hx, as_lengths(seq_length), begins, batched)
        if not batched:
            return output.squeeze(1), h_n
        return output.swapaxes(0, 1) if self.batch_first else output, h_n

    construct.__doc__ = Module.__call__.__doc__

    def step(self, x: Any, state: Any = None) -> Any:
        if is_compiling():
            self.check_step(described(x), described_state(state), self._dtype())
        batched = x.ndim == 2
        x = x.expand_dims(0) if batched else x.reshape((1, 1, -1))
        y, state = self._run(x, state, None, None, batched)
        return y.squeeze(0) if batched else y.reshape((-1,)), state

    def _steps_first(self, array: Any, batched: bool) -> Any:
        """Lay out a caller's steps as `(T, B, ...)`."""
        if not batched:
            return array.expand_dims(1)
        return array.swapaxes(0, 1) if self.batch_first else array

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

    def _cast(self, arrays: Any, kind: Any) -> Any:
        cast: Any = ()
        for array in arrays:
            cast += (array.astype(kind),)
        return cast

    def _run(self, x: Any, hx: Any, lengths: Any, resets: Any, batched: bool) -> Any:
        """Run the layers over `(T, B, I)`; the state is laid out as the caller's."""
        state: Any = ()
        if isinstance(hx, (tuple, list)):
            state = tuple(hx)
        elif hx is not None:
            state = (hx,)
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
        if self.is_empty(x.shape):  # MindSpore's operators fail for arrays without elements
            directions = 2 if self.bidirectional else 1
            output = ops.zeros((x.shape[0], 0, self.output_size * directions), x.dtype)
            h_n = ops.zeros((self.num_layers * directions, 0, self.output_size), x.dtype)
            c_n = ops.zeros((self.num_layers * directions, 0, self.hidden_size), x.dtype)
        else:
            output, h_n, c_n = self.stack(x, h_0, c_0, lengths, resets, weights)
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
