"""The kernels of the core in NumPy modules: the packed one and, if numba is installed, the compiled one."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unirnn_numpy.dispatch import SHORT

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, errors
from unirnn.contract.call import join_state, state_parts
from unirnn.kernels.packing import Packing

SPEC = GRUSpec(3, 4)
CELLS = [RNNSpec, partial(RNNSpec, nonlinearity="relu"), GRUSpec, LSTMSpec]
BUILDS = [
    *((cell, "packed") for cell in (*CELLS, partial(GRUSpec, reset_after=False))),
    *((cell, "numba") for cell in CELLS if find_spec("numba")),
]


def test_packing_has_valid_steps_only() -> None:
    packing = Packing(np.array([1, 0, 4]), 5)
    assert packing.parts[0].alive == [2, 1, 1, 1, 0]
    assert packing.order.tolist() == [2, 0, 1]
    assert len(packing.rows) == 5


def test_the_same_lengths_are_packed_once() -> None:
    one, again, other = (Packing.of(np.array(lengths), 5) for lengths in ([1, 0, 4], [1, 0, 4], [1, 4, 0]))
    assert one is again
    assert other.order.tolist() == [1, 0, 2]
    assert not Packing.of(np.array([3, 3]), 5).is_dense
    assert Packing.of(np.array([3, 3]), 3).is_dense
    assert len(Packing.of(np.array([3, 3]), 5, 2).parts) == 2
    with mock.patch("unirnn.kernels.packing._HELD", 14):  # so many steps are not cached
        assert Packing.of(np.array([1, 0, 4]), 5) is not one


@given(lengths=st.lists(st.integers(0, 6), max_size=5), limit=st.integers(1, 12), parts=st.integers(1, 3))
def test_parts_chunks_and_runs_have_every_row_once(lengths: list[int], limit: int, parts: int) -> None:
    with mock.patch("unirnn.kernels.packing._CHUNK", limit):
        packing = Packing(np.array(lengths, np.int64), 6, parts)
    every = [t * len(lengths) + k for t in range(6) for k, n in enumerate(lengths) if t < n]
    assert sorted(packing.order.tolist()) == ([] if packing.is_dense else list(range(len(lengths))))
    assert sorted(packing.rows.tolist()) == ([] if packing.is_dense else every)
    sequences = rows = 0
    for part in packing.parts:
        assert (part.sequences.start, part.rows.start) == (sequences, rows)
        sequences, rows = part.sequences.stop, part.rows.stop
        steps: list[int] = []
        for before, chunk in zip([None, *part.chunks], part.chunks, strict=False):
            assert chunk.rows.start == (0 if before is None else before.rows.stop)
            assert chunk.size <= max(limit, part.alive[len(steps)])
            assert [run.rows.start for run in chunk.runs] == [0, *(run.rows.stop for run in chunk.runs[:-1])]
            assert chunk.runs[-1].rows.stop == chunk.size
            steps += [run.alive for run in chunk.runs for _ in range(run.steps)]
        assert steps == [alive for alive in part.alive if alive]
        assert sum(steps) == rows - part.rows.start
    assert (sequences, rows) == (len(lengths), len(every))


@pytest.mark.parametrize(("cell", "kernel"), BUILDS)
@pytest.mark.parametrize("bias", [True, False])
@given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), limit=st.integers(1, 12))
def test_chunk_size_and_threads_do_not_change_results(
    cell: Any, kernel: str, bias: bool, lengths: list[int], limit: int
) -> None:
    spec = cell(3, 4, 2, bias=bias, bidirectional=True)
    module = spec.build("numpy", dtype="float64", seed=0, kernel=kernel)
    x = np.random.default_rng(0).standard_normal((6, len(lengths), 3))
    x[np.arange(6)[:, None] >= np.array(lengths)] = np.nan

    def run() -> list[Any]:
        output, h_n, pullback = module.vjp(x, None, lengths)
        return [output, *(state_parts(spec, h_n) or ()), *pullback(output, h_n).values()]

    whole = run()
    with (
        mock.patch("unirnn.kernels.packing._CHUNK", limit),
        mock.patch.object(Packing, "of", Packing),  # no cached one
        mock.patch("unirnn.kernels.products._SMALL", 8 * limit),
        mock.patch("unirnn.kernels.products._NARROWEST", 1),
        mock.patch("unirnn.kernels.threads._LEAST_SEQUENCES", 1),
        mock.patch("unirnn.kernels.threads._LEAST_WORK", 1),
        mock.patch("unirnn.kernels.layers._threads_of_numba", return_value=1 + limit % 4),
        mock.patch("unirnn.kernels.threads.blas.most", return_value=4),
    ):
        cut = run()
        called = module(x, None, lengths)[0]
    assert all(np.isfinite(array).all() for array in cut)
    for one, other in zip(whole, cut, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
    np.testing.assert_array_equal(called, cut[0])


@pytest.mark.parametrize("cell", [RNNSpec, GRUSpec, partial(GRUSpec, reset_after=False), LSTMSpec])
@pytest.mark.parametrize("batch_first", [True, False])
@given(lengths=st.lists(st.integers(0, SHORT), min_size=1, max_size=4), dropout=st.sampled_from([0.0, 0.5]))
def test_short_calls_use_the_reference_with_the_same_numbers(
    cell: Any, batch_first: bool, lengths: list[int], dropout: float
) -> None:
    spec = cell(3, 4, 2, bidirectional=True, batch_first=batch_first, dropout=dropout)
    shape = (len(lengths), SHORT) if batch_first else (SHORT, len(lengths))
    x = np.random.default_rng(0).standard_normal((*shape, 3))

    def run(kernel: str) -> list[Any]:
        module = spec.build("numpy", dtype="float64", seed=0, kernel=kernel).train()
        output, h_n = module(x, None, lengths)
        return [output, *(state_parts(spec, h_n) or ())]

    by_reference, by_packed, by_auto = run("reference"), run("packed"), run("auto")
    for one, other, chosen in zip(by_reference, by_packed, by_auto, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(one, chosen)


@pytest.mark.parametrize(("cell", "kernel"), BUILDS)
def test_overflow_does_not_spread_between_runs(cell: Any, kernel: str) -> None:
    # Warnings are errors: nothing is computed with the memory between the arrays of a block.
    module = cell(1, 64).build("numpy", seed=0, kernel=kernel)
    for name, array in module.weights.items():
        array[...] = name == "weight_ih_l0"
    x = np.full((200, 16, 1), 2e37, np.float32)
    x[24:] = 1
    lengths = np.full(16, 200)
    lengths[8:] = 24
    module(x, None, lengths)
    module.vjp(x, None, lengths)


@pytest.mark.parametrize("kernel", ["reference", *dict.fromkeys(kernel for _, kernel in BUILDS)])
def test_nan_stays_nan(kernel: str) -> None:
    module = RNNSpec(2, 3, nonlinearity="relu").build("numpy", seed=0, kernel=kernel)
    for steps in (1, 5):
        x = np.ones((steps, 2, 2), np.float32)
        x[0, 0, 0] = np.nan
        output, _ = module(x)
        assert np.isnan(output[:, 0]).all()
        assert not np.isnan(output[:, 1]).any()


def test_errors_of_kernels_by_name() -> None:
    with pytest.raises(errors.ArgumentError, match="kernel: given 'fast', expected one of 'auto'"):
        SPEC.build("numpy", kernel="fast")
    with pytest.raises(
        errors.LimitError,
        match="the reference computes in float32, float64, not in float16",
    ):
        SPEC.build("numpy", dtype="float16", kernel="reference")
    with pytest.raises(errors.ArgumentError, match="kernel='reference', which has no gradients"):
        SPEC.build("numpy", kernel="reference").vjp(np.ones((2, 3), np.float32))
    with pytest.raises(
        errors.LimitError, match="'numba', but numba has no GRU with reset_after=False; build with 'auto'"
    ):
        GRUSpec(3, 4, reset_after=False).build("numpy", kernel="numba")


@pytest.mark.parametrize("installed", [True, False])
def test_numba_is_used_if_it_is_installed(installed: bool) -> None:
    with mock.patch("unirnn.kernels.layers._is_installed", return_value=installed):
        float32, float16 = (unirnn.explain(SPEC, "numpy", dtype=dtype).kernels for dtype in ("float32", "float16"))
        if not installed:
            with pytest.raises(
                errors.LimitError, match=r"'numba', but numba, .* not installed; to install: python -m pip "
            ):
                SPEC.build("numpy", kernel="numba")
    short = ("reference", f"inference (T <= {SHORT})")
    if installed:
        assert float32 == (short, ("numba", "else"), ("packed", "by name only"))
        assert float16 == (("numba", "always"), ("packed", "by name only"))
    else:
        assert float32 == (short, ("packed", "else"))
        assert float16 == (("packed", "always"),)


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
    ],
    ids=repr,
)
def test_dropout_is_seeded_and_has_gradients(spec: RecurrentSpec) -> None:
    rng = np.random.default_rng(0)
    weights = unirnn.snapshot(spec.build("numpy", dtype="float64", seed=0)).weights
    arrays = {"input": rng.standard_normal((5, 2, 3)), **weights}
    arrays |= {f"{state}_0": rng.standard_normal((6, 2, 4)) for state in spec.states}

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
    """Each case divides the products in another way."""
    spec = cell(3, size)
    module, reference = (spec.build("numpy", seed=0, dtype="float64", kernel=name) for name in (kernel, "reference"))
    x = np.random.default_rng(0).standard_normal((2, batch_size, 3))
    output, _, pullback = module.vjp(x)
    np.testing.assert_allclose(output, reference(x)[0], rtol=1e-11, atol=1e-12)
    d = np.random.default_rng(1).standard_normal((2, batch_size, 3))
    ends = [(module.vjp(x + step * d)[0] * output).sum() for step in (1e-6, -1e-6)]
    assert (pullback(output, None)["input"] * d).sum() == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-5)
