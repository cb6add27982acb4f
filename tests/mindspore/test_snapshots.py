"""Snapshots of MindSpore's own layers, and loading weights into them."""

from collections.abc import Callable
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import nn

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, errors
from unirnn.contract.call import join_state, state_parts
from unirnn.testing.oracle import recurrent
from unirnn.testing.tolerances import close

LAYERS: dict[str, tuple[RecurrentSpec, type[nn.Cell], dict[str, Any]]] = {
    "RNN": (RNNSpec(3, 4, bidirectional=True), nn.RNN, {"bidirectional": True}),
    "relu RNN": (RNNSpec(3, 4, 2, nonlinearity="relu"), nn.RNN, {"num_layers": 2, "nonlinearity": "relu"}),
    "GRU": (
        GRUSpec(3, 4, 2, dropout=0.5, batch_first=True),
        nn.GRU,
        {"num_layers": 2, "dropout": 0.5, "batch_first": True},
    ),
    "LSTM": (LSTMSpec(3, 4, bias=False), nn.LSTM, {"has_bias": False}),
}
each_layer = pytest.mark.parametrize(("spec", "kind", "options"), LAYERS.values(), ids=LAYERS.keys())


@each_layer
def test_snapshot_of_a_native_layer(spec: RecurrentSpec, kind: type[nn.Cell], options: dict[str, Any]) -> None:
    native = kind(3, 4, **options)
    taken = unirnn.snapshot(native)
    assert taken.spec == spec
    x = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    expected = native(ms.Tensor(x))[0].asnumpy()
    close(taken.build("numpy")(x)[0], expected, 1e-5)

    other = kind(3, 4, **options)
    unirnn.load_weights(other, taken)
    assert unirnn.snapshot(other) == taken
    np.testing.assert_array_equal(other(ms.Tensor(x))[0].asnumpy(), expected)


CELLS: dict[str, tuple[RecurrentSpec, Callable[[], nn.Cell]]] = {
    "relu RNNCell": (RNNSpec(3, 4, nonlinearity="relu"), lambda: nn.RNNCell(3, 4, nonlinearity="relu")),
    "GRUCell": (GRUSpec(3, 4), lambda: nn.GRUCell(3, 4)),
    "LSTMCell": (LSTMSpec(3, 4, bias=False), lambda: nn.LSTMCell(3, 4, has_bias=False)),
}


@pytest.mark.parametrize(("spec", "make"), CELLS.values(), ids=CELLS.keys())
def test_snapshot_of_a_native_cell(spec: RecurrentSpec, make: Callable[[], nn.Cell]) -> None:
    cell, other = make(), nn.CellList([make()])
    taken = unirnn.snapshot(cell)
    assert taken.spec == spec
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 2, 3)).astype(np.float32)
    initial = tuple(rng.standard_normal(shape).astype(np.float32) for shape in spec.state_shapes(2).values())
    state: Any = join_state([ms.Tensor(part[0]) for part in initial])
    for step in x:
        state = cell(ms.Tensor(step), state)
    _, expected = recurrent(spec, taken.weights, x, initial, None)
    for part, whole in zip(state_parts(spec, state) or (), expected, strict=True):
        close(part.asnumpy(), whole[0], 1e-5)

    unirnn.load_weights(other[0], taken)
    assert unirnn.snapshot(other[0]) == taken
    assert all(np.array_equal(*pair) for pair in zip(_arrays(other[0]), _arrays(cell), strict=True))


def _arrays(cell: nn.Cell) -> list[Any]:
    return [parameter.asnumpy() for parameter in cell.get_parameters()]


class Net(nn.Cell):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.GRU(3, 4)
        self.head = nn.Dense(4, 2)

    def construct(self, x: ms.Tensor) -> ms.Tensor:
        return self.head(self.encoder(x)[0])


def test_snapshot_of_a_layer_within_a_network() -> None:
    net = Net()
    assert net.encoder.w_ih_list[0].name == "encoder.weight_ih_l0"
    taken = unirnn.snapshot(net.encoder)
    assert taken.spec == GRUSpec(3, 4)
    assert unirnn.snapshot(net.parameters_dict(), prefix="encoder.", batch_first=False) == taken
    other = unirnn.snapshot(nn.GRU(3, 4))
    unirnn.load_weights(net.encoder, other)
    assert unirnn.snapshot(net.encoder) == other
    with pytest.raises(errors.ArgumentError, match="expected a module that unirnn built"):
        unirnn.snapshot(net)


@pytest.mark.parametrize("holder", [nn.CellList, nn.SequentialCell])
def test_a_list_of_layers_is_a_stack(holder: Any) -> None:
    layers = [nn.GRU(3, 4), nn.Dropout(p=0.25), nn.GRU(4, 4), nn.Dropout(keep_prob=0.75), nn.GRU(4, 4)]
    taken = unirnn.snapshot(holder(layers))
    assert taken.spec == GRUSpec(3, 4, 3, dropout=0.25)
    expected = [unirnn.snapshot(layer) for layer in layers[::2]]
    assert taken.weights.keys() == unirnn.stack(expected).weights.keys()
    other = [nn.GRU(3, 4), nn.Dropout(p=0.25), nn.GRU(4, 4), nn.GRU(4, 4)]
    unirnn.load_weights(holder(other), taken)
    assert [unirnn.snapshot(layer) for layer in (other[0], *other[2:])] == expected
    with pytest.raises(errors.SpecError, match=r"given 1: mindspore\.nn\..*Dense, which a stack would leave out"):
        unirnn.snapshot(holder([nn.GRU(3, 4), nn.Dense(4, 4), nn.GRU(4, 4)]))


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (lambda: nn.RNNCell(3, 4, nonlinearity="relu"), RNNSpec(3, 4, nonlinearity="relu")),
        (lambda: nn.GRUCell(3, 4), GRUSpec(3, 4)),
        (lambda: nn.LSTMCell(3, 4), LSTMSpec(3, 4)),
    ],
    ids=["RNN", "GRU", "LSTM"],
)
def test_a_snapshot_of_a_cells_parameters(kind: Any, spec: RecurrentSpec) -> None:
    cell = kind()
    state = nn.CellList([cell, nn.Dense(4, 2)]).parameters_dict()
    taken = unirnn.snapshot(state, **({"spec": spec} if spec.kind == "RNN" else {"batch_first": False}))
    assert taken.spec == spec
    x = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    output, _ = taken.build("numpy")(x)
    zeros = ms.Tensor(np.zeros((2, 4), np.float32))
    held: Any = (zeros, zeros) if spec.kind == "LSTM" else zeros
    for step in range(5):
        held = cell(ms.Tensor(x[step]), held)
        close(output[step], (held[0] if spec.kind == "LSTM" else held).asnumpy(), 1e-5)


@pytest.mark.parametrize("native", [True, False], ids=["native", "built"])
def test_a_compiled_function_uses_loaded_weights(native: bool) -> None:
    first, second = (GRUSpec(3, 4).build("numpy", seed=seed) for seed in (1, 2))
    module = nn.GRU(3, 4) if native else unirnn.snapshot(first).build("mindspore")
    parameters = module.trainable_params()
    x, h_0 = np.ones((5, 2, 3), np.float32), np.zeros((1, 2, 4), np.float32)

    @ms.jit
    def run(x: ms.Tensor, h_0: ms.Tensor) -> ms.Tensor:
        return module(x, h_0)[0]

    run(ms.Tensor(x), ms.Tensor(h_0))
    unirnn.load_weights(module, unirnn.snapshot(second))
    close(run(ms.Tensor(x), ms.Tensor(h_0)).asnumpy(), second(x)[0], 1e-5)
    assert all(one is another for one, another in zip(parameters, module.trainable_params(), strict=True))


class ComputesElse(nn.GRU):
    def construct(self, x: Any, hx: Any = None, seq_length: Any = None) -> Any:
        output, h_n = super().construct(x, hx, seq_length)
        return 2 * output, h_n


class ClipsItsState(nn.GRUCell):
    def construct(self, x: Any, hx: Any) -> Any:
        return super().construct(x, hx).clip(-0.5, 0.5)


def test_a_subclass_that_computes_something_else_is_refused() -> None:
    adds_a_method: Any = type("AddsAMethod", (nn.GRU,), {"last": lambda self, x: self(x)[0][-1]})
    assert unirnn.snapshot(adds_a_method(3, 4)).spec == GRUSpec(3, 4)
    words = r"module: given .*ComputesElse, whose construct is its own, expected that of GRU: no spec describes"
    with pytest.raises(errors.SpecError, match=words):
        unirnn.snapshot(ComputesElse(3, 4))
    with pytest.raises(errors.SpecError, match=r"ClipsItsState, whose construct is its own, expected that of GRUCell"):
        unirnn.snapshot(ClipsItsState(3, 4))
