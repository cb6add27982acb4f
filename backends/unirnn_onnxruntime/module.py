"""The module that the ``onnxruntime`` backend builds."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from unirnn import Device, RecurrentSpec
from unirnn.contract.call import Call
from unirnn.contract.module import Module
from unirnn.contract.sequences import sequences
from unirnn.errors import ArgumentError, DeviceError
from unirnn.files.onnx_writer import emit

__all__ = ["PROVIDERS", "OnnxRuntimeModule"]

Array = NDArray[Any]

PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider", "ascend": "CANNExecutionProvider"}
"""The execution provider of each kind of device."""


class OnnxRuntimeModule(Module):
    """A stack of recurrent layers in sessions of ONNX Runtime.

    There are two graphs, with ``seq_length`` and without. The one without is up to a quarter faster, and runs whatever
    it can: also sequences that are all of one length, such as a single one. A session is made at the first call that
    needs it, and so after unpickling, copying and a change of the weights.

    Parameters
    ----------
    spec
        The spec of the layers.
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
        self, spec: RecurrentSpec, weights: Mapping[str, Array], device: Device, session_options: Mapping[str, Any]
    ) -> None:
        super().__init__(spec)
        self._device = device
        _options(session_options)
        self._session_options = dict(session_options)
        self._inputs = ("input", *(f"{name}_0" for name in spec.states))
        self._outputs = ("output", *(f"{name}_n" for name in spec.states))
        self._dtype = weights["weight_ih_l0"].dtype
        self._last_signature: tuple[Any, ...] | None = None
        self._last_zeros: tuple[int | None, dict[str, Array]] = None, {}
        self.replace(weights)
        if device.kind != "cpu":
            self._dense = self._session(lengths=False)  # now, since only this tells whether the device is there

    def __reduce__(self) -> Any:  # a session can't be pickled or copied
        arguments = (self.spec, self._weights, self._device, self._session_options)
        return type(self), arguments, {"training": self.training}

    @property
    def weights(self) -> Mapping[str, Array]:
        """The weights by name, read-only: a session has its own. `unirnn.load_weights` replaces them."""
        return MappingProxyType(self._weights)

    def replace(self, weights: Mapping[str, Array]) -> None:
        """Take a copy of other weights, of the same names, shapes and dtype."""
        self._weights: dict[str, Array] = {name: array.copy() for name, array in weights.items()}
        for array in self._weights.values():
            array.flags.writeable = False
        for made in ("_dense", "_ragged"):
            vars(self).pop(made, None)

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

    def _prepare(self, input: Any, hx: Any, seq_length: Any, resets: Any, aliases: dict[str, Any]) -> Call:
        call = super()._prepare(input, hx, seq_length, resets, aliases)
        if not aliases and call.sizes.batch_size:  # neither unbatched nor empty
            self._last_signature = _signature(input, hx)
        return call

    def _run(self, call: Call) -> tuple[Any, tuple[Any, ...]]:
        x, ns = call.input, call.lengths
        steps, batch_size, _ = x.shape
        state = tuple(self._zeros(batch_size).values()) if call.state is None else call.state
        if call.resets is not None:
            return self._run_sequences(call._replace(state=state))
        feeds = dict(zip(self._inputs, (x, *state), strict=True))
        numbers = {steps} if ns is None else set(ns.tolist())
        if batch_size == 0:
            numbers = {0}  # ONNX Runtime's GRU and LSTM end the process
        if len(numbers) == 1:
            return self._run_first(numbers.pop(), feeds)
        output, *final = self._ragged.run(self._outputs, {**feeds, "seq_length": ns})
        return output, tuple(final)

    def _run_sequences(self, call: Call) -> tuple[Array, tuple[Array, ...]]:
        """Run the sequences that resets make as columns of their own."""
        spec, x, state = self.spec, call.input, call.state or ()
        directions = np.arange(len(spec.suffixes())) % spec.num_directions
        steps, batch_size, _ = x.shape
        output = np.zeros((steps, batch_size, spec.num_directions * spec.hidden_size), self._dtype)
        final = tuple(part.copy() for part in state)
        found = sequences(steps, batch_size, call.lengths, call.resets)
        for one in map(found.select, found.groups()):
            step = np.arange(max(1, one.lengths.max()))[:, None]
            valid = step < one.lengths
            step, column = np.broadcast_arrays(np.minimum(one.begins + step, steps - 1), one.columns)
            rows, has_initial = one.initial(directions)
            begin = tuple(np.where(has_initial[..., None], _rows(part)[rows], 0).astype(self._dtype) for part in state)
            columns = call._replace(input=x[step, column], state=begin, lengths=one.lengths, resets=None)
            results, ends = self._run(columns)
            output[step[valid], column[valid]] = results[valid]
            source, target = one.final(directions)
            for part, end in zip(final, ends, strict=True):
                _rows(part)[target] = _rows(end)[source]
        return output, final

    def _run_first(self, n: int, feeds: dict[str, Array]) -> tuple[Array, tuple[Array, ...]]:
        """Run sequences that all have n steps by the graph without lengths."""
        x, *state = feeds.values()
        if n == len(x):
            output, *final = self._dense.run(self._outputs, feeds)
            return output, tuple(final)
        output = np.zeros((*x.shape[:-1], self.spec.num_directions * self.spec.hidden_size), self._dtype)
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

    @cached_property
    def _dense(self) -> Any:
        """The session of the graph without lengths."""
        return self._session(lengths=False)

    @cached_property
    def _ragged(self) -> Any:
        """The session of the graph with lengths."""
        return self._session(lengths=True)

    def _session(self, *, lengths: bool) -> Any:
        time_major = replace(self.spec, batch_first=False)
        model = emit(time_major, self._weights, lengths=lengths).SerializeToString()
        return _session(model, self._device, self._session_options)


def _rows(array: Array) -> Array:
    """`(L*D, B, H)` to `(L*D*B, H)`."""
    return array.reshape(-1, array.shape[2])


def _signature(input: Any, hx: Any) -> tuple[Any, ...] | None:
    """What the checks of a call look at; None for what is no array, or no pair of arrays."""
    try:
        if hx is None:
            return type(input), input.shape, input.dtype
        if type(hx) is tuple:
            h, c = hx
            return type(input), input.shape, input.dtype, type(h), h.shape, h.dtype, type(c), c.shape, c.dtype
        return type(input), input.shape, input.dtype, type(hx), hx.shape, hx.dtype
    except (AttributeError, ValueError):
        return None


def _options(given: Mapping[str, Any]) -> Any:
    if not isinstance(given, Mapping):
        raise ArgumentError(
            f"session_options: given {given!r}, expected a mapping such as {{'intra_op_num_threads': 1}}"
        )
    options = onnxruntime.SessionOptions()
    for name, value in given.items():
        try:
            setattr(options, name, value)
        except (AttributeError, TypeError) as error:
            raise ArgumentError(
                f"session_options: given {name}={value!r}, expected what onnxruntime.SessionOptions takes: {error}"
            ) from None
    return options


def _session(model: bytes, device: Device, session_options: Mapping[str, Any]) -> Any:
    provider = PROVIDERS[device.kind]
    settings = {} if device.kind == "cpu" else {"device_id": str(device.index or 0)}
    session = onnxruntime.InferenceSession(model, _options(session_options), providers=[(provider, settings)])
    if provider not in session.get_providers():  # ONNX Runtime warns, and goes on without it
        raise DeviceError(f"device: given {str(device)!r}, but onnxruntime could not use its {provider}")
    return session
