"""Measure how much the memory of a process grows per training step: with layers of unirnn, native ones, and none.

    python benchmarks/memory.py

A training step is a forward pass, a loss, its gradient, and one update by the framework's own SGD, for 4 sequences of
10 time steps with 16 features. Each measurement has a process of its own. After a warm-up of 200 training steps, the
resident memory is read after every hundredth one. Before each reading, garbage is collected and, if the C library is
glibc, the free memory of the heap is returned to the system. The growth is the median of the slopes between all pairs
of readings (the Theil-Sen estimator), which is not affected by a single outlier.

In MindSpore's PyNative mode, memory also grows because of the loss and its gradient. Therefore each framework is also
measured with weights, a loss and an update, but without a layer. The difference is the layer's share.

The exit status is 1 if memory grows by more than is allowed with a layer of unirnn. Frameworks that are not installed
are left out.
"""

import argparse
import ctypes
import gc
import json
import multiprocessing
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, registry
from unirnn.errors import MissingBackendError

STEPS, BATCH, SIZE = 10, 4, 16
WARM_UP, SAMPLE_EVERY = 200, 100
BATCHES = 7  # the number of batches, which have different lengths and take turns
LEARNING_RATE = 0.01
SPECS: dict[str, RecurrentSpec] = {"GRU": GRUSpec(SIZE, SIZE), "LSTM": LSTMSpec(SIZE, SIZE)}
LENGTHS = ("dense", "ragged")
MODES = {"numpy": ("eager",), "torch": ("eager",), "mindspore": ("eager", "jit")}

# Growth of up to this many bytes per step is ignored: allocators take memory in pages of 4 KiB at unpredictable times,
# and this is one page in 80 steps. A leak would be larger, since even the smallest array has a header of 112 bytes.
NOISE = 50
# In MindSpore 2.10, memory grows by about 670 bytes for each shape, axis or flag that is passed to an operator.
BARS = {("mindspore", "eager"): 5000}

Array = NDArray[Any]
Step = Callable[[int], object]

console = Console()


@dataclass(frozen=True)
class Case:
    """The measurement of one process."""

    framework: str
    mode: str
    cell: str
    lengths: str
    layer: str

    @property
    def bar(self) -> int:
        """How much memory may grow with a layer of unirnn, in bytes per step."""
        return BARS.get((self.framework, self.mode), NOISE)


@dataclass(frozen=True)
class Growth:
    """The result of a case."""

    bytes_per_step: float
    total_bytes: int


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--framework", action="append", choices=MODES, help="measure this framework (repeatable)")
    parser.add_argument("--steps", type=int, default=2000, help="number of steps, with the warm-up (default: 2000)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there as well")
    options = parser.parse_args(arguments)
    if options.steps < WARM_UP + 4 * SAMPLE_EVERY:
        parser.error(f"--steps must be at least {WARM_UP + 4 * SAMPLE_EVERY}")

    found: dict[Case, Growth] = {}
    for case in cases(installed(options.framework or list(MODES))):
        with console.status(" ".join(asdict(case).values())):
            found[case] = in_a_process(case, options.steps)
    wrong = show(found)
    if options.json:
        rows = [{**asdict(case), **asdict(growth), "bar": case.bar} for case, growth in found.items()]
        options.json.write_text(json.dumps({"steps": options.steps, "growth": rows}, indent=2) + "\n")
    for complaint in wrong:
        console.print(f"[bold red]Failed:[/] {complaint}")
    return 1 if wrong else 0


def installed(names: Sequence[str]) -> list[str]:
    """Return the frameworks that are installed; print which ones are not, and how to install them."""
    present = []
    for name in names:
        try:
            registry.load(name)
        except MissingBackendError as error:
            # The message may have brackets, as in 'unirnn[torch]', which are not markup.
            console.print(f"Left out: {error}", style="yellow", markup=False, highlight=False, soft_wrap=True)
        else:
            present.append(name)
    return present


def cases(frameworks: Sequence[str]) -> list[Case]:
    """List the cases in the order of the table. Native layers are only measured on dense input."""
    found = []
    for framework in frameworks:
        for mode in MODES[framework]:
            found.append(Case(framework, mode, "-", "-", "none"))
            for cell in SPECS:
                found += [Case(framework, mode, cell, lengths, "ours") for lengths in LENGTHS]
                if framework != "numpy":
                    found.append(Case(framework, mode, cell, "dense", "native"))
    return found


def in_a_process(case: Case, steps: int) -> Growth:
    """Measure a case in a fresh interpreter, so that earlier cases don't affect its memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (case, steps))


def measure(case: Case, steps: int) -> Growth:
    """Train, and observe the memory of this process."""
    step = training(case)
    counts, sizes = [], []
    for count in range(1, steps + 1):
        step(count % BATCHES)
        if count >= WARM_UP and count % SAMPLE_EVERY == 0:
            counts.append(count)
            sizes.append(resident_bytes())
    slopes = [(b - a) / (n - m) for (m, a), (n, b) in combinations(zip(counts, sizes, strict=True), 2)]
    return Growth(statistics.median(slopes), sizes[-1] - sizes[0])


def resident_bytes() -> int:
    """Return the resident memory of this process, without memory that it could return to the system."""
    gc.collect()
    if sys.platform == "linux":
        # Free pages of the heap don't count as growth, and are returned at unpredictable times.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl does not
        if trim is not None:
            trim(0)
    return int(psutil.Process().memory_info().rss)


def training(case: Case) -> Step:
    """Return a function that does one training step, given the number of the batch."""
    os.environ.setdefault("GLOG_v", "3")  # stop MindSpore from warning about devices that this machine lacks
    rng = np.random.default_rng(0)
    x = rng.standard_normal((STEPS, BATCH, SIZE)).astype(np.float32)
    ragged = [rng.integers(1, STEPS + 1, BATCH) for _ in range(BATCHES)]
    lengths = ragged if case.lengths == "ragged" else None
    return {"numpy": numpy_training, "torch": torch_training, "mindspore": mindspore_training}[case.framework](
        case, x, lengths
    )


def numpy_training(case: Case, x: Array, lengths: list[Array] | None) -> Step:
    """Train in NumPy. It has no optimizer, so the update is written out."""
    if case.layer == "none":
        weight = np.ones((SIZE, SIZE), np.float32)

        def bare(batch: int) -> None:
            weight[...] -= LEARNING_RATE * 2 / weight.size * weight

        return bare

    module: Any = SPECS[case.cell].build("numpy", seed=0)

    def step(batch: int) -> None:
        output, _, pullback = module.vjp(x, seq_length=None if lengths is None else lengths[batch])
        gradients = pullback(2 / output.size * output, None)
        for name, weight in module.weights.items():
            weight -= LEARNING_RATE * gradients[name]

    return step


def torch_training(case: Case, x: Array, lengths: list[Array] | None) -> Step:
    """Train in PyTorch's usual loop."""
    import torch

    torch.set_num_threads(1)  # for such small sizes, more threads would only wait
    layer: Any
    if case.layer == "none":
        layer = torch.nn.ParameterList([torch.ones(SIZE, SIZE)])
    elif case.layer == "ours":
        layer = SPECS[case.cell].build("torch", seed=0)
    else:
        layer = getattr(torch.nn, case.cell)(SIZE, SIZE)
    optimizer = torch.optim.SGD(layer.parameters(), lr=LEARNING_RATE)
    features = torch.from_numpy(x)

    def output(batch: int) -> torch.Tensor:
        result: torch.Tensor
        if case.layer == "none":
            (result,) = layer
        elif lengths is None:
            result, _ = layer(features)
        else:
            result, _ = layer(features, seq_length=torch.from_numpy(lengths[batch]))
        return result

    def step(batch: int) -> None:
        optimizer.zero_grad()
        output(batch).square().mean().backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def mindspore_training(case: Case, x: Array, lengths: list[Array] | None) -> Step:
    """Train in MindSpore's usual loop. In mode jit, the gradient is one compiled graph."""
    import mindspore

    mindspore.runtime.launch_blocking()  # otherwise threads free memory at unpredictable times
    layer: Any = None
    if case.layer == "none":
        weights = mindspore.ParameterTuple([mindspore.Parameter(mindspore.ops.ones((SIZE, SIZE)), name="weight")])
    else:
        ours = case.layer == "ours"
        layer = SPECS[case.cell].build("mindspore", seed=0) if ours else getattr(mindspore.nn, case.cell)(SIZE, SIZE)
        weights = mindspore.ParameterTuple(layer.trainable_params())
    optimizer = mindspore.nn.SGD(weights, learning_rate=LEARNING_RATE)
    features = mindspore.Tensor(x)
    batches = [None] * BATCHES if lengths is None else [mindspore.Tensor(ns) for ns in lengths]

    def without_layer(features: Any, seq_length: Any) -> Any:
        return weights[0].square().mean()

    def dense(features: Any, seq_length: Any) -> Any:
        output, _ = layer(features)
        return output.square().mean()

    def ragged(features: Any, seq_length: Any) -> Any:
        output, _ = layer(features, seq_length=seq_length)
        return output.square().mean()

    loss = without_layer if layer is None else dense if lengths is None else ragged
    gradient = mindspore.value_and_grad(loss, None, weights)
    if case.mode == "jit":
        gradient = mindspore.jit(gradient)

    def step(batch: int) -> None:
        value, gradients = gradient(features, batches[batch])
        optimizer(gradients)
        value.asnumpy()

    return step


def show(found: dict[Case, Growth]) -> list[str]:
    """Print the table, and return a complaint for each layer of unirnn with which memory grows too much."""
    table = Table("framework", "layer", "cell", "lengths", title="Growth of the process")
    for heading in ("bytes\nper step", "layer's\nshare", "KiB\nin total", "bar"):
        table.add_column(heading, justify="right")
    wrong = []
    for case, growth in found.items():
        bare = found[Case(case.framework, case.mode, "-", "-", "none")]
        exceeds = case.layer == "ours" and growth.bytes_per_step > case.bar
        if exceeds:
            what = f"{case.framework}, {case.mode}, {case.cell}, {case.lengths}"
            wrong.append(f"{what}: {growth.bytes_per_step:,.0f} bytes per step, expected at most {case.bar:,}")
        if case.layer == "none":
            table.add_section()
        table.add_row(
            f"{case.framework} {case.mode}",
            case.layer,
            case.cell,
            case.lengths,
            f"[bold red]{growth.bytes_per_step:,.0f}[/]" if exceeds else f"{growth.bytes_per_step:,.0f}",
            "" if case.layer == "none" else f"{growth.bytes_per_step - bare.bytes_per_step:,.0f}",
            f"{growth.total_bytes / 1024:,.0f}",
            f"{case.bar:,}" if case.layer == "ours" else "",
        )
    console.print(table)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
