"""The module that the ``torch`` backend builds.

Kernels between which `unirnn_torch.choice` decides at each call, or the argument ``kernel`` of `build`.

``native`` is the computation of ``torch.nn.RNN``, ``GRU`` and ``LSTM`` (cuDNN, oneDNN):

- a dense input, with no lengths: one native call, exactly the layers' own. Lengths that are all the same make the
  input dense;
- a ``PackedSequence``: one native call in its packed form;
- lengths: one native call for each layer and direction over dense steps (`direction`), which the core's plain
  path surrounds by the selection of padding, the reversal of each sequence, and the state at step n-1. No
  sorting, no packing, and no length leaves its device but for the check of its value;
- lengths on a CPU, where no gradient is needed: one native call over the valid steps alone, where that is faster.

``packed`` is our own for the CPU, `unirnn_torch.packed`, with its steps by torch, and ``numba`` the same with its
steps compiled; in `torch.onnx.export` both are ONNX's node, `unirnn_torch.exporting`.

``plain`` is the core's plain path, step by step: by name, and for a GRU of ``reset_after=False``, which has neither.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from unirnn import GRUSpec, LSTMSpec, RNNSpec, Spec, plain
from unirnn.backend import Arrays
from unirnn.call import Sizes, bind, check, check_lengths, join_state, lengths, state_parts
from unirnn.devices import plain_name
from unirnn.errors import ArgumentError, LimitError

from . import choice, exporting, packed

__all__ = ["Recurrent"]

_NATIVE: dict[str, Callable[..., Any]] = {
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
    "GRU": torch.gru,
    "LSTM": torch.lstm,
}


def _mode(spec: Spec) -> str:
    return f"RNN_{spec.nonlinearity.upper()}" if isinstance(spec, RNNSpec) else spec.cell


def _is_native(spec: Spec) -> bool:
    return not isinstance(spec, GRUSpec) or spec.reset_after


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
        One of `unirnn_torch.choice.KERNELS`.

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

    spec: Spec
    _first_weights: Arrays | None = None

    def __init__(
        self,
        spec: Spec,
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
            _mode(spec),
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
        return self.spec.cell

    def extra_repr(self) -> str:
        """What `repr` shows: as the native layers, and the variant that they don't have."""
        return super().extra_repr() + ("" if _is_native(self.spec) else ", reset_after=False")

    def forward(self, input: Any = None, hx: Any = None, seq_length: Any = None, **aliases: Any) -> Any:
        """Run the layers.

        Parameters
        ----------
        input
            `(T, B, I)`, `(B, T, I)` if ``batch_first``, or `(T, I)`; or a ``PackedSequence``. Also ``x``.
        hx
            Initial state, `(L*D, B, H)`, or `(L*D, H)`; for LSTM a pair. None is zeros. Also ``h_0``.
        seq_length
            `(B,)` integers, ``0 <= n <= T``, on any device; see `unirnn.call`. None is T for every sequence.
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
        return None if others and _casts(others[0].device.type) else dtype

    def _dense(
        self, input: Tensor, state: tuple[Tensor, ...] | None, batch_size: int | None, weights: list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        spec = self.spec
        if state is None:
            state = tuple(input.new_zeros(shape) for shape in spec.state_shapes(batch_size).values())
        axis = 0 if spec.batch_first else 1
        if batch_size is None:
            input, state = input.unsqueeze(axis), tuple(part.unsqueeze(1) for part in state)
        output, *final = _NATIVE[self.mode](
            input,
            join_state(state),
            weights,
            self.bias,
            self.num_layers,
            self.dropout,
            self.training,
            self.bidirectional,
            self.batch_first,
        )
        if batch_size is None:
            return output.squeeze(axis), tuple(part.squeeze(1) for part in final)
        return output, tuple(final)

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
        valid = None if values is None else int(values.sum())
        keeps = torch.is_grad_enabled() and any(t.requires_grad for t in (input, *(state or ()), *weights))
        kernel = self._chosen(input, valid, sizes, keeps)
        if kernel in ("packed", "numba"):
            return self._by_layers(input, state, ns, weights, kernel)
        if not self._has_native:
            return self._by_directions(input, state, ns, weights)
        if ns is None:
            return self._dense(input, state, sizes.batch_size, weights)
        if values is not None and valid is not None and not keeps and self._takes_rows(input, valid, sizes):
            return self._by_rows(input, state, values, weights)
        return self._by_directions(input, state, ns, weights)

    @property
    def _has_native(self) -> bool:
        return self.kernel != "plain" and _is_native(self.spec)

    def _chosen(self, input: Tensor, valid: int | None, sizes: Sizes, keeps: bool) -> str:
        """Which kernel runs this call; raises if the one that was asked for can't."""
        named = self.kernel
        # In torch.jit's trace sizes are no numbers, which the table would compare.
        if named in ("native", "plain") or (named == "auto" and choice.is_traced_by_jit()):
            return "native"
        kernel = "packed" if named == "auto" else named
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

    def _takes_rows(self, input: Tensor, valid: int, sizes: Sizes) -> bool:
        """Whether a native call with lengths runs over packed rows, whose backward pass is slow, not dense steps."""
        if type(input) is not Tensor:  # such as a fake one, whose rows can't be counted
            return False
        if torch.compiler.is_compiling() or choice.obstacle(self.spec, input) is not None:
            return False
        steps = sizes.steps * (sizes.batch_size or 1)
        return choice.rows_are_faster(self.spec, input.dtype, steps, valid)

    def _by_layers(
        self, input: Tensor, state: tuple[Tensor, ...] | None, ns: Tensor | None, weights: list[Tensor], kernel: str
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the packed kernel, layer by layer; when traced, it finds out when it runs what computes its steps."""
        spec = self.spec
        x, initial = self._time_major(input, state)
        numba = None if self.kernel == "auto" and torch.compiler.is_compiling() else kernel == "numba"
        run = exporting.layer if torch.onnx.is_in_onnx_export() else partial(packed.layer, numba=numba)
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
        self, input: Tensor, state: tuple[Tensor, ...] | None, values: NDArray[np.int64], weights: list[Tensor]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One native call over the valid steps, as for a ``PackedSequence``; sequences of length 0 are left out."""
        spec = self.spec
        x, initial = self._time_major(input, state)
        steps, batch_size, _ = x.shape
        longest_first = np.argsort(-values, kind="stable")[: np.count_nonzero(values)]
        step = np.arange(steps)[:, None]
        valid = step < values[longest_first]
        rows = torch.from_numpy((step * batch_size + longest_first)[valid])
        order = torch.from_numpy(longest_first)
        output = x.new_zeros((steps, batch_size, spec.num_directions * spec.output_size))
        if len(order):
            results, *final = _NATIVE[self.mode](
                x.reshape(-1, x.shape[2]).index_select(0, rows),
                torch.from_numpy(valid.sum(axis=1)),
                join_state([part.index_select(1, order) for part in initial]),
                weights,
                self.bias,
                self.num_layers,
                self.dropout,
                self.training,
                self.bidirectional,
            )
            output.view(-1, output.shape[2]).index_copy_(0, rows, results)
            initial = tuple(whole.index_copy(1, order, part) for whole, part in zip(initial, final, strict=True))
        return self._as_given(input, output, initial)

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
            direction=direction if self._has_native else plain.direction,
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
            output, *final = _NATIVE[self.mode](
                data,
                batch_sizes,
                join_state(state),
                self._weights,
                self.bias,
                self.num_layers,
                self.dropout,
                self.training,
                self.bidirectional,
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
        check_lengths(tuple(seq_length.shape), plain_name(seq_length.dtype), sizes)
        seq_length = seq_length.cpu().numpy()
    return lengths(seq_length, sizes)


def traced(seq_length: Any, sizes: Sizes, device: torch.device) -> Tensor:
    """Check what a trace knows of the lengths; the packed kernel looks at them when it runs."""
    values = torch.as_tensor(seq_length, device=device)
    check_lengths(tuple(values.shape), plain_name(values.dtype), sizes)
    return values.to(torch.int64).reshape(-1)


def direction(
    _: Any,
    spec: Spec,
    x: Tensor,
    state: tuple[Tensor, ...],
    weights: plain.Weights,
    ragged: plain.Lengths | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer in one direction by the native computation; see `unirnn.plain.direction`.

    The native call goes on past step n, over zeros. The state h after step n-1 is in its outputs; an LSTM's c is
    not, and a relu RNN may overflow on the way, and bring NaN into the gradient. So the padded steps of these
    two are put to rest (`_rest`). The state of a sequence of length 0 takes no part.
    """
    assert ragged is not None
    flat = [w for w in (weights.weight_ih, weights.weight_hh, weights.bias_ih, weights.bias_hh) if w is not None]
    rest = _rest(spec, x)
    if rest is not None:
        padded = torch.where(ragged.valid, 0.0, 1.0).to(x.dtype).unsqueeze(-1)
        x = torch.cat((x, padded), dim=-1)
        flat[0] = torch.cat((flat[0], rest.to(flat[0].dtype)), dim=1)
    if weights.weight_hr is not None:
        flat.append(weights.weight_hr)
    initial = tuple(ragged.begun(xp, part).unsqueeze(0) for part in state)
    output, *final = _NATIVE[_mode(spec)](x, join_state(initial), flat, spec.bias, 1, 0.0, False, False, False)
    # Under autocast the output may be narrower than the state.
    h_0, *c_0 = (part.to(output.dtype) for part in state)
    h = plain.last_valid(xp, output, h_0, ragged)
    begun = (ragged.values > 0).unsqueeze(-1)
    return output, (h, *(torch.where(begun, c.squeeze(0), c0) for c, c0 in zip(final[1:], c_0, strict=True)))


def _casts(device: str) -> bool:
    """Whether autocast is on, on a kind of device; some, such as meta, have none, and torch refuses the question."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def _rest(spec: Spec, x: Tensor) -> Tensor | None:
    """Weights `(gates*H, 1)` of one more column of the input, 1 on padded steps, that puts them to rest.

    They outweigh whatever else the gates get. LSTM: i is 0 and f is 1, exactly, so that ``c' = 1 * c + 0 * g = c``.
    Relu RNN: h is 0.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if _casts(device) else x.dtype
    large = torch.finfo(dtype).max / 4
    if _mode(spec) == "RNN_RELU":
        return x.new_full((spec.hidden_size, 1), -large)
    if spec.cell == "LSTM":
        column = x.new_zeros((4, spec.hidden_size, 1))
        column[0], column[1] = -large, large
        return column.reshape(4 * spec.hidden_size, 1)
    return None
