"""Writing ``.onnx``: the graph of a layer, made from a spec and its weights without tracing.

The graph takes ``input``, ``seq_length`` `(B,)` and ``h_0`` (and ``c_0``), with any T and B, and gives ``output`` and
``h_n`` (and ``c_n``), by the rules of `unirnn.contract.call`. Each layer is one recurrent node, for both directions.
ONNX leaves open what a node does with the padding and with sequences of length 0, so ``Where`` nodes decide it: they
replace the padding by zeros before the first layer and after each, and they take the initial state as the final state
of a sequence of length 0. A product with a mask would not do, since 0 * NaN is NaN.

The metadata of the model holds the whole spec, ``dropout`` included, although the graph is for inference only.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import unirnn
from unirnn import registry
from unirnn.contract.weights import Array
from unirnn.errors import LimitError, MissingBackendError
from unirnn.files._header import spec_to_metadata
from unirnn.snapshots import layouts
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import GRUSpec, RecurrentSpec, RNNSpec

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["emit", "encode", "import_onnx", "oversize_reason"]

_OPSET = 17  # of 2022: ONNX Runtime 1.12 and later read it
_IR_VERSION = 8
_MAX_BYTES = 2**31 - 2**20  # of weights: a model ends at 2 GiB, and the graph itself takes some of it


def import_onnx() -> Any:
    """The package onnx; a MissingBackendError that says how to install it, if it is missing."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingBackendError(
            "reading and writing .onnx needs onnx, which is not installed; "
            f"to install it: {registry.install_hint('onnx')}",
            name="onnx",
        ) from error
    return onnx


def oversize_reason(num_bytes: int) -> str | None:
    """Why a model can't hold weights of that many bytes, or None if it can.

    Examples
    --------
    >>> oversize_reason(2**32)
    'onnx: given weights of 4294967296 bytes, expected at most 2146435072 in one model'
    """
    if num_bytes <= _MAX_BYTES:
        return None
    return f"onnx: given weights of {num_bytes} bytes, expected at most {_MAX_BYTES} in one model"


def encode(snapshot: Snapshot) -> bytes:
    """The bytes of a snapshot's file."""
    data: bytes = emit(snapshot.spec, snapshot.weights).SerializeToString(deterministic=True)
    return data


def emit(spec: RecurrentSpec, weights: Mapping[str, Array], *, lengths: bool = True) -> "ModelProto":
    """Make the graph of a layer.

    Parameters
    ----------
    spec
        The layer. Its ``dropout`` is written to the metadata, and the graph does not use it.
    weights
        By the names of `Spec.weight_shapes`; the graph computes in their dtype.
    lengths
        False leaves ``seq_length`` out: every sequence then has length T.

    Returns
    -------
    onnx.ModelProto
        With inputs ``input`` `(T, B, I)`, or `(B, T, I)` if ``batch_first``, ``seq_length`` `(B,)` of int64,
        ``h_0`` (and ``c_0``) `(L*D, B, H)`; outputs ``output`` of D*H on the last axis, ``h_n`` (and ``c_n``).

    Raises
    ------
    MissingBackendError
        If onnx is not installed.
    LimitError
        If ONNX has no such layer, or a model can't hold so many bytes.

    Examples
    --------
    >>> import unirnn
    >>> snapshot = unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy", seed=0))
    >>> [value.name for value in emit(snapshot.spec, snapshot.weights).graph.input]
    ['input', 'seq_length', 'h_0']
    """
    onnx = import_onnx()
    reason = oversize_reason(sum(array.nbytes for array in weights.values()))
    if reason is not None:
        raise LimitError(reason)
    graph = _GraphBuilder(onnx, spec, np.result_type(*weights.values()))
    for name, array in layouts.to_framework("onnx", spec, weights).items():
        graph.add_constant(name, array, graph.dtype)
    graph.add_layers(lengths)
    model: ModelProto = onnx.helper.make_model(
        graph.to_proto(lengths),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="unirnn",
        producer_version=unirnn.__version__,
    )
    onnx.helper.set_model_props(model, spec_to_metadata(spec))
    return model


class _GraphBuilder:
    """Collects nodes and initializers. The name of a node says what it does, the name of a value what it holds."""

    def __init__(self, onnx: Any, spec: RecurrentSpec, dtype: np.dtype[Any]) -> None:
        self.onnx, self.spec, self.dtype = onnx, spec, dtype
        self.nodes: list[Any] = []
        self.initializers: dict[str, Array] = {}

    def add_node(self, op: str, inputs: list[str], outputs: str | list[str], **attributes: Any) -> str:
        """Add a node, named after its first output, and return the name of that output."""
        outputs = [outputs] if isinstance(outputs, str) else outputs
        name = f"{op}_{outputs[0]}"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs[0]

    def add_constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        self.initializers[name] = np.array(value, dtype)
        return name

    def add_layers(self, lengths: bool) -> None:
        """Add everything between the inputs and the outputs of the graph."""
        spec = self.spec
        x = "input"
        if spec.batch_first:
            x = self.add_node("Transpose", [x], "input_time_major", perm=[1, 0, 2])
        if lengths:
            self.add_masks(x)
            x = self.mask_padding(x, "input_valid")
        initial = {name: self.split_state(f"{name}_0") for name in spec.states}
        last = "output_time_major" if spec.batch_first else "output"
        for layer in range(spec.num_layers):
            y = last if layer == spec.num_layers - 1 else f"output_l{layer}"
            joined = f"{y}_padded" if lengths else y
            self.add_layer(layer, x, [initial[name][layer] for name in spec.states], joined, lengths)
            x = self.mask_padding(joined, y) if lengths else y
        if spec.batch_first:
            self.add_node("Transpose", [x], "output", perm=[1, 0, 2])
        for name in spec.states:
            parts = [f"{name}_n_l{layer}" for layer in range(spec.num_layers)]
            if lengths:
                whole = self.add_node("Concat", parts, f"{name}_n_of_nodes", axis=0) if len(parts) > 1 else parts[0]
                self.add_node("Where", ["has_steps", whole, f"{name}_0"], f"{name}_n")
            else:
                self.add_node("Concat", parts, f"{name}_n", axis=0)

    def add_masks(self, x: str) -> None:
        """Add ``is_valid`` `(T, B, 1)`, ``has_steps`` `(B, 1)` and ``seq_length_int32``, which recurrent nodes take."""
        zero, one = self.add_constant("int_0", 0), self.add_constant("int_1", 1)
        first, last = self.add_constant("axis_0", [0]), self.add_constant("axis_last", [-1])
        self.add_constant("zero", 0, self.dtype)
        length = self.add_node("Shape", [x], "num_steps_1d", start=0, end=1)
        length = self.add_node("Squeeze", [length, first], "num_steps")
        steps = self.add_node("Range", [zero, length, one], "steps_1d")
        steps = self.add_node("Unsqueeze", [steps, last], "steps")
        valid = self.add_node("Less", [steps, "seq_length"], "is_valid_2d")
        self.add_node("Unsqueeze", [valid, last], "is_valid")
        some = self.add_node("Greater", ["seq_length", zero], "has_steps_1d")
        self.add_node("Unsqueeze", [some, last], "has_steps")
        self.add_node("Cast", ["seq_length"], "seq_length_int32", to=self.onnx.TensorProto.INT32)

    def mask_padding(self, x: str, y: str) -> str:
        return self.add_node("Where", ["is_valid", x, "zero"], y)

    def split_state(self, state: str) -> list[str]:
        """Split a state `(L*D, B, H)` into `(D, B, H)` for each layer."""
        spec = self.spec
        if spec.num_layers == 1:
            return [state]
        parts = [f"{state}_l{layer}" for layer in range(spec.num_layers)]
        sizes = self.add_constant("directions_of_layers", [spec.num_directions] * spec.num_layers)
        self.add_node("Split", [state, sizes], parts, axis=0)
        return parts

    def add_layer(self, layer: int, x: str, initial: list[str], y: str, lengths: bool) -> None:
        """Add the recurrent node of a layer, and the nodes that make `(T, B, D*H)` of its `(T, D, B, H)`."""
        spec = self.spec
        inputs = [x, f"W_l{layer}", f"R_l{layer}", f"B_l{layer}" if spec.bias else ""]
        inputs += ["seq_length_int32" if lengths else "", *initial]
        attributes: dict[str, Any] = {
            "hidden_size": spec.hidden_size,
            "direction": "bidirectional" if spec.bidirectional else "forward",
        }
        if isinstance(spec, RNNSpec):
            attributes["activations"] = [spec.nonlinearity.capitalize()] * spec.num_directions
        if isinstance(spec, GRUSpec):
            attributes["linear_before_reset"] = int(spec.reset_after)
        directions = f"{y}_directions"
        states = [f"{name}_n_l{layer}" for name in spec.states]
        self.nodes.append(
            self.onnx.helper.make_node(
                spec.kind, inputs, [directions, *states], name=f"{spec.kind}_l{layer}", **attributes
            )
        )
        if not spec.bidirectional:
            self.add_node("Squeeze", [directions, self.add_constant("axis_directions", [1])], y)
            return
        side_by_side = self.add_node("Transpose", [directions], f"{y}_side_by_side", perm=[0, 2, 1, 3])
        shape = self.add_constant("shape_joined", [0, 0, 2 * spec.hidden_size])  # 0: keep this axis
        self.add_node("Reshape", [side_by_side, shape], y)

    def to_proto(self, lengths: bool) -> Any:
        spec, helper = self.spec, self.onnx.helper
        kind = helper.np_dtype_to_tensor_dtype(self.dtype)
        leading = ["B", "T"] if spec.batch_first else ["T", "B"]

        def value(name: str, *shape: str | int, kind: int = kind) -> Any:
            return helper.make_tensor_value_info(name, kind, shape)

        def states(ending: str) -> list[Any]:
            return [
                value(name + ending, spec.num_layers * spec.num_directions, "B", spec.hidden_size)
                for name in spec.states
            ]

        length_inputs = [value("seq_length", "B", kind=self.onnx.TensorProto.INT64)] if lengths else []
        return helper.make_graph(
            self.nodes,
            "unirnn",
            [value("input", *leading, spec.input_size), *length_inputs, *states("_0")],
            [value("output", *leading, spec.num_directions * spec.hidden_size), *states("_n")],
            [self.onnx.numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
        )
