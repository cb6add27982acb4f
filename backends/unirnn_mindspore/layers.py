"""The stack of layers: calls each layer in each direction, on every device.

A *direction* runs one layer in one direction, and honours the lengths by itself. Each implementation of it is a Cell
with the same signature, so that the stack need not know which one it calls::

    direction(x, h_0, c_0, seq_length, resets, weights) -> outputs, h_n, c_n

with x of `(T, B, I)`, outputs of `(T, B, H)`, states of `(B, H)`, lengths of `(B,)`, resets of `(T, B)`, and the
weights ``(w_ih, w_hh, b_ih, b_hh)``, of an LSTM with a projection also ``w_hr``, where outputs and h have the size of
the projection. Resets of any other rank than 2 mean none. An RNN or GRU has no c: it is given h in its place, and what
it returns there is ignored. A layer without biases is given zeros.

On a CPU every direction exists twice: as a compiled kernel, and, for the file that ``mindspore.export`` writes, as one
of MindSpore's own operators. `unirnn_mindspore.dispatch.route` says which one is used.

This file is written in the part of Python that MindSpore's graph mode compiles.
"""

import functools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from unirnn import RecurrentSpec, kernels
from unirnn.contract.sequences import run_sequences
from unirnn.devices import short_name

from . import dispatch, namespace, pynative
from .native import NativeDirection
from .operators import CheckedLengths, CompiledDirection, shared

__all__ = ["Stack"]


class Stack(nn.Cell):
    """All layers and directions over an input of `(T, B, I)`.

    Parameters
    ----------
    spec
        The layers.
    device
        ``"cpu"``, ``"gpu"`` or ``"ascend"``.
    kernel
        One of `unirnn_mindspore.dispatch.SUPPORT`.
    """

    def __init__(self, spec: RecurrentSpec, device: dispatch.DeviceKind, kernel: str) -> None:
        super().__init__()
        # The module has already swapped the axes of what is `batch_first`.
        self.spec = replace(spec, batch_first=False)
        self.num_layers = spec.num_layers
        self.hidden_size = spec.hidden_size
        self.output_size = spec.output_size
        self.num_directions = spec.num_directions
        self.dropout = spec.dropout
        self.bias = spec.bias
        self.is_lstm = spec.kind == "LSTM"
        self.device: dispatch.DeviceKind = device
        self.kernel = kernel
        has_kernels = device == "cpu" and kernel in ("auto", "compiled") and kernels.is_compiled()
        input_sizes = [spec.weight_shapes()["weight_ih" + suffix][1] for suffix in spec.suffixes()]
        self.weights_each = len(spec.weight_shapes()) // len(input_sizes)
        self.operators = nn.CellList(
            [
                NativeDirection(spec, device, size, spec.is_reverse(position))
                for position, size in enumerate(input_sizes)
            ]
        )
        self.kernels = nn.CellList(
            [CompiledDirection(spec, spec.is_reverse(position)) for position in range(len(input_sizes)) if has_kernels]
        )
        self.no_resets = Tensor([False])
        self.layers = pynative.layers
        self.checked: Any = CheckedLengths() if device == "cpu" else None
        # Attributes, since automatic mixed precision moves `construct` to another module, without the functions of
        # this one.
        self.runs_kernels, self.checks_lengths = _traced_choices(spec, device, kernel)

    def __call__(self, x: Any, h_0: Any, c_0: Any, seq_length: Any, resets: Any, weights: Any) -> Any:
        """Run the layers in PyNative mode; what MindSpore compiles is `construct`.

        Parameters
        ----------
        x
            `(T, B, I)`.
        h_0, c_0
            `(L*D, B, H)`; None is zeros.
        seq_length
            `(B,)`; None is T for every sequence.
        resets
            `(T, B)` bool; None is nowhere.
        weights
            In the order of `unirnn.Spec.weight_shapes`.

        Returns
        -------
        tuple
            The output `(T, B, D*H)` and the final states.
        """
        chosen = dispatch.route(self.spec, self.device, self.kernel, short_name(x.dtype), in_graph=False)
        if chosen == "fused" or chosen == "steps":
            if resets is not None:
                return self._run_sequences(x, h_0, c_0, seq_length, resets, weights)
            return super().__call__(x, h_0, c_0, seq_length, resets, weights)
        if self.layers is None:
            return super().__call__(x, h_0, c_0, seq_length, resets, weights)
        noise = None
        if self.dropout and self.training and self.num_layers > 1:
            shape = (self.num_layers - 1, *x.shape[:2], self.output_size * self.num_directions)
            noise = ops.dropout(ops.ones(shape, x.dtype), self.dropout, True)
        state = () if h_0 is None else (h_0, c_0) if self.is_lstm else (h_0,)
        output, *final = self.layers(pynative.Call(self.spec, chosen, seq_length, resets, noise), x, state, weights)
        return output, final[0], final[-1]

    def _run_sequences(self, x: Any, h_0: Any, c_0: Any, seq_length: Any, resets: Any, weights: Any) -> Any:
        """Run MindSpore's own operators, none of which knows resets, in PyNative mode."""
        run = super().__call__

        def without_resets(x: Any, state: Sequence[Any], lengths: Any) -> tuple[Any, Sequence[Any]]:
            h, c = state or (None, None)
            output, *final = run(x, h, c, Tensor(lengths), None, weights)
            return output, final

        lengths = None if seq_length is None else seq_length.asnumpy()
        reverse = np.array([int(self.spec.is_reverse(position)) for position in range(len(self.operators))])
        state = () if h_0 is None else (h_0, c_0)
        output, final = run_sequences(
            namespace, without_resets, x, state, lengths, resets.asnumpy(), [reverse, reverse]
        )
        return output, *final

    def construct(self, x: Any, h_0: Any, c_0: Any, seq_length: Any, resets: Any, weights: Any) -> Any:
        """Run the layers; see `__call__`."""
        steps, batch_size = x.shape[0], x.shape[1]
        if h_0 is None:
            # Not by ops.zeros, which leaks 1.3 KB each time.
            positions = self.num_layers * self.num_directions
            h_0 = ops.full((positions, batch_size, self.output_size), 0, dtype=x.dtype)
            c_0 = ops.full((positions, batch_size, self.hidden_size), 0, dtype=x.dtype) if self.is_lstm else h_0
        if seq_length is None:
            seq_length = ops.full((batch_size,), steps, dtype=mstype.int64)
        elif self.checks_lengths():
            seq_length = self.checked(seq_length, steps)
        if resets is None:
            resets = self.no_resets
        if self.runs_kernels(x.dtype):
            return self._run(self.kernels, x, h_0, c_0, seq_length, resets, weights)
        return self._run(self.operators, x, h_0, c_0, seq_length, resets, weights)

    def _run(self, directions: Any, x: Any, h_0: Any, c_0: Any, seq_length: Any, resets: Any, weights: Any) -> Any:
        """Run the layers by the directions given."""
        h_n: Any = ()
        c_n: Any = ()
        for layer in range(self.num_layers):
            outputs: Any = ()
            for reverse in range(self.num_directions):
                position = layer * self.num_directions + reverse
                h = h_0[position]
                c = c_0[position] if self.is_lstm else h
                out, h, c = directions[position](x, h, c, seq_length, resets, self._weights(weights, position))
                outputs += (out,)
                h_n += (h,)
                c_n += (c,)
            x = outputs[0] if self.num_directions == 1 else ops.concat(outputs, 2)
            if self.dropout > 0 and self.training and layer < self.num_layers - 1:
                x = ops.dropout(x, self.dropout, True)
        h_all = ops.stack(h_n)
        return x, h_all, ops.stack(c_n) if self.is_lstm else h_all

    def _weights(self, weights: Any, position: int) -> Any:
        """Give the weights of a direction, with biases of zero if it has none."""
        own = weights[self.weights_each * position : self.weights_each * (position + 1)]
        if self.bias:
            return own
        zeros = ops.zeros_like(own[0][:, 0])
        return (*own[:2], zeros, zeros, *own[2:])


@functools.cache
def _traced_choices(spec: RecurrentSpec, device: dispatch.DeviceKind, kernel: str) -> tuple[Any, Any]:
    """Make two functions that run while MindSpore compiles.

    The first says whether the compiled kernels run, rather than MindSpore's operators. The second says whether the
    lengths are checked when the graph runs, which an exported file and other devices can't do.
    """

    def runs_kernels(dtype: Any) -> bool:
        return dispatch.route(spec, device, kernel, short_name(dtype), in_graph=True) == "compiled"

    def checks_lengths() -> bool:
        return device == "cpu" and not dispatch.is_exporting()

    at_compile_time = ops.constexpr(check=False)
    return shared(at_compile_time(runs_kernels)), shared(at_compile_time(checks_lengths))
