"""Writing ``.onnx``: the graph of a layer or a model, made from a spec and its weights without tracing.

The graph of a recurrent layer takes ``input``, ``seq_length`` `(B,)` and ``h_0`` (and ``c_0``), with any T and B, and
gives ``output`` and ``h_n`` (and ``c_n``), by the rules of `unirnn.contract.lengths`. Each layer is one recurrent node,
for both directions. An LSTM with ``proj_size``, for which ONNX has no operator, is a ``Scan`` over the steps for each
layer and direction. ONNX leaves open what a node does with the padding and with sequences of length 0, so ``Where``
nodes decide it: they replace the padding by zeros before the first layer and after each, and they take the initial
state as the final state of a sequence of length 0. A product with a mask would not do, since 0 * NaN is NaN.

The graph of a model, or of another layer, keeps the rules of `unirnn.contract.models` in the same way. Its input is
`(B, T, F)`, `(T, B, F)`, or tokens of int64 without F. It takes and gives the state of each layer under the layer's
name: ``encoder.h_0`` and ``encoder.h_n``, ``conv.context_0`` and ``conv.context_n``. If its output still has steps, it
gives the lengths of the output as ``output_length``. A graph can't refuse a length that is out of range, unless one of
its nodes does.

The metadata of the model holds the whole spec, ``dropout`` included, although the graph is for inference only: nothing
is dropped, and a batch normalisation uses the running statistics.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import unirnn
from unirnn import registry
from unirnn.contract.limits import ALL_KINDS, Support
from unirnn.contract.models import is_batch_first
from unirnn.contract.weights import Array
from unirnn.errors import LimitError
from unirnn.files._header import spec_to_metadata
from unirnn.files.onnx_layers import LayersBuilder
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import RecurrentSpec, Spec

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["SUPPORT", "emit", "encode", "import_onnx", "oversize_reason"]

SUPPORT = Support("onnx", kinds=tuple(kind for kind in ALL_KINDS if kind != "Model"))
"""What a graph can be made of: layers and models, but not a model that is code, which would have to be traced."""

_OPSET = 17  # of 2022: ONNX Runtime 1.12 and later read it
_IR_VERSION = 8
_MAX_BYTES = 2**31 - 2**20  # of weights: a model ends at 2 GiB, and the graph itself takes some of it


def import_onnx() -> Any:
    """The package onnx; a BackendError that says what to do, if it can't be had."""
    return registry.import_optional("onnx", "reading and writing .onnx", "onnx")


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


def emit(spec: Spec, weights: Mapping[str, Array], *, lengths: bool = True, dtype: Any = "float32") -> "ModelProto":
    """Make the graph of a layer or a model.

    Parameters
    ----------
    spec
        The layer or the model. Its ``dropout`` is written to the metadata, and the graph does not use it.
    weights
        By the names of `Spec.weight_shapes`; the graph computes in their dtype.
    lengths
        False leaves ``seq_length`` out: every sequence then has length T.
    dtype
        In which a spec without weights computes.

    Returns
    -------
    onnx.ModelProto
        Of a recurrent layer with inputs ``input`` `(T, B, I)`, or `(B, T, I)` if ``batch_first``, ``seq_length`` `(B,)`
        of int64, ``h_0`` (and ``c_0``) `(L*D, B, H)`; outputs ``output`` of D*H on the last axis, ``h_n`` (and
        ``c_n``). Of anything else see above.

    Raises
    ------
    MissingBackendError
        If onnx is not installed.
    LimitError
        If ONNX has no such layer, or one model can't hold so many bytes.

    Examples
    --------
    >>> import unirnn
    >>> snapshot = unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy", seed=0))
    >>> [value.name for value in emit(snapshot.spec, snapshot.weights).graph.input]
    ['input', 'seq_length', 'h_0']
    """
    onnx = import_onnx()
    spec.check_complete()
    reason = SUPPORT.unsupported_reason(spec) or oversize_reason(sum(array.nbytes for array in weights.values()))
    if reason is not None:
        raise LimitError(reason)
    graph = LayersBuilder(onnx, np.result_type(*weights.values()) if weights else np.dtype(dtype))
    graph.add_weights(spec, weights)
    graph.add_layers(spec, lengths)
    model: ModelProto = onnx.helper.make_model(
        _to_proto(graph, spec, lengths),
        opset_imports=[onnx.helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name="unirnn",
        producer_version=unirnn.__version__,
    )
    onnx.helper.set_model_props(model, spec_to_metadata(spec))
    return model


def _to_proto(graph: LayersBuilder, spec: Spec, lengths: bool) -> Any:
    """The graph with its inputs and outputs."""
    helper, kinds = graph.onnx.helper, graph.onnx.TensorProto
    kind = helper.np_dtype_to_tensor_dtype(graph.dtype)
    leading = ["B", "T"] if is_batch_first(spec) else ["T", "B"]

    def value(name: str, *shape: str | int, kind: int = kind) -> Any:
        return helper.make_tensor_value_info(name, kind, shape)

    def states(ending: str) -> list[Any]:
        found = []
        for layer, leaf in spec.stateful.items():
            for name, (first, *others) in leaf.state_shapes(None).items():
                found.append(value((f"{layer}." if layer else "") + name + ending, first, "B", *others))
        return found

    if spec.takes_tokens:
        inputs = [value("input", *leading, kind=kinds.INT64)]
    else:
        inputs = [value("input", *leading, spec.input_features or "F")]
    features = spec.output_features(spec.input_features) or "output_F"
    if spec.ends_steps:
        outputs = [value("output", "B", features)]
    else:
        after = ["output_T" if axis == "T" and spec.length_rules else axis for axis in leading]
        outputs = [value("output", *after, features)]
    if lengths:
        inputs.append(value("seq_length", "B", kind=kinds.INT64))
        if not spec.ends_steps and not isinstance(spec, RecurrentSpec):
            outputs.append(value("output_length", "B", kind=kinds.INT64))
    return helper.make_graph(
        graph.nodes,
        "unirnn",
        inputs + states("_0"),
        outputs + states("_n"),
        [graph.onnx.numpy_helper.from_array(array, name) for name, array in graph.initializers.items()],
    )
