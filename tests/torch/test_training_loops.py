"""A module that the torch backend builds in the training loops, exporters and quantisers of torch."""

import copy
import functools
from typing import Any

import pytest
import torch
from nested import flat
from torch import Tensor, nn
from torch.ao.quantization import get_default_dynamic_quant_module_mappings, quantize_dynamic
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.checkpoint import checkpoint
from unirnn_torch import Recurrent
from unirnn_torch.quantized import DynamicQuantized

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, errors
from unirnn.contract.call import join_state

SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4, 2, nonlinearity="relu", bias=False),
    GRUSpec(3, 4, 2, bidirectional=True, batch_first=True),
    LSTMSpec(3, 4, 2, bidirectional=True),
]
each = pytest.mark.parametrize("spec", SPECS, ids=repr)
RESET_BEFORE = GRUSpec(3, 4, bidirectional=True, batch_first=True, reset_after=False)
"""torch has no such layer, so the reference runs."""
each_and_reset_before = pytest.mark.parametrize("spec", [*SPECS, RESET_BEFORE], ids=repr)
LENGTHS = torch.tensor([5, 0, 2])


def batch(spec: RecurrentSpec, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Any]:
    """An input with NaN in its padding, and a state."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(5, 3, 3, generator=generator, dtype=dtype)
    x[torch.arange(5).unsqueeze(1) >= LENGTHS] = torch.nan
    states = [torch.randn(shape, generator=generator, dtype=dtype) for shape in spec.state_shapes(3).values()]
    return x.swapaxes(0, 1) if spec.batch_first else x, join_state(states)


def total(result: Any) -> Any:
    return torch.stack([part.float().square().sum() for part in flat(result)]).sum()


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


@each
def test_hooks_of_the_module_and_of_its_parameters(spec: RecurrentSpec) -> None:
    module, (x, hx) = spec.build("torch", seed=0), batch(spec)
    seen: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda *_: seen.append("before")),
        module.register_forward_hook(lambda *_: seen.append("after")),
        module.register_full_backward_pre_hook(lambda *_: seen.append("backward before")),
        module.register_full_backward_hook(lambda *_: seen.append("backward")),
        module.weight_hh_l0.register_hook(lambda gradient: gradient * 0),
        module.weight_ih_l0.register_post_accumulate_grad_hook(lambda p: seen.append("accumulated")),
    ]
    total(module(x.nan_to_num().requires_grad_(), hx, LENGTHS)).backward()
    assert seen[:3] == ["before", "after", "backward before"]
    assert sorted(seen[3:]) == ["accumulated", "backward"]
    assert (module.weight_hh_l0.grad == 0).all()
    assert (module.weight_ih_l0.grad != 0).any()
    for handle in handles:
        handle.remove()
    module(x, hx, LENGTHS)
    assert len(seen) == 5


def test_a_forward_hook_changes_the_output() -> None:
    module, (x, hx) = SPECS[1].build("torch", seed=0), batch(SPECS[1])
    module.register_forward_hook(lambda _, arguments, result: (result[0] + 1, result[1]))
    assert (module(x, hx, LENGTHS)[0][1] == 1).all()


@each_and_reset_before
@pytest.mark.parametrize("use_reentrant", [True, False])
def test_activation_checkpointing(spec: RecurrentSpec, use_reentrant: bool) -> None:
    module, (x, hx) = spec.build("torch", seed=0), batch(spec)
    found = []
    for run in (module, functools.partial(checkpoint, module, use_reentrant=use_reentrant)):
        module.zero_grad()
        leaf = x.clone().requires_grad_()
        output: Any = run(leaf, hx, LENGTHS)[0]
        output.square().sum().backward()  # the reentrant kind takes no nested results
        found.append({**gradients(module), "input": leaf.grad})
    torch.testing.assert_close(found[1], found[0])


@each
def test_clipping_and_weight_decay_train_as_with_the_native_layer(spec: RecurrentSpec) -> None:
    """The native layer takes lengths as a packed sequence, without a length of 0."""
    x, hx = batch(spec)
    lengths = torch.tensor([5, 1, 2])
    packed = pack_padded_sequence(x.nan_to_num(), lengths, spec.batch_first, enforce_sorted=False)
    native = getattr(nn, spec.kind)(**spec.to_kwargs("torch"))
    ours = spec.build("torch")
    ours.load_state_dict(native.state_dict())

    def run(module: nn.Module) -> Any:
        if module is ours:
            return module(x.nan_to_num(), hx, lengths)
        output, final = module(packed, hx)
        return pad_packed_sequence(output, spec.batch_first)[0], final

    norms = []
    for module in (native, ours):
        biases = [p for name, p in module.named_parameters() if name.startswith("bias")]
        weights = [p for name, p in module.named_parameters() if not name.startswith("bias")]
        groups: list[dict[str, Any]] = [{"params": weights, "weight_decay": 0.5}, {"params": biases}]
        optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=0.05, weight_decay=0)
        for _ in range(3):
            optimizer.zero_grad()
            total(run(module)).backward()
            norms.append(nn.utils.clip_grad_norm_(module.parameters(), 0.5))
            optimizer.step()
    assert min(norms) > 0.5
    torch.testing.assert_close(norms[3:], norms[:3], rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.state_dict(), native.state_dict(), rtol=1e-5, atol=1e-5)


@each_and_reset_before
def test_autocast_trains(spec: RecurrentSpec) -> None:
    module, (x, hx) = spec.build("torch", seed=0), batch(spec)
    total(module(x, hx, LENGTHS)).backward()
    expected = gradients(module)
    module.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        try:
            native = getattr(nn, spec.kind)(3, 4, batch_first=spec.batch_first)(x)[0]
        except RuntimeError as error:  # on some processors oneDNN has no LSTM in bfloat16
            pytest.skip(f"torch's own layer can't do it here: {error}")
        result = module(x, hx, LENGTHS)
    assert result[0].dtype == native.dtype  # torch 2.13 keeps a GRU on the CPU in float32
    total(result).backward()
    for name, gradient in gradients(module).items():
        scale = expected[name].abs().max().item()
        torch.testing.assert_close(gradient, expected[name], rtol=0.1, atol=0.1 * scale, msg=name)


quantised_model: Any = quantize_dynamic
mappings: Any = get_default_dynamic_quant_module_mappings
MAPPING = {**mappings(), Recurrent: DynamicQuantized}


X = torch.ones(5, 3, 3)
MISTAKES: dict[str, tuple[Any, ...]] = {
    "above T": (X, None, [1, 6, 0]),
    "words": (X, None, ["a", 0, 1]),
    "nested": (X, None, [[1], [2, 3]]),
    "floats": (X, None, [1.0, 0.0, 1.0]),
    "too few": (X, None, torch.tensor([1, 2])),
    "float64": (X.double(), None, None),
    "one state of an LSTM": (X, torch.zeros(4, 3, 4), None),
}


class Tagger(nn.Module):
    def __init__(self, layers: nn.Module, width: int) -> None:
        super().__init__()
        self.layers = layers
        self.head = nn.Linear(width, 2)

    def forward(self, *arguments: Any) -> Any:
        return self.head(self.layers(*arguments)[0])


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.*are deprecated:UserWarning")
class TestDynamicQuantisation:
    @each
    def test_by_default_the_layer_stays_as_it_is(self, spec: RecurrentSpec) -> None:
        module, (x, hx) = spec.build("torch", seed=0), batch(spec)
        model = quantised_model(Tagger(module, 4 * spec.num_directions), {nn.GRU, nn.LSTM, nn.RNN, nn.Linear})
        assert "DynamicQuantizedLinear" in repr(model)
        torch.testing.assert_close(model.layers(x, hx, LENGTHS), module(x, hx, LENGTHS), rtol=0, atol=0)

    @pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=str)
    @pytest.mark.parametrize("spec", [*SPECS[1:], GRUSpec(3, 4, bias=False, reverse=True)], ids=repr)
    def test_with_a_mapping_it_is_quantised(self, spec: RecurrentSpec, dtype: torch.dtype) -> None:
        module, (x, hx) = spec.build("torch", seed=0), batch(spec)
        model = quantised_model(nn.Sequential(module), {Recurrent}, dtype=dtype, mapping=MAPPING)
        quantised = model[0]
        assert isinstance(quantised, DynamicQuantized)
        assert not list(quantised.parameters())
        expected = module(x, hx, LENGTHS)
        actual = quantised(x, hx, LENGTHS)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0.05)
        assert not torch.equal(actual[0], expected[0])
        for part, initial in zip(flat(actual)[1:], hx if isinstance(hx, tuple) else (hx,), strict=True):
            assert torch.equal(part[:, 1], initial[:, 1])
        padded = actual[0].swapaxes(0, 1) if spec.batch_first else actual[0]
        assert (padded[torch.arange(5).unsqueeze(1) >= LENGTHS] == 0).all()
        torch.testing.assert_close(quantised(x.nan_to_num()), quantised(x.nan_to_num(), seq_length=[5, 5, 5]))
        resets = torch.tensor([[False, True, False, False, True]] * 3).t()
        given = resets.t() if spec.batch_first else resets
        torch.testing.assert_close(quantised(x, hx, LENGTHS, given), module(x, hx, LENGTHS, given), rtol=0, atol=0.05)
        again = copy.deepcopy(quantised)
        again.load_state_dict(quantised.state_dict())
        torch.testing.assert_close(again(x, hx, LENGTHS), actual, rtol=0, atol=0)
        empty = torch.ones((0, 5, 3) if spec.batch_first else (5, 0, 3))
        assert (
            quantised(empty)[0].shape
            == quantised(empty, seq_length=[])[0].shape
            == (*empty.shape[:2], 4 * spec.num_directions)
        )

    @pytest.mark.parametrize("arguments", MISTAKES.values(), ids=MISTAKES.keys())
    def test_the_same_mistake_raises_the_same_words(self, arguments: tuple[Any, ...]) -> None:
        module = SPECS[2].build("torch", seed=0)
        quantised = quantised_model(nn.Sequential(module), {Recurrent}, mapping=MAPPING)[0]
        raised = []
        for run in (module, quantised):
            with pytest.raises(errors.UnirnnError) as caught:
                run(*arguments)
            raised.append((caught.type, str(caught.value)))
        assert raised[0] == raised[1]

    def test_of_a_parametrised_module(self) -> None:
        module = GRUSpec(3, 4).build("torch", seed=0)
        nn.utils.parametrizations.weight_norm(module, "weight_hh_l0")
        model = nn.ModuleDict({"layers": module})
        quantised = quantised_model(model, {Recurrent}, mapping=MAPPING)["layers"]
        x = torch.linspace(-1, 1, 45).reshape(5, 3, 3)
        torch.testing.assert_close(quantised(x, seq_length=LENGTHS), module(x, seq_length=LENGTHS), rtol=0, atol=0.05)

    @pytest.mark.parametrize("length", [0, 3])
    def test_unbatched(self, length: int) -> None:
        quantised = quantised_model(nn.Sequential(SPECS[2].build("torch", seed=0)), {Recurrent}, mapping=MAPPING)[0]
        x, (h_0, c_0) = torch.ones(5, 3), torch.ones(2, 4, 4)
        output, final = quantised(x, (h_0, c_0), length)
        batched, batched_final = quantised(x.unsqueeze(1), (h_0.unsqueeze(1), c_0.unsqueeze(1)), [length])
        torch.testing.assert_close(output, batched.squeeze(1))
        torch.testing.assert_close(final, tuple(part.squeeze(1) for part in batched_final))
        assert (output[length:] == 0).all()
        assert (output[:length] != 0).all()

    def test_layers_that_torch_cannot_quantise_are_refused(self) -> None:
        words = "torch.s quantisation has no (RNN|LSTM with proj_size=2|GRU with reset_after=False)"
        for spec in (RNNSpec(3, 4), LSTMSpec(3, 4, proj_size=2), RESET_BEFORE):
            with pytest.raises(errors.LimitError, match=words):
                quantised_model(nn.Sequential(spec.build("torch")), {Recurrent}, mapping=MAPPING)
