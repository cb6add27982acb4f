"""ONNX files: the graphs that unirnn writes, the layers in models of other programs, and invalid files."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, errors
from unirnn.files import onnx_reader, onnx_writer
from unirnn.files._contents import Choice
from unirnn.files.onnx_constants import Constants
from unirnn.snapshots.stacking import unstack
from unirnn.testing.conformance.cases import KINDS
from unirnn.testing.strategies import specs


def drawn(spec: RecurrentSpec, dtype: str = "float32") -> Snapshot:
    return unirnn.snapshot(spec.build("numpy", dtype=dtype, seed=0))


def layers_of(model: Any) -> dict[str, Any]:
    """The snapshot of each layer by name, or the error in its place."""
    found = onnx_reader.contents_of_model(model)
    return {
        name: layer.spec if isinstance(layer.spec, errors.UnirnnError) else found.read(Choice(name))
        for name, layer in found.layers.items()
    }


# ---- models that unirnn wrote -------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(spec=specs(), dtype=st.sampled_from(["float16", "float32", "float64"]), lengths=st.booleans())
def test_a_written_graph_is_valid_and_is_read_back(spec: RecurrentSpec, dtype: str, lengths: bool) -> None:
    taken = drawn(spec, dtype)
    model = onnx_writer.emit(taken.spec, taken.weights, lengths=lengths)
    onnx.checker.check_model(model, full_check=True)
    assert onnx_reader.read_model(model) == taken
    assert unirnn.snapshot(model) == taken


@pytest.mark.parametrize("lengths", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"bidirectional": True, "bias": False}, {"reverse": True, "batch_first": True}]
)
def test_a_projection_is_written_as_a_scan_and_read_back(options: dict[str, Any], lengths: bool) -> None:
    spec = LSTMSpec(3, 4, 2, proj_size=2, gate_activation="hard_sigmoid", **options)
    taken = unirnn.snapshot(spec.build("onnxruntime", seed=0))
    model = onnx_writer.emit(spec, taken.weights, lengths=lengths)
    onnx.checker.check_model(model, full_check=True)
    assert onnx_reader.read_model(model) == taken


def test_weights_are_read_back_bit_for_bit() -> None:
    spec = LSTMSpec(3, 4, 2, bidirectional=True)
    rng = np.random.default_rng(0)
    numbers = [-0.0, np.nan, np.inf, 1e-45, 3.0]
    taken = Snapshot(spec, {n: rng.choice(numbers, s).astype(np.float32) for n, s in spec.weight_shapes().items()})
    again = onnx_reader.read_model(onnx_reader.parse(onnx_writer.emit(spec, taken.weights).SerializeToString()))
    for name, array in taken.weights.items():
        np.testing.assert_array_equal(again.weights[name].view(np.int32), array.view(np.int32))


def test_names_in_the_graph() -> None:
    taken = drawn(LSTMSpec(3, 4, 2, bidirectional=True, batch_first=True))
    graph = onnx_writer.emit(taken.spec, taken.weights).graph
    names = [node.name for node in graph.node]
    assert all(names)
    assert len(set(names)) == len(names)
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    for name, array in taken.to("onnx").items():
        np.testing.assert_array_equal(numpy_helper.to_array(initializers[name]), array, strict=True)
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    assert shapes == {
        "input": ["B", "T", 3],
        "seq_length": ["B"],
        "h_0": [4, "B", 4],
        "c_0": [4, "B", 4],
        "output": ["B", "T", 8],
        "h_n": [4, "B", 4],
        "c_n": [4, "B", 4],
    }


@settings(max_examples=30)
@given(spec=specs())
def test_padding_is_replaced_before_each_node_and_after_the_last_one(spec: RecurrentSpec) -> None:
    # The nodes of ONNX Runtime ignore the padding anyway, but ONNX does not require it of a runtime.
    taken = drawn(spec)
    nodes = onnx_writer.emit(taken.spec, taken.weights).graph.node
    makes = {name: node for node in nodes for name in node.output}
    for node in nodes:
        if node.op_type == spec.kind:
            assert makes[node.input[0]].op_type == "Where"
            assert makes[node.input[0]].input[0] == "is_valid"
    last = makes["output"]
    assert (makes[last.input[0]] if spec.batch_first else last).input[0] == "is_valid"


def test_the_metadata_holds_the_whole_spec() -> None:
    taken = drawn(GRUSpec(3, 4, 2, dropout=0.5, batch_first=True, reset_after=False))
    metadata = {entry.key: entry.value for entry in onnx_writer.emit(taken.spec, taken.weights).metadata_props}
    assert json.loads(metadata["unirnn"]) == {"format": 2, "spec": taken.spec.to_dict()}


def test_weights_that_are_too_large_for_a_model_are_refused() -> None:
    shape = (2**15, 2**14)
    huge = {name: np.broadcast_to(np.float32(0), shape) for name in ("weight_ih_l0", "weight_hh_l0")}
    with pytest.raises(errors.LimitError, match="onnx: given weights of 4294967296 bytes, expected at most 2146435072"):
        onnx_writer.emit(RNNSpec(2**14, 2**15, bias=False), huge)


def test_a_spec_adds_what_the_nodes_do_not_say() -> None:
    taken = drawn(GRUSpec(3, 4, 2))
    model = onnx_writer.emit(taken.spec, taken.weights)
    wanted = GRUSpec(3, 4, 2, dropout=0.5, batch_first=True)
    assert onnx_reader.read_model(model, spec=wanted) == Snapshot(wanted, taken.weights)
    with pytest.raises(errors.SpecError, match=r"^spec: given .*, but the file says GRUSpec\(3, 4, num_layers=2\)$"):
        onnx_reader.read_model(model, spec=GRUSpec(3, 4, 2, reset_after=False))


def test_onnx_is_imported_only_when_needed_and_may_be_missing() -> None:
    program = """
import sys
import unirnn
snapshot = unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy"))
from unirnn.files import onnx_writer
from unirnn.files import onnx_reader
assert not {"onnx", "onnxruntime", "google.protobuf"} & set(sys.modules)
sys.modules["onnx"] = None
for action in (lambda: onnx_writer.emit(snapshot.spec, snapshot.weights), lambda: onnx_reader.parse(b"")):
    try:
        action()
    except ImportError as error:
        assert type(error) is unirnn.errors.MissingBackendError, error
        print(error)
"""
    words = "reading and writing .onnx needs onnx, which is not installed; to install it: "
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [words + 'python -m pip install "onnx>=1.16"'] * 2


# ---- models of other programs -------------------------------------------------------------------------------------


def other_model(
    snapshots: list[Snapshot],
    *,
    name: str = "rnn",
    joints: Callable[[int, RecurrentSpec], list[Any]] | None = None,
    initializers: bool = True,
    **attributes: Any,
) -> Any:
    """A model with one recurrent node for each snapshot; ``joints`` makes the nodes between them."""
    nodes: list[Any] = []
    constants: list[Any] = []
    x = "x"
    for k, taken in enumerate(snapshots):
        spec = taken.spec
        arrays = {f"{role}{k}": array for role, array in zip("WRB", taken.to("onnx").values(), strict=False)}
        tensors = [numpy_helper.from_array(array, key) for key, array in arrays.items()]
        if initializers:
            constants += tensors
        else:
            nodes += [helper.make_node("Constant", [], [tensor.name], value=tensor) for tensor in tensors]
        own: dict[str, Any] = {
            "hidden_size": spec.hidden_size,
            "direction": "bidirectional" if spec.bidirectional else "forward",
        }
        if isinstance(spec, GRUSpec) and spec.reset_after:
            own["linear_before_reset"] = 1
        if isinstance(spec, RNNSpec) and spec.nonlinearity == "relu":
            own["activations"] = ["Relu"] * spec.num_directions
        outputs = [f"Y{k}", f"Y_h{k}"]
        nodes.append(helper.make_node(spec.kind, [x, *arrays], outputs, name=f"{name}{k}", **{**own, **attributes}))
        nodes += (joints or joined)(k, spec)
        x = f"x{k + 1}"
    constants += [
        numpy_helper.from_array(np.array(value, np.int64), key)
        for key, value in {"axis": [1], "last": [0, 0, -1], "none": 0}.items()
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "theirs", [value("x", TensorProto.FLOAT, None)], [value(x, TensorProto.FLOAT, None)], constants
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def joined(k: int, spec: RecurrentSpec) -> list[Any]:
    """`(T, D, B, H)` to `(T, B, D*H)`."""
    if not spec.bidirectional:
        return [helper.make_node("Squeeze", [f"Y{k}", "axis"], [f"x{k + 1}"])]
    return [
        helper.make_node("Transpose", [f"Y{k}"], [f"side by side {k}"], perm=[0, 2, 1, 3]),
        helper.make_node("Reshape", [f"side by side {k}", "last"], [f"x{k + 1}"]),
    ]


def through(*between: Callable[[str, str], Any]) -> Callable[[int, RecurrentSpec], list[Any]]:
    """Like `joined`, followed by nodes with one input and one output."""

    def nodes(k: int, spec: RecurrentSpec) -> list[Any]:
        found = joined(k, spec)
        for number, make in enumerate(between):
            found[-1].output[0] = f"between {k} {number}"
            found.append(make(f"between {k} {number}", f"x{k + 1}"))
        return found

    return nodes


@pytest.mark.parametrize("initializers", [True, False], ids=["initializers", "constants"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_nodes_that_feed_each_other_are_one_stack(
    kind: str, bidirectional: bool, num_layers: int, bias: bool, initializers: bool
) -> None:
    cls, options = KINDS[kind]
    taken = drawn(cls(3, 4, num_layers, bidirectional=bidirectional, bias=bias, **options))
    model = other_model(unstack(taken), initializers=initializers)
    assert list(layers_of(model)) == ["rnn0"]
    assert onnx_reader.read_model(model) == taken
    assert onnx_reader.read_model(model, prefix="rnn0") == taken


def transposed(x: str, y: str) -> Any:
    return helper.make_node("Transpose", [x], [y], perm=[1, 0, 2])


PASSED = {
    "Identity": through(lambda x, y: helper.make_node("Identity", [x], [y])),
    "Dropout": through(lambda x, y: helper.make_node("Dropout", [x], [y])),
    "there and back": through(transposed, transposed),
}
STOPPED = {
    "a node that computes": through(lambda x, y: helper.make_node("Relu", [x], [y])),
    "time and batch are swapped": through(transposed),
    "a shape that is computed": lambda k, spec: [
        helper.make_node("Shape", [f"Y{k}"], [f"shape{k}"]),
        helper.make_node("Reshape", [f"Y{k}", f"shape{k}"], [f"x{k + 1}"]),
    ],
    "an operator of another domain": through(lambda x, y: helper.make_node("Identity", [x], [y], domain="theirs")),
    "dropout of a model in training": through(lambda x, y: helper.make_node("Dropout", [x, "", "axis"], [y])),
    "zeros, but not where the padding is": through(lambda x, y: helper.make_node("Where", ["axis", x, "none"], [y])),
    "another node uses the output": lambda k, spec: [
        *joined(k, spec),
        helper.make_node("Relu", [f"x{k + 1}"], [f"seen{k}"]),
    ],
}


@pytest.mark.parametrize("joints", PASSED.values(), ids=PASSED.keys())
def test_nodes_that_change_nothing_may_stand_within_a_stack(joints: Any) -> None:
    taken = drawn(GRUSpec(4, 4, 2))
    assert onnx_reader.read_model(other_model(unstack(taken), joints=joints)) == taken


@pytest.mark.parametrize("joints", STOPPED.values(), ids=STOPPED.keys())
def test_nodes_that_change_something_end_a_stack(joints: Any) -> None:
    parts = unstack(drawn(GRUSpec(4, 4, 2)))
    model = other_model(parts, joints=joints)
    assert layers_of(model) == {"rnn0": parts[0], "rnn1": parts[1]}
    with pytest.raises(
        errors.ArgumentError,
        match=r"^prefix: given none, but there are several layers; give one of 'rnn0', 'rnn1'$",
    ):
        onnx_reader.read_model(model)
    assert onnx_reader.read_model(model, prefix="rnn1") == parts[1]
    with pytest.raises(errors.ArgumentError, match=r"^prefix: given 'rnn', expected one of 'rnn0', 'rnn1'$"):
        onnx_reader.read_model(model, prefix="rnn")


@pytest.mark.parametrize(
    ("lengths", "filled", "is_stack"),
    [
        (("n", "n"), None, True),
        (("n", "n"), "valid", True),
        (("n", "cast"), "valid", True),
        (("n", "n"), "kept", False),
        (("", ""), "valid", False),
        (("n", "m"), None, False),
        (("n", ""), None, False),
    ],
)
def test_lengths_of_a_stack_are_the_same_in_all_layers(
    lengths: tuple[str, str], filled: str | None, is_stack: bool
) -> None:
    taken = drawn(GRUSpec(4, 4, 2))
    fill = through(lambda x, y: helper.make_node("Where", [filled or "", x, "none"], [y]))
    model = other_model(unstack(taken), joints=fill if filled else None)
    for node, name in zip([node for node in model.graph.node if node.op_type == "GRU"], lengths, strict=True):
        node.input.append(name)
    model.graph.node.insert(0, helper.make_node("Cast", ["n"], ["cast"], to=TensorProto.INT32))
    model.graph.node.insert(0, helper.make_node("Less", ["axis", "n"], ["valid"]))
    assert list(layers_of(model)) == (["rnn0"] if is_stack else ["rnn0", "rnn1"])


def test_an_output_of_the_model_ends_a_stack() -> None:
    parts = unstack(drawn(GRUSpec(4, 4, 2)))
    model = other_model(parts)
    model.graph.output.append(helper.make_tensor_value_info("x1", TensorProto.FLOAT, None))
    assert layers_of(model) == {"rnn0": parts[0], "rnn1": parts[1]}


def test_a_cycle_of_nodes_is_harmless() -> None:
    taken = drawn(GRUSpec(4, 4))
    model = other_model([taken])
    model.graph.node[-1].output[0] = "a"
    model.graph.node.extend(helper.make_node("Identity", [x], [y]) for x, y in ("ab", "ba"))
    assert onnx_reader.read_model(model) == taken


DIFFERENT = {
    "size": [GRUSpec(3, 4), GRUSpec(4, 5)],
    "cell": [GRUSpec(3, 4), LSTMSpec(4, 4)],
    "bias": [GRUSpec(3, 4), GRUSpec(4, 4, bias=False)],
    "variant": [GRUSpec(3, 4), GRUSpec(4, 4, reset_after=False)],
}


@pytest.mark.parametrize("specs", DIFFERENT.values(), ids=DIFFERENT.keys())
def test_different_layers_are_not_one_stack(specs: list[RecurrentSpec]) -> None:
    parts = [drawn(spec) for spec in specs]
    assert layers_of(other_model(parts)) == {"rnn0": parts[0], "rnn1": parts[1]}


def test_nodes_of_two_modules_are_two_layers() -> None:
    parts = unstack(drawn(GRUSpec(4, 4, 2)))
    model = other_model(parts)
    model.graph.node[0].name, model.graph.node[2].name = "/encoder/GRU", "/decoder/GRU"
    assert list(layers_of(model)) == ["/encoder/GRU", "/decoder/GRU"]


def test_a_node_without_a_name_is_named_by_its_output() -> None:
    model = other_model(unstack(drawn(GRUSpec(4, 4, 2))), joints=STOPPED["a node that computes"])
    for node in model.graph.node:
        node.name = ""
    assert list(layers_of(model)) == ["Y0", "Y1"]


def test_nodes_with_the_same_name_get_different_names() -> None:
    model = other_model(unstack(drawn(GRUSpec(4, 4, 2))), joints=STOPPED["a node that computes"])
    for node in model.graph.node:
        node.name = "rnn"
    assert list(layers_of(model)) == ["rnn", "Y1"]


def test_every_layer_gets_a_unique_name() -> None:
    model = other_model(unstack(drawn(GRUSpec(4, 4, 5))), joints=STOPPED["a node that computes"])
    nodes = [node for node in model.graph.node if node.op_type == "GRU"]
    index = list(model.graph.node).index(nodes[3])
    for node, name in zip(nodes, ["Y1", "", f"node {index}", "Y1", ""], strict=True):
        node.name = name
    nodes[3].output[0] = nodes[3].output[1] = ""
    assert list(layers_of(model)) == ["Y1", "Y_h1", f"node {index}", f"node {index + 1}", "Y4"]


@pytest.mark.parametrize("part", [lambda m: m.graph, lambda m: m.graph.node[0]], ids=["graph", "node"])
def test_a_part_of_a_model_is_refused(part: Callable[[Any], Any]) -> None:
    given = part(other_model([drawn(GRUSpec(3, 4))]))
    words = f"^onnx: given {type(given).__name__}, expected an onnx.ModelProto, the whole model$"
    for read in (onnx_reader.read_model, unirnn.snapshot):
        with pytest.raises(errors.ArgumentError, match=words):
            read(given)


def test_infinite_padding_ends_a_stack() -> None:
    joints = through(lambda x, y: helper.make_node("Where", ["mask", x, "infinity"], [y]))
    parts = unstack(drawn(GRUSpec(4, 4, 2)))
    model = other_model(parts, joints=joints)
    model.graph.initializer.append(numpy_helper.from_array(np.array(-np.inf, np.float32), "infinity"))
    assert layers_of(model) == {"rnn0": parts[0], "rnn1": parts[1]}


def test_only_the_weights_of_the_chosen_layer_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    class Watched(Constants):
        def read(self, tensor: Any) -> Any:
            read.append(tensor.name)
            return super().read(tensor)

    monkeypatch.setattr(onnx_reader, "Constants", Watched)
    parts = unstack(drawn(GRUSpec(4, 4, 2)))
    onnx.save(other_model(parts, joints=STOPPED["a node that computes"]), tmp_path / "a.onnx")
    assert unirnn.load(tmp_path / "a.onnx", prefix="rnn1") == parts[1]
    assert sorted(name for name in read if name[0] in "WRB") == ["B1", "R1", "W1"]
    onnx.save(other_model(parts[:1], clip=3.0), tmp_path / "a.onnx")
    with pytest.raises(
        errors.SpecError, match=r"a\.onnx: onnx: node 'rnn0' \(GRU\): clip=3.0, which no spec describes"
    ):
        unirnn.load(tmp_path / "a.onnx")


def test_layout_1_is_batch_first() -> None:
    taken = drawn(GRUSpec(3, 4))
    assert onnx_reader.read_model(other_model([taken], layout=1)) == Snapshot(
        replace(taken.spec, batch_first=True), taken.weights
    )


def test_bfloat16_is_read_as_float32() -> None:
    taken = drawn(GRUSpec(3, 4))
    model = other_model([taken])
    for tensor in model.graph.initializer[:3]:
        tensor.data_type = TensorProto.BFLOAT16
        tensor.raw_data = np.frombuffer(tensor.raw_data, np.uint16)[1::2].tobytes()
    cut = {name: (array.view(np.uint32) & 0xFFFF0000).view(np.float32) for name, array in taken.weights.items()}
    assert onnx_reader.read_model(model) == Snapshot(taken.spec, cut)


def test_a_model_without_recurrent_nodes() -> None:
    with pytest.raises(
        errors.ArgumentError, match=r"^onnx: the model has no RNN, GRU or LSTM node; a recurrent layer "
    ):
        onnx_reader.read_model(other_model([]))


ATTRIBUTES: dict[str, tuple[RecurrentSpec, dict[str, Any], str]] = {
    "clip": (GRUSpec(3, 4), {"clip": 3.0}, "clip=3.0, which no spec describes"),
    "input_forget": (LSTMSpec(3, 4), {"input_forget": 1}, "input_forget=1, which no spec describes"),
    "a direction": (
        GRUSpec(3, 4),
        {"direction": "up"},
        "direction='up', which no spec describes; expected 'forward', ",
    ),
    "activations of a GRU": (
        GRUSpec(3, 4),
        {"activations": ["Sigmoid", "Relu"]},
        "activations=['sigmoid', 'relu'], which no spec describes; expected ['sigmoid', 'tanh']",
    ),
    "another hard sigmoid": (
        GRUSpec(3, 4),
        {"activations": ["HardSigmoid", "Tanh"], "activation_alpha": [0.25]},
        "activations=['hardsigmoid', 'tanh'] with alpha=0.25 and beta=0.5 of the hard sigmoid, which no spec",
    ),
    "two hard sigmoids": (
        GRUSpec(3, 4, bidirectional=True),
        {"activations": ["HardSigmoid", "Tanh"] * 2, "activation_alpha": [1 / 6]},
        "activations=['hardsigmoid', 'tanh', 'hardsigmoid', 'tanh'], which no spec describes; ",
    ),
    "a parameter that is left over": (
        GRUSpec(3, 4),
        {"activations": ["HardSigmoid", "Tanh"], "activation_alpha": [0.2, 0.3]},
        "activation_alpha=[0.3",
    ),
    "activations of an RNN": (
        RNNSpec(3, 4),
        {"activations": ["Elu"]},
        "activations=['elu'], which no spec describes; ",
    ),
    "one activation of two": (
        RNNSpec(3, 4, bidirectional=True),
        {"activations": ["Relu", "Tanh"]},
        "activations=['relu', 'tanh'], which no spec describes; ",
    ),
    "activation_alpha": (GRUSpec(3, 4), {"activation_alpha": [0.5]}, "activation_alpha=[0.5], which no spec describes"),
    "unknown attribute": (GRUSpec(3, 4), {"colour": "red"}, "colour=b'red', which no spec describes"),
}


@pytest.mark.parametrize(("spec", "attributes", "words"), ATTRIBUTES.values(), ids=ATTRIBUTES.keys())
def test_an_attribute_that_no_spec_describes_is_refused(
    spec: RecurrentSpec, attributes: dict[str, Any], words: str
) -> None:
    model = other_model([drawn(spec)], **attributes)
    expected = f"onnx: node 'rnn0' ({spec.kind}): {words}"
    with pytest.raises(errors.SpecError, match=f"^{re.escape(expected)}"):
        onnx_reader.read_model(model)
    found = layers_of(model)["rnn0"]
    assert isinstance(found, errors.SpecError)
    assert str(found).startswith(expected)


def test_attributes_with_their_default_values_are_read() -> None:
    lstm, gru = drawn(LSTMSpec(3, 4)), drawn(GRUSpec(3, 4, reset_after=False))
    assert onnx_reader.read_model(other_model([lstm], input_forget=0, activations=["Sigmoid", "Tanh", "Tanh"])) == lstm
    assert (
        onnx_reader.read_model(other_model([gru], linear_before_reset=0, activations=["sigmoid", "tanh"], layout=0))
        == gru
    )


def test_peepholes_are_refused() -> None:
    model = other_model([drawn(LSTMSpec(3, 4))])
    model.graph.node[0].input.extend(["", "", "", "P"])
    with pytest.raises(errors.SpecError, match=r"^onnx: node 'rnn0' \(LSTM\): it has peepholes \(P\), 'P', which no"):
        onnx_reader.read_model(model)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((1, 12), np.float32), "P"))
    assert onnx_reader.read_model(model) == drawn(LSTMSpec(3, 4))


def test_weights_that_are_not_constants_are_refused() -> None:
    model = other_model([drawn(GRUSpec(3, 4))])
    model.graph.initializer[1].name = "R before"
    advice = "expected a constant; export the model with its weights, and its constants folded$"
    with pytest.raises(errors.SpecError, match=f"its R, 'R0', is an input of the graph, {advice}"):
        onnx_reader.read_model(model)
    model.graph.node.append(helper.make_node("Relu", ["R before"], ["R0"], name="made"))
    with pytest.raises(errors.SpecError, match=rf"its R, 'R0', is computed by node 'made' \(Relu\), {advice}"):
        onnx_reader.read_model(model)


def test_constants_are_found_behind_identities() -> None:
    taken = drawn(GRUSpec(3, 4))
    model = other_model([taken])
    model.graph.initializer[1].name = "R before"
    model.graph.node.insert(0, helper.make_node("Identity", ["R before"], ["R0"]))
    assert onnx_reader.read_model(model) == taken


# ---- altered files ------------------------------------------------------------------------------------------------


def set_(field: str, value: Any) -> Callable[[Any], None]:
    """Change a field of the first initializer, the W of our GRU."""

    def change(model: Any) -> None:
        tensor = model.graph.initializer[0]
        if field == "dims":
            del tensor.dims[:]
            tensor.dims.extend(value)
        else:
            setattr(tensor, field, value)

    return change


def metadata_twice(model: Any) -> None:
    model.metadata_props.append(model.metadata_props[0])


def untyped(model: Any) -> None:
    (node,) = (node for node in model.graph.node if node.op_type == "GRU")
    node.attribute.add(name="direction")


def metadata(text: str) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        (entry,) = model.metadata_props
        entry.value = text

    return change


def spec_of(**changes: Any) -> Callable[[Any], None]:
    return metadata(json.dumps({"format": 2, "spec": {**GRUSpec(3, 4).to_dict(), **changes}}))


def external(model: Any) -> None:
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")


def external_by_location(model: Any) -> None:
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL


def twice(model: Any) -> None:
    model.graph.initializer.append(model.graph.initializer[0])


def cycle(model: Any) -> None:
    model.graph.initializer[0].name = "elsewhere"
    model.graph.node.append(helper.make_node("Identity", ["W_l0"], ["W_l0"]))


def attribute(name: str, value: Any) -> Callable[[Any], None]:
    def change(model: Any) -> None:
        (node,) = (node for node in model.graph.node if node.op_type == "GRU")
        kept = [a for a in node.attribute if a.name != name]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def without_nodes(model: Any) -> None:
    del model.graph.node[:]


ALTERED: dict[str, tuple[Callable[[Any], None], str]] = {
    "dims that are too large": (set_("dims", [1, 12, 3000]), "dims [1, 12, 3000] need 144000 bytes, and it holds 144"),
    "gigantic dims": (set_("dims", [2**40, 2**40, 3]), "and it holds 144"),
    "dims that are too small": (set_("dims", [1, 12, 2]), "dims [1, 12, 2] need 96 bytes, and it holds 144"),
    "negative dims": (set_("dims", [1, -12, -3]), "not a complete tensor; given dims [1, -12, -3]"),
    "no dims": (set_("dims", []), "need 4 bytes, and it holds 144"),
    "a wrong rank": (set_("dims", [12, 3]), "given weights of shapes {'W': (12, 3), "),
    "a shape of another size": (set_("dims", [1, 6, 6]), "given weights of shapes {'W': (1, 6, 6), "),
    "an empty tensor with a gigantic size": (
        lambda model: (set_("dims", [0, 12, 2**40])(model), set_("raw_data", b"")(model))[0],
        "given weights of shapes {'W': (0, 12, 1099511627776), ",
    ),
    "data cut short": (set_("raw_data", b"1234"), "need 144 bytes, and it holds 4"),
    "another dtype": (set_("data_type", TensorProto.INT32), "its weights are float32, int32, expected one floating"),
    "a narrower dtype": (set_("data_type", TensorProto.FLOAT16), "need 72 bytes, and it holds 144"),
    "a dtype for text": (set_("data_type", TensorProto.STRING), "given STRING, expected FLOAT, DOUBLE, FLOAT16 or"),
    "an unknown dtype": (set_("data_type", 99), "given unknown, expected FLOAT, DOUBLE, FLOAT16 or BFLOAT16"),
    "weights in another file": (external, "its numbers are in another file, and a path in a file is not followed"),
    "weights elsewhere": (
        external_by_location,
        "its numbers are in another file, and a path in a file is not followed",
    ),
    "two initializers with one name": (twice, "two initializers are named 'W_l0'"),
    "a cycle of identities": (cycle, "its W, 'W_l0', is computed from itself"),
    "another hidden_size": (attribute("hidden_size", 5), "hidden_size is not that of R, 4"),
    "an unknown direction": (attribute("direction", b"\xff"), "direction='\ufffd', which no spec describes"),
    "another direction": (attribute("direction", "bidirectional"), "given weights of shapes {'W': (1, 12, 3), "),
    "another variant": (
        attribute("linear_before_reset", 0),
        "its metadata says GRUSpec(3, 4), its nodes are GRUSpec(3, 4, reset_after=False)",
    ),
    "a direction that is a number": (
        attribute("direction", 3),
        "onnx: node 'GRU_l0' (GRU): attribute 'direction': given type INT, expected STRING",
    ),
    "a hidden_size that is a text": (attribute("hidden_size", "4"), "'hidden_size': given type STRING, expected INT"),
    "a layout that is a text": (attribute("layout", "1"), "'layout': given type STRING, expected INT"),
    "a single activation": (
        attribute("activations", "Tanh"),
        "'activations': given type STRING, expected STRINGS",
    ),
    "an attribute without a type": (untyped, "attribute 'direction': given type UNDEFINED, expected STRING"),
    "metadata twice": (metadata_twice, "'unirnn' occurs twice"),
    "no nodes": (without_nodes, "its metadata is unirnn's, and it has no RNN, GRU or LSTM node"),
    "a newer format": (metadata('{"format": 3}'), "given format 3, newer than 2"),
    "no format": (metadata("{}"), "format: given None"),
    "no spec": (metadata('{"format": 2}'), "expected a format and a spec"),
    "a spec that is not JSON": (metadata("{"), "expected the JSON of a format and a spec"),
    "a spec of another size": (spec_of(hidden_size=5), "its metadata says GRUSpec(3, 5), its nodes are GRUSpec(3, 4)"),
    "a spec of gigantic layers": (spec_of(num_layers=10**12), "its metadata says GRUSpec(3, 4, num_layers=1000000"),
    "a spec of another kind": (spec_of(kind="LSTM", reset_after=None), "unirnn: given"),
    "a size that is no number": (spec_of(hidden_size=float("nan")), "NaN is not a number in JSON"),
}


@pytest.mark.parametrize(("change", "words"), ALTERED.values(), ids=ALTERED.keys())
def test_an_altered_file_is_refused(change: Callable[[Any], None], words: str) -> None:
    taken = drawn(GRUSpec(3, 4))
    model = onnx_writer.emit(taken.spec, taken.weights)
    change(model)
    with pytest.raises(errors.FileError, match=re.escape(words)):
        onnx_reader.read_model(onnx_reader.parse(model.SerializeToString()))


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"not a model", b"\x08\x08", bytes(range(256))])
def test_bytes_that_are_not_a_model(data: bytes) -> None:
    with pytest.raises(errors.FileError, match=r"^onnx: no ONNX model, or a truncated or altered one"):
        onnx_reader.parse(data)


DRAWN = drawn(GRUSpec(3, 4, 2, bidirectional=True))
WHOLE = onnx_writer.emit(DRAWN.spec, DRAWN.weights).SerializeToString()


@settings(max_examples=150)
@given(data=st.data())
def test_changed_bytes_give_a_snapshot_or_an_error_from_unirnn(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(WHOLE)))
    stop = data.draw(st.integers(start, min(len(WHOLE), start + 40)))
    altered = WHOLE[:start] + data.draw(st.binary(max_size=40)) + WHOLE[stop:]
    try:
        found = onnx_reader.read_model(onnx_reader.parse(altered))
    except errors.UnirnnError:
        return
    assert found.spec.num_weights == sum(array.size for array in found.weights.values()) <= len(altered)
