"""Resets and single steps, in PyNative mode, in graphs and in files."""

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, errors, explain
from unirnn.contract.call import join_state, state_parts
from unirnn.testing.tolerances import close

SPECS: list[RecurrentSpec] = [
    GRUSpec(3, 4),
    RNNSpec(3, 4, 2, nonlinearity="relu", bidirectional=True, batch_first=True),
    LSTMSpec(3, 4, bidirectional=True, bias=False),
]
pytestmark = pytest.mark.usefixtures("blocking")
each = pytest.mark.parametrize("spec", SPECS, ids=repr)
STEPS = 4  # few, since in a graph MindSpore compiles the operators of each step
LENGTHS = [4, 3, 0, 4, 2]
RESETS = np.zeros((STEPS, 5), bool)
RESETS[[0, 2, 3], 0] = True  # at step 0, and one step after another
RESETS[[1, 3], 1] = True  # the second is in the padding
RESETS[:, 2] = True  # nothing but padding
RESETS[:, 3] = True  # every step


class Run:
    """A batch with NaN in its padding, and its results and gradients on the NumPy backend."""

    def __init__(self, spec: RecurrentSpec) -> None:
        rng = np.random.default_rng(0)
        x = rng.standard_normal((STEPS, 5, 3)).astype(np.float32)
        for b, n in enumerate(LENGTHS):
            x[n:, b] = np.nan
        self.spec = spec
        self.x = x.swapaxes(0, 1).copy() if spec.batch_first else x
        self.resets = RESETS.T.copy() if spec.batch_first else RESETS
        self.hx = [rng.standard_normal(shape).astype(np.float32) for shape in spec.state_shapes(5).values()]
        reference = spec.build("numpy", seed=0, dtype="float64")
        state = join_state([part.astype(np.float64) for part in self.hx])
        output, final, pullback = reference.vjp(self.x.astype(np.float64), state, LENGTHS, self.resets)
        self.results = [output, *(state_parts(spec, final) or ())]
        self.gradients = pullback(np.ones_like(output), join_state([np.ones_like(part) for part in self.results[1:]]))

    def arguments(self) -> tuple[Tensor, ...]:
        return tuple(map(Tensor, (self.x, self.hx[0], self.hx[-1], np.array(LENGTHS), self.resets)))

    def check(self, module: Any, *, compiled: bool) -> None:
        is_lstm = self.spec.kind == "LSTM"

        def total(x: Tensor, h: Tensor, c: Tensor, seq_length: Tensor, resets: Tensor) -> Any:
            output, final = module(x, (h, c) if is_lstm else h, seq_length, resets)
            h_n, c_n = final[0] if is_lstm else final, final[1] if is_lstm else final
            return output.sum() + h_n.sum() + c_n.sum() if is_lstm else output.sum() + h_n.sum(), output, h_n, c_n

        gradient = ms.value_and_grad(total, (0, 1, 2), module.trainable_params(), has_aux=True)
        if compiled:
            gradient = ms.jit(gradient)
        (_, *results), ((d_input, *d_state), d_weights) = gradient(*self.arguments())
        for actual, expected in zip(results, self.results, strict=False):
            close(actual.asnumpy(), expected, 1e-5)
        names = ("input", *(f"{part}_0" for part in self.spec.states))
        for name, actual in zip(names, (d_input, *d_state), strict=False):
            close(actual.asnumpy(), self.gradients[name], 1e-5, name)
        for parameter, actual in zip(module.trainable_params(), d_weights, strict=True):
            close(actual.asnumpy(), self.gradients[parameter.name], 1e-5, parameter.name)


@each
def test_numbers_and_gradients_of_the_fallback(spec: RecurrentSpec) -> None:
    """The conformance suite tests the other kernels in PyNative mode."""
    Run(spec).check(spec.build("mindspore", seed=0, kernel="fallback"), compiled=False)


@each
@pytest.mark.parametrize("kernel", ["auto", "native"])
def test_numbers_and_gradients_in_a_graph(spec: RecurrentSpec, kernel: str) -> None:
    Run(spec).check(spec.build("mindspore", seed=0, kernel=kernel), compiled=True)


def test_resets_of_an_unbatched_input_in_a_graph() -> None:
    gru, x = GRUSpec(3, 4, batch_first=True).build("mindspore", seed=0), ops.ones((5, 3))

    @ms.jit
    def run(x: Any, resets: Any) -> Any:
        return gru(x, resets=resets)[0]

    for resets in ([False, True, False, False, True], [False] * 5):
        expected = gru(x, resets=resets)[0].asnumpy()
        np.testing.assert_array_equal(run(x, Tensor(resets)).asnumpy(), expected)


@pytest.mark.parametrize(
    ("resets", "error", "words"),
    [
        (np.zeros((2, 5), bool), errors.ShapeError, r"resets: given shape \(2, 5\), expected \(5, 2\), \(T, B\)"),
        (np.zeros((5, 2), np.int32), errors.DTypeError, "resets: given dtype int32, expected bool; cast it"),
    ],
)
def test_mistakes_in_resets(resets: Any, error: type[Exception], words: str) -> None:
    gru, x = GRUSpec(3, 4).build("mindspore", seed=0), ops.ones((5, 2, 3))

    def run(x: Tensor, resets: Tensor) -> Any:
        return gru(x, resets=resets)

    for function in (run, ms.jit(run)):
        with pytest.raises(error, match=words):
            function(x, Tensor(resets))


class Net(nn.Cell):
    def __init__(self, layer: nn.Cell) -> None:
        super().__init__()
        self.layer = layer

    def construct(self, x: Tensor, lengths: Tensor, resets: Tensor) -> Any:
        return self.layer(x, None, lengths, resets)[0]


@pytest.mark.parametrize("spec", [GRUSpec(3, 4, bidirectional=True), LSTMSpec(3, 4, bidirectional=True)], ids=repr)
def test_a_file_takes_resets(spec: RecurrentSpec, tmp_path: Path) -> None:
    net, path = Net(spec.build("mindspore", seed=0)), str(tmp_path / "net.mindir")
    x = Tensor(np.random.default_rng(0).standard_normal((STEPS, 5, 3)).astype(np.float32))
    lengths, resets = Tensor(LENGTHS), Tensor(RESETS)
    ms.export(net, x, lengths, Tensor(~RESETS), file_name=path, file_format="MINDIR")
    loaded = nn.GraphCell(ms.load(path))
    close(loaded(x, lengths, resets).asnumpy(), net(x, lengths, resets).asnumpy(), 1e-5)


def test_a_file_that_takes_resets_needs_a_known_t(tmp_path: Path) -> None:
    net = Net(LSTMSpec(3, 4).build("mindspore", seed=0))
    unknown = Tensor(shape=[None, 5, 3], dtype=ms.float32)
    resets = Tensor(shape=[None, 5], dtype=ms.bool_)
    try:
        with pytest.raises(errors.ShapeError, match="a known number of time steps: with resets a layer is exported"):
            ms.export(net, unknown, Tensor(LENGTHS), resets, file_name=str(tmp_path / "net"), file_format="MINDIR")
    finally:
        ms.set_context(jit_syntax_level=ms.LAX)


def test_explain_tells_the_cost_of_resets_in_a_graph() -> None:
    told = str(explain(GRUSpec(3, 16), "mindspore", "gpu"))
    assert "in a graph, a call with resets runs CudnnGRU once for each step" in told


def leaves(tree: Any) -> list[Any]:
    return [leaf for part in tree for leaf in leaves(part)] if isinstance(tree, tuple) else [tree]


@pytest.mark.parametrize("kernel", ["auto", "native"])
@pytest.mark.parametrize("spec", [GRUSpec(3, 4, 2, batch_first=True), LSTMSpec(3, 4)], ids=repr)
def test_steps_are_one_call(spec: RecurrentSpec, kernel: str) -> None:
    """The results and gradients agree, in PyNative mode and in a graph."""
    module = spec.build("mindspore", seed=0, kernel=kernel)
    x = Tensor(np.random.default_rng(0).standard_normal((3, 2, 3)).astype(np.float32))

    def steps(x: Tensor) -> Any:
        state = None
        outputs: Any = ()
        for t in range(3):
            y, state = module.step(x[t], state)
            outputs += (y,)
        return ops.stack(outputs), state

    def whole(x: Tensor) -> Any:
        output, state = module(x.swapaxes(0, 1) if spec.batch_first else x)
        return output.swapaxes(0, 1) if spec.batch_first else output, state

    def train(run: Any) -> Any:
        def loss(x: Tensor) -> Any:
            outputs, state = run(x)
            return ops.square(outputs).sum(), outputs, state

        return ms.value_and_grad(loss, 0, module.trainable_params(), has_aux=True)

    expected = leaves(train(whole)(x))
    for actual in (train(steps)(x), ms.jit(train(steps))(x)):
        for a, b in zip(leaves(actual), expected, strict=True):
            close(a.asnumpy(), b.asnumpy(), 1e-5)


def test_a_step_of_no_sequences() -> None:
    y, h = GRUSpec(3, 4).build("mindspore", seed=0).step(ops.zeros((0, 3)))
    assert (y.shape, h.shape) == ((0, 4), (1, 0, 4))


def test_a_step_in_half_precision() -> None:
    gru = GRUSpec(3, 4).build("mindspore", seed=0)
    x = ops.ones((2, 3))
    expected = gru.step(x)[0].asnumpy()
    gru.to_float(ms.float16)
    y, _ = gru.step(x)
    assert y.dtype == ms.float16
    close(y.asnumpy(), expected, 2e-3)


class TestMistakesOfSteps:
    """The messages are the core's, also while MindSpore compiles."""

    @staticmethod
    def check(spec: RecurrentSpec, x: Any, state: Any, words: str) -> None:
        module = spec.build("mindspore", seed=0)

        def run(x: Any, state: Any) -> Any:
            return module.step(x, state)

        for function in (run, ms.jit(run)):
            with pytest.raises(errors.UnirnnError, match=words):
                function(x, state)

    def test_two_directions(self) -> None:
        self.check(GRUSpec(3, 4, bidirectional=True), ops.ones((2, 3)), None, "step: given layers in two directions")

    def test_a_state(self) -> None:
        x, h = ops.ones((2, 3)), ops.ones((1, 2, 4))
        self.check(LSTMSpec(3, 4), x, h, r"state: given one Tensor, expected a pair \(h, c\) for LSTM")
        self.check(LSTMSpec(3, 4), x, (h, x), r"state\[1\]: given shape \(2, 3\), expected \(1, 2, 4\)")

    def test_x(self) -> None:
        self.check(GRUSpec(3, 4), ops.ones((5, 2, 3)), None, r"x: given shape \(5, 2, 3\), expected \(B, I\)")
        self.check(GRUSpec(3, 4), 1.0, None, "x: given .*, expected a mindspore.Tensor")
