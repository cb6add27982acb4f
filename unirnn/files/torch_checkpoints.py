"""Reading PyTorch's files without PyTorch: checkpoints, whole modules, and TorchScript archives; see `unirnn.files`.

There are three formats. Today's is a zip: ``data.pkl`` is a pickle in which tensors refer to storages, and the bytes of
each storage are a record of their own. Before PyTorch 1.6, the storages followed behind several pickles. And
``pickle.dump`` of tensors gives a pickle in which each storage is a string of bytes, in the second format again. A
pickle of NumPy's arrays is read as well: models that run without torch have such weights.

All tensors are found by name, wherever they are: the keys of mappings, the positions in lists and the attributes of
objects are joined by dots, and of a module the names are those of its ``state_dict``. Objects of classes are not made
(see `unirnn.files.pickles`), so none of their packages need be there.
"""

import functools
import io
import itertools
import os
import pickletools
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, BinaryIO

from unirnn.devices import DTYPES
from unirnn.errors import FileError
from unirnn.files._contents import Choice, Contents, Layer, StoredArray, contents_of_snapshot, contents_of_state_dict
from unirnn.files._header import spec_from_metadata
from unirnn.files.pickles import Object, Pickle, PickledDict, read_pickle
from unirnn.files.torch_tensors import (
    SIZES,
    Budget,
    Find,
    Named,
    Storage,
    Tensor,
    claim,
    function_name,
    integers,
    is_storage,
    named_parts,
)
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import ModelSpec, RecurrentSpec

__all__ = ["METADATA", "read"]

METADATA = "unirnn"
"""The record of a zip in which unirnn puts its metadata; torch does not look at it."""

_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""A number in the first pickle of a file before 1.6, by which the format is recognised."""

_HARMLESS = 1 << 24  # bytes; so many are read from any file
_MAX_RATIO = 4  # the weights that are read, by the size of the file: bfloat16 doubles, and weights may be shared


def read(path: str) -> Contents:
    """Describe what a file holds; its arrays are read when they are asked for."""
    metadata: dict[str, str] = {}
    with open(path, "rb") as file:
        content = file.read(32)
        if content.startswith(b"PK"):
            records = _Records(path, file)
            named, metadata = _read_zip(records), records.metadata()
        else:  # the other formats are read whole
            content += file.read()
            named = named_parts(*_read_legacy(content)) if _MAGIC in content[:32] else _read_plain(content)
    budget = Budget(max(_HARMLESS, _MAX_RATIO * os.path.getsize(path)))
    arrays: dict[str, StoredArray] = {}
    specs: dict[str, RecurrentSpec] = {}
    for name, part in named:
        if isinstance(part, RecurrentSpec):
            specs[f"{name}." if name else ""] = part
        elif name in arrays:
            raise FileError(f"{name!r} occurs twice")
        else:
            arrays[name] = part.stored(budget)
    spec = spec_from_metadata(metadata)
    if spec is None:
        found = _with_specs(contents_of_state_dict("torch", arrays), specs)
    else:
        tied = spec.tied() if isinstance(spec, ModelSpec) else {}
        found = contents_of_snapshot("torch", spec, {name: arrays[name] for name in arrays if name not in tied})

    def read_within_budget(choice: Choice) -> Snapshot:
        budget.spent = 0
        return found.read(choice)

    return replace(found, read=read_within_budget)


def _with_specs(found: Contents, specs: Mapping[str, RecurrentSpec]) -> Contents:
    """Add what whole modules say of their layers, and names and shapes do not, such as ``batch_first``."""
    layers = dict(found.layers)
    for prefix in layers.keys() & specs.keys():
        weights = {name: found.arrays.get(prefix + name) for name in specs[prefix].weight_shapes()}
        held = {name: (array.shape, array.dtype) for name, array in weights.items() if array and array.dtype in DTYPES}
        if {name: shape for name, (shape, _) in held.items()} == specs[prefix].weight_shapes():
            layers[prefix] = Layer(specs[prefix], held)

    def read(choice: Choice) -> Snapshot:
        prefix = next(iter(layers)) if choice.prefix is None and len(layers) == 1 else choice.prefix
        known = [name for name in (prefix, f"{prefix}.") if isinstance(name, str) and name in layers and name in specs]
        return found.read(replace(choice, spec=specs[known[0]]) if known and choice.spec is None else choice)

    return replace(found, layers=layers, read=read)


# ---- the three formats --------------------------------------------------------------------------------


class _Records:
    """The records of a zip that torch wrote, which are not compressed. They are read when they are asked for."""

    def __init__(self, path: str, file: BinaryIO) -> None:
        self.path, self.size = path, os.path.getsize(path)
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
        pickles = [info.filename for info in infos if re.fullmatch(r"(?:[^/]*/)?data\.pkl", info.filename)]
        if len(pickles) != 1:
            raise FileError(f"it has {len(pickles)} records 'data.pkl', expected one")
        root = pickles[0].removesuffix("data.pkl")
        self.infos = {info.filename.removeprefix(root): info for info in infos}
        if len(self.infos) != len(infos):
            raise FileError("a record occurs twice")
        self.latest: tuple[str, bytes] = ("", b"")  # tensors that follow each other often share a storage

    def length(self, name: str) -> int:
        """The bytes of a record, as the directory of the zip says; a FileError if the file is smaller."""
        info = self.infos.get(name)
        if info is None:
            raise FileError(f"it has no record {name!r}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise FileError(f"its record {name!r} is compressed, which torch.save does not do")
        if info.file_size != info.compress_size or info.header_offset + info.file_size > self.size:
            raise FileError(f"its record {name!r} claims {info.file_size} bytes, more than there are")
        return info.file_size

    def bytes_of(self, name: str) -> bytes:
        """The bytes of a record, once its checksum has been compared."""
        if self.latest[0] != name:
            length, info = self.length(name), self.infos[name]
            with open(self.path, "rb") as file:  # another `zipfile.ZipFile` would read the whole directory each time
                file.seek(info.header_offset + 26)
                file.seek(sum(struct.unpack("<HH", file.read(4))), os.SEEK_CUR)
                data = file.read(length)
            if zlib.crc32(data) != info.CRC:
                raise FileError(f"its record {name!r} is altered: its checksum does not match")
            self.latest = name, data
        return self.latest[1]

    def metadata(self) -> dict[str, str]:
        """The metadata that unirnn has written; empty if it has written none."""
        if METADATA not in self.infos:
            return {}
        return {METADATA: self.bytes_of(METADATA).decode("ascii", "replace")}

    def find(self, folder: str, little: bool) -> Find:
        """A function that finds the storages whose records are in a folder."""

        def find(reference: Any) -> Storage:
            key, dtype, count = claim(reference)
            name, size = f"{folder}/{key}", count * SIZES[dtype]
            if size == 0 and name not in self.infos:
                return Storage(dtype, 0, little, lambda: b"")
            if size > self.length(name):
                raise FileError(f"its storage {key!r} claims {size} bytes, but has {self.length(name)}")
            return Storage(dtype, size, little, lambda: self.bytes_of(name))

        return find


def _read_zip(records: _Records) -> list[Named]:
    little = sys.byteorder == "little"  # a file without the record is taken to be of such a machine
    if "byteorder" in records.infos:
        little = {b"little": True, b"big": False}[records.bytes_of("byteorder")]
    found = named_parts(_pickle_of(records, "data.pkl"), records.find("data", little))
    if "constants.pkl" in records.infos:  # TorchScript
        constants = named_parts(_pickle_of(records, "constants.pkl"), records.find("constants", little))
        found += [(f"constants.{name}", part) for name, part in constants]
    return found


def _pickle_of(records: _Records, name: str) -> Pickle:
    return read_pickle(io.BytesIO(records.bytes_of(name)))


def _read_legacy(content: bytes) -> tuple[Pickle, Find]:
    """The format before 1.6: a magic number, a version, facts about the machine, the pickle, keys, and storages."""
    file = io.BytesIO(content)
    _, version, machine = (read_pickle(file).value for _ in range(3))
    if version != 1001 or not isinstance(machine, PickledDict):
        raise FileError("its version is not 1001, the only one that torch has written")
    little = ("little_endian", False) not in machine.pairs
    pickle = read_pickle(file)
    keys = read_pickle(file).value
    dtypes = dict(claim(reference)[:2] for reference in pickle.references if is_storage(reference))
    whole, at = memoryview(content), file.tell()
    storages: dict[str, Storage] = {}
    for key in map(str, keys):
        count = int.from_bytes(whole[at : at + 8], "little" if little else "big")
        begin, at = at + 8, at + 8 + count * SIZES[dtypes[key]]
        if at > len(whole):
            raise FileError(f"its storage {key!r} claims {count} numbers, more than there are")
        storages[key] = Storage(dtypes[key], at - begin, little, functools.partial(_part, whole, begin, at))

    def find(reference: Any) -> Storage:
        key, dtype, _ = claim(reference)
        base = storages[key]
        view = reference.identity[5] if len(reference.identity) > 5 else None
        if view is None:
            return base
        # Before 0.4, a storage could be a part of another one.
        _, *numbers = view
        begin, length = (number * SIZES[dtype] for number in integers(numbers))
        if begin + length > base.size:
            raise FileError(f"a part of the storage {key!r} claims {length} bytes, but it has {base.size}")
        return replace(base, size=length, read=lambda: base.read()[begin : begin + length])

    return pickle, find


def _part(whole: memoryview, begin: int, end: int) -> memoryview:
    return whole[begin:end]


def _read_plain(content: bytes) -> list[Named]:
    """A pickle that torch.save did not write. Each storage in it is a call with the bytes of a file before 1.6."""
    if not any(word in content for word in (b"_load_from_bytes", b"ndarray", b"_frombuffer")):
        raise _no_checkpoint(_first_name(content))  # millions of words, maybe, which need not be read
    pickle = read_pickle(io.BytesIO(content))
    storages: dict[int, Storage] = {}

    def find(storage: Any) -> Storage:
        if not isinstance(storage, Object) or function_name(storage) != ("torch.storage", "_load_from_bytes"):
            raise FileError("its tensors have no storages; it may be a part of another file")
        (data,) = storage.arguments
        if isinstance(data, Object) and function_name(data) == ("_codecs", "encode"):  # bytes, before protocol 3
            data = data.arguments[0]
        if id(data) not in storages:
            held = data.encode("latin-1") if isinstance(data, str) else data
            if not isinstance(held, bytes):
                raise FileError("its storages are no strings of bytes; it may be altered")
            inner, find_inner = _read_legacy(held)
            storages[id(data)] = find_inner(inner.value)
        return storages[id(data)]

    found = named_parts(pickle, find)
    if not any(isinstance(part, Tensor) for _, part in found):
        raise _no_checkpoint(function_name(pickle.value) if isinstance(pickle.value, Object) else None)
    return found


def _no_checkpoint(function: tuple[str, str] | None) -> FileError:
    what = f" of an object {'.'.join(function)[:80]}" if function else ""
    return FileError(
        f"a pickle{what}, and no checkpoint: there is no tensor in it; save a state dict by torch.save, or arrays "
        "by numpy.savez"
    )


def _first_name(content: bytes) -> tuple[str, str] | None:
    """The class or the function that a pickle begins with; None if its value is something else."""
    words: list[str] = []
    for opcode, argument, _ in itertools.islice(pickletools.genops(content), 8):
        if opcode.name == "GLOBAL":
            words = str(argument).split(" ", 1)
        elif isinstance(argument, str):
            words.append(argument)
        elif opcode.name not in ("PROTO", "FRAME", "MEMOIZE", "STACK_GLOBAL"):
            break
        if opcode.name in ("GLOBAL", "STACK_GLOBAL"):
            return (words[0], words[1]) if len(words) == 2 else None
    return None
