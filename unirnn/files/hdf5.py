"""Reading HDF5 files as Keras writes them, without libhdf5, which altered files can crash together with the process.

HDF5 is a file system within a file: groups, attributes and datasets at addresses that the file itself claims. What h5py
writes by default is read: groups of symbol tables, attributes of numbers and strings, datasets in one piece or in
chunks that are stored as they are, shuffled or deflated. Anything else is an error that names it: links, external and
virtual storage, other filters, and the structures of ``libver="latest"``.

Every structure is taken from the file through `_Reader.take`, which checks the address, and counts the bytes. As the
structures may overlap and refer to each other in circles, it stops when they add up to more than a file can hold.
The numbers of sections in the comments are those of the HDF5 File Format Specification 3.0.
"""

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from unirnn.errors import FileError
from unirnn.files._contents import MAX_RATIO, ByteOrder, StoredArray, most_bytes

__all__ = ["SIGNATURE", "Group", "parse"]

SIGNATURE = b"\x89HDF\r\n\x1a\n"
"""How a file begins."""

_FEW = 1 << 16  # bytes of structures that a file may have in any case
_DEEPEST = 64  # groups within each other
_FLOATS: dict[
    tuple[int, ...], str
] = {  # by size, the place of the exponent, its bits, the place of the mantissa, its bits, and the bias
    (2, 10, 5, 0, 10, 15): "float16",
    (4, 23, 8, 0, 23, 127): "float32",
    (8, 52, 11, 0, 52, 1023): "float64",
}


@dataclass
class Group:
    """A group: its attributes (numbers, bytes, or lists of bytes), groups and datasets, each by name."""

    attributes: dict[str, Any] = field(default_factory=dict)
    groups: "dict[str, Group]" = field(default_factory=dict)
    datasets: dict[str, StoredArray] = field(default_factory=dict)


def parse(data: bytes, size: int | None = None) -> Group:
    """The root group of a file.

    Parameters
    ----------
    data
        The bytes of the file.
    size
        How many bytes it takes where it is stored, perhaps compressed; None if these are as many.

    Raises
    ------
    FileError
        If the file is altered, or hostile, or uses features that are not read.
    """
    reader = _Reader(data, len(data) if size is None else size)
    if reader.take(0, 8) != SIGNATURE:
        raise FileError("no HDF5 file")
    version, offsets, lengths = data[8], data[13], data[14]  # II.A
    if version > 1:
        raise FileError("HDF5: written with libver='latest', which is not read; Keras writes the earliest version")
    if (offsets, lengths) != (8, 8):
        raise FileError("HDF5: addresses of other than 8 bytes are not read")
    (base,) = reader.unpack("<Q", 24 + 4 * version)
    if base:
        raise FileError("HDF5: a file with a base address is not read")
    (root,) = reader.unpack("<Q", 24 + 4 * version + 32 + 8)
    group = reader.object(root, 0)
    if not isinstance(group, Group):
        raise FileError("HDF5: its root is no group")
    if reader.claimed > reader.most:
        raise FileError(f"its arrays claim {reader.claimed} bytes, more than {MAX_RATIO} times the file's size")
    return group


class _Reader:
    """The bytes of a file."""

    def __init__(self, data: bytes, size: int) -> None:
        self.data = data
        self.size = size
        self.left = 4 * size + _FEW
        self.claimed = 0
        self.most = most_bytes(size)  # chunks may be compressed
        self.heaps: dict[int, dict[int, tuple[int, int]]] = {}

    def take(self, address: int, length: int) -> bytes:
        """Some bytes, which must be there, and which count."""
        self.left -= length + 1
        if address + length > len(self.data):
            raise FileError(f"HDF5: {length} bytes at {address} are outside of the file's {len(self.data)}")
        if self.left < 0:
            raise FileError("HDF5: an altered file, whose structures overlap or go in circles")
        return self.data[address : address + length]

    def unpack(self, layout: str, address: int) -> tuple[Any, ...]:
        return struct.unpack(layout, self.take(address, struct.calcsize(layout)))

    # ---- objects: a header is a list of messages (IV.A.1.a) ----

    def object(self, address: int, depth: int) -> Group | StoredArray:
        """The group or the dataset whose header is at an address."""
        if depth > _DEEPEST:
            raise FileError(f"HDF5: more than {_DEEPEST} groups within each other")
        messages: dict[int, list[bytes]] = {}
        for kind, message in self.messages(address):
            messages.setdefault(kind, []).append(message)
        attributes = dict(self.attribute(message) for message in messages.get(0x0C, ()))
        if 0x08 in messages:
            return self.dataset(messages, attributes)
        group = Group(attributes)
        if 0x11 not in messages:
            raise FileError("HDF5: an object that is neither a group of the earliest version nor a dataset is not read")
        tree, heap = struct.unpack("<QQ", messages[0x11][0][:16])
        for name, child in self.members(tree, heap):
            if name in group.groups or name in group.datasets:
                raise FileError(f"HDF5: {name!r} occurs twice")
            found = self.object(child, depth + 1)
            if isinstance(found, Group):
                group.groups[name] = found
            else:
                group.datasets[name] = found
        return group

    def messages(self, address: int) -> Iterator[tuple[int, bytes]]:
        """The messages of a header, by their types, also those of its continuations."""
        version, count, size = self.unpack("<BxH4xI", address)
        if version != 1:
            raise FileError("HDF5: an object of another version than the earliest is not read")
        blocks = [(address + 16, size)]
        while blocks and count > 0:
            block = self.take(*blocks.pop(0))
            at = 0
            while at + 8 <= len(block) and count > 0:
                kind, length, flags = struct.unpack_from("<HHB", block, at)
                message = block[at + 8 : at + 8 + length]
                if len(message) < length:
                    raise FileError("HDF5: a message is longer than its header")
                if flags & 2 and kind in (0x01, 0x03, 0x08, 0x0B, 0x0C):
                    raise FileError("HDF5: shared messages are not read")
                if kind == 0x10:
                    blocks.append(struct.unpack("<QQ", message[:16]))
                yield kind, message
                at, count = at + 8 + length, count - 1

    def members(self, tree: int, heap: int) -> Iterator[tuple[str, int]]:
        """The names and addresses in a group: a tree of symbol tables, and a heap of names (III.A.1, III.D)."""
        signature, size, start = self.unpack("<4s4xQ8xQ", heap)
        names = self.take(start, size)
        if signature != b"HEAP":
            raise FileError("HDF5: a group has no heap of names")
        for table in self.leaves(tree, 0, 8):
            signature, count = self.unpack("<4s2xH", table[1])
            if signature != b"SNOD":
                raise FileError("HDF5: a group has no table of names")
            for offset, address, kind in struct.iter_unpack("<QQI20x", self.take(table[1] + 8, 40 * count)):
                if kind == 2:
                    raise FileError("HDF5: it has a soft link, and links are not followed")
                end = names.find(b"\0", offset)
                if end < 0:
                    raise FileError("HDF5: a name is outside of its heap")
                self.take(start, end - offset if end > offset else 0)  # names may overlap, too
                yield names[offset:end].decode("utf-8", "replace"), address

    def leaves(self, address: int, kind: int, key: int, level: int | None = None) -> Iterator[tuple[bytes, int]]:
        """The keys and addresses in the leaves of a tree, version 1, whose keys have a size (III.A.1)."""
        signature, found, height, count = self.unpack("<4sBBH", address)
        if signature != b"TREE" or found != kind or (level is not None and height != level):
            raise FileError("HDF5: a tree is altered")
        entries = self.take(address + 24, count * (key + 8))
        for at in range(0, len(entries), key + 8):
            (child,) = struct.unpack_from("<Q", entries, at + key)
            if height:
                yield from self.leaves(child, kind, key, height - 1)
            else:
                yield entries[at : at + key], child

    # ---- attributes ----

    def attribute(self, message: bytes) -> tuple[str, Any]:
        """The name and the value of an attribute (IV.A.2.m); None for a value of a type that is not read."""
        version, flags, *sizes = struct.unpack_from("<BBHHH", message)
        if version not in (1, 2, 3) or (version > 1 and flags):
            raise FileError("HDF5: an attribute of a version that is not read")
        at, parts = (9 if version == 3 else 8), []
        for size in sizes:
            parts.append(message[at : at + size])
            at += size + (-size % 8 if version == 1 else 0)
        name = parts[0].split(b"\0")[0].decode("utf-8", "replace")
        shape = _shape(parts[2])
        if shape is None:
            return name, None
        data, count, size = message[at:], math.prod(shape), _size(parts[1])
        if count * size > len(data):
            raise FileError(f"HDF5: the attribute {name!r} claims {count * size} bytes, but has {len(data)}")
        items = [data[k * size : (k + 1) * size] for k in range(count)] if size else []
        if parts[1][0] & 15 == 3:  # strings of one length
            values = [item.split(b"\0")[0] for item in items]
        elif parts[1][0] & 15 == 9 and parts[1][1] & 15 == 1:  # strings of any length, in the global heap
            values = [self.heap_string(item) for item in items]
        else:
            return name, [] if not count else None
        return name, values if shape else values[0] if values else None

    def heap_string(self, reference: bytes) -> bytes:
        """A string in a global heap."""
        length, heap, index = struct.unpack("<IQI", reference)
        if not heap or not length:
            return b""
        if heap not in self.heaps:
            self.heaps[heap] = dict(self.heap(heap))
        address, there = self.heaps[heap].get(index, (0, 0))
        return self.take(address, min(length, there))

    def heap(self, address: int) -> Iterator[tuple[int, tuple[int, int]]]:
        """The objects in a global heap by their numbers: where they are, and how long (III.E)."""
        signature, size = self.unpack("<4s4xQ", address)
        if signature != b"GCOL":
            raise FileError("HDF5: a string is not in a heap")
        at, end = address + 16, address + size
        while at + 16 <= end:
            index, length = self.unpack("<H6xQ", at)
            if index == 0:
                break
            yield index, (at + 16, length)
            at += 16 + length + -length % 8

    # ---- datasets ----

    def dataset(self, messages: dict[int, list[bytes]], attributes: dict[str, Any]) -> StoredArray:
        """A dataset: its type, its shape, its layout and its filters."""
        if 0x07 in messages:
            raise FileError("HDF5: a dataset is stored in another file")
        if 0x01 not in messages or 0x03 not in messages:
            raise FileError("HDF5: a dataset has no shape, or no type")
        shape, name, size = _shape(messages[0x01][0]), _float(messages[0x03][0]), _size(messages[0x03][0])
        order: ByteOrder = ">" if messages[0x03][0][1] & 1 else "<"
        if name is None and size == 2 and attributes.get("dtype") == b"bfloat16":  # as Keras 3 marks them
            name, order = "bfloat16", "<"
        if name is None or shape is None:
            return StoredArray(f"HDF5's class {messages[0x03][0][0] & 15}", shape or (), lambda: np.empty(0))
        self.claimed += math.prod(shape) * (4 if name == "bfloat16" else size)
        layout, filters = messages[0x08][0], messages.get(0x0B, [b""])[0]

        if layout[:2] == b"\x03\x01":  # in one piece: what it claims has to be there
            self.piece(layout, math.prod(shape) * size)
        return StoredArray.from_bytes(name, shape, lambda: self.stored(layout, filters, shape, size), order)

    def piece(self, layout: bytes, expected: int) -> tuple[int, int]:
        """The address and the size of a dataset in one piece."""
        address, length = struct.unpack("<QQ", layout[2:18])
        if length != expected or (length and address + length > len(self.data)):
            raise FileError(f"HDF5: a dataset of {expected} bytes claims {length} at {address} of {len(self.data)}")
        return address, length

    def stored(self, layout: bytes, filters: bytes, shape: tuple[int, ...], size: int) -> bytes:
        """The bytes of a dataset (IV.A.2.i)."""
        version, kind = layout[:2]
        expected = math.prod(shape) * size
        if version != 3 or kind > 2:
            raise FileError(f"HDF5: a dataset is stored in a way that is not read (version {version}, class {kind})")
        if kind == 1:
            address, length = self.piece(layout, expected)
            return self.data[address : address + length]
        if kind == 0:
            (length,) = struct.unpack("<H", layout[2:4])
            if length != expected or len(layout) < 4 + length:
                raise FileError(f"HDF5: a dataset of {expected} bytes has {length}")
            return layout[4 : 4 + length]
        rank = layout[2]
        tree, *sizes = struct.unpack(f"<Q{rank}I", layout[3 : 11 + 4 * rank])
        if rank != len(shape) + 1 or sizes[-1] != size or not all(sizes):
            raise FileError(f"HDF5: chunks of {sizes} don't fit a dataset of {shape}")
        return self.chunks(tree, sizes[:-1], _filters(filters), shape, size)

    def chunks(self, tree: int, sizes: list[int], filters: list[int], shape: tuple[int, ...], size: int) -> bytes:
        """The bytes of a dataset in chunks, all of which have to be there; HDF5 would fill in a value of the file's."""
        self.left = 4 * self.size + _FEW  # for each dataset, as what they claim has been added up
        length = math.prod(sizes) * size
        if length > self.most:
            raise FileError(f"HDF5: a chunk claims {length} bytes, more than {MAX_RATIO} times the file's size")
        whole = np.zeros((*shape, size), np.uint8)
        left = math.prod(-(-have // each) * each for have, each in zip(shape, sizes, strict=True)) * size
        for key, address in self.leaves(tree, 1, 16 + 8 * len(shape)) if tree != 0xFFFFFFFFFFFFFFFF else ():
            stored, mask, *offset = struct.unpack(f"<II{len(shape)}Q", key[:-8])
            left -= length
            if mask or left < 0 or any(at >= have for at, have in zip(offset, shape, strict=True)):
                raise FileError("HDF5: a chunk is altered")
            data = self.take(address, stored)
            for number in reversed(filters):
                data = _inflate(data, length) if number == 1 else _unshuffle(data, size)
            if len(data) != length:
                raise FileError(f"HDF5: a chunk of {length} bytes has {len(data)}")
            chunk = np.frombuffer(data, np.uint8).reshape(*sizes, size)
            place = tuple(slice(at, at + each) for at, each in zip(offset, sizes, strict=True))
            there = whole[place]
            there[...] = chunk[tuple(slice(0, count) for count in there.shape)]
        if left:
            raise FileError("HDF5: a dataset has chunks that were never written")
        return whole.tobytes()


def _shape(message: bytes) -> tuple[int, ...] | None:
    """The shape in a dataspace (IV.A.2.b); None if it says that there is nothing."""
    version, rank, _, kind = struct.unpack_from("<BBBB", message)
    if version not in (1, 2) or rank > 32:
        raise FileError("HDF5: a shape of a version that is not read")
    if version == 2 and kind == 2:
        return None
    shape: tuple[int, ...] = struct.unpack_from(f"<{rank}Q", message, 8 if version == 1 else 4)
    return shape


def _size(message: bytes) -> int:
    """The size of a value of a type (IV.A.2.d)."""
    size: int = struct.unpack_from("<I", message, 4)[0]
    return size


def _float(message: bytes) -> str | None:
    """NumPy's name of a type of floats, whatever the order of its bytes; None for any other type."""
    if message[0] & 15 != 1:
        return None
    size, _, bits, *parts, bias = struct.unpack_from("<IHHBBBBI", message, 4)
    name = _FLOATS.get((size, *parts, bias))
    return name if bits == 8 * size else None


def _filters(message: bytes) -> list[int]:
    """The numbers of the filters through which chunks went (IV.A.2.l): 1 deflates, 2 shuffles."""
    if not message:
        return []
    version, count = message[0], message[1]
    at, found = (8 if version == 1 else 2), []
    for _ in range(count):
        (number,) = struct.unpack_from("<H", message, at)
        if number not in (1, 2):
            raise FileError(f"HDF5: a dataset went through filter {number}; only deflate and shuffle are read")
        if version == 1:
            length, _, values = struct.unpack_from("<HHH", message, at + 2)
            at += 8 + length + -length % 8 + 4 * (values + values % 2)
        else:  # the names of these filters are left out
            _, values = struct.unpack_from("<HH", message, at + 2)
            at += 6 + 4 * values
        found.append(number)
    return found


def _inflate(data: bytes, most: int) -> bytes:
    """Deflated bytes, of which no more than some may come."""
    return zlib.decompressobj().decompress(data, most + 1)


def _unshuffle(data: bytes, size: int) -> bytes:
    """Bytes that were sorted by their place within a value."""
    return np.frombuffer(data, np.uint8).reshape(size, -1).T.tobytes()
