"""A built module works like a cell of MindSpore, in PyNative mode and in graph mode."""

import copy
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, nn, ops
from unirnn_mindspore import pynative

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, errors, kernels
from unirnn.contract.call import join_state, state_parts
from unirnn.testing.tolerances import close

SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4, 2, nonlinearity="relu", bidirectional=True, batch_first=True),
    GRUSpec(3, 4, 2, bidirectional=True),
    LSTMSpec(3, 4, bias=False),
]
PROJECTED = LSTMSpec(3, 4, bias=False, reverse=True, proj_size=2, gate_activation="hard_sigmoid")
each = pytest.mark.parametrize("spec", SPECS, ids=repr)
LENGTHS = [5, 0, 2]


def batch(spec: RecurrentSpec) -> tuple[Tensor, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3, 5, 3) if spec.batch_first else (5, 3, 3)).astype(np.float32)
    states = [Tensor(rng.standard_normal(s).astype(np.float32)) for s in spec.state_shapes(3).values()]
    return Tensor(x), join_state(states)


def assert_equal(spec: RecurrentSpec, actual: Any, expected: Any) -> None:
    parts = [(r[0], *(state_parts(spec, r[1]) or ())) for r in (actual, expected)]
    for a, b in zip(*parts, strict=True):
        np.testing.assert_array_equal(a.asnumpy(), b.asnumpy())


@each
def test_parameter_names_are_mindspores(spec: RecurrentSpec) -> None:
    ours = spec.build("mindspore")
    theirs = getattr(nn, spec.kind)(**spec.to_kwargs("mindspore"))
    assert isinstance(ours, nn.Cell)
    assert {p.name: p.shape for p in ours.trainable_params()} == {p.name: p.shape for p in theirs.trainable_params()}
    for name in ("hidden_size", "num_layers", "dropout", "bidirectional", "batch_first", "has_bias"):
        assert getattr(ours, name) == getattr(theirs, name)

    class Net(nn.Cell):
        def __init__(self, layer: nn.Cell) -> None:
            super().__init__()
            self.encoder = layer

    names = [{p.name for p in Net(layer).trainable_params()} for layer in (ours, theirs)]
    assert names[0] == names[1]


@each
def test_mindspores_seed_draws_the_weights_of_its_own_layer(spec: RecurrentSpec) -> None:
    ms.set_seed(3)
    theirs = {p.name: p.asnumpy() for p in getattr(nn, spec.kind)(**spec.to_kwargs("mindspore")).get_parameters()}
    ms.set_seed(3)
    ours = unirnn.snapshot(spec.build("mindspore")).weights
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name])


@each
def test_dense_calls_give_the_native_layers_numbers(spec: RecurrentSpec) -> None:
    theirs = getattr(nn, spec.kind)(**spec.to_kwargs("mindspore"))
    ours = spec.build("mindspore")
    ms.load_param_into_net(ours, {p.name: p for p in theirs.get_parameters()})
    x, hx = batch(spec)
    expected, final = theirs(x, hx)
    output, h_n = ours(x, hx)
    close(output.asnumpy(), expected.asnumpy(), 1e-5)
    for a, b in zip(state_parts(spec, h_n) or (), state_parts(spec, final) or (), strict=True):
        close(a.asnumpy(), b.asnumpy(), 1e-5)


def compiled(module: Any) -> Callable[..., Any]:
    @ms.jit
    def run(x: Any, hx: Any, seq_length: Any) -> Any:
        return module(x, hx, seq_length)

    compiled_run: Callable[..., Any] = run
    return compiled_run


def _leaves(tree: Any) -> list[Any]:
    return [leaf for part in tree for leaf in _leaves(part)] if isinstance(tree, tuple) else [tree]


class TestGraph:
    @pytest.mark.parametrize("spec", [*SPECS[:2], PROJECTED], ids=repr)
    def test_jit(self, spec: RecurrentSpec) -> None:
        module, (x, hx) = spec.build("mindspore", seed=0), batch(spec)

        @ms.jit
        def run(x: Any, hx: Any, seq_length: Any) -> Any:
            return module(x, hx, seq_length), module(x, hx, None), module(x=x, h_0=hx, seq_length=[5, 0, 2])

        ragged, dense, by_name = run(x, hx, Tensor(LENGTHS))
        assert_equal(spec, ragged, module(x, hx, LENGTHS))
        assert_equal(spec, dense, module(x, hx))
        assert_equal(spec, by_name, ragged)

    @pytest.mark.parametrize("spec", [SPECS[0], PROJECTED], ids=repr)
    def test_gradients_for_other_lengths(self, spec: RecurrentSpec) -> None:
        module, (x, hx) = spec.build("mindspore", seed=0), batch(spec)
        module.set_train()

        def loss(x: Any, seq_length: Any) -> Any:
            output, _ = module(x, hx, seq_length)
            return ops.square(output).sum()

        eager = ms.value_and_grad(loss, 0, module.trainable_params())
        graph = ms.jit(eager)
        for seq_length in (Tensor(LENGTHS), Tensor([1, 5, 5])):
            expected, (dx, dw) = eager(x, seq_length)
            actual, (dx_graph, dw_graph) = graph(x, seq_length)
            close(actual.asnumpy(), expected.asnumpy(), 1e-6)
            close(dx_graph.asnumpy(), dx.asnumpy(), 1e-6)
            for a, b in zip(dw_graph, dw, strict=True):
                close(a.asnumpy(), b.asnumpy(), 1e-6)

    def test_gradients_of_a_compiled_function(self) -> None:
        spec = SPECS[1]
        module, (x, hx) = spec.build("mindspore", seed=0), batch(spec)
        run = compiled(module)

        def loss(run: Any, x: Any, hx: Any) -> Any:
            output, _ = run(x, hx, Tensor(LENGTHS))
            return ops.square(output).sum()

        results = [
            ms.grad(lambda x, hx, run=run: loss(run, x, hx), (0, 1), module.trainable_params())(x, hx)
            for run in (run, module)
        ]
        for a, b in zip(*(_leaves(result) for result in results), strict=True):
            close(a.asnumpy(), b.asnumpy(), 1e-6)

    @pytest.mark.usefixtures("graph_mode")
    def test_graph_mode(self) -> None:
        spec = SPECS[1]
        module, (x, _) = spec.build("mindspore", seed=0), batch(spec)
        expected = unirnn.snapshot(module).build("numpy")(x.asnumpy(), seq_length=LENGTHS)
        output, _ = module(x, seq_length=LENGTHS)
        close(output.asnumpy(), expected[0], 1e-6)
        with pytest.raises(errors.LengthError, match=r"seq_length\[0\]: given 9"):
            module(x, seq_length=[9, 0, 0])


class TestMistakesWhileCompiling:
    """Mistakes that do not depend on values, which are unknown while MindSpore compiles, raise the usual messages."""

    gru = GRUSpec(3, 4).build("mindspore", seed=0)

    def test_shapes(self) -> None:
        run = compiled(self.gru)
        with pytest.raises(errors.ShapeError, match=r"input: given shape \(5, 3, 7\), expected 3 \(input_size\)"):
            run(Tensor(np.ones((5, 3, 7), np.float32)), None, None)
        with pytest.raises(errors.ShapeError, match=r"seq_length: given shape \(2,\), expected \(3,\)"):
            run(Tensor(np.ones((5, 3, 3), np.float32)), None, Tensor([1, 2]))

    def test_a_pair_for_a_gru(self) -> None:
        h = Tensor(np.ones((1, 3, 4), np.float32))
        with pytest.raises(errors.ArgumentError, match="hx: given a tuple of 2, expected one array h_0 for GRU"):
            compiled(self.gru)(Tensor(np.ones((5, 3, 3), np.float32)), (h, h), None)

    def test_names(self) -> None:
        gru, x = self.gru, Tensor(np.ones((5, 3, 3), np.float32))

        @ms.jit
        def twice(x: Any) -> Any:
            return gru(x, x=x)

        @ms.jit
        def unknown(x: Any) -> Any:
            return gru(x, lengths=[1, 2, 3])

        @ms.jit
        def missing(x: Any) -> Any:
            return gru(hx=x)

        for run, words in (
            (twice, "GRU: 'input' and 'x' are two spellings of one argument; give one"),
            (unknown, "GRU: unknown argument 'lengths'"),
            (missing, "GRU: input is missing"),
        ):
            with pytest.raises(errors.ArgumentError, match=words):
                run(x)

    def test_types(self) -> None:
        x = Tensor(np.ones((5, 3, 3), np.float32))
        with pytest.raises(errors.ArgumentError, match=r"hx: given .*, expected a mindspore\.Tensor"):
            compiled(self.gru)(x, 0.0, None)
        with pytest.raises(errors.ArgumentError, match=r"input: given .*, expected a mindspore\.Tensor"):
            compiled(self.gru)([1.0, 2.0], None, None)

    def test_a_constant_length(self) -> None:
        gru = self.gru

        @ms.jit
        def run(x: Any) -> Any:
            return gru(x, seq_length=[1, 2, 9])

        with pytest.raises(errors.LengthError, match=r"seq_length\[2\]: given 9, expected 0 <= n <= 5"):
            run(Tensor(np.ones((5, 3, 3), np.float32)))

    def test_a_length_known_only_at_run_time(self) -> None:
        x = Tensor(np.ones((5, 3, 3), np.float32))
        with pytest.raises(errors.LengthError, match=r"seq_length\[2\]: given 9, expected 0 <= n <= 5"):
            compiled(self.gru)(x, None, Tensor([1, 2, 9]))[0].asnumpy()
        output, _ = compiled(self.gru)(x, None, Tensor([1, 2, 5]))  # compiled again, it works
        assert (output.asnumpy()[1:, 0] == 0).all()


def test_an_unbatched_input_compiles() -> None:
    gru = GRUSpec(3, 4, bidirectional=True).build("mindspore", seed=0)
    x = Tensor(np.ones((5, 3), np.float32))
    assert_equal(gru.spec, compiled(gru)(x, None, Tensor(2)), gru(x, None, 2))


def test_dropout_differs_between_calls_of_a_graph() -> None:
    gru = GRUSpec(3, 16, 2, dropout=0.5).build("mindspore", seed=0).set_train()
    x = Tensor(np.ones((5, 3, 3), np.float32))
    run = compiled(gru)
    first, second = (run(x, None, Tensor(LENGTHS))[0].asnumpy() for _ in range(2))
    assert (first != second).any()
    gru.set_train(False)
    assert_equal(gru.spec, gru(x), gru(x))


@each
def test_checkpoints_and_copies(spec: RecurrentSpec, tmp_path: Path) -> None:
    module, (x, hx) = spec.build("mindspore", seed=0), batch(spec)
    expected = module(x, hx, LENGTHS)
    for kind in ("ckpt", "safetensors"):
        path = str(tmp_path / f"layer.{kind}")
        ms.save_checkpoint(module, path, format=kind)
        other = spec.build("mindspore", seed=1)
        not_loaded, _ = ms.load_param_into_net(other, ms.load_checkpoint(path, format=kind))
        assert not not_loaded
        assert_equal(spec, other(x, hx, LENGTHS), expected)
    copied = copy.deepcopy(module)
    assert_equal(spec, copied(x, hx, LENGTHS), expected)
    copied.weights[0].set_data(copied.weights[0] + 1)
    assert_equal(spec, module(x, hx, LENGTHS), expected)


def test_another_device_than_the_process_has_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = unirnn.registry.load("mindspore")
    monkeypatch.setattr(type(backend), "devices", lambda self: (unirnn.Device("cpu"), unirnn.Device("ascend", 0)))
    with pytest.raises(errors.DeviceError, match=r"MindSpore runs on CPU 0; call mindspore.set_device\('Ascend'\)"):
        GRUSpec(3, 16).build("mindspore", device="ascend")
    with pytest.raises(errors.DeviceError, match=r"call mindspore.set_device\('Ascend', 0\)"):
        GRUSpec(3, 16).build("mindspore", device="ascend:0")


def test_the_kernels_need_linux(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    with pytest.raises(errors.LimitError, match="which run the kernels, need Linux, given darwin"):
        GRUSpec(3, 4).build("mindspore", device="cpu")


@pytest.mark.parametrize("spec", [RNNSpec(1, 4), GRUSpec(1, 4), GRUSpec(1, 4, reset_after=False)], ids=repr)
def test_native_steps_are_accurate_although_mindspores_tanh_is_not(spec: RecurrentSpec) -> None:
    """MindSpore's tanh of float32 is off by 1e-4 where its argument is 5."""
    x = np.linspace(-40, 40, 256, dtype=np.float32).reshape(2, 128, 1)
    expected, _ = spec.build("numpy", seed=0, dtype="float64")(x.astype(np.float64))
    output, _ = spec.build("mindspore", seed=0, kernel="native")(Tensor(x))
    close(output.asnumpy(), expected, 1e-5)


def test_a_kernel_named_in_build_runs_or_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ArgumentError, match="'fast', expected one of 'auto', 'native', 'compiled', 'fallback'"):
        SPECS[0].build("mindspore", kernel="fast")
    with pytest.raises(
        errors.LimitError,
        match="kernel: given 'native', but MindSpore's LSTM on the CPU computes in float32, not in float64",
    ):
        SPECS[2].build("mindspore", dtype="float64", kernel="native")
    told = unirnn.explain(SPECS[2], "mindspore", dtype="float64")
    assert told.kernels == (
        ("compiled", "in all cases, except in an exported file"),
        ("fallback", None),
    )
    assert unirnn.explain(SPECS[2], "mindspore").kernels[2] == ("native", "in an exported file")
    assert unirnn.explain(SPECS[2], "mindspore", "ascend").kernels == (("native", "in all cases"),)
    x, _ = batch(SPECS[1])
    for kernel in ("compiled", "fallback"):
        module = SPECS[1].build("mindspore", seed=0, kernel=kernel)
        with pytest.raises(errors.LimitError, match=f"built with '{kernel}', which can't be part of an exported file"):
            ms.export(module, x, file_name=str(tmp_path / "x"), file_format="MINDIR")
        ms.set_context(jit_syntax_level=ms.LAX)  # a failed export leaves it strict
    with pytest.raises(errors.LimitError, match="kernel: built with 'fallback', which can't be part of a graph"):
        compiled(module)(x, None, None)


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that the compiled kernels are missing."""
    monkeypatch.setattr(kernels.library, "_open", lambda: (None, "there is no C compiler"))


@pytest.mark.usefixtures("no_library")
class TestWithoutCompiledKernels:
    @pytest.mark.parametrize("spec", [GRUSpec(3, 4), LSTMSpec(3, 4, bias=False)], ids=repr)
    def test_the_fallback_runs_and_in_a_graph_mindspores_operators(self, spec: RecurrentSpec) -> None:
        told = unirnn.explain(spec, "mindspore")
        assert told.kernels == (("fallback", "in PyNative mode"), ("native", "in a graph or an exported file"))
        module, (x, hx) = spec.build("mindspore", seed=0), batch(spec)
        expected, final = module(x, hx, LENGTHS)
        run = compiled(module)
        output, h_n = run(x, hx, Tensor(LENGTHS))
        for a, b in zip(_leaves((output, h_n)), _leaves((expected, final)), strict=True):
            close(a.asnumpy(), b.asnumpy(), 1e-5)
        with pytest.raises(errors.LengthError, match="seq_length"):
            run(x, hx, Tensor([1, 2, 9]))[0].asnumpy()

    def test_a_kernel_that_is_not_available_is_refused(self) -> None:
        with pytest.raises(errors.LimitError, match="given 'compiled', but there is no C compiler; build with 'auto'"):
            SPECS[1].build("mindspore", kernel="compiled")
        module = SPECS[2].build("mindspore", dtype="float64")
        with pytest.raises(errors.LimitError, match=r"given float64, but .* computes in float32; build in"):
            compiled(module)(Tensor(np.ones((5, 3, 3))), None, None)


GRAPH_SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4, nonlinearity="tanh", bidirectional=True),
    RNNSpec(3, 4, nonlinearity="relu"),
    GRUSpec(3, 4, 2, bidirectional=True),
    GRUSpec(3, 4, reset_after=False, bidirectional=True, bias=False),
    LSTMSpec(3, 4, bidirectional=True),
]


TOLERANCES = {"float32": 1e-5, "float64": 1e-12, "float16": 5e-3}


@pytest.mark.parametrize(
    ("spec", "dtype"),
    [
        *((spec, "float32") for spec in GRAPH_SPECS),
        *((spec, "float64") for spec in GRAPH_SPECS[2::2]),
        *((spec, "float16") for spec in GRAPH_SPECS[::4]),
    ],
    ids=repr,
)
def test_padding_in_a_graph_changes_nothing(spec: RecurrentSpec, dtype: str) -> None:
    """With NaN in the padding and lengths of 0, all results and gradients equal those of the NumPy backend."""
    module, tolerance = spec.build("mindspore", seed=0, dtype=dtype), TOLERANCES[dtype]
    x = np.random.default_rng(1).standard_normal((5, 3, 3)).astype(dtype)
    for n, b in zip(LENGTHS, range(3), strict=True):
        x[n:, b] = np.nan
    state = np.random.default_rng(2).standard_normal((spec.num_layers * spec.num_directions, 3, 4)).astype(dtype)
    wide = (state.astype("float64"),) * len(spec.states)

    def loss(x: Any, h: Any, seq_length: Any) -> Any:
        output, final = module(x, (h, h) if len(wide) == 2 else h, seq_length)
        total = output.sum() + (final[0].sum() + final[1].sum() if len(wide) == 2 else final.sum())
        return total, output, final

    reference = spec.build("numpy", seed=0, dtype="float64")
    expected, final, pullback = reference.vjp(x.astype("float64"), join_state(wide), LENGTHS)
    step = ms.jit(ms.value_and_grad(loss, (0, 1), module.trainable_params(), has_aux=True))
    (_, output, h_n), ((dx, dh), d_weights) = step(Tensor(x), Tensor(state), Tensor(LENGTHS))
    close(output.asnumpy(), expected, tolerance)
    for a, b in zip(_leaves((h_n,)), state_parts(spec, final) or (), strict=True):
        close(a.asnumpy(), b, tolerance)
    wanted = pullback(
        np.ones_like(expected), join_state([np.ones_like(part) for part in state_parts(spec, final) or ()])
    )
    close(dx.asnumpy(), wanted["input"], tolerance)
    close(dh.asnumpy(), sum(wanted[f"{name}_0"] for name in spec.states), tolerance)
    for parameter, d in zip(module.trainable_params(), d_weights, strict=True):
        close(d.asnumpy(), wanted[parameter.name], tolerance)
    for n, b in zip(LENGTHS, range(3), strict=True):
        assert (dx.asnumpy()[n:, b] == 0).all()


def test_an_assigned_parameter_is_used_by_the_next_call() -> None:
    spec, other = GRUSpec(3, 4), GRUSpec(3, 4).build("mindspore", seed=1)
    module, (x, _) = spec.build("mindspore", seed=0), batch(spec)
    run = compiled(module)
    before, after = module(x)[0].asnumpy(), other(x)[0].asnumpy()
    np.testing.assert_array_equal(run(x, None, None)[0].asnumpy(), before)
    for parameter, new in zip(module.trainable_params(), other.trainable_params(), strict=True):
        ops.assign(parameter, new)
    for call in (module, run):
        np.testing.assert_array_equal(call(x, None, None)[0].asnumpy(), after)

    bias = module.trainable_params()[3]

    @ms.jit
    def doubled(x: Any) -> Any:
        first, _ = module(x)
        ops.assign(bias, bias * 2)
        second, _ = module(x)
        return first, second

    first, second = doubled(x)
    np.testing.assert_array_equal(first.asnumpy(), after)
    assert (second.asnumpy() != after).any()
    np.testing.assert_array_equal(second.asnumpy(), module(x)[0].asnumpy())
    np.testing.assert_array_equal(second.asnumpy(), run(x, None, None)[0].asnumpy())


class Squared(nn.Cell):
    """A loss whose gradient depends on the layer's output."""

    def __init__(self, layer: nn.Cell) -> None:
        super().__init__()
        self.layer = layer

    def construct(self, x: Any) -> Any:
        return ops.square(self.layer(x)[0]).sum()


@pytest.fixture
def prepared(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The `keep` argument of each kernel call."""
    told: list[bool] = []

    def recurrent(*arguments: Any, keep: bool, **options: Any) -> Any:
        told.append(keep)
        return kernels.recurrent(*arguments, keep=keep, **options)

    monkeypatch.setattr(pynative, "kernels", SimpleNamespace(recurrent=recurrent))
    return told


def weighted(loss: nn.Cell, x: Tensor) -> Any:
    """A nested gradient, which the outer one treats as a constant."""
    return ms.grad(lambda x: (x * ops.stop_gradient(ms.grad(loss)(x))).sum())(x)


GRADIENTS: dict[str, tuple[Callable[[nn.Cell, Tensor], Any], list[bool]]] = {
    "grad": (lambda loss, x: ms.grad(loss)(x), [True]),
    "value_and_grad": (lambda loss, x: ms.value_and_grad(loss)(x)[1], [True]),
    "vjp": (lambda loss, x: ms.vjp(loss, x)[1](Tensor(1.0))[0], [True]),
    "within another": (weighted, [True]),
    "of a cell that is run again": (lambda loss, x: (loss.layer.recompute(), ms.grad(loss)(x))[1], [False, True]),
    "of a cell with a hook": (
        lambda loss, x: (loss.layer.register_forward_hook(lambda *_: None), ms.grad(loss)(x))[1],
        [True],
    ),
}


@each
class TestPreparationOfABackwardPass:
    def test_no_backward_pass_is_prepared_without_a_gradient(self, spec: RecurrentSpec, prepared: list[bool]) -> None:
        loss, x = Squared(spec.build("mindspore", seed=0)).set_train(), batch(spec)[0]
        loss(x)
        ms.grad(loss)(x)
        loss(x)
        assert prepared == [False, True, False]

    @pytest.mark.parametrize(("gradient", "needs_grad"), GRADIENTS.values(), ids=GRADIENTS.keys())
    def test_a_backward_pass_is_prepared_if_a_gradient_is_recorded(
        self, spec: RecurrentSpec, prepared: list[bool], gradient: Any, needs_grad: list[bool]
    ) -> None:
        loss, x = Squared(spec.build("mindspore", seed=0)), batch(spec)[0]
        reference = spec.build("numpy", seed=0)
        output, _, pullback = reference.vjp(x.asnumpy())
        close(gradient(loss, x).asnumpy(), pullback(2 * output, None)["input"], 1e-5)
        assert prepared == needs_grad

    def test_a_backward_pass_is_prepared_if_mindspore_does_not_tell(
        self, spec: RecurrentSpec, prepared: list[bool], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(pynative, "common", None)
        loss, x = Squared(spec.build("mindspore", seed=0)), batch(spec)[0]
        expected = loss(x)
        value, _ = ms.value_and_grad(loss)(x)
        np.testing.assert_array_equal(value.asnumpy(), expected.asnumpy())
        assert prepared == [True, True]


def test_inference_takes_a_fraction_of_the_memory_of_training() -> None:
    loss, x = Squared(GRUSpec(32, 32).build("mindspore", seed=0)), ops.ones((100, 32, 32))

    def peak(run: Callable[[Tensor], Any]) -> int:
        run(x)
        ms.runtime.synchronize()  # Python crashes if another thread allocates while tracemalloc starts or stops
        tracemalloc.start()
        run(x)
        ms.runtime.synchronize()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(loss) < 0.3 * peak(ms.grad(loss))


def test_second_derivatives_are_refused_also_after_a_mistake() -> None:
    # In a process of its own: after an exception within a gradient, MindSpore's next operators may fail.
    program = """
import mindspore as ms, numpy as np, unirnn
from mindspore import ops
module = unirnn.GRUSpec(3, 4).build("mindspore", seed=0)
x = ms.Tensor(np.linspace(-1, 1, 30).reshape(5, 2, 3).astype("float32"))

def loss(x): return module(x)[0].sum()
def squared(x): return (module(x)[0] ** 2).sum()
def mistaken(x): return module(x[..., :2])[0].sum()
def weighted(x): return (x * ops.stop_gradient(ms.grad(loss)(x))).sum()
def penalty(x): return (ms.grad(squared)(x) ** 2).sum()
def linear_penalty(x): return (ms.grad(loss)(x) ** 2).sum()

expected = ms.grad(loss)(x).asnumpy()
print((ms.grad(weighted)(x).asnumpy() == expected).all(), float(penalty(x)) > 0)
for function in (penalty, linear_penalty, mistaken):
    try:
        ms.grad(function)(x)
    except unirnn.errors.UnirnnError as error:
        print(type(error).__name__, str(error)[:40])
print((ms.grad(loss)(x).asnumpy() == expected).all())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-5:] == [
        "True True",
        "LimitError second derivatives: mindspore's layers h",
        "LimitError second derivatives: mindspore's layers h",
        "ShapeError input: given shape (5, 2, 2), expected 3",
        "True",
    ]


def test_without_mindspores_private_class_it_warns_and_computes_the_same() -> None:
    program = """
import sys, warnings
import numpy, mindspore, unirnn
sys.modules["mindspore.common._grad_function"] = None
x = mindspore.Tensor(numpy.ones((5, 2, 3), "float32"))
with warnings.catch_warnings(record=True) as found:
    warnings.simplefilter("always", RuntimeWarning)
    module = unirnn.GRUSpec(3, 4).build("mindspore", seed=0)
print([str(w.message) for w in found if "unirnn runs its layers as in a graph" in str(w.message)])
ours = module(x, None, [5, 2])[0].asnumpy()
print(abs(ours - unirnn.GRUSpec(3, 4).build("numpy", seed=0)(x.asnumpy(), None, [5, 2])[0]).max() < 1e-6)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    warned, same = done.stdout.splitlines()[-2:]
    assert "please report it to unirnn" in warned
    assert same == "True"


@pytest.mark.parametrize(("call", "hints"), [("", 1), ("mindspore.runtime.launch_blocking()", 0)])
def test_the_first_build_logs_a_hint_at_launch_blocking(call: str, hints: int) -> None:
    program = f"import mindspore, unirnn\n{call}\nfor _ in range(2): unirnn.GRUSpec(3, 4).build('mindspore')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stderr.count("call mindspore.runtime.launch_blocking() once, at the start") == hints


def test_a_weight_assigned_after_the_call_does_not_change_its_gradient() -> None:
    spec = GRUSpec(3, 4)
    x, _ = batch(spec)

    def gradient(after: bool) -> Any:
        gru = spec.build("mindspore", seed=0)

        def total(x: Tensor) -> Tensor:
            result = gru(x)[0].sum()
            if after:
                for weight in gru.trainable_params():
                    ops.assign(weight, weight * 0)
            return result

        return ms.grad(total)(x).asnumpy()

    np.testing.assert_array_equal(gradient(True), gradient(False))


def test_an_infinity_raises_no_warning() -> None:
    gru = GRUSpec(3, 4).build("mindspore", seed=0)
    x = Tensor(np.full((20, 2, 3), np.inf, np.float32))
    assert np.isnan(ms.grad(lambda x: gru(x)[0].sum())(x).asnumpy()).any()  # warnings are errors


@pytest.mark.parametrize("lengths", [LENGTHS, np.array(LENGTHS, np.int32), Tensor(LENGTHS, ms.int64)], ids=type)
def test_lengths_launch_no_operator(lengths: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When MindSpore launches operators asynchronously, the call would wait for each of them."""
    gru = GRUSpec(3, 4).build("mindspore", seed=0)
    x, _ = batch(gru.spec)
    expected = gru(x, None, LENGTHS)
    for name in ("reshape", "astype", "expand_dims", "to", "view"):
        monkeypatch.setattr(Tensor, name, lambda *_, name=name: pytest.fail(name))
    assert_equal(gru.spec, gru(x, None, lengths), expected)
