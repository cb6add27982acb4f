"""Reading ``.safetensors``; see `unirnn.files`."""

import json

from safetensors import safe_open

from unirnn.files.contents import Array, Contents, Stored, floats, of_snapshot, of_state_dict
from unirnn.files.header import spec_of, unique

__all__ = ["read"]

_DTYPES = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}


def read(path: str) -> Contents:
    """What the file holds."""
    # The library checks the header: its size, that every array has the bytes that its shape needs, one after the other,
    # and that the file ends with the last. It does not see duplicate names, and NumPy has no bfloat16 for it to return.
    with safe_open(path, framework="np"), open(path, "rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(start - 8), object_pairs_hook=unique)
    strings = header.pop("__metadata__", None) or {}

    def stored(dtype: str, shape: list[int], data_offsets: list[int]) -> Stored:
        name, (begin, end) = _DTYPES.get(dtype, dtype), data_offsets

        def read() -> Array:
            with open(path, "rb") as file:
                file.seek(start + begin)
                return floats(name, file.read(end - begin)).reshape(shape)

        return Stored("float32" if name == "bfloat16" else name, tuple(shape), read)

    arrays = {name: stored(**entry) for name, entry in header.items()}
    spec = spec_of(strings)
    if spec is None:
        return of_state_dict("safetensors", arrays)
    return of_snapshot("safetensors", spec, arrays)
