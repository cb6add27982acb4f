"""Reading ``.onnx``: the recurrent layers that a model holds, whoever wrote it, and whole models that unirnn wrote.

Nothing is executed: nodes and constants are only inspected. Whatever is not understood is an error that names the
node. The size that a tensor claims is checked against its bytes before an array is made.
"""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from unirnn.contract.weights import Array
from unirnn.devices import DTYPES
from unirnn.errors import ArgumentError, FileError, SpecError, UnirnnError
from unirnn.files._contents import Choice, Contents, Layer, StoredArray, contents_of_snapshot
from unirnn.files._header import FORMAT, reject_duplicates, spec_from_metadata
from unirnn.files.onnx_writer import import_onnx
from unirnn.snapshots import layouts
from unirnn.snapshots.snapshot import Snapshot
from unirnn.snapshots.stacking import stack
from unirnn.snapshots.state_dicts import choose_name
from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Spec

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["choose_layer", "find_layers", "parse", "read", "read_model"]

_SPECS: dict[str, type[RecurrentSpec]] = {cls.kind: cls for cls in (RNNSpec, GRUSpec, LSTMSpec)}
_ATTRIBUTES = {
    "activations": "STRINGS",
    "direction": "STRING",
    "hidden_size": "INT",
    "input_forget": "INT",
    "layout": "INT",
    "linear_before_reset": "INT",
}
_ACTIVATIONS = {"RNN": ("tanh",), "GRU": ("sigmoid", "tanh"), "LSTM": ("sigmoid", "tanh", "tanh")}


def read(path: str) -> Contents:
    """Describe what a file holds."""
    with open(path, "rb") as file:
        found = find_layers(parse(file.read()))
    layers: dict[str, Layer] = {}
    for name, layer in found.items():
        if isinstance(layer, Snapshot):
            weights = {key: (array.shape, array.dtype.name) for key, array in layer.weights.items()}
            layers[name] = Layer(layer.spec, weights)
        else:
            layers[name] = Layer(layer, {})
    version = FORMAT if "" in found else None
    return Contents("onnx", version, layers, lambda choice: choose_layer(found, choice.only_prefix, choice.spec))


def parse(data: bytes) -> "ModelProto":
    """Parse the bytes of an ``.onnx`` file.

    Raises
    ------
    MissingBackendError
        If onnx is not installed.
    FileError
        If they are not an ONNX model.
    """
    onnx = import_onnx()
    from google.protobuf.message import DecodeError  # a dependency of onnx

    model: ModelProto = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise FileError(f"onnx: no ONNX model, or a truncated or altered one ({error})") from None
    if not model.HasField("graph"):
        raise FileError("onnx: no ONNX model, or a truncated or altered one (it holds no graph)")
    return model


def read_model(model: "ModelProto", prefix: str | None = None, spec: Spec | None = None) -> Snapshot:
    """Read a recurrent layer of a model. If `emit` made the model, this is the snapshot that it was made from.

    Parameters
    ----------
    model
        A model.
    prefix
        The name of the layer's first node, if there are several layers; see `find_layers`. Of a model that unirnn
        wrote, the name of one of its layers.
    spec
        The layer's spec, which adds what a graph does not say: ``dropout`` and ``batch_first``.

    Raises
    ------
    ArgumentError
        If it is not a model, or there are several layers and no prefix, or no layer has the prefix as its name.
    SpecError
        If no spec describes the layer, or the given one does not.
    FileError
        If the model is altered, hostile, or in a newer format.

    Examples
    --------
    >>> import unirnn
    >>> from unirnn.files import onnx_writer
    >>> snapshot = unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy", seed=0))
    >>> read_model(onnx_writer.emit(snapshot.spec, snapshot.weights)) == snapshot
    True
    """
    return choose_layer(find_layers(model), prefix, spec)


def choose_layer(found: Mapping[str, Snapshot | SpecError], prefix: str | None, spec: Spec | None) -> Snapshot:
    """Choose one of the layers that `find_layers` found; see `read_model`, which raises the same errors."""
    if not found:
        raise ArgumentError(
            "onnx: the model has no RNN, GRU or LSTM node; an exporter may have written the layer out as single "
            "operations, as PyTorch's does with torch.nn.RNN: export it with dynamo=False"
        )
    whole = found.get("")
    if isinstance(whole, Snapshot) and not isinstance(whole.spec, RecurrentSpec):
        arrays = {name: StoredArray.from_array(array) for name, array in whole.weights.items()}
        return contents_of_snapshot("onnx", whole.spec, arrays).read(Choice(prefix, spec))
    layer = found[choose_name(found, prefix)]
    if isinstance(layer, SpecError):
        raise layer
    if spec is None:
        return layer
    if not spec.fits(layer.spec):
        raise SpecError(f"spec: given {spec!r}, but the model says {layer.spec!r}")
    return Snapshot(spec, layer.weights)


def find_layers(model: "ModelProto") -> dict[str, Snapshot | SpecError]:
    """The recurrent layers of a model, by the name of their first node: a snapshot, or the reason why there is none.

    Nodes that feed each other, and nothing else, are one snapshot of several layers if one spec describes them. A node
    without a name, or with a name that another node has, goes by the name of its first output, or by its number. If
    `emit` made the model, there is one snapshot, of all of it, and its name is empty.

    Raises
    ------
    ArgumentError
        If it is not a model.
    FileError
        If the model is altered, hostile, or in a newer format.
    """
    if not isinstance(model, import_onnx().ModelProto):
        raise ArgumentError(f"onnx: given {type(model).__name__}, expected an onnx.ModelProto, the whole model")
    graph = _Graph(model.graph)
    spec = spec_from_metadata(reject_duplicates([(entry.key, entry.value) for entry in model.metadata_props]))
    if spec is not None and not isinstance(spec, RecurrentSpec):
        try:
            return {"": graph.model(spec)}
        except FileError:
            raise
        except UnirnnError as error:
            raise FileError(f"onnx: an altered file: {error}") from error
    found = graph.stacks()
    if spec is None or len(found) > 1:  # several: ours was merged into another model, and only the nodes are right
        return found
    for layer in found.values():
        if isinstance(layer, SpecError):
            raise FileError(f"onnx: an altered file: {layer}")
        if not spec.fits(layer.spec):
            raise FileError(f"onnx: an altered file: its metadata says {spec!r}, its nodes are {layer.spec!r}")
        return {"": Snapshot(spec, layer.weights)}
    raise FileError("onnx: an altered file: its metadata is unirnn's, and it has no RNN, GRU or LSTM node")


@dataclass
class _Node:
    """A recurrent node, with its snapshot, or the reason why no spec describes it."""

    name: str
    index: int
    proto: Any
    found: Snapshot | SpecError


class _Graph:
    """The nodes of a graph, and for each value by name the node that produces it and the nodes that consume it."""

    def __init__(self, graph: Any) -> None:
        self.onnx = import_onnx()
        self.nodes = graph.node
        self.initializers: dict[str, Any] = {}
        for tensor in graph.initializer:
            if tensor.name in self.initializers:
                raise FileError(f"onnx: an altered file: two initializers are named {tensor.name!r}")
            self.initializers[tensor.name] = tensor
        self.producers = {name: node for node in graph.node for name in node.output if name}
        self.consumers: dict[str, list[int]] = {}
        for index, node in enumerate(graph.node):
            for name in node.input:
                self.consumers.setdefault(name, []).append(index)
        self.results = {value.name for value in graph.output}

    def stacks(self) -> dict[str, Snapshot | SpecError]:
        """The recurrent layers, each chain of nodes as one snapshot."""
        nodes = list(self.recurrent())
        by_index = {node.index: node for node in nodes}
        after = {node.index: by_index.get(self.next_index(node)) for node in nodes}
        taken: set[int] = set()
        found: dict[str, Snapshot | SpecError] = {}
        for node in nodes:
            if node.index in taken:
                continue
            chain = [node]
            while (following := after[chain[-1].index]) and _continues(chain[0], following):
                chain.append(following)
            taken |= {part.index for part in chain}
            parts = [part.found for part in chain if isinstance(part.found, Snapshot)]
            found[node.name] = stack(parts) if len(parts) > 1 else node.found
        return found

    def model(self, spec: Spec) -> Snapshot:
        """Read a model that unirnn wrote: its recurrent layers from their nodes, all other weights by their names."""
        nodes = {node.name: node.found for node in self.recurrent()}
        weights: dict[str, Array] = {}
        for layer, leaf in spec.leaves().items():
            prefix = f"{layer}." if layer else ""
            if isinstance(leaf, RecurrentSpec):
                own = self.recurrent_layer(prefix, leaf, nodes)
            else:
                own = {name: self.weight(prefix + name, shape) for name, shape in leaf.weight_shapes().items()}
            weights |= {prefix + name: array for name, array in own.items()}
        return Snapshot(spec, weights)

    def recurrent_layer(
        self, prefix: str, spec: RecurrentSpec, nodes: Mapping[str, Snapshot | SpecError]
    ) -> Mapping[str, Array]:
        """The weights of a recurrent layer of a model that unirnn wrote."""
        parts = []
        for number in range(spec.num_layers):  # a hostile spec may claim any number of them
            name = f"{prefix}{spec.kind}_l{number}"
            found = nodes.get(name)
            if not isinstance(found, Snapshot):
                reason = found or f"it has no node {name!r}"
                raise FileError(f"onnx: an altered file: its metadata says {spec!r}, but {reason}")
            parts.append(found)
        taken = stack(parts)
        if not spec.fits(taken.spec):
            raise FileError(f"onnx: an altered file: its metadata says {spec!r}, its nodes are {taken.spec!r}")
        return taken.weights

    def weight(self, name: str, shape: tuple[int, ...]) -> Array:
        """A weight of a model that unirnn wrote."""
        if name not in self.initializers:
            raise FileError(f"onnx: an altered file: it has no initializer {name!r}")
        array = _array(self.initializers[name], self.onnx)
        if array.shape != shape or array.dtype.name not in DTYPES:
            raise FileError(
                f"onnx: an altered file: {name}: given {array.dtype} of shape {array.shape}, expected floats of {shape}"
            )
        return array

    def recurrent(self) -> Iterator[_Node]:
        """The recurrent nodes in order, each under a name of its own."""
        names: set[str] = set()
        for index, node in enumerate(self.nodes):
            if node.op_type in _SPECS and node.domain in ("", "ai.onnx"):
                possible = itertools.chain((node.name, *node.output), (f"node {i}" for i in itertools.count(index)))
                name = next(name for name in possible if name and name not in names)
                names.add(name)
                found: Snapshot | SpecError
                where = f"onnx: node {name!r} ({node.op_type})"
                try:
                    found = self.layer(node)
                except SpecError as error:
                    found = SpecError(f"{where}: {error}")
                except FileError as error:
                    raise FileError(f"{where}: {error}") from None
                yield _Node(name, index, node, found)

    # ---- one node ----

    def layer(self, node: Any) -> Snapshot:
        """Read a recurrent node as a snapshot of one layer."""
        given = {a.name: self.attribute(a) for a in node.attribute}
        kind = _SPECS[node.op_type]
        inputs = [*node.input, *[""] * 8][:8]
        if inputs[7]:
            raise SpecError("it has peepholes (P), which no spec describes")
        arrays = {role: self.array(name, role) for role, name in zip("WRB", inputs[1:4], strict=True) if name}
        shapes = {role: array.shape for role, array in arrays.items()}
        if len(shapes.get("W", ())) != 3 or len(shapes.get("R", ())) != 3:
            raise FileError(f"given weights of shapes {shapes}, expected W (D, gates*H, I) and R (D, gates*H, H)")
        spec = self.spec(kind, given, arrays)
        rows = len(spec.gates) * spec.hidden_size
        expected = {
            "W": (spec.num_directions, rows, spec.input_size),
            "R": (spec.num_directions, rows, spec.hidden_size),
            **({"B": (spec.num_directions, 2 * rows)} if spec.bias else {}),
        }
        if shapes != expected:
            raise FileError(f"given weights of shapes {shapes}, expected {expected}")
        dtypes = {array.dtype.name for array in arrays.values()}
        if len(dtypes) > 1 or not dtypes <= set(DTYPES):
            raise FileError(f"its weights are {', '.join(sorted(dtypes))}, expected one floating dtype")
        return Snapshot(
            spec, layouts.from_framework("onnx", spec, {f"{role}_l0": array for role, array in arrays.items()})
        )

    def attribute(self, attribute: Any) -> Any:
        """The value of an attribute; a FileError if it is not of the type that ONNX prescribes."""
        kind = self.onnx.AttributeProto.AttributeType.Name(attribute.type)
        expected = _ATTRIBUTES.get(attribute.name, kind)
        if kind != expected or kind == "UNDEFINED":
            raise FileError(f"attribute {attribute.name!r}: given type {kind}, expected {expected}")
        return self.onnx.helper.get_attribute_value(attribute)

    def spec(self, cls: type[RecurrentSpec], given: dict[str, Any], arrays: dict[str, Array]) -> RecurrentSpec:
        """The spec that the attributes and the shapes of a node give."""
        input_size, hidden_size = arrays["W"].shape[-1], arrays["R"].shape[-1]
        if given.pop("hidden_size", hidden_size) != hidden_size:
            raise FileError(f"hidden_size is not that of R, {hidden_size}")
        direction = given.pop("direction", b"forward").decode(errors="replace")
        if direction not in ("forward", "bidirectional"):
            raise SpecError(f"direction={direction!r}, which no spec describes; expected 'forward' or 'bidirectional'")
        directions = 1 + (direction == "bidirectional")
        options: dict[str, Any] = {
            "bias": "B" in arrays,
            "bidirectional": directions == 2,
            "batch_first": bool(given.pop("layout", 0)),
        }
        if cls is GRUSpec:
            options["reset_after"] = bool(given.pop("linear_before_reset", 0))
        wanted = _ACTIVATIONS[cls.kind] * directions
        activations = tuple(a.decode(errors="replace").lower() for a in given.pop("activations", ())) or wanted
        if cls is RNNSpec and activations == ("relu",) * directions:
            options["nonlinearity"] = "relu"
        elif activations != wanted:
            raise SpecError(f"activations={list(activations)}, which no spec describes; expected {list(wanted)}")
        given.pop("output_sequence", None)  # an attribute of opset 1, which says which outputs are wanted
        if not given.get("input_forget", 1):
            del given["input_forget"]
        for name, value in given.items():
            raise SpecError(f"{name}={value!r}, which no spec describes")
        return cls(input_size, hidden_size, **options)

    def array(self, name: str, role: str) -> Array:
        """The array of a constant: an initializer, or the value of a Constant node."""
        tensor = self.tensor(name)
        if tensor is None:
            producer = self.producers.get(name)
            source = f"computed by node {producer.name!r} ({producer.op_type})" if producer else "an input of the graph"
            raise SpecError(
                f"its {role}, {name!r}, is {source}, expected a constant; "
                "export the model with its weights, and its constants folded"
            )
        return _array(tensor, self.onnx)

    def tensor(self, name: str) -> Any | None:
        """The tensor of a constant, also behind Identity nodes; None if it is not a constant."""
        for _ in range(len(self.nodes) + 1):  # the nodes of a hostile graph may form a ring
            if name in self.initializers:
                return self.initializers[name]
            producer = self.producers.get(name)
            if producer is None or producer.op_type not in ("Constant", "Identity"):
                return None
            if producer.op_type == "Constant":
                return next((a.t for a in producer.attribute if a.name == "value"), None)
            name = producer.input[0] if producer.input else ""
        return None

    # ---- from one node to the next ----

    def next_index(self, node: _Node) -> int:
        """The index of the recurrent node whose X is this node's output, if nothing else consumes it; else -1."""
        if not node.proto.output or isinstance(node.found, SpecError):
            return -1
        spec = node.found.spec
        name, axes = node.proto.output[0], ["B", "T", "D", "H"] if spec.batch_first else ["T", "D", "B", "H"]
        index = node.index
        while True:
            taking = [i for i in self.consumers.get(name, ()) if self.nodes[i].op_type != "Shape"]
            if name in self.results or len(taking) != 1 or taking[0] <= index:
                return -1
            (index,) = taking
            following = self.nodes[index]
            if following.op_type in _SPECS:
                wanted = ["B", "T", "D*H"] if spec.batch_first else ["T", "B", "D*H"]
                return index if following.input[0] == name and axes == wanted else -1
            moved = self.axes_after(following, name, axes, spec)
            if moved is None or not following.output:
                return -1
            name, axes = following.output[0], moved

    def axes_after(self, node: Any, name: str, axes: list[str], spec: RecurrentSpec) -> list[str] | None:
        """The axes of a value after a node that only changes its layout; None if the node does anything else."""
        kind = node.op_type
        if kind in ("Identity", "Dropout"):
            return axes if node.input[0] == name else None
        if kind == "Where":  # fills the padding
            zero = self.ints(node.input[2]) if len(node.input) == 3 else None
            return axes if zero == [0] and node.input[1] == name else None
        if not node.input or node.input[0] != name:
            return None
        attributes = {a.name: list(a.ints) for a in node.attribute}
        if kind == "Transpose":
            order = attributes.get("perm", [])
            return [axes[i] for i in order] if sorted(order) == list(range(len(axes))) else None
        given = attributes.get("axes") if len(node.input) < 2 else self.ints(node.input[1])
        if kind == "Squeeze" and spec.num_directions == 1 and given and len(given) == 1 and "D" in axes:
            at = given[0] % len(axes)
            left = [axis for axis in axes if axis != "D"]
            return [*left[:2], "D*H"] if axes[at] == "D" and left[-1:] == ["H"] else None
        if kind == "Reshape" and axes[2:] == ["D", "H"] and given and len(given) == 3:
            return [*axes[:2], "D*H"] if given[2] in (-1, spec.num_directions * spec.hidden_size) else None
        return None

    def ints(self, name: str) -> list[int] | None:
        """The values of a small constant; None if it is not a constant, or not of integers."""
        tensor = self.tensor(name)
        if tensor is None or len(tensor.dims) > 1 or math.prod(tensor.dims) > 8:
            return None
        values = _array(tensor, self.onnx).reshape(-1).tolist()
        return [int(value) for value in values] if all(float(value).is_integer() for value in values) else None


def _continues(first: _Node, node: _Node) -> bool:
    """Whether a node is another layer of the stack that begins with ``first``."""
    if not (isinstance(first.found, Snapshot) and isinstance(node.found, Snapshot)):
        return False
    # Exporters name a node after its module: /encoder/GRU, /encoder/GRU_1, /decoder/GRU.
    if first.name.rpartition("/")[0] != node.name.rpartition("/")[0]:
        return False
    spec, above = first.found.spec, node.found.spec
    return (
        above.input_size == spec.num_directions * spec.hidden_size
        and replace(above, input_size=spec.input_size) == spec
        and first.found.dtype == node.found.dtype
    )


def _array(tensor: Any, onnx: Any) -> Array:
    """The array of a tensor, once the size that it claims has been checked against its data."""
    kinds = onnx.TensorProto
    sizes = {kinds.FLOAT: 4, kinds.DOUBLE: 8, kinds.FLOAT16: 2, kinds.BFLOAT16: 2, kinds.INT64: 8, kinds.INT32: 4}
    fields = {kinds.FLOAT: tensor.float_data, kinds.DOUBLE: tensor.double_data, kinds.INT64: tensor.int64_data}
    where = f"tensor {tensor.name!r}"
    if tensor.data_location == kinds.EXTERNAL or len(tensor.external_data):
        raise FileError(
            f"{where}: its numbers are in another file, and a path in a file is not followed; if you trust it, "
            "unirnn.snapshot(onnx.load(path)) reads both"
        )
    if tensor.HasField("segment") or any(size < 0 for size in tensor.dims):
        raise FileError(f"{where}: not a complete tensor; given dims {list(tensor.dims)}")
    if tensor.data_type not in sizes:
        kind = kinds.DataType.Name(tensor.data_type) if tensor.data_type in kinds.DataType.values() else "unknown"
        raise SpecError(f"{where}: given {kind}, expected FLOAT, DOUBLE, FLOAT16 or BFLOAT16")
    held, unit = len(fields.get(tensor.data_type, tensor.int32_data)), 1
    if tensor.HasField("raw_data"):
        held, unit = len(tensor.raw_data), sizes[tensor.data_type]
    if held != (claimed := math.prod(tensor.dims) * unit):
        numbers = "bytes" if unit > 1 else "numbers"
        raise FileError(f"{where}: dims {list(tensor.dims)} need {claimed} {numbers}, and it holds {held}")
    array: Array = onnx.numpy_helper.to_array(tensor)
    return array.astype(np.float32) if tensor.data_type == kinds.BFLOAT16 else array
