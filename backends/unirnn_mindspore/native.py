"""One layer in one direction by MindSpore's own operators: the fused ones that ``mindspore.nn`` uses, or step by step.

========  ====================  ==========================  ========================================
kind      GPU                   Ascend                      CPU, in an exported file
========  ====================  ==========================  ========================================
GRU       ``CudnnGRU``          ``DynamicGRUV2``, float16   step by step
LSTM      ``ops.LSTM``          ``DynamicRNN``, float16     ``ops.LSTM``, float32
RNN       step by step          step by step                step by step
========  ====================  ==========================  ========================================

A GRU with ``reset_after=False``, an LSTM with ``proj_size`` and a layer with a ``gate_activation`` other than the
sigmoid run step by step everywhere: no fused operator computes them.

An operator runs forward over all T steps. `NativeDirection` adds the lengths: it replaces the padding by zeros before
anything is computed from it (it may be NaN), reads each sequence from its last valid step for the reverse direction,
and takes the final state at step n-1, or the initial state where n = 0.

No operator knows of resets. In PyNative mode the sequences between them become columns of their own
(`unirnn.contract.sequences.run_sequences`). The sizes in a graph can't depend on values, so there the operator runs
once for each step, and the state becomes zeros where a sequence begins.

This file is written in the part of Python that MindSpore's graph mode compiles.
"""

import functools
from typing import Any

from mindspore import dtype as mstype
from mindspore import nn, ops
from mindspore.ops.operations._rl_inner_ops import CudnnGRU

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

from . import dispatch

__all__ = ["NativeDirection"]


class NativeDirection(nn.Cell):
    """One layer in one direction; its signature is described in `unirnn_mindspore.layers`.

    Parameters
    ----------
    spec
        The layer.
    device
        ``"cpu"``, ``"gpu"`` or ``"ascend"``.
    input_size
        Size of this layer's input.
    backward
        Whether it runs from the last valid step to the first.
    """

    def __init__(self, spec: RecurrentSpec, device: dispatch.DeviceKind, input_size: int, backward: bool) -> None:
        super().__init__()
        fused: dict[tuple[str, str], Any] = {
            ("GRU", "gpu"): CudnnGRUOperator,
            ("GRU", "ascend"): DynamicGRUOperator,
            ("LSTM", "cpu"): functools.partial(LSTMOperator, on_cpu=True),
            ("LSTM", "gpu"): LSTMOperator,
            ("LSTM", "ascend"): DynamicLSTMOperator,
        }
        if dispatch.is_fused(spec, device):
            operator = fused[spec.kind, device]
        else:
            by_step = {"RNN": StepRNN, "GRU": StepGRU, "LSTM": StepLSTM}[spec.kind]
            operator = functools.partial(by_step, on_cpu=device == "cpu")
        # All operators are made with the same arguments; some of them do not need the size.
        self.operator = operator(spec, input_size)
        self.backward = backward

    def construct(self, x: Any, h_0: Any, c_0: Any, seq_length: Any, resets: Any, weights: Any) -> Any:
        """Give the outputs `(T, B, H)` and the final state, `(B, H)` each."""
        steps, batch_size = x.shape[0], x.shape[1]
        step = ops.arange(steps).reshape((steps, 1))
        row = ops.arange(batch_size)
        length = seq_length.reshape((1, batch_size))
        valid = (step < length).reshape((steps, batch_size, 1))
        x = ops.where(valid, x, ops.zeros_like(x))
        # The row where step t of the reversed sequence is found. Padding is not moved, so this is its own inverse.
        reversal = (ops.where(step < length, length - 1 - step, step) * batch_size + row).reshape((-1,))
        if self.backward:
            x = _reorder(x, reversal)

        nonempty = (seq_length > 0).reshape((batch_size, 1))
        h, c = ops.where(nonempty, h_0, ops.zeros_like(h_0)), ops.where(nonempty, c_0, ops.zeros_like(c_0))
        if resets.ndim == 2:
            begins = ops.where(valid, resets.reshape((steps, batch_size, 1)).astype(x.dtype), 0)
            if self.backward:  # a sequence is read from its last step, the one before a reset
                begins = _reorder(ops.concat((begins[1:], ops.zeros_like(begins[:1])), 0), reversal)
            h_steps, c_steps = self._step_by_step(x, h, c, weights, valid, begins > 0)
        else:
            h_steps, c_steps = self.operator(x, h, c, weights, valid)

        last = ops.maximum(seq_length - 1, 0) * batch_size + row
        h_n = ops.where(nonempty, ops.gather(_rows(h_steps), last, 0), h_0)
        c_n = ops.where(nonempty, ops.gather(_rows(c_steps), last, 0), c_0)
        outputs = ops.where(valid, h_steps, ops.zeros_like(h_steps))
        if self.backward:
            outputs = _reorder(outputs, reversal)
        return outputs, h_n, c_n

    def _step_by_step(self, x: Any, h: Any, c: Any, weights: Any, valid: Any, begins: Any) -> Any:
        """Give h and c after each step, `(T, B, H)` each, where the state is zeros before a step that ``begins``."""
        h_steps: Any = ()
        c_steps: Any = ()
        for t in range(x.shape[0]):
            h, c = ops.where(begins[t], ops.zeros_like(h), h), ops.where(begins[t], ops.zeros_like(c), c)
            h_step, c_step = self.operator(x[t : t + 1], h, c, weights, valid[t : t + 1])
            h, c = h_step[0], c_step[0]
            h_steps += (h,)
            c_steps += (c,)
        return ops.stack(h_steps), ops.stack(c_steps)


def _rows(x: Any) -> Any:
    """`(T, B, F)` to `(T*B, F)`."""
    return x.reshape((x.shape[0] * x.shape[1], x.shape[2]))


def _reorder(x: Any, rows: Any) -> Any:
    """`(T, B, F)` with its `(T*B, F)` rows in another order."""
    return ops.gather(_rows(x), rows, 0).reshape(x.shape)


def _accurate_tanh(x: Any) -> Any:
    """The tanh for a CPU, where MindSpore's own is off by up to 1e-4 in float32."""
    return ops.tanh(x.astype(mstype.float64)).astype(x.dtype)


def _hard_sigmoid(x: Any) -> Any:
    return ops.clamp(x / 6 + 0.5, 0, 1)


def _hard_sigmoid_02(x: Any) -> Any:
    return ops.clamp(x / 5 + 0.5, 0, 1)  # 0.2 * x is off in float64: MindSpore rounds constants to float32


_GATES = {"sigmoid": ops.sigmoid, "hard_sigmoid": _hard_sigmoid, "hard_sigmoid_0.2": _hard_sigmoid_02}
"""The functions of the gates, by ``gate_activation``."""


def _flat(weights: Any) -> Any:
    """All weights one after the other, as cuDNN takes them: `(n, 1, 1)`."""
    parts: Any = ()
    for weight in weights:
        parts += (weight.reshape((-1, 1, 1)),)
    return ops.concat(parts, 0)


class StepRNN(nn.Cell):
    """``h' = act(W_ih x + b_ih + W_hh h + b_hh)``, step by step: no fused operator computes it."""

    def __init__(self, spec: RecurrentSpec, input_size: int, on_cpu: bool = False) -> None:
        super().__init__()
        tanh = _accurate_tanh if on_cpu else ops.tanh
        self.activation = ops.relu if isinstance(spec, RNNSpec) and spec.nonlinearity == "relu" else tanh

    def construct(self, x: Any, h_0: Any, c_0: Any, weights: Any, valid: Any) -> Any:
        """Give the state after each step, `(T, B, H)`, twice."""
        w_ih, w_hh, b_ih, b_hh = weights
        products = ops.matmul(x, w_ih.T) + b_ih + b_hh
        h = h_0
        steps: Any = ()
        for t in range(x.shape[0]):
            after = self.activation(products[t] + ops.matmul(h, w_hh.T))
            h = ops.where(valid[t], after, h)  # beyond the end a relu may overflow
            steps += (h,)
        h_steps = ops.stack(steps)
        return h_steps, h_steps


class StepGRU(nn.Cell):
    """GRU of any variant, step by step.

    ``r = s(W_ir x + b_ir + W_hr h + b_hr)``, z likewise, ``h' = (1 - z) * n + z * h``,
    ``n = tanh(W_in x + b_in + r * (W_hn h + b_hn))`` or ``n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)``.
    """

    def __init__(self, spec: GRUSpec, input_size: int, on_cpu: bool = False) -> None:
        super().__init__()
        self.tanh = _accurate_tanh if on_cpu else ops.tanh
        self.gate = _GATES[spec.gate_activation]
        self.size = spec.hidden_size
        self.reset_after = spec.reset_after

    def construct(self, x: Any, h_0: Any, c_0: Any, weights: Any, valid: Any) -> Any:
        """Give the state after each step, `(T, B, H)`, twice."""
        w_ih, w_hh, b_ih, b_hh = weights
        size = self.size
        products = ops.matmul(x, w_ih.T) + b_ih
        # The weights that multiply h, and those that multiply r * h.
        cut = 3 * size if self.reset_after else 2 * size
        w_h, b_h, w_n, b_n = w_hh[:cut], b_hh[:cut], w_hh[2 * size :], b_hh[2 * size :]
        h = h_0
        steps: Any = ()
        for t in range(x.shape[0]):
            of_x, of_h = products[t], ops.matmul(h, w_h.T) + b_h
            gates = self.gate(of_x[:, : 2 * size] + of_h[:, : 2 * size])
            r, z = gates[:, :size], gates[:, size:]
            of_n = r * of_h[:, 2 * size :] if self.reset_after else ops.matmul(r * h, w_n.T) + b_n
            n = self.tanh(of_x[:, 2 * size :] + of_n)
            h = (1 - z) * n + z * h
            steps += (h,)
        h_steps = ops.stack(steps)
        return h_steps, h_steps


class StepLSTM(nn.Cell):
    """LSTM of any variant, step by step.

    ``i = s(W_ii x + b_ii + W_hi h + b_hi)``, f and o likewise, g with tanh; ``c' = f * c + i * g`` and
    ``h' = o * tanh(c')``, with a projection ``h' = W_hr (o * tanh(c'))``.
    """

    def __init__(self, spec: LSTMSpec, input_size: int, on_cpu: bool = False) -> None:
        super().__init__()
        self.tanh = _accurate_tanh if on_cpu else ops.tanh
        self.gate = _GATES[spec.gate_activation]
        self.size = spec.hidden_size
        self.projects = spec.proj_size > 0

    def construct(self, x: Any, h_0: Any, c_0: Any, weights: Any, valid: Any) -> Any:
        """Give h and c after each step, `(T, B, H)` each; with a projection, h has its size."""
        w_ih, w_hh, b_ih, b_hh = weights[:4]
        size = self.size
        products = ops.matmul(x, w_ih.T) + b_ih + b_hh
        h, c = h_0, c_0
        h_steps: Any = ()
        c_steps: Any = ()
        for t in range(x.shape[0]):
            gates = products[t] + ops.matmul(h, w_hh.T)
            i_f, o = self.gate(gates[:, : 2 * size]), self.gate(gates[:, 3 * size :])
            c = i_f[:, size:] * c + i_f[:, :size] * self.tanh(gates[:, 2 * size : 3 * size])
            h = o * self.tanh(c)
            if self.projects:
                h = ops.matmul(h, weights[4].T)
            h_steps += (h,)
            c_steps += (c,)
        return ops.stack(h_steps), ops.stack(c_steps)


class CudnnGRUOperator(nn.Cell):
    """GRU on a GPU. ``CudnnGRU`` takes the gates r, z, n, and all weights as one array."""

    def __init__(self, spec: RecurrentSpec, input_size: int) -> None:
        super().__init__()
        self.gru = CudnnGRU(input_size, spec.hidden_size, 1, True, False, 0.0)

    def construct(self, x: Any, h_0: Any, c_0: Any, weights: Any, valid: Any) -> Any:
        """Give the state after each step, `(T, B, H)`, twice."""
        w_ih, w_hh, b_ih, b_hh = weights
        h_steps, _, _, _ = self.gru(x, h_0.expand_dims(0), _flat((w_ih, w_hh, b_ih, b_hh)))
        return h_steps, h_steps


class LSTMOperator(nn.Cell):
    """LSTM on a GPU and in a CPU's file. ``ops.LSTM`` takes the gates i, f, g, o, and all weights as one array.

    It returns c after step T-1 only, and what is needed is c after step n-1. So padded steps must not change c: the
    input has one more column, which is 1 there, and whose weights are so large that the gate i is 0 and f is 1,
    without a rounding error. Then ``c' = 1 * c + 0 * g``.
    """

    def __init__(self, spec: RecurrentSpec, input_size: int, on_cpu: bool = False) -> None:
        super().__init__()
        self.lstm = ops.LSTM(input_size + 1, spec.hidden_size, 1, True, False, 0.0)
        self.size = spec.hidden_size
        self.on_cpu = on_cpu

    def construct(self, x: Any, h_0: Any, c_0: Any, weights: Any, valid: Any) -> Any:
        """Give h and c after each step, `(T, B, H)` each."""
        w_ih, w_hh, b_ih, b_hh = weights
        # On a CPU, oneDNN's LSTM takes one bias, and float32 only.
        biases = (b_ih + b_hh,) if self.on_cpu else (b_ih, b_hh)
        kind = mstype.float32 if self.on_cpu else x.dtype
        padded = ops.logical_not(valid).astype(x.dtype)
        ones = ops.ones((self.size, 1), x.dtype)
        large = 1e4 if x.dtype == mstype.float16 else 1e30  # outweighs all other terms of a gate
        column = ops.concat((ones * -large, ones * large, ops.zeros((2 * self.size, 1), x.dtype)), 0)
        h_steps, _, c_n, _, _ = self.lstm(
            ops.concat((x, padded), 2).astype(kind),
            h_0.expand_dims(0).astype(kind),
            c_0.expand_dims(0).astype(kind),
            _flat((ops.concat((w_ih, column), 1), w_hh, *biases)).astype(kind),
        )
        h_steps, c_n = h_steps.astype(x.dtype), c_n.astype(x.dtype)
        return h_steps, ops.broadcast_to(c_n, h_steps.shape)


class DynamicGRUOperator(nn.Cell):
    """GRU on Ascend. ``DynamicGRUV2`` takes the gates r, z, n (``'rzh'``), transposed weights, and float16."""

    def __init__(self, spec: RecurrentSpec, input_size: int) -> None:
        super().__init__()
        self.gru = ops.DynamicGRUV2(gate_order="rzh")

    def construct(self, x: Any, h_0: Any, c_0: Any, weights: Any, valid: Any) -> Any:
        """Give the state after each step, `(T, B, H)`, twice."""
        w_ih, w_hh, b_ih, b_hh = weights
        half = mstype.float16
        h_steps, _, _, _, _, _ = self.gru(
            x.astype(half), w_ih.T.astype(half), w_hh.T.astype(half), b_ih, b_hh, None, h_0
        )
        h_steps = h_steps.astype(x.dtype)
        return h_steps, h_steps


class DynamicLSTMOperator(nn.Cell):
    """LSTM on Ascend. ``DynamicRNN`` takes the gates i, g, f, o, one array for both weights, and float16."""

    def __init__(self, spec: RecurrentSpec, input_size: int) -> None:
        super().__init__()
        self.lstm = ops.DynamicRNN()
        self.size = spec.hidden_size

    def construct(self, x: Any, h_0: Any, c_0: Any, weights: Any, valid: Any) -> Any:
        """Give h and c after each step, `(T, B, H)` each."""
        w_ih, w_hh, b_ih, b_hh = weights
        half = mstype.float16
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
        """Bring the gates i, f, g, o into the order i, g, f, o."""
        h = self.size
        return ops.concat((weight[:h], weight[2 * h : 3 * h], weight[h : 2 * h], weight[3 * h :]), 0)
