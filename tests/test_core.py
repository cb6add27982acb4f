"""The core's other parts: state, devices, limits, and the kernels by themselves."""

from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import pytest
from conftest import close
from hypothesis import given
from hypothesis import strategies as st
from unirnn_numpy.module import SHORT

import unirnn
from unirnn import Device, GRUSpec, LSTMSpec, RNNSpec, Snapshot, Spec, errors, state
from unirnn import weights as _weights
from unirnn.call import join_state, state_parts
from unirnn.devices import dtype_name
from unirnn.kernels.packing import Packing

SPEC = GRUSpec(3, 4, 2, bidirectional=True)


class TestState:
    h = np.arange(4 * 5 * 4).reshape(4, 5, 4)

    def test_axes(self) -> None:
        named = state.axes(SPEC, self.h)
        assert named.shape == (2, 2, 5, 4)
        np.testing.assert_array_equal(named[1, 0], self.h[2])
        assert state.axes(SPEC, self.h[:, 0]).shape == (2, 2, 4)

    def test_last_layer(self) -> None:
        last = state.last_layer(SPEC, self.h)
        np.testing.assert_array_equal(last, np.concatenate([self.h[2], self.h[3]], axis=1))
        np.testing.assert_array_equal(state.last_layer(SPEC, self.h[:, 1]), last[1])
        assert state.last_layer(SPEC, self.h[:, :0]).shape == (0, 8)

    def test_the_last_layer_is_the_outputs_ends(self) -> None:
        module = SPEC.build("numpy", seed=0)
        output, h_n = module(np.ones((6, 2, 3), np.float32))
        np.testing.assert_array_equal(
            state.last_layer(SPEC, h_n), np.concatenate([output[-1, :, :4], output[0, :, 4:]], axis=1)
        )

    def test_other_layouts_and_back(self) -> None:
        assert state.to_batch_major(self.h).shape == (5, 4, 4)
        np.testing.assert_array_equal(state.from_batch_major(state.to_batch_major(self.h)), self.h)
        layers = state.to_layers(SPEC, self.h)
        np.testing.assert_array_equal(layers[1][1], self.h[3])
        np.testing.assert_array_equal(state.from_layers(layers, np.stack), self.h)

    @pytest.mark.parametrize("shape", [(3, 5, 4), (4,), (4, 1, 5, 4)])
    def test_mistakes(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(errors.ShapeError, match=r"state: given shape .* L\*D = 4"):
            state.axes(SPEC, np.zeros(shape))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cpu", Device("cpu")),
        ("gpu", Device("gpu")),
        ("cuda", Device("gpu")),
        ("cuda:1", Device("gpu", 1)),
        ("cpu:0", Device("cpu")),
        ("Ascend", Device("ascend")),
        ("npu:3", Device("ascend", 3)),
        (Device("cpu"), Device("cpu")),
    ],
)
def test_devices(name: Any, expected: Device) -> None:
    assert Device.parse(name) == expected
    assert Device.parse(str(expected)) == expected


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32"), "torch.float32", "Float32"])
def test_dtypes(dtype: Any) -> None:
    assert dtype_name(dtype) == "float32"


def test_a_limit_refuses_with_its_text() -> None:
    spec = LSTMSpec(3, 4, proj_size=2)
    told = unirnn.explain(spec, "numpy", dtype="bfloat16")
    assert [limit.refuses for limit in told] == [True, True]
    with pytest.raises(errors.LimitError) as caught:
        spec.build("numpy", dtype="bfloat16")
    assert str(caught.value) == str(told)
    assert "numpy has no proj_size (given 2)" in str(told)
    assert "numpy has no bfloat16 layers; it has float16, float32, float64" in str(told)


def test_a_difference_does_not_refuse() -> None:
    told = unirnn.explain(SPEC, "numpy", dtype="float16")
    assert told.builds
    assert "differs: float16 is computed in float32" in str(told)
    output, _ = SPEC.build("numpy", dtype="float16", seed=0)(np.ones((5, 2, 3), np.float16))
    assert output.dtype == np.float16
    close(output, SPEC.build("numpy", seed=0)(np.ones((5, 2, 3), np.float32))[0], 2e-3)


def test_the_drawn_weights_never_change() -> None:
    drawn = _weights.draw(GRUSpec(3, 4), 0)
    assert drawn["weight_ih_l0"][0].tolist() == [0.1369616873214543, -0.2302132862361297, -0.4590264760638053]
    assert drawn["bias_hh_l0"][-1] == 0.431017315981155


class TestKernels:
    def test_the_cost_follows_the_work(self) -> None:
        packing = Packing(np.array([1, 0, 4]), 5)
        assert packing.alive == [2, 1, 1, 1, 0]
        assert packing.order.tolist() == [2, 0, 1]
        assert len(packing.rows) == 5

    @given(lengths=st.lists(st.integers(0, 6), max_size=5), limit=st.integers(1, 12))
    def test_every_row_is_in_one_chunk_and_one_run(self, lengths: list[int], limit: int) -> None:
        with mock.patch("unirnn.kernels.packing._CHUNK", limit):
            packing = Packing(np.array(lengths, np.int64), 6)
        assert len(packing.rows) == sum(lengths)
        steps: list[int] = []
        for before, chunk in zip([None, *packing.chunks], packing.chunks, strict=False):
            assert chunk.rows.start == (0 if before is None else before.rows.stop)
            assert chunk.size <= max(limit, packing.alive[len(steps)])
            assert [run.rows.start for run in chunk.runs] == [0, *(run.rows.stop for run in chunk.runs[:-1])]
            assert chunk.runs[-1].rows.stop == chunk.size
            steps += [run.alive for run in chunk.runs for _ in range(run.steps)]
        assert steps == [alive for alive in packing.alive if alive]

    @pytest.mark.parametrize("cell", [RNNSpec, GRUSpec, partial(GRUSpec, reset_after=False), LSTMSpec])
    @pytest.mark.parametrize("bias", [True, False])
    @given(lengths=st.lists(st.integers(0, 6), min_size=1, max_size=5), limit=st.integers(1, 12))
    def test_cuts_change_nothing(self, cell: Any, bias: bool, lengths: list[int], limit: int) -> None:
        spec = cell(3, 4, 2, bias=bias, bidirectional=True)
        module = spec.build("numpy", dtype="float64", seed=0)
        x = np.random.default_rng(0).standard_normal((6, len(lengths), 3))

        def run() -> list[Any]:
            output, h_n, pullback = module.vjp(x, None, lengths)
            return [output, *(state_parts(spec, h_n) or ()), *pullback(output, h_n).values()]

        whole = run()
        with (
            mock.patch("unirnn.kernels.packing._CHUNK", limit),
            mock.patch("unirnn.kernels.products._SMALL", 8 * limit),
            mock.patch("unirnn.kernels.products._NARROWEST", 1),
        ):
            cut = run()
            called = module(x, None, lengths)[0]
        for one, other in zip(whole, cut, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(called, cut[0])

    @pytest.mark.parametrize("cell", [RNNSpec, GRUSpec, partial(GRUSpec, reset_after=False), LSTMSpec])
    @pytest.mark.parametrize("batch_first", [True, False])
    @given(lengths=st.lists(st.integers(0, SHORT), min_size=1, max_size=4), dropout=st.sampled_from([0.0, 0.5]))
    def test_a_short_call_is_plain_and_the_same(
        self, cell: Any, batch_first: bool, lengths: list[int], dropout: float
    ) -> None:
        spec = cell(3, 4, 2, bidirectional=True, batch_first=batch_first, dropout=dropout)
        shape = (len(lengths), SHORT) if batch_first else (SHORT, len(lengths))
        x = np.random.default_rng(0).standard_normal((*shape, 3))

        def run(kernel: str) -> list[Any]:
            module = spec.build("numpy", dtype="float64", seed=0, kernel=kernel).train()
            output, h_n = module(x, None, lengths)
            return [output, *(state_parts(spec, h_n) or ())]

        by_plain, by_packed, by_auto = run("plain"), run("packed"), run("auto")
        for one, other, chosen in zip(by_plain, by_packed, by_auto, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-12, atol=1e-14)
            np.testing.assert_array_equal(one, chosen)

    @pytest.mark.parametrize("cell", [partial(RNNSpec, nonlinearity="relu"), RNNSpec, GRUSpec, LSTMSpec])
    def test_large_numbers_in_one_run_reach_no_other(self, cell: Any) -> None:
        # Warnings are errors: what lies between the arrays of a block takes no part.
        module = cell(1, 64).build("numpy", seed=0)
        for name, array in module.weights.items():
            array[...] = name == "weight_ih_l0"
        x = np.full((200, 16, 1), 2e37, np.float32)
        x[24:] = 1
        lengths = np.full(16, 200)
        lengths[8:] = 24
        module(x, None, lengths)
        module.vjp(x, None, lengths)

    def test_nan_stays_nan_in_a_short_call_too(self) -> None:
        module = RNNSpec(2, 3, nonlinearity="relu").build("numpy", seed=0)
        for steps in (SHORT, SHORT + 1):
            x = np.ones((steps, 2, 2), np.float32)
            x[0, 0, 0] = np.nan
            output, _ = module(x)
            assert np.isnan(output[:, 0]).all()
            assert not np.isnan(output[:, 1]).any()

    def test_a_kernel_by_name_serves_or_says_why_not(self) -> None:
        with pytest.raises(errors.ArgumentError, match="kernel: given 'fast', expected one of 'auto'"):
            SPEC.build("numpy", kernel="fast")
        with pytest.raises(errors.LimitError, match="kernel: given 'plain', but float16 is computed in float32"):
            SPEC.build("numpy", dtype="float16", kernel="plain")
        with pytest.raises(errors.ArgumentError, match="kernel='plain', which has no gradients"):
            SPEC.build("numpy", kernel="plain").vjp(np.ones((2, 3), np.float32))
        told = str(unirnn.explain(SPEC, "numpy"))
        assert told.endswith(f"no limits\n  kernel plain: inference (T <= {SHORT})\n  kernel packed: else")
        assert "kernel packed: always" in str(unirnn.explain(SPEC, "numpy", dtype="float16"))

    def test_what_the_caller_writes_does_not_reach_the_gradients(self) -> None:
        module = GRUSpec(3, 4).build("numpy", seed=0)
        x = np.ones((5, 2, 3), np.float32)
        output, _, pullback = module.vjp(x)
        wanted = pullback(np.ones_like(output), None)
        d_output = np.ones_like(output)
        x[:], output[:] = 7, 7
        for name, gradient in pullback(d_output, None).items():
            np.testing.assert_array_equal(gradient, wanted[name])
        assert (d_output == 1).all()

    def test_a_pullback_checks_and_can_be_called_again(self) -> None:
        module = GRUSpec(3, 4).build("numpy", seed=0)
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
    def test_dropout_has_a_seed_and_gradients(self, spec: Spec) -> None:
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
