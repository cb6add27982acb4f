"""The benchmark: its contenders compute the same, its report is whole, and its bars are read right. Never the time."""

import importlib.util
import json
import runpy
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from subjects import close
from unirnn_bench import harness as benchmark
from unirnn_bench import plot as benchmark_plot
from unirnn_numpy import NumpyBackend

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, registry
from unirnn.errors import ArgumentError, BackendError, UnknownBackendError

if TYPE_CHECKING:
    from typer.testing import Result

INSTALLED = [name for name in ("numpy", "torch", "mindspore", "onnxruntime") if importlib.util.find_spec(name)]
MODES = [*((name, "eager") for name in INSTALLED), *([("numpy", "numba")] if importlib.util.find_spec("numba") else [])]
BARS = Path(__file__).resolve().parent.parent / "benchmarks" / "bars.py"
LENGTHS = [None, [3, 1, 5]]
SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4),
    GRUSpec(3, 4),
    LSTMSpec(3, 4),
    GRUSpec(3, 4, 2, bidirectional=True),
    LSTMSpec(3, 4, 2, bidirectional=True),
]

Run = Callable[..., "Result"]


def small(spec: RecurrentSpec, seq_length: list[int] | None, *, backward: bool, mode: str = "eager") -> benchmark.Work:
    rng = np.random.default_rng(0)
    d_output = rng.standard_normal((5, 3, spec.num_directions * 4)).astype(np.float32)
    return benchmark.Work(
        spec,
        rng.standard_normal((5, 3, 3)).astype(np.float32),
        None,
        None if seq_length is None else np.array(seq_length),
        d_output if backward else None,
        mode,
        1,
        slow=False,
    )


def arrays(result: Any) -> list[Any]:
    """The arrays of a result, whichever framework's, in an order that does not hang on it."""
    if isinstance(result, Mapping):
        result = [array for name, array in result.items() if name not in ("h_0", "c_0")]
    if not isinstance(result, Sequence):
        array = registry.to_numpy(result)
        return [array] if array.dtype == np.float32 else []  # MindSpore's gradients have one of the lengths
    found = [array for part in result for array in arrays(part)]
    return sorted(found, key=lambda array: (array.shape, float(array.sum())))


# ---- the contenders ------------------------------------------------------------------------------


@pytest.mark.parametrize("seq_length", LENGTHS, ids=["dense", "ragged"])
@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize(("name", "mode"), MODES)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "with-backward"])
def test_contenders_compute_the_same(
    name: str, mode: str, spec: RecurrentSpec, seq_length: list[int] | None, backward: bool
) -> None:
    room: Any = registry.load(name)
    assert mode in room.modes
    if backward and not room.differentiable:
        with pytest.raises(ArgumentError):
            room.gradients()
        return
    work = small(spec, seq_length, backward=backward, mode=mode)
    found = room.contenders(work)
    pairs = [("ours", "usual"), ("dense", "native") if seq_length and name != "onnxruntime" else ("ours", "native")]
    pairs = [(one, other) for one, other in pairs if one in found and other in found]
    assert pairs
    for one, other in pairs:
        for array, expected in zip(arrays(found[one]()), arrays(found[other]()), strict=True):
            close(array, expected, 1e-5, f"{one} and {other}")


def test_streaming_begins_with_a_given_state() -> None:
    work = benchmark.Work.draw(benchmark.Layer("LSTM", "step", 1, False, "dense", False), "eager", 1, False)
    assert work.hx is not None
    for name in INSTALLED:
        room: Any = registry.load(name)
        found = room.contenders(work)
        outputs = [arrays(found[other]())[0] for other in ("ours", "native", "usual") if other in found]
        ours, other = outputs
        close(ours, other, 1e-5, name)


class Bare:
    """A third party's backend, NumPy's but for the contenders."""

    name = "bare"

    def __getattr__(self, name: str) -> Any:
        if name in ("modes", "contenders"):
            raise AttributeError(name)
        return getattr(registry.load("numpy"), name)


def test_a_backend_without_contenders_is_measured_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    bare: Any = Bare()
    assert not isinstance(bare, benchmark.Benchmarked)
    assert isinstance(registry.load("numpy"), benchmark.Benchmarked)
    monkeypatch.setitem(registry._loaded, "bare", bare)
    for seq_length in LENGTHS:
        for backward in (False, True):
            work = small(GRUSpec(3, 4), seq_length, backward=backward)
            (ours,) = benchmark.default(bare, work).values()
            for array, expected in zip(arrays(ours()), arrays(NumpyBackend().contenders(work)["ours"]()), strict=True):
                close(array, expected, 1e-6)


@pytest.mark.parametrize(("lengths", "fill"), [("full", 1.0), ("uniform", 0.5), ("short", 0.15)])
@pytest.mark.parametrize("size", ["S", "M", "L", "wide", "long"])
def test_lengths_are_what_they_are_called(size: str, lengths: str, fill: float) -> None:
    work = benchmark.Work.draw(benchmark.Layer("GRU", size, 1, False, lengths, False), "eager", 1, False)
    steps, batch_size = work.input.shape[:2]
    assert work.seq_length is not None
    assert work.seq_length.shape == (batch_size,)
    assert work.seq_length.min() >= 1
    assert work.seq_length.max() <= steps
    assert sum(work.alive) == work.seq_length.sum()
    if batch_size > 1:
        assert work.seq_length.sum() / (steps * batch_size) == pytest.approx(fill, abs=0.04)


@pytest.mark.parametrize("backward", [False, True])
def test_the_floor_is_the_products_of_the_valid_steps(backward: bool) -> None:
    multiplied = []
    spec = GRUSpec(3, 4, 2)
    work = small(spec, [3, 1, 5], backward=backward)
    benchmark.floor(work, np.asarray, lambda a, b, out: multiplied.append(a.shape[0] * a.shape[1] * b.shape[1]))()
    rows = 3 + 1 + 5
    forward = sum(rows * 3 * 4 * (width + 4) for width in (3, 4))
    assert sum(multiplied) == (3 if backward else 1) * forward


def test_what_fails_fails_alone_and_what_is_slow_is_called_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    calls: dict[str, int] = {"ours": 0, "slow": 0}

    def call(name: str, seconds: float) -> Callable[[], object]:
        def run() -> None:
            nonlocal now
            calls[name] += 1
            now += seconds

        return run

    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: now))
    contenders = {"ours": call("ours", 0.0025), "slow": call("slow", 0.05), "broken": lambda: 1 // 0}
    times, errors = benchmark.measure(contenders, 0.02)
    assert list(errors) == ["broken"]
    assert errors["broken"].startswith("ZeroDivisionError: ")
    assert calls == {"ours": 2 + 5, "slow": 2}  # the first is not counted, the second says how long a call is
    assert times == {"ours": pytest.approx([0.0025] * 5), "slow": pytest.approx([0.05])}


def test_by_several_threads_a_turn_is_longer_and_comes_after_a_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    slept: list[float] = []

    def run() -> None:
        nonlocal now
        now += 0.004

    monkeypatch.setattr(benchmark, "time", SimpleNamespace(perf_counter=lambda: now, sleep=slept.append))
    times, _ = benchmark.measure({"ours": run}, 0.055, rest=0.5)
    assert times == {"ours": pytest.approx([0.004] * 5)}
    assert slept == [0.5] * 5
    assert now == pytest.approx(0.004 * (1 + 3 + 5 * 3))  # a turn is three calls


# ---- the processes -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in ("numpy", "mindspore") if name in INSTALLED])
def test_a_process_tells_every_row(name: str) -> None:
    layers = tuple(benchmark.Layer(cell, "step", 1, False, "dense", False) for cell in ("RNN", "LSTM"))
    rows = list(benchmark.run(benchmark.Job(name, "eager", 1, layers), seconds=0, slow=False))
    assert [row["cell"] for row in rows] == ["RNN", "LSTM"]
    for row in rows:
        assert row["errors"] == {}
        assert {"ours", "floor"} <= set(row["times"])
        assert ("torch" in row["times"]) == ("torch" in INSTALLED)
        for other, ratio in row["ratios"].items():
            assert ratio == row["times"]["ours"]["median"] / row["times"][other]["median"]
        for figure in row["times"].values():
            first, third = figure["quartiles"]
            assert 0 < first <= figure["median"] <= third
            assert figure["calls"] >= 1


def test_a_process_that_ends_early_is_an_error() -> None:
    layer = benchmark.Layer("QRNN", "step", 1, False, "dense", False)
    with pytest.raises(BackendError, match=r"^numpy, eager: ended with 1 at QRNN step, 1 layer, .*SpecError"):
        list(benchmark.run(benchmark.Job("numpy", "eager", 1, (layer,)), seconds=0, slow=False))


def test_who_wants_no_more_rows_ends_the_process() -> None:
    layers = tuple(benchmark.Layer("GRU", size, 1, False, "dense", False) for size in ("step", "L"))
    rows = benchmark.run(benchmark.Job("numpy", "eager", 1, layers), seconds=0, slow=False)
    assert next(rows)["size"] == "step"
    rows.close()  # waits for the process, which would else measure on
    assert list(rows) == []


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command in this process, with NumPy's first mode alone: ``run("--size", "S")``."""
    monkeypatch.setattr("unirnn.kernels.layers._is_installed", lambda package: False)
    pytest.importorskip("typer", reason="the command needs the extra cli: python -m pip install 'unirnn[cli]'")
    from typer.testing import CliRunner

    from unirnn.cli.app import app

    def invoke(*arguments: str, status: int = 0) -> "Result":
        result = CliRunner().invoke(app, ["bench", *arguments])
        assert result.exit_code == status, result.output
        return result

    return invoke


QUICK = ["--backend", "numpy", "--cell", "gru", "--seconds", "0", "--size", "S", "--size", "step"]


def test_the_command_prints_a_table_and_writes_its_figures(run: Run, tmp_path: Path) -> None:
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


def test_the_whole_grid_has_every_size_and_kind(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    planned: list[benchmark.Job] = []

    def run_nothing(job: benchmark.Job, **_: Any) -> list[Any]:
        planned.append(job)
        return []

    monkeypatch.setattr(benchmark, "run", run_nothing)
    run("--whole", "--backend", "numpy", "--threads", "1", "--threads", "2")
    assert [(job.backend, job.threads) for job in planned] == [("numpy", 1), ("numpy", 2)]
    layers = planned[0].layers
    assert {layer.size for layer in layers} == set(benchmark.SIZES)
    assert {layer.lengths for layer in layers} == set(benchmark.LENGTHS)
    assert {(layer.num_layers, layer.bidirectional) for layer in layers} == {
        (1, False),
        (1, True),
        (2, False),
        (2, True),
    }
    sizes = len(benchmark.SIZES) - 1
    assert len(layers) == len(set(layers)) == 3 * (sizes * 2 * 2 * len(benchmark.LENGTHS) * 2 + 1)


def test_what_failed_is_told_and_the_rest_is_kept(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    figure = {"median": 0.002, "quartiles": [0.001, 0.003], "calls": 5}
    right = a_row(backend="numpy", times={"ours": figure, "floor": figure}, ratios={"floor": 1.0}, errors={})
    wrong = a_row(backend="numpy", times={"floor": figure}, ratios={}, errors={"ours": "RuntimeError: out\nof memory"})

    def run_and_end(job: benchmark.Job, **_: Any) -> Iterator[dict[str, Any]]:
        yield right
        yield wrong
        raise BackendError("numpy, eager: ended with -11 at GRU S")

    monkeypatch.setattr(benchmark, "run", run_and_end)
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
    # the time of ours, then the ratios to native, usual, torch, and the floor
    assert [line.split()[-5:] for line in lines if layer in line][:2] == [["2", "-", "-", "-", "1.00"], ["-"] * 5]


def test_where_the_figures_cannot_be_written_nothing_is_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(benchmark, "run", lambda *_, **__: pytest.fail("measured"))
    result = run(*QUICK, "--json", str(tmp_path / "absent" / "bench.json"), status=2)
    assert "No such file or directory" in result.stderr


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_the_plot_is_a_picture(rows: int, tmp_path: Path) -> None:
    out = tmp_path / "bench.png"
    found = [a_row(), a_row(cell="LSTM", backward=False, ratios={"torch": 300.0}), a_row(size="L", bidirectional=True)]
    benchmark_plot.plot(found[:rows], out)
    assert out.read_bytes().startswith(b"\x89PNG")


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_plot, "find_spec", lambda name: None)
    result = run(*QUICK, "--plot", "bench.png", status=2)
    assert result.stderr.startswith(
        "unirnn: --plot: needs matplotlib, which is not installed; to install it: python -m"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "nope"], "backend: given 'nope', expected one of "),
        (["--size", "XL"], "size: given 'XL', expected one of S, M, L, wide, long, step"),
        (["--lengths", "long"], "lengths: given 'long', expected one of dense, full, uniform, short"),
        (["--threads", "0"], "threads: given 0, expected at least 1"),
        (["--mode", "warp"], "mode: given 'warp', expected one of eager"),
        (["--layers", "0"], "num_layers: given 0, expected at least 1"),
        (["--plot", "bench.jpg"], "--plot: given 'bench.jpg', expected a name that ends in .png"),
    ],
)
def test_the_command_refuses(run: Run, arguments: list[str], message: str) -> None:
    result = run(*arguments, status=2)
    assert result.stdout == ""
    assert result.stderr.startswith(f"unirnn: {message}")


def test_a_backend_that_cannot_be_built_is_left_out_unless_it_was_asked_for() -> None:
    grid: dict[str, Any] = {
        "cells": ["GRU"],
        "sizes": ["S"],
        "num_layers": [1],
        "bidirectional": [False],
        "lengths": ["dense"],
        "threads": [1],
    }
    planned, versions, left_out = benchmark.jobs(None, **grid)
    assert "namespace" in left_out["array_api"]
    assert "array_api" not in versions
    assert {job.backend for job in planned} == set(versions) >= set(INSTALLED)
    with pytest.raises(ArgumentError, match="namespace"):
        benchmark.jobs(["array_api"], **grid)
    with pytest.raises(UnknownBackendError):
        benchmark.jobs(["nope"], **grid)


# ---- the bars ------------------------------------------------------------------------------------


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
        "ratios": {"native": 0.5, "usual": 0.1, "dense": 0.1},
        **changes,
    }


@pytest.mark.parametrize(
    ("report", "misses"),
    [
        ({"rows": [a_row()]}, []),
        (
            {"rows": [a_row(ratios={"native": 0.71})]},
            ["bar 1: 0.71, at most 0.7: torch, eager, threads: 1, GRU, M, dense"],
        ),
        ({"rows": [a_row(ratios={})]}, ["bar 1: inf, at most 0.7"]),
        ({"rows": [a_row(num_layers=2, ratios={"native": 9.0})]}, []),
        (
            {"rows": [a_row(lengths="short", fill=0.1, ratios={"native": 0.1, "usual": 0.1, "dense": 0.14})]},
            ["bar 5: 1.40"],
        ),
        ({"overheads": [{"part": "build", "what": "torch, GRU", "ratio": 1.3}]}, ["bar 7: 1.30, at most 1.2: build"]),
    ],
)
def test_bars(report: dict[str, Any], misses: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("rich", reason="the table needs rich")
    file = tmp_path / "bench.json"
    file.write_text(json.dumps(report))
    status = runpy.run_path(str(BARS))["main"]([str(file)])
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("missed: ")]
    assert status == (1 if misses else 0)
    assert len(said) == len(misses)
    for line, words in zip(said, misses, strict=True):
        assert line.startswith(f"missed: {words}")
