"""The stack of layers: what stands around the directions, on every device.

A *direction* runs one layer in one direction, and keeps the promises on lengths by itself. Each is a Cell with
one signature, whatever the cell and the device, so that the stack knows neither::

    direction(x, h_0, c_0, seq_length, w_ih, w_hh, b_ih, b_hh) -> outputs, h_n, c_n

with x of `(T, B, I)`, outputs of `(T, B, H)`, states of `(B, H)` and lengths of `(B,)`. An RNN or GRU has no c: it
takes h in its place, and nobody reads what it returns there. A layer without biases gets zeros.

On a CPU there are two of each: the kernel's, which runs and learns, and, for the file that ``mindspore.export``
writes, one of MindSpore's own operators, since a function of Python can't stand in a file.

This file is written in the part of Python that MindSpore's graph mode compiles.
"""

import functools
from dataclasses import replace
from typing import Any

import mindspore as ms
from mindspore import dtype as mstype
from mindspore import nn, ops

from unirnn import RecurrentSpec
from unirnn.errors import LimitError
from unirnn.kernels import has_numba
from unirnn_mindspore.native import FusedDirection
from unirnn_mindspore.operators import KernelDirection, shared
from unirnn_mindspore.pynative import layers

__all__ = ["Stack", "by_kernels"]


class Stack(nn.Cell):
    """All layers and directions over time-major input.

    Parameters
    ----------
    spec
        The layers.
    target
        ``"CPU"``, ``"GPU"`` or ``"Ascend"``.
    kernel
        ``"auto"``, ``"native"``, ``"packed"`` or ``"numba"``; the last two on a CPU only.
    """

    def __init__(self, spec: RecurrentSpec, target: str, kernel: str) -> None:
        super().__init__()
        # `batch_first` is undone before, and redone behind
        self.spec = replace(spec, batch_first=False)
        self.num_layers = spec.num_layers
        self.hidden_size = spec.hidden_size
        self.num_directions = spec.num_directions
        self.dropout = spec.dropout
        self.bias = spec.bias
        self.is_lstm = spec.kind == "LSTM"
        self.by_numba = kernel == "numba" or (kernel == "auto" and has_numba(spec))
        self.operators = nn.CellList(
            [
                FusedDirection(spec, target, spec.weight_shapes()["weight_ih" + suffix][1], "_reverse" in suffix)
                for suffix in spec.suffixes()
            ]
        )
        self.kernels = nn.CellList(
            [
                KernelDirection(spec, "_reverse" in suffix, self.by_numba)
                for suffix in spec.suffixes()
                if target == "CPU"
            ]
        )
        self.layers = layers if target == "CPU" and kernel != "native" else None
        # an attribute: automatic mixed precision rewrites `construct` in a module of its own
        self.by_kernels = _traced_choice(target, kernel)

    def __call__(self, x: Any, h_0: Any, c_0: Any, seq_length: Any, weights: Any) -> Any:
        """`(T, B, I)` and states `(L*D, B, H)` to `(T, B, D*H)` and states; None is zeros, and T for every sequence.

        This is what runs where Python runs; what MindSpore compiles is `construct`.
        """
        if self.layers is None or (self.dropout and self.training and self.num_layers > 1):
            return super().__call__(x, h_0, c_0, seq_length, weights)
        state = () if h_0 is None else (h_0, c_0) if self.is_lstm else (h_0,)
        output, *final = self.layers(self.spec, self.by_numba, x, state, seq_length, weights)
        return output, final[0], final[-1]

    def construct(self, x: Any, h_0: Any, c_0: Any, seq_length: Any, weights: Any) -> Any:
        """See the call."""
        steps, batch_size = x.shape[0], x.shape[1]
        if h_0 is None:
            # ops.zeros does not free all that it takes, 1.3 KB each
            h_0 = ops.full((self.num_layers * self.num_directions, batch_size, self.hidden_size), 0, dtype=x.dtype)
            c_0 = h_0
        if seq_length is None:
            seq_length = ops.full((batch_size,), steps, dtype=mstype.int64)
        h_n: Any = ()
        c_n: Any = ()
        for layer in range(self.num_layers):
            outputs: Any = ()
            for backward in range(self.num_directions):
                position = layer * self.num_directions + backward
                if self.bias:
                    w_ih, w_hh, b_ih, b_hh = weights[4 * position : 4 * position + 4]
                else:
                    w_ih, w_hh = weights[2 * position : 2 * position + 2]
                    b_ih = ops.zeros_like(w_ih[:, 0])
                    b_hh = b_ih
                direction = self.kernels[position] if self.by_kernels() else self.operators[position]
                h = h_0[position]
                c = c_0[position] if self.is_lstm else h
                out, h, c = direction(x, h, c, seq_length, w_ih, w_hh, b_ih, b_hh)
                outputs += (out,)
                h_n += (h,)
                c_n += (c,)
            x = outputs[0] if self.num_directions == 1 else ops.concat(outputs, 2)
            if self.dropout > 0 and self.training and layer < self.num_layers - 1:
                x = ops.dropout(x, self.dropout, True)
        h_all = ops.stack(h_n)
        return x, h_all, ops.stack(c_n) if self.is_lstm else h_all


@functools.cache
def _traced_choice(target: str, kernel: str) -> Any:
    """`by_kernels` as a compile-time function."""
    return shared(ops.constexpr(check=False)(lambda: by_kernels(target, kernel)))


def by_kernels(target: str, kernel: str) -> bool:
    """Whether the kernels run: on a CPU, but not in a file; `mindspore.export` compiles at the strict level.

    Raises
    ------
    LimitError
        If they are asked for by name, in a file.
    """
    if target != "CPU" or kernel == "native":
        return False
    if ms.get_context("jit_syntax_level") != ms.STRICT:
        return True
    if kernel != "auto":
        raise LimitError(
            f"kernel: built with {kernel!r}, which runs Python, and can't stand in an exported file; build with 'auto' "
            "or 'native'"
        )
    return False
