"""`unirnn.detach` stops the gradient; compiled code uses the framework's own function."""

from typing import Any

import pytest
import torch
from torch import Tensor

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec
from unirnn.contract.call import join_state, state_parts

SPECS: list[RecurrentSpec] = [
    GRUSpec(3, 4, 2, batch_first=True),
    LSTMSpec(3, 4, 2),
    LSTMSpec(3, 4, proj_size=2),
]
pytestmark = [
    # torch's warning about its own computation
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning"),
    pytest.mark.parametrize("spec", SPECS, ids=repr),
]
LENGTHS = [[3, 2, 0], [3, 0, 0]]


def chunk(seed: int) -> Tensor:
    """Three steps of three sequences."""
    return torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(seed), requires_grad=True)


@pytest.mark.parametrize("lengths", [[None, None], LENGTHS], ids=["dense", "ragged"])
def test_gradients_reach_the_first_chunk_unless_the_state_is_detached(spec: RecurrentSpec, lengths: list[Any]) -> None:
    module = spec.build("torch", seed=0)
    gradients = []
    for cut in (unirnn.detach, lambda state: state):
        first, second = chunk(0), chunk(1)
        _, state = module(first, seq_length=lengths[0])
        output, _ = module(second, cut(state), lengths[1])
        loss = output.square().sum()
        d_first, d_second = torch.autograd.grad(loss, (first, second), materialize_grads=True)
        assert d_second.abs().max() > 0
        gradients.append((d_first.abs().max().item(), d_second))
    assert gradients[0][0] == 0
    assert gradients[1][0] > 1e-3
    torch.testing.assert_close(gradients[0][1], gradients[1][1], rtol=0, atol=0)


def test_a_loop_over_chunks_fails_without_detaching(spec: RecurrentSpec) -> None:
    module = spec.build("torch", seed=0)

    def train(cut: Any) -> None:
        state = None
        for seed in range(3):
            output, state = module(chunk(seed), state)
            output.square().sum().backward()
            state = cut(state)

    train(unirnn.detach)
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        train(lambda state: state)


def test_a_compiled_function_uses_torchs_detach(spec: RecurrentSpec) -> None:
    module = spec.build("torch", seed=0)

    def loss(first: Tensor, second: Tensor) -> Tensor:
        _, state = module(first)
        state = tuple(part.detach() for part in state) if isinstance(state, tuple) else state.detach()
        result: Tensor = module(second, state)[0].square().sum()
        return result

    torch.compiler.reset()
    first, second = chunk(0), chunk(1)
    compiled: Any = torch.compile(loss, fullgraph=True, backend="eager")
    compiled(first, second).backward()
    assert first.grad is None
    assert second.grad is not None
    assert second.grad.abs().max() > 0


def test_states_in_a_loop_over_steps(spec: RecurrentSpec) -> None:
    """The results and gradients when compiled equal those in eager mode, and an unselected NaN has no influence."""

    def run(state: Any, index: Tensor, mask: Tensor) -> Any:
        beams = unirnn.state.select(unirnn.state.repeat(state, 2), index)
        bad = torch.where(mask, 0.0, torch.nan)[:, None]
        other = tuple(part + bad for part in state) if isinstance(state, tuple) else state + bad
        return unirnn.state.where(mask, other, beams)

    def results(function: Any) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        leaves = [torch.randn(s, generator=generator, requires_grad=True) for s in spec.state_shapes(3).values()]
        state = function(join_state(leaves), torch.tensor([2, 0, 0]), torch.tensor([True, False, True]))
        total = sum(part.square().sum() for part in state_parts(spec, state) or ())
        return [*(state_parts(spec, state) or ()), *torch.autograd.grad(total, leaves)]

    torch.compiler.reset()
    compiled: Any = torch.compile(run, fullgraph=True, backend="aot_eager")
    for actual, expected in zip(results(compiled), results(run), strict=True):
        assert expected.isfinite().all()
        torch.testing.assert_close(actual, expected)


def test_a_state_of_zeros_in_a_compiled_function(spec: RecurrentSpec) -> None:
    module = spec.build("torch", seed=0)

    def run(x: Tensor) -> Tensor:
        output: Tensor = module(x, unirnn.state.zeros(module, x.shape[1]))[0]
        return output

    torch.compiler.reset()
    x = torch.ones(3, 3, 3)
    torch.testing.assert_close(torch.compile(run, fullgraph=True, backend="aot_eager")(x), module(x)[0])
