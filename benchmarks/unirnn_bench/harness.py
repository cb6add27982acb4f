"""The benchmark: what a layer costs, beside what its user would otherwise have.

A *row* is one layer, size and kind of lengths, forward or with backward, on one backend. It is computed by ``ours`` and
by its baselines: the framework's ``native`` layer on dense input, what is ``usual`` there for it, ``torch``'s dense
native layer, and the ``floor``, the bare matrix products. They are called by turns, in a random order, in one process,
with the garbage collection off; a figure is a median, and what is told is a ratio within one row.

The rows of a backend have a process of their own, whose environment says how many threads its libraries may use before
they are loaded. What is a framework's own lies in `unirnn_bench.baselines`.
"""

import functools
import gc
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirnn import registry
from unirnn.contract.backend import Backend
from unirnn.contract.call import join_state
from unirnn.errors import ArgumentError, BackendError, UnirnnError
from unirnn.specs import RecurrentSpec

from . import baselines

__all__ = ["LENGTHS", "SIZES", "Job", "Layer", "Size", "Work", "default", "floor", "jobs", "measure"]

Array = NDArray[Any]
Call = Callable[[], object]
Calls = Mapping[str, Call]

REFERENCE = "torch"
"""The backend whose dense native layer every other is held against."""

SHORTEST = 1e-3
"""In seconds: a faster call is called several times in a row, so that the clock and cold caches count little."""

REST = 0.03
"""In seconds: by several threads, how long nobody computes before a turn. A library's threads go on spinning for some
time after a call, and would take the cores from the next call."""

_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Size(NamedTuple):
    """T, B, I, H."""

    steps: int
    batch_size: int
    input_size: int
    hidden_size: int


SIZES: Mapping[str, Size] = {
    "S": Size(100, 1, 64, 64),
    "M": Size(100, 32, 128, 128),
    "L": Size(200, 64, 256, 256),
    "wide": Size(50, 8, 512, 512),
    "long": Size(1000, 1, 32, 32),
    "step": Size(1, 1, 128, 128),
}
"""By name. ``step`` is streaming: one step a call, from a given state."""

LENGTHS = ("dense", "full", "uniform", "short")
"""None given; all T; uniform in 1..T; a tenth of them T, and the others at most T/10."""


@dataclass(frozen=True)
class Layer:
    """What a row runs, by the options of the command."""

    cell: str
    size: str
    num_layers: int
    bidirectional: bool
    lengths: str
    backward: bool

    @property
    def spec(self) -> RecurrentSpec:
        """The layer."""
        size = SIZES[self.size]
        arguments = {
            "kind": self.cell,
            "input_size": size.input_size,
            "hidden_size": size.hidden_size,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
        }
        spec: RecurrentSpec = RecurrentSpec.from_dict(arguments)
        return spec

    def __str__(self) -> str:
        stack = f"{self.num_layers} layer" + ("s" if self.num_layers > 1 else "")
        stack += ", both directions" if self.bidirectional else ""
        return f"{self.cell} {self.size}, {stack}, {self.lengths}, {'with backward' if self.backward else 'forward'}"


@dataclass(frozen=True)
class Work:
    """What all calls of a row compute, in float32, from arrays that are ready before the clock starts.

    Parameters
    ----------
    spec
        The layer; time-major.
    input
        `(T, B, I)`.
    hx
        The initial state, `(L*D, B, H)` each, as streaming gives it; None is zeros.
    seq_length
        `(B,)`; None if dense.
    d_output
        `(T, B, D*H)`: the gradient of the output, for calls with backward; None: forward only, and nothing is
        kept for a backward pass.
    mode
        One of the backend's modes; see `unirnn_bench.baselines`.
    threads
        How many threads may work.
    slow
        Whether to measure baselines too that take minutes.
    """

    spec: RecurrentSpec
    input: Array
    hx: tuple[Array, ...] | None
    seq_length: NDArray[np.int64] | None
    d_output: Array | None
    mode: str
    threads: int
    slow: bool

    @classmethod
    def draw(cls, layer: Layer, mode: str, threads: int, slow: bool) -> "Work":
        """The same numbers for every backend."""
        rng = np.random.default_rng(0)
        steps, batch_size, input_size, _ = SIZES[layer.size]
        spec = layer.spec

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape, np.float32)

        hx = None
        if layer.size == "step":
            hx = tuple(normal(*shape) for shape in spec.state_shapes(batch_size).values())
        return cls(
            spec,
            normal(steps, batch_size, input_size),
            hx,
            _draw_lengths(layer.lengths, steps, batch_size, rng),
            normal(steps, batch_size, spec.num_directions * spec.hidden_size) if layer.backward else None,
            mode,
            threads,
            slow,
        )

    @property
    def alive(self) -> list[int]:
        """How many sequences have a step t, for each t that any of them has."""
        steps, batch_size, _ = self.input.shape
        if self.seq_length is None:
            return [batch_size] * steps
        counts = (np.arange(steps)[:, None] < self.seq_length).sum(axis=1)
        return [n for n in counts.tolist() if n]


def _draw_lengths(kind: str, steps: int, batch_size: int, rng: np.random.Generator) -> NDArray[np.int64] | None:
    if kind == "dense":
        return None
    if kind == "full":
        return np.full(batch_size, steps)
    # spread evenly, so that the work does not hang on chance where B is small
    spread = (np.arange(batch_size) + 0.5) / batch_size
    lengths = np.ceil(spread * (steps if kind == "uniform" else steps / 10)).astype(np.int64)
    if kind == "short":
        lengths[: round(batch_size / 10)] = steps
    return rng.permutation(lengths)


def default(room: Backend, work: Work) -> Calls:
    """The calls of a backend that has no baselines: ours."""
    spec = work.spec
    module = spec.build(room.name, seed=0)
    if (d_output := work.d_output) is not None:
        zeros = tuple(np.zeros(shape, np.float32) for shape in spec.state_shapes(work.input.shape[1]).values())
        arguments = {"input": work.input, "hx": join_state(zeros), "seq_length": work.seq_length}
        return {"ours": lambda: room.gradients(module, arguments, (d_output, *zeros))}
    input = room.from_numpy(work.input, module)
    hx = None if work.hx is None else join_state([room.from_numpy(part, module) for part in work.hx])
    return {"ours": lambda: room.to_numpy(module(input, hx, work.seq_length)[0])}


def floor(work: Work, array: Callable[[Array], Any], multiply: Callable[[Any, Any, Any], object]) -> Call:
    """The bare matrix products of a work, over its valid steps only.

    For each layer and direction: one product of the input, one with the recurrent weight a step; for backward, one
    with it a step as well, and one each for the gradients of the input and the two weights.

    Parameters
    ----------
    work
        What is computed.
    array
        An array of the framework from one of NumPy.
    multiply
        ``multiply(a, b, out)``; the result need not be in ``out``.
    """
    alive, size = work.alive, work.spec.hidden_size
    rows = sum(alive)
    slices = [slice(end - n, end) for n, end in zip(alive, itertools.accumulate(alive), strict=True)]
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> Any:
        return array(rng.standard_normal(shape, np.float32))

    products: list[tuple[Any, Any, Any]] = []
    shapes = work.spec.weight_shapes()
    for suffix in work.spec.suffixes():
        gates, width = shapes["weight_ih" + suffix]
        x, h, d = normal(rows, width), normal(rows, size), normal(rows, gates)
        h_t, w_hh_t, w_ih_t = normal(max(alive), size), normal(size, gates), normal(width, gates)
        gates_t = normal(max(alive), gates)
        products.append((x, w_ih_t, normal(rows, gates)))
        products += [(h_t[:n], w_hh_t, gates_t[:n]) for n in alive]
        if work.d_output is not None:
            w_hh, w_ih = normal(gates, size), normal(gates, width)
            products += [(d[at], w_hh, h_t[:n]) for n, at in zip(alive, slices, strict=True)]
            products += [(d, w_ih, normal(rows, width)), (d.T, x, normal(gates, width)), (d.T, h, normal(gates, size))]

    def run() -> None:
        for a, b, out in products:
            multiply(a, b, out)

    return run


# ---- one row -------------------------------------------------------------------------------------


def measure(calls: Calls, seconds: float, *, rest: float = 0) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Call calls by turns.

    Parameters
    ----------
    calls
        By name.
    seconds
        How long, for all of them together; each is called at least once, and, where it does not take all of the
        time by itself, at least five times.
    rest
        How many seconds to do nothing before each turn, which then is a longer one: for calls of several threads.

    Returns
    -------
    times
        In seconds, of each call.
    errors
        What a call raised instead.

    Examples
    --------
    >>> times, errors = measure({"ours": lambda: sum(range(1000)), "native": lambda: 1 // 0}, 0.1)
    >>> len(times["ours"]) >= 5, list(errors)
    (True, ['native'])
    """
    times: dict[str, list[float]] = {}
    errors: dict[str, str] = {}
    repeats: dict[str, int] = {}
    spent: dict[str, float] = {}
    shortest = 10 * SHORTEST if rest else SHORTEST
    for name, call in calls.items():
        try:
            call()  # makes sessions and graphs
            took, repeats[name] = 0.0, 0
            while took < shortest:  # the first of them are slow
                start = time.perf_counter()
                call()
                took += time.perf_counter() - start
                repeats[name] += 1
        except Exception as error:  # whatever it raises concerns this call alone
            errors[name] = f"{type(error).__name__}: {error}"
            continue
        times[name] = [took / repeats[name]] if took > seconds else []
        spent[name] = sum(times[name])
    order, rounds = list(times), 0
    shuffle = random.Random(0).shuffle
    gc.collect()
    gc.disable()
    try:
        while order and (rounds < 5 or sum(spent.values()) < seconds):
            shuffle(order)
            for name in order:
                if spent[name] > seconds:
                    continue
                call, repeat = calls[name], repeats[name]
                if rest:
                    time.sleep(rest)
                start = time.perf_counter()
                for _ in range(repeat):
                    call()
                took = time.perf_counter() - start
                spent[name] += took
                times[name].append(took / repeat)
            rounds += 1
    finally:
        gc.enable()
    return times, errors


def _row(room: Backend, layer: Layer, mode: str, threads: int, seconds: float, slow: bool) -> dict[str, Any]:
    """A row of the report: medians and quartiles in seconds, and the ratios of ours to the others."""
    work = Work.draw(layer, mode, threads, slow)
    own = baselines.of_backend(room.name)
    calls = dict(default(room, work) if own is None else own.calls(work))
    if room.name != REFERENCE and _has_reference():
        reference = baselines.of_backend(REFERENCE)
        calls[REFERENCE] = reference.calls(replace(work, seq_length=None, mode=reference.MODES[0]))["native"]
    times, errors = measure(calls, seconds, rest=REST if threads > 1 else 0)
    if room.name == REFERENCE and "native" in times:
        times[REFERENCE] = times["native"]
    figures = {}
    for name, taken in times.items():
        first, median, third = np.percentile(taken, (25, 50, 75)).tolist()
        figures[name] = {"median": median, "quartiles": [first, third], "calls": len(taken)}
    ratios = {}
    if "ours" in figures:
        ours = figures["ours"]["median"]
        ratios = {name: ours / figure["median"] for name, figure in figures.items() if name != "ours"}
    return {
        "backend": room.name,
        "mode": mode,
        "threads": threads,
        **asdict(layer),
        "fill": sum(work.alive) / (work.input.shape[0] * work.input.shape[1]),
        "times": figures,
        "ratios": ratios,
        "errors": errors,
    }


@functools.cache
def _has_reference() -> bool:
    try:
        registry.load(REFERENCE)
    except BackendError:
        return False
    return True


# ---- all rows ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """What one process measures."""

    backend: str
    mode: str
    threads: int
    layers: tuple[Layer, ...]


def jobs(
    backends: Sequence[str] | None,
    *,
    cells: Iterable[str],
    sizes: Iterable[str],
    num_layers: Iterable[int],
    bidirectional: Iterable[bool],
    lengths: Iterable[str],
    threads: Iterable[int],
    modes: Iterable[str] | None = None,
) -> tuple[list[Job], dict[str, str], dict[str, str]]:
    """Plan: the jobs, the version of each backend that takes part, and why others don't.

    Parameters
    ----------
    backends
        Their names; None is every registered one that is installed and builds without further options.
    cells, sizes, num_layers, bidirectional, lengths, threads
        Each combination is measured, forward and with backward; ``step`` is dense, of one layer, and forward only.
    modes
        Of the backends, see `unirnn_bench.baselines`; None is all of them.

    Raises
    ------
    BackendError
        If a backend that was asked for by name can't be had.
    ArgumentError
        If a size, a kind of lengths, a number of threads or a mode is none, or a backend that was asked for by name
        needs further options.
    SpecError
        If a number of layers is none.
    """
    sizes, lengths, threads = tuple(sizes), tuple(lengths), tuple(dict.fromkeys(threads))
    for what, given, known in (("size", sizes, tuple(SIZES)), ("lengths", lengths, LENGTHS)):
        for name in given:
            if name not in known:
                raise ArgumentError(f"{what}: given {name!r}, expected one of {', '.join(known)}")
    if any(count < 1 for count in threads):
        raise ArgumentError(f"threads: given {min(threads)}, expected at least 1")
    layers: dict[Layer, None] = {}
    for cell, size, number, both, kind, backward in itertools.product(
        cells, sizes, num_layers, bidirectional, lengths, (False, True)
    ):
        if size == "step":
            layers[Layer(cell, size, 1, False, "dense", False)] = None
        else:
            layers[Layer(cell, size, number, both, kind, backward)] = None
    for layer in layers:
        _ = layer.spec  # an error, if it is none
    wanted = None if modes is None else tuple(modes)
    present: dict[str, None] = {}
    planned, versions, left_out = [], {}, {}
    for name in registry.backends() if backends is None else dict.fromkeys(backends):
        try:
            room = registry.load(name)
            RecurrentSpec.from_dict({"kind": "RNN", "input_size": 1, "hidden_size": 1}).build(name, seed=0)
        except UnirnnError as error:
            if backends is not None:
                raise
            left_out[name] = str(error)
            continue
        its = tuple(layer for layer in layers if room.support.derivatives or not layer.backward)
        own = baselines.of_backend(name)
        found = ("eager",) if own is None else own.MODES
        present.update(dict.fromkeys(found))
        chosen = [mode for mode in found if wanted is None or mode in wanted]
        if chosen:
            versions[name] = room.version()
        else:
            left_out[name] = f"its modes are {', '.join(found)}"
        planned += [Job(name, mode, count, its) for count in threads for mode in chosen]
    for mode in wanted or ():
        if mode not in present:
            raise ArgumentError(f"mode: given {mode!r}, expected one of {', '.join(present)}")
    return planned, versions, left_out


def run(job: Job, *, seconds: float, slow: bool) -> Generator[dict[str, Any], None, None]:
    """Measure the rows of a job in a fresh process, in their order; see `_row`.

    Raises
    ------
    BackendError
        If the process ends before its last row; the message has its exit status and the last line that it said.
    """
    environment = {**os.environ, **dict.fromkeys(_THREADS, str(job.threads))}
    program = "from unirnn_bench.harness import worker_main; worker_main()"
    task = json.dumps({**asdict(job), "seconds": seconds, "slow": slow})
    done = 0
    with tempfile.TemporaryFile("w+", errors="replace") as said, tempfile.TemporaryDirectory() as folder:
        # In a folder of its own, where MindSpore leaves its files.
        with subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            env=environment,
            cwd=folder,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.write(task)
                process.stdin.close()
                for line in process.stdout:
                    yield json.loads(line)
                    done += 1
            except BaseException:  # of whoever takes the rows: nobody waits for the others
                process.kill()
                raise
        if done < len(job.layers):
            said.seek(0)
            last = (said.read().strip().splitlines() or ["it said nothing"])[-1]
            status = process.returncode
            raise BackendError(f"{job.backend}, {job.mode}: ended with {status} at {job.layers[done]}: {last}")


def worker_main() -> None:
    """The process of a job: the job on standard input, a line for each row on standard output."""
    rows = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a framework prints is no row
    task = json.load(sys.stdin)
    room = registry.load(task["backend"])
    for layer in task["layers"]:
        row = _row(room, Layer(**layer), task["mode"], task["threads"], task["seconds"], task["slow"])
        rows.write(json.dumps(row) + "\n")


def machine() -> dict[str, Any]:
    """Where and when: for the head of a report."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
