"""Reading and writing ``.safetensors``; see `unirnn.files`."""

import json

import numpy as np
import safetensors.numpy

from unirnn.files._contents import Contents, StoredArray, contents_of_arrays
from unirnn.files._header import reject_duplicates, spec_to_metadata
from unirnn.snapshots.snapshot import Snapshot

__all__ = ["encode", "read"]

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def read(path: str) -> Contents:
    """Describe what a file holds; its arrays are read when they are asked for."""
    # The library checks the sizes: of the header, of each array against its shape, and of the whole file. It does not
    # see names that occur twice, and it can't give NumPy arrays of bfloat16, so header and arrays are read here.
    with safetensors.safe_open(path, framework="np"), open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8), object_pairs_hook=reject_duplicates)
    metadata = header.pop("__metadata__", None) or {}

    def stored(dtype: str, shape: list[int], data_offsets: list[int]) -> StoredArray:
        begin, end = data_offsets

        def read_bytes() -> bytes:
            with open(path, "rb") as file:
                file.seek(start + begin)
                return file.read(end - begin)

        return StoredArray.from_bytes(_DTYPES.get(dtype, dtype), tuple(shape), read_bytes)

    return contents_of_arrays("safetensors", {name: stored(**entry) for name, entry in header.items()}, metadata)


def encode(snapshot: Snapshot) -> bytes:
    """The bytes of a snapshot's file."""
    # The library writes an array's memory as it is, so it has to be contiguous and little-endian.
    arrays = {
        name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in snapshot.weights.items()
    }
    return safetensors.numpy.save(arrays, spec_to_metadata(snapshot.spec))
