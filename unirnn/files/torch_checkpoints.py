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
import math
import os
import pickletools
import re
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeAlias

import numpy as np

from unirnn.contract.weights import Array
from unirnn.devices import DTYPES
from unirnn.errors import FileError, UnirnnError
from unirnn.files._contents import Choice, Contents, Layer, StoredArray, contents_of_snapshot, contents_of_state_dict
from unirnn.files._header import spec_from_metadata
from unirnn.files.pickles import Global, Object, Pickle, PickledDict, Reference, read_pickle
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import GRUSpec, LSTMSpec, ModelSpec, RecurrentSpec, RNNSpec
from unirnn.specs.arguments import arguments

__all__ = ["METADATA", "read"]

METADATA = "unirnn"
"""The record of a zip in which unirnn puts its metadata; torch does not look at it."""

_MAGIC = b"\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
"""What the first pickle of the format before 1.6 ends with: a number, which says that it is this format."""

_STORAGES = {
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "QInt8Storage": "qint8",
    "QUInt8Storage": "quint8",
    "QInt32Storage": "qint32",
    "UntypedStorage": "uint8",
    "_UntypedStorage": "uint8",
}
"""The dtype of the numbers in a storage, by its class."""

_SIZES = {
    name: size
    for size, names in (
        (1, "bool int8 uint8 qint8 quint8"),
        (2, "float16 bfloat16 int16 uint16"),
        (4, "float32 int32 uint32 qint32"),
        (8, "float64 int64 uint64 complex64"),
        (16, "complex128"),
    )
    for name in names.split()
}
"""The bytes of a number, by dtype. Tensors of other dtypes are left out."""

_WRAPPERS = {
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch.jit._pickle", "restore_type_tag"),
    ("torch.jit._pickle", "build_tensorlist"),
}
"""Functions whose value is their first argument, or the same with something that does not matter here."""

_TENSORS = [("torch._utils", f"_rebuild_tensor{version}") for version in ("", "_v2", "_v3")]
"""Functions that make a tensor of a storage, an offset, sizes and strides; the last is given a dtype as well."""

_NUMPY = re.compile(r"numpy\.(?:_?core\.multiarray _reconstruct|_?core\.numeric _frombuffer)")
"""The functions that make NumPy's arrays, the second since protocol 5 of pickles."""

_LAYERS: dict[tuple[str, str], type[RecurrentSpec]] = {
    ("torch.nn.modules.rnn", cls.kind): cls for cls in (RNNSpec, GRUSpec, LSTMSpec)
}
"""torch's own layers. What a subclass computes can't be seen in a file."""

_DEEPEST = 100  # objects within each other
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
            named = _named_parts(*_read_legacy(content)) if _MAGIC in content[:32] else _read_plain(content)
    budget = _Budget(max(_HARMLESS, _MAX_RATIO * os.path.getsize(path)))
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
    """The same with what whole modules say of their layers, and names and shapes do not, such as ``batch_first``."""
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


# ---- tensors ---------------------------------------------------------------------------------------


class _Budget:
    """How many bytes may be read at once. A thousand tensors may share one storage, and each is read by itself."""

    def __init__(self, limit: int) -> None:
        self.limit, self.spent = limit, 0

    def spend(self, size: int) -> None:
        self.spent += size
        if self.spent > self.limit:
            raise FileError(
                f"its weights share their memory, and are {self.spent} bytes or more by themselves; at most "
                f"{self.limit} are read from a file of this size"
            )


@dataclass(frozen=True)
class _Storage:
    """The bytes behind tensors: how many there are, what numbers they are, and how to get them."""

    dtype: str
    size: int
    little: bool
    read: Callable[[], memoryview | bytes]


@dataclass(frozen=True)
class _Tensor:
    """A tensor: numbers in a storage, all of which are there; `offset` and `strides` count numbers, not bytes."""

    storage: _Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def stored(self, budget: _Budget) -> StoredArray:
        """The same as an array of NumPy, which has no bfloat16: that becomes float32."""
        widened = self.dtype == "bfloat16"

        def read_array() -> Array:
            size = _SIZES[self.dtype]
            budget.spend(math.prod(self.shape) * size * (2 if widened else 1))
            kind = np.dtype("u2" if widened else self.dtype).newbyteorder("<" if self.storage.little else ">")
            numbers = np.frombuffer(self.storage.read(), kind, self.storage.size // size)[self.offset :]
            strides = [stride * size for stride in self.strides]
            array = np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False)
            return (array.astype(np.uint32) << 16).view(np.float32) if widened else array

        return StoredArray("float32" if widened else self.dtype, self.shape, read_array)


_Named: TypeAlias = tuple[str, _Tensor | RecurrentSpec]
_Find: TypeAlias = Callable[[Any], _Storage]
"""The storage that a reference in a pickle means."""


def _named_parts(pickle: Pickle, find: _Find) -> list[_Named]:
    """All tensors in a pickle, by name, and the specs of torch's own recurrent layers."""
    # The same object may be in several places, and has a name in each. So that a small file does not have an endless
    # number of them, what is visited, and how long the names are, is held against the size of the pickle.
    left = 10_000 + 100 * pickle.operations
    within: set[int] = set()
    of_numpy: set[str] = set()
    known: dict[int, tuple[Any, list[tuple[Any, Any]]]] = {}  # members, by the identity of the object, which is held

    def walk(value: Any, name: str) -> Iterator[_Named]:
        nonlocal left
        value = _unwrapped(value)
        tensor = _tensor(value, find)
        if tensor is None:
            tensor = _numpy_array(value)
            of_numpy.update([name] if tensor else [])
        if tensor is not None:
            yield name, tensor
        if tensor is not None or id(value) in within:  # a mapping may contain itself
            return
        if len(within) > _DEEPEST:
            raise FileError(f"it has objects that are nested more than {_DEEPEST} times")
        within.add(id(value))
        spec = _layer_spec(value)
        if spec is not None:
            yield name, spec
        if id(value) not in known:
            known[id(value)] = value, _members(value)
        members = known[id(value)][1]
        left -= len(members)
        for key, item in members:
            if isinstance(item, (PickledDict, list, tuple, Object)) and isinstance(key, (str, int, float)):
                key = str(key)
                left -= len(name) + len(key) + 1
                if left < 0:
                    raise FileError("it has the same objects in too many places, or names that are too long")
                yield from walk(item, f"{name}.{key}" if name else key)
        within.remove(id(value))

    found = list(walk(pickle.value, ""))
    of_torch = [(name, part) for name, part in found if name not in of_numpy]
    # Beside tensors, arrays of NumPy are no weights, but what was measured in training.
    return of_torch if any(isinstance(part, _Tensor) for _, part in of_torch) else found


def _members(value: Any) -> list[tuple[Any, Any]]:
    """The parts of an object, by the keys, positions or attributes under which they are."""
    if isinstance(value, PickledDict):
        return value.pairs
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    # torch's own objects that are no plain tensors, such as sparse ones, are left out.
    if not isinstance(value, Object) or (_function(value) or ("", ""))[0] in ("torch._utils", "torch._tensor"):
        return []
    state = value.state if isinstance(value.state, PickledDict) else PickledDict()
    return _module_members(state) or _object_members(value)


def _object_members(value: Object) -> list[tuple[Any, Any]]:
    if not isinstance(value.arguments, tuple):
        raise FileError("its pickle calls something with arguments that are no tuple")
    pairs = list(value.pairs or ())
    if _function(value) == ("collections", "OrderedDict"):  # Python 2 wrote its items as an argument
        items = value.arguments[0] if value.arguments and isinstance(value.arguments[0], list) else []
        pairs += [(pair[0], pair[1]) for pair in items if isinstance(pair, (tuple, list)) and len(pair) == 2]
    else:
        pairs += [*enumerate(value.arguments), *enumerate(value.items or ())]
    # The state is a dict of attributes, or a pair of them if the class has slots, or whatever the class likes.
    for state in value.state if isinstance(value.state, tuple) else (value.state,):
        pairs += state.pairs if isinstance(state, PickledDict) else [("state", state)]
    return pairs


def _module_members(state: PickledDict) -> list[tuple[Any, Any]]:
    """What the ``state_dict`` of a ``torch.nn.Module`` has, by its attributes; empty if it is no module."""
    attributes = {key: item for key, item in state.pairs if isinstance(key, str)}
    if not {"_parameters", "_buffers", "_modules"} <= attributes.keys():
        return []
    skipped = _strings(attributes.get("_non_persistent_buffers_set"))
    buffers = [
        pair for pair in _members(attributes["_buffers"]) if not isinstance(pair[0], str) or pair[0] not in skipped
    ]
    return [*_members(attributes["_parameters"]), *buffers, *_members(attributes["_modules"])]


def _layer_spec(value: Any) -> RecurrentSpec | None:
    """The spec of an object of torch's own class, not of a subclass, by its attributes; None of anything else."""
    kind = _LAYERS.get(_function(value) or ("", "")) if isinstance(value, Object) else None
    if kind is None or not isinstance(value.state, PickledDict):
        return None
    given = {
        key: item for key, item in value.state.pairs if isinstance(key, str) and isinstance(item, (int, float, str))
    }
    if "mode" in given:
        given["nonlinearity"] = str(given["mode"]).removeprefix("RNN_").lower()
    names = {row.torch for row in arguments(kind.kind, "constructor") if row.torch}
    try:
        return kind.from_kwargs("torch", {name: given[name] for name in names & given.keys()})
    except UnirnnError:
        return None


def _strings(value: Any) -> set[str]:
    """The strings of a set, which protocols before 4 pickle as a call of ``set`` with a list."""
    if isinstance(value, Object) and isinstance(value.arguments, tuple) and len(value.arguments) == 1:
        value = value.arguments[0]
    return {item for item in value if isinstance(item, str)} if isinstance(value, list) else set()


def _unwrapped(value: Any) -> Any:
    """What is inside of a parameter, or of a list of TorchScript's."""
    for _ in range(_DEEPEST):
        if not isinstance(value, Object) or not isinstance(value.arguments, tuple) or not value.arguments:
            break
        name = _function(value)
        if name in _WRAPPERS:
            value = value.arguments[0]
        elif name == ("torch._tensor", "_rebuild_from_type_v2") and len(value.arguments) == 4:  # a subclass of Tensor
            value = Object(value.arguments[0], value.arguments[2])
        else:
            break
    return value


def _function(value: Object) -> tuple[str, str] | None:
    """The module and the name of the function or the class that makes an object."""
    function = value.function
    if isinstance(function, Reference) and isinstance(function.identity, tuple) and len(function.identity) == 4:
        function = function.identity[1]  # before 1.6, the class of a module is kept together with its source code
    if isinstance(function, Global) and isinstance(function.module, str) and isinstance(function.name, str):
        return function.module, function.name
    return None


def _tensor(value: Any, find: _Find) -> _Tensor | None:
    """The tensor that an object is; None if it is none, or of a kind that is left out."""
    if not isinstance(value, Object) or not isinstance(value.arguments, tuple):
        return None
    name, arguments = _function(value), value.arguments
    if name not in _TENSORS or not 4 <= len(arguments) <= 8:
        return None
    storage, offset, shape, strides = arguments[:4]
    typed = name == _TENSORS[-1]
    metadata = arguments[7 if typed else 6 :]
    if not isinstance(storage, Reference | Object) or any(isinstance(m, PickledDict) and m.pairs for m in metadata):
        return None  # no storage, or one whose numbers are to be negated or conjugated
    found = find(storage)
    dtype: Any = found.dtype
    if typed:
        kind = arguments[6] if len(arguments) > 6 else None
        dtype = kind.name if isinstance(kind, Global) else None
    if not isinstance(dtype, str) or dtype not in _SIZES:
        return None
    sizes, steps, (start,) = _integers(shape), _integers(strides), _integers((offset,))
    if len(sizes) != len(steps):
        raise FileError(f"a tensor claims {len(sizes)} axes and {len(steps)} strides")
    last = start + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    count = found.size // _SIZES[dtype]
    if 0 not in sizes and last >= count:
        raise FileError(f"a tensor claims {last + 1} numbers or more, but its storage has {count}")
    if math.prod(sizes) > count:  # an expanded tensor claims more numbers than are stored
        return None
    return _Tensor(found, dtype, start, sizes, steps)


def _numpy_array(value: Any) -> _Tensor | None:
    """The array of NumPy that an object is; None if it is none, or not of numbers."""
    if not isinstance(value, Object) or not _NUMPY.fullmatch(" ".join(_function(value) or ())):
        return None
    data: Any = None
    kind: Any = None
    shape: Any = ()
    is_fortran: Any = False
    if isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, kind, is_fortran, data = value.state
    elif isinstance(value.arguments, tuple) and len(value.arguments) == 4:
        data, kind, shape, order = value.arguments
        is_fortran = order == "F"
    if isinstance(data, Object) and _function(data) == ("_codecs", "encode") and isinstance(data.arguments, tuple):
        data = data.arguments[0]  # bytes, before protocol 3
    dtype, little = _numpy_dtype(kind)
    if dtype is None or not isinstance(data, (bytes, bytearray, str)):
        return None
    sizes = _integers(shape)
    if math.prod(sizes) * _SIZES[dtype] != len(data):
        raise FileError(f"an array of shape {sizes} and {dtype} has {len(data)} bytes")
    strides = [math.prod(sizes[:axis] if is_fortran else sizes[axis + 1 :]) for axis in range(len(sizes))]
    read = functools.partial(str.encode, data, "latin-1") if isinstance(data, str) else functools.partial(bytes, data)
    return _Tensor(_Storage(dtype, len(data), little, read), dtype, 0, sizes, tuple(strides))


def _numpy_dtype(value: Any) -> tuple[str | None, bool]:
    """The name of a pickled dtype, None if it is not one of numbers, and whether it is little-endian."""
    arguments = value.arguments if isinstance(value, Object) and _function(value) == ("numpy", "dtype") else None
    code = arguments[0] if isinstance(arguments, tuple) and arguments else None
    if not isinstance(code, str) or not re.fullmatch("f[248]|[iu][1248]|b1", code):
        return None, True
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "<"
    return np.dtype(code).name, order != ">"


def _integers(values: Any) -> tuple[int, ...]:
    """Sizes or strides; a FileError if they are something else."""
    if not isinstance(values, (tuple, list)) or len(values) > 32 or any(type(v) is not int or v < 0 for v in values):
        raise FileError("a tensor has sizes or strides that are not at most 32 integers of 0 or more")
    return tuple(values)


def _is_storage(reference: Any) -> bool:
    """Whether a reference is one to a storage; old files refer to the source code of modules as well."""
    identity = reference.identity if isinstance(reference, Reference) else None
    return isinstance(identity, (tuple, list)) and len(identity) >= 5 and identity[0] == "storage"


def _claim(reference: Any) -> tuple[str, str, int]:
    """The key of a storage, the dtype of its numbers, and how many there are, as a reference says."""
    if _is_storage(reference):
        _, kind, key, _, count = reference.identity[:5]
        dtype = _STORAGES.get(kind.name) if isinstance(kind, Global) and isinstance(kind.name, str) else None
        if dtype is not None and isinstance(key, (str, int)) and type(count) is int and count >= 0:
            return str(key), dtype, count
    raise FileError("it refers to a storage in a way that torch does not")


# ---- the three formats -------------------------------------------------------------------------------


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
        """What unirnn put there."""
        if METADATA not in self.infos:
            return {}
        return {METADATA: self.bytes_of(METADATA).decode("ascii", "replace")}

    def find(self, folder: str, little: bool) -> _Find:
        """How to find storages whose records are in a folder."""

        def find(reference: Any) -> _Storage:
            key, dtype, count = _claim(reference)
            name, size = f"{folder}/{key}", count * _SIZES[dtype]
            if size == 0 and name not in self.infos:
                return _Storage(dtype, 0, little, lambda: b"")
            if size > self.length(name):
                raise FileError(f"its storage {key!r} claims {size} bytes, but has {self.length(name)}")
            return _Storage(dtype, size, little, lambda: self.bytes_of(name))

        return find


def _read_zip(records: _Records) -> list[_Named]:
    little = sys.byteorder == "little"  # a file without the record is taken to be of such a machine
    if "byteorder" in records.infos:
        little = {b"little": True, b"big": False}[records.bytes_of("byteorder")]
    found = _named_parts(_pickle_of(records, "data.pkl"), records.find("data", little))
    if "constants.pkl" in records.infos:  # TorchScript
        constants = _named_parts(_pickle_of(records, "constants.pkl"), records.find("constants", little))
        found += [(f"constants.{name}", part) for name, part in constants]
    return found


def _pickle_of(records: _Records, name: str) -> Pickle:
    return read_pickle(io.BytesIO(records.bytes_of(name)))


def _read_legacy(content: bytes) -> tuple[Pickle, _Find]:
    """The format before 1.6: a magic number, a version, facts about the machine, the pickle, keys, and storages."""
    file = io.BytesIO(content)
    _, version, machine = (read_pickle(file).value for _ in range(3))
    if version != 1001 or not isinstance(machine, PickledDict):
        raise FileError("its version is not 1001, the only one that torch has written")
    little = ("little_endian", False) not in machine.pairs
    pickle = read_pickle(file)
    keys = read_pickle(file).value
    dtypes = dict(_claim(reference)[:2] for reference in pickle.references if _is_storage(reference))
    whole, at = memoryview(content), file.tell()
    storages: dict[str, _Storage] = {}
    for key in map(str, keys):
        count = int.from_bytes(whole[at : at + 8], "little" if little else "big")
        begin, at = at + 8, at + 8 + count * _SIZES[dtypes[key]]
        if at > len(whole):
            raise FileError(f"its storage {key!r} claims {count} numbers, more than there are")
        storages[key] = _Storage(dtypes[key], at - begin, little, functools.partial(_part, whole, begin, at))

    def find(reference: Any) -> _Storage:
        key, dtype, _ = _claim(reference)
        base = storages[key]
        view = reference.identity[5] if len(reference.identity) > 5 else None
        if view is None:
            return base
        # Before 0.4, a storage could be a part of another one.
        _, *numbers = view
        begin, length = (number * _SIZES[dtype] for number in _integers(numbers))
        if begin + length > base.size:
            raise FileError(f"a part of the storage {key!r} claims {length} bytes, but it has {base.size}")
        return replace(base, size=length, read=lambda: base.read()[begin : begin + length])

    return pickle, find


def _part(whole: memoryview, begin: int, end: int) -> memoryview:
    return whole[begin:end]


def _read_plain(content: bytes) -> list[_Named]:
    """A pickle that torch.save did not write. Each storage in it is a call with the bytes of a file before 1.6."""
    if not any(word in content for word in (b"_load_from_bytes", b"ndarray", b"_frombuffer")):
        raise _no_checkpoint(_first_name(content))  # millions of words, maybe, which need not be read
    pickle = read_pickle(io.BytesIO(content))
    storages: dict[int, _Storage] = {}

    def find(storage: Any) -> _Storage:
        if not isinstance(storage, Object) or _function(storage) != ("torch.storage", "_load_from_bytes"):
            raise FileError("its tensors have no storages; it may be a part of another file")
        (data,) = storage.arguments
        if isinstance(data, Object) and _function(data) == ("_codecs", "encode"):  # bytes, before protocol 3
            data = data.arguments[0]
        if id(data) not in storages:
            held = data.encode("latin-1") if isinstance(data, str) else data
            if not isinstance(held, bytes):
                raise FileError("its storages are no strings of bytes; it may be altered")
            inner, find_inner = _read_legacy(held)
            storages[id(data)] = find_inner(inner.value)
        return storages[id(data)]

    found = _named_parts(pickle, find)
    if not any(isinstance(part, _Tensor) for _, part in found):
        raise _no_checkpoint(_function(pickle.value) if isinstance(pickle.value, Object) else None)
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
