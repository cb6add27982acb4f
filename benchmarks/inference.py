"""How fast ONNX Runtime's backend infers: beside PyTorch's layer, and beside a bare node of ONNX Runtime.

    python benchmarks/inference.py

One thread each, float32, one layer. The bare node is the floor: a session of a graph that holds one recurrent node and
nothing else, which knows no promise on lengths. Calls are interleaved, so that whatever else the machine does meets all
of them alike; a figure is a median, and what is said is a ratio within one run.

The exit status is 1 if the backend takes more than `BAR` times the bare node's time where nothing is ragged.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from rich.console import Console
from rich.table import Table

from unirnn import GRUSpec, LSTMSpec, RNNSpec, Snapshot, Spec, snapshot

SIZES = {"long, B = 1": (1000, 1, 32), "short, B = 32": (100, 32, 128)}
BAR = 1.5
SECONDS = 10.0  # of each row


def bare(taken: Snapshot) -> Any:
    """A session of one recurrent node."""
    helper, float32 = onnx.helper, onnx.TensorProto.FLOAT
    arrays = taken.to("onnx")
    options: dict[str, Any] = {"linear_before_reset": 1} if isinstance(taken.spec, GRUSpec) else {}
    node = helper.make_node(
        taken.spec.cell, ["input", *arrays], ["output"], hidden_size=taken.spec.hidden_size, **options
    )
    graph = helper.make_graph(
        [node],
        "bare",
        [helper.make_tensor_value_info("input", float32, ["T", "B", taken.spec.input_size])],
        [helper.make_tensor_value_info("output", float32, ["T", 1, "B", taken.spec.hidden_size])],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    session_options = onnxruntime.SessionOptions()
    session_options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), session_options, ["CPUExecutionProvider"])


def calls(spec: Spec, steps: int, batch_size: int) -> dict[str, Callable[[], Any]]:
    """What is compared, by name."""
    taken = snapshot(spec.build("numpy", seed=0))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((steps, batch_size, spec.input_size)).astype(np.float32)
    lengths = rng.integers(1, steps + 1, batch_size)
    floor = bare(taken)
    ours = taken.build("onnxruntime", session_options={"intra_op_num_threads": 1})
    native: Any = getattr(torch.nn, spec.cell)(**spec.to_kwargs("torch")).eval()
    x_t = torch.from_numpy(x)
    return {
        "bare node": lambda: floor.run(None, {"input": x}),
        "torch.nn": lambda: native(x_t),
        "ours": lambda: ours(x),
        "ours, all T": lambda: ours(x, seq_length=[steps] * batch_size),
        "ours, ragged": lambda: ours(x, seq_length=lengths),
    }


def measure(compared: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Medians in milliseconds, of calls by turns."""
    times: dict[str, list[float]] = {name: [] for name in compared}
    end = time.perf_counter() + SECONDS
    for turn in range(1_000_000):
        for name, call in compared.items():
            start = time.perf_counter()
            call()
            if turn:  # the first makes sessions, and warms up
                times[name].append(1e3 * (time.perf_counter() - start))
        if turn > 4 and time.perf_counter() > end:
            break
    return {name: statistics.median(found) for name, found in times.items()}


def main() -> int:
    """Measure and print; 1 if the bar is passed."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    torch.set_num_threads(1)
    table = Table("layer", "size", "bare node, ms", "torch.nn", "ours", "ours, all T", "ours, ragged", "torch / ours")
    passed = True
    with torch.no_grad():
        for kind in (GRUSpec, LSTMSpec, RNNSpec):
            for size, (steps, batch_size, features) in SIZES.items():
                found = measure(calls(kind(features, features), steps, batch_size))
                floor = found["bare node"]
                ratios = [f"{ms / floor:.2f}" for name, ms in found.items() if name != "bare node"]
                table.add_row(kind.cell, size, f"{floor:.2f}", *ratios, f"{found['torch.nn'] / found['ours']:.1f}")
                passed = passed and found["ours"] <= BAR * floor
    console = Console()
    console.print("One thread, float32; T, B, I = H:", ", ".join(f"{name}: {size}" for name, size in SIZES.items()))
    console.print("Ratios to the bare node, but for the last column.", table)
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
