"""What a file holds, described without its data: arrays by name, and the recurrent layers that they make."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.contract.weights import check
from unirnn.devices import plain_name
from unirnn.errors import ArgumentError, DTypeError, FileError, SpecError, UnirnnError
from unirnn.files.header import FORMAT
from unirnn.snapshots import state_dicts
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import Spec

__all__ = ["Contents", "Layer", "Stored", "floats", "of_snapshot", "of_state_dict", "stored"]

Array = NDArray[Any]

_DTYPES = ("float16", "float32", "float64")


@dataclass(frozen=True)
class Layer:
    """A recurrent layer in a file.

    Parameters
    ----------
    spec
        What it is, or the error that says why that is not known.
    weights
        Shape of each of its weights, and dtype once it is read, which is float32 for bfloat16; under their canonical
        names. Of a layer without a spec, none.
    """

    spec: Spec | UnirnnError
    weights: Mapping[str, tuple[tuple[int, ...], str]]

    @property
    def num_weights(self) -> int:
        """How many numbers the weights hold."""
        return sum(math.prod(shape) for shape, _ in self.weights.values())

    @property
    def num_bytes(self) -> int:
        """How many bytes they take once they are read."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.weights.values())


@dataclass(frozen=True)
class Contents:
    """What a file says that it holds.

    Parameters
    ----------
    format
        The file's, ``"safetensors"``, ``"onnx"``, ``"npz"``, ``"torch"`` or ``"mindspore"``.
    version
        Of unirnn's format; None of somebody else's file.
    layers
        The recurrent layers by their prefixes; in a snapshot one, whose prefix is empty.
    read
        Takes a prefix and a spec, and reads the layer, as `load` does.
    """

    format: str
    version: int | None
    layers: Mapping[str, Layer]
    read: Callable[[str | None, Spec | None], Snapshot]


@dataclass(frozen=True)
class Stored:
    """An array that a file claims to hold.

    Parameters
    ----------
    dtype
        What it has once it is read, by unirnn's name; the file's own name for one that no layer has.
    shape
        Of the array.
    read
        Reads it.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array]


def stored(array: Array) -> Stored:
    """An array that is there already."""
    return Stored(plain_name(array.dtype), array.shape, lambda: array)


def floats(dtype: str, data: bytes) -> Array:
    """Little-endian bytes as floats `(N,)`; bfloat16, which NumPy lacks, as float32, whose upper half it is.

    Examples
    --------
    >>> floats("bfloat16", bytes([0x80, 0x3F, 0x00, 0xC0]))
    array([ 1., -2.], dtype=float32)
    """
    if dtype == "bfloat16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<"))


def _taken(arrays: Mapping[str, Stored], prefix: str, spec: Spec) -> Snapshot:
    _layer(arrays, prefix, spec)
    return Snapshot(spec, {name: arrays[prefix + name].read() for name in spec.weight_shapes()})


def _layer(arrays: Mapping[str, Stored], prefix: str, spec: Spec) -> Layer:
    """What the arrays of a layer are, if they are floats."""
    weights = {name: arrays[prefix + name] for name in spec.weight_shapes()}
    for name, array in weights.items():
        if array.dtype not in _DTYPES:
            raise DTypeError(f"weights[{prefix + name!r}]: given dtype {array.dtype}, expected {', '.join(_DTYPES)}")
    return Layer(spec, {name: (array.shape, array.dtype) for name, array in weights.items()})


def of_state_dict(format: str, arrays: Mapping[str, Stored]) -> Contents:
    """Somebody else's arrays by name."""
    shapes = {name: array.shape for name, array in arrays.items()}

    def read(prefix: str | None, spec: Spec | None) -> Snapshot:
        return _taken(arrays, *state_dicts.choose(shapes, prefix=prefix, spec=spec))

    layers: dict[str, Layer] = {}
    for prefix, spec in state_dicts.layers(shapes).items():
        try:
            layers[prefix] = _layer(arrays, prefix, spec) if isinstance(spec, Spec) else Layer(spec, {})
        except DTypeError as error:
            layers[prefix] = Layer(error, {})
    return Contents(format, None, layers, read)


def of_snapshot(format: str, spec: Spec, arrays: Mapping[str, Stored]) -> Contents:
    """Arrays that are said to be those of a spec."""
    # The spec's names are as many as its layers, which may be any number: first, are there so many?
    if spec.num_layers * spec.num_directions > len(arrays):
        raise FileError(f"unirnn: given {spec!r}, but the file has {len(arrays)} arrays")
    try:
        check(spec, {name: array.shape for name, array in arrays.items()})
        layer = _layer(arrays, "", spec)
    except UnirnnError as error:
        raise FileError(f"unirnn: given {spec!r}, which doesn't fit the arrays: {error}") from error

    def read(prefix: str | None, given: Spec | None) -> Snapshot:
        if prefix:
            raise ArgumentError(f"prefix: given {prefix!r}, but the file is a snapshot, of one layer without a prefix")
        if given is not None and not given.fits(spec):
            raise SpecError(f"spec: given {given!r}, but the file says {spec!r}")
        return _taken(arrays, "", given or spec)

    return Contents(format, FORMAT, {"": layer}, read)
