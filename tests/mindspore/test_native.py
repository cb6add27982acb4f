"""The branches for GPU and Ascend, over an emulation of the operators' documented contracts."""

from pathlib import Path
from typing import Any

import emulation
import mindspore as ms
import numpy as np
import pytest
from mindspore import Tensor, ops
from subjects import close
from subjects import gradients as gradients_of
from unirnn_mindspore import Recurrent
from unirnn_mindspore import native as fused

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, errors, kernels
from unirnn.contract import weights as _weights
from unirnn.contract.call import join_state, state_parts

# float16 where a fused operator computes in it
TOLERANCES = {("RNN", "Ascend"): 1e-5, ("GRU", "Ascend"): 5e-3, ("LSTM", "Ascend"): 5e-3}
LENGTHS = {"full": [4, 4, 4], "ragged": [2, 4, 0], "all zero": [0, 0, 0]}
SPECS: list[RecurrentSpec] = [
    RNNSpec(2, 16, nonlinearity="relu"),
    GRUSpec(2, 16),
    LSTMSpec(2, 16),
    RNNSpec(2, 16, 2, bidirectional=True, batch_first=True),
    GRUSpec(2, 16, 2, bidirectional=True, batch_first=True),
    LSTMSpec(2, 16, 2, bidirectional=True, batch_first=True),
    GRUSpec(2, 16, bias=False),
    GRUSpec(2, 5, 2, bidirectional=True, reset_after=False),
    LSTMSpec(2, 16, bias=False),
]


@pytest.fixture(scope="module", autouse=True)
def blocking() -> None:
    """The emulation is many small operators, which asynchronous launches make ten times slower on a CPU."""
    ms.runtime.launch_blocking()


@pytest.fixture(autouse=True)
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "CudnnGRU", emulation.CudnnGRU)
    monkeypatch.setattr(ops, "LSTM", emulation.CudnnLSTM)
    monkeypatch.setattr(ops, "DynamicGRUV2", emulation.DynamicGRUV2)
    monkeypatch.setattr(ops, "DynamicRNN", emulation.DynamicRNN)


class Run:
    """One module and one batch: what the target gives, and what the NumPy kernels expect."""

    def __init__(self, spec: RecurrentSpec, target: str, lengths: list[int]) -> None:
        rng = np.random.default_rng(0)
        weights = {name: array.astype(np.float32) for name, array in _weights.draw(spec, 0).items()}
        self.spec, self.lengths = spec, np.array(lengths)
        self.module = Recurrent(spec, weights, ms.float32, target)
        self.x = rng.standard_normal((3, 4, 2) if spec.batch_first else (4, 3, 2)).astype(np.float32)
        self.hx = tuple(rng.standard_normal(s).astype(np.float32) for s in spec.state_shapes(3).values())
        self.output, self.final, self.pullback = kernels.recurrent(
            spec, weights, self.x, self.hx, self.lengths, keep=True
        )
        self.tolerance = 1e-5 if fused.by_steps(spec, target) else TOLERANCES.get((spec.kind, target), 1e-5)

    def dirty(self) -> np.ndarray[Any, Any]:
        valid = np.arange(4)[:, None] < self.lengths
        x = self.x.copy()
        x[~(valid.T if self.spec.batch_first else valid)] = np.nan
        return x

    def check(self, result: Any) -> None:
        output, final = result
        close(output.asnumpy(), self.output, self.tolerance, "output")
        assert (output.asnumpy()[self.output == 0] == 0).all()
        for part, expected, initial in zip(state_parts(self.spec, final) or (), self.final, self.hx, strict=True):
            close(part.asnumpy(), expected, self.tolerance, "final state")
            np.testing.assert_array_equal(part.asnumpy()[:, self.lengths == 0], initial[:, self.lengths == 0])


each = pytest.mark.parametrize("spec", SPECS, ids=repr)
targets = pytest.mark.parametrize("target", ["GPU", "Ascend"])


@targets
@each
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_promises(spec: RecurrentSpec, target: str, lengths: list[int]) -> None:
    run = Run(spec, target, lengths)
    run.check(run.module(Tensor(run.dirty()), join_state([Tensor(p) for p in run.hx]), lengths))


@targets
@each
def test_no_lengths(spec: RecurrentSpec, target: str) -> None:
    run = Run(spec, target, LENGTHS["full"])
    run.check(run.module(Tensor(run.x), join_state([Tensor(p) for p in run.hx])))


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        (RNNSpec(2, 16, bidirectional=True), "GPU"),
        *((cell(2, 16, bidirectional=True), target) for cell in (GRUSpec, LSTMSpec) for target in ("GPU", "Ascend")),
        (GRUSpec(2, 16, bias=False, reset_after=False), "GPU"),
    ],
)
def test_compiled(spec: RecurrentSpec, target: str) -> None:
    run = Run(spec, target, LENGTHS["ragged"])
    module = run.module

    @ms.jit
    def compiled(x: Tensor, hx: Any, seq_length: Tensor) -> Any:
        return module(x, hx, seq_length)

    run.check(compiled(Tensor(run.dirty()), join_state([Tensor(p) for p in run.hx]), Tensor(run.lengths)))


@targets
@pytest.mark.parametrize("spec", [SPECS[0], *SPECS[3:6], *SPECS[7:]], ids=repr)
def test_gradients(spec: RecurrentSpec, target: str) -> None:
    run = Run(spec, target, LENGTHS["ragged"])
    rng = np.random.default_rng(1)
    d_output = rng.standard_normal(run.output.shape).astype(np.float32)
    d_state = tuple(rng.standard_normal(part.shape).astype(np.float32) for part in run.hx)
    expected = run.pullback(d_output, d_state)
    backend = unirnn.registry.load("mindspore")
    actual = gradients_of(backend, run.module, run.dirty(), run.hx, run.lengths, d_output, d_state)
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        close(actual[name], gradient, 20 * run.tolerance, name)
    assert (actual["input"][np.isnan(run.dirty())] == 0).all()


@targets
def test_what_would_overflow_past_the_end_does_not(target: str) -> None:
    run = Run(RNNSpec(2, 16, nonlinearity="relu", bidirectional=True), target, [1, 4, 0])
    for parameter in run.module.weights:
        if "weight_hh" in parameter.name:
            parameter.set_data(Tensor(1e12 * np.eye(16, dtype=np.float32)))
    run.hx = (np.zeros((2, 3, 16), np.float32),)
    run.x[:] = 0.5
    lengths = np.array([1, 1, 0])
    d_output, d_state = np.ones_like(run.output), tuple(np.ones_like(part) for part in run.hx)
    gradients = gradients_of(unirnn.registry.load("mindspore"), run.module, run.x, run.hx, lengths, d_output, d_state)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_saturated_gates_past_the_end_keep_the_cell_state() -> None:
    spec = LSTMSpec(2, 16)
    weights = dict(unirnn.snapshot(spec.build("numpy", seed=0)).weights)
    weights["bias_ih_l0"] = weights["bias_ih_l0"] + np.repeat(np.array([3e4, -3e4, 0, 0], np.float32), 16)
    module = Recurrent(spec, weights, ms.float32, "GPU")
    x = np.random.default_rng(0).standard_normal((4, 3, 2)).astype(np.float32)
    _, (_, c_n) = module(Tensor(x), seq_length=[2, 4, 0])
    _, (_, expected) = unirnn.Snapshot(spec, weights).build("numpy")(x, seq_length=[2, 4, 0])
    close(c_n.asnumpy(), expected, 1e-5)


@targets
def test_unbatched(target: str) -> None:
    spec = LSTMSpec(2, 16, bidirectional=True)
    weights = unirnn.snapshot(spec.build("numpy", seed=0)).weights
    x = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    output, (_, c_n) = Recurrent(spec, weights, ms.float32, target)(Tensor(x), seq_length=3)
    expected, (_, expected_c) = unirnn.Snapshot(spec, weights).build("numpy")(x, seq_length=3)
    close(output.asnumpy(), expected, TOLERANCES.get((spec.kind, target), 1e-5))
    close(c_n.asnumpy(), expected_c, TOLERANCES.get((spec.kind, target), 1e-5))


def test_what_ascend_cannot_do_is_told_on_a_laptop() -> None:
    told = str(unirnn.explain(GRUSpec(3, 20), "mindspore", "ascend"))
    assert "multiples of 16, given 20; 32 is the next" in told
    assert "can't be built" in told
    assert "float16" in str(unirnn.explain(LSTMSpec(3, 20), "mindspore", "ascend"))
    assert not unirnn.explain(LSTMSpec(3, 20), "mindspore", "gpu", dtype="float64").builds


@pytest.mark.parametrize("spec", [RNNSpec(2, 5), GRUSpec(2, 5, reset_after=False)], ids=repr)
def test_what_goes_step_by_step_is_exported_for_a_known_number_of_them(spec: RecurrentSpec, tmp_path: Path) -> None:
    module = Recurrent(spec, _weights.draw(spec, 0), ms.float32, "GPU")
    unknown = Tensor(shape=[None, 3, 2], dtype=ms.float32)
    try:
        with pytest.raises(errors.ShapeError, match=f"a known number of time steps: {spec.kind} is exported step by"):
            ms.export(module, unknown, file_name=str(tmp_path / "layer.mindir"), file_format="MINDIR")
    finally:
        ms.set_context(jit_syntax_level=ms.LAX)


@pytest.mark.parametrize("device", ["gpu", "ascend"])
def test_what_goes_step_by_step_has_the_limits_of_no_fused_operator(device: str) -> None:
    for spec, name in ((RNNSpec(3, 20), "RNN"), (GRUSpec(3, 20, reset_after=False), "GRU of reset_after=False")):
        told = unirnn.explain(spec, "mindspore", device)
        assert [str(limit) for limit in told] == [f"differs: {device} has no fused {name}: it runs step by step"]
