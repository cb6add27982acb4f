"""MindSpore's functions by the names of the array API standard, and the other functions that models need.

It is what ``xp`` is in a `unirnn.Model`. Each function works in PyNative mode and in a graph, forward and backward, and
where MindSpore's own is wrong on a CPU, another one replaces it. It has the part of the standard that models need.
"""

import math
from typing import Any

from mindspore import Tensor, ops
from mindspore import dtype as mstype

bool = mstype.bool_  # the standard's names of dtypes
int32, int64 = mstype.int32, mstype.int64
float16, float32, float64 = mstype.float16, mstype.float32, mstype.float64
e, inf, nan, newaxis, pi = math.e, math.inf, math.nan, None, math.pi

add, subtract, multiply, divide, negative = ops.add, ops.sub, ops.mul, ops.div, ops.neg
equal, not_equal, less, less_equal = ops.equal, ops.not_equal, ops.less, ops.less_equal
greater, greater_equal = ops.greater, ops.greater_equal
logical_and, logical_or, logical_not = ops.logical_and, ops.logical_or, ops.logical_not
abs, exp, log, sqrt, square, sin, cos = ops.abs, ops.exp, ops.log, ops.sqrt, ops.square, ops.sin, ops.cos
maximum, minimum, matmul, where = ops.maximum, ops.minimum, ops.matmul, ops.where
sigmoid, relu = ops.sigmoid, ops.relu
zeros_like, ones_like = ops.zeros_like, ops.ones_like


# ---- arrays ------------------------------------------------------------------------------------------


def asarray(value: Any, *, dtype: Any = None, device: Any = None) -> Any:
    """A tensor from a number, nested lists of numbers, or an array; a tensor stays as it is, or is cast."""
    if not isinstance(value, Tensor):
        return Tensor(value) if dtype is None else Tensor(value, dtype)
    return value if dtype is None else value.astype(dtype)


def astype(x: Any, dtype: Any) -> Any:
    """A tensor of another dtype."""
    return x.astype(dtype)


def arange(start: Any, stop: Any = None, step: Any = 1, *, dtype: Any = None, device: Any = None) -> Any:
    """`(N,)`: from start, or 0, up to stop."""
    found = ops.arange(start) if stop is None else ops.arange(start, stop, step)
    return found if dtype is None else found.astype(dtype)


def zeros(shape: Any, *, dtype: Any = mstype.float32, device: Any = None) -> Any:
    """Zeros of a shape."""
    return ops.full(shape, 0, dtype=dtype)


def ones(shape: Any, *, dtype: Any = mstype.float32, device: Any = None) -> Any:
    """Ones of a shape."""
    return ops.full(shape, 1, dtype=dtype)


def full(shape: Any, fill_value: Any, *, dtype: Any = mstype.float32, device: Any = None) -> Any:
    """One number in a shape."""
    return ops.full(shape, fill_value, dtype=dtype)


def full_like(x: Any, fill_value: Any, *, dtype: Any = None) -> Any:
    """One number in the shape of x."""
    return ops.full_like(x, fill_value, dtype=x.dtype if dtype is None else dtype)


def tril(x: Any, *, k: int = 0) -> Any:
    """The lower triangle of the last two axes."""
    at = ops.arange(x.shape[-2]).expand_dims(1) + k >= ops.arange(x.shape[-1])
    return ops.where(at, x, ops.zeros_like(x))


def triu(x: Any, *, k: int = 0) -> Any:
    """The upper triangle of the last two axes."""
    at = ops.arange(x.shape[-2]).expand_dims(1) + k <= ops.arange(x.shape[-1])
    return ops.where(at, x, ops.zeros_like(x))


# ---- shapes ------------------------------------------------------------------------------------------


def reshape(x: Any, shape: Any) -> Any:
    """The same numbers in another shape."""
    return x.reshape(shape)


def permute_dims(x: Any, axes: Any) -> Any:
    """The axes in another order."""
    return ops.transpose(x, axes)


def matrix_transpose(x: Any) -> Any:
    """The last two axes swapped."""
    return ops.swapaxes(x, -1, -2)


def expand_dims(x: Any, *, axis: int = 0) -> Any:
    """With a new axis of size 1."""
    return ops.expand_dims(x, axis)


def squeeze(x: Any, axis: Any) -> Any:
    """Without an axis, or several, of size 1."""
    return ops.squeeze(x, axis)


def broadcast_to(x: Any, shape: Any) -> Any:
    """The same numbers repeated to a shape."""
    return ops.broadcast_to(x, shape)


def concat(arrays: Any, *, axis: int = 0) -> Any:
    """Tensors joined along an axis."""
    return ops.concat(arrays, axis)


def stack(arrays: Any, *, axis: int = 0) -> Any:
    """Tensors joined along a new axis."""
    return ops.stack(arrays, axis)


def flip(x: Any, *, axis: int) -> Any:
    """With the elements along an axis in reverse order."""
    return ops.flip(x, (axis,))


def take(x: Any, indices: Any, *, axis: int) -> Any:
    """The elements at some indices of an axis. For an index out of range, MindSpore returns arbitrary numbers."""
    return ops.gather(x, indices, axis)


def take_along_axis(x: Any, indices: Any, *, axis: int = -1) -> Any:
    """The elements at some indices of an axis, which differ along the other axes."""
    return ops.gather_elements(x, axis if axis >= 0 else axis + x.ndim, indices)


# ---- reductions --------------------------------------------------------------------------------------


def sum(x: Any, *, axis: Any = None, keepdims: Any = False) -> Any:
    """The sum over an axis, several axes, or all elements."""
    return x.sum(axis, keepdims=keepdims)


def mean(x: Any, *, axis: Any = None, keepdims: Any = False) -> Any:
    """The mean over an axis, several axes, or all elements."""
    return x.mean(axis, keepdims)


def max(x: Any, *, axis: Any = None, keepdims: Any = False) -> Any:
    """The largest element over an axis, several axes, or all elements."""
    return ops.amax(x, axis, keepdims)


def min(x: Any, *, axis: Any = None, keepdims: Any = False) -> Any:
    """The smallest element over an axis, several axes, or all elements."""
    return ops.amin(x, axis, keepdims)


def all(x: Any, *, axis: Any = None, keepdims: Any = False) -> Any:
    """Whether all elements are true."""
    return ops.all(x, axis, keepdims)


def any(x: Any, *, axis: Any = None, keepdims: Any = False) -> Any:
    """Whether any element is true."""
    return ops.any(x, axis, keepdims)


def argmax(x: Any, *, axis: Any = None, keepdims: Any = False) -> Any:
    """The index of the largest element."""
    return ops.argmax(x, axis, keepdims)


def argmin(x: Any, *, axis: Any = None, keepdims: Any = False) -> Any:
    """The index of the smallest element."""
    return ops.argmax(-x, axis, keepdims)


def cumulative_sum(x: Any, *, axis: int = -1) -> Any:
    """The cumulative sum along an axis."""
    return ops.cumsum(x, axis)


def clip(x: Any, min: Any = None, max: Any = None) -> Any:
    """Each element, limited to the range from min to max."""
    return ops.clamp(x, min, max)


# ---- functions that the standard lacks ---------------------------------------------------------------


def tanh(x: Any) -> Any:
    """MindSpore's own is off by 1e-4 in float32 on a CPU; its sigmoid is right."""
    return ops.sigmoid(x * 2) * 2 - 1 if x.dtype == mstype.float32 else ops.tanh(x)


def softmax(x: Any, *, axis: int = -1) -> Any:
    """See `unirnn.reference.functions`."""
    return ops.softmax(x, axis)


def log_softmax(x: Any, *, axis: int = -1) -> Any:
    """See `unirnn.reference.functions`. On a CPU, MindSpore's own computes float64 in float32."""
    if x.dtype != mstype.float64:
        return ops.log_softmax(x, axis)
    shifted = x - ops.amax(x, axis, True)
    return shifted - ops.log(ops.exp(shifted).sum(axis, keepdims=True))


def mask(seq_length: Any, steps: Any, *, device: Any = None) -> Any:
    """`(B, T)` bool; see `unirnn.reference.functions`."""
    lengths = seq_length if isinstance(seq_length, Tensor) else Tensor(seq_length)
    return ops.arange(steps) < lengths.expand_dims(1)


def masked_mean(x: Any, seq_length: Any) -> Any:
    """`(B, T, F)` to `(B, F)`; see `unirnn.reference.functions`."""
    valid = mask(seq_length, x.shape[1])
    counts = valid.astype(x.dtype).sum(1)
    return ops.where(valid.expand_dims(-1), x, 0).sum(1) / ops.maximum(counts, 1).expand_dims(1)


def masked_softmax(scores: Any, seq_length: Any) -> Any:
    """`(B, ..., T)`, 0 in the padding; see `unirnn.reference.functions`."""
    valid = mask(seq_length, scores.shape[-1])
    for _ in range(scores.ndim - 2):
        valid = valid.expand_dims(1)
    clean = ops.where(valid, scores, 0)
    largest = ops.amax(ops.where(valid, clean, ops.amin(clean, -1, True)), -1, True)
    powers = ops.where(valid, ops.exp(ops.where(valid, clean - largest, 0)), 0)
    total = powers.sum(-1, keepdims=True)
    return powers / ops.where(total > 0, total, ops.ones_like(total))
