"""The tensors in a pickle of PyTorch or NumPy, by name; see `unirnn.files.torch_checkpoints`.

All tensors are found, wherever they are: the keys of mappings, the positions in lists and the attributes of objects are
joined by dots, and of a module the names are those of its ``state_dict``.
"""

import functools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from unirnn.contract.weights import Array
from unirnn.errors import FileError, UnirnnError
from unirnn.files._contents import StoredArray
from unirnn.files.pickles import Global, Object, Pickle, PickledDict, Reference
from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.specs.arguments import arguments

__all__ = [
    "SIZES",
    "Budget",
    "Find",
    "Named",
    "Storage",
    "Tensor",
    "claim",
    "function_name",
    "integers",
    "is_storage",
    "named_parts",
]

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

SIZES = {
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


class Budget:
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
class Storage:
    """The bytes behind tensors: how many there are, what numbers they are, and how to get them."""

    dtype: str
    size: int
    little: bool
    read: Callable[[], memoryview | bytes]


@dataclass(frozen=True)
class Tensor:
    """A tensor: numbers in a storage, all of which are there; `offset` and `strides` count numbers, not bytes."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def stored(self, budget: Budget) -> StoredArray:
        """The tensor as a stored array; NumPy has no bfloat16, so it becomes float32."""
        widened = self.dtype == "bfloat16"

        def read_array() -> Array:
            size = SIZES[self.dtype]
            budget.spend(math.prod(self.shape) * size * (2 if widened else 1))
            kind = np.dtype("u2" if widened else self.dtype).newbyteorder("<" if self.storage.little else ">")
            numbers = np.frombuffer(self.storage.read(), kind, self.storage.size // size)[self.offset :]
            strides = [stride * size for stride in self.strides]
            array = np.lib.stride_tricks.as_strided(numbers, self.shape, strides, writeable=False)
            return (array.astype(np.uint32) << 16).view(np.float32) if widened else array

        return StoredArray("float32" if widened else self.dtype, self.shape, read_array)


Named: TypeAlias = tuple[str, Tensor | RecurrentSpec]
Find: TypeAlias = Callable[[Any], Storage]
"""The storage that a reference in a pickle means."""


def named_parts(pickle: Pickle, find: Find) -> list[Named]:
    """All tensors in a pickle, by name, and the specs of torch's own recurrent layers."""
    # The same object may be in several places, and has a name in each. So that a small file does not have an endless
    # number of them, what is visited, and how long the names are, is held against the size of the pickle.
    left = 10_000 + 100 * pickle.operations
    within: set[int] = set()
    of_numpy: set[str] = set()
    known: dict[int, tuple[Any, list[tuple[Any, Any]]]] = {}  # members, by the identity of the object, which is held

    def walk(value: Any, name: str) -> Iterator[Named]:
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
    return of_torch if any(isinstance(part, Tensor) for _, part in of_torch) else found


def _members(value: Any) -> list[tuple[Any, Any]]:
    """The parts of an object, by the keys, positions or attributes under which they are."""
    if isinstance(value, PickledDict):
        return value.pairs
    if isinstance(value, (list, tuple)):
        return list(enumerate(value))
    # torch's own objects that are no plain tensors, such as sparse ones, are left out.
    if not isinstance(value, Object) or (function_name(value) or ("", ""))[0] in ("torch._utils", "torch._tensor"):
        return []
    state = value.state if isinstance(value.state, PickledDict) else PickledDict()
    return _module_members(state) or _object_members(value)


def _object_members(value: Object) -> list[tuple[Any, Any]]:
    if not isinstance(value.arguments, tuple):
        raise FileError("its pickle calls something with arguments that are no tuple")
    pairs = list(value.pairs or ())
    if function_name(value) == ("collections", "OrderedDict"):  # Python 2 wrote its items as an argument
        items = value.arguments[0] if value.arguments and isinstance(value.arguments[0], list) else []
        pairs += [(pair[0], pair[1]) for pair in items if isinstance(pair, (tuple, list)) and len(pair) == 2]
    else:
        pairs += [*enumerate(value.arguments), *enumerate(value.items or ())]
    # The state is a dict of attributes, or a pair of them if the class has slots, or whatever the class likes.
    for state in value.state if isinstance(value.state, tuple) else (value.state,):
        pairs += state.pairs if isinstance(state, PickledDict) else [("state", state)]
    return pairs


def _module_members(state: PickledDict) -> list[tuple[Any, Any]]:
    """The members of a ``torch.nn.Module`` that are in its ``state_dict``; empty for any other object."""
    attributes = {key: item for key, item in state.pairs if isinstance(key, str)}
    if not {"_parameters", "_buffers", "_modules"} <= attributes.keys():
        return []
    skipped = _strings(attributes.get("_non_persistent_buffers_set"))
    buffers = [
        pair for pair in _members(attributes["_buffers"]) if not isinstance(pair[0], str) or pair[0] not in skipped
    ]
    return [*_members(attributes["_parameters"]), *buffers, *_members(attributes["_modules"])]


def _layer_spec(value: Any) -> RecurrentSpec | None:
    """The spec of an object of torch's own class, not of a subclass, by its attributes; None for anything else."""
    kind = _LAYERS.get(function_name(value) or ("", "")) if isinstance(value, Object) else None
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
    """The value within a parameter, or within a list of TorchScript."""
    for _ in range(_DEEPEST):
        if not isinstance(value, Object) or not isinstance(value.arguments, tuple) or not value.arguments:
            break
        name = function_name(value)
        if name in _WRAPPERS:
            value = value.arguments[0]
        elif name == ("torch._tensor", "_rebuild_from_type_v2") and len(value.arguments) == 4:  # a subclass of Tensor
            value = Object(value.arguments[0], value.arguments[2])
        else:
            break
    return value


def function_name(value: Object) -> tuple[str, str] | None:
    """The module and the name of the function or the class that makes an object."""
    function = value.function
    if isinstance(function, Reference) and isinstance(function.identity, tuple) and len(function.identity) == 4:
        function = function.identity[1]  # before 1.6, the class of a module is kept together with its source code
    if isinstance(function, Global) and isinstance(function.module, str) and isinstance(function.name, str):
        return function.module, function.name
    return None


def _tensor(value: Any, find: Find) -> Tensor | None:
    """The tensor that an object is; None if it is none, or of a kind that is left out."""
    if not isinstance(value, Object) or not isinstance(value.arguments, tuple):
        return None
    name, arguments = function_name(value), value.arguments
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
    if not isinstance(dtype, str) or dtype not in SIZES:
        return None
    sizes, steps, (start,) = integers(shape), integers(strides), integers((offset,))
    if len(sizes) != len(steps):
        raise FileError(f"a tensor claims {len(sizes)} axes and {len(steps)} strides")
    last = start + sum((size - 1) * step for size, step in zip(sizes, steps, strict=True))
    count = found.size // SIZES[dtype]
    if 0 not in sizes and last >= count:
        raise FileError(f"a tensor claims {last + 1} numbers or more, but its storage has {count}")
    if math.prod(sizes) > count:  # an expanded tensor claims more numbers than are stored
        return None
    return Tensor(found, dtype, start, sizes, steps)


def _numpy_array(value: Any) -> Tensor | None:
    """The array of NumPy that an object is; None if it is none, or not of numbers."""
    if not isinstance(value, Object) or not _NUMPY.fullmatch(" ".join(function_name(value) or ())):
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
    if isinstance(data, Object) and function_name(data) == ("_codecs", "encode") and isinstance(data.arguments, tuple):
        data = data.arguments[0]  # bytes, before protocol 3
    dtype, little = _numpy_dtype(kind)
    if dtype is None or not isinstance(data, (bytes, bytearray, str)):
        return None
    sizes = integers(shape)
    if math.prod(sizes) * SIZES[dtype] != len(data):
        raise FileError(f"an array of shape {sizes} and {dtype} has {len(data)} bytes")
    strides = [math.prod(sizes[:axis] if is_fortran else sizes[axis + 1 :]) for axis in range(len(sizes))]
    read = functools.partial(str.encode, data, "latin-1") if isinstance(data, str) else functools.partial(bytes, data)
    return Tensor(Storage(dtype, len(data), little, read), dtype, 0, sizes, tuple(strides))


def _numpy_dtype(value: Any) -> tuple[str | None, bool]:
    """The name of a pickled dtype, None if it is not one of numbers, and whether it is little-endian."""
    arguments = value.arguments if isinstance(value, Object) and function_name(value) == ("numpy", "dtype") else None
    code = arguments[0] if isinstance(arguments, tuple) and arguments else None
    if not isinstance(code, str) or not re.fullmatch("f[248]|[iu][1248]|b1", code):
        return None, True
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "<"
    return np.dtype(code).name, order != ">"


def integers(values: Any) -> tuple[int, ...]:
    """Sizes or strides; a FileError if they are something else."""
    if not isinstance(values, (tuple, list)) or len(values) > 32 or any(type(v) is not int or v < 0 for v in values):
        raise FileError("a tensor has sizes or strides that are not at most 32 integers of 0 or more")
    return tuple(values)


def is_storage(reference: Any) -> bool:
    """Whether a reference is one to a storage; old files refer to the source code of modules as well."""
    identity = reference.identity if isinstance(reference, Reference) else None
    return isinstance(identity, (tuple, list)) and len(identity) >= 5 and identity[0] == "storage"


def claim(reference: Any) -> tuple[str, str, int]:
    """The key of a storage, the dtype of its numbers, and how many there are, as a reference says."""
    if is_storage(reference):
        _, kind, key, _, count = reference.identity[:5]
        dtype = _STORAGES.get(kind.name) if isinstance(kind, Global) and isinstance(kind.name, str) else None
        if dtype is not None and isinstance(key, (str, int)) and type(count) is int and count >= 0:
            return str(key), dtype, count
    raise FileError("it refers to a storage in a way that torch does not")
