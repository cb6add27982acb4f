"""The module that the ``torch`` backend builds.

Kernels between which `unirnn_torch.dispatch` decides at each call, or the argument ``kernel`` of `build`.

``native`` is the computation of ``torch.nn.RNN``, ``GRU`` and ``LSTM`` (cuDNN, oneDNN):

- a dense input, with no lengths: one native call, exactly the layers' own. Lengths that are all the same make the
  input dense;
- a ``PackedSequence``: one native call in its packed form;
- lengths: one native call for each layer and direction over dense steps (`direction`), which the core's plain
  path surrounds by the selection of padding, the reversal of each sequence, and the state at step n-1. No
  sorting, no packing, and no length leaves its device but for the check of its value;
- lengths, where that is faster: one native call of the whole stack over the valid steps alone.

``packed`` is our own for the CPU, `unirnn_torch.packed`, with its steps by torch, and ``numba`` the same with its
steps compiled; in `torch.onnx.export` both are ONNX's node, `unirnn_torch.exporting`.

``plain`` is the core's plain path, step by step: by name, and for a GRU of ``reset_after=False``, which has neither.
"""

from functools import partial
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from unirnn import LSTMSpec, RecurrentSpec, RNNSpec
from unirnn import reference as plain
from unirnn.contract.backend import Arrays
from unirnn.contract.call import Sizes, bind, check, check_lengths, join_state, lengths, state_parts
from unirnn.devices import short_name
from unirnn.errors import ArgumentError, LimitError
from unirnn_torch import dispatch as choice
from unirnn_torch import exporting, native, operators

__all__ = ["Recurrent"]


class Recurrent(torch.nn.RNNBase):
    """A stack of recurrent layers with the parameters and attributes of ``torch.nn.RNN``, ``GRU`` or ``LSTM``.

    It is no subclass of those three, since ``torch.compile(fullgraph=True)`` refuses any instance of them; a
    ``state_dict`` goes from and to them with ``strict=True``.

    Parameters
    ----------
    spec
        What it is.
    device, dtype
        Of the parameters.
    weights
        Their values by name; None: drawn as the native layers draw theirs.
    kernel
        One of `unirnn_torch.dispatch.KERNELS`.

    Attributes
    ----------
    spec
        What it is.
    kernel
        As given.

    Examples
    --------
    >>> import torch, unirnn
    >>> gru = unirnn.GRUSpec(3, 4).build("torch", seed=0)
    >>> output, h_n = gru(torch.ones(5, 2, 3), seq_length=[5, 0])
    >>> output.shape, bool((output[:, 1] == 0).all())
    (torch.Size([5, 2, 4]), True)
    """

    spec: RecurrentSpec
    _first_weights: Arrays | None = None

    def __init__(
        self,
        spec: RecurrentSpec,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
        weights: Arrays | None = None,
        kernel: str = "auto",
    ) -> None:
        # Each attribute that is set costs a hundredth of a small layer's construction.
        if weights is not None:
            self._first_weights = weights
        super().__init__(
            native.mode(spec),
            spec.input_size,
            spec.hidden_size,
            spec.num_layers,
            spec.bias,
            spec.batch_first,
            0.0,  # the spec has warned of dropout after one layer; the base class would once more
            spec.bidirectional,
            spec.proj_size if isinstance(spec, LSTMSpec) else 0,
            device=device,
            dtype=dtype,
        )
        if spec.dropout:
            self.dropout = spec.dropout
        if isinstance(spec, RNNSpec):
            self.nonlinearity = spec.nonlinearity
        self.spec = spec
        self.kernel = kernel
        self._names = tuple(spec.weight_shapes())
        if weights is not None:
            self._first_weights = None

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as the native layers do."""
        if self._first_weights is None:
            super().reset_parameters()
            return
        # Called by the base class's constructor: nothing is drawn, and the global generator stays where it is.
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.tensor(self._first_weights[name], device="cpu"))

    def _get_name(self) -> str:
        return self.spec.kind

    def extra_repr(self) -> str:
        """What `repr` shows: as the native layers, and the variant that they don't have."""
        return super().extra_repr() + (", reset_after=False" if choice.is_stepped(self.spec) else "")

    def forward(self, input: Any = None, hx: Any = None, seq_length: Any = None, **aliases: Any) -> Any:
        """Run the layers.

        Parameters
        ----------
        input
            `(T, B, I)`, `(B, T, I)` if ``batch_first``, or `(T, I)`; or a ``PackedSequence``. Also ``x``.
        hx
            Initial state, `(L*D, B, H)`, or `(L*D, H)`; for LSTM a pair. None is zeros. Also ``h_0``.
        seq_length
            `(B,)` integers, ``0 <= n <= T``, on any device; see `unirnn.contract.call`. None is T for every sequence.
            A list or a CPU tensor spares the one synchronisation that reading a GPU's lengths costs.

        Returns
        -------
        output
            As the input, with D*H on the last axis; zero from step n on.
        h_n
            The final state; for LSTM ``(h_n, c_n)``.
        """
        spec = self.spec
        input, hx, seq_length = bind(spec, input, hx, seq_length, aliases)
        state = state_parts(spec, hx)
        if isinstance(input, PackedSequence):
            return self._packed(input, state, seq_length)
        sizes = check(spec, Tensor, self._dtype(input, state), input, state)
        if seq_length is None:
            output, final = self._run(input, state, None, sizes)
        elif torch.compiler.is_compiling():
            output, final = self._run(input, state, traced(seq_length, sizes, input.device), sizes)
        else:
            output, final = self._shortened(input, state, on_host(seq_length, sizes), sizes)
        return output, join_state(final)

    @property
    def _weights(self) -> list[Tensor]:
        # Attributes that are parameters take ten times as long; one that is none is what a parametrization computes.
        held: dict[str, Any] = self._parameters
        return [held[name] if name in held else getattr(self, name) for name in self._names]

    def _dtype(self, input: Any, state: tuple[Any, ...] | None) -> torch.dtype | None:
        """The dtype that arrays must have; None, any floating one, under autocast, where the native call casts."""
        dtype = self._weights[0].dtype
        others = [t for t in (input, *(state or ())) if isinstance(t, Tensor) and t.dtype != dtype]
        return None if others and native.casts(others[0].device.type) else dtype

    def _dense(
        self,
        input: Tensor,
        state: tuple[Tensor, ...] | None,
        batch_size: int | None,
        weights: list[Tensor],
        keeps: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        spec = self.spec
        if state is None:
            state = tuple(input.new_zeros(shape) for shape in spec.state_shapes(batch_size).values())
        axis = 0 if spec.batch_first else 1
        if batch_size is None:
            input, state = input.unsqueeze(axis), tuple(part.unsqueeze(1) for part in state)
        output, *final = native.NATIVE[self.mode](
            input, join_state(state), weights, *self._options(input, keeps), self.batch_first
        )
        if batch_size is None:
            return output.squeeze(axis), tuple(part.squeeze(1) for part in final)
        return output, tuple(final)

    def _options(self, input: Tensor, keeps: bool) -> tuple[bool, int, float, bool, bool]:
        """What a native call of the whole stack has behind the weights."""
        training = self.training or (keeps and native.has_to_train(input))
        return self.bias, self.num_layers, self.dropout if self.training else 0.0, training, self.bidirectional

    def _shortened(
        self, input: Tensor, state: tuple[Tensor, ...] | None, values: NDArray[np.int64], sizes: Sizes
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run no step after the longest sequence; if all are as long, what is left is dense."""
        listed = values.tolist()  # of few, the least and the largest are found in a tenth of NumPy's time
        least, longest = (min(listed), max(listed)) if listed else (0, 0)
        axis = 1 if self.batch_first and sizes.batch_size is not None else 0
        steps = max(longest, 1)
        if steps < sizes.steps:
            input = input.narrow(axis, 0, steps)
        sizes_left = Sizes(steps, sizes.batch_size)
        if least == longest > 0:
            output, final = self._run(input, state, None, sizes_left)
        else:
            ns = torch.from_numpy(values).to(input.device, non_blocking=True)
            output, final = self._run(input, state, ns, sizes_left, values)
        if steps < sizes.steps:
            after = [0, 0] * (input.dim() - 1 - axis)
            output = torch.nn.functional.pad(output, [*after, 0, sizes.steps - steps])
        return output, final

    def _run(
        self,
        input: Tensor,
        state: tuple[Tensor, ...] | None,
        ns: Tensor | None,
        sizes: Sizes,
        values: NDArray[np.int64] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run one of the kernels; ``values`` are those of the lengths, but in a trace."""
        weights = self._weights
        valid, alive = None, sizes
        if values is not None:
            valid, alive = int(values.sum()), Sizes(sizes.steps, np.count_nonzero(values))
        keeps = torch.is_grad_enabled() and any(t.requires_grad for t in (input, *(state or ()), *weights))
        kernel = self._chosen(input, valid, alive, keeps)
        if kernel != "native" or self._is_one_operator_a_layer(input):
            return self._by_layers(input, state, ns, weights, kernel)
        if not self._has_native:
            return self._by_directions(input, state, ns, weights)
        if ns is None:
            return self._dense(input, state, sizes.batch_size, weights, keeps)
        if values is not None and valid and self._takes_rows(input, valid, sizes, keeps):
            return self._by_rows(input, state, values, weights, keeps)
        return self._by_directions(input, state, ns, weights)

    @property
    def _has_native(self) -> bool:
        return self.kernel != "plain" and not choice.is_stepped(self.spec)

    def _chosen(self, input: Tensor, valid: int | None, sizes: Sizes, keeps: bool) -> str:
        """Which kernel runs a call of so many sequences that are not empty; raises if the one asked for can't."""
        named = self.kernel
        # In torch.jit's trace sizes are no numbers, which the table would compare.
        if named in ("native", "plain") or (named == "auto" and choice.is_traced_by_jit()):
            return "native"
        kernel = named  # in a graph auto stays what it is: the operators ask the table when they run
        if named == "auto" and not torch.compiler.is_compiling():  # asked first, since it costs less
            if not input.is_cpu:  # where to look at the lengths is to wait for them
                return "native"
            steps, batch_size = sizes.steps, sizes.batch_size or 1
            kernel = choice.fastest(self.spec, input.dtype, steps, batch_size, valid, gradients=keeps)
            if kernel == "native":
                return kernel
        why_not = choice.obstacle(self.spec, input)
        if why_not is not None and named != "auto":
            raise LimitError(f"kernel: built with {named!r}, but {why_not}; build with 'auto'")
        return kernel if why_not is None else "native"

    def _is_one_operator_a_layer(self, input: Tensor) -> bool:
        """Whether a native call is: on a GPU, in a graph, where torch's own is unrolled."""
        if self.kernel != "auto" or not input.is_cuda or not torch.compiler.is_compiling():
            return False
        return choice.no_operator(self.spec) is None

    def _takes_rows(self, input: Tensor, valid: int, sizes: Sizes, keeps: bool) -> bool:
        """Whether a native call with lengths runs over packed rows, not dense steps."""
        # Of a fake tensor the rows can't be counted, and a trace would take them for constants.
        if type(input) is not Tensor or torch.compiler.is_compiling() or choice.is_traced_by_jit():
            return False
        steps = sizes.steps * (sizes.batch_size or 1)
        return choice.rows_are_faster(self.spec, input, steps, valid, gradients=keeps)

    def _by_layers(
        self, input: Tensor, state: tuple[Tensor, ...] | None, ns: Tensor | None, weights: list[Tensor], kernel: str
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the operators, layer by layer."""
        spec = self.spec
        x, initial = self._time_major(input, state)
        device = input.device.type
        if native.casts(device):
            dtype = torch.get_autocast_dtype(device)
            x, initial, weights = x.to(dtype), tuple(h.to(dtype) for h in initial), [w.to(dtype) for w in weights]
        run = exporting.layer if torch.onnx.is_in_onnx_export() else partial(operators.layer, kernel=kernel)
        named = dict(zip(self._names, weights, strict=True))
        suffixes, width, finals = spec.suffixes(), spec.num_directions, []
        for layer in range(spec.num_layers):
            at = slice(layer * width, (layer + 1) * width)
            of_directions = [
                plain.Weights(*(named.get(name + suffix) for name in plain.Weights._fields)) for suffix in suffixes[at]
            ]
            x, final = run(self.mode, x, ns, [part[at] for part in initial], of_directions)
            finals.append(final)
            if self.dropout and self.training and layer < spec.num_layers - 1:
                x = self._dropout(x)
        whole = tuple(parts[0] if len(parts) == 1 else torch.cat(parts) for parts in zip(*finals, strict=True))
        return self._as_given(input, x, whole)

    def _time_major(self, input: Tensor, state: tuple[Tensor, ...] | None) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The input as `(T, B, I)`, and the state, or zeros, as `(L*D, B, H)` each."""
        if input.dim() == 2:
            x = input.unsqueeze(1)
            state = None if state is None else tuple(part.unsqueeze(1) for part in state)
        else:
            x = input.transpose(0, 1) if self.batch_first else input
        if state is None:
            state = tuple(x.new_zeros(shape) for shape in self.spec.state_shapes(x.shape[1]).values())
        return x, state

    def _as_given(self, input: Tensor, output: Tensor, final: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The results in the layout of the input: the inverse of `_time_major`."""
        if input.dim() == 2:
            return output.squeeze(1), tuple(part.squeeze(1) for part in final)
        return (output.transpose(0, 1) if self.batch_first else output), final

    def _by_rows(
        self,
        input: Tensor,
        state: tuple[Tensor, ...] | None,
        values: NDArray[np.int64],
        weights: list[Tensor],
        keeps: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One native call over the valid steps, as for a ``PackedSequence``; sequences of length 0 are left out."""
        x, initial = self._time_major(input, state)
        steps, batch_size, _ = x.shape
        longest_first = np.argsort(-values, kind="stable")[: np.count_nonzero(values)]
        batch_sizes = torch.from_numpy((np.arange(steps)[:, None] < values[longest_first]).sum(axis=1))
        order, alive = (part.to(x.device, non_blocking=True) for part in (torch.from_numpy(longest_first), batch_sizes))
        count = int(values.sum())
        step = torch.repeat_interleave(alive, output_size=count)
        among = torch.arange(count, device=x.device) - (alive.cumsum(0) - alive).index_select(0, step)
        rows = step * batch_size + order.index_select(0, among)
        results, *final = native.NATIVE[self.mode](
            x.reshape(-1, x.shape[2]).index_select(0, rows),
            batch_sizes,
            join_state([part.index_select(1, order) for part in initial]),
            weights,
            *self._options(x, keeps),
        )
        # Under autocast the results may be narrower than the input.
        output = results.new_zeros((steps * batch_size, results.shape[1])).index_copy(0, rows, results)
        whole = (part.to(last.dtype).index_copy(1, order, last) for part, last in zip(initial, final, strict=True))
        return self._as_given(input, output.view(steps, batch_size, -1), tuple(whole))

    def _by_directions(
        self, input: Tensor, state: tuple[Tensor, ...] | None, ns: Tensor | None, weights: list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        return plain.recurrent(
            xp,
            self.spec,
            dict(zip(self._names, weights, strict=True)),
            input,
            state,
            ns,
            dropout=self._dropout if self.dropout and self.training else None,
            direction=native.direction if self._has_native else plain.direction,
        )

    def _packed(
        self, input: PackedSequence, state: tuple[Tensor, ...] | None, seq_length: Any
    ) -> tuple[PackedSequence, Any]:
        spec = self.spec
        if seq_length is not None:
            raise ArgumentError("seq_length: given besides a PackedSequence, which holds its own lengths; give one")
        data, batch_sizes, order, inverse = input
        steps, batch_size = len(batch_sizes), int(batch_sizes[0])
        leading = (batch_size, steps) if spec.batch_first else (steps, batch_size)
        check(spec, Tensor, self._dtype(data, state), data, state, shape=(*leading, data.shape[-1]))
        if state is None:
            state = tuple(data.new_zeros(shape) for shape in spec.state_shapes(batch_size).values())
        elif order is not None:
            state = tuple(part.index_select(1, order) for part in state)
        sizes = Sizes(steps, batch_size)
        keeps = torch.is_grad_enabled() and any(t.requires_grad for t in (data, *state, *self._weights))
        if self._has_native and self._chosen(data, len(data), sizes, keeps) == "native":
            output, *final = native.NATIVE[self.mode](
                data, batch_sizes, join_state(state), self._weights, *self._options(data, keeps)
            )
        else:
            padded, ns = pad_packed_sequence(PackedSequence(data, batch_sizes), spec.batch_first)
            padded, final = self._run(padded, state, ns.to(data.device), sizes, ns.numpy())
            output = pack_padded_sequence(padded, ns, spec.batch_first).data
        if inverse is not None:
            final = [part.index_select(1, inverse) for part in final]
        return PackedSequence(output, batch_sizes, order, inverse), join_state(final)

    def _dropout(self, x: Tensor) -> Tensor:
        return torch.nn.functional.dropout(x, self.dropout, training=True)


def on_host(seq_length: Any, sizes: Sizes) -> NDArray[np.int64]:
    """Check the lengths, whatever they come in: `(B,)`."""
    if isinstance(seq_length, Tensor):
        check_lengths(tuple(seq_length.shape), short_name(seq_length.dtype), sizes)
        # Not by `numpy`, which torch.func's gradients lack.
        seq_length = np.array(seq_length.tolist(), short_name(seq_length.dtype))
    return lengths(seq_length, sizes)


def traced(seq_length: Any, sizes: Sizes, device: torch.device) -> Tensor:
    """Check what a trace knows of the lengths; the packed kernel looks at them when it runs."""
    values = torch.as_tensor(seq_length, device=device)
    check_lengths(tuple(values.shape), short_name(values.dtype), sizes)
    return values.to(torch.int64).reshape(-1)
