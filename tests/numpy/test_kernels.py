"""The kernels of NumPy modules: the compiled kernel, and its fallback in NumPy."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, errors, kernels
from unirnn.contract.call import join_state, state_parts

SPEC = GRUSpec(3, 4)
CELLS = [RNNSpec, partial(RNNSpec, nonlinearity="relu"), GRUSpec, partial(GRUSpec, reset_after=False), LSTMSpec]
KERNELS = [*(["compiled"] if kernels.is_compiled() else []), "fallback"]
BUILDS = [(cell, kernel) for cell in CELLS for kernel in KERNELS]


@pytest.mark.parametrize(("cell", "kernel"), BUILDS)
def test_overflow_gives_no_warning(cell: Any, kernel: str) -> None:
    module = cell(1, 64).build("numpy", seed=0, kernel=kernel)
    for name, array in module.weights.items():
        array[...] = name == "weight_ih_l0"
    x = np.full((200, 16, 1), 2e37, np.float32)
    x[24:] = 1
    lengths = np.full(16, 200)
    lengths[8:] = 24
    module(x, None, lengths)
    module.vjp(x, None, lengths)


@pytest.mark.parametrize("kernel", ["reference", *KERNELS])
def test_nan_stays_nan(kernel: str) -> None:
    module = RNNSpec(2, 3, nonlinearity="relu").build("numpy", seed=0, kernel=kernel)
    for steps in (1, 5):
        x = np.ones((steps, 2, 2), np.float32)
        x[0, 0, 0] = np.nan
        output, _ = module(x)
        assert np.isnan(output[:, 0]).all()
        assert not np.isnan(output[:, 1]).any()


def test_a_named_kernel_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(errors.ArgumentError, match="kernel: given 'fast', expected one of 'auto'"):
        SPEC.build("numpy", kernel="fast")
    with pytest.raises(
        errors.LimitError,
        match="the reference computes in float32, float64, not in float16",
    ):
        SPEC.build("numpy", dtype="float16", kernel="reference")
    with pytest.raises(errors.ArgumentError, match="kernel='reference', which has no gradients"):
        SPEC.build("numpy", kernel="reference").vjp(np.ones((2, 3), np.float32))


def test_auto_takes_the_first_available_kernel() -> None:
    (first, *_) = unirnn.explain(SPEC, "numpy").kernels
    assert first == (KERNELS[0], "in all cases")


def test_without_the_library_the_fallback_runs_and_the_compiled_kernel_is_refused() -> None:
    x = np.ones((5, 2, 3), np.float32)
    with (
        mock.patch("unirnn.kernels.library.load", return_value=None),
        mock.patch("unirnn.kernels.library.why_not", return_value="there was no compiler"),
    ):
        assert [kernel.name for kernel in unirnn.explain(SPEC, "numpy").kernels] == ["fallback", "reference"]
        with pytest.raises(errors.LimitError, match="given 'compiled', but there was no compiler; build with 'auto'"):
            SPEC.build("numpy", kernel="compiled")
        output, _ = SPEC.build("numpy", seed=0)(x)
    np.testing.assert_array_equal(output, SPEC.build("numpy", seed=0, kernel="fallback")(x)[0])


@pytest.mark.parametrize(("cell", "kernel"), BUILDS)
def test_overwriting_input_and_output_does_not_change_gradients(cell: Any, kernel: str) -> None:
    module = cell(3, 4).build("numpy", seed=0, kernel=kernel)
    x = np.ones((5, 2, 3), np.float32)
    output, _, pullback = module.vjp(x)
    wanted = pullback(np.ones_like(output), None)
    d_output = np.ones_like(output)
    x[:], output[:] = 7, 7
    for name, gradient in pullback(d_output, None).items():
        np.testing.assert_array_equal(gradient, wanted[name])
    assert (d_output == 1).all()


@pytest.mark.parametrize(("cell", "kernel"), [(cell, kernel) for cell, kernel in BUILDS if cell is not LSTMSpec])
def test_a_pullback_checks_shapes_and_can_be_called_again(cell: Any, kernel: str) -> None:
    module = cell(3, 4).build("numpy", seed=0, kernel=kernel)
    output, h_n, pullback = module.vjp(np.ones((5, 2, 3), np.float32), seq_length=np.array([5, 2], ">i4"))
    first, second = (pullback(np.ones_like(output), None) for _ in range(2))
    for name, gradient in first.items():
        np.testing.assert_array_equal(gradient, second[name])
    with pytest.raises(errors.ShapeError, match=r"d_output: given shape \(2, 5, 4\), expected \(5, 2, 4\)"):
        pullback(output.swapaxes(0, 1), None)
    with pytest.raises(errors.ShapeError, match=r"d_h_n: given shape \(2, 1, 4\), expected \(1, 2, 4\)"):
        pullback(output, h_n.swapaxes(0, 1))


@pytest.mark.parametrize(
    "spec",
    [
        RNNSpec(3, 4, 3, bidirectional=True, dropout=0.5),
        GRUSpec(3, 4, 3, bidirectional=True, dropout=0.5),
        GRUSpec(3, 4, 3, bidirectional=True, dropout=0.5, reset_after=False),
        LSTMSpec(3, 4, 3, bidirectional=True, dropout=0.5),
        LSTMSpec(3, 4, 3, bidirectional=True, dropout=0.5, proj_size=2, gate_activation="hard_sigmoid"),
    ],
    ids=repr,
)
def test_dropout_is_seeded_and_has_gradients(spec: RecurrentSpec) -> None:
    rng = np.random.default_rng(0)
    weights = unirnn.snapshot(spec.build("numpy", dtype="float64", seed=0)).weights
    arrays = {"input": rng.standard_normal((5, 2, 3)), **weights}
    arrays |= {f"{state}_0": rng.standard_normal(shape) for state, shape in spec.state_shapes(2).items()}

    def run(arrays: dict[str, Any]) -> Any:
        module = Snapshot(spec, {name: arrays[name] for name in weights}).build("numpy", seed=7).train()
        hx = join_state([arrays[f"{state}_0"] for state in spec.states])
        return module.vjp(arrays["input"], hx, [5, 2])

    output, final, pullback = run(arrays)
    np.testing.assert_array_equal(run(arrays)[0], output)  # the generator is seeded
    assert (run({**arrays, "input": 2 * arrays["input"]})[0] != output).any()
    parts = (output, *(state_parts(spec, final) or ()))
    cotangents = [rng.standard_normal(part.shape) for part in parts]
    gradients = pullback(cotangents[0], join_state(cotangents[1:]))
    assert gradients.keys() == arrays.keys()

    def loss(arrays: dict[str, Any]) -> float:
        output, final, _ = run(arrays)
        parts = (output, *(state_parts(spec, final) or ()))
        return float(sum((part * d).sum() for part, d in zip(parts, cotangents, strict=True)))

    for name, array in arrays.items():
        direction = rng.standard_normal(array.shape)
        ends = [loss({**arrays, name: array + step * direction}) for step in (1e-6, -1e-6)]
        expected = (ends[0] - ends[1]) / 2e-6
        assert (gradients[name] * direction).sum() == pytest.approx(expected, rel=1e-6, abs=1e-6), name


@pytest.mark.parametrize(("cell", "kernel"), BUILDS)
def test_several_threads_can_call_one_pullback(cell: Any, kernel: str) -> None:
    module = cell(3, 8).build("numpy", seed=0, kernel=kernel)
    output, _, pullback = module.vjp(np.linspace(-1, 1, 1200, dtype=np.float32).reshape(200, 2, 3))
    wanted = pullback(output, None)
    with ThreadPoolExecutor(4) as threads:
        for found in threads.map(lambda _: pullback(output, None), range(8)):
            for name, gradient in found.items():
                np.testing.assert_array_equal(gradient, wanted[name])


@pytest.mark.parametrize(("cell", "kernel"), BUILDS)
@pytest.mark.parametrize(("batch_size", "size"), [(1, 520), (70, 256), (17, 512)])
def test_large_products_are_right(cell: Any, kernel: str, batch_size: int, size: int) -> None:
    spec = cell(3, size)
    module, reference = (spec.build("numpy", seed=0, dtype="float64", kernel=name) for name in (kernel, "reference"))
    x = np.random.default_rng(0).standard_normal((2, batch_size, 3))
    output, _, pullback = module.vjp(x)
    np.testing.assert_allclose(output, reference(x)[0], rtol=1e-11, atol=1e-12)
    d = np.random.default_rng(1).standard_normal((2, batch_size, 3))
    ends = [(module.vjp(x + step * d)[0] * output).sum() for step in (1e-6, -1e-6)]
    assert (pullback(output, None)["input"] * d).sum() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)
