"""The stack of layers on a GPU or an Ascend: the fused operators that ``mindspore.nn`` uses there.

========  =========================================  ==============================================
cell      GPU                                        Ascend
========  =========================================  ==============================================
GRU       ``CudnnGRU``                               ``DynamicGRUV2``, gates r, z, n, float16
LSTM      ``ops.LSTM``                               ``DynamicRNN``, gates i, g, f, o, float16
RNN       primitive operations, step by step         the same
========  =========================================  ==============================================

An operator runs one layer in one direction over dense steps. Lengths stand around it: padding is selected
away before anything is computed from it (it may be NaN), the reverse direction reads each sequence from
its last valid step, and the final state is gathered at step n-1, or is the initial state where n = 0.
This file is written in the part of Python that MindSpore's graph mode compiles.
"""

from typing import Any

from mindspore import dtype as mstype
from mindspore import nn, ops
from mindspore.ops.operations._rl_inner_ops import CudnnGRU

from unirnn import RNNSpec, Spec

__all__ = ["FusedStack"]


class FusedStack(nn.Cell):
    """All layers and directions; inputs and outputs in the spec's own layout.

    Parameters
    ----------
    spec
        The layers.
    target
        ``"GPU"`` or ``"Ascend"``.
    """

    def __init__(self, spec: Spec, target: str) -> None:
        super().__init__()
        self.num_layers = spec.num_layers
        self.num_directions = spec.num_directions
        self.batch_first = spec.batch_first
        self.bias = spec.bias
        self.is_lstm = spec.cell == "LSTM"
        self.weights_each = 4 if spec.bias else 2
        directions = {
            ("RNN", "GPU"): StepRNN,
            ("RNN", "Ascend"): StepRNN,
            ("GRU", "GPU"): CudnnGRUDirection,
            ("GRU", "Ascend"): DynamicGRUDirection,
            ("LSTM", "GPU"): CudnnLSTMDirection,
            ("LSTM", "Ascend"): DynamicLSTMDirection,
        }
        self.directions = nn.CellList(
            [
                directions[spec.cell, target](spec, spec.weight_shapes()["weight_ih" + suffix][1])
                for suffix in spec.suffixes()
            ]
        )

    def construct(self, input: Any, state: Any, seq_length: Any, noise: Any, weights: Any) -> Any:
        """``(output, *final_state)``; ``state``, ``noise`` (none or one) and ``weights`` are tuples."""
        batched = input.ndim == 3
        x = input
        h_0 = state[0]
        c_0 = state[-1]
        if not batched:
            x, h_0, c_0 = x.expand_dims(1), h_0.expand_dims(1), c_0.expand_dims(1)
        elif self.batch_first:
            x = x.swapaxes(0, 1)
        steps, batch_size = x.shape[0], x.shape[1]

        step = ops.arange(steps).reshape((steps, 1))
        row = ops.arange(batch_size)
        length = seq_length.reshape((1, batch_size))
        valid = (step < length).reshape((steps, batch_size, 1))
        reversal = (ops.where(step < length, length - 1 - step, step) * batch_size + row).reshape((-1,))
        last = ops.maximum(seq_length - 1, 0) * batch_size + row
        begun = (seq_length > 0).reshape((batch_size, 1))

        x = ops.where(valid, x, ops.zeros_like(x))
        h_n: Any = ()
        c_n: Any = ()
        for layer in range(self.num_layers):
            outputs: Any = ()
            for backward in range(self.num_directions):
                position = layer * self.num_directions + backward
                first = position * self.weights_each
                b_ih, b_hh = None, None
                if self.bias:
                    b_ih, b_hh = weights[first + 2], weights[first + 3]
                x_in = x
                if backward == 1:
                    x_in = _reorder(x, reversal)
                h_steps, c_steps = self.directions[position](
                    x_in, h_0[position], c_0[position], weights[first], weights[first + 1], b_ih, b_hh, valid
                )
                h_n += (ops.where(begun, ops.gather(_rows(h_steps), last, 0), h_0[position]),)
                if self.is_lstm:
                    c_n += (ops.where(begun, ops.gather(_rows(c_steps), last, 0), c_0[position]),)
                out = ops.where(valid, h_steps, ops.zeros_like(h_steps))
                if backward == 1:
                    out = _reorder(out, reversal)
                outputs += (out,)
            x = ops.concat(outputs, 2)
            if len(noise) == 1 and layer < self.num_layers - 1:
                x = x * noise[0][layer]

        h_out = ops.stack(h_n)
        c_out = ops.stack(c_n) if self.is_lstm else h_out
        if not batched:
            x, h_out, c_out = x.squeeze(1), h_out.squeeze(1), c_out.squeeze(1)
        elif self.batch_first:
            x = x.swapaxes(0, 1)
        if self.is_lstm:
            return x, h_out, c_out
        return x, h_out


def _rows(x: Any) -> Any:
    """`(T, B, F)` to `(T*B, F)`."""
    return x.reshape((x.shape[0] * x.shape[1], x.shape[2]))


def _reorder(x: Any, rows: Any) -> Any:
    """`(T, B, F)` with its `(T*B,)` rows in another order."""
    return ops.gather(_rows(x), rows, 0).reshape(x.shape)


def _flat(weights: Any) -> Any:
    """Weights in a row, as cuDNN takes them: `(n, 1, 1)`."""
    parts: Any = ()
    for weight in weights:
        parts += (weight.reshape((-1, 1, 1)),)
    return ops.concat(parts, 0)


class StepRNN(nn.Cell):
    """``h' = act(W_ih x + b_ih + W_hh h + b_hh)``, step by step: no fused operator computes it."""

    def __init__(self, spec: Spec, input_size: int) -> None:
        super().__init__()
        self.activation = ops.relu if isinstance(spec, RNNSpec) and spec.nonlinearity == "relu" else ops.tanh

    def construct(self, x: Any, h_0: Any, c_0: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, valid: Any) -> Any:
        """`(T, B, I)` and `(B, H)` to the state after each step, `(T, B, H)`, twice."""
        products = ops.matmul(x, w_ih.T)
        if b_ih is not None:
            products = products + b_ih + b_hh
        h = h_0
        steps: Any = ()
        for t in range(x.shape[0]):
            h = self.activation(products[t] + ops.matmul(h, w_hh.T))
            steps += (h,)
        h_steps = ops.stack(steps)
        return h_steps, h_steps


class CudnnGRUDirection(nn.Cell):
    """GRU on a GPU. ``CudnnGRU``: gates r, z, n; weights in a row; output `(T, B, H)`."""

    def __init__(self, spec: Spec, input_size: int) -> None:
        super().__init__()
        self.gru = CudnnGRU(input_size, spec.hidden_size, 1, spec.bias, False, 0.0)

    def construct(self, x: Any, h_0: Any, c_0: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, valid: Any) -> Any:
        """`(T, B, I)` and `(B, H)` to the state after each step, `(T, B, H)`, twice."""
        weights: Any = (w_ih, w_hh)
        if b_ih is not None:
            weights = (w_ih, w_hh, b_ih, b_hh)
        h_steps, _, _, _ = self.gru(x, h_0.expand_dims(0), _flat(weights))
        return h_steps, h_steps


class CudnnLSTMDirection(nn.Cell):
    """LSTM on a GPU. ``ops.LSTM``: gates i, f, g, o; weights in a row; of c only the last step.

    So c is *frozen* on padded steps: one more column of the input is 1 there, and drives the gates i to 0
    and f to 1, exactly. Then ``c' = 1 * c + 0 * g``, and c after the last step is c after step n-1.
    """

    def __init__(self, spec: Spec, input_size: int) -> None:
        super().__init__()
        self.lstm = ops.LSTM(input_size + 1, spec.hidden_size, 1, spec.bias, False, 0.0)
        self.size = spec.hidden_size

    def construct(self, x: Any, h_0: Any, c_0: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, valid: Any) -> Any:
        """`(T, B, I)` and `(B, H)` each to h and c after each step, `(T, B, H)` each."""
        padded = ops.logical_not(valid).astype(x.dtype)
        ones = ops.ones((self.size, 1), x.dtype)
        column = ops.concat((ones * -1e4, ones * 1e4, ops.zeros((2 * self.size, 1), x.dtype)), 0)
        weights: Any = (ops.concat((w_ih, column), 1), w_hh)
        if b_ih is not None:
            weights = (ops.concat((w_ih, column), 1), w_hh, b_ih, b_hh)
        h_steps, _, c_n, _, _ = self.lstm(
            ops.concat((x, padded), 2), h_0.expand_dims(0), c_0.expand_dims(0), _flat(weights)
        )
        return h_steps, ops.broadcast_to(c_n, h_steps.shape)


class DynamicGRUDirection(nn.Cell):
    """GRU on an Ascend. ``DynamicGRUV2``: gates r, z, n (``'rzh'``); transposed weights; float16."""

    def __init__(self, spec: Spec, input_size: int) -> None:
        super().__init__()
        self.gru = ops.DynamicGRUV2(gate_order="rzh")

    def construct(self, x: Any, h_0: Any, c_0: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, valid: Any) -> Any:
        """`(T, B, I)` and `(B, H)` to the state after each step, `(T, B, H)`, twice."""
        if b_ih is None:
            b_ih = ops.zeros((w_ih.shape[0],), h_0.dtype)
            b_hh = b_ih
        half = mstype.float16
        h_steps, _, _, _, _, _ = self.gru(
            x.astype(half), w_ih.T.astype(half), w_hh.T.astype(half), b_ih, b_hh, None, h_0
        )
        h_steps = h_steps.astype(x.dtype)
        return h_steps, h_steps


class DynamicLSTMDirection(nn.Cell):
    """LSTM on an Ascend. ``DynamicRNN``: gates i, g, f, o; input's and state's weights in one; float16."""

    def __init__(self, spec: Spec, input_size: int) -> None:
        super().__init__()
        self.lstm = ops.DynamicRNN()
        self.size = spec.hidden_size

    def construct(self, x: Any, h_0: Any, c_0: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, valid: Any) -> Any:
        """`(T, B, I)` and `(B, H)` each to h and c after each step, `(T, B, H)` each."""
        half = mstype.float16
        bias = ops.zeros((4 * self.size,), half)
        if b_ih is not None:
            bias = self._reordered(b_ih + b_hh).astype(half)
        weight = self._reordered(ops.concat((w_ih, w_hh), 1)).T.astype(half)
        _, h_steps, c_steps, _, _, _, _, _ = self.lstm(
            x.astype(half),
            weight,
            bias,
            None,
            h_0.expand_dims(0).astype(half),
            c_0.expand_dims(0).astype(half),
        )
        return h_steps.astype(x.dtype), c_steps.astype(x.dtype)

    def _reordered(self, weight: Any) -> Any:
        """From the gates i, f, g, o to i, g, f, o."""
        h = self.size
        return ops.concat((weight[:h], weight[2 * h : 3 * h], weight[h : 2 * h], weight[3 * h :]), 0)
