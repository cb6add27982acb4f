"""What depends on the lengths of a model's sequences, in PyNative mode and in graphs.

In PyNative mode an operator costs as much as thousands of additions, and the lengths are known. So NumPy computes what
depends on them alone. In a graph they are tensors, and MindSpore compiles another function (`in_graph`).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor, ops
from mindspore import dtype as mstype
from numpy.typing import NDArray

from unirnn.specs.base import LengthRule

__all__ = [
    "in_graph",
    "is_compiling",
    "lengths_after",
    "rows_at",
    "seen_steps",
    "select",
    "step_counts",
    "total_steps",
    "valid_steps",
    "widened",
]

Array = NDArray[Any]


def in_graph(other: Callable[..., Any]) -> Callable[[Any], Any]:
    """Decorate a function of PyNative mode with another one, which MindSpore compiles in its place in a graph.

    MindSpore compiles what ``__wrapped__`` names.
    """

    def decorate(eager: Any) -> Any:
        eager.__wrapped__ = other
        return eager

    return decorate


def _always() -> bool:
    return True


@in_graph(_always)
def is_compiling() -> bool:
    """Whether this is compiled, rather than run in PyNative mode, where the call has been checked already."""
    return False


def _valid_in_graph(lengths: Any, steps: Any, batch_first: bool) -> Any:
    at = ops.arange(steps)
    valid = at < lengths.expand_dims(1) if batch_first else at.expand_dims(1) < lengths
    return valid.expand_dims(-1)


@in_graph(_valid_in_graph)
def valid_steps(lengths: Tensor, steps: int, batch_first: bool) -> Tensor:
    """`(B, T, 1)` or `(T, B, 1)` bool: which steps are valid."""
    at, ns = np.arange(steps), lengths.asnumpy()
    return Tensor((at < ns[:, None] if batch_first else at[:, None] < ns)[..., None])


def select(x: Any, lengths: Any, batch_first: bool) -> Any:
    """The same with exact zeros in the padding."""
    if lengths is None:
        return x
    valid = valid_steps(lengths, x.shape[1 if batch_first else 0], batch_first)
    return ops.where(valid, x, 0)


def _after_in_graph(rules: Any, lengths: Any) -> Any:
    for padding, span, stride in rules:
        counted = (lengths + (padding - span)) // stride + 1
        lengths = ops.where(ops.logical_and(lengths > 0, counted > 0), counted, ops.zeros_like(counted))
    return lengths


@in_graph(_after_in_graph)
def lengths_after(rules: Any, lengths: Tensor) -> Tensor:
    """`(B,)`: the lengths after a layer; each rule is the parts of a `LengthRule`."""
    ns = lengths.asnumpy().astype(np.int64)  # small integers overflow
    for rule in rules:
        ns = LengthRule(*rule)(ns)
    return Tensor(ns)


def _rows_in_graph(lengths: Any, offset: int, count: int, steps: Any, batch_first: bool) -> Any:
    at = ops.maximum(lengths + offset, 0) + ops.arange(count).expand_dims(1)
    batch = ops.arange(lengths.shape[0])
    return batch * steps + at if batch_first else at * lengths.shape[0] + batch


@in_graph(_rows_in_graph)
def rows_at(lengths: Tensor, offset: int, count: int, steps: int, batch_first: bool) -> Tensor:
    """`(count, B)`: where the steps n + offset, n + offset + 1, ... of each sequence are in the rows of x."""
    ns = lengths.asnumpy()
    at, batch = np.maximum(ns + offset, 0) + np.arange(count)[:, None], np.arange(len(ns))
    return Tensor(batch * steps + at if batch_first else at * len(ns) + batch)


def _counts_in_graph(lengths: Any, dtype: Any) -> Any:
    return ops.maximum(lengths, 1).astype(dtype).expand_dims(1)


@in_graph(_counts_in_graph)
def step_counts(lengths: Tensor, dtype: Any) -> Tensor:
    """`(B, 1)`: how many steps each mean is over; 1 for a sequence of length 0."""
    return Tensor(np.maximum(lengths.asnumpy(), 1)[:, None], dtype)


def _total_in_graph(lengths: Any, dtype: Any) -> Any:
    return lengths.sum().astype(dtype)


@in_graph(_total_in_graph)
def total_steps(lengths: Tensor, dtype: Any) -> Tensor:
    """How many steps of the batch are valid."""
    return Tensor(int(lengths.asnumpy().sum()), dtype)


def widened(x: Any) -> Any:
    """float16 as float32, for sums of many numbers."""
    return x.astype(mstype.float32) if x.dtype == mstype.float16 else x


def _seen_in_graph(steps: int, size: int, stride: int, dilation: int) -> Any:
    return ops.arange(steps).expand_dims(1) * stride + ops.arange(size) * dilation


@in_graph(_seen_in_graph)
def seen_steps(steps: int, size: int, stride: int, dilation: int) -> Tensor:
    """`(T, K)`: the steps that are multiplied for each step of the output."""
    return Tensor(np.arange(steps)[:, None] * stride + np.arange(size) * dilation)
