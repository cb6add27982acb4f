"""Snapshots of torch's own layers, and writing into them."""

import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils import prune

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, errors
from unirnn.contract import weights as _weights

LAYERS: dict[str, tuple[RecurrentSpec, Any, dict[str, Any]]] = {
    "RNN": (RNNSpec(3, 4, bidirectional=True), torch.nn.RNN, {"bidirectional": True}),
    "relu RNN": (RNNSpec(3, 4, nonlinearity="relu"), torch.nn.RNN, {"nonlinearity": "relu"}),
    "GRU": (
        GRUSpec(3, 4, 3, dropout=0.5, batch_first=True),
        torch.nn.GRU,
        {"num_layers": 3, "dropout": 0.5, "batch_first": True},
    ),
    "LSTM": (LSTMSpec(3, 4, 2, bias=False), torch.nn.LSTM, {"num_layers": 2, "bias": False}),
    "LSTM with a projection": (LSTMSpec(3, 4, proj_size=2), torch.nn.LSTM, {"proj_size": 2}),
}
each_layer = pytest.mark.parametrize(("spec", "kind", "options"), LAYERS.values(), ids=LAYERS.keys())


@each_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
def test_a_layer_of_torch(spec: RecurrentSpec, kind: Any, options: dict[str, Any], dtype: torch.dtype) -> None:
    native = kind(3, 4, **options, dtype=dtype).eval()
    taken = unirnn.snapshot(native)
    assert taken.spec == spec
    assert taken == unirnn.Snapshot(spec, {name: p.detach().numpy() for name, p in native.named_parameters()})
    x = torch.randn(5, 2, 3, dtype=dtype)
    torch.testing.assert_close(taken.build("torch").eval()(x)[0], native(x)[0])

    other = kind(3, 4, **options, dtype=dtype).eval()
    unirnn.load_weights(other, taken)
    torch.testing.assert_close(other(x)[0], native(x)[0])
    assert all(isinstance(weight, torch.nn.Parameter) for weight in other.all_weights[0])


def test_no_other_framework_is_imported() -> None:
    program = """
import sys, torch, unirnn
before = set(sys.modules)
unirnn.load_weights(torch.nn.GRU(3, 4), unirnn.snapshot(torch.nn.GRU(3, 4)))
others = {"mindspore", "keras", "flax", "jax", "onnx", "onnxruntime", "unirnn_mindspore", "unirnn_onnxruntime"}
print(sorted(others & (set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


def test_a_state_dict_can_be_passed_unchanged() -> None:
    model = torch.nn.ModuleDict({"encoder": torch.nn.GRU(3, 4), "head": torch.nn.Linear(4, 2)})
    expected = unirnn.snapshot(model["encoder"])
    assert unirnn.snapshot(model.state_dict(), batch_first=False) == expected
    assert unirnn.snapshot(dict(model.named_parameters()), prefix="encoder.", batch_first=False) == expected
    narrow = unirnn.snapshot(model.to(torch.bfloat16).state_dict(), batch_first=False)
    for name, array in narrow.weights.items():
        np.testing.assert_allclose(array, expected.weights[name], rtol=2**-8)


@pytest.mark.parametrize("holder", [list, torch.nn.ModuleList, lambda layers: torch.nn.Sequential(*layers)])
def test_a_list_of_layers_is_a_stack(holder: Any) -> None:
    layers = [torch.nn.GRU(3, 4, bidirectional=True), torch.nn.GRU(8, 4, 2, bidirectional=True)]
    x = torch.randn(5, 2, 3)
    taken = unirnn.snapshot(holder(layers))
    output, _ = taken.build("torch")(x)
    torch.testing.assert_close(output, layers[1](layers[0](x)[0])[0])
    prefixes = ["stack.0.", "stack.1."]
    state = torch.nn.ModuleDict({"stack": torch.nn.ModuleList(layers), "head": torch.nn.Linear(8, 2)}).state_dict()
    assert unirnn.snapshot(state, prefix=prefixes, batch_first=False) == taken
    other = [torch.nn.GRU(3, 4, bidirectional=True), torch.nn.GRU(8, 4, 2, bidirectional=True)]
    unirnn.load_weights(holder(other), taken)
    assert unirnn.snapshot(other) == taken


def test_dropout_in_a_list_of_layers() -> None:
    def layer(size: int, num_layers: int = 1, dropout: float = 0.0) -> torch.nn.Module:
        return torch.nn.GRU(size, 4, num_layers, dropout=dropout)

    half, third = torch.nn.Dropout(0.5), torch.nn.Dropout(0.3)
    nothing = [torch.nn.Identity(), torch.nn.Dropout(0.0)]
    taken = {
        0.5: [layer(3), half, layer(4), half, layer(4, 2, 0.5)],
        0.3: [*nothing, layer(3, 3, 0.3), *nothing, third, *nothing, layer(4), *nothing],
        0.0: [layer(3), *nothing, layer(4, 3)],
    }
    for rate, layers in taken.items():
        found = unirnn.snapshot(torch.nn.Sequential(*layers))
        assert found.spec == GRUSpec(3, 4, 4, dropout=rate)
        unirnn.load_weights(torch.nn.Sequential(*layers), found)
    for wrong in ([layer(3), half, layer(4), third, layer(4)], [layer(3), half, layer(4), layer(4)]):
        with pytest.raises(errors.SpecError, match=r"layers: given dropout of the rates .*, expected one rate between"):
            unirnn.snapshot(wrong)
    with pytest.raises(errors.SpecError, match=r"layers: given dropout of the rates \[0.5, 0.3\]"):
        unirnn.snapshot([layer(3, 2, 0.3), half, layer(4)])
    others = {"0": [half, layer(3)], "1": [layer(3), half], "2": [layer(3), half, third, layer(4)]}
    for position, layers in others.items():
        words = rf"layers: given {position}: torch\.nn\.modules\.dropout\.Dropout, which a stack would leave out"
        with pytest.raises(errors.SpecError, match=words):
            unirnn.snapshot(layers)


def test_other_layers_in_a_list_are_refused() -> None:
    norm, linear = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4)
    layers = torch.nn.ModuleList([torch.nn.GRU(3, 4), norm, torch.nn.GRU(4, 4), linear])
    with pytest.raises(
        errors.SpecError, match=r"given 1: .*\.BatchNorm1d, 3: .*\.Linear, which a stack would leave out"
    ):
        unirnn.snapshot(layers)

    class Residual(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self:
                x = x + layer(x)[0]
            return x

    with pytest.raises(errors.SpecError, match="Residual, whose forward is its own, expected that of Sequential"):
        unirnn.snapshot(Residual(torch.nn.GRU(4, 4), torch.nn.GRU(4, 4)))


@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        (lambda bias: torch.nn.RNNCell(3, 4, bias=bias, nonlinearity="relu"), RNNSpec(3, 4, nonlinearity="relu")),
        (lambda bias: torch.nn.GRUCell(3, 4, bias=bias), GRUSpec(3, 4)),
        (lambda bias: torch.nn.LSTMCell(3, 4, bias=bias), LSTMSpec(3, 4)),
    ],
    ids=["RNN", "GRU", "LSTM"],
)
@pytest.mark.parametrize("bias", [True, False])
def test_the_state_dict_of_a_cell(kind: Any, spec: RecurrentSpec, bias: bool) -> None:
    cell = kind(bias)
    spec = replace(spec, bias=bias)
    weights = torch.nn.ModuleDict({"cell": cell, "head": torch.nn.Linear(4, 2)}).state_dict()
    taken = unirnn.snapshot(weights, **({"spec": spec} if spec.kind == "RNN" else {"batch_first": False}))
    assert taken.spec == spec
    x = torch.randn(5, 2, 3)
    output, _ = taken.build("numpy")(x.numpy())
    state: Any = None
    for step in range(5):
        state = cell(x[step], state)
        expected = state[0] if spec.kind == "LSTM" else state
        np.testing.assert_allclose(output[step], expected.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_a_module_that_is_no_layer_is_refused() -> None:
    with pytest.raises(errors.ArgumentError, match=r"obj: given torch\.nn\.modules\.linear\.Linear, expected a module"):
        unirnn.snapshot(torch.nn.Linear(3, 4))


def test_a_parametrization_is_not_written_to() -> None:
    native = torch.nn.utils.parametrizations.weight_norm(torch.nn.GRU(3, 4), "weight_hh_l0")
    taken = unirnn.snapshot(native)
    with pytest.raises(errors.ArgumentError, match="its weight_hh_l0 is computed by a parametrization; remove"):
        unirnn.load_weights(native, unirnn.snapshot(torch.nn.GRU(3, 4)))
    assert unirnn.snapshot(native) == taken


@pytest.mark.parametrize("module", [torch.nn.GRU(3, 4), GRUSpec(3, 4).build("torch")], ids=["native", "built"])
def test_bfloat16_is_not_rounded_in_silence(module: torch.nn.Module) -> None:
    module = module.to(torch.bfloat16)
    before = unirnn.snapshot(module)
    wide = unirnn.Snapshot(GRUSpec(3, 4), _weights.draw(GRUSpec(3, 4), 0)).cast("float32")
    with pytest.raises(errors.DTypeError, match="it is of bfloat16, which can't hold weight_ih_l0 without rounding"):
        unirnn.load_weights(module, wide)
    assert unirnn.snapshot(module) == before
    unirnn.load_weights(module, unirnn.snapshot(wide.build("torch", dtype="bfloat16")))
    assert unirnn.snapshot(module) != before


def test_weights_that_are_shared_are_not_half_written() -> None:
    native = torch.nn.GRU(4, 4, 2)
    native.weight_hh_l1 = native.weight_hh_l0
    before = unirnn.snapshot(native)
    with pytest.raises(errors.ArgumentError, match="it shares a weight between layers or directions"):
        unirnn.load_weights(native, unirnn.snapshot(torch.nn.GRU(4, 4, 2)))
    assert unirnn.snapshot(native) == before


def test_weights_without_numbers_are_refused() -> None:
    with pytest.raises(errors.ArgumentError, match="its weight_ih_l0 is on the device 'meta' and has no values"):
        unirnn.snapshot(torch.nn.GRU(3, 4, device="meta"))


pruned: Any = partial(prune.random_unstructured, amount=0.5)


def dropped(layer: Any) -> None:
    """Like AWD-LSTM during a call: the weight is a copy of the raw weight with dropped elements."""
    layer.weight_hh_l0_raw = layer.weight_hh_l0
    layer.weight_hh_l0 = torch.nn.Parameter(torch.nn.functional.dropout(layer.weight_hh_l0))


def dropped_from_above(layer: Any) -> None:
    """Like fastai, whose wrapper has the raw weight."""
    layer._parameters["weight_hh_l0"] = torch.nn.functional.dropout(layer.weight_hh_l0)


@pytest.mark.filterwarnings("ignore:`?torch.nn.utils.weight_norm`? is deprecated:FutureWarning")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (torch.nn.utils.weight_norm, "weight_norm last computed, maybe out of date; call remove"),
        (torch.nn.utils.spectral_norm, "spectral_norm last computed, maybe out of date; call prune.remove or remove"),
        (pruned, "prune or spectral_norm last computed"),
        (lambda layer, _: dropped(layer), "weight_hh_l0 is what the last dropout left of its raw weight; take"),
        (lambda layer, _: dropped_from_above(layer), "weight_hh_l0 is no torch.nn.Parameter, so it may have been"),
    ],
)
def test_weights_that_a_hook_will_compute(change: Any, words: str) -> None:
    native = torch.nn.GRU(3, 4)
    change(native, "weight_hh_l0")
    with pytest.raises(errors.ArgumentError, match=words):
        unirnn.snapshot(native)


def test_a_wrapped_layer_is_asked_for() -> None:
    with pytest.raises(errors.ArgumentError, match=r"or a list of layers, or what it wraps, its \.module"):
        unirnn.snapshot(torch.nn.DataParallel(torch.nn.GRU(3, 4)))


def test_an_optimizer_and_a_compiled_module_use_loaded_weights() -> None:
    native, taken = torch.nn.GRU(3, 4), unirnn.snapshot(torch.nn.GRU(3, 4))
    optimizer = torch.optim.SGD(native.parameters(), lr=0.0)
    module = taken.build("torch")
    compiled: Any = torch.compile(module, backend="eager", fullgraph=True)
    x = torch.randn(5, 2, 3)
    compiled(x)
    other = unirnn.snapshot(torch.nn.GRU(3, 4))
    for layer in (native, module):
        unirnn.load_weights(layer, other)
    torch.testing.assert_close(compiled(x)[0], native(x)[0], rtol=0, atol=1e-6)
    held = optimizer.param_groups[0]["params"]
    assert all(one is another for one, another in zip(held, native.parameters(), strict=True))
    torch.compiler.reset()


class AddsAMethod(torch.nn.GRU):
    def last(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self(x)[0]
        return output[-1]


class ComputesElse(torch.nn.GRU):
    def forward(self, *arguments: Any) -> Any:
        output, h_n = super().forward(*arguments)
        return 2 * output, h_n


def test_a_subclass_that_computes_something_else_is_refused() -> None:
    assert unirnn.snapshot(AddsAMethod(3, 4)).spec == GRUSpec(3, 4)
    words = r"module: given .*ComputesElse, whose forward is its own, expected that of GRU: no spec describes"
    with pytest.raises(errors.SpecError, match=words):
        unirnn.snapshot(ComputesElse(3, 4))
    built = GRUSpec(3, 4).build("torch", seed=0)
    own: Any = type("Own", (type(built),), {"forward": ComputesElse.forward})
    built.__class__ = own
    with pytest.raises(errors.SpecError, match=r"module: given .*Own, whose forward is its own"):
        unirnn.snapshot(built)
    own = type("Own", (torch.nn.GRU,), {"__call__": ComputesElse.forward})
    with pytest.raises(errors.SpecError, match=r"module: given .*Own, whose __call__ is its own"):
        unirnn.snapshot(own(3, 4))
    native = torch.nn.GRU(3, 4)
    native.forward = lambda x: (2 * x, None)  # type: ignore[assignment]
    with pytest.raises(errors.SpecError, match=r"given torch.nn.modules.rnn.GRU, whose forward is its own"):
        unirnn.snapshot(native)
