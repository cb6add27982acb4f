"""What a file holds, described without its data: arrays by name, and the recurrent layers that they make up."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from unirnn.contract.weights import Array, check_dtype, check_weights
from unirnn.devices import short_name
from unirnn.errors import ArgumentError, DTypeError, FileError, SpecError, UnirnnError
from unirnn.files._header import FORMAT
from unirnn.snapshots import state_dicts
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import RecurrentSpec

__all__ = ["Contents", "Layer", "StoredArray", "contents_of_snapshot", "contents_of_state_dict", "floats"]


@dataclass(frozen=True)
class Layer:
    """A recurrent layer in a file.

    Parameters
    ----------
    spec
        The layer's spec, or the error that says why it is not known.
    weights
        The shape and dtype of each weight, by the names of `Spec.weight_shapes`; empty if there is no spec. The dtype
        is the one after reading: float32 for bfloat16.
    """

    spec: RecurrentSpec | UnirnnError
    weights: Mapping[str, tuple[tuple[int, ...], str]]

    @property
    def num_weights(self) -> int:
        """How many numbers the weights hold."""
        return sum(math.prod(shape) for shape, _ in self.weights.values())

    @property
    def num_bytes(self) -> int:
        """How many bytes the weights take after reading."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.weights.values())


@dataclass(frozen=True)
class Contents:
    """What a file says that it holds.

    Parameters
    ----------
    format
        ``"safetensors"``, ``"onnx"``, ``"npz"``, ``"torch"`` or ``"mindspore"``.
    version
        The version of unirnn's format; None if another program wrote the file.
    layers
        The recurrent layers by their prefixes. A snapshot has one layer, whose prefix is empty.
    read
        Reads a layer, given a prefix and a spec as in `load`.
    """

    format: str
    version: int | None
    layers: Mapping[str, Layer]
    read: Callable[[str | None, RecurrentSpec | None], Snapshot]


@dataclass(frozen=True)
class StoredArray:
    """An array that a file claims to hold.

    Parameters
    ----------
    dtype
        Its dtype after reading. If weights can't have the dtype, the file's own name for it.
    shape
        Its shape.
    read
        Reads it.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array]

    @classmethod
    def from_array(cls, array: Array) -> "StoredArray":
        """An array that has been read already."""
        return cls(short_name(array.dtype), array.shape, lambda: array)


def floats(dtype: str, data: bytes) -> Array:
    """Decode little-endian floats, `(N,)`. NumPy has no bfloat16, so it becomes float32, whose upper half it is.

    Examples
    --------
    >>> floats("bfloat16", bytes([0x80, 0x3F, 0x00, 0xC0]))
    array([ 1., -2.], dtype=float32)
    """
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))


def contents_of_state_dict(format: str, arrays: Mapping[str, StoredArray]) -> Contents:
    """Describe a file of arrays by name that another program wrote."""
    shapes = {name: array.shape for name, array in arrays.items()}

    def read(prefix: str | None, spec: RecurrentSpec | None) -> Snapshot:
        return _read_layer(arrays, *state_dicts.choose_layer(shapes, prefix=prefix, spec=spec))

    layers: dict[str, Layer] = {}
    for prefix, spec in state_dicts.find_layers(shapes).items():
        try:
            layers[prefix] = Layer(spec, {}) if isinstance(spec, UnirnnError) else _describe(arrays, prefix, spec)
        except DTypeError as error:
            layers[prefix] = Layer(error, {})
    return Contents(format, None, layers, read)


def contents_of_snapshot(format: str, spec: RecurrentSpec, arrays: Mapping[str, StoredArray]) -> Contents:
    """Describe a file whose metadata says that its arrays are the weights of a spec."""
    # A spec may claim any number of layers. Compare it with the number of arrays before listing the names of weights.
    if spec.num_layers * spec.num_directions > len(arrays):
        raise FileError(f"unirnn: given {spec!r}, but the file has {len(arrays)} arrays")
    try:
        check_weights(spec, {name: array.shape for name, array in arrays.items()})
        layer = _describe(arrays, "", spec)
    except UnirnnError as error:
        raise FileError(f"unirnn: given {spec!r}, which doesn't fit the arrays: {error}") from error

    def read(prefix: str | None, given: RecurrentSpec | None) -> Snapshot:
        if prefix:
            raise ArgumentError(f"prefix: given {prefix!r}, but the file is a snapshot, of one layer without a prefix")
        if given is not None and not given.fits(spec):
            raise SpecError(f"spec: given {given!r}, but the file says {spec!r}")
        return _read_layer(arrays, "", given or spec)

    return Contents(format, FORMAT, {"": layer}, read)


def _describe(arrays: Mapping[str, StoredArray], prefix: str, spec: RecurrentSpec) -> Layer:
    """Describe the layer whose arrays have a prefix; a DTypeError if one of them is not of floats."""
    weights = {name: arrays[prefix + name] for name in spec.weight_shapes()}
    for name, array in weights.items():
        check_dtype(prefix + name, array.dtype)
    return Layer(spec, {name: (array.shape, array.dtype) for name, array in weights.items()})


def _read_layer(arrays: Mapping[str, StoredArray], prefix: str, spec: RecurrentSpec) -> Snapshot:
    layer = _describe(arrays, prefix, spec)
    return Snapshot(spec, {name: arrays[prefix + name].read() for name in layer.weights})
