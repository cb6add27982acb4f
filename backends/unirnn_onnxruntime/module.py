"""The module that the ``onnxruntime`` backend builds."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from unirnn import Device, Spec
from unirnn.call import bind, check, join_state, lengths, state_parts
from unirnn.errors import ArgumentError, DeviceError
from unirnn.onnx_graph import emit

__all__ = ["PROVIDERS", "OnnxRuntimeModule"]

Array = NDArray[Any]

PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider", "ascend": "CANNExecutionProvider"}
"""The execution provider of each kind of device."""


class OnnxRuntimeModule:
    """A stack of recurrent layers in sessions of ONNX Runtime.

    There are two graphs, with ``seq_length`` and without: the one without is up to a fifth faster. A session is made
    at the first call that needs it, and so after unpickling, copying and a change of the weights.

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
        self, spec: Spec, weights: Mapping[str, Array], device: Device, session_options: Mapping[str, Any]
    ) -> None:
        self.spec = spec
        self.training = False
        self._device = device
        _options(session_options)
        self._session_options = dict(session_options)
        self._inputs = ("input", *(f"{name}_0" for name in spec.states))
        self._outputs = ("output", *(f"{name}_n" for name in spec.states))
        self._weights: dict[str, Array] = {}
        self._sessions: dict[bool, Any] = {}
        self._last_zeros: tuple[int | None, tuple[Array, ...]] | None = None
        self.replace(weights)
        if device.kind != "cpu":
            self._session(lengths=True)  # now, since only this tells whether the device is there

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
        self._weights = {name: array.copy() for name, array in weights.items()}
        for array in self._weights.values():
            array.flags.writeable = False
        self._sessions = {}

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
            `(B,)` integers, ``0 <= n <= T``; see `unirnn.call`. None is T for every sequence.

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
        dtype = self._weights["weight_ih_l0"].dtype
        sizes = check(spec, np.ndarray, dtype, input, state)
        ns = None if seq_length is None else lengths(seq_length, sizes)
        if state is None:
            state = self._zeros(sizes.batch_size)
        if sizes.batch_size == 0:  # ONNX Runtime's GRU and LSTM end the process
            output = np.zeros((*input.shape[:-1], spec.num_directions * spec.hidden_size), dtype)
            return output, join_state([part.copy() for part in state])
        axis = 0 if spec.batch_first else 1
        unbatched = sizes.batch_size is None
        if unbatched:
            input, state = np.expand_dims(input, axis), tuple(part[:, None] for part in state)
        feeds = dict(zip(self._inputs, (input, *state), strict=True))
        if ns is not None:
            feeds["seq_length"] = ns
        output, *final = self._session(lengths=ns is not None).run(self._outputs, feeds)
        if unbatched:
            output, final = output.squeeze(axis), [part[:, 0] for part in final]
        return output, join_state(final)

    def _zeros(self, batch_size: int | None) -> tuple[Array, ...]:
        """A state of zeros, kept for the next call, since to make it takes as long as a step of a small layer."""
        last = self._last_zeros
        if last is None or last[0] != batch_size:
            dtype = self._weights["weight_ih_l0"].dtype
            zeros = tuple(np.zeros(shape, dtype) for shape in self.spec.state_shapes(batch_size).values())
            last = self._last_zeros = batch_size, zeros
        return last[1]

    def _session(self, *, lengths: bool) -> Any:
        if lengths not in self._sessions:
            model = emit(self.spec, self._weights, lengths=lengths).SerializeToString()
            self._sessions[lengths] = _session(model, self._device, self._session_options)
        return self._sessions[lengths]


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
