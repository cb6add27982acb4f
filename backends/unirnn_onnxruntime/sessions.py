"""The sessions of ONNX Runtime in which modules and models run."""

from collections.abc import Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from unirnn import Device
from unirnn.errors import ArgumentError, DeviceError
from unirnn.files.onnx_writer import emit
from unirnn.specs import Spec

__all__ = ["PROVIDERS", "WithSessions"]

Array = NDArray[Any]

PROVIDERS = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider", "ascend": "CANNExecutionProvider"}
"""The execution provider of each kind of device."""


class WithSessions:
    """What modules and models have in common: weights, and two sessions that compute with them.

    One session takes ``seq_length``; the other, which is faster, does without. A session is made at the first call that
    needs it, and so after unpickling, copying and a change of the weights.
    """

    spec: Any
    training: bool

    def _start(
        self, dtype: str, weights: Mapping[str, Array], device: Device, session_options: Mapping[str, Any]
    ) -> None:
        """Take the constructor's arguments, except the spec."""
        _options(session_options)
        self._dtype, self._device, self._session_options = np.dtype(dtype), device, dict(session_options)
        self.replace(weights)
        if device.kind != "cpu":
            self._dense = self._session(lengths=False)  # now, since only this tells whether the device is there

    def __reduce__(self) -> Any:  # a session can't be pickled or copied
        arguments = self.spec, self._dtype.name, self._weights, self._device, self._session_options
        return type(self), arguments, {"training": self.training}

    @property
    def dtype(self) -> str:
        """The name of the dtype of the weights."""
        return self._dtype.name

    @property
    def weights(self) -> Mapping[str, Array]:
        """The weights by name, read-only: a session has its own. `unirnn.load_weights` replaces them."""
        return MappingProxyType(self._weights)

    def replace(self, weights: Mapping[str, Array]) -> None:
        """Take a copy of other weights, of the same names and shapes."""
        self._weights: dict[str, Array] = {name: np.array(array, self._dtype) for name, array in weights.items()}
        for array in self._weights.values():
            array.flags.writeable = False
        for made in ("_dense", "_ragged"):
            vars(self).pop(made, None)

    @cached_property
    def _dense(self) -> Any:
        """The session of the graph without lengths."""
        return self._session(lengths=False)

    @cached_property
    def _ragged(self) -> Any:
        """The session of the graph with lengths."""
        return self._session(lengths=True)

    def _spec_of_graph(self) -> Spec:
        """The spec, in the layout in which the sessions take arrays."""
        spec: Spec = self.spec
        return spec

    def _session(self, *, lengths: bool) -> Any:
        model = emit(self._spec_of_graph(), self._weights, lengths=lengths, dtype=self._dtype).SerializeToString()
        provider = PROVIDERS[self._device.kind]
        settings = {} if self._device.kind == "cpu" else {"device_id": str(self._device.index or 0)}
        options = _options(self._session_options)
        session = onnxruntime.InferenceSession(model, options, providers=[(provider, settings)])
        if provider not in session.get_providers():  # ONNX Runtime warns, and goes on without it
            raise DeviceError(f"device: given {str(self._device)!r}, but onnxruntime could not use its {provider}")
        return session


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
