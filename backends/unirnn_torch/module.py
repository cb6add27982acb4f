"""The module that the ``torch`` backend builds.

A call is prepared by `unirnn.contract.call.prepare`, `unirnn_torch.dispatch.route` decides how it is computed, and
`unirnn_torch.layers.run` computes it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from unirnn import LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.contract.backend import Arrays
from unirnn.contract.call import Arguments, Call, bind, join_state, prepare, prepare_step, state_parts
from unirnn.contract.lengths import Sizes, check_lengths, check_resets, parse_lengths, parse_resets
from unirnn.contract.module import Module
from unirnn.devices import short_name
from unirnn.errors import ArgumentError
from unirnn.specs.arguments import missing_arguments

from . import dispatch, layers, native, operators
from .c_kernels import Prepared
from .dispatch import Route
from .layers import Lengths, Resets, Stack, State

__all__ = ["Recurrent", "read_lengths", "read_resets"]


class Recurrent(torch.nn.RNNBase):
    """A stack of recurrent layers with the parameters and attributes of ``torch.nn.RNN``, ``GRU`` or ``LSTM``.

    It is not a subclass of those three, since ``torch.compile(fullgraph=True)`` refuses their instances; but their
    ``state_dict`` can be loaded into this module, and vice versa, with ``strict=True``. A call also takes a
    ``PackedSequence``, which has its own lengths, and then returns one.

    Parameters
    ----------
    spec
        The spec of the layers.
    device, dtype
        Of the parameters.
    weights
        The parameters' values by name; None: they are drawn as the native layers draw theirs.
    kernel
        One of `unirnn_torch.dispatch.KERNELS`.

    Attributes
    ----------
    spec
        The spec of the layers.
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
    __prepare_scriptable__ = dispatch.refuse_script
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
        # Attributes are set only where needed, since `torch.nn.Module.__setattr__` is slow.
        if weights is not None:
            self._first_weights = weights
        super().__init__(
            native.mode(spec),
            spec.input_size,
            spec.hidden_size,
            spec.num_layers,
            spec.bias,
            spec.batch_first,
            0.0,  # the spec has already warned of dropout after a single layer
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
        self._has_native = dispatch.has_native(spec)
        self._last: dict[str, Prepared | None] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        if weights is not None:
            self._first_weights = None

    def reset_parameters(self) -> None:
        """Draw the parameters anew, as the native layers do."""
        if self._first_weights is None:
            super().reset_parameters()
            return
        # The base class's constructor calls this: nothing is drawn, and the global generator does not move.
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                parameter.copy_(torch.tensor(self._first_weights[name], device="cpu"))

    def _get_name(self) -> str:
        return self.spec.kind

    def extra_repr(self) -> str:
        """What `repr` shows: as for the native layers, and the variant that they don't have."""
        own = self.spec.uncommon()
        lacking = [f", {name}={own[name]!r}" for name in missing_arguments("torch") if name in own]
        return super().extra_repr() + "".join(lacking)

    def forward(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, **aliases: Any
    ) -> Any:
        given = bind(self.spec, input, hx, seq_length, resets, aliases)
        if isinstance(given.input, PackedSequence):
            return self._run_packed_sequence(*given)
        weights, parts = self._weights, _parts(given.hx)

        def check() -> Call:
            like = Tensor, _dtype(weights, given.input, *parts)
            return prepare(self.spec, given, like=like, read_lengths=read_lengths, read_resets=read_resets)

        if given.seq_length is None and given.resets is None:
            return self._run_like_last("call", weights, given.input, given.hx, check)
        return self._run(check(), weights)

    forward.__doc__ = Module.__call__.__doc__

    def step(self, x: Any, state: Any = None) -> tuple[Tensor, Any]:
        weights = self._weights

        def check() -> Call:
            return prepare_step(self.spec, x, state, like=(Tensor, _dtype(weights, x, *_parts(state))))

        return self._run_like_last("step", weights, x, state, check)

    step.__doc__ = Module.step.__doc__

    def zero_state(self, batch_size: int | None = None) -> Any:
        """The state before the first step of a sequence; see `unirnn.state.zeros`."""
        weight = self._weights["weight_hh_l0"]
        return join_state([weight.new_zeros(shape) for shape in self.spec.state_shapes(batch_size).values()])

    def _run_like_last(
        self, kind: str, weights: dict[str, Tensor], x: Any, hx: Any, check: Callable[[], Call]
    ) -> tuple[Tensor, Any]:
        """Run a call without lengths and resets, or a step, by what was prepared for those before if that fits.

        To check and to describe a small call takes longer than to compute it.
        """
        if not self._is_simple(weights, x, _parts(hx)):
            return self._run(check(), weights)
        last = self._last.get(kind)
        if last is not None:
            parts = state_parts(self.spec, hx, "state" if kind == "step" else "hx") or ()
            if last.fits(weights.values(), x, parts):
                y, final = last.run(x, parts)
                return y, join_state(final)
        call = check()
        result = self._run(call, weights)
        # A shape that comes twice in a row is likely to come again. Preparing for each new one would waste time.
        before, self._shapes[kind] = self._shapes.get(kind), x.shape
        if x.shape == before and self.kernel in ("auto", "compiled") and self._can_prepare(weights, x):
            directions = Stack(self.spec, weights, 0.0, False, False).directions()
            self._last[kind] = Prepared(self.spec, directions, x, call.layout)
        return result

    def _is_simple(self, weights: dict[str, Tensor], x: Any, state: tuple[Any, ...]) -> bool:
        """Whether gradients are switched off, and nothing traces, watches or changes the call, as dropout would."""
        if torch.is_grad_enabled() or (self.training and self.dropout):
            return False
        tensors = isinstance(x, Tensor) and all(isinstance(part, Tensor) for part in state)
        return tensors and not operators.needs_operator(x, state, weights.values()) and dispatch.is_plain()

    def _can_prepare(self, weights: dict[str, Tensor], x: Tensor) -> bool:
        return dispatch.unsupported_reason("compiled", self.spec) is None and Prepared.can_be_had(weights.values(), x)

    def _run(self, call: Call, weights: dict[str, Tensor]) -> tuple[Tensor, Any]:
        x, ns, begins = call.input, call.lengths, call.resets
        if isinstance(ns, np.ndarray):  # torch's own layers take less time without the last padding
            x, ns = _without_last_padding(x, ns)
        route, stack = self._decide(x, call.state, ns, begins, weights)
        if x.shape[0] < call.sizes.steps:
            if route.by_operators:  # they skip the padding themselves, and write zeros there
                x, ns = call.input, call.lengths
            elif isinstance(begins, np.ndarray):
                begins = begins[: x.shape[0]]
        output, final = layers.run(route, stack, x, call.state, ns, begins)
        if isinstance(call.lengths, np.ndarray) and output.shape[0] < call.sizes.steps:
            output = torch.nn.functional.pad(output, [0, 0, 0, 0, 0, call.sizes.steps - x.shape[0]])
        return call.restore(output, final)

    @property
    def _weights(self) -> dict[str, Tensor]:
        # Reading parameters as attributes takes ten times as long. A weight that is not among the parameters is what a
        # parametrization computes.
        held: dict[str, Any] = self._parameters
        if tuple(held) == self._names:
            return held
        return {name: held[name] if name in held else getattr(self, name) for name in self._names}

    def _decide(
        self, x: Tensor, state: State | None, lengths: Lengths, resets: Resets, weights: dict[str, Tensor]
    ) -> tuple[Route, Stack]:
        """How a call over `(T, B, I)` is computed, and what layers it has."""
        tensors = (x, *(state or ()), *weights.values())
        needs_grad = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        native_can = self._has_native and not dispatch.is_batched(lengths, *tensors)
        route = dispatch.route(self.kernel, self.spec, x, lengths, resets, native_can=native_can, needs_grad=needs_grad)
        training = self.training or (needs_grad and native.needs_training_flag(x))
        dropout = self.dropout if self.training else 0.0
        return route, Stack(self.spec, weights, dropout, training, needs_grad)

    def _run_packed_sequence(
        self, sequence: PackedSequence, hx: Any, seq_length: Any, resets: Any
    ) -> tuple[PackedSequence, Any]:
        spec, weights = self.spec, self._weights
        if resets is not None:
            raise ArgumentError("resets: given with a PackedSequence; give the padded input and seq_length")
        if seq_length is not None:
            raise ArgumentError("seq_length: given with a PackedSequence, which holds its own lengths; leave it out")
        data, batch_sizes, order, inverse = sequence
        steps, batch_size = len(batch_sizes), int(batch_sizes[0])
        # A view with the shape that the padded input would have, by which the arguments are checked.
        leading = (batch_size, steps) if spec.batch_first else (steps, batch_size)
        like = Tensor, _dtype(weights, data, *_parts(hx))
        call = prepare(spec, Arguments(data[:1].expand(*leading, -1), hx), like=like)
        state = call.state
        if state is None:
            size: Any = batch_sizes[0] if dispatch.is_jit_tracing() else batch_size
            state = tuple(data.new_zeros(shape) for shape in spec.state_shapes(size).values())
        elif order is not None:
            state = tuple(part.index_select(1, order) for part in state)
        ns = _lengths_of(batch_sizes)
        route, stack = self._decide(call.input, state, ns, None, weights)
        if route is Route.REFERENCE or route.by_operators or spec.reverse:
            padded, _ = pad_packed_sequence(PackedSequence(data, batch_sizes))
            padded, final = layers.run(route, stack, padded, state, ns, None)
            lengths = ns if isinstance(ns, Tensor) else torch.from_numpy(ns)
            output = pack_padded_sequence(padded, lengths).data
        else:
            output, *parts = native.NATIVE[self.mode](data, batch_sizes, join_state(state), *stack.native_arguments())
            final = tuple(parts)
        if inverse is not None:
            final = tuple(part.index_select(1, inverse) for part in final)
        return PackedSequence(output, batch_sizes, order, inverse), join_state(final)


def _lengths_of(batch_sizes: Tensor) -> NDArray[np.int64] | Tensor:
    """`(B,)`: the lengths of a packed sequence, the longest first; in a trace a tensor, since others will follow."""
    if dispatch.is_jit_tracing():
        size: Any = batch_sizes[0]
        return (torch.arange(size, device=batch_sizes.device).unsqueeze(1) < batch_sizes).sum(1)
    lengths: NDArray[np.int64] = (np.arange(int(batch_sizes[0]))[:, None] < batch_sizes.numpy()).sum(axis=1)
    return lengths


def _parts(state: Any) -> tuple[Any, ...]:
    """Whatever was given as a state, before it is checked."""
    return () if state is None else tuple(state) if isinstance(state, (tuple, list)) else (state,)


def _dtype(weights: dict[str, Tensor], *arrays: Any) -> torch.dtype | None:
    """The dtype that arrays must have; None for any floating one, under autocast, where the native call casts them."""
    own = weights["weight_ih_l0"].dtype
    for t in arrays:
        if isinstance(t, Tensor) and t.dtype != own and native.autocast_is_on(t.device.type):
            return None
    return own


def _without_last_padding(x: Tensor, lengths: NDArray[np.int64]) -> tuple[Tensor, NDArray[np.int64] | None]:
    """`(T, B, I)` up to the longest sequence; if that leaves no padding, the lengths are None."""
    values = lengths.tolist()  # for few numbers, Python's min and max are faster than NumPy's
    shortest, longest = (min(values), max(values)) if values else (0, 0)
    steps = max(longest, 1)
    return x[:steps] if steps < x.shape[0] else x, None if shortest == longest > 0 else lengths


def read_lengths(seq_length: Any, sizes: Sizes) -> NDArray[np.int64] | Tensor:
    """Check the lengths, whatever they come in: `(B,)`.

    They are read on the host. In a graph and in `torch.jit.trace` they stay a tensor, since other lengths will follow;
    then only the operators check the values, when they run. They also stay a tensor where `torch.func.vmap` runs over
    them, with several values for each sequence.
    """
    if torch.compiler.is_compiling() or dispatch.is_jit_tracing():
        values = torch.as_tensor(seq_length)
        check_lengths(tuple(values.shape), short_name(values.dtype), sizes)
        return values.to(torch.int64).reshape(-1)
    if isinstance(seq_length, Tensor):
        check_lengths(tuple(seq_length.shape), short_name(seq_length.dtype), sizes)
        if dispatch.is_batched(seq_length):
            values = dispatch.unwrapped(seq_length).flatten()
            parse_lengths(values.tolist(), Sizes(sizes.steps, len(values)))
            return seq_length.to(torch.int64).reshape(-1)
        # Not by `numpy`, which does not work under the gradients of torch.func.
        seq_length = np.array(seq_length.tolist(), short_name(seq_length.dtype))
    return parse_lengths(seq_length, sizes)


def read_resets(resets: Any, sizes: Sizes, batch_first: bool) -> NDArray[np.bool_] | Tensor | None:
    """Check the resets, whatever they come in: `(T, B)`.

    They are read on the host, except where they can't be: in a graph, in `torch.jit.trace`, and under the transforms of
    torch.func.
    """
    if dispatch.hides_values():
        values = resets if isinstance(resets, Tensor) else torch.from_numpy(np.array(resets))
        check_resets(tuple(values.shape), short_name(values.dtype), sizes, batch_first)
        if sizes.batch_size is None:
            return values.unsqueeze(1)
        return values.t() if batch_first else values
    if isinstance(resets, Tensor):
        check_resets(tuple(resets.shape), short_name(resets.dtype), sizes, batch_first)
        resets = resets.cpu().numpy()
    return parse_resets(resets, sizes, batch_first)
