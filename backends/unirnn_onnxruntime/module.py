"""The module that the ``onnxruntime`` backend builds."""

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from unirnn import Device, RecurrentSpec
from unirnn.contract.call import Sizes, bind, check, lengths, state_parts
from unirnn.errors import ArgumentError, DeviceError
from unirnn.files.onnx_writer import emit

__all__ = ["PROVIDERS", "OnnxRuntimeModule"]

Array = NDArray[Any]

PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider", "ascend": "CANNExecutionProvider"}
"""The execution provider of each kind of device."""


class OnnxRuntimeModule:
    """A stack of recurrent layers in sessions of ONNX Runtime.

    There are two graphs, with ``seq_length`` and without. The one without is up to a quarter faster, and runs whatever
    it can: also sequences that are all of one length, such as a single one. A session is made at the first call that
    needs it, and so after unpickling, copying and a change of the weights.

    Parameters
    ----------
    spec
        What it is.
    weights
        By the names of `unirnn.Spec.weight_shapes`; copied.
    device
        Whose execution provider the sessions run on.
    session_options
        Attributes of ``onnxruntime.SessionOptions`` and their values.

    Attributes
    ----------
    spec
        What it is.
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
        self.spec = spec
        self.training = False
        self._device = device
        _options(session_options)
        self._session_options = dict(session_options)
        self._inputs = ("input", *(f"{name}_0" for name in spec.states))
        self._outputs = ("output", *(f"{name}_n" for name in spec.states))
        self._dtype = weights["weight_ih_l0"].dtype
        self._last_checked: tuple[tuple[Any, ...] | None, Sizes] = None, Sizes(0, None)
        self._last_zeros: tuple[int | None, dict[str, Array]] = None, {}
        self.replace(weights)
        if device.kind != "cpu":
            self._dense = self._session(lengths=False)  # now, since only this tells whether the device is there

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r})"

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
            self.__dict__.pop(made, None)

    def train(self, mode: bool = True) -> "OnnxRuntimeModule":
        """Note the mode; ONNX Runtime infers only, and applies no dropout in either."""
        self.training = mode
        return self

    def eval(self) -> "OnnxRuntimeModule":
        """Note the mode; see `train`."""
        return self.train(False)

    def __call__(self, input: Any = None, hx: Any = None, seq_length: Any = None, **aliases: Any) -> Any:
        """Run the layers.

        Parameters
        ----------
        input
            `(T, B, I)`, `(B, T, I)` if ``batch_first``, or `(T, I)`; of the weights' dtype. Also ``x``.
        hx
            Initial state, `(L*D, B, H)`, or `(L*D, H)`; for LSTM a pair. None is zeros. Also ``h_0``.
        seq_length
            `(B,)` integers, ``0 <= n <= T``; see `unirnn.contract.call`. None is T for every sequence.

        Returns
        -------
        output
            As the input, with D*H on the last axis; zero from step n on.
        h_n
            The final state; for LSTM ``(h_n, c_n)``.
        """
        # What `check` looks at; where it is as in the last call that passed, that is enough. In a call of one step the
        # checks take a sixth of the time, and each function that is called here a hundredth, so they stand in line.
        looks: tuple[Any, ...]
        try:
            if hx is None:
                looks = type(input), input.shape, input.dtype
                feeds = {"input": input}
            elif type(hx) is tuple:
                h, c = hx
                looks = type(input), input.shape, input.dtype, type(h), h.shape, h.dtype, type(c), c.shape, c.dtype
                feeds = {"input": input, "h_0": h, "c_0": c}
            else:
                looks = type(input), input.shape, input.dtype, type(hx), hx.shape, hx.dtype
                feeds = {"input": input, "h_0": hx}
        except (AttributeError, ValueError):  # no array, or no pair
            looks, feeds = (), {}
        last_looks, sizes = self._last_checked
        if looks != last_looks or aliases:
            input, hx, seq_length = bind(self.spec, input, hx, seq_length, aliases)
            feeds, sizes = self._checked(input, hx)
        if hx is None:
            feeds.update(self._zeros(sizes.batch_size))
        if seq_length is None and sizes.batch_size:
            found = self._dense.run(self._outputs, feeds)
        else:
            found = self._run(feeds, None if seq_length is None else lengths(seq_length, sizes), sizes)
        return found[0], found[1] if len(found) == 2 else tuple(found[1:])

    def _checked(self, input: Any, hx: Any) -> tuple[dict[str, Array], Sizes]:
        """What to feed, and T and B, once it has passed the checks; remembers what it looks like."""
        state = state_parts(self.spec, hx)
        sizes = check(self.spec, np.ndarray, self._dtype, input, state)
        arrays = (input,) if state is None else (input, *state)
        looks = tuple(look for array in arrays for look in (type(array), array.shape, array.dtype))
        self._last_checked = looks, sizes
        return dict(zip(self._inputs, arrays, strict=False)), sizes

    def _run(self, feeds: dict[str, Array], ns: NDArray[np.int64] | None, sizes: Sizes) -> list[Array]:
        """Output and final state of what is unbatched or empty, or has lengths."""
        unbatched = sizes.batch_size is None
        if unbatched:
            feeds = {name: array[:, None] for name, array in feeds.items()}
            if self.spec.batch_first:
                feeds["input"] = feeds["input"].swapaxes(0, 1)
        numbers = {sizes.steps} if ns is None else set(ns.tolist())
        if sizes.batch_size == 0:
            numbers = {0}  # ONNX Runtime's GRU and LSTM end the process
        if len(numbers) == 1:
            output, *final = self._run_first(numbers.pop(), feeds)
        else:
            output, *final = self._ragged.run(self._outputs, {**feeds, "seq_length": ns})
        if unbatched:
            output, final = output.squeeze(0 if self.spec.batch_first else 1), [part[:, 0] for part in final]
        return [output, *final]

    def _run_first(self, n: int, feeds: dict[str, Array]) -> list[Array]:
        """Output and final state of sequences that all have n steps, by the graph without lengths."""
        input, *state = feeds.values()
        axis = 1 if self.spec.batch_first else 0
        found: list[Array]
        if n == input.shape[axis]:
            found = self._dense.run(self._outputs, feeds)
            return found
        output = np.zeros((*input.shape[:-1], self.spec.num_directions * self.spec.hidden_size), self._dtype)
        if n == 0:
            return [output, *(part.copy() for part in state)]
        first = (slice(None),) * axis + (slice(n),)
        output[first], *final = self._dense.run(self._outputs, {**feeds, "input": input[first]})
        return [output, *final]

    def _zeros(self, batch_size: int | None) -> dict[str, Array]:
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
        model = emit(self.spec, self._weights, lengths=lengths).SerializeToString()
        return _session(model, self._device, self._session_options)


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
