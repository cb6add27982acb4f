"""Layers on GPU and Ascend, with emulations of the fused operators that follow their documentation."""

from pathlib import Path
from typing import Any

import emulation
import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from unirnn_mindspore import Recurrent, dispatch, native

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, errors
from unirnn.contract import weights as _weights
from unirnn.contract.call import join_state, state_parts
from unirnn.testing.subjects import gradients as gradients_of
from unirnn.testing.tolerances import close

pytestmark = pytest.mark.usefixtures("blocking")

# looser where a fused operator computes in float16
TOLERANCES = {("RNN", "ascend"): 1e-5, ("GRU", "ascend"): 5e-3, ("LSTM", "ascend"): 5e-3}
LENGTHS = {"ragged": [2, 4, 0], "all zero": [0, 0, 0]}
SPECS: list[RecurrentSpec] = [
    RNNSpec(2, 16, nonlinearity="relu"),
    GRUSpec(2, 16),
    LSTMSpec(2, 16),
    RNNSpec(2, 16, 2, bidirectional=True, batch_first=True),
    GRUSpec(2, 16, 2, bidirectional=True, batch_first=True),
    LSTMSpec(2, 16, 2, bidirectional=True, batch_first=True),
    GRUSpec(2, 16, bias=False, reverse=True),
    GRUSpec(2, 5, 2, bidirectional=True, reset_after=False, gate_activation="hard_sigmoid_0.2"),
    LSTMSpec(2, 5, 2, bias=False, reverse=True, proj_size=3, gate_activation="hard_sigmoid"),
]


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "CudnnGRU", emulation.CudnnGRU)
    monkeypatch.setattr(ops, "LSTM", emulation.CudnnLSTM)
    monkeypatch.setattr(ops, "DynamicGRUV2", emulation.DynamicGRUV2)
    monkeypatch.setattr(ops, "DynamicRNN", emulation.DynamicRNN)


class Run:
    """One module, one batch, and the expected results of the NumPy backend."""

    def __init__(self, spec: RecurrentSpec, device: dispatch.DeviceKind, lengths: list[int]) -> None:
        rng = np.random.default_rng(0)
        weights = {name: array.astype(np.float32) for name, array in _weights.draw(spec, 0).items()}
        self.spec, self.lengths = spec, np.array(lengths)
        self.module = Recurrent(spec, weights, ms.float32, device)
        self.x = rng.standard_normal((3, 4, 2) if spec.batch_first else (4, 3, 2)).astype(np.float32)
        self.hx = tuple(rng.standard_normal(s).astype(np.float32) for s in spec.state_shapes(3).values())
        oracle = unirnn.Snapshot(spec, weights).build("numpy")
        self.output, final, self.pullback = oracle.vjp(self.x, join_state(self.hx), self.lengths)
        self.final = state_parts(spec, final) or ()
        self.tolerance = 1e-5 if not dispatch.is_fused(spec, device) else TOLERANCES.get((spec.kind, device), 1e-5)

    def with_nan_padding(self) -> np.ndarray[Any, Any]:
        valid = np.arange(4)[:, None] < self.lengths
        x = self.x.copy()
        x[~(valid.T if self.spec.batch_first else valid)] = np.nan
        return x

    def assert_result(self, result: Any) -> None:
        output, final = result
        close(output.asnumpy(), self.output, self.tolerance, "output")
        assert (output.asnumpy()[self.output == 0] == 0).all()
        for part, expected, initial in zip(state_parts(self.spec, final) or (), self.final, self.hx, strict=True):
            close(part.asnumpy(), expected, self.tolerance, "final state")
            np.testing.assert_array_equal(part.asnumpy()[:, self.lengths == 0], initial[:, self.lengths == 0])


each_spec = pytest.mark.parametrize("spec", SPECS, ids=repr)
each_device = pytest.mark.parametrize("device", ["gpu", "ascend"])


@each_device
@each_spec
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_numbers_with_lengths(spec: RecurrentSpec, device: dispatch.DeviceKind, lengths: list[int]) -> None:
    run = Run(spec, device, lengths)
    run.assert_result(run.module(Tensor(run.with_nan_padding()), join_state([Tensor(p) for p in run.hx]), lengths))


@each_device
@each_spec
def test_numbers_without_lengths(spec: RecurrentSpec, device: dispatch.DeviceKind) -> None:
    run = Run(spec, device, [4, 4, 4])
    run.assert_result(run.module(Tensor(run.x), join_state([Tensor(p) for p in run.hx])))


@each_device
@pytest.mark.parametrize("spec", [GRUSpec(2, 16, bidirectional=True), LSTMSpec(2, 16, bidirectional=True)], ids=repr)
def test_jit(spec: RecurrentSpec, device: dispatch.DeviceKind) -> None:
    """Only layers with a fused operator; graphs that run step by step are tested on the CPU too."""
    run = Run(spec, device, LENGTHS["ragged"])
    module = run.module

    @ms.jit
    def compiled(x: Tensor, hx: Any, seq_length: Tensor) -> Any:
        return module(x, hx, seq_length)

    run.assert_result(
        compiled(Tensor(run.with_nan_padding()), join_state([Tensor(p) for p in run.hx]), Tensor(run.lengths))
    )


@each_device
@pytest.mark.parametrize("spec", [SPECS[0], *SPECS[3:6], *SPECS[7:]], ids=repr)
def test_gradients(spec: RecurrentSpec, device: dispatch.DeviceKind) -> None:
    run = Run(spec, device, LENGTHS["ragged"])
    rng = np.random.default_rng(1)
    d_output = rng.standard_normal(run.output.shape).astype(np.float32)
    d_state = tuple(rng.standard_normal(part.shape).astype(np.float32) for part in run.hx)
    expected = run.pullback(d_output, join_state(d_state))
    backend = unirnn.registry.load("mindspore")
    actual = gradients_of(backend, run.module, run.with_nan_padding(), run.hx, run.lengths, d_output, d_state)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        close(actual[name], gradient, 20 * run.tolerance, name)
    assert (actual["input"][np.isnan(run.with_nan_padding())] == 0).all()


@each_device
def test_padded_steps_do_not_overflow(device: dispatch.DeviceKind) -> None:
    run = Run(RNNSpec(2, 16, nonlinearity="relu", bidirectional=True), device, [1, 4, 0])
    for parameter in run.module.weights:
        if "weight_hh" in parameter.name:
            parameter.set_data(Tensor(1e12 * np.eye(16, dtype=np.float32)))
    run.hx = (np.zeros((2, 3, 16), np.float32),)
    run.x[:] = 0.5
    lengths = np.array([1, 1, 0])
    d_output, d_state = np.ones_like(run.output), tuple(np.ones_like(part) for part in run.hx)
    gradients = gradients_of(unirnn.registry.load("mindspore"), run.module, run.x, run.hx, lengths, d_output, d_state)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_padded_steps_do_not_change_the_cell_state_of_saturated_gates() -> None:
    spec = LSTMSpec(2, 16)
    weights = dict(unirnn.snapshot(spec.build("numpy", seed=0)).weights)
    weights["bias_ih_l0"] = weights["bias_ih_l0"] + np.repeat(np.array([3e4, -3e4, 0, 0], np.float32), 16)
    module = Recurrent(spec, weights, ms.float32, "gpu")
    x = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
    _, (_, c_n) = module(Tensor(x), seq_length=[2, 4, 0])
    _, (_, expected) = unirnn.Snapshot(spec, weights).build("numpy")(x, seq_length=[2, 4, 0])
    close(c_n.asnumpy(), expected, 1e-5)


@each_device
def test_an_unbatched_input(device: dispatch.DeviceKind) -> None:
    spec = LSTMSpec(2, 16, bidirectional=True)
    weights = unirnn.snapshot(spec.build("numpy", seed=0)).weights
    x = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    output, (_, c_n) = Recurrent(spec, weights, ms.float32, device)(Tensor(x), seq_length=3)
    expected, (_, expected_c) = unirnn.Snapshot(spec, weights).build("numpy")(x, seq_length=3)
    close(output.asnumpy(), expected, TOLERANCES.get((spec.kind, device), 1e-5))
    close(c_n.asnumpy(), expected_c, TOLERANCES.get((spec.kind, device), 1e-5))


def test_limits_of_a_device_that_is_absent() -> None:
    explained = str(unirnn.explain(GRUSpec(3, 20), "mindspore", "ascend"))
    assert "given 20, but a GRU on Ascend needs a multiple of 16; the next is 32" in explained
    assert "can't be built" in explained
    assert "float16" in str(unirnn.explain(LSTMSpec(3, 20), "mindspore", "ascend"))
    assert not unirnn.explain(LSTMSpec(3, 20), "mindspore", "gpu", dtype="float64").builds


@pytest.mark.parametrize("spec", [RNNSpec(2, 5), GRUSpec(2, 5, reset_after=False)], ids=repr)
def test_the_export_of_a_layer_without_a_fused_operator_needs_a_known_t(spec: RecurrentSpec, tmp_path: Path) -> None:
    module = Recurrent(spec, _weights.draw(spec, 0), ms.float32, "gpu")
    unknown = Tensor(shape=[None, 3, 2], dtype=ms.float32)
    try:
        with pytest.raises(errors.ShapeError, match=f"a known number of time steps: {spec.kind} is exported step by"):
            ms.export(module, unknown, file_name=str(tmp_path / "layer.mindir"), file_format="MINDIR")
    finally:
        ms.set_context(jit_syntax_level=ms.LAX)


@pytest.mark.parametrize("device", ["gpu", "ascend"])
def test_limits_of_a_layer_without_a_fused_operator(device: str) -> None:
    for spec, name in (
        (RNNSpec(3, 20, reverse=True), "RNN"),
        (GRUSpec(3, 20, reset_after=False), "GRU with reset_after=False"),
        (LSTMSpec(3, 20, proj_size=4), "LSTM with proj_size=4"),
    ):
        explained = unirnn.explain(spec, "mindspore", device)
        place = {"gpu": "a GPU", "ascend": "Ascend"}[device]
        text = f"MindSpore has no fused {name} for {place}, so the layer runs step by step"
        assert [str(limit) for limit in explained] == [f"differs: {text}"]
