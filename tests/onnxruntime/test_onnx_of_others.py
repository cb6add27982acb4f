"""ONNX files of other programs: computed constants, graphs within graphs, quantised weights, hostile graphs."""

import math
import re
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import array_api_strict
import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_limit import limited_memory
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, errors
from unirnn.files import contents, onnx_reader
from unirnn.snapshots.stacking import unstack

Array = NDArray[Any]
node, tensor = helper.make_node, numpy_helper.from_array
FLOAT = TensorProto.FLOAT


def drawn(spec: RecurrentSpec) -> Snapshot:
    return unirnn.snapshot(spec.build("onnxruntime", seed=0))


def graph(
    nodes: list[Any], constants: dict[str, Array], results: tuple[str, ...] = ("y",), inputs: Any = ("x",)
) -> Any:
    takes, gives = ([helper.make_tensor_value_info(name, FLOAT, None) for name in names] for names in (inputs, results))
    return helper.make_graph(nodes, "theirs", takes, gives, [tensor(array, name) for name, array in constants.items()])


def model(nodes: list[Any], constants: dict[str, Array], *, functions: Any = (), **options: Any) -> Any:
    opsets = [helper.make_opsetid(domain, 17 if not domain else 1) for domain in ("", "theirs", "com.microsoft")]
    return helper.make_model(
        graph(nodes, constants, **options), opset_imports=opsets, ir_version=8, functions=list(functions)
    )


GRU = drawn(GRUSpec(3, 4))
WEIGHTS = dict(zip("WRB", GRU.to("onnx").values(), strict=True))
W, R, B = WEIGHTS.values()


def gru(x: str = "x", y: str = "Y", weights: str = "WRB", name: str = "gru", **attributes: Any) -> Any:
    return node("GRU", [x, *weights], [y], name=name, **{"hidden_size": 4, "linear_before_reset": 1, **attributes})


def layers(of: Any) -> dict[str, Any]:
    return {name: layer.spec for name, layer in onnx_reader.contents_of_model(of).layers.items()}


def ints(*values: int) -> Array:
    return np.array(values, np.int64)


# ---- constants that nodes compute ----------------------------------------------------------------

SCALE, ZERO = np.array(0.125, np.float32), np.array(3, np.int8)
LEVELS = np.arange(-18, 18, dtype=np.int8).reshape(1, 12, 3)
COMPUTED: dict[str, tuple[list[Any], dict[str, Array], Array]] = {
    "Slice and Concat": (
        [
            node("Slice", ["a", "four", "twelve", "one"], ["below"]),
            node("Slice", ["a", "zero", "four", "one"], ["above"]),
            node("Concat", ["above", "below"], ["W"], axis=1),
        ],
        {"a": W, "zero": ints(0), "one": ints(1), "four": ints(4), "twelve": ints(12)},
        W,
    ),
    "Unsqueeze": ([node("Unsqueeze", ["a", "zero"], ["W"])], {"a": W[0], "zero": ints(0)}, W),
    "Squeeze": ([node("Squeeze", ["a", "zero"], ["W"])], {"a": W[None], "zero": ints(0)}, W),
    "Transpose": ([node("Transpose", ["a"], ["W"], perm=[2, 1, 0])], {"a": W.T.copy()}, W),
    "Reshape": ([node("Reshape", ["a", "shape"], ["W"])], {"a": W.reshape(-1), "shape": ints(1, 12, -1)}, W),
    "Cast": ([node("Cast", ["a"], ["W"], to=FLOAT)], {"a": W.astype(np.float64)}, W),
    "Split": ([node("Split", ["a"], ["before", "W"], axis=0)], {"a": np.concatenate([W + 1, W])}, W),
    "Gather": ([node("Gather", ["a", "one"], ["W"], axis=0)], {"a": np.stack([W[0] + 1, W[0]]), "one": ints(1)}, W),
    "Identity": ([node("Identity", ["a"], ["b"]), node("Identity", ["b"], ["W"])], {"a": W}, W),
    "Add, Mul and Sub": (
        [
            node("Add", ["a", "half"], ["b"]),
            node("Mul", ["b", "half"], ["c"]),
            node("Sub", ["c", "half"], ["W"]),
        ],
        {"a": W, "half": np.array(0.5, np.float32)},
        (W + np.float32(0.5)) * np.float32(0.5) - np.float32(0.5),
    ),
    "ConstantOfShape": (
        [node("ConstantOfShape", ["shape"], ["W"], value=tensor(np.array([0.5], np.float32)))],
        {"shape": ints(1, 12, 3)},
        np.full((1, 12, 3), 0.5, np.float32),
    ),
    "Expand": (
        [node("Expand", ["a", "shape"], ["W"])],
        {"a": W[:, :, :1], "shape": ints(1, 12, 3)},
        np.broadcast_to(W[:, :, :1], (1, 12, 3)),
    ),
    "Where": ([node("Where", ["positive", "a", "b"], ["W"])], {"positive": W > 0, "a": W, "b": -W}, np.abs(W)),
    "DequantizeLinear": (
        [node("DequantizeLinear", ["a", "scale", "point"], ["W"])],
        {"a": LEVELS, "scale": SCALE, "point": ZERO},
        (LEVELS.astype(np.float32) - 3) * SCALE,
    ),
    "DequantizeLinear of ONNX Runtime": (
        [node("DequantizeLinear", ["a", "scale", "point"], ["W"], domain="com.microsoft")],
        {"a": LEVELS, "scale": SCALE, "point": ZERO},
        (LEVELS.astype(np.float32) - 3) * SCALE,
    ),
    "a weight of a norm": (
        [
            node("ReduceL2", ["a"], ["norm"], axes=[2], keepdims=1),
            node("Div", ["a", "norm"], ["direction"]),
            node("Mul", ["direction", "g"], ["W"]),
        ],
        {"a": W, "g": np.array(2, np.float32)},
        2 * W / np.sqrt((W.astype(np.float64) ** 2).sum(2, keepdims=True)),
    ),
}


@pytest.mark.parametrize(("nodes", "constants", "expected"), COMPUTED.values(), ids=COMPUTED.keys())
def test_weights_that_nodes_compute_from_constants(nodes: Any, constants: Any, expected: Array) -> None:
    found = onnx_reader.read_model(model([*nodes, gru()], {"R": R, "B": B, **constants}))
    np.testing.assert_allclose(found.to("onnx")["W_l0"], expected, rtol=1e-6)


def test_constants_that_a_function_computes() -> None:
    halves = helper.make_function(
        "theirs", "Scaled", ["a"], ["b"], [node("Mul", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    of = model([node("Scaled", ["a"], ["W"], domain="theirs"), gru()], {"a": W, "R": R, "B": B}, functions=[halves])
    np.testing.assert_array_equal(onnx_reader.read_model(of).to("onnx")["W_l0"], W * W)


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        ([node("Add", ["x", "W"], ["V"])], "its W, 'V', comes from 'x', an input of the graph, expected a constant; "),
        ([node("Erf", ["W"], ["V"], name="erf")], "its W, 'V', is computed by node 'erf' (Erf), expected a constant; "),
        (
            [node("Transpose", ["W"], ["V"], perm=[7], name="turn")],
            "its W, 'V', is computed by node 'turn' (Transpose), which fails: ",
        ),
    ],
)
def test_weights_that_are_not_constants_are_refused(nodes: Any, words: str) -> None:
    with pytest.raises(errors.SpecError, match=re.escape(f"onnx: node 'gru' (GRU): {words}")):
        onnx_reader.read_model(model([*nodes, gru(weights="VRB")], WEIGHTS))


# ---- limits on a file's constants ----------------------------------------------------------------

DOUBLED = [node("Concat", [f"d{k}", f"d{k}"], [f"d{k + 1}"], axis=0) for k in range(60)]
HUGE = {
    "Expand": ([node("Expand", ["d0", "shape"], ["W"])], ints(2**40, 12, 3)),
    "Tile": ([node("Tile", ["d0", "shape"], ["W"])], ints(2**20, 2**20, 1)),
    "ConstantOfShape": ([node("ConstantOfShape", ["shape"], ["W"])], ints(2**21, 2**21, 2**21)),
    "Gather": (
        [node("Expand", ["zero", "shape"], ["many"]), node("Gather", ["d0", "many"], ["W"])],
        ints(10**6),
    ),
    "Add": (
        [
            node("Reshape", ["row", "shape"], ["column"]),
            node("Expand", ["row", "size"], ["long"]),
            node("Reshape", ["long", "shape"], ["tall"]),
            node("Add", ["long", "tall"], ["W"]),
        ],
        ints(-1, 1),
    ),
    "a chain": ([*DOUBLED, node("Identity", ["d60"], ["W"])], ints(1)),
}


@pytest.mark.parametrize(("nodes", "shape"), HUGE.values(), ids=HUGE.keys())
def test_constants_that_would_be_too_large_are_refused_before_they_are_made(nodes: Any, shape: Array) -> None:
    constants = {"R": R, "d0": W, "shape": shape, "zero": ints(0), "row": R[0, 0], "size": ints(50_000, 4)}
    of = model([*nodes, gru(weights="WR")], constants)
    words = r"would need \d+ bytes, more than are reasonable for a model of"
    with pytest.raises(errors.FileError, match=words), limited_memory(5_000_000):
        onnx_reader.contents_of_model(of)


def test_many_nodes_of_one_initializer(tmp_path: Path) -> None:
    square = np.zeros((1, 256, 256), np.float32)
    apart = [node("RNN", ["x", "W", "W"], [f"y{k}"], name=f"rnn{k}") for k in range(150)]
    chained = []
    for k in range(150):
        chained.append(node("RNN", [f"x{k}", "W", "W"], [f"y{k}"], name=f"rnn{k}"))
        chained.append(node("Squeeze", [f"y{k}", "axis"], [f"x{k + 1}"]))
    path = tmp_path / "a.onnx"
    for nodes, count in ((apart, 150), (chained, 1)):
        onnx.save(model(nodes, {"W": square, "axis": ints(1)}), path)
        with limited_memory(60 * path.stat().st_size):
            assert len(contents(path).layers) == count
            if count > 1:
                assert unirnn.load(path, prefix="rnn7").spec == RNNSpec(256, 256, bias=False)
            else:
                with pytest.raises(errors.FileError, match="would need 262144 bytes, more than are reasonable"):
                    unirnn.load(path)


# ---- graphs within graphs ------------------------------------------------------------------------


def branches(then: Any, other: Any, **options: Any) -> Any:
    return node("If", ["condition"], ["y"], name="choose", then_branch=then, else_branch=other, **options)


def body_of_loop(*nodes: Any) -> Any:
    values = [helper.make_tensor_value_info(name, kind, None) for name, kind in (("i", 7), ("go", 9), ("go_on", 9))]
    return helper.make_graph([*nodes, node("Identity", ["go"], ["go_on"])], "body", values[:2], values[2:])


def called(*nodes: Any, name: str = "Layer", inputs: Any = ("x", "W", "R", "B"), **options: Any) -> Any:
    return helper.make_function("theirs", name, inputs, ["Y"], nodes, [helper.make_opsetid("", 17)], **options)


def test_layers_in_branches_bodies_and_functions_are_named_by_their_paths() -> None:
    inner = graph([gru(weights="VRB", name="")], {"V": W + 1}, ("Y",), ())
    scanned = graph([gru(name="layer")], {}, ("Y",), ("x",))
    passes = called(node("Identity", ["x"], ["X"]), gru("X", name="inside"))
    of = model(
        [
            branches(graph([gru()], {}, ("Y",), ()), graph([branches(inner, inner)], {}, ("y",), ())),
            node("Loop", ["", "condition"], [], name="loop", body=body_of_loop(gru())),
            node("Scan", ["x"], ["s"], body=scanned, num_scan_inputs=1),
            node("Layer", ["x", "W", "R", "B"], ["f"], name="call", domain="theirs"),
            gru(name="outside"),
        ],
        {**WEIGHTS, "condition": np.array(True)},
        functions=[passes],
    )
    within = "choose/else_branch/choose"
    assert list(layers(of)) == [
        f"{within}/else_branch/Y",
        f"{within}/then_branch/Y",
        "choose/then_branch/gru",
        "loop/body/gru",
        "s/body/layer",
        "call/inside",
        "outside",
    ]
    for name in layers(of):
        expected = W + 1 if name.startswith(within) else W
        np.testing.assert_array_equal(onnx_reader.read_model(of, name).to("onnx")["W_l0"], expected)


def test_attributes_that_a_function_passes_on() -> None:
    inner = gru()
    del inner.attribute[:]
    inner.attribute.add(name="linear_before_reset", ref_attr_name="their_linear_before_reset", type=2)
    inner.attribute.add(name="direction", ref_attr_name="their_direction", type=3)
    functions = [called(inner, attributes=["their_linear_before_reset"])]
    functions[0].attribute_proto.append(helper.make_attribute("their_direction", "reverse"))
    calls = [
        node("Layer", ["x", *"WRB"], [f"f{k}"], name=f"f{k}", domain="theirs", their_linear_before_reset=k)
        for k in (0, 1)
    ]
    found = layers(model(calls, WEIGHTS, functions=functions))
    assert found == {
        "f0/gru": GRUSpec(3, 4, reverse=True, reset_after=False),
        "f1/gru": GRUSpec(3, 4, reverse=True),
    }


def test_a_node_in_a_branch_that_takes_an_output_ends_a_stack() -> None:
    parts = unstack(drawn(GRUSpec(4, 4, 2)))
    constants = {
        f"{role}{k}": array
        for k, part in enumerate(parts)
        for role, array in zip("WRB", part.to("onnx").values(), strict=True)
    }
    nodes = [
        node("GRU", ["x", "W0", "R0", "B0"], ["Y0"], name="one", hidden_size=4, linear_before_reset=1),
        node("Squeeze", ["Y0", "axis"], ["x1"]),
        node("GRU", ["x1", "W1", "R1", "B1"], ["Y1"], name="two", hidden_size=4, linear_before_reset=1),
    ]
    constants |= {"axis": ints(1), "condition": np.array(True)}
    assert list(layers(model(nodes, constants))) == ["one"]
    seen = graph([node("Relu", ["x1"], ["r"])], {}, ("r",), ())
    assert list(layers(model([*nodes, branches(seen, seen)], constants))) == ["one", "two"]


def nested(depth: int) -> bytes:
    """A model whose GRU is in a branch of a branch of a branch."""

    def field(number: int, data: bytes) -> bytes:
        size, length = len(data), b""
        while size > 127:
            length, size = length + bytes([size % 128 + 128]), size // 128
        return bytes([number * 8 + 2]) + length + bytes([size]) + data

    inner: bytes = graph([gru()], {}, ("Y",), ()).SerializeToString()
    for _ in range(depth):
        branch = field(1, b"then_branch") + field(6, inner) + bytes([0xA0, 0x01, 5])  # a graph
        inner = field(1, field(2, b"Y") + field(3, b"i") + field(4, b"If") + field(5, branch))
    whole: bytes = model([], WEIGHTS).SerializeToString()
    return whole + field(7, inner)  # a field that occurs twice is merged


def test_hostile_functions_and_graphs_are_refused() -> None:
    call = node("Layer", ["x", "W", "R", "B"], ["Y"], domain="theirs", name="call")
    itself = model([call], WEIGHTS, functions=[called(gru(), call)])
    with pytest.raises(errors.FileError, match="its graphs or functions are nested more than 64 deep"):
        onnx_reader.contents_of_model(itself)
    # Each calls the next one twice: 2**40 layers.
    doubling = [
        called(*[node(f"F{k + 1}", ["x", *"WRB"], [f"y{n}"], domain="theirs") for n in (0, 1)], name=f"F{k}")
        for k in range(40)
    ]
    first = node("F0", ["x", *"WRB"], ["y"], domain="theirs")
    with pytest.raises(errors.FileError, match=r"function 'F.*' would need .* bytes, more than are reasonable"):
        onnx_reader.contents_of_model(model([first], WEIGHTS, functions=[*doubling, called(gru(), name="F40")]))
    assert list(layers(onnx_reader.parse(nested(20)))) == ["i/then_branch/" * 20 + "gru"]
    with pytest.raises(errors.FileError, match="no ONNX model, or a truncated or altered one"):  # protobuf's own limit
        onnx_reader.parse(nested(1000))


# ---- directions, activations, integers -----------------------------------------------------------

X = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32) * 4


def computed(of: Any, **feeds: Array) -> list[Array]:
    session = onnxruntime.InferenceSession(of.SerializeToString(), providers=["CPUExecutionProvider"])
    found: list[Array] = session.run(None, feeds)
    return found


ACTIVATED: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "GRU, by default": ("GRU", {"activations": ["HardSigmoid", "Tanh"]}, {"gate_activation": "hard_sigmoid_0.2"}),
    "LSTM of Keras 3": (
        "LSTM",
        {"activations": ["HardSigmoid", "Tanh", "Tanh"], "activation_alpha": [1 / 6], "activation_beta": [0.5]},
        {"gate_activation": "hard_sigmoid"},
    ),
    "LSTM of Keras 2, both directions": (
        "LSTM",
        {
            "activations": ["HardSigmoid", "Tanh", "Tanh"] * 2,
            "activation_alpha": [0.2, 0.2],
            "direction": "bidirectional",
        },
        {"gate_activation": "hard_sigmoid_0.2", "bidirectional": True},
    ),
    "RNN in reverse": ("RNN", {"direction": "reverse"}, {"reverse": True}),
    "LSTM in reverse": ("LSTM", {"direction": "reverse"}, {"reverse": True}),
}


@pytest.mark.parametrize(("kind", "attributes", "options"), ACTIVATED.values(), ids=ACTIVATED.keys())
def test_activations_and_directions_agree_with_onnx_runtime(kind: str, attributes: Any, options: Any) -> None:
    spec = {"GRU": GRUSpec, "LSTM": LSTMSpec, "RNN": RNNSpec}[kind](3, 4, **options)
    taken = drawn(spec)
    if kind == "GRU":
        attributes = {**attributes, "linear_before_reset": 1}
    of = model(
        [node(kind, ["x", *"WRB"], ["Y"], hidden_size=4, **attributes)],
        dict(zip("WRB", taken.to("onnx").values(), strict=True)),
        results=("Y",),
    )
    found = onnx_reader.read_model(of)
    assert found == taken
    (directions,) = computed(of, x=X)
    expected = directions.transpose(0, 2, 1, 3).reshape(5, 2, -1)
    built = found.build("array_api", namespace=array_api_strict)  # the reference supports all of them
    np.testing.assert_allclose(np.asarray(built(array_api_strict.asarray(X))[0]), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("role", "value", "words"),
    [
        (
            4,
            np.array([3, 2], np.int32),
            "lengths that are no part of the layer, its sequence_lens; give them to each call",
        ),
        (
            5,
            np.ones((1, 2, 4), np.float32),
            "a state that is no part of the layer, its initial_h; give it to each call",
        ),
        (5, np.zeros((1, 2, 4), np.float32), ""),
    ],
)
def test_a_note_tells_of_constant_lengths_and_states(role: int, value: Array, words: str) -> None:
    inputs = ["x", *"WRB", "", ""]
    inputs[role] = "given"
    of = model([node("GRU", inputs, ["y"], hidden_size=4, linear_before_reset=1)], {**WEIGHTS, "given": value})
    (layer,) = onnx_reader.contents_of_model(of).layers.values()
    assert (words in layer.note) if words else not layer.note
    with pytest.warns(UserWarning, match=words) if words else nullcontext():
        assert onnx_reader.read_model(of) == GRU


def pair(**second: Any) -> Any:
    """A forward and a reverse node with joined outputs, and a layer above them."""
    both = drawn(GRUSpec(3, 4, 2, bidirectional=True))
    below, above = unstack(both)
    constants = {"axis": ints(1), "last": ints(0, 0, -1)}
    for role, array in zip("WRB", below.to("onnx").values(), strict=True):
        constants |= {f"{role}0": array[:1], f"{role}1": array[1:], f"{role}2": above.to("onnx")[f"{role}_l0"]}
    options: dict[str, Any] = {"hidden_size": 4, "linear_before_reset": 1}
    nodes = [
        node("GRU", ["x", "W0", "R0", "B0"], ["Y0"], name="forward", **options),
        node("GRU", ["x", "W1", "R1", "B1"], ["Y1"], name="reverse", **{**options, "direction": "reverse", **second}),
        node("Squeeze", ["Y0", "axis"], ["y0"]),
        node("Squeeze", ["Y1", "axis"], ["y1"]),
        node("Concat", ["y0", "y1"], ["joined"], axis=2),
        node("GRU", ["joined", "W2", "R2", "B2"], ["Y2"], name="above", direction="bidirectional", **options),
        node("Transpose", ["Y2"], ["side by side"], perm=[0, 2, 1, 3]),
        node("Reshape", ["side by side", "last"], ["y"]),
    ]
    return model(nodes, constants), both


def test_joined_forward_and_reverse_nodes_are_one_layer() -> None:
    of, both = pair()
    assert layers(of) == {"forward": both.spec}
    found = onnx_reader.read_model(of)
    assert found == both
    np.testing.assert_allclose(found.build("numpy")(X)[0], computed(of, x=X)[0], atol=1e-6)


def swapped(of: Any) -> None:
    of.graph.node[4].input[:] = ["y1", "y0"]


def joined_steps(of: Any) -> None:
    of.graph.node[4].attribute[0].i = 0


def other_input(of: Any) -> None:
    of.graph.node[1].input[0] = "z"


@pytest.mark.parametrize(
    ("change", "second"),
    [
        (None, {"linear_before_reset": 0}),
        (None, {"direction": "forward"}),
        (swapped, {}),
        (joined_steps, {}),
        (other_input, {}),
    ],
)
def test_other_pairs_of_nodes_are_not_two_directions_of_one_layer(change: Any, second: Any) -> None:
    of, _ = pair(**second)
    if change is not None:
        change(of)
    assert list(layers(of)) == ["forward", "reverse", "above"]


@pytest.mark.parametrize("per_row", [True, False])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_an_lstm_of_integers_is_dequantised(dtype: Any, per_row: bool) -> None:
    rng = np.random.default_rng(0)
    zero = 128 if dtype is np.uint8 else 0
    constants: dict[str, Array] = {"B": rng.standard_normal((2, 32)).astype(np.float32) * 0.1}
    expected = {}
    for role, size in (("W", 3), ("R", 4)):
        levels = rng.integers(zero - 60, zero + 60, (2, size, 16), dtype)  # more would overflow in ONNX Runtime
        scales = rng.uniform(0.004, 0.008, (2, 16) if per_row else (2,)).astype(np.float32)
        zeros = np.full(scales.shape, zero, dtype)
        wide = [np.broadcast_to(part.reshape(2, 1, -1), (2, size, 16)).astype(np.float64) for part in (zeros, scales)]
        expected[role] = ((levels - wide[0]) * wide[1]).transpose(0, 2, 1)
        constants |= {role: levels, f"{role}_scale": scales, f"{role}_zero": zeros}
    inputs = ["x", *"WRB", "", "", "", "", "W_scale", "W_zero", "R_scale", "R_zero"]
    attributes: dict[str, Any] = {"hidden_size": 4, "direction": "bidirectional", "domain": "com.microsoft"}
    of = model([node("DynamicQuantizeLSTM", inputs, ["Y"], name="lstm", **attributes)], constants, results=("Y",))
    (layer,) = onnx_reader.contents_of_model(of).layers.values()
    assert layer.spec == LSTMSpec(3, 4, bidirectional=True)
    assert "8-bit integers" in layer.note
    with pytest.warns(UserWarning, match="'lstm': its weights are 8-bit integers in the file"):
        found = onnx_reader.read_model(of)
    for role, array in expected.items():
        np.testing.assert_allclose(found.to("onnx")[f"{role}_l0"], array, rtol=1e-6)
    (directions,) = computed(of, x=X)  # it rounds its input, too
    by_runtime = directions.transpose(0, 2, 1, 3).reshape(5, 2, -1)
    np.testing.assert_allclose(found.build("numpy")(X)[0], by_runtime, atol=0.05)


# ---- messages about other models -----------------------------------------------------------------


def scan(states: int) -> Any:
    inside = graph([node("Add", ["h", "x_t"], ["h_next"])], {}, ("h_next",), ("h", "x_t")[2 - states - 1 :])
    return node("Scan", ["h_0", "x"][1 - states :], ["s"], name="steps", body=inside, num_scan_inputs=1)


NONE = "onnx: the model has no RNN, GRU or LSTM node; "
HINTS: dict[str, tuple[list[Any], str]] = {
    "nothing": ([node("Relu", ["x"], ["y"])], f"{NONE}a recurrent layer of single operations is not recognised"),
    "a Scan with a state": ([scan(1)], f"{NONE}node 'steps' (Scan) repeats single operations, which are not read; if"),
    "a Scan without a state": ([scan(0)], f"{NONE}a recurrent layer of single operations is not recognised"),
    "another domain": (
        [node("FancyLSTM", ["x"], ["y"], name="fancy", domain="theirs")],
        "onnx: node 'fancy': theirs::FancyLSTM is no operator of ONNX, and is not read",
    ),
}


@pytest.mark.parametrize(("nodes", "words"), HINTS.values(), ids=HINTS.keys())
def test_models_without_a_readable_layer_are_refused(nodes: Any, words: str) -> None:
    with pytest.raises((errors.ArgumentError, errors.SpecError), match=f"^{re.escape(words)}"):
        onnx_reader.read_model(model(nodes, {}))


def test_parameters_of_pytorch_are_read_by_their_names() -> None:
    taken = drawn(GRUSpec(3, 4))
    of = model([node("Relu", ["x"], ["y"])], {f"enc.{name}": array for name, array in taken.weights.items()})
    with pytest.raises(errors.ArgumentError, match=NONE):  # other programs may use another layout
        onnx_reader.read_model(of)
    of.producer_name = "pytorch"
    # The exporter renames the arrays that it changes, so some may be missing.
    with pytest.raises(errors.ArgumentError, match=r"some may be missing; .*, give as spec GRUSpec\(3, 4\)$"):
        onnx_reader.read_model(of)
    assert onnx_reader.read_model(of, spec=taken.spec) == taken


# ---- numbers beside the model --------------------------------------------------------------------


def saved_with_data(folder: Path, name: str = "a.onnx.data") -> Path:
    onnx.save_model(
        model([gru()], WEIGHTS, results=("Y",)),
        folder / "a.onnx",
        save_as_external_data=True,
        location=name,
        size_threshold=0,
    )
    return folder / "a.onnx"


def test_numbers_in_a_file_beside_the_model(tmp_path: Path) -> None:
    path = saved_with_data(tmp_path)
    assert unirnn.load(path) == GRU
    with pytest.raises(errors.FileError, match="its numbers are in another file, and a path in a file is not followed"):
        onnx_reader.read_model(onnx_reader.parse(path.read_bytes()))


def shortened(data: Path) -> None:
    data.write_bytes(data.read_bytes()[:-1])


def linked(data: Path) -> None:
    data.rename(data.with_name("elsewhere"))
    data.symlink_to("elsewhere")


@pytest.mark.parametrize("change", [Path.unlink, shortened, linked])
def test_an_altered_file_of_numbers_is_refused(change: Callable[[Path], None], tmp_path: Path) -> None:
    path = saved_with_data(tmp_path)
    change(tmp_path / "a.onnx.data")
    assert [layer.spec for layer in contents(path).layers.values()] == [GRU.spec]
    with pytest.raises(errors.FileError, match=r"tensor '[WRB]': "):
        unirnn.load(path)


@pytest.mark.parametrize("location", ["../a.onnx.data", "/etc/passwd", "folder/a.onnx.data", "..", ""])
def test_a_path_in_a_file_is_not_followed(location: str, tmp_path: Path) -> None:
    path = saved_with_data(tmp_path)
    of = onnx.load(path, load_external_data=False)
    for one in of.graph.initializer:
        one.external_data[0].value = location
    path.write_bytes(of.SerializeToString())
    with pytest.raises(errors.FileError, match="a path in a file is not followed"):
        unirnn.load(path)


# ---- altered files -------------------------------------------------------------------------------


def intricate() -> bytes:
    """A small file with a branch, a function, computed constants, integers, and a pair of directions."""
    of, _ = pair()
    of.functions.append(called(gru(name="inside")))
    of.opset_import.append(helper.make_opsetid("theirs", 1))
    nodes, constants, _ = COMPUTED["Slice and Concat"]
    of.graph.node.extend([*nodes, branches(graph([gru()], {}, ("Y",), ()), graph([], {}, ("x",), ()))])
    of.graph.node.append(node("Layer", ["x", "W", "R", "B"], ["f"], domain="theirs"))
    quantized = {"q": LEVELS, "scale": SCALE, "point": ZERO}
    of.graph.node.append(node("DequantizeLinear", ["q", "scale", "point"], ["V"]))
    of.graph.node.append(gru(weights="VRB", name="quantized"))
    for name, array in {**constants, **quantized, "R": R, "B": B}.items():
        of.graph.initializer.append(tensor(np.asarray(array), name))
    data: bytes = of.SerializeToString()
    return data


INTRICATE = intricate()


def test_the_intricate_file_is_read_before_it_is_altered() -> None:
    names = ["forward", "choose/then_branch/gru", "f/inside", "quantized"]
    assert list(layers(onnx_reader.parse(INTRICATE))) == names


@settings(max_examples=200)
@given(data=st.data())
def test_changed_bytes_give_layers_or_an_error_from_unirnn(data: st.DataObject) -> None:
    altered = bytearray(INTRICATE)
    for _ in range(data.draw(st.integers(1, 4))):
        altered[data.draw(st.integers(0, len(altered) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    try:
        of = onnx_reader.parse(bytes(altered))
        names = onnx_reader.contents_of_model(of).layers
    except errors.UnirnnError:
        return
    for name in names:
        try:
            found = onnx_reader.read_model(of, name)
        except errors.UnirnnError:
            continue
        assert all(math.prod(array.shape) <= len(altered) for array in found.weights.values())
