"""A built module works in the training loops, trainers and files of MindSpore's users."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Sequential, Spec, errors
from unirnn.contract.call import join_state, state_parts
from unirnn.state import last_layer
from unirnn.testing.tolerances import close

SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4, 2, nonlinearity="relu", batch_first=True, bias=False),
    GRUSpec(3, 4, 2, bidirectional=True, batch_first=True),
    LSTMSpec(3, 4, 2, bidirectional=True, batch_first=True, bias=False),
]
# no spec has two layers and two directions, which would double the compile time
STACKED = GRUSpec(3, 4, 2, batch_first=True)
BOTH_WAYS = LSTMSpec(3, 4, bidirectional=True, batch_first=True, bias=False)
LENGTHS = [5, 0, 2, 3]
FEW = [3, 0, 2, 1]  # for exported files, in which MindSpore compiles each step


class Classifier(nn.Cell):
    """A user's model: the layer, its final state, a head."""

    def __init__(self, spec: RecurrentSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = spec.build("mindspore", seed=0)
        weight = np.random.default_rng(0).standard_normal((2, spec.num_directions * 4)).astype(np.float32)
        self.head = nn.Dense(spec.num_directions * 4, 2, weight_init=Tensor(weight), bias_init="zeros")

    def construct(self, x: Any, seq_length: Any) -> Any:
        _, final = self.encoder(x, seq_length=seq_length)
        h_n = final[0] if isinstance(final, tuple) else final
        return self.head(last_layer(self.spec, h_n))


class WithLoss(nn.Cell):
    """The network with its loss, as `TrainOneStepCell` and `Model` take it."""

    def __init__(self, net: nn.Cell) -> None:
        super().__init__()
        self.net = net

    def construct(self, x: Any, seq_length: Any, label: Any) -> Any:
        return ops.cross_entropy(self.net(x, seq_length), label)


def utterances(count: int = 16) -> Iterator[tuple[Any, ...]]:
    """Two classes, which differ in the sign of the valid steps; the padding is NaN."""
    rng = np.random.default_rng(0)
    for n in range(count):
        length, label = LENGTHS[n % 4] or 1, n % 2
        x = np.full((5, 3), np.nan, np.float32)
        x[:length] = rng.random((length, 3)) * (1 if label else -1)
        yield x, np.int32(length), np.int32(label)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    x, lengths, labels = (np.stack(column) for column in zip(*utterances(), strict=True))
    return Tensor(x), Tensor(lengths), Tensor(labels)


@pytest.mark.parametrize("spec", [STACKED, BOTH_WAYS], ids=repr)
def test_train_one_step_cell_learns_in_graph_mode_as_in_pynative_mode(spec: RecurrentSpec) -> None:
    losses = {}
    for kind in (ms.PYNATIVE_MODE, ms.GRAPH_MODE):
        ms.set_context(mode=kind)
        try:
            net = WithLoss(Classifier(spec))
            step = nn.TrainOneStepCell(net, nn.Adam(net.trainable_params(), learning_rate=0.05)).set_train()
            losses[kind] = np.array([float(step(*batch())) for _ in range(15)])
        finally:
            ms.set_context(mode=ms.PYNATIVE_MODE)
    close(losses[ms.GRAPH_MODE], losses[ms.PYNATIVE_MODE], 1e-5)
    assert losses[ms.GRAPH_MODE][-1] < 0.3 * losses[ms.GRAPH_MODE][0]


@pytest.mark.parametrize(
    ("mode", "spec"), [(ms.PYNATIVE_MODE, BOTH_WAYS), (ms.GRAPH_MODE, STACKED)], ids=["pynative", "graph"]
)
def test_model_train_over_a_generator_dataset(mode: int, spec: RecurrentSpec) -> None:
    dataset = ms.dataset.GeneratorDataset(list(utterances()), ["x", "seq_length", "label"], shuffle=False).batch(8)
    ms.set_context(mode=mode)
    try:
        net = WithLoss(Classifier(spec))
        before = float(net(*batch()))
        optimizer = nn.Momentum(net.trainable_params(), learning_rate=0.1, momentum=0.9)
        ms.train.Model(net, optimizer=optimizer).train(10, dataset, dataset_sink_mode=False)
        net.set_train(False)
        assert float(net(*batch())) < 0.5 * before
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)


def test_parameters_can_be_filtered_by_name() -> None:
    net = WithLoss(Classifier(SPECS[1]))
    frozen = [p for p in net.trainable_params() if "weight_hh" in p.name]
    assert [p.name for p in frozen] == [f"net.encoder.weight_hh_l{n}{r}" for n in (0, 1) for r in ("", "_reverse")]
    for parameter in frozen:
        parameter.requires_grad = False
    decayed = [p for p in net.trainable_params() if "bias" not in p.name]
    others = [p for p in net.trainable_params() if "bias" in p.name]
    assert len(decayed) + len(others) == len(net.trainable_params()) == 4 + 8 + 2
    groups = [{"params": decayed, "weight_decay": 0.5}, {"params": others}, {"order_params": net.trainable_params()}]
    before = {p.name: p.asnumpy().copy() for p in net.get_parameters()}
    step = nn.TrainOneStepCell(net, nn.SGD(groups, learning_rate=0.1)).set_train()
    step(*batch())
    for parameter in net.get_parameters():
        same = np.array_equal(parameter.asnumpy(), before[parameter.name])
        assert same == ("weight_hh" in parameter.name), parameter.name


class Tagger(nn.Cell):
    """Labels each step; does not use `unirnn.state`, whose functions the level O1 can't rewrite."""

    def __init__(self, spec: RecurrentSpec) -> None:
        super().__init__()
        classifier = Classifier(spec)
        self.encoder, self.head = classifier.encoder, classifier.head

    def construct(self, x: Any, seq_length: Any) -> Any:
        output, _ = self.encoder(x, seq_length=seq_length)
        return self.head(output).sum(1)


@pytest.mark.parametrize(
    ("level", "spec"),
    [("O0", STACKED), ("O1", BOTH_WAYS), ("O2", STACKED), ("O3", BOTH_WAYS), ("auto", STACKED)],
    ids=repr,
)
def test_automatic_mixed_precision(level: str, spec: RecurrentSpec) -> None:
    x, lengths, label = batch()
    expected = float(WithLoss(Tagger(spec))(x, lengths, label))
    original = Tagger(spec)
    net = ms.amp.auto_mixed_precision(original, level, ms.float16)

    def loss(x: Any, lengths: Any) -> Any:
        return ops.cross_entropy(net(x, lengths).astype(ms.float32), label)

    step = ms.value_and_grad(loss, None, original.trainable_params())
    results = [step(x, lengths), ms.jit(step)(x, lengths)]
    for value, gradients in results:
        assert abs(float(value) - expected) < 2e-3 * expected
        assert all(np.isfinite(g.asnumpy()).all() for g in gradients)
    for eager, graph in zip(results[0][1], results[1][1], strict=True):
        np.testing.assert_allclose(graph.asnumpy(), eager.asnumpy(), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(
    ("spec", "dtype", "given"),
    [
        (STACKED, ms.float16, ms.float32),
        (STACKED, ms.float32, ms.float16),
        (BOTH_WAYS, ms.float16, ms.float16),
        (BOTH_WAYS, ms.float32, ms.float16),
    ],
    ids=repr,
)
def test_to_float_computes_in_that_dtype(spec: RecurrentSpec, dtype: Any, given: Any) -> None:
    layer = spec.build("mindspore", seed=0)
    x, lengths, _ = batch()
    states = [ops.ones(shape) for shape in spec.state_shapes(16).values()]
    expected, _ = layer(x, join_state(states), lengths)
    layer.to_float(dtype)

    @ms.jit
    def graph(x: Any, hx: Any, lengths: Any) -> Any:
        return layer(x, hx, lengths)

    hx = join_state([state.astype(given) for state in states])
    for run in (layer, graph):
        output, final = run(x.astype(given), hx, lengths)
        assert {part.dtype for part in (output, *(state_parts(spec, final) or ()))} == {dtype}
        close(output.astype(ms.float32).asnumpy(), expected.asnumpy(), 1e-2)
    nothing = [ops.zeros(shape, given) for shape in spec.state_shapes(0).values()]
    output, final = layer(ops.zeros((0, 5, 3), given), join_state(nothing), [])
    assert {part.dtype for part in (output, *(state_parts(spec, final) or ()))} == {dtype}
    with pytest.raises(errors.DTypeError, match="input: given dtype int32, expected a floating one"):
        layer(ops.ones((16, 5, 3), ms.int32), hx, lengths)


@pytest.mark.parametrize("spec", [STACKED, Sequential(STACKED)], ids=["layer", "model"])
def test_an_error_in_a_call_ends_its_mixed_precision(spec: Spec) -> None:
    net = spec.build("mindspore", seed=0).to_float(ms.float16)
    with pytest.raises(errors.ShapeError):
        net(ops.ones((2, 5, 7)))
    # MindSpore by itself would go on in float16 for everything that follows.
    third = ms.Tensor(np.full(3, 1 / 3))
    assert (ms.grad(lambda x: (x * third).sum())(ms.Tensor(np.ones(3))).asnumpy() == 1 / 3).all()


class WithState(nn.Cell):
    """Takes and returns arrays instead of tuples, like an exported file."""

    def __init__(self, layer: nn.Cell, spec: RecurrentSpec) -> None:
        super().__init__()
        self.layer = layer
        self.is_lstm = spec.kind == "LSTM"

    def construct(self, x: Any, h_0: Any, c_0: Any, seq_length: Any) -> Any:
        output, final = self.layer(x, (h_0, c_0) if self.is_lstm else h_0, seq_length)
        return (output, *final) if self.is_lstm else (output, final)


def test_bfloat16_is_refused_before_the_run() -> None:
    with pytest.raises(errors.LimitError, match="to_float: given bfloat16, but mindspore has no bfloat16 layers"):
        ms.amp.auto_mixed_precision(Tagger(SPECS[1]), "O2", ms.bfloat16)


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        (SPECS[0], "float32"),
        (GRUSpec(3, 4, bidirectional=True, batch_first=True), "float64"),
        (SPECS[2], "float64"),
        (GRUSpec(3, 4, batch_first=True, reverse=True, reset_after=False), "float64"),
        (LSTMSpec(3, 4, batch_first=True, proj_size=2, gate_activation="hard_sigmoid"), "float64"),
    ],
    ids=repr,
)
def test_an_exported_file_computes_the_same(spec: RecurrentSpec, dtype: str, tmp_path: Path) -> None:
    """A file contains no Python, so MindSpore's own operators compute the layer."""
    net = WithState(spec.build("mindspore", seed=0, dtype=dtype), spec)
    rng = np.random.default_rng(0)
    path = str(tmp_path / "layer.mindir")
    # ops.LSTM computes in float32; the projected LSTM goes step by step
    tolerance = 1e-12 if dtype == "float64" and spec != SPECS[2] else 1e-6

    def shapes(batch_size: Any) -> list[Any]:
        found = [(leading, batch_size, size) for leading, _, size in spec.state_shapes(1).values()]
        return [found[0], found[-1]]

    def arrays(batch_size: int) -> list[Any]:
        x = np.full((batch_size, max(FEW), 3), np.nan)
        for row, length in zip(x, FEW, strict=False):
            row[:length] = rng.standard_normal((length, 3))
        states = [rng.standard_normal(shape) for shape in shapes(batch_size)]
        return [*(Tensor(a.astype(dtype)) for a in (x, *states)), Tensor(FEW[:batch_size])]

    kind = getattr(ms, dtype)
    states = [Tensor(shape=shape, dtype=kind) for shape in shapes(None)]
    unknown = [Tensor(shape=[None, max(FEW), 3], dtype=kind), *states, Tensor(shape=[None], dtype=ms.int64)]
    ms.export(net, *unknown, file_name=path, file_format="MINDIR")
    loaded = nn.GraphCell(ms.load(path))
    for batch_size in (4, 3):
        given = arrays(batch_size)
        for actual, expected in zip(loaded(*given), net(*given), strict=True):
            close(actual.asnumpy(), expected.asnumpy(), tolerance)


@pytest.mark.parametrize("spec", [STACKED, BOTH_WAYS], ids=repr)
def test_an_exported_file_of_mixed_precision(spec: RecurrentSpec, tmp_path: Path) -> None:
    """The batch size is known at export here; in the other tests it is unknown."""
    x, lengths, _ = batch()
    x, lengths = x[:, : max(FEW)], lengths.clamp(max=max(FEW))
    state = Tensor(np.random.default_rng(0).standard_normal(spec.state_shapes(16)["h"]).astype(np.float32))
    net = WithState(spec.build("mindspore", seed=0).to_float(ms.float16), spec)
    path = str(tmp_path / "layer.mindir")
    ms.export(net, x, state, state, lengths, file_name=path, file_format="MINDIR")
    results = nn.GraphCell(ms.load(path))(x, state, state, lengths)
    for actual, expected in zip(results, net(x, state, state, lengths), strict=True):
        assert actual.dtype == expected.dtype == ms.float16
        close(actual.asnumpy(), expected.asnumpy(), 5e-3)


def test_mistakes_in_an_export(tmp_path: Path) -> None:
    gru = GRUSpec(3, 4).build("mindspore", seed=0)
    unknown = Tensor(shape=[None, None, 3], dtype=ms.float32)
    try:
        with pytest.raises(errors.ShapeError, match="expected a known number of time steps: GRU is exported step by"):
            ms.export(gru, unknown, file_name=str(tmp_path / "gru.mindir"), file_format="MINDIR")
        assert ms.get_context("jit_syntax_level") == ms.STRICT, "the guide says that MindSpore leaves it so"
        by_operators, _ = gru(ops.ones((5, 2, 3)))
    finally:
        ms.set_context(jit_syntax_level=ms.LAX)
    close(gru(ops.ones((5, 2, 3)))[0].asnumpy(), by_operators.asnumpy(), 1e-6)
    net = WithState(gru, gru.spec)
    h_0, lengths = ops.ones((1, 2, 4)), Tensor([5, 0])
    net.set_inputs(unknown, h_0, h_0, lengths)
    ms.set_context(mode=ms.GRAPH_MODE)
    try:
        with pytest.raises(errors.ShapeError, match="the CPU's kernels must know when they are compiled; leave out"):
            net(ops.ones((5, 2, 3)), h_0, h_0, lengths)
    finally:
        ms.set_context(mode=ms.PYNATIVE_MODE)
