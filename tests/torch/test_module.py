"""A module that the torch backend builds works everywhere in torch like a native layer."""

import copy
import io
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from nested import flat
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, errors
from unirnn.contract.call import join_state

# a warning of torch about its own layer
pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")

SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4, 2, nonlinearity="relu", dropout=0.5),
    RNNSpec(3, 4, bidirectional=True, bias=False),
    GRUSpec(3, 4, 2, bidirectional=True, batch_first=True, dropout=0.25),
    GRUSpec(3, 4),
    LSTMSpec(3, 4, 2, bidirectional=True, batch_first=True),
    LSTMSpec(3, 4, 2, bidirectional=True, proj_size=2),
]
RESET_BEFORE = GRUSpec(3, 4, 2, bidirectional=True, batch_first=True, dropout=0.25, reset_after=False)
"""torch has no such layer."""
VARIANTS: list[RecurrentSpec] = [
    GRUSpec(3, 4, batch_first=True, reset_after=False),
    GRUSpec(3, 4, 2, reverse=True),
    LSTMSpec(3, 4, proj_size=2, batch_first=True, reverse=True, gate_activation="hard_sigmoid_0.2"),
]
"""Nor such ones."""
each = pytest.mark.parametrize("spec", SPECS, ids=repr)
LENGTHS = [5, 0, 2]


def native(spec: RecurrentSpec) -> Any:
    return getattr(torch.nn, spec.kind)(**spec.to_kwargs("torch"))


def batch(spec: RecurrentSpec) -> tuple[torch.Tensor, Any]:
    torch.manual_seed(1)
    x = torch.randn(3, 5, 3) if spec.batch_first else torch.randn(5, 3, 3)
    return x, join_state([torch.randn(shape) for shape in spec.state_shapes(3).values()])


def assert_equal(actual: Any, expected: Any, tolerance: float = 0.0) -> None:
    for a, b in zip(flat(actual), flat(expected), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def skip_unless_torch_computes_in_bfloat16(spec: RecurrentSpec) -> None:
    """On some processors oneDNN has no LSTM in bfloat16, and torch's own layer raises."""
    if spec in VARIANTS:
        return
    try:
        with torch.autocast("cpu", torch.bfloat16):
            native(spec)(batch(spec)[0])
    except RuntimeError as error:
        pytest.skip(f"torch's own layer can't do it here: {error}")


@each
def test_a_module_has_the_attributes_and_parameters_of_the_native_layer(spec: RecurrentSpec) -> None:
    torch.manual_seed(0)
    theirs = native(spec)
    torch.manual_seed(0)
    ours = spec.build("torch")
    assert isinstance(ours, torch.nn.RNNBase)
    assert not isinstance(ours, (torch.nn.RNN, torch.nn.GRU, torch.nn.LSTM))
    own = {name: value for name, value in vars(theirs).items() if not name.startswith("_")}
    assert {name: getattr(ours, name) for name in own} == own
    for (a, p), (b, q) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert a == b
        torch.testing.assert_close(p, q, rtol=0, atol=0)
    assert next(ours.parameters()).requires_grad


@pytest.mark.parametrize(("kernel", "tolerance"), [("native", 0), ("auto", 1e-6)])
@each
def test_a_dense_call_is_the_native_computation(spec: RecurrentSpec, kernel: str, tolerance: float) -> None:
    x, hx = batch(spec)
    theirs, ours = native(spec), spec.build("torch", kernel=kernel)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    for arguments in ((x,), (x, hx)):
        torch.manual_seed(2)  # dropout is on
        expected = theirs(*arguments)
        torch.manual_seed(2)
        assert_equal(ours(*arguments), expected, tolerance)


@pytest.mark.parametrize(("kernel", "tolerance"), [("native", 0), ("auto", 1e-6), ("reference", 1e-6)])
@each
def test_a_packed_sequence_still_works(spec: RecurrentSpec, kernel: str, tolerance: float) -> None:
    x, hx = batch(spec)
    theirs, ours = native(spec).eval(), spec.build("torch", kernel=kernel).eval()
    ours.load_state_dict(theirs.state_dict())
    packed = pack_padded_sequence(x, torch.tensor([2, 5, 1]), spec.batch_first, enforce_sorted=False)
    actual, actual_final = ours(packed, hx)
    expected, expected_final = theirs(packed, hx)
    padded, _ = pad_packed_sequence(actual, spec.batch_first)
    assert_equal(
        (padded, actual_final), (pad_packed_sequence(expected, spec.batch_first)[0], expected_final), tolerance
    )
    assert_equal(ours(x, hx, [2, 5, 1]), (padded, actual_final), 1e-6)
    sorted_ = pack_padded_sequence(x, torch.tensor([5, 2, 1]), spec.batch_first)
    actual, expected = ((m(sorted_)[0].data, m(sorted_)[1]) for m in (ours, theirs))
    assert_equal(actual, expected, tolerance)


def test_a_packed_sequence_has_its_own_lengths() -> None:
    gru = GRUSpec(3, 4).build("torch")
    packed = pack_padded_sequence(torch.ones(5, 2, 3), torch.tensor([5, 2]))
    with pytest.raises(errors.ArgumentError, match="given with a PackedSequence"):
        gru(packed, seq_length=[5, 2])
    with pytest.raises(errors.ShapeError, match=r"hx: given shape \(1, 3, 4\), expected \(1, 2, 4\)"):
        gru(packed, torch.zeros(1, 3, 4))


@pytest.mark.parametrize("enforce_sorted", [True, False])
@pytest.mark.parametrize(
    ("spec", "kernel"),
    [(RESET_BEFORE, "auto"), *((GRUSpec(3, 4, 2, batch_first=True, reverse=True), k) for k in ("auto", "native"))],
    ids=str,
)
def test_a_packed_sequence_without_a_native_layer(spec: RecurrentSpec, enforce_sorted: bool, kernel: str) -> None:
    gru = spec.build("torch", dtype="float64", seed=0, kernel=kernel).eval()
    x, hx = (part.double() for part in batch(spec))
    lengths = [5, 2, 2] if enforce_sorted else [2, 5, 2]
    packed = pack_padded_sequence(x, torch.tensor(lengths), True, enforce_sorted)
    for state in (None, hx):
        actual, h_n = gru(packed, state)
        torch.testing.assert_close(actual[1:], packed[1:], rtol=0, atol=0)  # its batch sizes and its order
        assert_equal((pad_packed_sequence(actual, True)[0], h_n), gru(x, state, lengths), 1e-12)
    with pytest.raises(errors.ArgumentError, match="given with a PackedSequence"):
        gru(packed, seq_length=lengths)


def test_explain_and_repr_tell_of_a_variant_that_torch_lacks() -> None:
    told = str(unirnn.explain(RESET_BEFORE, "torch"))
    assert "works, with differences" in told
    assert "torch has no GRU with reset_after=False, so the compiled kernels compute it" in told
    on_a_gpu = str(unirnn.explain(RESET_BEFORE, "torch", "gpu"))
    assert "torch has no GRU with reset_after=False, so the reference computes it, step by step" in on_a_gpu
    assert not list(unirnn.explain(GRUSpec(3, 4), "torch"))
    assert repr(GRUSpec(3, 4, 2).build("torch")) == "GRU(3, 4, num_layers=2)"
    gru = RESET_BEFORE.build("torch", seed=0).eval()
    assert repr(gru).endswith("dropout=0.25, bidirectional=True, reset_after=False)")
    reverse = GRUSpec(3, 4, reverse=True, gate_activation="hard_sigmoid")
    assert repr(reverse.build("torch")) == "GRU(3, 4, reverse=True, gate_activation='hard_sigmoid')"
    assert "torch has no GRU with reverse=True, so torch's own layer computes it" in str(
        unirnn.explain(GRUSpec(3, 4, reverse=True), "torch", "gpu")
    )
    theirs = torch.nn.GRU(3, 4, 2, bidirectional=True, batch_first=True).eval()
    theirs.load_state_dict(gru.state_dict(), strict=True)
    x, hx = batch(RESET_BEFORE)
    assert (theirs(x, hx)[0] - gru(x, hx)[0]).abs().max() > 0.01


def test_dropout_between_layers_without_a_native_layer() -> None:
    gru = RESET_BEFORE.build("torch", seed=0)
    x, hx = batch(RESET_BEFORE)
    results = []
    for lengths in (None, [5, 5, 5]):
        torch.manual_seed(2)
        results.append(gru(x, hx, lengths))
    assert_equal(results[0], results[1], 1e-6)
    assert (gru.eval()(x, hx)[0] - results[0][0]).abs().max() > 0.01


@pytest.mark.parametrize("spec", [*SPECS, *VARIANTS], ids=repr)
@pytest.mark.parametrize("seq_length", [None, LENGTHS], ids=["dense", "ragged"])
class TestAsPartOfTorch:
    def test_compile_as_one_graph(self, spec: RecurrentSpec, seq_length: Any) -> None:
        module, (x, hx) = spec.build("torch", seed=0).eval(), batch(spec)
        ns = None if seq_length is None else torch.tensor(seq_length)
        reset()
        compiled: Any = torch.compile(module, fullgraph=True, backend="eager")  # with gradients: in test_operators.py
        assert_equal(compiled(x, hx, ns), module(x, hx, ns), 1e-6)

    def test_copies(self, spec: RecurrentSpec, seq_length: Any) -> None:
        module, (x, hx) = spec.build("torch", seed=0).eval(), batch(spec)
        saved = io.BytesIO()
        torch.save(module.state_dict(), saved)
        saved.seek(0)
        loaded = spec.build("torch").eval()
        loaded.load_state_dict(torch.load(saved, weights_only=True))
        for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), loaded):
            assert_equal(copied(x, hx, seq_length), module(x, hx, seq_length))
            assert unirnn.snapshot(copied) == unirnn.snapshot(module)

    def test_functional_call(self, spec: RecurrentSpec, seq_length: Any) -> None:
        module, (x, hx) = spec.build("torch", seed=0).eval(), batch(spec)
        other = spec.build("torch", seed=1).eval()
        actual = torch.func.functional_call(module, dict(other.named_parameters()), (x, hx, seq_length))
        assert_equal(actual, other(x, hx, seq_length))

    def test_autocast(self, spec: RecurrentSpec, seq_length: Any) -> None:
        skip_unless_torch_computes_in_bfloat16(spec)
        module, (x, hx) = spec.build("torch", seed=0).eval(), batch(spec)
        with torch.autocast("cpu", torch.bfloat16):
            output, _ = module(x, hx, seq_length)
        torch.testing.assert_close(output.float(), module(x, hx, seq_length)[0], rtol=0.05, atol=0.05)

    def test_autocast_of_arrays_in_several_dtypes(self, spec: RecurrentSpec, seq_length: Any) -> None:
        skip_unless_torch_computes_in_bfloat16(spec)
        module, (x, hx) = spec.build("torch", seed=0).eval(), batch(spec)
        narrow = join_state([p.bfloat16() for p in (hx if isinstance(hx, tuple) else (hx,))])
        with torch.autocast("cpu", torch.bfloat16):
            for arguments in ((x, narrow), (x.bfloat16(), hx)):
                results = flat(module(*arguments, seq_length))
                assert all(torch.isfinite(part).all() for part in results)
            with pytest.raises(errors.DTypeError, match="input: given dtype int64, expected a floating one"):
                module(x.long(), hx, seq_length)

    def test_to_and_hooks(self, spec: RecurrentSpec, seq_length: Any) -> None:
        module, (x, hx) = spec.build("torch", seed=0).eval(), batch(spec)
        seen: list[Any] = []
        module.register_forward_hook(lambda _, arguments, result: seen.append(result))
        expected = module(x, hx, seq_length)
        module.to(torch.float64)
        wide = tuple(p.double() for p in hx) if isinstance(hx, tuple) else hx.double()
        assert_equal(tuple_of(module(x.double(), wide, seq_length), torch.float32), expected, 1e-5)
        assert len(seen) == 2


def reset() -> None:
    """Forget compiled code: torch counts recompilations of all modules of a class together."""
    torch.compiler.reset()


MISTAKES_WHILE_COMPILING = {
    "size": ([1, 2], r"seq_length: given shape \(2,\), expected \(3,\)"),
    "rank": ([[1, 2, 3]], r"seq_length: given shape \(1, 3\), expected \(3,\)"),
    "dtype": ([1.0, 2.0, 3.0], "seq_length: given dtype float32, expected integers"),
    "bools": ([True, False, True], "seq_length: given dtype bool, expected integers"),
}


@pytest.mark.parametrize("mistake", MISTAKES_WHILE_COMPILING.values(), ids=MISTAKES_WHILE_COMPILING.keys())
def test_lengths_with_a_mistake_in_a_compiled_module(mistake: tuple[Any, str]) -> None:
    given, words = mistake
    gru = GRUSpec(3, 4).build("torch", seed=0)
    reset()
    compiled: Any = torch.compile(gru, fullgraph=True, backend="eager")
    with pytest.raises(Exception, match=words):
        compiled(torch.ones(5, 3, 3), None, torch.tensor(given))


def test_a_list_of_lengths_in_a_compiled_module() -> None:
    gru = GRUSpec(3, 4).build("torch", seed=0)
    reset()
    compiled: Any = torch.compile(gru, fullgraph=True, backend="eager")
    x = torch.ones(5, 3, 3)
    assert_equal(compiled(x, None, LENGTHS), gru(x, None, LENGTHS), 1e-6)


def tuple_of(result: Any, dtype: torch.dtype) -> Any:
    output, *final = (part.to(dtype) for part in flat(result))
    return output, join_state(final)


def test_device_and_dtype_as_objects_of_torch() -> None:
    gru = GRUSpec(3, 4).build("torch", device=torch.device("cpu"), dtype=torch.float64)
    assert gru.weight_ih_l0.dtype == torch.float64
    with pytest.raises(errors.DeviceError, match="device: given 'cuda:7', not present; torch sees cpu"):
        GRUSpec(3, 4).build("torch", device=torch.device("cuda:7"))


def test_dropout_after_one_layer_warns_once() -> None:
    with pytest.warns(UserWarning, match="dropout=0.5 has no effect") as caught:
        gru = GRUSpec(3, 4, dropout=0.5).build("torch")
    assert len(caught) == 1
    assert gru.dropout == 0.5


def test_a_parametrized_weight_is_used_and_trained() -> None:
    gru = GRUSpec(3, 4).build("torch", seed=0)
    x = torch.linspace(-1, 1, 30).reshape(5, 2, 3)
    before, taken = gru(x)[0], unirnn.snapshot(gru)
    torch.nn.utils.parametrizations.weight_norm(gru, "weight_hh_l0", dim=0)
    torch.testing.assert_close(gru(x)[0], before)
    np.testing.assert_allclose(unirnn.snapshot(gru).weights["weight_hh_l0"], taken.weights["weight_hh_l0"], rtol=1e-6)
    magnitude = dict(gru.named_parameters())["parametrizations.weight_hh_l0.original0"]
    with torch.no_grad():
        magnitude *= 2
    changed = gru(x)[0]
    assert not torch.allclose(changed, before)
    changed.sum().backward()
    assert magnitude.grad is not None
    assert magnitude.grad.abs().sum() > 0
