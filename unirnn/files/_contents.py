"""The contents of a file, described without its data: arrays by name, and the layers that they make up."""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

import numpy as np

from unirnn.contract.weights import Array, check_dtype, check_weights, format_names
from unirnn.devices import DTYPES, short_name
from unirnn.errors import ArgumentError, AssumptionWarning, DTypeError, FileError, SpecError, UnirnnError
from unirnn.files._header import FORMAT, spec_from_metadata
from unirnn.registry import to_numpy
from unirnn.snapshots import flax, model_weights, state_dicts
from unirnn.snapshots.model_weights import Rename
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import ModelSpec, RecurrentSpec, Spec

__all__ = [
    "MAX_RATIO",
    "ByteOrder",
    "Choice",
    "Contents",
    "Layer",
    "StoredArray",
    "contents_of_arrays",
    "contents_of_snapshot",
    "contents_of_state_dict",
    "floats",
    "most_bytes",
    "read_state_dict",
    "stored",
    "warn_of_assumptions",
]

ByteOrder: TypeAlias = Literal["<", ">"]
"""NumPy's sign for little-endian and big-endian numbers."""

MAX_RATIO = 100
"""What a compressed file may expand to, by its size: trained weights hardly compress, zeros compress a thousandfold."""

_HARMLESS = 1 << 26  # bytes; a smaller result may come of any file

_ASSUMED = ("batch_first",)
"""The arguments that change how a layer is called, and that the names and shapes of a state dict do not show."""


@dataclass(frozen=True)
class Layer:
    """A recurrent layer in a file, or the whole of a snapshot.

    Parameters
    ----------
    spec
        Its spec, or the error that says why it is not known.
    assumed
        The arguments of the spec that the file does not say; see `unirnn.Snapshot`.
    weights
        The shape and dtype of each weight, by the names of `Spec.weight_shapes`; empty if there is no spec. The dtype
        is the one after reading: float32 for bfloat16.
    note
        What else a user should know of it.
    """

    spec: Spec | UnirnnError
    weights: Mapping[str, tuple[tuple[int, ...], str]]
    assumed: tuple[str, ...] = ()
    note: str = ""

    @property
    def num_weights(self) -> int:
        """How many numbers the weights hold, buffers included."""
        return sum(math.prod(shape) for shape, _ in self.weights.values())

    @property
    def num_bytes(self) -> int:
        """How many bytes the weights take after reading."""
        return sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in self.weights.values())


@dataclass(frozen=True)
class Choice:
    """What to read from a file or a mapping, as the arguments of `unirnn.load` and `unirnn.snapshot` say it.

    Parameters
    ----------
    prefix
        The beginning of the names of the layer or the model; or several of them, a stack of layers of a state dict.
    spec
        What the layer or the model is.
    rename
        New beginnings of names by the old ones.
    batch_first
        Whether the layer takes `(B, T, I)`; None if nobody says so.

    Raises
    ------
    ArgumentError
        If one of them has the wrong type, or they contradict each other.
    """

    prefix: str | Sequence[str] | None = None
    spec: Spec | None = None
    rename: Rename | None = None
    batch_first: bool | None = None

    def __post_init__(self) -> None:
        spec, rename = self.spec, self.rename
        if isinstance(self.prefix, (list, tuple)):
            self._check_prefixes(self.prefix)
        elif not isinstance(spec, Spec | None) or not isinstance(self.prefix, str | None):
            raise ArgumentError(
                f"spec, prefix: given {spec!r}, {self.prefix!r}, expected a spec such as GRUSpec(3, 4), and a str"
            )
        if not isinstance(self.batch_first, bool | None):
            raise ArgumentError(f"batch_first: given {self.batch_first!r}, expected True or False")
        if spec is not None:
            self.check_layout(spec, "the spec")
        if rename is None:
            return
        if not isinstance(rename, Mapping) or not all(
            isinstance(old, str) and isinstance(new, str | None) for old, new in rename.items()
        ):
            raise ArgumentError(f"rename: given {rename!r}, expected new beginnings of names by the old ones")
        if spec is None or isinstance(spec, RecurrentSpec):
            given = "without a spec" if spec is None else f"with {spec!r}"
            raise ArgumentError(
                f"rename: given {given}, expected a model as spec; a recurrent layer is chosen by prefix"
            )

    def _check_prefixes(self, prefixes: Sequence[object]) -> None:
        if not prefixes or not all(isinstance(prefix, str) for prefix in prefixes):
            raise ArgumentError(
                f"prefix: given {prefixes!r}, expected a str, or a list of them, the lowest layer first"
            )
        if not isinstance(self.spec, RecurrentSpec | None):
            raise ArgumentError(f"prefix: given a list with {self.spec!r}, expected a recurrent layer, or one prefix")

    @property
    def only_prefix(self) -> str | None:
        """The prefix, where a list of them is an ArgumentError: the layers are known, and what is between them."""
        if isinstance(self.prefix, str | None):
            return self.prefix
        raise ArgumentError(
            f"prefix: given {list(self.prefix)!r}, expected one: a list is for the names of a state dict; read the "
            "layers one by one and join them by unirnn.stack, if there is nothing between them"
        )

    def check_layout(self, spec: Spec, whose: str) -> None:
        """Check that ``batch_first``, if it is given, is what a spec says; an ArgumentError if it is not."""
        if self.batch_first is None:
            return
        known = getattr(spec, "batch_first", None)
        if known is None:
            raise ArgumentError(f"batch_first: given {self.batch_first} with {spec!r}, which has none; leave it out")
        if known is not self.batch_first:
            raise ArgumentError(
                f"batch_first: given {self.batch_first}, but {whose} says {known}: {_short(spec)}; give one of them"
            )


@dataclass(frozen=True)
class Contents:
    """What a file says that it holds.

    Parameters
    ----------
    format
        One of `unirnn.files.FORMATS`.
    version
        The version of unirnn's format; None if another program wrote the file.
    layers
        The recurrent layers by their prefixes. A snapshot is one layer, or one model, whose prefix is empty.
    read
        Reads a layer or a model, given the arguments of `load` that choose it.
    arrays
        All arrays by their names; empty for ``.onnx`` and Keras, whose layers have names, but no such arrays.
    """

    format: str
    version: int | None
    layers: Mapping[str, Layer]
    read: Callable[[Choice], Snapshot]
    arrays: Mapping[str, "StoredArray"] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredArray:
    """An array that a file claims to hold.

    Parameters
    ----------
    dtype
        Its dtype after reading. If weights can't have the dtype, the file's own name for it.
    shape
        Its shape.
    read
        Reads it.
    """

    dtype: str
    shape: tuple[int, ...]
    read: Callable[[], Array]

    @classmethod
    def from_array(cls, array: Array) -> "StoredArray":
        """An array that has been read already."""
        return cls(short_name(array.dtype), array.shape, lambda: array)

    @classmethod
    def from_bytes(
        cls, dtype: str, shape: tuple[int, ...], read: Callable[[], bytes | memoryview], order: ByteOrder = "<"
    ) -> "StoredArray":
        """An array of floats whose bytes are read when they are needed; bfloat16 becomes float32."""
        name = "float32" if dtype == "bfloat16" else dtype
        return cls(name, shape, lambda: floats(dtype, read(), order).reshape(shape))


def stored(array: Any) -> StoredArray:
    """An array or a tensor of any framework, which is converted when it is needed."""
    try:
        held = array if hasattr(array, "shape") else np.asarray(array)
    except ValueError:  # a ragged list
        return StoredArray("object", (), lambda: np.empty(0))
    dtype = short_name(held.dtype)
    return StoredArray("float32" if dtype == "bfloat16" else dtype, tuple(held.shape), lambda: to_numpy(held))


def floats(dtype: str, data: bytes | memoryview, order: ByteOrder = "<") -> Array:
    """Decode floats, `(N,)`. NumPy has no bfloat16, so it becomes float32, whose upper half it is.

    Examples
    --------
    >>> floats("bfloat16", bytes([0x80, 0x3F, 0x00, 0xC0]))
    array([ 1., -2.], dtype=float32)
    """
    if dtype == "bfloat16":
        return (np.frombuffer(data, f"{order}u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.dtype(dtype).newbyteorder(order))


def most_bytes(size: int) -> int:
    """How many bytes may be read from a compressed file of a size."""
    return max(_HARMLESS, MAX_RATIO * size)


def contents_of_arrays(format: str, arrays: Mapping[str, StoredArray], metadata: Mapping[str, str]) -> Contents:
    """Describe a file of arrays by name: a snapshot, if its metadata says so, or what another program wrote."""
    spec = spec_from_metadata(metadata)
    return contents_of_state_dict(format, arrays) if spec is None else contents_of_snapshot(format, spec, arrays)


def contents_of_state_dict(format: str, arrays: Mapping[str, StoredArray]) -> Contents:
    """Describe a file of arrays by name that another program wrote."""
    arrays = flax.translate(arrays)
    shapes = {name: array.shape for name, array in arrays.items()}
    layers: dict[str, Layer] = {}
    for prefix, match in state_dicts.find_layers(shapes).items():
        if isinstance(match, UnirnnError):
            layers[prefix] = Layer(match, {})
            continue
        try:
            layers[prefix] = replace(_describe(arrays, *match), assumed=_ASSUMED)
        except DTypeError as error:
            layers[prefix] = Layer(error, {})
    return Contents(format, None, layers, lambda choice: read_state_dict(arrays, choice), arrays)


def read_state_dict(arrays: Mapping[str, StoredArray], choice: Choice) -> Snapshot:
    """Read a recurrent layer, or the model of the given spec, from arrays by name; see `unirnn.snapshot`."""
    arrays = flax.translate(arrays)
    shapes = {name: array.shape for name, array in arrays.items()}
    spec = choice.spec
    if spec is None or isinstance(spec, RecurrentSpec):
        assumed = _ASSUMED if spec is None and choice.batch_first is None else ()
        found = state_dicts.choose_layer(shapes, prefix=choice.prefix, spec=spec, batch_first=choice.batch_first)
        return replace(_read_layer(arrays, *found), assumed=assumed)
    floating = [name for name, array in arrays.items() if array.dtype in DTYPES]
    sources = model_weights.choose_weights(spec, shapes, floating, prefix=choice.only_prefix, rename=choice.rename)
    for source in sources.values():
        check_dtype(source, arrays[source].dtype)
    for name, other in (spec.tied() if isinstance(spec, ModelSpec) else {}).items():
        own = sources.pop(name, sources[other])
        if own != sources[other]:
            one, another = (arrays[source].read() for source in (own, sources[other]))
            if not np.array_equal(one, another, equal_nan=True):
                raise ArgumentError(f"weights: {own!r} and {sources[other]!r} differ, but the spec ties them")
    expected = spec.weight_shapes()
    return Snapshot(spec, {name: arrays[sources[name]].read().reshape(expected[name]) for name in expected})


def warn_of_assumptions(found: Snapshot) -> None:
    """Warn the caller of `unirnn.load` or `unirnn.snapshot`, who calls this, of what is neither given nor known."""
    if "batch_first" in found.assumed:
        warnings.warn(
            "batch_first: a state dict does not say it, and it is not given; assumed to be False, so that the layer "
            "takes (T, B, I); give batch_first=True or batch_first=False",
            AssumptionWarning,
            stacklevel=3,
        )


def contents_of_snapshot(format: str, spec: Spec, arrays: Mapping[str, StoredArray]) -> Contents:
    """Describe a file whose metadata says that its arrays are the weights of a spec."""
    # A spec may claim any number of layers. Compare it with the number of arrays before listing the names of weights.
    recurrent = [leaf for leaf in spec.leaves().values() if isinstance(leaf, RecurrentSpec)]
    if sum(leaf.num_layers * leaf.num_directions for leaf in recurrent) > len(arrays):
        raise FileError(f"unirnn: given {_short(spec)}, but the file has {len(arrays)} arrays")
    try:
        check_weights(spec, {name: array.shape for name, array in arrays.items()})
        layer = _describe(arrays, spec, {name: name for name in spec.weight_shapes()})
    except UnirnnError as error:
        raise FileError(f"unirnn: given {_short(spec)}, which doesn't fit the arrays: {error}") from error

    def read(choice: Choice) -> Snapshot:
        prefix, given = choice.only_prefix, choice.spec
        if choice.rename is not None:  # the file of one model, opened as another
            return read_state_dict(arrays, choice)
        inner = _inner(spec, prefix or "")
        if given is not None and not given.fits(inner):
            raise SpecError(f"spec: given {given!r}, but the file says {inner!r}")
        begin = f"{prefix.removesuffix('.')}." if prefix else ""
        return _read_layer(arrays, given or inner, {name: begin + name for name in inner.weight_shapes()})

    return Contents(format, FORMAT, {"": layer}, read, arrays)


def _inner(spec: Spec, prefix: str) -> Spec:
    """The layer of a model whose weights' names begin so; an ArgumentError if there is none."""
    found = spec
    for name in filter(None, prefix.removesuffix(".").split(".")):
        inner = dict(found.children).get(name) if isinstance(found, ModelSpec) else None
        if inner is None:
            known = [f"{name}." for name in spec.leaves() if name]
            layers = f"of the layers {format_names(map(repr, known))}" if known else "of one layer without a prefix"
            raise ArgumentError(f"prefix: given {prefix!r}, but the file is a snapshot, {layers}")
        found = inner
    return found


def _short(spec: Spec) -> str:
    """A spec for a message; a hostile one may be long."""
    text = repr(spec)
    return text if len(text) <= 1_000 else text[:1_000] + "..."


def _describe(arrays: Mapping[str, StoredArray], spec: Spec, sources: Mapping[str, str]) -> Layer:
    """Describe a layer by the names of the arrays of its weights; a DTypeError if one of them is not of floats."""
    for source in sources.values():
        check_dtype(source, arrays[source].dtype)
    held = {name: arrays[sources[name]] for name in spec.weight_shapes()}
    return Layer(spec, {name: (array.shape, array.dtype) for name, array in held.items()})


def _read_layer(arrays: Mapping[str, StoredArray], spec: Spec, sources: Mapping[str, str]) -> Snapshot:
    layer = _describe(arrays, spec, sources)
    return Snapshot(spec, {name: arrays[sources[name]].read() for name in layer.weights})
