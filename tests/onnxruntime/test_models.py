"""Models as ``.onnx``, and on ONNX Runtime: the names in a graph, any T and B, other runtimes, files, and copies.

The conformance suite checks the numbers.
"""

import copy
import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

import unirnn
from unirnn import (
    ActivationSpec,
    BatchNormSpec,
    Concat,
    Conv1dSpec,
    DropoutSpec,
    EmbeddingSpec,
    GRUSpec,
    LayerNormSpec,
    LinearSpec,
    LSTMSpec,
    NormalizeSpec,
    PoolSpec,
    Residual,
    RNNSpec,
    Sequential,
    Snapshot,
    Spec,
    errors,
)
from unirnn.files import onnx_reader, onnx_writer
from unirnn.testing.strategies import models
from unirnn.testing.tolerances import close

CLASSIFIER = Sequential(
    embedding=EmbeddingSpec(7, 4, padding_idx=0),
    conv=Conv1dSpec(4, 4, 3, padding="causal"),
    encoder=LSTMSpec(4, 3, 2, bidirectional=True, batch_first=True),
    norm=BatchNormSpec(6),
    drop=DropoutSpec(0.5),
    pool=Concat(PoolSpec("mean"), PoolSpec("max"), PoolSpec("first_last")),
    head=LinearSpec(18, 2),
)
TAGGER = Sequential(
    Conv1dSpec(3, 4, 3, stride=2, padding=1),
    Residual(Sequential(GRUSpec(4, 4), LayerNormSpec(4), ActivationSpec("gelu"))),
    GRUSpec(4, 5, reset_after=False),
)
LANGUAGE_MODEL = Sequential(
    embedding=EmbeddingSpec(7, 4),
    encoder=RNNSpec(4, 4, batch_first=True),
    head=LinearSpec(4, 7, bias=False, tied_to="embedding"),
)
MODELS = {"classifier": CLASSIFIER, "tagger": TAGGER, "language model": LANGUAGE_MODEL}


def drawn(spec: Spec, dtype: str = "float32") -> Snapshot:
    weights = unirnn.contract.weights.draw(spec, 0)
    return Snapshot(spec, {name: array.astype(dtype) for name, array in weights.items()})


def written(spec: Spec, **options: Any) -> Any:
    taken = drawn(spec)
    return onnx_writer.emit(taken.spec, taken.weights, **options)


def shapes(values: Any) -> dict[str, list[Any]]:
    return {v.name: [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}


# ---- graphs --------------------------------------------------------------------------------------


def test_inputs_and_outputs_have_the_names_of_their_layers() -> None:
    graph = written(CLASSIFIER).graph
    assert shapes(graph.input) == {
        "input": ["B", "T"],
        "seq_length": ["B"],
        "conv.context_0": [2, "B", 4],
        "encoder.h_0": [4, "B", 3],
        "encoder.c_0": [4, "B", 3],
    }
    assert shapes(graph.output) == {
        "output": ["B", 2],
        "conv.context_n": [2, "B", 4],
        "encoder.h_n": [4, "B", 3],
        "encoder.c_n": [4, "B", 3],
    }


def test_an_output_with_steps_has_lengths() -> None:
    graph = written(TAGGER).graph
    assert list(shapes(graph.input)) == ["input", "seq_length", "1.layer.0.h_0", "2.h_0"]
    assert shapes(graph.output) == {
        "output": ["output_T", "B", 5],
        "output_length": ["B"],
        "1.layer.0.h_n": [1, "B", 4],
        "2.h_n": [1, "B", 5],
    }
    without = written(TAGGER, lengths=False).graph
    assert "seq_length" not in shapes(without.input)
    assert "output_length" not in shapes(without.output)


@pytest.mark.parametrize(("spec", "operators"), [(CLASSIFIER, ["LSTM"] * 2), (TAGGER, ["GRU"] * 2)])
def test_each_layer_is_one_recurrent_node(spec: Spec, operators: list[str]) -> None:
    nodes = written(spec).graph.node
    assert [node.op_type for node in nodes if node.op_type in ("RNN", "GRU", "LSTM")] == operators
    assert "Loop" not in {node.op_type for node in nodes}


def test_tied_weights_are_stored_once() -> None:
    names = [tensor.name for tensor in written(LANGUAGE_MODEL).graph.initializer]
    assert "embedding.weight" in names
    assert "head.weight" not in names


@settings(max_examples=60)
@given(spec=models(), lengths=st.booleans(), dtype=st.sampled_from(["float16", "float32", "float64"]))
def test_a_written_graph_is_valid_and_is_read_back(spec: Spec, lengths: bool, dtype: str) -> None:
    taken = drawn(spec, dtype)
    model = onnx_writer.emit(taken.spec, taken.weights, lengths=lengths)
    onnx.checker.check_model(model, full_check=True)
    names = [node.name for node in model.graph.node]
    assert len({*names}) == len(names)
    assert onnx_reader.read_model(model) == taken


@pytest.mark.parametrize("lengths", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_any_number_of_steps_and_sequences(name: str, lengths: bool) -> None:
    spec = MODELS[name]
    model, reference = (spec.build(backend, seed=0) for backend in ("onnxruntime", "numpy"))
    rng = np.random.default_rng(0)
    for steps, batch_size in ((4, 3), (9, 1), (1, 2), (4, 0)):
        shape = (batch_size, steps) if spec.batch_first else (steps, batch_size)
        x = rng.integers(0, 7, shape) if spec.takes_tokens else rng.standard_normal((*shape, 3)).astype(np.float32)
        ns = rng.integers(0, steps + 1, batch_size) if lengths else None
        output, states = model(x, seq_length=ns, return_state=True)
        expected, expected_states = reference(x, seq_length=ns, return_state=True)
        close(output, expected, 1e-5)
        for state, wanted in zip(flat(states), flat(expected_states), strict=True):
            close(state, wanted, 1e-5)


def flat(states: Any) -> list[NDArray[Any]]:
    return [part for state in states for part in (state if isinstance(state, tuple) else (state,))]


def feeds(spec: Any, steps: int, ns: NDArray[np.int64]) -> dict[str, Any]:
    """Inputs of a graph, with NaN or an invalid token in the padding."""
    rng = np.random.default_rng(0)
    padding = np.arange(steps) >= ns[:, None]
    padding = padding if spec.batch_first else padding.T
    x: Any = rng.integers(0, 7, padding.shape) if spec.takes_tokens else rng.standard_normal((*padding.shape, 3))
    x = x if spec.takes_tokens else x.astype(np.float32)
    x[padding] = -100 if spec.takes_tokens else np.nan
    states = {
        f"{layer}.{part}_0": rng.standard_normal(shape).astype(np.float32)
        for layer, leaf in spec.stateful.items()
        for part, shape in leaf.state_shapes(len(ns)).items()
    }
    return {"input": x, "seq_length": ns, **states}


@pytest.mark.parametrize(
    "spec",
    [
        Sequential(EmbeddingSpec(7, 4), GRUSpec(4, 3), LinearSpec(3, 2), ActivationSpec("log_softmax")),
        Sequential(Conv1dSpec(3, 4, 3, padding="causal"), LSTMSpec(4, 3, batch_first=True), PoolSpec("mean")),
        Sequential(Conv1dSpec(3, 4, 2, stride=3, padding=1), BatchNormSpec(4), NormalizeSpec(), PoolSpec("max")),
        Concat(PoolSpec("last"), Sequential(LayerNormSpec(3), ActivationSpec("gelu"), PoolSpec("mean"))),
    ],
    ids=["tokens", "context", "convolution", "poolings"],
)
def test_graphs_run_in_the_reference_evaluator_of_onnx(spec: Any) -> None:
    given = feeds(spec, 7, np.array([7, 4, 0, 2]))
    model = written(spec)
    found = dict(zip(shapes(model.graph.output), ReferenceEvaluator(model).run(None, given), strict=True))
    hx: list[Any] = []
    left = iter([value for name, value in given.items() if name.endswith("_0")])
    for leaf in spec.leaves().values() if isinstance(spec, Sequential) else ():
        parts = tuple(next(left) for _ in leaf.state_shapes(4))
        hx += [parts if len(parts) > 1 else parts[0]] if parts else []
    reference = drawn(spec).build("numpy")
    expected = reference(given["input"], tuple(hx) or None, given["seq_length"])
    close(found["output"], expected, 1e-5)
    if "output_length" in found:
        np.testing.assert_array_equal(found["output_length"], spec.output_lengths(given["seq_length"]))


def test_a_negative_token_is_an_error_in_a_session() -> None:
    data = written(LANGUAGE_MODEL, lengths=False).SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    with pytest.raises(Exception, match="indices element out of data bounds, idx=7"):
        session.run(None, {"input": np.array([[0, -1]]), "encoder.h_0": np.zeros((1, 1, 4), np.float32)})


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [*MODELS.values(), LinearSpec(3, 2), PoolSpec("max")], ids=[*MODELS, "Linear", "Pool"])
def test_a_saved_model_is_loaded(spec: Spec, tmp_path: Path) -> None:
    taken = drawn(spec)
    taken.save(tmp_path / "model.onnx")
    assert unirnn.load(tmp_path / "model.onnx") == taken


def test_one_layer_of_a_saved_model_is_loaded(tmp_path: Path) -> None:
    taken = drawn(CLASSIFIER)
    taken.save(tmp_path / "model.onnx")
    found = unirnn.load(tmp_path / "model.onnx", prefix="encoder.")
    encoder: Any = CLASSIFIER.encoder
    assert found.spec == encoder
    np.testing.assert_array_equal(found.weights["weight_hh_l1"], taken.weights["encoder.weight_hh_l1"])
    wanted = replace(encoder, batch_first=False)
    assert unirnn.snapshot(written(CLASSIFIER), prefix="encoder", spec=wanted).spec == wanted
    with pytest.raises(
        errors.ArgumentError, match="prefix: given 'decoder', but the file is a snapshot, of the layers"
    ):
        unirnn.load(tmp_path / "model.onnx", prefix="decoder")


def rename_initializer(model: Any) -> None:
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    tensor.name = "bias"


def another_shape(model: Any) -> None:
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    tensor.dims[:] = [18, 2]


def fewer_bytes(model: Any) -> None:
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
    tensor.raw_data = b""


def integers(model: Any) -> None:
    (tensor,) = (tensor for tensor in model.graph.initializer if tensor.name == "head.bias")
    tensor.data_type = onnx.TensorProto.INT32


def without_a_node(model: Any) -> None:
    (node,) = (node for node in model.graph.node if node.name == "encoder.LSTM_l1")
    model.graph.node.remove(node)


def another_direction(model: Any) -> None:
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "direction":
                attribute.s = b"reverse"


ALTERED: dict[str, tuple[Callable[[Any], None], str]] = {
    "a weight that is missing": (rename_initializer, "it has no initializer 'head.bias'"),
    "another shape": (another_shape, "head.weight: given float32 of shape (18, 2), expected floats of (2, 18)"),
    "data cut short": (fewer_bytes, "tensor 'head.weight': dims [2, 18] need 144 bytes, and it holds 0"),
    "integers": (integers, "head.bias: given int32 of shape (2,), expected floats of (2,)"),
    "a node that is missing": (without_a_node, "but it has no node 'encoder.LSTM_l1'"),
    "another direction": (
        another_direction,
        "node 'encoder.LSTM_l0' (LSTM): given weights of shapes {'W': (2, 12, 4), ",
    ),
}


@pytest.mark.parametrize(("change", "words"), ALTERED.values(), ids=ALTERED.keys())
def test_an_altered_file_is_refused(change: Callable[[Any], None], words: str) -> None:
    model = written(CLASSIFIER)
    change(model)
    with pytest.raises(errors.FileError, match=re.escape(words)):
        onnx_reader.read_model(model)


# ---- the backend ---------------------------------------------------------------------------------

TOKENS = np.array([[1, 2, 3, 4, 5], [6, 5, 4, 3, 2]])


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
def test_tokens_may_have_any_integer_dtype(dtype: str) -> None:
    model = LANGUAGE_MODEL.build("onnxruntime", seed=0)
    np.testing.assert_array_equal(model(TOKENS.astype(dtype)), model(TOKENS))


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_independent(again: Any) -> None:
    model = CLASSIFIER.build("onnxruntime", seed=0, session_options={"intra_op_num_threads": 1}).train()
    expected = model(TOKENS, seq_length=[5, 2])
    other = again(model)
    assert other.training
    assert unirnn.snapshot(other) == unirnn.snapshot(model)
    unirnn.load_weights(model, unirnn.snapshot(CLASSIFIER.build("numpy", seed=1)))
    np.testing.assert_array_equal(other(TOKENS, seq_length=[5, 2]), expected)
    assert (model(TOKENS, seq_length=[5, 2]) != expected).any()


@pytest.mark.parametrize("name", MODELS)
def test_float16(name: str) -> None:
    spec = MODELS[name]
    model = spec.build("onnxruntime", seed=0, dtype="float16")
    reference = unirnn.snapshot(model).cast("float32").build("numpy")
    shape = (5, 2)
    x = TOKENS if spec.takes_tokens else np.random.default_rng(0).standard_normal((*shape, 3)).astype(np.float16)
    output = model(x, seq_length=[5, 2])
    assert output.dtype == np.float16
    expected = reference(x if spec.takes_tokens else x.astype(np.float32), seq_length=[5, 2])
    close(output.astype(np.float32), expected, 5e-3)


@pytest.mark.parametrize("function", ["relu", "softmax"])
def test_a_layer_without_weights_has_a_dtype(function: Any) -> None:
    layer = ActivationSpec(function).build("onnxruntime", dtype="float16")
    assert layer(np.ones((2, 3), np.float16)).dtype == np.float16
    with pytest.raises(errors.DTypeError):
        layer(np.ones((2, 3), np.float32))


def test_empty_arrays_give_empty_results() -> None:
    """Some empty arrays crash the process in ONNX Runtime's own nodes."""
    assert LinearSpec(3, 4).build("onnxruntime")(np.ones((2, 0, 3), np.float32)).shape == (2, 0, 4)
    model = TAGGER.build("onnxruntime")
    output, states = model(np.ones((5, 0, 3), np.float32), seq_length=[], return_state=True)
    assert output.shape == (3, 0, 5)
    assert [state.shape for state in states] == [(1, 0, 4), (1, 0, 5)]
    output = LANGUAGE_MODEL.build("onnxruntime")(np.zeros((0, 5), int), resets=np.zeros((0, 5), bool))
    assert output.shape == (0, 5, 7)


def test_a_layer_norm_of_large_numbers_is_accurate() -> None:
    # Computing the variance as a difference of squares is off by 4e-4.
    x = (np.random.default_rng(0).standard_normal((4, 64)) + 1e4).astype(np.float32)
    reference = LayerNormSpec(64).build("numpy", dtype="float64")
    close(LayerNormSpec(64).build("onnxruntime")(x), reference(x.astype(np.float64)), 1e-5)


@pytest.mark.parametrize("how", ["last", "mean", "max"])
@pytest.mark.parametrize("seq_length", [None, [3, 3, 3], [3, 2, 3]])
def test_nan_in_a_valid_step_reaches_the_result(how: Any, seq_length: Any) -> None:
    x = np.zeros((3, 3, 9), np.float32)
    x[:2, 1:] = np.nan
    output = PoolSpec(how).build("onnxruntime")(x, seq_length=seq_length)
    np.testing.assert_array_equal(np.isnan(output).all(axis=1), [True, True, False])


def test_explain_tells_what_differs_in_training() -> None:
    texts = [str(limit) for limit in unirnn.explain(CLASSIFIER, "onnxruntime")]
    assert texts == [
        "differs: onnxruntime is for inference only: it has no gradients and applies no dropout",
        "differs: a batch normalisation uses its running statistics, even after train()",
    ]


class Code(unirnn.Model):
    def __init__(self) -> None:
        self.head = LinearSpec(3, 2)

    def forward(self, xp: Any, x: Any) -> Any:
        return self.head(x)


def test_a_model_that_is_code_is_refused() -> None:
    spec, words = Code(), "has no models from code; build it with torch, and export that$"
    with pytest.raises(errors.LimitError, match=f"can't: onnxruntime {words}"):
        spec.build("onnxruntime")
    with pytest.raises(errors.LimitError, match=f"^onnx {words}"):
        written(spec)


def test_a_model_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_writer, "_MAX_BYTES", 4000)
    spec = Sequential(LinearSpec(3, 200), LinearSpec(200, 3))
    with pytest.raises(
        errors.LimitError, match="onnx: given weights of 5612 bytes, expected at most 4000 in one model"
    ):
        spec.build("onnxruntime")
