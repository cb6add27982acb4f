"""`unirnn.detach` stops the gradient; compiled code uses the framework's own function."""

from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.contract.call import join_state

SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4, 2, nonlinearity="relu"),
    GRUSpec(3, 4, batch_first=True),
    LSTMSpec(3, 4),
]
pytestmark = pytest.mark.parametrize("spec", SPECS, ids=repr)
LENGTHS = [Tensor([3, 2, 0]), Tensor([3, 0, 0])]


def chunk(seed: int) -> Tensor:
    """Three steps of three sequences."""
    return Tensor(np.random.default_rng(seed).standard_normal((3, 3, 3)).astype(np.float32))


def gradients(module: nn.Cell, cut: Any, compiled: bool) -> tuple[Any, Any]:
    """The gradients of the second chunk's loss with respect to the first chunk and to the second."""

    def loss(first: Tensor, second: Tensor) -> Tensor:
        _, state = module(first, seq_length=LENGTHS[0])
        if cut is not None:
            state = cut(state)
        output, _ = module(second, state, LENGTHS[1])
        return ops.square(output).sum()

    function = ms.grad(loss, (0, 1))
    d_first, d_second = (ms.jit(function) if compiled else function)(chunk(0), chunk(1))
    return d_first.asnumpy(), d_second.asnumpy()


@pytest.mark.parametrize(
    ("cut", "compiled"), [(unirnn.detach, False), (ops.stop_gradient, True)], ids=["pynative", "jit"]
)
def test_no_gradient_passes_a_detached_state(spec: RecurrentSpec, cut: Any, compiled: bool) -> None:
    module = spec.build("mindspore", seed=0)
    d_first, d_second = gradients(module, cut, compiled)
    reached, same = gradients(module, None, compiled)
    assert (d_first == 0).all()
    assert np.abs(reached).max() > 1e-3
    assert np.abs(d_second).max() > 0
    np.testing.assert_array_equal(d_second, same)


def streaming(module: nn.Cell) -> tuple[Any, Any]:
    """A training step that returns the final state too, and a state of zeros."""

    def forward(x: Tensor, state: Any, lengths: Tensor) -> tuple[Tensor, Any]:
        output, state = module(x, state, lengths)
        return ops.square(output).sum(), state

    step = ms.value_and_grad(forward, None, module.trainable_params(), has_aux=True)
    return step, join_state([ops.zeros(shape) for shape in module.spec.state_shapes(3).values()])


def parts(state: Any) -> tuple[Tensor, ...]:
    return state if isinstance(state, tuple) else (state,)


@pytest.mark.parametrize("compiled", [False, True], ids=["pynative", "jit"])
def test_a_loop_over_chunks_treats_the_state_as_a_constant(spec: RecurrentSpec, compiled: bool) -> None:
    """The gradients treat the state as a constant; the last state equals the whole sequence's."""
    module = spec.build("mindspore", seed=0)
    step, state = streaming(module)
    if compiled:
        step = ms.jit(step)
    (_, state), _ = step(chunk(0), state, LENGTHS[0])
    (_, final), actual = step(chunk(1), state if compiled else unirnn.detach(state), LENGTHS[1])

    without_past = join_state([Tensor(part.asnumpy()) for part in parts(state)])
    _, expected = step(chunk(1), without_past, LENGTHS[1])
    for gradient, other in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(gradient.asnumpy(), other.asnumpy())

    _, whole = module(ops.cat((chunk(0), chunk(1)), 1 if spec.batch_first else 0), seq_length=[6, 2, 0])
    for part, other in zip(parts(final), parts(whole), strict=True):
        np.testing.assert_allclose(part.asnumpy(), other.asnumpy(), rtol=0, atol=1e-6)


def test_a_loop_over_chunks_fails_without_detaching(spec: RecurrentSpec) -> None:
    """In MindSpore 2.10 this holds for any cell; when this test fails, the guide has to change."""
    step, state = streaming(spec.build("mindspore", seed=0))
    (_, state), _ = step(chunk(0), state, LENGTHS[0])
    with pytest.raises(RuntimeError, match="Try to backward the graph twice"):
        step(chunk(1), state, LENGTHS[1])


def test_states_in_a_loop_over_steps(spec: RecurrentSpec) -> None:
    """The results and gradients in a graph equal those in PyNative mode, and an unselected NaN has no influence."""
    rng = np.random.default_rng(0)
    h, c = (Tensor(rng.standard_normal((spec.num_layers, 3, 4)).astype(np.float32)) for _ in range(2))
    is_lstm = spec.kind == "LSTM"
    index, mask = Tensor([2, 0, 0]), Tensor([True, False, True])
    bad = Tensor(np.array([0, np.nan, 0], np.float32)[:, None])

    def run(h: Tensor, c: Tensor, index: Tensor, mask: Tensor) -> Tensor:
        state = (h, c) if is_lstm else h
        beams = unirnn.state.select(unirnn.state.repeat(state, 2), index)
        other = (h + bad, c + bad) if is_lstm else h + bad
        chosen = unirnn.state.where(mask, other, beams)
        return ops.square(chosen[0] + 2 * chosen[1] if is_lstm else chosen).sum()

    for function in (run, ms.grad(run, (0, 1))):
        actual, expected = (made(h, c, index, mask) for made in (ms.jit(function), function))
        for a, b in zip(*(parts(result) for result in (actual, expected)), strict=True):
            assert np.isfinite(b.asnumpy()).all()
            np.testing.assert_allclose(a.asnumpy(), b.asnumpy(), rtol=1e-6)


def test_a_state_of_zeros_in_a_compiled_function(spec: RecurrentSpec) -> None:
    module = spec.build("mindspore", seed=0)

    @ms.jit
    def run(x: Tensor) -> Tensor:
        return module(x, unirnn.state.zeros(module, 3))[0]

    np.testing.assert_array_equal(run(chunk(0)).asnumpy(), module(chunk(0))[0].asnumpy())
