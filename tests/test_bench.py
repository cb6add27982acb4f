"""The benchmark: baselines compute the same as unirnn, reports are complete, and bars are evaluated correctly.

No test depends on how long something takes.
"""

import importlib.util
import json
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from numpy.typing import NDArray
from unirnn_bench import baselines, plotting, processes, timing
from unirnn_bench.baselines._floor import floor
from unirnn_bench.jobs import Grid, Job, plan
from unirnn_bench.work import LENGTHS, MODELS, SIZES, STEPS, Layer, Work
from unirnn_numpy import NumpyBackend

from unirnn import (
    EmbeddingSpec,
    GRUSpec,
    LinearSpec,
    LSTMSpec,
    PoolSpec,
    RecurrentSpec,
    RNNSpec,
    Sequential,
    registry,
)
from unirnn.errors import ArgumentError, BackendError, UnknownBackendError
from unirnn.kernels import library
from unirnn.testing.tolerances import close

if TYPE_CHECKING:
    from typer.testing import Result

INSTALLED = [name for name in ("numpy", "torch", "mindspore", "onnxruntime") if importlib.util.find_spec(name)]
MODES = [(name, "eager") for name in INSTALLED]
CASES = [
    pytest.param(name, mode, backward, id=f"{name}-{mode}-{'with-backward' if backward else 'forward'}")
    for name, mode in MODES
    for backward in (False, True)
    if not (backward and name == "onnxruntime")  # it has no gradients
]
ROOT = Path(__file__).resolve().parent.parent
BARS, DOCS = ROOT / "benchmarks" / "bars.py", ROOT / "docs"
SEQ_LENGTHS = [None, [3, 1, 5]]
RESETS = np.array([[0, 1, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 1, 0]], bool)
SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4),
    GRUSpec(3, 4),
    LSTMSpec(3, 4),
    GRUSpec(3, 4, 2, bidirectional=True),
    LSTMSpec(3, 4, 2, bidirectional=True),
]

Run = Callable[..., "Result"]


def small_work(
    spec: RecurrentSpec,
    seq_length: list[int] | None,
    *,
    backward: bool,
    mode: str = "eager",
    resets: NDArray[np.bool_] | None = None,
) -> Work:
    rng = np.random.default_rng(0)
    d_output = rng.standard_normal((5, 3, spec.num_directions * 4)).astype(np.float32)
    return Work(
        spec,
        rng.standard_normal((5, 3, 3)).astype(np.float32),
        None,
        None if seq_length is None else np.array(seq_length),
        resets,
        d_output if backward else None,
        mode,
        1,
        slow=False,
    )


def small_model_work(cell: type[RecurrentSpec], seq_length: list[int] | None, *, backward: bool) -> Work:
    spec = cell(3, 4, bidirectional=True)
    model = Sequential(embedding=EmbeddingSpec(7, 3), encoder=spec, pool=PoolSpec("mean"), head=LinearSpec(8, 2))
    rng = np.random.default_rng(0)
    return replace(
        small_work(spec, seq_length, backward=False),
        model=model,
        input=rng.integers(0, 7, (5, 3)),
        d_output=rng.standard_normal((3, 2)).astype(np.float32) if backward else None,
    )


def builds_models(name: str) -> bool:
    work = small_model_work(GRUSpec, None, backward=False)
    assert work.model is not None
    return registry.load(name).support.unsupported_reason(work.model) is None


def arrays(result: Any) -> list[Any]:
    """The arrays in a result of any framework, in an order that does not depend on the framework."""
    if isinstance(result, Mapping):
        result = [array for name, array in result.items() if not name.startswith(("hx", "h_0", "c_0"))]
    if not isinstance(result, Sequence):
        array = registry.to_numpy(result)
        return [array] if array.dtype == np.float32 else []  # MindSpore also returns a gradient of the lengths
    found = [array for part in result for array in arrays(part)]
    return sorted(found, key=lambda array: (array.shape, float(array.sum())))


# ---- baselines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_length", SEQ_LENGTHS, ids=["dense", "ragged"])
@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize(("name", "mode", "backward"), CASES)
def test_baselines_compute_the_same_as_ours(
    name: str, mode: str, backward: bool, spec: RecurrentSpec, seq_length: list[int] | None
) -> None:
    framework = baselines.load(registry.load(name))
    assert mode in framework.MODES
    calls = framework.calls(small_work(spec, seq_length, backward=backward, mode=mode))
    pairs = [("ours", "usual"), ("dense", "native") if seq_length and name != "onnxruntime" else ("ours", "native")]
    pairs = [(one, other) for one, other in pairs if one in calls and other in calls]
    assert pairs
    for one, other in pairs:
        for array, expected in zip(arrays(calls[one]()), arrays(calls[other]()), strict=True):
            close(array, expected, 1e-5, f"{one} and {other}")


@pytest.mark.parametrize("spec", SPECS[:3], ids=repr)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with-backward"])
@pytest.mark.parametrize("name", [name for name in INSTALLED if name in ("numpy", "torch")])
def test_baselines_of_resets_compute_the_same_as_ours(name: str, backward: bool, spec: RecurrentSpec) -> None:
    calls = baselines.load(registry.load(name)).calls(small_work(spec, None, backward=backward, resets=RESETS))
    for array, expected in zip(arrays(calls["ours"]()), arrays(calls["usual"]()), strict=True):
        close(array, expected, 1e-5)


@pytest.mark.parametrize("seq_length", SEQ_LENGTHS, ids=["dense", "ragged"])
@pytest.mark.parametrize("cell", [RNNSpec, GRUSpec, LSTMSpec])
@pytest.mark.parametrize(("name", "mode", "backward"), [case for case in CASES if builds_models(str(case.values[0]))])
def test_models_as_people_write_them_compute_the_same_as_ours(
    name: str, mode: str, backward: bool, cell: type[RecurrentSpec], seq_length: list[int] | None
) -> None:
    assert mode in baselines.load(registry.load(name)).MODES
    calls = baselines.load(registry.load(name)).calls(small_model_work(cell, seq_length, backward=backward))
    numpy_calls = baselines.load(registry.load("numpy")).calls(small_model_work(cell, seq_length, backward=backward))
    pairs = [(calls["ours"], numpy_calls["ours"])]
    if seq_length is not None:
        pairs.append((calls["dense"], numpy_calls["dense"]))
    if name in ("torch", "mindspore"):
        pairs.append((calls["dense" if seq_length else "ours"], calls["native"]))
        pairs += [(calls["ours"], calls["usual"])] if seq_length else []
    for one, other in pairs:
        for array, expected in zip(arrays(one()), arrays(other()), strict=True):
            close(array, expected, 1e-5)


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("name", INSTALLED)
def test_baselines_of_a_step_compute_the_same_as_ours(name: str, cell: str) -> None:
    work = Work.draw(Layer(cell, "step", 1, False, "dense", False), "eager", 1, False)
    assert work.hx is not None
    calls = baselines.load(registry.load(name)).calls(work)
    ours, *others = (arrays(calls[call]())[0] for call in ("ours", "native", "usual") if call in calls)
    assert others
    for other in others:
        close(ours, other.reshape(ours.shape), 1e-5, name)


class ThirdPartyBackend(NumpyBackend):
    name = "somebody_else"


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with-backward"])
@pytest.mark.parametrize("seq_length", SEQ_LENGTHS, ids=["dense", "ragged"])
def test_a_backend_without_baselines_is_measured_alone(
    seq_length: list[int] | None, backward: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend = ThirdPartyBackend()
    monkeypatch.setitem(registry._loaded, backend.name, backend)
    for work in (
        small_work(GRUSpec(3, 4), seq_length, backward=backward),
        small_model_work(GRUSpec, seq_length, backward=backward),
    ):
        (ours,) = baselines.load(backend).calls(work).values()
        numpy_ours = baselines.load(registry.load("numpy")).calls(work)["ours"]
        for array, expected in zip(arrays(ours()), arrays(numpy_ours()), strict=True):
            close(array, expected, 1e-6)


def test_importing_the_benchmark_imports_no_framework() -> None:
    program = (
        "import sys, unirnn_bench.processes, unirnn_bench.plotting\n"
        "print(*{'torch', 'mindspore', 'onnxruntime', 'matplotlib'}.intersection(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert result.stdout == "\n"


# ---- measuring -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("lengths", "fill"), [("full", 1.0), ("uniform", 0.5), ("short", 0.15)])
@pytest.mark.parametrize("size", ["S", "M", "L", "wide", "long", "model"])
def test_lengths_follow_their_kind(size: str, lengths: str, fill: float) -> None:
    work = Work.draw(Layer("GRU", size, 1, False, lengths, False), "eager", 1, False)
    steps, batch_size = work.input.shape[:2]
    assert work.seq_length is not None
    assert work.seq_length.shape == (batch_size,)
    assert work.seq_length.min() >= 1
    assert work.seq_length.max() <= steps
    assert sum(work.active) == work.seq_length.sum()
    if batch_size > 1:
        assert work.fill == pytest.approx(fill, abs=0.04)


@pytest.mark.parametrize("backward", [False, True])
def test_the_floor_multiplies_valid_steps_only(backward: bool) -> None:
    multiplied = []
    spec = GRUSpec(3, 4, 2)
    work = small_work(spec, [3, 1, 5], backward=backward)
    floor(work, np.asarray, lambda a, b, out: multiplied.append(a.shape[0] * a.shape[1] * b.shape[1]))()
    rows = 3 + 1 + 5
    forward = sum(rows * 3 * 4 * (width + 4) for width in (3, 4))
    assert sum(multiplied) == (3 if backward else 1) * forward


def test_an_error_stops_only_its_own_call_and_slow_calls_are_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    calls: dict[str, int] = {"ours": 0, "slow": 0}

    def call(name: str, seconds: float) -> Callable[[], object]:
        def run() -> None:
            nonlocal now
            calls[name] += 1
            now += seconds

        return run

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now))
    measured = {"ours": call("ours", 0.0025), "slow": call("slow", 0.05), "broken": lambda: 1 // 0}
    times, errors = timing.measure(measured, 0.02)
    assert list(errors) == ["broken"]
    assert errors["broken"].startswith("ZeroDivisionError: ")
    assert calls == {"ours": 3 + 5, "slow": 2}  # the first call warms up, and a slow one's second is timed
    assert times == {"ours": pytest.approx([0.0025] * 5), "slow": pytest.approx([0.05])}


def test_with_several_threads_turns_are_longer_and_come_after_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    slept: list[float] = []

    def run() -> None:
        nonlocal now
        now += 0.004

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: now, sleep=slept.append))
    times, _ = timing.measure({"ours": run}, 0.055, rest=0.5)
    assert times == {"ours": pytest.approx([0.004] * 5)}
    assert slept == [0.5] * 5
    assert now == pytest.approx(0.004 * (2 + 3 + 5 * 4))  # each turn makes three calls, after one that is not measured


# ---- processes -----------------------------------------------------------------------------------


def test_the_model_of_a_row() -> None:
    (layer,) = Grid(cells=("GRU",), sizes=("model",), num_layers=(2,), lengths=("resets",)).layers()[:1]
    assert str(layer) == "GRU model, 1 layer, bidirectional, dense, forward"
    work = Work.draw(replace(layer, backward=True), "eager", 1, False)
    assert work.model is not None
    assert work.d_output is not None
    assert work.model.encoder == work.spec
    assert work.model.build("numpy")(work.input[:3]).shape == work.d_output.shape


def test_a_backend_without_models_is_measured_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ThirdPartyBackend()
    monkeypatch.setattr(backend, "support", replace(backend.support, kinds=("RNN", "GRU", "LSTM")), raising=False)
    monkeypatch.setitem(registry._loaded, backend.name, backend)
    jobs, _, _ = plan(Grid(cells=("GRU",), sizes=("S", "model")), [backend.name, "numpy"])
    assert [{layer.size for layer in job.layers} for job in jobs] == [{"S"}, {"S", "model"}]


@pytest.mark.parametrize("name", [name for name in ("numpy", "mindspore") if name in INSTALLED])
def test_a_process_returns_every_row(name: str) -> None:
    layers = tuple(Layer(cell, "step", 1, False, "dense", False) for cell in ("RNN", "LSTM"))
    rows = list(processes.run(Job(name, "eager", 1, layers), seconds=0, slow=False))
    assert [row["cell"] for row in rows] == ["RNN", "LSTM"]
    for row in rows:
        assert row["errors"] == {}
        assert {"ours", "floor"} <= set(row["times"])
        for reference in ("torch", "onnxruntime"):
            assert (reference in row["times"]) == (reference in INSTALLED)
        assert row["peak"] is None if library.load() is None else 0 < row["peak"] < 1
        for other, ratio in row["ratios"].items():
            assert ratio == row["times"]["ours"]["median"] / row["times"][other]["median"]
        for figure in row["times"].values():
            first, third = figure["quartiles"]
            assert 0 < first <= figure["median"] <= third
            assert figure["calls"] >= 1


def test_a_process_that_ends_early_is_an_error() -> None:
    layer = Layer("QRNN", "step", 1, False, "dense", False)
    with pytest.raises(BackendError, match=r"^numpy, eager: ended with 1 at QRNN step, 1 layer, .*SpecError"):
        list(processes.run(Job("numpy", "eager", 1, (layer,)), seconds=0, slow=False))


def test_closing_the_rows_ends_the_process() -> None:
    layers = tuple(Layer("GRU", size, 1, False, "dense", False) for size in ("step", "L"))
    rows = processes.run(Job("numpy", "eager", 1, layers), seconds=0, slow=False)
    assert next(rows)["size"] == "step"
    rows.close()  # waits for the process to end
    assert list(rows) == []


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, run: Run) -> Run:
    """Run the command ``unirnn bench`` in this process, with NumPy's first mode only: ``run("--size", "S")``."""
    monkeypatch.setattr(baselines.load(registry.load("numpy")), "MODES", ("eager",))
    return partial(run, "bench")


QUICK = ["--backend", "numpy", "--cell", "gru", "--seconds", "0", "--size", "S", "--size", "step"]


def test_the_command_prints_a_table_and_writes_a_report(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "bench.json"
    lines = run(*QUICK, "--lengths", "dense", "--lengths", "short", "--json", str(out)).stdout.splitlines()
    report = json.loads(out.read_text())
    found = [(row["size"], row["lengths"], row["backward"]) for row in report["rows"]]
    assert found == [
        *[("S", lengths, backward) for lengths in ("dense", "short") for backward in (False, True)],
        ("step", "dense", False),
    ]
    assert set(report) >= {"command", "date", "cpu", "cores", "python", "versions", "seconds", "left_out", "failures"}
    assert report["versions"] == {"numpy": registry.load("numpy").version()}
    assert report["failures"] == []
    assert all(row["threads"] == 1 and {"usual", "floor"} <= set(row["ratios"]) for row in report["rows"])
    assert sum(line.startswith("numpy ") for line in lines) == len(found)
    assert any("GRU S, 1 layer, short, with backward" in line for line in lines)


def test_the_whole_grid_has_every_size_and_kind_of_lengths(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[Job] = []

    def run_nothing(job: Job, **_: Any) -> list[Any]:
        planned.append(job)
        return []

    monkeypatch.setattr(processes, "run", run_nothing)
    run("--whole", "--backend", "numpy", "--threads", "1", "--threads", "2")
    assert [(job.backend, job.threads) for job in planned] == [("numpy", 1), ("numpy", 2)]
    layers = planned[0].layers
    assert {layer.size for layer in layers} == set(SIZES)
    assert {layer.lengths for layer in layers} == set(LENGTHS)
    assert {(layer.num_layers, layer.bidirectional) for layer in layers} == {
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    }
    sizes = len(SIZES) - len(STEPS) - len(MODELS)
    of_models = len(MODELS) * (len(LENGTHS) - 1) * 2  # without resets
    assert len(layers) == len(set(layers)) == 3 * (sizes * 2 * 2 * len(LENGTHS) * 2 + len(STEPS) + of_models)


def test_failures_are_reported_and_the_other_rows_are_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    figure = {"median": 0.002, "quartiles": [0.001, 0.003], "calls": 5}
    right = a_row(backend="numpy", times={"ours": figure, "floor": figure}, ratios={"floor": 1.0}, errors={})
    wrong = a_row(
        backend="numpy", times={"floor": figure}, ratios={}, peak=None, errors={"ours": "RuntimeError: out\nof memory"}
    )

    def run_and_end(job: Job, **_: Any) -> Iterator[dict[str, Any]]:
        yield right
        yield wrong
        raise BackendError("numpy, eager: ended with -11 at GRU S")

    monkeypatch.setattr(processes, "run", run_and_end)
    out = tmp_path / "bench.json"
    lines = run(*QUICK, "--json", str(out), status=1).stdout.splitlines()
    layer = "GRU M, 1 layer, dense, with backward"
    failures = [
        "numpy, eager: ended with -11 at GRU S",
        f"numpy, eager, {layer}: ours: RuntimeError: out; of memory",
    ]
    assert lines[-2:] == [f"failed: {failure}" for failure in failures]
    report = json.loads(out.read_text())
    assert report["rows"] == [right, wrong]
    assert report["failures"] == failures
    # the time of ours and its share of the peak, then the ratios to native, usual, torch, ONNX Runtime and the floor
    found = [line.split()[-7:] for line in lines if layer in line][:2]
    assert found == [["2", "70%", "-", "-", "-", "-", "1.00"], ["-"] * 7]


def test_nothing_is_measured_if_the_report_cannot_be_written(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(processes, "run", lambda *_, **__: pytest.fail("measured"))
    result = run(*QUICK, "--json", str(tmp_path / "absent" / "bench.json"), status=2)
    assert "No such file or directory" in result.stderr


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_plot_writes_a_png(rows: int, tmp_path: Path) -> None:
    out = tmp_path / "bench.png"
    found = [a_row(), a_row(cell="LSTM", backward=False, ratios={"torch": 300.0}), a_row(size="L", bidirectional=True)]
    plotting.plot(found[:rows], out)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_the_documentation_has_all_pictures() -> None:
    pytest.importorskip("matplotlib")
    pictures = runpy.run_path(str(DOCS / "make_pictures.py"))["pictures"]()
    pages = "".join(page.read_text("utf-8") for page in DOCS.glob("*.md"))
    for name in pictures:
        assert f"]({name})" in pages
        assert (DOCS / name).exists(), "run python docs/make_pictures.py"


def test_without_matplotlib_a_plot_is_refused_before_measuring(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    result = run(*QUICK, "--plot", "bench.png", status=2)
    assert result.stderr.startswith(
        "unirnn: --plot: needs matplotlib, which is not installed; to install it: python -m"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "nope"], "backend: given 'nope', expected one of "),
        (["--size", "XL"], "size: given 'XL', expected one of S, M, L, wide, long, policy, step, step64, model"),
        (["--lengths", "long"], "lengths: given 'long', expected one of dense, full, uniform, short, resets"),
        (["--threads", "0"], "threads: given 0, expected at least 1"),
        (["--mode", "warp"], "mode: given 'warp', expected one of eager"),
        (["--layers", "0"], "num_layers: given 0, expected at least 1"),
        (["--plot", "bench.jpg"], "--plot: given 'bench.jpg', expected a name that ends in .png"),
    ],
)
def test_the_command_refuses_wrong_options(run: Run, arguments: list[str], message: str) -> None:
    result = run(*arguments, status=2)
    assert result.stdout == ""
    assert result.stderr.startswith(f"unirnn: {message}")


def test_a_backend_that_needs_further_options_is_left_out_unless_asked_for() -> None:
    grid = Grid(cells=("GRU",), sizes=("S",), lengths=("dense",))
    jobs, versions, left_out = plan(grid)
    assert "namespace" in left_out["array_api"]
    assert "array_api" not in versions
    assert {job.backend for job in jobs} == set(versions) >= set(INSTALLED)
    for job in jobs:
        assert {layer.backward for layer in job.layers} == ({False} if job.backend == "onnxruntime" else {False, True})
    with pytest.raises(ArgumentError, match="namespace"):
        plan(grid, ["array_api"])
    with pytest.raises(UnknownBackendError):
        plan(grid, ["nope"])


# ---- bars ----------------------------------------------------------------------------------------


def a_row(**changes: Any) -> dict[str, Any]:
    return {
        "backend": "torch",
        "mode": "eager",
        "threads": 1,
        "cell": "GRU",
        "size": "M",
        "num_layers": 1,
        "bidirectional": False,
        "lengths": "dense",
        "backward": True,
        "fill": 1.0,
        "times": {"ours": {"median": 35e-6}},
        "ratios": {"native": 0.4, "usual": 0.1, "torch": 0.4, "onnxruntime": 0.7, "dense": 0.1},
        "peak": 0.7,
        **changes,
    }


@pytest.mark.parametrize(
    ("report", "misses"),
    [
        ({"rows": [a_row()]}, []),
        (
            {"rows": [a_row(ratios={"torch": 0.46})]},
            ["PyTorch's GRU: 0.46, at most 0.45: torch, eager, threads: 1, GRU, M, dense"],
        ),
        ({"rows": [a_row(ratios={})]}, ["PyTorch's GRU: inf, at most 0.45"]),
        ({"rows": [a_row(num_layers=2, ratios={"torch": 9.0})]}, []),
        ({"rows": [a_row(peak=0.54)]}, ["share of the peak: 0.54, at least 0.55"]),
        ({"rows": [a_row(peak=None)]}, []),
        ({"rows": [a_row(peak=0.6), a_row(peak=0.48, threads=2)]}, []),
        ({"rows": [a_row(peak=0.6), a_row(peak=0.45, threads=2)]}, ["two threads: 1.5, at least 1.6: torch"]),
        (
            {"rows": [a_row(backward=False, ratios={"torch": 0.1, "onnxruntime": 0.8})]},
            ["ONNX Runtime's session: 0.8, at most 0.75: torch"],
        ),
        (
            {"rows": [a_row(lengths="short", fill=0.1, ratios={"native": 0.1, "usual": 0.1, "dense": 0.14})]},
            ["ragged: time follows the lengths: 1.4, at most 1.3"],
        ),
        ({"rows": [a_row(size="step", backward=False)]}, []),
        ({"rows": [a_row(size="step", backward=False, backend="numpy")]}, ["streaming, one step: 35, at most 20"]),
        (
            {"overheads": [{"part": "first call", "what": "numpy, first / second", "ours": 6.5, "other": 1.0}]},
            ["first call: 5.5, at most 5: first call"],
        ),
        (
            {"overheads": [{"part": "build", "what": "torch, GRU", "ratio": 1.3}]},
            ["import and build: 1.3, at most 1.2: build"],
        ),
    ],
)
def test_bars_find_the_rows_that_miss(
    report: dict[str, Any], misses: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich", reason="the table needs rich")
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(report))
    status = runpy.run_path(str(BARS))["main"]([str(file)])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missed: ")]
    assert status == (1 if misses else 0)
    assert len(said) == len(misses)
    for line, words in zip(said, misses, strict=True):
        assert line.startswith(f"missed: {words}")
