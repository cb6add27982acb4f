"""The sessions of ONNX Runtime in which modules and models run."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from unirnn import Device
from unirnn.contract.sequences import sequences
from unirnn.errors import ArgumentError, DeviceError
from unirnn.files.onnx_writer import emit
from unirnn.specs import Spec

__all__ = ["PROVIDERS", "WithSessions", "run_sequences"]

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
        """Take what the constructor was given besides the spec."""
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


def run_sequences(
    x: Array,
    state: Sequence[Array],
    lengths: Array | None,
    resets: Array,
    directions: Sequence[Array],
    run: Callable[[Array, Sequence[Array], Array], tuple[Array, Sequence[Array]]],
) -> tuple[Array, tuple[Array, ...]]:
    """Run the sequences that resets make as columns of their own.

    Parameters
    ----------
    x
        `(T, B, ...)`.
    state
        The parts of the initial state, `(L*D, B, H)` each.
    lengths, resets
        `(B,)`, checked, or None; `(T, B)`, checked.
    directions
        `(L*D,)` for each part; see `unirnn.contract.sequences.Sequences.initial`.
    run
        Gives the output and the final state for columns of other numbers of steps, with their lengths.

    Returns
    -------
    output
        `(T, B, F)`, zero in the padding.
    state
        The parts of the final state.
    """
    steps, batch_size = x.shape[:2]
    output = np.empty(0)
    final = tuple(part.copy() for part in state)
    found = sequences(steps, batch_size, lengths, resets)
    for one in map(found.select, found.groups()):
        step = np.arange(max(1, one.lengths.max()))[:, None]
        valid = step < one.lengths
        step, column = np.broadcast_arrays(np.minimum(one.begins + step, steps - 1), one.columns)
        begin = []
        for part, direction in zip(state, directions, strict=True):
            rows, has_initial = one.initial(direction)
            begin.append(np.where(has_initial[..., None], _rows(part)[rows], 0).astype(part.dtype))
        results, ends = run(x[step, column], begin, one.lengths)
        if not output.size:
            output = np.zeros((steps, batch_size, results.shape[-1]), results.dtype)
        output[step[valid], column[valid]] = results[valid]
        for part, end, direction in zip(final, ends, directions, strict=True):
            source, target = one.final(direction)
            _rows(part)[target] = _rows(end)[source]
    return output, final


def _rows(array: Array) -> Array:
    """`(L*D, B, H)` to `(L*D*B, H)`."""
    return array.reshape(-1, array.shape[2])


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
