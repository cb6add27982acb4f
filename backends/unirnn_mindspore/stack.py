"""The stack of layers: what stands around the directions, on every device.

A *direction* runs one layer in one direction, and keeps the promises on lengths by itself. Each is a Cell with
one signature, whatever the cell and the device, so that the stack knows neither::

    direction(x, h_0, c_0, seq_length, w_ih, w_hh, b_ih, b_hh) -> outputs, h_n, c_n

with x of `(T, B, I)`, outputs of `(T, B, H)`, states of `(B, H)` and lengths of `(B,)`. An RNN or GRU has no c: it
takes h in its place, and nobody reads what it returns there. A layer without biases gets zeros.

This file is written in the part of Python that MindSpore's graph mode compiles.
"""

from typing import Any

from mindspore import nn, ops

from unirnn import Spec

from .fused import FusedDirection
from .kernel import KernelDirection

__all__ = ["Stack"]


class Stack(nn.Cell):
    """All layers and directions over time-major input.

    Parameters
    ----------
    spec
        The layers.
    target
        ``"CPU"``, ``"GPU"`` or ``"Ascend"``.
    """

    def __init__(self, spec: Spec, target: str) -> None:
        super().__init__()
        self.num_layers = spec.num_layers
        self.num_directions = spec.num_directions
        self.dropout = spec.dropout
        self.bias = spec.bias
        self.is_lstm = spec.cell == "LSTM"
        self.directions = nn.CellList(
            [
                KernelDirection(spec, suffix.endswith("_reverse"))
                if target == "CPU"
                else FusedDirection(spec, target, spec.weight_shapes()["weight_ih" + suffix][1], "_reverse" in suffix)
                for suffix in spec.suffixes()
            ]
        )

    def construct(self, x: Any, h_0: Any, c_0: Any, seq_length: Any, weights: Any) -> Any:
        """`(T, B, I)` and states `(L*D, B, H)` to `(T, B, D*H)` and states."""
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
                    b_ih = ops.zeros((w_ih.shape[0],), w_ih.dtype)
                    b_hh = b_ih
                out, h, c = self.directions[position](
                    x, h_0[position], c_0[position], seq_length, w_ih, w_hh, b_ih, b_hh
                )
                outputs += (out,)
                h_n += (h,)
                c_n += (c,)
            x = outputs[0] if self.num_directions == 1 else ops.concat(outputs, 2)
            if self.dropout > 0 and self.training and layer < self.num_layers - 1:
                x = ops.dropout(x, self.dropout, True)
        h_all = ops.stack(h_n)
        return x, h_all, ops.stack(c_n) if self.is_lstm else h_all
