"""Reads MindSpore's checkpoints, ``.ckpt``, which are protobuf messages.

``mindspore.load_checkpoint`` trusts the shapes that a file claims, and writes beyond its memory if one is wrong: in
MindSpore 2.10, one flipped bit ends the process. So the message is read here, into NumPy arrays.
"""

import math
import zlib
from pathlib import Path
from typing import Any

from mindspore.train.checkpoint_pb2 import Checkpoint
from numpy.typing import NDArray

from unirnn.errors import FileError
from unirnn.files import floats

__all__ = ["read_checkpoint"]

_DTYPES = {"Float16": "float16", "BFloat16": "bfloat16", "Float32": "float32", "Float64": "float64"}
_CHECKSUM = b"crc_num"  # followed by ten bytes, at the end of a file saved with crc_check=True


def read_checkpoint(path: str) -> dict[str, NDArray[Any]]:
    """Read the floating parameters of a file by name; everything else is left out. bfloat16 becomes float32.

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
    return {name: _array(name, tensors) for name, tensors in parts.items()}


def _array(name: str, tensors: list[Any]) -> NDArray[Any]:
    first = tensors[0]
    shape = tuple(first.dims) if list(first.dims) != [0] else ()  # as MindSpore writes a scalar
    array = floats(_DTYPES[first.tensor_type], b"".join(tensor.tensor_content for tensor in tensors))
    if min(shape, default=0) < 0 or array.size != math.prod(shape):
        raise FileError(f"{name!r} claims shape {shape}, but has {array.size} numbers")
    return array.reshape(shape)
