"""ONNX Runtime's baselines: a bare session of the same graph, and a session of a single recurrent node."""

from typing import Any

import numpy as np
import onnx
import onnxruntime

from unirnn import GRUSpec, snapshot
from unirnn.contract.call import join_state
from unirnn.files.onnx_writer import emit
from unirnn_bench.baselines import Calls
from unirnn_bench.work import Work

__all__ = ["MODES", "calls"]

MODES = ("eager",)


def calls(work: Work) -> Calls:
    """Prepare the calls; see `unirnn_bench.baselines.Baselines`.

    ``native`` is a session of the same graph. ``floor`` is a session of a single recurrent node, and exists for a
    single layer only. Models have neither.
    """
    spec, x, ns, resets = work.spec, work.input, work.seq_length, work.resets
    session_options = {"intra_op_num_threads": work.threads}
    ours: Any = (work.model or spec).build("onnxruntime", seed=0, session_options=session_options)
    is_ragged = ns is not None or resets is not None
    if work.model is not None:
        found = {"ours": lambda: ours(x, seq_length=ns)}
        return {**found, "dense": lambda: ours(x)} if is_ragged else found
    shapes = spec.state_shapes(x.shape[1])
    state = work.hx or [np.zeros(shape, np.float32) for shape in shapes.values()]
    feeds = {"input": x, **{f"{name}_0": part for name, part in zip(spec.states, state, strict=True)}}
    if ns is not None:
        feeds["seq_length"] = ns
    native = _session(emit(spec, ours.weights, lengths=ns is not None), work.threads)
    found = {"ours": lambda: ours(x, None, ns, resets)[0], "native": lambda: native.run(None, feeds)[0]}
    if work.hx is not None:
        one, hx = x[0], join_state(work.hx)
        found["ours"] = lambda: ours.step(one, hx)[0]
    if is_ragged:
        found["dense"] = lambda: ours(x)[0]
    if spec.num_layers == 1:
        node = _session(_node(work), work.threads)
        found["floor"] = lambda: node.run(None, {"input": x})
    return found


def _node(work: Work) -> Any:
    """Make an ONNX model of a single recurrent node, without lengths."""
    helper, float32, spec = onnx.helper, onnx.TensorProto.FLOAT, work.spec
    arrays = snapshot(spec.build("numpy", seed=0)).to("onnx")
    options: dict[str, Any] = {"linear_before_reset": 1} if isinstance(spec, GRUSpec) else {}
    if spec.bidirectional:
        options["direction"] = "bidirectional"
    node = helper.make_node(spec.kind, ["input", *arrays], ["output"], hidden_size=spec.hidden_size, **options)
    graph = helper.make_graph(
        [node],
        "node",
        [helper.make_tensor_value_info("input", float32, ["T", "B", spec.input_size])],
        [helper.make_tensor_value_info("output", float32, ["T", spec.num_directions, "B", spec.hidden_size])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _session(model: Any, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
