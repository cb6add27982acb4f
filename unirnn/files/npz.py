"""Writing ``.npz``, and reading it without NumPy's own reader, which trusts the headers in it; see `unirnn.files`.

A snapshot's file has one member more than weights, ``unirnn``, with the metadata as ASCII bytes.
"""

import io
import math
import os
import re
import zipfile
from typing import IO, Any

import numpy as np

from unirnn.contract.weights import Array
from unirnn.devices import DTYPES
from unirnn.errors import FileError
from unirnn.files._contents import MAX_RATIO, Contents, StoredArray, contents_of_arrays, most_bytes
from unirnn.files._header import spec_to_metadata
from unirnn.snapshots.snapshot import Snapshot

__all__ = ["encode", "read"]

_LONGEST_NPY_HEADER = 1 << 16
_METADATA = "unirnn"


def read(path: str) -> Contents:
    """Describe what a file holds; its arrays are read when they are asked for."""
    size = os.path.getsize(path)
    arrays: dict[str, StoredArray] = {}
    with zipfile.ZipFile(path) as archive:
        if len(archive.infolist()) != _num_members(path):
            raise FileError("its directory is altered: it does not list as many members as it says")
        for info in archive.infolist():
            name, suffix = os.path.splitext(info.filename)
            if suffix != ".npy":
                continue
            if name in arrays:
                raise FileError(f"{name!r} occurs twice")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise FileError(f"{name!r} is compressed in a way that NumPy does not write")
            if info.compress_size > size or (
                info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size
            ):
                raise FileError(f"{name!r} claims {info.file_size} bytes, more than the file has")
            with archive.open(info) as member:
                arrays[name] = _npy(path, name, info, member)
    claimed = sum(np.dtype(a.dtype).itemsize * math.prod(a.shape) for a in arrays.values() if a.dtype in DTYPES)
    if claimed > most_bytes(size):
        raise FileError(f"its arrays claim {claimed} bytes, more than {MAX_RATIO} times the file's {size}")
    metadata: dict[str, str] = {}
    if _METADATA in arrays and arrays[_METADATA].dtype.startswith("bytes"):  # else it is another program's array
        metadata[_METADATA] = arrays.pop(_METADATA).read().tobytes().decode("ascii", "replace")
    return contents_of_arrays("npz", arrays, metadata)


def _num_members(path: str) -> int:
    """How many members the end of a zip says that there are; `zipfile` doesn't compare it with what it finds."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - (1 << 16) - 22))  # the end may have a comment
        end = file.read()
    return int.from_bytes(end[end.rindex(b"PK\x05\x06") + 10 :][:2], "little")


def encode(snapshot: Snapshot) -> bytes:
    """The bytes of a snapshot's file."""
    arrays = {name: np.asarray(array, array.dtype.newbyteorder("<")) for name, array in snapshot.weights.items()}
    file = io.BytesIO()
    metadata = {name: np.bytes_(text.encode()) for name, text in spec_to_metadata(snapshot.spec).items()}
    np.savez(file, **arrays, **metadata)
    return file.getvalue()


def _npy(path: str, name: str, info: zipfile.ZipInfo, member: IO[bytes]) -> StoredArray:
    """The array that a member's header claims, once it has been checked against the member's size."""
    magic = member.read(8)
    width = {1: 2, 2: 4, 3: 4}.get(magic[6]) if len(magic) == 8 and magic.startswith(b"\x93NUMPY") else None
    length = int.from_bytes(member.read(width), "little") if width else 0
    header = _parse_npy_header(member.read(length)) if width and length <= _LONGEST_NPY_HEADER else None
    if width is None or header is None:
        raise FileError(f"{name!r} has no header of an .npy file")
    dtype_text, order, shape = header
    simple = re.fullmatch(rb"'([<>=|]?[a-z]\d{0,4})'", dtype_text)
    descr = simple[1].decode() if simple else ""
    dtype = np.dtype(descr) if re.fullmatch(r"[<>=]?f[248]", descr) else None
    text = re.fullmatch(rb"'\|(S\d{1,6})'", dtype_text)
    if name == _METADATA and not shape and text is not None:
        dtype = np.dtype(text[1].decode())
    if dtype is None:  # not of floats, perhaps of pickled objects: it is never read
        return StoredArray(dtype_text.decode("latin-1")[:40], shape, lambda: np.empty(0))
    start = 8 + width + length
    count = math.prod(shape)
    if start + count * dtype.itemsize != info.file_size:
        raise FileError(f"{name!r} claims shape {shape} of {dtype.name}, but has {info.file_size - start} bytes")

    def read_array() -> Array:
        with zipfile.ZipFile(path) as archive, archive.open(info) as member:
            data = member.read()
        return np.frombuffer(data, dtype, count, start).reshape(shape, order=order)

    return StoredArray(dtype.name, shape, read_array)


def _parse_npy_header(header: bytes) -> tuple[bytes, Any, tuple[int, ...]] | None:
    """The text of the dtype, the order ``C`` or ``F``, and the shape; None if it is no header as NumPy writes it.

    NumPy's own reader evaluates the text as Python literals, and allocates what it claims.
    """
    begin, _, rest = header.partition(b"'fortran_order':")
    fortran, _, end = rest.partition(b"'shape':")
    order = {b"True,": "F", b"False,": "C"}.get(fortran.strip())
    shape = re.fullmatch(rb"\(([\d,\s]*)\),?\s*\}", end.strip())
    name, _, dtype = begin.strip().removeprefix(b"{").partition(b":")
    if order is None or shape is None or name.strip() != b"'descr'" or not dtype.endswith(b","):
        return None
    return dtype[:-1].strip(), order, tuple(int(size) for size in shape[1].split(b",") if size.strip())
