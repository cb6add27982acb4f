"""Models in graph mode and under ``ms.jit``, in training loops, and in files.

The expected numbers are those of PyNative mode, which the conformance suite checks.
"""

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from mindspore.dataset import NumpySlicesDataset

import unirnn
from unirnn import (
    ActivationSpec,
    BatchNormSpec,
    Concat,
    Conv1dSpec,
    EmbeddingSpec,
    GRUSpec,
    LayerNormSpec,
    LinearSpec,
    LSTMSpec,
    NormalizeSpec,
    PoolSpec,
    Residual,
    Sequential,
    Spec,
)
from unirnn.contract.backend import leaves
from unirnn.testing.tolerances import close

TOKENS = Sequential(
    embedding=EmbeddingSpec(9, 6, padding_idx=0),
    conv=Conv1dSpec(6, 8, 3, stride=2, padding=1),
    norm=BatchNormSpec(8),
    tanh=ActivationSpec("tanh"),
    block=Residual(Sequential(LinearSpec(8, 8), ActivationSpec("gelu"), LayerNormSpec(8))),
    encoder=LSTMSpec(8, 4, bidirectional=True, batch_first=True),
    pool=Concat(PoolSpec("first_last"), PoolSpec("mean"), PoolSpec("max")),
    head=LinearSpec(24, 3),
    scores=ActivationSpec("log_softmax"),
)
FEATURES = Sequential(  # time first, with states
    Conv1dSpec(4, 6, 3, padding="causal", groups=2),
    BatchNormSpec(6),
    GRUSpec(6, 5),
    NormalizeSpec(),
    ActivationSpec("silu"),
)
CLASSIFIER = Sequential(
    conv=Conv1dSpec(4, 6, 3, padding="same"), pool=PoolSpec("mean"), norm=BatchNormSpec(6), head=LinearSpec(6, 2)
)
STREAM = Sequential(
    conv=Conv1dSpec(4, 6, 3, padding="causal"), encoder=GRUSpec(6, 5, batch_first=True), head=LinearSpec(5, 2)
)
LENGTHS = [6, 3, 0]


def build(spec: Spec) -> Any:
    return spec.build("mindspore", seed=0)


def batch(spec: Spec, *, is_filled: bool = False) -> Tensor:
    """Three sequences of six steps; with ``is_filled``, the padding holds NaN or an invalid token."""
    rng = np.random.default_rng(0)
    x: Any = rng.integers(0, 9, (3, 6)) if spec.takes_tokens else rng.standard_normal((3, 6, 4)).astype(np.float32)
    if is_filled:
        x[np.arange(6) >= np.array(LENGTHS)[:, None]] = -1 if spec.takes_tokens else np.nan
    return Tensor(x if spec is not FEATURES else np.ascontiguousarray(x.swapaxes(0, 1)))


def assert_same(actual: Any, expected: Any) -> None:
    one, other = (leaves({"": results}) for results in (actual, expected))
    assert one.keys() == other.keys()
    for name in one:
        close(one[name].asnumpy(), other[name].asnumpy(), 1e-6, name, scale=1)


# ---- graphs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [TOKENS, FEATURES], ids=["tokens", "features"])
def test_training_a_compiled_model(spec: Spec) -> None:
    """Loss, gradients, states and running statistics are right, with NaN or invalid tokens in the padding."""

    def training_step(net: nn.Cell) -> Callable[..., Any]:
        def loss(x: Any, seq_length: Any) -> Any:
            output, states = net(x, None, seq_length, None, True)
            return output.square().sum(), output, states

        return ms.value_and_grad(loss, None, net.trainable_params(), has_aux=True)  # type: ignore[no-any-return]

    eager, compiled = build(spec).set_train(), build(spec).set_train()
    expected = training_step(eager)(batch(spec), Tensor(LENGTHS))
    assert_same(ms.jit(training_step(compiled))(batch(spec, is_filled=True), Tensor(LENGTHS)), expected)
    for name, p in compiled.parameters_and_names():
        if "running" in name:
            close(p.asnumpy(), dict(eager.parameters_and_names())[name].asnumpy(), 1e-6)
            assert not np.array_equal(p.asnumpy(), dict(build(spec).parameters_and_names())[name].asnumpy())


def test_graph_mode_takes_what_pynative_mode_takes(graph_mode: None) -> None:
    net, x = build(FEATURES), batch(FEATURES)
    output, states = net(x, seq_length=LENGTHS, return_state=True)
    with pytest.raises(unirnn.errors.LengthError, match=r"seq_length\[0\]: given 7, expected 0 <= n <= 6"):
        net(x, seq_length=[7, 0, 0])
    later = net(x, hx=(states[0], None), seq_length=np.array(LENGTHS))
    ms.set_context(mode=ms.PYNATIVE_MODE)
    assert_same((output, states), net(x, seq_length=LENGTHS, return_state=True))
    assert_same(later, net(x, hx=(states[0], None), seq_length=LENGTHS))


def test_steps_in_a_compiled_loop() -> None:
    net, x = build(STREAM), batch(STREAM)

    @ms.jit
    def steps(x: Any) -> Any:
        state = unirnn.state.zeros(net, 3)
        outputs: Any = ()
        for t in range(6):
            y, state = net.step(x[:, t], state)
            outputs += (y,)
        return ops.stack(outputs, 1), state

    assert_same(steps(x), net(x, return_state=True))


POOLED = Sequential(embedding=EmbeddingSpec(9, 6), pool=PoolSpec("mean"))
MISTAKES: dict[str, tuple[Any, Any, str]] = {
    "dtype": (Tensor([[1.0]]), Tensor([1]), "input: given dtype float32, expected integers, which are tokens"),
    "shape of lengths": (Tensor([[1]]), Tensor([1, 1]), r"seq_length: given shape \(2,\), expected \(1,\)"),
    "length": (Tensor([[1, 1]]), Tensor([3]), r"seq_length\[0\]: given 3, expected 0 <= n <= 2"),
    "token": (Tensor([[1, 9]]), Tensor([2]), r"input: given token 9, expected 0 <= token < 9"),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_in_a_compiled_function(mistake: tuple[Any, Any, str]) -> None:
    """A mistake that shows at compile time is refused then, any other when a result is read."""
    tokens, lengths, words = mistake
    net = build(POOLED)

    def run(tokens: Any, lengths: Any) -> Any:
        return net(tokens, seq_length=lengths)

    with pytest.raises(unirnn.errors.UnirnnError, match=words):
        ms.jit(run)(tokens, lengths).asnumpy()


# ---- training ----------------------------------------------------------------------------------------

STATES = (np.ones((2, 3, 4), np.float32), np.ones((1, 3, 5), np.float32))
CALLS: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "input": ((), {}),
    "input, hx": ((STATES,), {}),
    "input, hx, seq_length": ((STATES, LENGTHS), {}),
    "keywords": ((), {"seq_length": LENGTHS, "hx": STATES}),
}


def native(value: Any) -> Any:
    return tuple(map(native, value)) if isinstance(value, tuple) else Tensor(value)


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_gradients_of_the_model_itself(call: tuple[tuple[Any, ...], dict[str, Any]]) -> None:
    """In PyNative mode only: MindSpore's graph mode takes no keywords here."""
    args, kwargs = tuple(map(native, call[0])), {name: native(value) for name, value in call[1].items()}
    net, x = build(STREAM), batch(STREAM)
    parameters = net.trainable_params()

    def total(x: Any) -> Any:
        return net(x, *args, **kwargs).sum()

    value, gradients = ms.value_and_grad(net, 0, parameters)(x, *args, **kwargs)
    assert_same((value.sum(), gradients), ms.value_and_grad(total, 0, parameters)(x))


def test_gradients_of_the_model_itself_in_graph_mode(graph_mode: None) -> None:
    net, x = build(CLASSIFIER), batch(CLASSIFIER)
    actual = ms.grad(net, 0, net.trainable_params())(x, None, Tensor(LENGTHS))
    ms.set_context(mode=ms.PYNATIVE_MODE)
    assert_same(actual, ms.grad(net, 0, net.trainable_params())(x, None, LENGTHS))


def test_gradients_of_a_recurrent_layer_itself() -> None:
    gru, x = build(GRUSpec(4, 5, batch_first=True)), batch(STREAM)
    actual = ms.grad(gru)(x, seq_length=LENGTHS)
    assert_same(actual, ms.grad(lambda x: (lambda output, h_n: output.sum() + h_n.sum())(*gru(x, None, LENGTHS)))(x))


class WithLoss(nn.Cell):
    def __init__(self, net: nn.Cell) -> None:
        super().__init__()
        self.net = net

    def construct(self, x: Any, seq_length: Any, label: Any) -> Any:
        return ops.cross_entropy(self.net(x, seq_length=seq_length), label)


@pytest.mark.parametrize("is_graph", [False, True], ids=["pynative", "graph"])
def test_model_train_over_a_data_set(is_graph: bool, request: pytest.FixtureRequest) -> None:
    if is_graph:
        request.getfixturevalue("graph_mode")
    rng = np.random.default_rng(0)
    labels = np.arange(24, dtype=np.int32) % 2
    x = (rng.standard_normal((24, 6, 4)) + labels[:, None, None]).astype(np.float32)
    lengths = rng.integers(1, 7, 24).astype(np.int32)
    data = NumpySlicesDataset({"x": x, "n": lengths, "label": labels}, shuffle=False).batch(8)
    net = build(CLASSIFIER)
    ms.Model(WithLoss(net), optimizer=nn.Adam(net.trainable_params(), 0.05)).train(4, data)
    assert abs(net.norm.running_mean.asnumpy()).max() > 0.01
    net.set_train(False)
    guesses = net(Tensor(x), None, Tensor(lengths)).asnumpy().argmax(axis=1)
    assert (guesses == labels).mean() > 0.8


@pytest.mark.parametrize("level", ["O1", "O2", "O3"])
def test_mixed_precision(level: str) -> None:
    spec = Sequential(BatchNormSpec(4), LinearSpec(4, 6), LayerNormSpec(6), PoolSpec("mean"), NormalizeSpec())
    expected = build(spec)(batch(spec), None, LENGTHS).asnumpy()
    narrow = ms.amp.auto_mixed_precision(build(spec), level, ms.float16)
    close(narrow(batch(spec), None, Tensor(LENGTHS)).asnumpy(), expected, 3e-3)
    with pytest.raises(unirnn.errors.LimitError, match="bfloat16"):
        build(spec).to_float(ms.bfloat16)


# ---- names and files ---------------------------------------------------------------------------------


class Wrapped(nn.Cell):
    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.model = build(spec)


TAKEN = Sequential(  # names that a cell, or a cell of this backend, uses itself, and a tied weight
    name=EmbeddingSpec(9, 4),
    phase=LinearSpec(4, 4),
    body=GRUSpec(4, 4, batch_first=True),
    layers=LinearSpec(4, 9, tied_to="name"),
)


@pytest.mark.parametrize("spec", [TOKENS, TAKEN, LayerNormSpec(4)], ids=["model", "taken names", "one layer"])
def test_parameters_have_the_names_of_the_spec(spec: Spec) -> None:
    names = list(spec.weight_shapes())
    assert [p.name for p in build(spec).get_parameters()] == names
    assert [p.name for p in build(spec).trainable_params()] == [name for name in names if name not in spec.buffers]
    wrapped = Wrapped(spec)
    assert [p.name for p in wrapped.get_parameters()] == [f"model.{name}" for name in names]
    assert unirnn.snapshot(wrapped.model).spec == spec


def test_layers_are_attributes_and_native_where_they_can_be() -> None:
    net = build(TOKENS)
    assert isinstance(net.head, nn.Dense)
    assert isinstance(net.block.layer, nn.Cell)
    with pytest.raises(AttributeError, match="tail"):
        _ = net.tail


@pytest.mark.parametrize("suffix", ["ckpt", "safetensors"])
def test_checkpoints(suffix: str) -> None:
    net, other = build(TOKENS), TOKENS.build("mindspore", seed=1)
    ms.save_checkpoint(net, f"net.{suffix}", format=suffix)
    assert ms.load_param_into_net(other, ms.load_checkpoint(f"net.{suffix}", format=suffix)) == ([], [])
    assert_same(other(batch(TOKENS)), net(batch(TOKENS)))


def test_mindir_takes_other_lengths_and_batch_sizes() -> None:
    spec = Sequential(
        Conv1dSpec(4, 6, 3, padding="causal"), LSTMSpec(6, 5, batch_first=True), ActivationSpec("tanh"), PoolSpec("max")
    )
    net = build(spec)

    class Exported(nn.Cell):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def construct(self, x: Any, seq_length: Any) -> Any:
            return self.net(x, seq_length=seq_length)

    unknown = Tensor(shape=[None, 6, 4], dtype=ms.float32), Tensor(shape=[None], dtype=ms.int64)
    ms.export(Exported(), *unknown, file_name="net.mindir", file_format="MINDIR")
    loaded = nn.GraphCell(ms.load("net.mindir"))
    x = batch(spec)
    for count, lengths in ((3, LENGTHS), (2, [2, 5])):
        assert_same(loaded(x[:count], Tensor(lengths)), net(x[:count], seq_length=lengths))


def test_float32_tanh_is_right() -> None:
    """MindSpore's own is off by 1e-4."""
    x = np.linspace(-9, 9, 1001, dtype=np.float32)
    close(build(ActivationSpec("tanh"))(Tensor(x)).asnumpy(), np.tanh(x), 3e-6)
