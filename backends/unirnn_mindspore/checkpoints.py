"""Reads and writes MindSpore's checkpoints, ``.ckpt``, which are protobuf messages.

``mindspore.load_checkpoint`` trusts the shapes that a file claims, and writes beyond its memory if one is wrong: in
MindSpore 2.10, one flipped bit ends the process. So the message is read here, into NumPy arrays.

What is written has the names and shapes of MindSpore's own layers, so that ``mindspore.load_param_into_net`` loads it
into a network of these. The metadata that says the spec is a field of the message that MindSpore's reader does not
know, and skips.
"""

import math
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mindspore.train.checkpoint_pb2 import Checkpoint
from numpy.typing import NDArray

from unirnn import Spec
from unirnn.contract.backend import Arrays
from unirnn.errors import FileError
from unirnn.files import floats
from unirnn.files._header import spec_from_metadata
from unirnn.snapshots.model_weights import mindspore_names
from unirnn.specs import Conv1dSpec

__all__ = ["encode", "read_checkpoint"]

_DTYPES = {"Float16": "float16", "BFloat16": "bfloat16", "Float32": "float32", "Float64": "float64"}
_CHECKSUM = b"crc_num"  # followed by ten bytes, at the end of a file saved with crc_check=True
_METADATA = b"\xf2\xee\xc9\xab\x07"  # the last field: its number, its length, and JSON, in which no such byte occurs


def encode(spec: Spec, weights: Arrays, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a checkpoint; see `unirnn.contract.backend.Backend.encode_file`."""
    kinds = {dtype: kind for kind, dtype in _DTYPES.items()}
    names = mindspore_names(spec)
    with_axis = set(_convolutions(spec))
    parts = []
    for name, array in weights.items():
        message = Checkpoint()
        value = message.value.add()
        value.tag = names.get(name, name)
        value.tensor.dims.extend((*array.shape[:2], 1, array.shape[2]) if name in with_axis else array.shape)
        value.tensor.tensor_type = kinds[array.dtype.name]
        value.tensor.tensor_content = array.astype(array.dtype.newbyteorder("<")).tobytes()
        parts.append(message.SerializeToString())
    for text in metadata.values():
        content = text.encode("ascii")
        parts.extend((_METADATA, _varint(len(content)), content))
    return b"".join(parts)


def _convolutions(spec: Spec) -> Iterator[str]:
    """The names of weights `(O, I, K)` that MindSpore's layers have as `(O, I, 1, K)`."""
    for layer, leaf in spec.leaves().items():
        if isinstance(leaf, Conv1dSpec):
            yield f"{layer}.weight" if layer else "weight"


def _varint(number: int) -> bytes:
    """A number as protobuf writes it: seven bits a byte, the lowest first, the last one below 128."""
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + _varint(rest) if rest else bytes([low])


def read_checkpoint(path: str) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Read the floating parameters of a file by name, and its metadata; everything else is left out.

    bfloat16 becomes float32. With metadata, the names and shapes are those of the spec, not of MindSpore's layers.

    Raises
    ------
    FileError
        If the file was altered, or a shape does not match its numbers.
    Exception
        Whatever protobuf raises if the file is no such message.
    """
    data = Path(path).read_bytes()
    if data[-17:-10] == _CHECKSUM:
        data, checksum = data[:-17], int.from_bytes(data[-10:], "big")
        if zlib.crc32(data) != checksum:
            raise FileError("it was altered: its checksum does not match")
    checkpoint = Checkpoint()
    checkpoint.ParseFromString(data)
    metadata = _metadata(data)
    del data
    # A large parameter is stored as consecutive parts, each with the shape of the whole.
    parts: dict[str, list[Any]] = {}
    previous = None
    for value in checkpoint.value:
        if value.tensor.tensor_type not in _DTYPES:
            continue
        if value.tag in parts and value.tag != previous:
            raise FileError(f"{value.tag!r} occurs twice")
        previous = value.tag
        parts.setdefault(value.tag, []).append(value.tensor)
    arrays = {name: _array(name, tensors) for name, tensors in parts.items()}
    spec = spec_from_metadata(metadata)
    return (arrays if spec is None else _as_spec(spec, arrays)), metadata


def _metadata(data: bytes) -> dict[str, str]:
    """What `encode` wrote at the end of a file, if it did."""
    at = data.rfind(_METADATA)
    rest = data[at + len(_METADATA) :] if at >= 0 else b""
    for count in range(1, 6):
        if rest and rest[:count] == _varint(len(rest) - count):
            return {"unirnn": rest[count:].decode("ascii")}
    return {}


def _as_spec(spec: Spec, arrays: Arrays) -> dict[str, NDArray[Any]]:
    """The arrays by the names, and in the shapes, of the spec."""
    own = {theirs: ours for ours, theirs in mindspore_names(spec).items()}
    named = {own.get(name, name): array for name, array in arrays.items()}
    with_axis = {name for name in _convolutions(spec) if name in named and named[name].shape[2:3] == (1,)}
    return {name: array[:, :, 0] if name in with_axis else array for name, array in named.items()}


def _array(name: str, tensors: list[Any]) -> NDArray[Any]:
    first = tensors[0]
    shape = tuple(first.dims) if list(first.dims) != [0] else ()  # as MindSpore writes a scalar
    array = floats(_DTYPES[first.tensor_type], b"".join(tensor.tensor_content for tensor in tensors))
    if min(shape, default=0) < 0 or array.size != math.prod(shape):
        raise FileError(f"{name!r} claims shape {shape}, but has {array.size} numbers")
    return array.reshape(shape)
