"""The constants of an ONNX model, among them those that its nodes compute from others.

Exporters leave weights behind nodes such as Slice, Concat and Transpose. What they give is computed when it is asked
for, by ONNX's own reference implementation of the operator, and by no operator outside of a table here. The table says
how many bytes an operator makes at most, which are taken from a budget before it runs.
"""

import math
import os
import stat
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from unirnn.contract.weights import Array
from unirnn.errors import FileError, SpecError
from unirnn.files.onnx_scopes import Budget, Scope
from unirnn.files.onnx_writer import import_onnx

__all__ = ["Constants", "external_size"]

_MAX_CHAIN = 100  # of nodes, each of which computes from the one before
_RUNTIME = "com.microsoft"  # ONNX Runtime, whose operators of a name of ONNX's compute the same
_DOMAINS = ("", "ai.onnx", _RUNTIME)
_CONSTANTS = (["value_float"], ["value_floats"], ["value_int"], ["value_ints"])
_OPSET = 21  # of ONNX, instead of one that a model doesn't say

Arrays = Sequence[Array]
Attributes = Mapping[str, Any]


def _of_inputs(arrays: Arrays, attributes: Attributes) -> int:
    return sum(array.nbytes for array in arrays)


def _widest(arrays: Arrays, attributes: Attributes) -> int:
    """For an operator whose output has as many numbers as its first input, at most 8 bytes each."""
    return 8 * arrays[0].size


def _broadcast(arrays: Arrays, attributes: Attributes) -> int:
    return 8 * math.prod(np.broadcast_shapes(*(array.shape for array in arrays)))


def _expanded(arrays: Arrays, attributes: Attributes) -> int:
    return arrays[0].itemsize * math.prod(np.broadcast_shapes(arrays[0].shape, _sizes(arrays[1])))


def _filled(arrays: Arrays, attributes: Attributes) -> int:
    return 8 * math.prod(_sizes(arrays[0]))


def _tiled(arrays: Arrays, attributes: Attributes) -> int:
    return arrays[0].nbytes * math.prod(_sizes(arrays[1]))


def _gathered(arrays: Arrays, attributes: Attributes) -> int:
    data, indices = arrays[:2]
    return data.nbytes // max(1, data.shape[attributes.get("axis", 0)]) * indices.size


def _sizes(array: Array) -> tuple[int, ...]:
    """The sizes that an array holds, as Python's integers, which don't overflow."""
    sizes = tuple(int(size) for size in array.reshape(-1).tolist())
    if any(size < 0 for size in sizes):
        raise ValueError(f"given sizes {sizes}")
    return sizes


_OPERATORS: dict[str, Callable[[Arrays, Attributes], int]] = {
    **dict.fromkeys(("Identity", "Slice", "Concat", "Unsqueeze", "Squeeze", "Transpose", "Reshape"), _of_inputs),
    **dict.fromkeys(("Flatten", "Split", "Neg", "Abs", "Sqrt", "Reciprocal"), _of_inputs),
    **dict.fromkeys(("ReduceSum", "ReduceMean", "ReduceL2", "ReduceSumSquare"), _of_inputs),
    **dict.fromkeys(("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear"), _widest),
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Pow", "Where", "Equal", "Less", "Greater"), _broadcast),
    "Shape": lambda arrays, attributes: 8 * arrays[0].ndim,
    "Expand": _expanded,
    "ConstantOfShape": _filled,
    "Tile": _tiled,
    "Gather": _gathered,
}
"""The operators that are computed, and how many bytes each makes at most."""


class _NotConstantError(Exception):
    """A value that is an input of the model, or of an operator that is not computed here: its name, and what it is."""


class Constants:
    """The constants of a model. What is computed is kept for as long as this object is.

    Parameters
    ----------
    budget
        How many bytes may be made.
    folder
        Where files with numbers may lie, None if nowhere.
    """

    def __init__(self, budget: Budget, folder: str | None = None) -> None:
        self.onnx, self.budget, self.folder = import_onnx(), budget, folder
        self._known: dict[tuple[int, str], Array | _NotConstantError] = {}
        self._described: dict[tuple[int, str], tuple[tuple[int, ...], str]] = {}
        self._begun: set[tuple[int, str]] = set()
        self._scopes: list[Scope] = []  # those of the keys, so that no other gets the same id

    def array(self, scope: Scope, name: str, role: str) -> Array:
        """An array that must be a constant; a SpecError that says what it is otherwise. ``role`` is for the message."""
        try:
            return self._value(scope, name, 0)
        except _NotConstantError as error:
            source, what = error.args
            source = "is" if source == name else f"comes from {source!r},"
            raise SpecError(
                f"its {role}, {name!r}, {source} {what}, expected a constant; export the model with its weights, and "
                "its constants folded"
            ) from None

    def described(self, scope: Scope, name: str, role: str) -> tuple[tuple[int, ...], str]:
        """The shape and dtype of a constant. Only one that is computed is made for this."""
        owner, own_name = scope.find(name)
        key = id(owner), own_name
        if key not in self._described:
            tensor = self._tensor(owner, own_name)
            if tensor is None:
                array = self.array(scope, name, role)
                self._described[key] = array.shape, array.dtype.name
            else:
                self._check(tensor)
                self._described[key] = tuple(tensor.dims), _dtype(tensor, self.onnx)
            self._scopes.append(owner)
        return self._described[key]

    def ints(self, scope: Scope, name: str) -> list[int] | None:
        """The values of a small constant; None if it is not a constant, or not of integers."""
        try:
            array = self._value(scope, name, 0)
        except (_NotConstantError, SpecError):
            return None
        if array.ndim > 1 or array.size > 8 or array.dtype.kind not in "iuf":
            return None
        values = array.reshape(-1).tolist()
        return [int(value) for value in values] if all(float(value).is_integer() for value in values) else None

    def is_zero(self, scope: Scope, name: str) -> bool:
        """Whether a value is zeros, of whatever shape, which need not be known before the run."""
        for _ in range(_MAX_CHAIN):
            scope, name = scope.find(name)
            index = scope.producers.get(name)
            node = None if index is None or name in scope.initializers else scope.nodes[index]
            if node is None or node.op_type not in ("Expand", "Cast", "CastLike", "ConstantOfShape"):
                break
            if node.op_type == "ConstantOfShape":
                return not any(self.read(a.t).any() for a in scope.attributes(node) if a.name == "value")
            name = node.input[0] if node.input else ""
        try:
            return not self._value(scope, name, 0).any()
        except (_NotConstantError, SpecError):
            return False

    def is_nonzero(self, scope: Scope, name: str) -> bool:
        """Whether a value is a constant, and not only zeros."""
        try:
            return bool(self._value(scope, name, 0).any())
        except (_NotConstantError, SpecError, FileError):
            return False

    # ---- values ----

    def _value(self, scope: Scope, name: str, depth: int) -> Array:
        scope, name = scope.find(name)
        key = id(scope), name
        found = self._known.get(key)
        if found is None:
            if key in self._begun:  # nodes may form a ring
                raise _NotConstantError(name, "computed from itself")
            self._scopes.append(scope)
            self._begun.add(key)
            try:
                found = self._compute(scope, name, depth)
            except _NotConstantError as error:
                found = error
            finally:
                self._begun.remove(key)
            self._known[key] = found
        if isinstance(found, _NotConstantError):
            raise _NotConstantError(*found.args)
        return found

    def _tensor(self, scope: Scope, name: str) -> Any | None:
        """The tensor of an initializer, or of a Constant node; None if it is neither."""
        if name in scope.initializers:
            return scope.initializers[name]
        node = scope.nodes[scope.producers[name]] if name in scope.producers else None
        if node is None or node.op_type != "Constant" or node.domain not in _DOMAINS:
            return None
        return next((a.t for a in scope.attributes(node) if a.name == "value"), None)

    def _compute(self, scope: Scope, name: str, depth: int) -> Array:
        tensor = self._tensor(scope, name)
        if tensor is not None:
            return self.read(tensor)
        if name not in scope.producers:
            raise _NotConstantError(name, "an input of the graph")
        index = scope.producers[name]
        node = scope.nodes[index]
        position = list(node.output).index(name)
        if depth > _MAX_CHAIN:
            raise _NotConstantError(name, f"computed by more than {_MAX_CHAIN} nodes, one after the other")
        function = scope.function(node)
        if function is not None and position < len(function.output):
            return self._value(scope.body(index, self.budget), function.output[position], depth + 1)
        attributes = scope.attributes(node)
        if node.op_type == "Constant" and [a.name for a in attributes] in _CONSTANTS:
            dtype = np.float32 if "float" in attributes[0].name else np.int64
            return np.array(self.onnx.helper.get_attribute_value(attributes[0]), dtype)
        if node.domain not in _DOMAINS or node.op_type not in _OPERATORS or function is not None:
            raise _NotConstantError(name, f"computed by node {node.name!r} ({node.op_type})")
        arrays = [self._value(scope, given, depth + 1) if given else None for given in node.input]
        return self._run(scope, name, arrays)[position]

    def _run(self, scope: Scope, name: str, arrays: Sequence[Array | None]) -> list[Array]:
        """Compute the node that gives a value, if the budget allows for the size of what it makes."""
        from onnx.reference import ReferenceEvaluator

        node = scope.nodes[scope.producers[name]]
        where, attributes = f"node {node.name!r} ({node.op_type})", scope.attributes(node)
        self.budget.take_nodes(1, where)
        helper = self.onnx.helper
        given = [array for array in arrays if array is not None]
        try:
            options = {a.name: helper.get_attribute_value(a) for a in attributes}
            num_bytes = _OPERATORS[node.op_type](given, options)
        except Exception as error:  # of arrays of other kinds than the operator takes
            raise _NotConstantError(name, f"computed by {where}, whose inputs it can't take: {error}") from None
        left = self.budget.left
        self.budget.take(num_bytes, where)
        # As a function, so that the version of the operators can be given.
        version = scope.opsets.get("", scope.opsets.get("ai.onnx", _OPSET))
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):  # the reference has only the newer versions
            version = max(version, _OPSET)
        names = [f"x{number}" if array is not None else "" for number, array in enumerate(arrays)]
        results = [f"y{number}" for number in range(len(node.output))]
        one = helper.make_node(node.op_type, names, results)
        one.attribute.extend(attributes)
        feeds = {name: array for name, array in zip(names, arrays, strict=True) if name}
        function = helper.make_function(
            "unirnn", "one", list(feeds), results, [one], [helper.make_opsetid("", version)]
        )
        try:
            with np.errstate(all="ignore"):
                made = ReferenceEvaluator(function).run(None, feeds, {})
        except Exception as error:  # whatever an operator of ONNX raises over what it doesn't take
            reason = str(error).partition("\n")[0]
            raise _NotConstantError(
                name, f"computed by {where}, which fails: {type(error).__name__}: {reason}"
            ) from None
        found = [np.asarray(array) for array in made]
        self.budget.left = left
        # Views make nothing.
        self.budget.take(sum(a.nbytes for a in found if not any(np.may_share_memory(a, b) for b in given)), where)
        return found

    # ---- tensors ----

    def read(self, tensor: Any) -> Array:
        """The array of a tensor, once the size that it claims has been checked against its data."""
        self._check(tensor)
        onnx, kinds = self.onnx, self.onnx.TensorProto
        size = math.prod(tensor.dims) * max(1, _SIZES[kinds.DataType.Name(tensor.data_type)])
        self.budget.take(size, f"tensor {tensor.name!r}")
        if _is_external(tensor, onnx):
            whole = kinds(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
            whole.raw_data = self._external_data(tensor, size)
            tensor = whole
        array: Array = onnx.numpy_helper.to_array(tensor)
        return array.astype(np.float32) if tensor.data_type == kinds.BFLOAT16 else array

    def _check(self, tensor: Any) -> None:
        """Check a tensor's claims; a FileError if they are not true, a SpecError if they are not understood."""
        kinds = self.onnx.TensorProto
        where = f"tensor {tensor.name!r}"
        name = kinds.DataType.Name(tensor.data_type) if tensor.data_type in kinds.DataType.values() else "unknown"
        if tensor.HasField("segment") or any(size < 0 for size in tensor.dims):
            raise FileError(f"{where}: not a complete tensor; given dims {list(tensor.dims)}")
        if name not in _SIZES:
            raise SpecError(f"{where}: given {name}, expected FLOAT, DOUBLE, FLOAT16 or BFLOAT16")
        if _is_external(tensor, self.onnx):
            if self.folder is None or not _is_plain(_entries(tensor).get("location", "")):
                raise FileError(
                    f"{where}: its numbers are in another file, and a path in a file is not followed; if you trust it, "
                    "unirnn.snapshot(onnx.load(path)) reads both"
                )
            return
        claimed, unit = math.prod(tensor.dims), 1
        if name in ("INT4", "UINT4"):
            claimed = (claimed + 1) // 2
        fields = {"FLOAT": tensor.float_data, "DOUBLE": tensor.double_data, "INT64": tensor.int64_data}
        fields |= dict.fromkeys(("UINT32", "UINT64"), tensor.uint64_data)
        held = len(fields.get(name, tensor.int32_data))
        if tensor.HasField("raw_data"):
            held, unit = len(tensor.raw_data), max(1, _SIZES[name])
        if held != (claimed := claimed * unit):
            numbers = "bytes" if tensor.HasField("raw_data") else "numbers"
            raise FileError(f"{where}: dims {list(tensor.dims)} need {claimed} {numbers}, and it holds {held}")

    def _external_data(self, tensor: Any, size: int) -> bytes:
        """The bytes of a tensor whose numbers are in a file beside the model's."""
        entries, where = _entries(tensor), f"tensor {tensor.name!r}"
        path = os.path.join(self.folder or "", entries["location"])
        try:
            begin, length = int(entries.get("offset", 0)), int(entries.get("length", size))
            status = os.lstat(path)
        except (OSError, ValueError) as error:
            raise FileError(f"{where}: its numbers are in another file, which can't be read: {error}") from None
        if not stat.S_ISREG(status.st_mode) or begin < 0 or length != size or begin + length > status.st_size:
            raise FileError(
                f"{where}: dims {list(tensor.dims)} need {size} bytes, expected them in {entries['location']!r} beside "
                f"the model, an ordinary file; given {length} bytes from byte {begin} of {status.st_size}"
            )
        with open(path, "rb") as file:
            file.seek(begin)
            return file.read(length)


_SIZES = {
    **dict.fromkeys(("INT4", "UINT4"), 0),  # two in a byte
    **dict.fromkeys(("INT8", "UINT8", "BOOL"), 1),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 2),
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 4),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64"), 8),
}
"""The types of tensors that are read, and the bytes of one number."""


def external_size(model: Any, folder: str | None) -> int:
    """The bytes of the files beside a model's in which it says that its numbers are."""
    tensors = () if folder is None else model.graph.initializer
    names = {_entries(tensor).get("location", "") for tensor in tensors if len(tensor.external_data)}
    found = 0
    for name in filter(_is_plain, names):
        try:
            found += os.lstat(os.path.join(folder or "", name)).st_size
        except (OSError, ValueError):
            continue  # reading such a tensor says so
    return found


def _is_external(tensor: Any, onnx: Any) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data))


def _entries(tensor: Any) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _is_plain(name: str) -> bool:
    """Whether it is the name of a file, and no path."""
    return isinstance(name, str) and bool(name) and name not in (".", "..") and not set(name) & set("/\\:\0")


def _dtype(tensor: Any, onnx: Any) -> str:
    """The dtype of a tensor's array."""
    if tensor.data_type == onnx.TensorProto.BFLOAT16:
        return "float32"
    return str(np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)).name)
