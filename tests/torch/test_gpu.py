"""Tests that need a GPU, collected only where torch sees one. The conformance suite tests the numbers there."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.export import Dim
from unirnn_torch import dispatch

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, errors

SPECS = [
    RNNSpec(3, 4, nonlinearity="relu", bias=False),
    GRUSpec(3, 4, 2, bidirectional=True, batch_first=True),
    LSTMSpec(3, 4, bidirectional=True),
    LSTMSpec(3, 4, 2, proj_size=2),
]
OPERATORS = SPECS[:3]
"""Those that are operators in a graph."""
each_spec = pytest.mark.parametrize("spec", SPECS)
each_operator = pytest.mark.parametrize("spec", OPERATORS)
pytestmark = [
    pytest.mark.filterwarnings("ignore:Synchronization debug mode"),
    pytest.mark.filterwarnings("ignore:The CUDA Graph is empty"),
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),  # torch's own import of its compiler
]
TOLERANCE: dict[str, Any] = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(autouse=True, params=["dense steps", "rows"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Run lengths in both ways, although the cases are small, and switch TensorFloat-32 off."""
    if request.param == "rows":
        monkeypatch.setattr(dispatch, "WIDE", dict.fromkeys(dispatch.WIDE, 0))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def built(spec: RecurrentSpec, **options: Any) -> Any:
    return spec.build("torch", device="cuda", seed=0, **options)


def batch(spec: RecurrentSpec, steps: int, lengths: list[int]) -> tuple[Tensor, Tensor]:
    shape = (len(lengths), steps, 3) if spec.batch_first else (steps, len(lengths), 3)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1)).cuda()
    return x.requires_grad_(), torch.tensor(lengths, device="cuda")


def flat(result: Any) -> list[Tensor]:
    output, final = result
    return [output, *(final if isinstance(final, tuple) else (final,))]


def gradients(result: Any, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(torch.stack([part.float().square().sum() for part in flat(result)]).sum(), inputs)


@each_spec
def test_lengths_on_the_host_cost_no_synchronisation(spec: RecurrentSpec) -> None:
    gru = built(spec)
    x, ns = batch(spec, 5, [5, 0, 2])
    gru(x, None, [5, 0, 2])  # the first call creates cuDNN's handle
    torch.cuda.set_sync_debug_mode("error")
    try:
        for lengths in (None, [5, 0, 2], torch.tensor([5, 0, 2])):
            gradients(gru(x, None, lengths), x, *gru.parameters())
        with pytest.raises(RuntimeError, match="synchronizing"):
            gru(x, None, ns)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@each_spec
@pytest.mark.parametrize("lengths", [None, [5, 0, 2]])
def test_gradients_in_eval_mode(spec: RecurrentSpec, lengths: list[int] | None) -> None:
    module = built(spec)
    x, _ = batch(spec, 5, [5, 0, 2])
    expected = gradients(module(x, None, lengths), x, *module.parameters())
    module.eval()
    torch.testing.assert_close(gradients(module(x, None, lengths), x, *module.parameters()), expected, **TOLERANCE)


@each_spec
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_dtypes(spec: RecurrentSpec, dtype: str) -> None:
    module, expected = built(spec, dtype=dtype), built(spec)
    x, ns = batch(spec, 5, [5, 0, 2])
    result = module(x.to(getattr(torch, dtype)), None, ns)
    gradients(result, *module.parameters())
    torch.testing.assert_close(result[0].float(), expected(x, None, ns)[0], rtol=0.02, atol=0.02)


@pytest.mark.parametrize(
    ("spec", "compiled"), [*((spec, False) for spec in SPECS), *((spec, True) for spec in OPERATORS)]
)
def test_autocast_gives_the_dtypes_of_the_native_layer(spec: RecurrentSpec, compiled: bool) -> None:
    module = built(spec)
    x, ns = batch(spec, 5, [5, 0, 2])
    run: Any = module
    if compiled:
        torch.compiler.reset()
        run = torch.compile(module, backend="aot_eager", fullgraph=True)
    with torch.autocast("cuda"):
        native = getattr(torch.nn, spec.kind)(**spec.to_kwargs("torch"), device="cuda")
        results, own = flat(run(x, None, ns)), flat(native(x))
    assert [part.dtype for part in results] == [part.dtype for part in own]
    torch.testing.assert_close([r.float() for r in results], flat(module(x, None, ns)), rtol=0.02, atol=0.02)
    assert all(g.isfinite().all() for g in gradients((results[0], tuple(results[1:])), x, *module.parameters()))


@each_operator
@pytest.mark.parametrize("ragged", [False, True])
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_one_graph_trains_with_other_sizes(spec: RecurrentSpec, ragged: bool, backend: str) -> None:
    torch.compiler.reset()
    module = built(spec)
    compiled: Any = torch.compile(module, fullgraph=True, backend=backend, dynamic=True)
    for steps, lengths in ((5, [5, 0, 2]), (7, [0, 3, 7, 1])):
        x, ns = batch(spec, steps, lengths)
        given = (x, None, ns if ragged else None)
        actual, expected = compiled(*given), module(*given)
        torch.testing.assert_close(flat(actual), flat(expected), **TOLERANCE)
        found = [gradients(result, x, *module.parameters()) for result in (actual, expected)]
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@each_operator
def test_compiling_with_cuda_graphs_computes_the_same(spec: RecurrentSpec) -> None:
    torch.compiler.reset()
    module = built(spec)
    compiled: Any = torch.compile(module, fullgraph=True, mode="reduce-overhead")
    for lengths in ([5, 0, 2], [1, 5, 4], [2, 2, 5]):
        x, ns = batch(spec, 5, lengths)
        actual, expected = compiled(x, None, ns), module(x, None, ns)
        torch.testing.assert_close(flat(actual), flat(expected), **TOLERANCE)
        found = [gradients(result, x, *module.parameters()) for result in (actual, expected)]
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)


@each_operator
def test_export_with_any_t_and_b(spec: RecurrentSpec) -> None:
    module = built(spec).eval()
    x, ns = batch(spec, 5, [5, 0, 2])
    shapes = {"input": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "hx": None, "seq_length": {0: Dim.DYNAMIC}}
    exported = torch.export.export(module, (x.detach(), None, ns), dynamic_shapes=shapes).module()
    for steps, lengths in ((5, [5, 0, 2]), (7, [0, 3, 7, 1])):
        x, ns = batch(spec, steps, lengths)
        torch.testing.assert_close(flat(exported(x.detach(), None, ns)), flat(module(x, None, ns)), **TOLERANCE)


@each_operator
def test_a_length_is_checked_in_a_graph_too(spec: RecurrentSpec) -> None:
    torch.compiler.reset()
    module = built(spec)
    compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, _ = batch(spec, 5, [5, 0, 2])
    for run in (module, compiled):
        with pytest.raises(errors.LengthError, match=r"seq_length\[1\]: given 6, expected 0 <= n <= 5"):
            run(x, None, torch.tensor([5, 6, 2], device="cuda"))
    torch.cuda.synchronize()


@each_operator
@pytest.mark.parametrize("hidden_size", [128, 512])
def test_large_stacks_agree_with_the_cpu(spec: RecurrentSpec, hidden_size: int) -> None:
    """At sizes for which cuDNN has special kernels."""
    large = type(spec).from_dict({**spec.to_dict(), "input_size": 64, "hidden_size": hidden_size})
    lengths = [100, 0, 50, 99, 1, 100, 30, 64]
    host, module = large.build("torch", seed=0, device="cpu"), built(large)
    x = torch.randn((8, 100, 64) if large.batch_first else (100, 8, 64)).requires_grad_()
    there = x.detach().cuda().requires_grad_()
    expected, actual = host(x, None, lengths), module(there, None, lengths)
    for part, other in zip(flat(actual), flat(expected), strict=True):
        torch.testing.assert_close(part.cpu(), other, **TOLERANCE)
    for part, other in zip(
        gradients(actual, there, *module.parameters()), gradients(expected, x, *host.parameters()), strict=True
    ):
        torch.testing.assert_close(part.cpu(), other, rtol=1e-3, atol=1e-3 * float(other.abs().max()))


def test_explain_says_what_tf32_does() -> None:
    assert "allow_tf32 = False" in str(unirnn.explain(GRUSpec(3, 4), "torch", "cuda"))
