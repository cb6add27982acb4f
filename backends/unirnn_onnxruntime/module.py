"""The modules that the ``onnxruntime`` backend builds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import array_api_compat.numpy as xp
import numpy as np
from numpy.typing import NDArray

from unirnn import Device, RecurrentSpec
from unirnn.contract.call import Arguments, Call
from unirnn.contract.models import ModelCall, ModelModule, clean_tokens, is_batch_first
from unirnn.contract.module import Module
from unirnn.contract.sequences import run_sequences
from unirnn.specs import Spec

from .sessions import WithSessions

__all__ = ["OnnxRuntimeModel", "OnnxRuntimeModule"]

Array = NDArray[Any]


class OnnxRuntimeModule(WithSessions, Module):
    """A stack of recurrent layers in sessions of ONNX Runtime.

    There are two graphs, with ``seq_length`` and without. The one without is up to a quarter faster, and runs whatever
    it can: also sequences that are all of one length, such as a single one.

    Parameters
    ----------
    spec
        The spec of the layers.
    dtype
        The name of the dtype of the weights.
    weights
        By the names of `unirnn.Spec.weight_shapes`; copied.
    device
        Whose execution provider the sessions run on.
    session_options
        Attributes of ``onnxruntime.SessionOptions`` and their values.

    Attributes
    ----------
    spec
        The spec of the layers.
    training
        As `train` said; it changes nothing.

    Examples
    --------
    >>> import numpy, unirnn
    >>> gru = unirnn.GRUSpec(3, 4).build("onnxruntime", seed=0, session_options={"intra_op_num_threads": 1})
    >>> output, h_n = gru(numpy.ones((5, 2, 3), "float32"), seq_length=[5, 0])
    >>> output.shape, float(abs(output[:, 1]).max())
    ((5, 2, 4), 0.0)
    """

    def __init__(
        self,
        spec: RecurrentSpec,
        dtype: str,
        weights: Mapping[str, Array],
        device: Device,
        session_options: Mapping[str, Any],
    ) -> None:
        super().__init__(spec)
        self._inputs = ("input", *(f"{name}_0" for name in spec.states))
        self._outputs = ("output", *(f"{name}_n" for name in spec.states))
        self._last_signature: tuple[Any, ...] | None = None
        self._last_zeros: tuple[int | None, dict[str, Array]] = None, {}
        self._start(dtype, weights, device, session_options)

    def __call__(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, **aliases: Any
    ) -> Any:
        # Streaming calls a module with equal shapes and dtypes again and again, and the checks take a sixth of a call
        # of one step. Where all is as in the last call that passed them, they are left out.
        others = aliases or seq_length is not None or resets is not None
        if others or (seen := _signature(input, hx)) is None or seen != self._last_signature:
            return super().__call__(input, hx, seq_length, resets, **aliases)
        output, final = self._run_again(input.swapaxes(0, 1) if self.spec.batch_first else input, hx)
        return output.swapaxes(0, 1) if self.spec.batch_first else output, final

    def step(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        # As in a call. A step may have the shapes of a call that is unbatched.
        seen = _signature(x, state)
        if seen is None or self._last_signature != ("step", seen):
            result = super().step(x, state)
            if x.ndim == 2 and len(x):
                self._last_signature = "step", seen
            return result
        y, final = self._run_again(x[None], state)
        return y[0], final

    step.__doc__ = Module.step.__doc__

    def _run_again(self, input: Array, hx: Any) -> tuple[Array, Any]:
        """Run a call whose arguments need no check, over `(T, B, I)`."""
        if hx is None:
            feeds = {"input": input, **self._zeros(input.shape[1])}
        elif type(hx) is tuple:
            feeds = {"input": input, "h_0": hx[0], "c_0": hx[1]}
        else:
            feeds = {"input": input, "h_0": hx}
        output, *final = self._dense.run(self._outputs, feeds)
        return output, final[0] if len(final) == 1 else tuple(final)

    def _like(self) -> tuple[type[Any], Any]:
        return np.ndarray, self._dtype

    def _prepare(self, given: Arguments) -> Call:
        call = super()._prepare(given)
        if call.sizes.batch_size:  # neither unbatched nor empty
            self._last_signature = _signature(given.input, given.hx)
        return call

    def _run(self, call: Call) -> tuple[Any, tuple[Any, ...]]:
        x, ns = call.input, call.lengths
        batch_size = x.shape[1]
        state = tuple(self._zeros(batch_size).values()) if call.state is None else call.state
        if call.resets is not None and batch_size:
            directions = [_directions(self.spec)] * len(state)
            return run_sequences(xp, self._run_columns, x, state, ns, call.resets, directions)
        return self._run_columns(x, state, ns)

    def _run_columns(self, x: Array, state: Sequence[Array], ns: Array | None) -> tuple[Array, tuple[Array, ...]]:
        """Run columns of one sequence each."""
        feeds = dict(zip(self._inputs, (x, *state), strict=True))
        numbers = {len(x)} if ns is None else set(ns.tolist())
        if x.shape[1] == 0:
            numbers = {0}  # ONNX Runtime's GRU and LSTM end the process
        if len(numbers) == 1:
            return self._run_first(numbers.pop(), feeds)
        output, *final = self._ragged.run(self._outputs, {**feeds, "seq_length": ns})
        return output, tuple(final)

    def _run_first(self, n: int, feeds: dict[str, Array]) -> tuple[Array, tuple[Array, ...]]:
        """Run sequences that all have n steps by the graph without lengths."""
        x, *state = feeds.values()
        if n == len(x):
            output, *final = self._dense.run(self._outputs, feeds)
            return output, tuple(final)
        output = np.zeros((*x.shape[:-1], self.spec.output_features(0)), self._dtype)
        if n == 0:
            return output, tuple(part.copy() for part in state)
        output[:n], *final = self._dense.run(self._outputs, {**feeds, "input": x[:n]})
        return output, tuple(final)

    def _zeros(self, batch_size: int) -> dict[str, Array]:
        """A state of zeros, kept for the next call, since to make it takes as long as a step of a small layer."""
        last_size, zeros = self._last_zeros
        if not zeros or last_size != batch_size:
            shapes = self.spec.state_shapes(batch_size)
            zeros = {f"{name}_0": np.zeros(shape, self._dtype) for name, shape in shapes.items()}
            self._last_zeros = batch_size, zeros
        return zeros

    def _spec_of_graph(self) -> RecurrentSpec:
        spec: RecurrentSpec = replace(self.spec, batch_first=False)
        return spec


class OnnxRuntimeModel(WithSessions, ModelModule):
    """A model, or a layer that is not recurrent, in sessions of ONNX Runtime.

    As in `OnnxRuntimeModule`, the graph without ``seq_length`` runs whatever has no padding.

    Parameters
    ----------
    spec
        The spec of the model.
    dtype, weights, device, session_options
        See `OnnxRuntimeModule`.

    Attributes
    ----------
    spec
        The spec of the model.
    training
        As `train` said; it changes nothing.

    Examples
    --------
    >>> import numpy, unirnn
    >>> spec = unirnn.Sequential(unirnn.GRUSpec(3, 4, batch_first=True), unirnn.PoolSpec("mean"))
    >>> model = spec.build("onnxruntime", seed=0)
    >>> model(numpy.ones((2, 5, 3), "float32"), seq_length=[5, 0]).shape
    (2, 4)
    """

    def __init__(
        self, spec: Spec, dtype: str, weights: Mapping[str, Array], device: Device, session_options: Mapping[str, Any]
    ) -> None:
        super().__init__(spec)
        # A model computes these each time it is asked, and each call needs them.
        self._batch_first, self._stateful = is_batch_first(spec), spec.stateful
        names = [
            f"{layer}.{part}" if layer else part
            for layer, leaf in self._stateful.items()
            for part in leaf.state_shapes(None)
        ]
        self._inputs = ("input", *(f"{name}_0" for name in names))
        self._outputs = ("output", *(f"{name}_n" for name in names))
        self._start(dtype, weights, device, session_options)

    def _like(self) -> tuple[type[Any], Any]:
        return np.ndarray, self._dtype

    def _run(self, call: ModelCall) -> tuple[Array, Sequence[tuple[Array, ...]]]:
        spec = self.spec
        x = clean_tokens(spec, call, call.input) if spec.takes_tokens else call.input
        if call.sizes is None:
            leading = x.shape if spec.takes_tokens else x.shape[:-1]
            y, _ = self._run_columns(x.reshape(1, math.prod(leading), *x.shape[len(leading) :]), (), None)
            return y.reshape(*leading, y.shape[-1]), ()
        axis = 0 if self._batch_first else 1
        state = self._state(call.states, x.shape[axis])
        if call.resets is None or not x.size:
            y, final = self._run_columns(x, state, call.lengths)
            return y, self._states(final)

        def run(x: Array, state: Sequence[Array], lengths: Array) -> tuple[Array, Sequence[Array]]:
            y, final = self._run_columns(x if axis else x.swapaxes(0, 1), state, lengths)
            return y if axis else y.swapaxes(0, 1), final

        x = x if axis else x.swapaxes(0, 1)
        y, final = run_sequences(xp, run, x, state, call.lengths, call.resets, self._directions())
        return y if axis else y.swapaxes(0, 1), self._states(final)

    def _run_step(self, call: ModelCall) -> tuple[Array, Sequence[tuple[Array, ...]]]:
        x = call.input
        y, states = self._run(call._replace(input=x[:, None] if self._batch_first else x[None]))
        return y[:, 0] if self._batch_first else y[0], states

    def _run_columns(self, x: Array, state: Sequence[Array], lengths: Array | None) -> tuple[Array, Sequence[Array]]:
        """Run columns of one sequence each, in the layout of the model."""
        if not x.size:
            return self._run_nothing(x, state)
        feeds = dict(zip(self._inputs, (x, *state), strict=True))
        if lengths is None or (lengths == x.shape[self._batch_first]).all():
            y, *final = self._dense.run(self._outputs, feeds)
        else:
            y, *final = self._ragged.run(self._outputs, {**feeds, "seq_length": lengths})
        return y, final

    def _run_nothing(self, x: Array, state: Sequence[Array]) -> tuple[Array, Sequence[Array]]:
        """Run an empty input: over an input with 2 in place of each size of 0, whose results are cut off again.

        Some nodes of ONNX Runtime end the process when they get an empty array.
        """
        some = [np.zeros([size or 2 for size in array.shape], array.dtype) for array in (x, *state)]
        y, final = self._run_columns(some[0], some[1:], None)
        for axis in range(x.ndim):
            if x.shape[axis] == 0:
                y = y.take(np.arange(0), 0 if self.spec.ends_steps and axis < 2 else axis)
        return y, [part[:, : begin.shape[1]] for part, begin in zip(final, state, strict=True)]

    def _state(self, states: Sequence[tuple[Array, ...] | None], batch_size: int) -> list[Array]:
        """The parts of the state of all layers, one after the other."""
        parts: list[Array] = []
        for leaf, given in zip(self._stateful.values(), states, strict=True):
            shapes = leaf.state_shapes(batch_size).values()
            parts += [np.zeros(shape, self._dtype) for shape in shapes] if given is None else given
        return parts

    def _states(self, parts: Sequence[Array]) -> list[tuple[Array, ...]]:
        """The opposite of `_state`."""
        left = iter(parts)
        return [tuple(next(left) for _ in leaf.state_shapes(None)) for leaf in self._stateful.values()]

    def _directions(self) -> list[Array]:
        """For each part of the state the direction of its rows. A model that takes resets has no other states."""
        layers = [leaf for leaf in self._stateful.values() if isinstance(leaf, RecurrentSpec)]
        return [_directions(leaf) for leaf in layers for _ in leaf.states]


def _directions(spec: RecurrentSpec) -> Array:
    """For each row of the state 0 if its layer and direction runs forward, 1 if in reverse."""
    return np.array([spec.is_reverse(position) for position in range(len(spec.suffixes()))], np.int64)


def _signature(input: Any, hx: Any) -> tuple[Any, ...] | None:
    """Everything that the checks of a call look at; None if an argument is neither an array nor a pair of arrays."""
    try:
        if hx is None:
            return type(input), input.shape, input.dtype
        if type(hx) is tuple:
            h, c = hx
            return type(input), input.shape, input.dtype, type(h), h.shape, h.dtype, type(c), c.shape, c.dtype
        return type(input), input.shape, input.dtype, type(hx), hx.shape, hx.dtype
    except (AttributeError, ValueError):
        return None
