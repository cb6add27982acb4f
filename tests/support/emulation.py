"""A small emulation of MindSpore's fused operators on GPU and Ascend, which no machine here has.

Each class follows the documented contract of one operator (MindSpore 2.10, ``mindspore.ops``): its arguments, the
shapes, dtypes and gate order of its inputs, and its outputs, computed step by step by primitive
operations. A wrong argument raises TypeError. What the hardware does beyond the contract is not emulated.
"""

from typing import Any

from mindspore import dtype as mstype
from mindspore import nn, ops

__all__ = ["CudnnGRU", "CudnnLSTM", "DynamicGRUV2", "DynamicRNN"]


def require(operator: str, condition: bool, message: str) -> None:
    """Raise TypeError unless the condition holds."""
    if not condition:
        raise TypeError(f"{operator}: {message}")


def _steps_gru(x: Any, h: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
    """Gates r, z, n by rows, with the reset after the product."""
    steps: Any = ()
    for t in range(x.shape[0]):
        x_r, x_z, x_n = ops.split(ops.matmul(x[t], w_ih.T) + b_ih, w_ih.shape[0] // 3, 1)
        h_r, h_z, h_n = ops.split(ops.matmul(h, w_hh.T) + b_hh, w_ih.shape[0] // 3, 1)
        r, z = ops.sigmoid(x_r + h_r), ops.sigmoid(x_z + h_z)
        n = ops.tanh(x_n + r * h_n)
        h = (1 - z) * n + z * h
        steps += (h,)
    return ops.stack(steps)


def _unpack(w: Any, rows: int, input_size: int, hidden_size: int, has_bias: bool) -> Any:
    """The parts of cuDNN's flat weight: w_ih, w_hh, b_ih, b_hh."""
    flat = w.reshape((-1,))
    first, second = rows * input_size, rows * (input_size + hidden_size)
    w_ih, w_hh = flat[:first].reshape((rows, input_size)), flat[first:second].reshape((rows, hidden_size))
    if has_bias:
        return w_ih, w_hh, flat[second : second + rows], flat[second + rows :]
    zeros = ops.zeros((rows,), w.dtype)
    return w_ih, w_hh, zeros, zeros


class CudnnGRU(nn.Cell):
    """``CudnnGRU(input_size, hidden_size, num_layers, has_bias, bidirectional, dropout)(input, h, w)``."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, has_bias: bool, bidirectional: bool, dropout: float
    ) -> None:
        super().__init__()
        require("CudnnGRU", num_layers == 1 and not bidirectional and dropout == 0.0, "one layer, one direction here")
        self.sizes = (3 * hidden_size, input_size, hidden_size)
        self.has_bias = has_bias

    def construct(self, input: Any, h: Any, w: Any) -> Any:
        rows, input_size, hidden_size = self.sizes
        count = rows * (input_size + hidden_size + (2 if self.has_bias else 0))
        require("CudnnGRU", input.ndim == 3 and input.shape[2] == input_size, "input is (T, B, I)")
        require("CudnnGRU", h.shape == (1, input.shape[1], hidden_size), "h is (1, B, H)")
        require("CudnnGRU", w.shape == (count, 1, 1), "w is (n, 1, 1)")
        output = _steps_gru(input, h[0], *_unpack(w, rows, input_size, hidden_size, self.has_bias))
        return output, output[-1:], ops.zeros((1, 1), input.dtype), ops.zeros((1, 1), input.dtype)


class CudnnLSTM(nn.Cell):
    """``ops.LSTM(input_size, hidden_size, num_layers, has_bias, bidirectional, dropout)(input, h, c, w)`` on a GPU."""

    def __init__(
        self, input_size: int, hidden_size: int, num_layers: int, has_bias: bool, bidirectional: bool, dropout: float
    ) -> None:
        super().__init__()
        require("LSTM", num_layers == 1 and not bidirectional and dropout == 0.0, "one layer, one direction here")
        self.sizes = (4 * hidden_size, input_size, hidden_size)
        self.has_bias = has_bias

    def construct(self, input: Any, h: Any, c: Any, w: Any) -> Any:
        rows, input_size, hidden_size = self.sizes
        count = rows * (input_size + hidden_size + (2 if self.has_bias else 0))
        require("LSTM", input.ndim == 3 and input.shape[2] == input_size, "input is (T, B, I)")
        require("LSTM", h.shape == (1, input.shape[1], hidden_size) and c.shape == h.shape, "h and c are (1, B, H)")
        require("LSTM", w.shape == (count, 1, 1), "w is (n, 1, 1)")
        w_ih, w_hh, b_ih, b_hh = _unpack(w, rows, input_size, hidden_size, self.has_bias)
        h, c = h[0], c[0]
        steps: Any = ()
        for t in range(input.shape[0]):
            gates = ops.matmul(input[t], w_ih.T) + b_ih + ops.matmul(h, w_hh.T) + b_hh
            i, f, g, o = ops.split(gates, hidden_size, 1)
            c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
            h = ops.sigmoid(o) * ops.tanh(c)
            steps += (h,)
        nothing = ops.zeros((1, 1), input.dtype)
        return ops.stack(steps), h.expand_dims(0), c.expand_dims(0), nothing, nothing


class DynamicGRUV2(nn.Cell):
    """``DynamicGRUV2(gate_order="rzh")(x, weight_input, weight_hidden, bias_input, bias_hidden, None, init_h)``."""

    def __init__(self, gate_order: str) -> None:
        super().__init__()
        require("DynamicGRUV2", gate_order == "rzh", "gate_order 'rzh' here")

    def construct(
        self,
        x: Any,
        weight_input: Any,
        weight_hidden: Any,
        bias_input: Any,
        bias_hidden: Any,
        seq_length: Any,
        init_h: Any,
    ) -> Any:
        half, size = mstype.float16, weight_hidden.shape[0]
        are_half = x.dtype == half and weight_input.dtype == half and weight_hidden.dtype == half
        require("DynamicGRUV2", are_half, "x and weights are float16")
        require("DynamicGRUV2", seq_length is None, "only seq_length=None is supported")
        require("DynamicGRUV2", size % 16 == 0, "the hidden size is a multiple of 16")
        require("DynamicGRUV2", weight_input.shape == (x.shape[2], 3 * size), "weight_input is (I, 3H)")
        require("DynamicGRUV2", weight_hidden.shape == (size, 3 * size), "weight_hidden is (H, 3H)")
        require(
            "DynamicGRUV2", bias_input.shape == (3 * size,) and bias_hidden.shape == (3 * size,), "biases are (3H,)"
        )
        same = bias_input.dtype == init_h.dtype and bias_hidden.dtype == init_h.dtype
        require("DynamicGRUV2", same, "biases have the dtype of init_h")
        require("DynamicGRUV2", init_h.shape == (x.shape[1], size), "init_h is (B, H)")
        steps = _steps_gru(
            x, init_h.astype(half), weight_input.T, weight_hidden.T, bias_input.astype(half), bias_hidden.astype(half)
        )
        steps = steps.astype(init_h.dtype)
        return steps, steps, steps, steps, steps, steps


class DynamicRNN(nn.Cell):
    """``DynamicRNN()(x, w, b, seq_length, init_h, init_c)``: gates i, g (which it calls j), f, o; float16."""

    def construct(self, x: Any, w: Any, b: Any, seq_length: Any, init_h: Any, init_c: Any) -> Any:
        half, size = mstype.float16, init_h.shape[2]
        are_half = x.dtype == half and w.dtype == half and init_h.dtype == half and init_c.dtype == half
        require("DynamicRNN", are_half, "x, w, init_h and init_c are float16")
        require("DynamicRNN", seq_length is None, "only seq_length=None is supported")
        require("DynamicRNN", w.shape == (x.shape[2] + size, 4 * size), "w is (I + H, 4H)")
        require("DynamicRNN", b.shape == (4 * size,), "b is (4H,)")
        require(
            "DynamicRNN", init_h.shape == (1, x.shape[1], size) and init_c.shape == init_h.shape, "states are (1, B, H)"
        )
        h, c = init_h[0], init_c[0]
        h_steps: Any = ()
        c_steps: Any = ()
        for t in range(x.shape[0]):
            i, g, f, o = ops.split(ops.matmul(ops.concat((x[t], h), 1), w) + b, size, 1)
            c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
            h = ops.sigmoid(o) * ops.tanh(c)
            h_steps += (h,)
            c_steps += (c,)
        h_all, c_all = ops.stack(h_steps), ops.stack(c_steps)
        return h_all, h_all, c_all, h_all, h_all, h_all, h_all, h_all
