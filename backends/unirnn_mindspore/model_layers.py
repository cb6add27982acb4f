"""The layers around recurrent ones in MindSpore.

A layer that computes each step by itself is called as ``layer(x)``. One that mixes steps is called as::

    layer(x, lengths, resets, states) -> x, lengths, states

with x of `(B, T, F)`, or of `(T, B, F)` if the model is not batch-first, `(B,)` lengths or None, and a tuple with the
state that it has, if any, which is None for zeros.

Numbers of Python are float32 for MindSpore, even where a tensor is float64. So numbers that float32 does not hold are
tensors here.

This file is written in the part of Python that MindSpore's graph mode compiles.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from numpy.typing import NDArray

from unirnn import BatchNormSpec, Conv1dSpec, EmbeddingSpec, LayerNormSpec, NormalizeSpec, PoolSpec

from .lengths import lengths_after, rows_at, seen_steps, select, step_counts, total_steps, valid_steps, widened

__all__ = [
    "BatchNorm",
    "Convolution",
    "Embedding",
    "LayerNorm",
    "LockedDropout",
    "LogSoftmax",
    "Normalize",
    "Place",
    "Pool",
    "SumDirections",
    "Tanh",
    "WideCell",
]

Array = NDArray[Any]


def _constant(value: float, dtype: Any) -> Tensor:
    """A number for the arithmetic of tensors that `widened` gave."""
    return Tensor(value, mstype.float32 if dtype == mstype.float16 else dtype)


class WideCell(nn.Cell):
    """A layer that sums many numbers, and computes float16 in float32."""

    def add_flags(self, **flags: Any) -> Any:
        """Set attributes. Where `to_float` asks for float16, MindSpore would cast what was widened back."""
        if flags.get("fp16"):
            flags = {**flags, "fp16": False, "fp32": True}
        return super().add_flags(**flags)


# ---- layers that compute each step by itself ---------------------------------------------------------


class Embedding(nn.Cell):
    """See `unirnn.EmbeddingSpec`. ``nn.Embedding`` names its weight otherwise, ``mint.nn.Embedding`` needs Ascend."""

    def __init__(self, spec: EmbeddingSpec, weight: Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.padding_idx = -1 if spec.padding_idx is None else spec.padding_idx

    def construct(self, tokens: Any) -> Any:
        """Tokens of any shape to `(..., F)`."""
        found = ops.gather(self.weight, tokens, 0)
        if self.padding_idx < 0:
            return found
        is_padding = ops.equal(tokens, self.padding_idx).expand_dims(-1)
        return ops.where(is_padding, ops.stop_gradient(found), found)


class Tanh(nn.Cell):
    """MindSpore's own tanh is off by 1e-4 in float32 on a CPU; its sigmoid is right."""

    def construct(self, x: Any) -> Any:
        """Give the tanh of each element."""
        return ops.sigmoid(x * 2) * 2 - 1 if x.dtype == mstype.float32 else ops.tanh(x)


class LogSoftmax(WideCell):
    """On a CPU, MindSpore's own log_softmax computes float64 in float32."""

    def construct(self, x: Any) -> Any:
        """Give the logarithm of the softmax of the last axis."""
        if x.dtype != mstype.float64:
            return ops.log_softmax(widened(x), -1).astype(x.dtype)
        shifted = x - ops.amax(x, -1, True)
        return shifted - ops.log(ops.exp(shifted).sum(-1, keepdims=True))


class LockedDropout(nn.Cell):
    """See `unirnn.DropoutSpec`: all steps of a sequence have the same elements dropped."""

    def __init__(self, p: float, axis: int) -> None:
        super().__init__()
        self.p = p
        self.axis = axis

    def construct(self, x: Any) -> Any:
        """`(B, T, F)` or `(T, B, F)`; the axis of the steps is the same from the end where there are more."""
        if not self.training:
            return x
        shape = x.shape
        if x.ndim > 1:
            axis = x.ndim - 3 + self.axis if x.ndim > 2 else 0
            shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        return x * ops.dropout(ops.full(shape, 1, dtype=x.dtype), self.p, True)


class LayerNorm(WideCell):
    """See `unirnn.LayerNormSpec`. MindSpore's operator computes float64 in float32 on a CPU."""

    def __init__(self, spec: LayerNormSpec, weight: Parameter, bias: Parameter) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.eps = _constant(spec.eps, weight.dtype)
        self.normalize = ops.LayerNorm(-1, -1, spec.eps)

    def construct(self, x: Any) -> Any:
        """`(..., F)`."""
        if x.dtype != mstype.float64:
            y = self.normalize(widened(x), widened(self.weight), widened(self.bias))[0]
            return y.astype(x.dtype)
        centred = x - x.mean(-1, keep_dims=True)
        variance = (centred * centred).mean(-1, keep_dims=True)
        return centred / ops.sqrt(variance + self.eps) * self.weight + self.bias


class Normalize(WideCell):
    """See `unirnn.NormalizeSpec`."""

    def __init__(self, spec: NormalizeSpec, dtype: Any) -> None:
        super().__init__()
        self.least = _constant(spec.eps**2, dtype)

    def construct(self, x: Any) -> Any:
        """`(..., F)`."""
        wide = widened(x)
        # The square root of the larger one, since the slope of the root of 0 is infinite.
        squares = (wide * wide).sum(-1, keepdims=True)
        return (wide / ops.sqrt(ops.maximum(squares, self.least))).astype(x.dtype)


class SumDirections(nn.Cell):
    """See `unirnn.SumDirectionsSpec`."""

    def construct(self, x: Any) -> Any:
        """`(..., 2*H)` to `(..., H)`."""
        half = x.shape[-1] // 2
        return x[..., :half] + x[..., half:]


# ---- layers that mix steps ---------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a layer stands in a model.

    Parameters
    ----------
    batch_first
        Whether the model is.
    has_steps
        Whether there is an axis T; not so after a pooling.
    is_clean
        Whether what stands in the padding is zeros.
    """

    batch_first: bool
    has_steps: bool
    is_clean: bool


class BatchNorm(WideCell):
    """See `unirnn.BatchNormSpec`. No layer of MindSpore knows of lengths."""

    def __init__(self, spec: BatchNormSpec, parameters: Mapping[str, Parameter], place: Place) -> None:
        super().__init__()
        self.weight, self.bias = parameters["weight"], parameters["bias"]
        self.running_mean, self.running_var = parameters["running_mean"], parameters["running_var"]
        self.place = tuple(place)
        dtype = self.weight.dtype
        self.eps, self.momentum = _constant(spec.eps, dtype), _constant(spec.momentum, dtype)

    def construct(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """`(B, T, F)` or `(T, B, F)`, or `(B, F)`."""
        wide = widened(x)
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = self._statistics(wide, lengths)
        scale = widened(self.weight) / ops.sqrt(widened(variance) + self.eps)
        y = (wide - widened(mean)) * scale + widened(self.bias)
        return y.astype(x.dtype), lengths, ()

    def _statistics(self, x: Any, lengths: Any) -> Any:
        """Give mean and variance over the valid steps, towards which the running ones move."""
        batch_first, has_steps, is_clean = self.place
        axes = tuple(range(x.ndim - 1))
        if lengths is None or not has_steps:
            count = ops.full((), math.prod(x.shape[:-1]), dtype=x.dtype)
            mean = x.sum(axes) / count
            deviations = x - mean
        else:
            count = total_steps(lengths, x.dtype)
            at_least_one = ops.maximum(count, 1)
            cleaned = x if is_clean else select(x, lengths, batch_first)
            mean = cleaned.sum(axes) / at_least_one
            deviations = select(x - mean, lengths, batch_first)
            count = at_least_one
        squares = (deviations * deviations).sum(axes)
        # The variance of fewer than two steps is not known, so the running statistics stay as they are.
        rate = ops.where(count > 1, self.momentum, ops.zeros_like(self.momentum))
        self._move(self.running_mean, mean, rate)
        self._move(self.running_var, squares / ops.maximum(count - 1, 1), rate)
        return mean, squares / count

    def _move(self, running: Any, value: Any, rate: Any) -> None:
        wide = widened(running)
        moved = wide + rate * (ops.stop_gradient(value) - wide)
        ops.assign(running, moved.astype(running.dtype))


class Convolution(nn.Cell):
    """See `unirnn.Conv1dSpec`: one product, after the steps that are multiplied are gathered.

    MindSpore's own convolution has no float64 on a CPU, and another layout.
    """

    def __init__(self, spec: Conv1dSpec, parameters: Mapping[str, Parameter], place: Place) -> None:
        super().__init__()
        self.weight = parameters["weight"]
        self.has_bias = spec.bias
        if spec.bias:
            self.bias = parameters["bias"]
        self.rules = tuple(tuple(rule) for rule in spec.length_rules)
        self.left, self.right = spec.padded
        self.context = bool(spec.state_shapes(None))
        self.size, self.groups = spec.kernel_size, spec.groups
        self.span, self.stride, self.dilation = spec.span, spec.stride, spec.dilation
        self.batch_first, self.is_clean = place.batch_first, place.is_clean

    def construct(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """`(B, T, F)` or `(T, B, F)`."""
        if not self.is_clean:
            x = select(x, lengths, self.batch_first)
        padded = self._padded(x, states[0] if self.context else None)
        finals: Any = (self._last(padded, lengths),) if self.context else ()
        y = self._product(padded)
        if lengths is not None and len(self.rules) > 0:
            lengths = lengths_after(self.rules, lengths)
        return y, lengths, finals

    def _padded(self, x: Any, state: Any) -> Any:
        """Put the context, or zeros, before the first step, and zeros after the last."""
        parts: Any = (x,)
        if state is not None:
            parts = (state.swapaxes(0, 1) if self.batch_first else state, x)
        elif self.left > 0:
            parts = (self._zeros(x, self.left), x)
        if self.right > 0:
            parts += (self._zeros(x, self.right),)
        return x if len(parts) == 1 else ops.concat(parts, 1 if self.batch_first else 0)

    def _zeros(self, x: Any, steps: int) -> Any:
        shape = (x.shape[0], steps, x.shape[2]) if self.batch_first else (steps, x.shape[1], x.shape[2])
        return ops.full(shape, 0, dtype=x.dtype)

    def _last(self, padded: Any, lengths: Any) -> Any:
        """`(span-1, B, F)`: the last steps of each sequence, those before it included."""
        if lengths is None:
            last = (
                padded[:, padded.shape[1] - self.left :] if self.batch_first else padded[padded.shape[0] - self.left :]
            )
            return last.swapaxes(0, 1) if self.batch_first else last
        rows = rows_at(lengths, 0, self.left, padded.shape[1 if self.batch_first else 0], self.batch_first)
        return ops.gather(padded.reshape((-1, padded.shape[2])), rows, 0)

    def _product(self, padded: Any) -> Any:
        axis = 1 if self.batch_first else 0
        seen = padded  # `(B, T, K*F)` or `(T, B, K*F)`
        if self.size > 1 or self.stride > 1:
            steps = (padded.shape[axis] - self.span) // self.stride + 1
            at = seen_steps(steps, self.size, self.stride, self.dilation)
            seen = ops.gather(padded, at, axis)
            if not self.batch_first:
                seen = seen.transpose((0, 2, 1, 3))
        size_out, size_in, _ = self.weight.shape
        if self.groups == 1:
            weight = self.weight.transpose((0, 2, 1)).reshape((size_out, self.size * size_in))
            seen = seen.reshape((*seen.shape[:2], self.size * size_in))
            return ops.dense(seen, weight, self.bias) if self.has_bias else ops.dense(seen, weight)
        leading = seen.shape[:2]
        size = self.size * size_in
        columns = seen.reshape((-1, self.size, self.groups, size_in)).transpose((2, 0, 1, 3))
        weight = self.weight.reshape((self.groups, size_out // self.groups, size_in, self.size))
        weight = weight.transpose((0, 3, 2, 1)).reshape((self.groups, size, size_out // self.groups))
        y = ops.bmm(columns.reshape((self.groups, -1, size)), weight).swapaxes(0, 1)
        y = y.reshape((*leading, size_out))
        return y + self.bias if self.has_bias else y


class Pool(WideCell):
    """See `unirnn.PoolSpec`."""

    def __init__(self, spec: PoolSpec, place: Place) -> None:
        super().__init__()
        self.how = spec.how
        self.batch_first, self.is_clean = place.batch_first, place.is_clean

    def construct(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """`(B, T, F)` or `(T, B, F)` to `(B, F)`."""
        if not self.is_clean:
            x = select(x, lengths, self.batch_first)
        return self._pooled(x, lengths), None, ()

    def _pooled(self, x: Any, lengths: Any) -> Any:
        axis = 1 if self.batch_first else 0
        if self.how == "mean":
            wide = widened(x)
            total = wide.sum(axis)
            mean = total / x.shape[axis] if lengths is None else total / step_counts(lengths, wide.dtype)
            return mean.astype(x.dtype)
        if self.how == "max":
            return self._largest(x, lengths, axis)
        last = self._last(x, lengths, axis)
        if self.how == "last":
            return last
        first = x[:, 0] if self.batch_first else x[0]
        half = x.shape[2] // 2
        return ops.concat((last[:, :half], first[:, half:]), 1)

    def _largest(self, x: Any, lengths: Any, axis: int) -> Any:
        if lengths is None:
            return ops.amax(x, axis)
        valid = valid_steps(lengths, x.shape[axis], self.batch_first)
        largest = ops.amax(ops.where(valid, x, ops.full_like(x, -math.inf)), axis)
        has_steps = valid[:, 0] if self.batch_first else valid[0]
        return ops.where(has_steps, largest, ops.zeros_like(largest))

    def _last(self, x: Any, lengths: Any, axis: int) -> Any:
        """Step n-1. For a sequence of length 0 it is step 0, which is zeros, as all of its padding."""
        if lengths is None:
            return x[:, x.shape[1] - 1] if self.batch_first else x[x.shape[0] - 1]
        rows = rows_at(lengths, -1, 1, x.shape[axis], self.batch_first)
        return ops.gather(x.reshape((-1, x.shape[2])), rows[0], 0)
