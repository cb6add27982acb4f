"""torch's CPU kernels against the reference, their operators, and the route of a call."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import array_api_compat.torch as xp
import onnx
import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nested import flat
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.export import Dim
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from unirnn_torch import dispatch, native, operators
from unirnn_torch.dispatch import Route

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, errors, reference
from unirnn.contract.call import Batch, join_state
from unirnn.kernels.compiled import cell_of

KINDS: dict[str, tuple[type[RecurrentSpec], dict[str, Any]]] = {
    "RNN-tanh": (RNNSpec, {}),
    "RNN-relu": (RNNSpec, {"nonlinearity": "relu"}),
    "GRU": (GRUSpec, {}),
    "LSTM": (LSTMSpec, {}),
}
EVERY_KIND = {
    **KINDS,
    "GRU-reset-before": (GRUSpec, {"reset_after": False, "gate_activation": "hard_sigmoid"}),
    "LSTM-reverse": (LSTMSpec, {"reverse": True, "gate_activation": "hard_sigmoid_0.2"}),
}
"""With some that torch does not have."""
each_kind = pytest.mark.parametrize("kind", KINDS)
every_kind = pytest.mark.parametrize("kind", EVERY_KIND)
each_operator = pytest.mark.parametrize("kernel", ["compiled", "native"])
RESET_BEFORE = GRUSpec(3, 4, reset_after=False)
"""torch has no such layer."""


@pytest.fixture
def as_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a native layer as one operator in a graph, as on a GPU."""
    decide = dispatch.route

    def route(kernel: str, *arguments: Any, **options: Any) -> Route:
        return Route.NATIVE_OPERATORS if kernel == "native" else decide(kernel, *arguments, **options)

    monkeypatch.setattr(dispatch, "route", route)


def spec_of(kind: str, *sizes: int, **options: Any) -> RecurrentSpec:
    cls: Any
    cls, own = EVERY_KIND[kind]
    if "reverse" in own:
        options = {**options, "bidirectional": False}
    spec: RecurrentSpec = cls(*sizes, **own, **options)
    return spec


def batch(spec: RecurrentSpec, steps: int, lengths: list[int], **options: Any) -> tuple[Tensor, Any, Tensor]:
    """An input with NaN in its padding, a state, and the lengths."""
    generator = torch.Generator().manual_seed(1)
    ns = torch.tensor(lengths)
    x = torch.randn(steps, len(lengths), spec.input_size, generator=generator, **options)
    x[torch.arange(steps).unsqueeze(1) >= ns] = torch.nan
    states = [torch.randn(s, generator=generator, **options) for s in spec.state_shapes(len(lengths)).values()]
    return (x.transpose(0, 1) if spec.batch_first else x), join_state(states), ns


def gradients(result: Any, module: nn.Module, *inputs: Tensor) -> tuple[Tensor, ...]:
    total = torch.stack([part.square().sum() for part in flat(result)]).sum()
    return torch.autograd.grad(total, [*inputs, *module.parameters()])


# ---- numbers -------------------------------------------------------------------------------------


@every_kind
@settings(max_examples=25)
@given(data=st.data())
def test_random_layers_against_the_reference(kind: str, data: st.DataObject) -> None:
    steps, batch_size = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 5))
    lengths = data.draw(st.none() | st.lists(st.integers(0, steps), min_size=batch_size, max_size=batch_size))
    spec = spec_of(
        kind,
        data.draw(st.integers(1, 4)),
        data.draw(st.integers(1, 5)),
        data.draw(st.integers(1, 2)),
        bias=data.draw(st.booleans()),
        batch_first=data.draw(st.booleans()),
        bidirectional=data.draw(st.booleans()),
    )
    module = spec.build("torch", dtype="float64", seed=data.draw(st.integers(0, 99)), kernel="compiled")
    x, hx, ns = batch(spec, steps, [steps] * batch_size if lengths is None else lengths, dtype=torch.float64)
    leaves = [part.requires_grad_() for part in (x, *(hx if isinstance(hx, tuple) else (hx,)))]
    weights = dict(module.named_parameters())
    time_major = x.transpose(0, 1) if spec.batch_first else x
    arguments = Batch(time_major, tuple(leaves[1:]), None if lengths is None else ns)
    expected = reference.recurrent(xp, spec, weights, arguments)
    if spec.batch_first:
        expected = expected[0].transpose(0, 1), expected[1]
    actual = module(x, hx, None if lengths is None else ns)
    assert [part.shape for part in flat(actual)] == [part.shape for part in flat(expected)]
    torch.testing.assert_close(flat(actual), flat(expected), rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        inferred = module(x, hx, None if lengths is None else ns)
    torch.testing.assert_close(flat(inferred), flat(actual), rtol=0, atol=0)
    found, wanted = (gradients(result, module, *leaves) for result in (actual, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


@every_kind
def test_results_do_not_depend_on_the_number_of_threads(kind: str) -> None:
    """The results are equal bit for bit; the layer is large enough for three threads."""
    module = spec_of(kind, 24, 40, bidirectional=True).build("torch", seed=0, kernel="compiled")
    x, hx, ns = batch(module.spec, 80, [80, 0, 77, 3, *range(40, 80)])
    found = []
    before = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            leaf = x.detach().requires_grad_()
            result = module(leaf, hx, ns)
            found.append([*flat(result), *gradients(result, module, leaf)])
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))


@every_kind
def test_changed_weights_are_used_at_once(kind: str) -> None:
    spec = spec_of(kind, 3, 4, 2)
    module = spec.build("torch", seed=0, kernel="compiled")
    reference = spec.build("torch", seed=0, kernel="reference")
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (module, reference)]
    x, hx, ns = batch(spec, 5, [5, 0, 2])

    def step() -> None:
        for m, optimizer in zip((module, reference), optimizers, strict=True):
            optimizer.zero_grad()
            m(x, hx, ns)[0].square().sum().backward()
            optimizer.step()

    def set_to_zero() -> None:
        with torch.no_grad():
            for m in (module, reference):
                m.weight_hh_l1.zero_()
                m.bias_ih_l0.data.add_(1)

    def load() -> None:
        other = spec.build("torch", seed=1).state_dict()
        for m in (module, reference):
            m.load_state_dict(other)

    for change in (step, set_to_zero, load, step):
        change()
        torch.testing.assert_close(flat(module(x, hx, ns)), flat(reference(x, hx, ns)))
        with torch.no_grad():
            torch.testing.assert_close(flat(module(x, hx, ns)), flat(reference(x, hx, ns)))


@pytest.mark.parametrize("grad", [True, False])
@every_kind
def test_inputs_in_any_memory_layout_give_the_same_results(kind: str, grad: bool) -> None:
    """Views with any strides, with repeated steps, and with lazily negated numbers."""
    module = spec_of(kind, 3, 4, bidirectional=True).build("torch", dtype="float64", seed=0, kernel="compiled")
    x, hx, _ = batch(module.spec, 5, [5, 5], dtype=torch.float64)
    states = hx if isinstance(hx, tuple) else (hx,)
    halves = torch.complex(torch.zeros_like(x), x)
    views = [
        x.permute(2, 1, 0).contiguous().permute(2, 1, 0),
        torch.cat((x, x), dim=2)[:, :, 3:],
        torch.stack((x, x), dim=3)[..., 1],
        x.repeat_interleave(2, dim=0)[::2],
        -halves.conj().imag,
        halves.conj().imag.neg(),
        x[:1].expand(5, 2, 3),
    ]
    strided = join_state([torch.stack((part, part), dim=3)[..., 0] for part in states])
    with torch.set_grad_enabled(grad):
        for view in views:
            expected = module(view.resolve_neg().clone(memory_format=torch.contiguous_format), hx, [5, 2])
            torch.testing.assert_close(flat(module(view, strided, [5, 2])), flat(expected), rtol=0, atol=0)
    negated = halves.conj().imag
    assert negated.is_neg()
    torch.testing.assert_close(flat(module(negated)), flat(module(negated.resolve_neg())), rtol=0, atol=0)


@pytest.mark.parametrize("grad", [True, False])
def test_weights_that_do_not_fit_are_refused(grad: bool) -> None:
    """The kernels read memory, so a wrong size must never reach them."""
    gru, x = GRUSpec(3, 4).build("torch", seed=0), torch.ones(5, 2, 3)
    with torch.set_grad_enabled(grad):
        for name, given, error in (
            ("weight_hh_l0", torch.zeros(3, 4), errors.ShapeError),
            ("bias_ih_l0", torch.zeros(4), errors.ShapeError),
            ("weight_ih_l0", torch.zeros(12, 3, dtype=torch.float64), errors.DTypeError),
            ("bias_hh_l0", torch.zeros(12, dtype=torch.float64), errors.DTypeError),
        ):
            with pytest.raises((error, errors.DTypeError)):
                torch.func.functional_call(gru, {name: given}, (x,))


@pytest.mark.parametrize("lengths", [[3, 6, 0, 1], [0, 0, 0, 0], [2, 2, 2, 2]], ids=str)
@pytest.mark.parametrize("batch_first", [False, True])
@each_kind
def test_valid_steps_equal_dense_steps(
    kind: str, batch_first: bool, lengths: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A native call skips the padding in inference, and on a GPU in training too."""
    spec = spec_of(kind, 3, 4, 2, bidirectional=True, batch_first=batch_first)
    module = spec.build("torch", dtype="float64", seed=0, kernel="native")
    x, hx, ns = batch(spec, 6, lengths, dtype=torch.float64)
    x.requires_grad_()
    for state in (None, hx):
        expected = module(x, state, ns)
        wanted = gradients(expected, module, x)
        with torch.no_grad():
            torch.testing.assert_close(flat(module(x, state, ns)), flat(expected))
            unbatched = module(x.select(int(not batch_first), 0), None, lengths[0])
        torch.testing.assert_close(unbatched[0], module(x, None, ns)[0].select(int(not batch_first), 0))
        with monkeypatch.context() as as_on_a_gpu:
            as_on_a_gpu.setattr(dispatch, "valid_steps_are_faster", lambda *_, **__: True)
            actual = module(x, state, ns)
        torch.testing.assert_close(flat(actual), flat(expected))
        torch.testing.assert_close(gradients(actual, module, x), wanted)


@every_kind
@pytest.mark.parametrize("lengths", [None, [3, 0, 2]], ids=str)
def test_second_derivatives(kind: str, lengths: list[int] | None) -> None:
    spec = spec_of(kind, 2, 2, bidirectional=True)
    module = spec.build("torch", dtype="float64", seed=0, kernel="compiled")
    x, hx, _ = batch(spec, 3, [3, 3, 3], dtype=torch.float64)
    states = hx if isinstance(hx, tuple) else (hx,)
    names = list(dict(module.named_parameters()))

    def run(x: Tensor, *others: Tensor) -> list[Tensor]:
        weights = dict(zip(names, others[len(states) :], strict=True))
        return flat(torch.func.functional_call(module, weights, (x, join_state(others[: len(states)]), lengths)))

    inputs = [part.detach().requires_grad_() for part in (x, *states, *module.parameters())]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@pytest.mark.parametrize("kernel", ["auto", "native"])
@each_kind
def test_gradient_penalty(kind: str, kernel: str) -> None:
    """The dtype is float32, in which oneDNN runs a native LSTM."""
    spec = spec_of(kind, 3, 4)
    x, _, _ = batch(spec, 20, [20, 20])
    penalties = []
    for built in (spec.build("torch", seed=0, kernel=kernel), spec.build("torch", dtype="float64", seed=0)):
        leaf = x.to(built.weight_ih_l0.dtype).requires_grad_()
        (by_x,) = torch.autograd.grad(built(leaf)[0].square().sum(), leaf, create_graph=True)
        penalties.append(torch.autograd.grad(by_x.square().sum(), list(built.parameters())[:2]))
    for actual, expected in zip(*penalties, strict=True):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_second_derivatives_of_shared_weights() -> None:
    gru = GRUSpec(2, 2).build("torch", dtype="float64", seed=0)
    bias = gru.bias_ih_l0.detach().clone().requires_grad_()

    def run(bias: Tensor) -> Tensor:
        weights = {"bias_ih_l0": bias, "bias_hh_l0": bias}
        result: Tensor = torch.func.functional_call(gru, weights, (torch.ones(3, 1, 2, dtype=torch.float64),))[0]
        return result

    assert torch.autograd.gradgradcheck(run, bias)


def test_gradients_of_some_arguments_only() -> None:
    spec = LSTMSpec(3, 4, 2)
    module = spec.build("torch", seed=0).requires_grad_(False)
    x, hx, ns = batch(spec, 5, [5, 0, 2])
    x.requires_grad_()
    (d_x,) = torch.autograd.grad(module(x, hx, ns)[1][1].sum(), x)  # of c_n alone
    module.weight_hh_l0.requires_grad_()
    module(x.detach(), hx, ns)[1][1].sum().backward()
    assert module.weight_hh_l0.grad is not None
    assert module.weight_ih_l0.grad is None
    reference = spec.build("torch", seed=0, kernel="native")
    torch.testing.assert_close(torch.autograd.grad(reference(x, hx, ns)[1][1].sum(), x)[0], d_x)
    reference(x, hx, ns)[1][1].sum().backward()
    torch.testing.assert_close(module.weight_hh_l0.grad, reference.weight_hh_l0.grad)


def test_an_output_changed_in_place() -> None:
    """The backward pass does not read the caller's output."""
    for lengths in (None, [5, 0, 2]):
        found: list[Tensor] = []
        for inplace in (True, False):
            gru = GRUSpec(3, 4).build("torch", seed=0)
            x, hx, _ = batch(gru.spec, 5, [5, 5, 5])
            output = nn.functional.relu(gru(x, hx, lengths)[0], inplace=inplace)
            found += torch.autograd.grad(output.square().sum(), [gru.weight_hh_l0])
        torch.testing.assert_close(found[0], found[1])


# ---- as an operator ------------------------------------------------------------------------------


@each_operator
@every_kind
def test_operators_pass_opcheck(kind: str, kernel: str) -> None:
    spec = spec_of(kind, 3, 4)
    module = spec.build("torch", seed=0)
    x, hx, ns = batch(spec, 5, [5, 0, 2])
    operator: Any = operators._OPERATORS[cell_of(spec)]
    states = [part[0] for part in (hx if isinstance(hx, tuple) else (hx,))]
    weights, resets = (
        [*module.parameters(), *([None] if spec.kind == "LSTM" else [])],
        torch.arange(15).reshape(5, 3) % 4 == 2,
    )
    # A ragged call that prepares a backward pass leaves part of its buffer uninitialised, which opcheck would compare.
    torch.library.opcheck(operator, (x.nan_to_num(), None, None, *states, *weights, True, kernel, True))
    torch.library.opcheck(
        operator, (x, ns, resets, *states, *[w if w is None else w.detach() for w in weights], True, kernel, False)
    )


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("kind", "kernel"), [*((kind, "compiled") for kind in EVERY_KIND), *((kind, "native") for kind in KINDS)]
)
def test_gradients_of_a_graph_traced_without_gradients(kind: str, kernel: str) -> None:
    spec = spec_of(kind, 3, 4)
    module = spec.build("torch", dtype="float64", seed=0, kernel=kernel)
    x, hx, ns = batch(spec, 5, [5, 0, 2], dtype=torch.float64)
    with torch.no_grad():
        exported = torch.export.export(module, (x, hx, ns)).module()
    actual, expected = (gradients(run(x, hx, ns), run) for run in (exported, module))
    torch.testing.assert_close(sorted_by_shape(actual), sorted_by_shape(expected))


def sorted_by_shape(tensors: tuple[Tensor, ...]) -> list[Tensor]:
    return sorted(tensors, key=lambda t: (t.shape, float(t.detach().sum())))


def test_a_training_step_imports_neither_the_compiler_nor_the_exporter() -> None:
    """These imports take seconds and 50 ms; `torch.library.custom_op` and `torch.onnx.is_in_onnx_export` cause them."""
    code = (
        "import sys, torch, unirnn\n"
        "gru = unirnn.GRUSpec(3, 4).build('torch', seed=0, kernel='compiled')\n"
        "gru(torch.ones(5, 2, 3), None, [5, 2])[0].sum().backward()\n"
        "assert not {'torch._dynamo', 'torch.onnx'}.intersection(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("spec", "starts", "size"),
    [
        (GRUSpec(3, 5), [0, 45, 120, 135], 150),
        (GRUSpec(3, 5, bias=False), [0, 45], 150),
        (LSTMSpec(3, 5, proj_size=2), [0, 60, 110, 130, 100], 150),
        (LSTMSpec(3, 5, proj_size=2, bias=False), [0, 60, 100], 150),
    ],
)
def test_flattened_weights_have_cudnns_layout(spec: RecurrentSpec, starts: list[int], size: int) -> None:
    # The expected offsets come from torch.nn.RNNBase.flatten_parameters on an H100.
    weights = [w.detach() for w in spec.build("torch", seed=0).parameters()]
    found = native._in_one_piece(weights)
    assert [w.storage_offset() for w in found] == starts
    assert {w.untyped_storage().nbytes() for w in found} == {4 * size}
    assert all(torch.equal(one, other) for one, other in zip(found, weights, strict=True))


class Passing(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("kernel", ["auto", "native"])
@pytest.mark.parametrize("kind", ["GRU", "LSTM"])
def test_the_backward_pass_of_a_graph_runs_under_a_dispatch_mode(kind: str, kernel: str) -> None:
    torch.compiler.reset()
    module = spec_of(kind, 3, 4).build("torch", seed=0, kernel=kernel)
    compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
    x, _, ns = batch(module.spec, 5, [5, 0, 2])
    expected = gradients(module(x, None, ns), module)
    result = compiled(x, None, ns)
    with Passing():  # type: ignore[no-untyped-call]
        torch.testing.assert_close(gradients(result, module), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # by torch's own forward mode
@pytest.mark.parametrize(("kind", "kernel"), [("GRU", "auto"), *((kind, "native") for kind in KINDS)])
def test_compiled_transforms(kind: str, kernel: str) -> None:
    module = spec_of(kind, 3, 4).build("torch", seed=0, kernel=kernel)
    x = torch.randn(5, 3, 3)

    def gradient(x: Tensor) -> Tensor:
        found: Tensor = torch.func.grad(lambda x: module(x)[0].sum())(x)
        return found

    def tangent(x: Tensor) -> Tensor:
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))  # type: ignore[no-untyped-call]
            output: Tensor = forward_ad.unpack_dual(module(dual)[0]).tangent  # type: ignore[no-untyped-call]
        return output

    functions = (gradient, tangent) if kind != "LSTM" else (gradient,)  # torch's LSTM has no forward-mode gradients
    for function in functions:
        expected = function(x)
        torch.compiler.reset()
        is_one_graph = kernel == "native" and function is gradient
        compiled: Any = torch.compile(function, backend="aot_eager", fullgraph=is_one_graph)
        torch.testing.assert_close(compiled(x), expected)
    torch.compiler.reset()


DYNAMIC: Any = Dim.DYNAMIC
each_traced = pytest.mark.parametrize(
    ("spec", "ragged"),
    [
        (RNNSpec(3, 4, nonlinearity="relu", bias=False), True),
        (GRUSpec(3, 4, 2, bidirectional=True, batch_first=True), True),
        (LSTMSpec(3, 4, bidirectional=True), True),
        (LSTMSpec(3, 4), False),
        (GRUSpec(3, 4, 2, bidirectional=True, reset_after=False), True),
        (GRUSpec(3, 4, reverse=True, gate_activation="hard_sigmoid"), True),
        (LSTMSpec(3, 4, bidirectional=True, proj_size=2), True),
        (LSTMSpec(3, 4, reverse=True, proj_size=2, gate_activation="hard_sigmoid_0.2"), False),
    ],
    ids=["RNN", "GRU", "LSTM", "LSTM-dense", "GRU-reset-before", "GRU-reverse", "LSTM-projected", "LSTM-of-all"],
)


def shapes(spec: RecurrentSpec, ragged: bool) -> Any:
    state = ({1: DYNAMIC}, {1: DYNAMIC}) if spec.kind == "LSTM" else {1: DYNAMIC}
    return {"input": {0: DYNAMIC, 1: DYNAMIC}, "hx": state, "seq_length": {0: DYNAMIC} if ragged else None}


def arguments(spec: RecurrentSpec, ragged: bool, steps: int, lengths: list[int]) -> tuple[Tensor, Any, Tensor | None]:
    x, hx, ns = batch(spec, steps, lengths)
    return (x, hx, ns) if ragged else (x.nan_to_num(), hx, None)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize(
    ("spec", "ragged", "kernel"),
    [
        (RNNSpec(3, 4, nonlinearity="relu", bias=False), True, "native"),
        (GRUSpec(3, 4, 2, bidirectional=True, batch_first=True), True, "auto"),
        (LSTMSpec(3, 4, bidirectional=True), True, "native"),
        (LSTMSpec(3, 4), False, "auto"),
        (GRUSpec(3, 4, 2, bidirectional=True, reset_after=False), True, "auto"),
    ],
    ids=["RNN-native", "GRU-auto", "LSTM-native", "LSTM-auto-dense", "GRU-reset-before"],
)
def test_one_graph_trains_with_other_sizes(spec: RecurrentSpec, ragged: bool, kernel: str) -> None:
    torch.compiler.reset()
    module, reference = spec.build("torch", seed=0, kernel=kernel), spec.build("torch", seed=0, kernel="reference")
    compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for steps, lengths in ((5, [5, 0, 2]), (7, [0, 3, 7, 1])):
        given = arguments(spec, ragged, steps, lengths)
        actual, expected = compiled(*given), reference(*given)
        torch.testing.assert_close(flat(actual), flat(expected))
        torch.testing.assert_close(gradients(actual, module), gradients(expected, reference), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("kernel", ["auto", "native"])
@each_traced
def test_export_with_any_t_and_b(spec: RecurrentSpec, ragged: bool, kernel: str) -> None:
    if kernel == "native" and not dispatch.has_native(spec):
        pytest.skip("torch has no such layer")
    module = spec.build("torch", seed=0, kernel=kernel).eval()
    given = arguments(spec, ragged, 5, [5, 0, 2])
    exported = torch.export.export(module, given, dynamic_shapes=shapes(spec, ragged)).module()
    for steps, lengths in ((5, [5, 0, 2]), (7, [0, 3, 7, 1])):
        given = arguments(spec, ragged, steps, lengths)
        torch.testing.assert_close(exported(*given), module(*given))


@pytest.mark.usefixtures("as_on_a_gpu")
@pytest.mark.parametrize("kernel", ["auto", "native"])
def test_lengths_in_a_graph_are_checked_when_it_runs(kernel: str) -> None:
    torch.compiler.reset()
    gru = GRUSpec(3, 4).build("torch", seed=0, kernel=kernel)
    compiled: Any = torch.compile(gru, fullgraph=True, backend="aot_eager")
    x = torch.ones(5, 2, 3)
    exported = torch.export.export(gru, (x, None, torch.tensor([5, 2]))).module()
    for run in (compiled, exported):
        run(x, None, torch.tensor([5, 0]))
        for value in (-1, 6):
            with pytest.raises(errors.LengthError, match=rf"seq_length\[1\]: given {value}, expected 0 <= n <= 5"):
                run(x, None, torch.tensor([5, value]))


@pytest.mark.filterwarnings(
    r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning"
)  # the exporter's own
@each_traced
def test_onnx_export_has_one_node_per_layer_and_any_t_and_b(spec: RecurrentSpec, ragged: bool, tmp_path: Path) -> None:
    module, path = spec.build("torch", seed=0).eval(), tmp_path / "layer.onnx"
    given = arguments(spec, ragged, 5, [5, 0, 2])
    torch.onnx.export(module, given, path, dynamo=True, verbose=False, dynamic_shapes=shapes(spec, ragged))
    nodes = [node for node in onnx.load(path).graph.node if node.op_type == spec.kind]
    assert len(nodes) == spec.num_layers
    assert all(bool(node.input[4]) == ragged for node in nodes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    for steps, lengths in ((5, [5, 0, 2]), (7, [0, 3, 7, 1])):
        given = arguments(spec, ragged, steps, lengths)
        arrays = [part.numpy() for part in (*flat(given[:2]), given[2]) if part is not None]
        results = session.run(None, dict(zip(names, arrays, strict=True)))
        torch.testing.assert_close([torch.from_numpy(array) for array in results], flat(module(*given)))


# ---- the route -----------------------------------------------------------------------------------

REFUSED: dict[str, tuple[RecurrentSpec, dict[str, Any], type[Exception], str]] = {
    "no such kernel": (
        GRUSpec(3, 4),
        {"kernel": "fast"},
        errors.ArgumentError,
        "kernel: given 'fast', expected one of 'auto', 'compiled', 'native', 'reference'",
    ),
    "half precision": (
        GRUSpec(3, 4),
        {"kernel": "compiled", "dtype": "bfloat16"},
        errors.LimitError,
        "given 'compiled', but the compiled kernel computes in float32, float64, not in bfloat16; build with 'auto'",
    ),
    "native, of a variant that torch lacks": (
        RESET_BEFORE,
        {"kernel": "native"},
        errors.LimitError,
        "kernel: given 'native', but torch has no GRU with reset_after=False; build with 'auto'",
    ),
}


@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED.keys())
def test_a_build_with_an_unsupported_kernel_is_refused(
    case: tuple[RecurrentSpec, dict[str, Any], type[Exception], str],
) -> None:
    spec, options, error, words = case
    with pytest.raises(error) as caught:
        spec.build("torch", **options)
    assert words in str(caught.value)


def test_a_gpu_has_no_compiled_kernel() -> None:
    with pytest.raises(errors.LimitError, match="the compiled kernel runs on cpu only, not on gpu"):
        dispatch.check_build("compiled", GRUSpec(3, 4), "gpu", "float32")
    assert [kernel.name for kernel in unirnn.explain(GRUSpec(3, 4), "torch", "gpu").kernels] == ["native", "reference"]


# torch.func.jvp uses torch.jit.script
ignore_jit_script_warning = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@ignore_jit_script_warning
def test_a_call_that_the_named_kernel_does_not_support_is_refused() -> None:
    gru, x = GRUSpec(3, 4).build("torch", seed=0, kernel="compiled"), torch.ones(5, 2, 3)
    with (
        torch.autocast("cpu", torch.bfloat16),
        pytest.raises(errors.LimitError, match="'compiled', but the compiled kernel does not support autocast"),
    ):
        gru(x)
    with pytest.raises(errors.LimitError, match=r"does not support transforms of torch\.func"):
        torch.func.jvp(lambda x: gru(x)[0], (x,), (x,))
    with pytest.raises(errors.LimitError, match="not in bfloat16"):
        gru.bfloat16()(x.bfloat16())


@ignore_jit_script_warning
@pytest.mark.parametrize("lengths", [None, [20, 7], torch.tensor([20, 7])], ids=["dense", "ragged", "tensor"])
def test_auto_falls_back_to_native(lengths: Any) -> None:
    auto, native = (GRUSpec(3, 4).build("torch", seed=0, kernel=kernel) for kernel in ("auto", "native"))
    x = torch.linspace(-1, 1, 120).reshape(20, 2, 3)
    weights = dict(auto.named_parameters())

    def results_of(module: nn.Module) -> list[Any]:
        def total(weights: dict[str, Tensor], x: Tensor) -> Tensor:
            result: Tensor = torch.func.functional_call(module, weights, (x, None, lengths))[0].square().sum()
            return result

        with torch.autocast("cpu", torch.bfloat16):
            found = [module(x, None, lengths)[0]]
        found += torch.func.grad(total)(weights, x).values()
        found += torch.func.jvp(lambda x: module(x, None, lengths)[0], (x,), (x,))
        ad: Any = forward_ad
        with ad.dual_level():
            found.append(ad.unpack_dual(module(ad.make_dual(x, x), None, lengths)[0]).tangent)
        return found

    torch.testing.assert_close(results_of(auto), results_of(native), rtol=0, atol=0)


each_under_vmap = pytest.mark.parametrize(
    ("spec", "kernel"),
    [
        *((GRUSpec(3, 4, bidirectional=True), kernel) for kernel in ("auto", "native", "reference")),
        *((LSTMSpec(3, 4, 2, reverse=True), kernel) for kernel in ("auto", "native")),
        (GRUSpec(3, 4, reset_after=False), "auto"),
    ],
    ids=str,
)


@each_under_vmap
def test_per_sample_gradients(spec: RecurrentSpec, kernel: str) -> None:
    module = spec.build("torch", seed=0, kernel=kernel)
    x, lengths = torch.linspace(-1, 1, 54).reshape(3, 6, 1, 3), torch.tensor([[6], [0], [2]])

    def total(weights: dict[str, Tensor], x: Tensor, lengths: Tensor | None = None) -> Tensor:
        result: Tensor = torch.func.functional_call(module, weights, (x, None, lengths))[0].square().sum()
        return result

    weights = dict(module.named_parameters())
    dense = torch.func.vmap(torch.func.grad(total), (None, 0))(weights, x)
    ragged = torch.func.vmap(torch.func.grad(total), (None, 0, 0))(weights, x, lengths)
    for k, sample in enumerate(x):
        for found, n in ((dense, None), (ragged, lengths[k])):
            module.zero_grad()
            module(sample, None, n)[0].square().sum().backward()
            for name, parameter in module.named_parameters():
                torch.testing.assert_close(found[name][k], parameter.grad)
    with pytest.raises(errors.LengthError, match=r"seq_length\[0\]: given 7, expected 0 <= n <= 6"):
        torch.func.vmap(total, (None, 0, 0))(weights, x, lengths + 1)


@each_under_vmap
def test_vmap_over_an_ensemble(spec: RecurrentSpec, kernel: str) -> None:
    modules = [spec.build("torch", seed=seed, kernel=kernel) for seed in (0, 1)]
    x, hx, lengths = batch(spec, 5, [5, 0, 2])
    weights, _ = torch.func.stack_module_state(modules)
    for args in ((x.nan_to_num(), hx), (x, None, lengths)):
        found = torch.vmap(lambda w, args=args: torch.func.functional_call(modules[0], w, args))(weights)
        for k, module in enumerate(modules):
            torch.testing.assert_close([part[k] for part in flat(found)], flat(module(*args)))


def test_the_compiled_kernel_by_name_has_no_vmap() -> None:
    gru = GRUSpec(3, 4).build("torch", seed=0, kernel="compiled")
    with pytest.raises(errors.LimitError, match=r"does not support transforms of torch\.func; build with 'auto'"):
        torch.vmap(lambda x, n: gru(x, None, n)[0])(torch.ones(2, 5, 3), torch.tensor([5, 1]))


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "NO_LIBRARY", "no compiler was found")


@pytest.mark.usefixtures("no_library")
@each_kind
def test_without_the_compiled_kernels(kind: str) -> None:
    """Torch's own layer runs the call; in a graph it runs as one operator, as on a GPU."""
    torch.compiler.reset()
    spec = spec_of(kind, 3, 4, bidirectional=True)
    auto, native = (spec.build("torch", dtype="float64", seed=0, kernel=k) for k in ("auto", "native"))
    x, hx, ns = batch(spec, 5, [5, 0, 2], dtype=torch.float64)
    torch.testing.assert_close(flat(auto(x, hx, ns)), flat(native(x, hx, ns)), rtol=0, atol=0)
    exported = torch.export.export(auto, (x, hx, ns))
    assert sum(node.target is operators._OPERATORS[cell_of(spec)] for node in exported.graph.nodes) == 2
    torch.testing.assert_close(flat(exported.module()(x, hx, ns)), flat(native(x, hx, ns)))
    compiled: Any = torch.compile(auto, fullgraph=True, backend="aot_eager")
    found, expected = gradients(compiled(x, hx, ns), auto), gradients(native(x, hx, ns), native)
    torch.testing.assert_close(found, expected)


@every_kind
def test_a_graph_that_was_made_with_the_compiled_kernels_runs_without_them(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    module = spec_of(kind, 3, 4).build("torch", dtype="float64", seed=0)
    x, hx, ns = batch(module.spec, 5, [5, 0, 2], dtype=torch.float64)
    expected, wanted = module(x, hx, ns), gradients(module(x, hx, ns), module)
    with torch.no_grad():
        exported: Any = torch.export.export(module, (x, hx, ns)).module()
    compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
    trained = compiled(x, hx, ns)
    monkeypatch.setattr(dispatch, "NO_LIBRARY", "no compiler was found")
    torch.testing.assert_close(flat(exported(x, hx, ns)), flat(expected))
    torch.testing.assert_close(gradients(trained, module), wanted)
    torch.testing.assert_close(sorted_by_shape(gradients(exported(x, hx, ns), exported)), sorted_by_shape(wanted))


@pytest.mark.usefixtures("no_library")
def test_the_compiled_kernel_by_name_where_it_is_missing() -> None:
    with pytest.raises(
        errors.LimitError,
        match="'compiled', but the compiled kernels are missing: no compiler was found; build with 'auto'",
    ):
        GRUSpec(3, 4).build("torch", kernel="compiled")
    told = unirnn.explain(GRUSpec(3, 4), "torch").kernels[0]
    assert told.name == "native"
    assert told.when is not None
    assert told.when.startswith("in all cases, since the compiled kernels are missing: no compiler was found, except")
    assert RESET_BEFORE.build("torch", seed=0)(torch.ones(5, 2, 3))[0].shape == (5, 2, 4)


@each_kind
def test_saved_tensors_go_through_autograd(kind: str) -> None:
    """Saved tensors can be packed and unpacked, recomputed, traced, and used for several gradients."""
    module = spec_of(kind, 3, 4, 2, bidirectional=True).build("torch", dtype="float64", seed=0)
    x, _, ns = batch(module.spec, 7, [7, 0, 4], dtype=torch.float64)
    x.requires_grad_()
    expected = gradients(module(x, None, ns), module, x)

    kept: list[Tensor] = []

    def away(tensor: Tensor) -> int:
        kept.append(tensor.detach().clone())
        return len(kept) - 1

    with torch.autograd.graph.saved_tensors_hooks(away, kept.__getitem__):
        result = module(x, None, ns)
    steps = sum(t.shape[0] == x.shape[0] * x.shape[1] for t in kept)
    assert steps == 2 * 2  # layers and directions
    torch.testing.assert_close(gradients(result, module, x), expected)

    again = checkpoint(module, x, None, ns, use_reentrant=False)
    torch.testing.assert_close(gradients(again, module, x), expected)
    output = module(x, None, ns)[0]
    directions = torch.stack([torch.ones_like(output), 2 * output.detach()])
    (batched,) = torch.autograd.grad(output, x, directions, is_grads_batched=True)
    single = module(x, None, ns)[0]
    torch.testing.assert_close(batched[1], torch.autograd.grad(single.square().sum(), x)[0])
    graph = make_fx(lambda x: module(x, None, [7, 0, 4])[0])(x.detach())
    torch.testing.assert_close(graph(x.detach() * 2), module(x * 2, None, ns)[0])
    dense = x.detach().nan_to_num().requires_grad_()
    output, _ = module(dense)
    with torch.no_grad():
        results = flat(module(dense))
    output.sum().backward()
    weights = list(module.parameters())
    # Sharding a model resizes the memory of its tensors.
    for tensor in (dense, output, *results, *weights):
        assert tensor.untyped_storage().resizable()
    for leaf in (dense, *weights):
        assert leaf.grad is not None
        assert leaf.grad.untyped_storage().resizable()


@each_operator
@pytest.mark.parametrize("ns", [None, torch.tensor([7, 0, 4])])
def test_results_of_operators_can_be_resized(ns: Tensor | None, kernel: str) -> None:
    gru = GRUSpec(3, 4).build("torch", seed=0)
    given = (torch.randn(7, 3, 3), ns, None, torch.zeros(3, 4), *(w.detach() for w in gru.parameters()), False, kernel)
    results = torch.ops.unirnn.gru(*given, True)
    gradients = torch.ops.unirnn.gru_backward(*given, results[2], results[0], results[1], True, True)
    for tensor in (*results[:2], *gradients):
        assert tensor.untyped_storage().resizable()


@each_kind
@pytest.mark.parametrize(
    ("kernel", "ns"), [("compiled", None), ("compiled", [7, 0, 4]), ("native", [7, 0, 4])], ids=str
)
def test_a_whole_training_step_can_be_traced(kind: str, kernel: str, ns: list[int] | None) -> None:
    module = spec_of(kind, 3, 4, bidirectional=True).build("torch", dtype="float64", seed=0, kernel=kernel)
    inputs = torch.randn(7, 3, 3, dtype=torch.float64, requires_grad=True), *module.parameters()

    def step(x: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(module(x, None, ns)[0].square().sum(), (x, *inputs[1:]))

    traced = make_fx(step)(inputs[0].detach().clone().requires_grad_())
    torch.testing.assert_close(traced(inputs[0]), step(inputs[0]))


@each_kind
def test_infinite_inputs_raise_no_warning(kind: str) -> None:
    module = spec_of(kind, 3, 4).build("torch", seed=0)
    output, _ = module(torch.full((5, 2, 3), torch.inf), None, [5, 2])
    output.sum().backward()
    assert module.weight_hh_l0.grad is not None


def test_an_input_changed_in_place_is_an_error_in_the_backward_pass() -> None:
    gru = GRUSpec(3, 4).build("torch", seed=0)
    x = torch.ones(20, 2, 3)
    output, _ = gru(x)
    x += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        output.sum().backward()


def test_a_dense_call_of_the_native_kernel_gives_torchs_own_bits() -> None:
    native = nn.GRU(3, 4, 2, bidirectional=True)
    gru = GRUSpec(3, 4, 2, bidirectional=True).build("torch", kernel="native")
    gru.load_state_dict(native.state_dict())
    x = torch.linspace(-1, 1, 360).reshape(40, 3, 3)
    with torch.no_grad():
        assert torch.equal(gru(x)[0], native(x)[0])
        output, h_n = gru(x, seq_length=[30, 30, 30])  # as good as dense
        expected, h = native(x[:30])
        assert torch.equal(output[:30], expected)
        assert torch.equal(h_n, h)
        assert (output[30:] == 0).all()


def test_copies_keep_the_kernel() -> None:
    gru = GRUSpec(3, 4).build("torch", seed=0, kernel="compiled")
    for copied in (copy.deepcopy(gru), pickle.loads(pickle.dumps(gru))):
        assert copied.kernel == "compiled"


def test_explain_says_when_which_kernel_is_taken() -> None:
    assert unirnn.explain(GRUSpec(3, 4), "torch").kernels == (
        ("compiled", "in all cases, except under autocast, torch.func and torch.jit.trace, and in forward mode"),
        ("native", "in all other cases, except under torch.func.vmap"),
        ("reference", "under torch.func.vmap"),
    )
    assert [kernel.name for kernel in unirnn.explain(RESET_BEFORE, "torch").kernels] == ["compiled", "reference"]
    told = unirnn.explain(GRUSpec(3, 4), "torch", dtype="bfloat16").kernels[0]
    assert told == ("native", "in all cases, except under torch.func.vmap")
    (kernel,) = unirnn.explain(RESET_BEFORE, "torch", "gpu").kernels
    assert kernel == ("reference", "in all cases, step by step")
    assert not unirnn.explain(GRUSpec(3, 4), "array_api").kernels


def test_the_default_device_has_no_influence() -> None:
    gru = GRUSpec(3, 8).build("torch", seed=0)
    x = torch.randn(20, 5, 3)
    sequence = pack_padded_sequence(x, torch.tensor([20, 3, 1, 7, 7]), enforce_sorted=False)
    with torch.device("meta"):
        other = GRUSpec(3, 8).build("torch", seed=0, device="cpu")
        unirnn.load_weights(other, unirnn.snapshot(gru))
        assert torch.equal(other.weight_hh_l0, gru.weight_hh_l0)
        gru(sequence)
        gru(x, None, [20, 3, 0, 7, 7])
        with torch.no_grad():
            gru(x, None, [20, 3, 0, 7, 7])


@pytest.mark.parametrize(
    "spec",
    [
        RNNSpec(3, 4, nonlinearity="relu"),
        GRUSpec(3, 4, 2, bidirectional=True),
        LSTMSpec(3, 4, batch_first=True),
        LSTMSpec(3, 4, proj_size=2),
        RESET_BEFORE,
    ],
)
@pytest.mark.parametrize("grad", [True, False])
def test_a_call_never_waits_for_the_device(spec: RecurrentSpec, grad: bool) -> None:
    # A meta tensor has no values, so reading it raises; on a GPU, reading would wait.
    module = spec.build("torch").to("meta")
    x = torch.empty(5, 5, 3, device="meta", requires_grad=True)
    with torch.set_grad_enabled(grad):
        for arguments in ((x,), (x, None, [1, 0, 3, 3, 5])):
            output, _ = module(*arguments)
            assert (output.shape, output.device) == ((5, 5, spec.output_size * spec.num_directions), x.device)
            if grad:
                x.grad = None
                output.sum().backward()
                assert x.grad is not None
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):  # checking lengths reads them
        module(x, None, torch.empty(5, dtype=torch.int64, device="meta"))


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.filterwarnings("ignore:Converting a tensor to a Python")
@pytest.mark.parametrize("training", [True, False])
def test_torch_jit_trace(training: bool) -> None:
    gru = GRUSpec(3, 8).build("torch", seed=0).train(training)
    x = torch.randn(20, 5, 3)
    traced: Any = torch.jit.trace(gru, (x,))  # type: ignore[no-untyped-call]
    torch.testing.assert_close(traced(x), gru(x))


@pytest.mark.parametrize("grad", [True, False])
def test_fake_tensors(grad: bool) -> None:
    with FakeTensorMode(), torch.set_grad_enabled(grad):
        output, h_n = GRUSpec(3, 8).build("torch", seed=0)(torch.randn(20, 5, 3), None, [1, 2, 0, 20, 3])
    assert (output.shape, h_n.shape) == ((20, 5, 8), (1, 5, 8))
