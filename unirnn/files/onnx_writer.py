"""ONNX, written: a graph emitted straight from a spec and its weights, no tracing.

The graph takes ``input``, ``seq_length`` `(B,)` and ``h_0`` (and ``c_0``), with any T and B, and gives ``output`` and
``h_n`` (and ``c_n``): the call of `unirnn.contract.call`, and its rules. One recurrent node a layer computes both
directions; around it, what ONNX leaves open or does otherwise is settled by ``Where``, never by a product with a
mask (0 * NaN is NaN): padding is replaced by zeros before the first layer and after each, and the state of a
sequence of length 0 is its initial state.

The model's metadata hold the whole spec, dropout included (the graph is for inference); see `unirnn.files`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from unirnn import files, registry
from unirnn.errors import LimitError, MissingBackendError
from unirnn.snapshots import layouts
from unirnn.specs import GRUSpec, RecurrentSpec, RNNSpec

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["LARGEST", "emit", "import_onnx"]

Array = NDArray[Any]

OPSET = 17  # of 2022: ONNX Runtime 1.12 and later read it
IR_VERSION = 8
LARGEST = 2**31 - 2**20
"""How many bytes of weights a model can hold: the format ends at 2 GiB, and the graph takes some."""


def import_onnx() -> Any:
    """The package onnx, or the error that says what installs it."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise MissingBackendError(
            "reading and writing .onnx needs onnx, which is not installed; "
            f"to install it: {registry.install_hint('onnx')}",
            name="onnx",
        ) from error
    return onnx


def emit(spec: RecurrentSpec, weights: Mapping[str, Array], *, lengths: bool = True) -> "ModelProto":
    """Make the graph of a layer.

    Parameters
    ----------
    spec
        The layer; its ``dropout`` is kept in the metadata and takes no part.
    weights
        By the names of `Spec.weight_shapes`; the graph computes in their dtype.
    lengths
        False leaves ``seq_length`` out: every sequence is T long.

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
        If the spec has ``proj_size``, which ONNX's LSTM lacks, or the weights take more than `LARGEST` bytes.

    Examples
    --------
    >>> import unirnn
    >>> snapshot = unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy", seed=0))
    >>> [value.name for value in emit(snapshot.spec, snapshot.weights).graph.input]
    ['input', 'seq_length', 'h_0']
    """
    onnx = import_onnx()
    size = sum(array.nbytes for array in weights.values())
    if size > LARGEST:
        raise LimitError(f"onnx: given weights of {size} bytes, expected at most {LARGEST} in one model")
    graph = _Emitter(onnx, spec, np.result_type(*weights.values()))
    graph.initializers = {name: array.astype(graph.dtype) for name, array in layouts.to("onnx", spec, weights).items()}
    graph.emit(lengths)
    from unirnn import __version__  # here, since the package imports this module

    model: ModelProto = onnx.helper.make_model(
        graph.proto(lengths),
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="unirnn",
        producer_version=__version__,
    )
    onnx.helper.set_model_props(model, files.metadata(spec))
    return model


class _Emitter:
    """Nodes and initializers while they grow; each node's name says what it does, each value's what it holds."""

    def __init__(self, onnx: Any, spec: RecurrentSpec, dtype: np.dtype[Any]) -> None:
        self.onnx, self.spec, self.dtype = onnx, spec, dtype
        self.nodes: list[Any] = []
        self.initializers: dict[str, Array] = {}

    def node(self, op: str, inputs: list[str], outputs: str | list[str], **attributes: Any) -> str:
        """Append a node that is named after its first output; the output's name."""
        outputs = [outputs] if isinstance(outputs, str) else outputs
        name = f"{op}_{outputs[0]}"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs[0]

    def constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        self.initializers[name] = np.array(value, dtype)
        return name

    def emit(self, lengths: bool) -> None:
        spec = self.spec
        x = "input"
        if spec.batch_first:
            x = self.node("Transpose", [x], "input_time_major", perm=[1, 0, 2])
        if lengths:
            self.masks(x)
            x = self.valid(x, "input_valid")
        initial = {name: self.layers_of(f"{name}_0") for name in spec.states}
        last = "output_time_major" if spec.batch_first else "output"
        for layer in range(spec.num_layers):
            y = last if layer == spec.num_layers - 1 else f"output_l{layer}"
            joined = f"{y}_padded" if lengths else y
            self.layer(layer, x, [initial[name][layer] for name in spec.states], joined, lengths)
            x = self.valid(joined, y) if lengths else y
        if spec.batch_first:
            self.node("Transpose", [x], "output", perm=[1, 0, 2])
        for name in spec.states:
            parts = [f"{name}_n_l{layer}" for layer in range(spec.num_layers)]
            if lengths:
                whole = self.node("Concat", parts, f"{name}_n_of_nodes", axis=0) if len(parts) > 1 else parts[0]
                self.node("Where", ["has_steps", whole, f"{name}_0"], f"{name}_n")
            else:
                self.node("Concat", parts, f"{name}_n", axis=0)

    def masks(self, x: str) -> None:
        """``is_valid`` `(T, B, 1)`, ``has_steps`` `(B, 1)`, and the lengths as the recurrent nodes take them."""
        zero, one = self.constant("int_0", 0), self.constant("int_1", 1)
        first, last = self.constant("axis_0", [0]), self.constant("axis_last", [-1])
        self.constant("zero", 0, self.dtype)
        length = self.node("Shape", [x], "num_steps_1d", start=0, end=1)
        length = self.node("Squeeze", [length, first], "num_steps")
        steps = self.node("Range", [zero, length, one], "steps_1d")
        steps = self.node("Unsqueeze", [steps, last], "steps")
        valid = self.node("Less", [steps, "seq_length"], "is_valid_2d")
        self.node("Unsqueeze", [valid, last], "is_valid")
        some = self.node("Greater", ["seq_length", zero], "has_steps_1d")
        self.node("Unsqueeze", [some, last], "has_steps")
        self.node("Cast", ["seq_length"], "seq_length_int32", to=self.onnx.TensorProto.INT32)

    def valid(self, x: str, y: str) -> str:
        return self.node("Where", ["is_valid", x, "zero"], y)

    def layers_of(self, state: str) -> list[str]:
        """`(L*D, B, H)` as `(D, B, H)` of each layer."""
        spec = self.spec
        if spec.num_layers == 1:
            return [state]
        parts = [f"{state}_l{layer}" for layer in range(spec.num_layers)]
        sizes = self.constant("directions_of_layers", [spec.num_directions] * spec.num_layers)
        self.node("Split", [state, sizes], parts, axis=0)
        return parts

    def layer(self, layer: int, x: str, initial: list[str], y: str, lengths: bool) -> None:
        """The recurrent node, and its `(T, D, B, H)` as `(T, B, D*H)`."""
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
            self.node("Squeeze", [directions, self.constant("axis_directions", [1])], y)
            return
        side_by_side = self.node("Transpose", [directions], f"{y}_side_by_side", perm=[0, 2, 1, 3])
        shape = self.constant("shape_joined", [0, 0, 2 * spec.hidden_size])  # 0: as it is
        self.node("Reshape", [side_by_side, shape], y)

    def proto(self, lengths: bool) -> Any:
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

        of_lengths = [value("seq_length", "B", kind=self.onnx.TensorProto.INT64)] if lengths else []
        return helper.make_graph(
            self.nodes,
            "unirnn",
            [value("input", *leading, spec.input_size), *of_lengths, *states("_0")],
            [value("output", *leading, spec.num_directions * spec.hidden_size), *states("_n")],
            [self.onnx.numpy_helper.from_array(array, name) for name, array in self.initializers.items()],
        )
