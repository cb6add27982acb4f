"""Measure what unirnn costs apart from the time of its calls.

    python benchmarks/overheads.py

It measures these parts; ``--only`` selects one of them:

- ``import``: the time of ``import unirnn`` and of ``import numpy``, alternately, in fresh interpreters.
- ``first call``: the time of the first and of the second call of a layer, in fresh interpreters.
- ``build``: the time of ``build`` and of the native constructors of PyTorch and MindSpore, alternately, in one process.
- ``peak memory``: by how much the memory of a process grows, at its peak, during training steps of size L, compared
  with PyTorch's native layer. Each layer is measured in a process of its own, after a training step of a tiny layer, so
  that one-time allocations of the framework don't count.
- ``scaling``: whether time grows in proportion to the work. Training steps are measured with twice T, with twice B, and
  with as many sequences of length 0 added.
- ``load``: the time to load a snapshot of 1 GiB, compared with ``safetensors.numpy.load_file`` of the same file.

Frameworks that are not installed are left out.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from unirnn_bench import baselines
from unirnn_bench.processes import describe_machine
from unirnn_bench.timing import measure
from unirnn_bench.work import SIZES, Work

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, load, registry

FRAMEWORKS = [name for name in ("torch", "mindspore") if find_spec(name)]
LARGE = 2**30  # the size of the snapshot that is loaded, in bytes
SPECS: list[RecurrentSpec] = [kind(128, 128) for kind in (RNNSpec, GRUSpec, LSTMSpec)]

console = Console()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    parser.add_argument("--only", choices=PARTS, action="append", help="measure this part (repeatable)")
    options = parser.parse_args(arguments)
    os.environ.setdefault("GLOG_v", "3")  # stop MindSpore from warning about devices that this machine lacks
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    rows: list[dict[str, Any]] = []
    for part in options.only or PARTS:
        with console.status(part):
            rows += [{"part": part, **row} for row in PARTS[part]()]
    table = Table("part", "what", "ours", "other", "unit", "ratio")
    for row in rows:
        row["ratio"] = row["ours"] / row["other"]
        figures = (f"{row[name]:.4g}" for name in ("ours", "other"))
        table.add_row(row["part"], row["what"], *figures, row["unit"], f"{row['ratio']:.2f}")
    console.print(table)
    if options.json:
        command = shlex.join(["python", "benchmarks/overheads.py", *(sys.argv[1:] if arguments is None else arguments)])
        versions = {name: registry.load(name).version() for name in ("numpy", *FRAMEWORKS)}
        report = {"command": command, **describe_machine(), "versions": versions, "overheads": rows}
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return 0


# ---- import --------------------------------------------------------------------------------------


def imports() -> list[dict[str, Any]]:
    """Measure the import, without the start of the interpreter."""
    times: dict[str, list[float]] = {"unirnn": [], "numpy": []}
    for _ in range(15):
        for module, taken in times.items():
            program = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
            result = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
            taken.append(1e3 * float(result.stdout))
    ours, other = (statistics.median(taken) for taken in times.values())
    return [{"what": "unirnn / numpy", "ours": ours, "other": other, "unit": "ms"}]


# ---- first call ----------------------------------------------------------------------------------

FIRST_CALL = """
import sys, time
from unirnn_bench import baselines
from unirnn_bench.work import Layer, Work
from unirnn import registry

work = Work.draw(Layer("GRU", "S", 1, False, "dense", False), "eager", 1, False)
ours = baselines.load(registry.load(sys.argv[1])).calls(work)["ours"]
for _ in range(2):
    start = time.perf_counter()
    ours()
    print(time.perf_counter() - start)
"""


def first_calls() -> list[dict[str, Any]]:
    """Measure the first two calls of a GRU of size S. MindSpore is left out, since its own start takes longer."""
    rows = []
    for framework in [name for name in ("numpy", *FRAMEWORKS) if name != "mindspore"]:
        taken = []
        for _ in range(7):
            command = [sys.executable, "-c", FIRST_CALL, framework]
            result = subprocess.run(command, check=True, capture_output=True, text=True)
            taken.append([1e3 * float(line) for line in result.stdout.split()])
        first, second = (statistics.median(times) for times in zip(*taken, strict=True))
        rows.append({"what": f"{framework}, first / second", "ours": first, "other": second, "unit": "ms"})
    return rows


# ---- build ---------------------------------------------------------------------------------------


def builds() -> list[dict[str, Any]]:
    """Measure `build` without a seed, which draws the weights in the same way as the native constructor."""
    return [
        compare(f"{framework}, {spec.kind}", partial(spec.build, framework), native(framework, spec), seconds=1)
        for framework in FRAMEWORKS
        for spec in SPECS
    ]


def native(framework: str, spec: RecurrentSpec) -> Callable[[], Any]:
    """Return the constructor of the framework's own layer."""
    module: Any = __import__(f"{framework}.nn").nn
    return lambda: getattr(module, spec.kind)(**spec.to_kwargs(framework))


def compare(what: str, ours: Callable[[], object], other: Callable[[], object], *, seconds: float) -> dict[str, Any]:
    """Measure two functions alternately, and return a row with their medians."""
    times, errors = measure({"ours": ours, "other": other}, seconds)
    if errors:
        raise RuntimeError(f"{what}: {errors}")
    return {"what": what, "unit": "ms", **{name: 1e3 * statistics.median(taken) for name, taken in times.items()}}


# ---- peak memory ---------------------------------------------------------------------------------


def peaks() -> list[dict[str, Any]]:
    """Measure the memory of dense training steps at size L."""
    rows = []
    for spec in SPECS:
        if "torch" not in FRAMEWORKS:
            break
        other = peak_in_a_process("torch", spec.kind, ours=False)
        for framework in ("numpy", *FRAMEWORKS):
            ours = peak_in_a_process(framework, spec.kind, ours=True)
            rows.append({"what": f"{framework}, {spec.kind} / torch.nn", "ours": ours, "other": other, "unit": "MiB"})
    return rows


def peak_in_a_process(framework: str, cell: str, *, ours: bool) -> float:
    """Measure the peak memory in a fresh interpreter."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(peak, (framework, cell, ours))


def peak(framework: str, cell: str, ours: bool) -> float:
    """Return by how many MiB the peak of this process grows during three training steps."""
    step, small = training(framework, cell, ours, tuple(SIZES["L"])), training(framework, cell, ours, (3, 2, 4, 4))
    small()  # loads libraries and makes one-time allocations
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # makes Linux reset the recorded peak
    for _ in range(3):
        step()
    return (resident("VmHWM") - before) / 1024


def resident(field: str) -> int:
    """Return the memory of this process in KiB: ``VmRSS`` is the current amount, ``VmHWM`` the peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1])


def training(framework: str, cell: str, ours: bool, size: tuple[int, ...]) -> Callable[[], object]:
    """Return a training step: a forward pass, and the gradients of the input and the weights."""
    steps, batch_size, input_size, hidden_size = size
    spec: RecurrentSpec = RecurrentSpec.from_dict({"kind": cell, "input_size": input_size, "hidden_size": hidden_size})
    x = np.ones((steps, batch_size, input_size), np.float32)
    d_output = np.ones((steps, batch_size, hidden_size), np.float32)
    layer: Any = spec.build(framework) if ours else native(framework, spec)()
    if framework == "numpy":
        return lambda: layer.vjp(x)[2](d_output, None)
    if framework == "torch":
        import torch

        torch.set_num_threads(1)
        input, d = torch.from_numpy(x).requires_grad_(), torch.from_numpy(d_output)
        return lambda: torch.autograd.grad(layer(input)[0], [input, *layer.parameters()], d)
    import mindspore

    mindspore.runtime.launch_blocking()
    x_m, d_m = mindspore.Tensor(x), mindspore.Tensor(d_output)
    gradient = mindspore.grad(lambda x: (layer(x)[0] * d_m).sum(), 0, layer.trainable_params())
    return lambda: gradient(x_m)


# ---- scaling -------------------------------------------------------------------------------------


def scaling() -> list[dict[str, Any]]:
    """Measure a GRU of size M with lengths, forward and backward."""
    steps, batch_size, *_ = SIZES["M"]
    full = np.full(batch_size, steps)
    rows = []
    for framework in ("numpy", *FRAMEWORKS):
        once = gru_step(framework, steps, full)
        for what, other in (
            ("2 T / T", gru_step(framework, 2 * steps, 2 * full)),
            ("2 B / B", gru_step(framework, steps, np.repeat(full, 2))),
            ("zero lengths / none", gru_step(framework, steps, np.stack((full, 0 * full), axis=1).ravel())),
        ):
            rows.append(compare(f"{framework}, {what}", other, once, seconds=3))
    return rows


def gru_step(framework: str, steps: int, seq_length: NDArray[np.int64]) -> Callable[[], object]:
    """Return the call that `unirnn bench` measures as ``ours``."""
    spec = GRUSpec(*SIZES["M"][2:])
    rng = np.random.default_rng(0)
    input, d_output = rng.standard_normal((2, steps, len(seq_length), spec.hidden_size), np.float32)
    work = Work(spec, input, None, seq_length, None, d_output, "eager", 1, slow=False)
    return baselines.load(registry.load(framework)).calls(work)["ours"]


# ---- loading -------------------------------------------------------------------------------------


def loading() -> list[dict[str, Any]]:
    """Measure loading a snapshot of 1 GiB."""
    from safetensors.numpy import load_file

    hidden = round((LARGE / 4 / 8) ** 0.5)  # an LSTM has 8 square matrices
    spec = LSTMSpec(hidden, hidden)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "large.safetensors"
        Snapshot(spec, {name: np.zeros(shape, np.float32) for name, shape in spec.weight_shapes().items()}).save(path)
        size = path.stat().st_size / 2**30
        return [
            compare(
                f"snapshot of {size:.2f} GiB / safetensors", lambda: load(path), lambda: load_file(path), seconds=10
            )
        ]


PARTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "import": imports,
    "first call": first_calls,
    "build": builds,
    "peak memory": peaks,
    "scaling": scaling,
    "load": loading,
}

if __name__ == "__main__":
    started = time.perf_counter()
    status = main()
    console.print(f"{time.perf_counter() - started:.0f} seconds")
    sys.exit(status)
