"""torch's own cells are layers of one step."""

from typing import Any

import pytest
import torch
from torch import Tensor

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, errors

CELLS: dict[str, tuple[RecurrentSpec, Any]] = {
    "RNN": (RNNSpec(3, 4), torch.nn.RNNCell(3, 4)),
    "relu RNN without a bias": (
        RNNSpec(3, 4, bias=False, nonlinearity="relu"),
        torch.nn.RNNCell(3, 4, bias=False, nonlinearity="relu"),
    ),
    "GRU": (GRUSpec(3, 4), torch.nn.GRUCell(3, 4)),
    "LSTM in float64": (LSTMSpec(3, 4), torch.nn.LSTMCell(3, 4, dtype=torch.float64)),
}


@pytest.mark.parametrize(("spec", "cell"), CELLS.values(), ids=CELLS.keys())
def test_a_cell_is_a_layer_of_one_step(spec: RecurrentSpec, cell: Any) -> None:
    taken = unirnn.snapshot(cell)
    assert taken.spec == spec
    assert taken == unirnn.Snapshot(spec, {f"{name}_l0": p.detach().numpy() for name, p in cell.named_parameters()})
    layer = taken.build("torch")
    x = torch.randn(5, 2, 3, dtype=cell.weight_ih.dtype)
    state = None
    for x_t, expected in zip(x, layer(x)[0], strict=True):
        state = cell(x_t, state)
        torch.testing.assert_close(state[0] if isinstance(state, tuple) else state, expected)

    other = spec.build("torch", dtype=taken.dtype, seed=1)
    unirnn.load_weights(cell, unirnn.snapshot(other))
    found = cell(x[0])
    torch.testing.assert_close(found[0] if isinstance(found, tuple) else found, other(x[:1])[0][0])
    assert all(isinstance(parameter, torch.nn.Parameter) for parameter in cell.parameters())


def test_a_cell_takes_one_layer_only() -> None:
    cell = torch.nn.GRUCell(3, 4)
    with pytest.raises(errors.ArgumentError, match="unknown weight_ih_l1"):
        unirnn.load_weights(cell, unirnn.snapshot(GRUSpec(3, 4, 2).build("torch")))


def test_a_cell_that_computes_something_else_is_refused() -> None:
    class Own(torch.nn.GRUCell):
        def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
            return 2 * super().forward(input, hx)

    class More(torch.nn.GRUCell):
        def describe(self) -> str:
            return "a cell"

    assert unirnn.snapshot(More(3, 4)).spec == GRUSpec(3, 4)
    with pytest.raises(errors.SpecError, match="Own, whose forward is its own, expected that of GRUCell"):
        unirnn.snapshot(Own(3, 4))
