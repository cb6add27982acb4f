"""Reading MindSpore's checkpoints, ``.ckpt``: a protobuf message.

``mindspore.load_checkpoint`` hands what a file says of a shape, unchecked, to code that writes beyond its memory if it
is wrong (2.10: one flipped bit ends the process); so the message is read here, into NumPy's arrays.
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
_CHECKSUM = b"crc_num"  # and ten bytes, at the end of a file that was saved with crc_check=True


def read_checkpoint(path: str) -> dict[str, NDArray[Any]]:
    """The float parameters of a file by name; whatever else is in it is left out. bfloat16 becomes float32.

    Raises
    ------
    FileError
        If the file is altered, or claims more than it has.
    Exception
        Whatever else protobuf raises over a file that is no such message.
    """
    data = Path(path).read_bytes()
    if data[-17:-10] == _CHECKSUM:
        data, checksum = data[:-17], int.from_bytes(data[-10:], "big")
        if zlib.crc32(data) != checksum:
            raise FileError("it is altered: its checksum is another")
    checkpoint = Checkpoint()
    checkpoint.ParseFromString(data)
    del data
    # A large parameter is in several parts, one after the other, each with the whole's shape.
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
