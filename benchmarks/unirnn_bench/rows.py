"""Measures one row of the benchmark."""

import functools
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from unirnn import registry
from unirnn.contract.backend import Backend
from unirnn.errors import BackendError

from . import baselines
from .timing import REST, measure
from .work import Layer, Work

__all__ = ["measure_row"]

REFERENCE = "torch"
"""The backend whose native layer, on dense input, every backend is compared with."""


def measure_row(
    backend: Backend, layer: Layer, *, mode: str, threads: int, seconds: float, slow: bool
) -> dict[str, Any]:
    """Measure a layer on a backend, together with its baselines.

    Parameters
    ----------
    backend
        Where.
    layer
        What.
    mode
        One of the modes of the backend; see `unirnn_bench.baselines`.
    threads
        How many threads may be used. The process should have been started with as many.
    seconds
        How long to measure all implementations together.
    slow
        Whether to measure baselines that take minutes as well.

    Returns
    -------
    dict
        ``times`` has the median, the quartiles (in seconds) and the number of samples of each implementation;
        ``ratios``, for each baseline, the time of ours divided by the baseline's; ``errors``, what failed and why;
        ``fill``, the fraction of valid steps. The other keys say which row it is.
    """
    work = Work.draw(layer, mode, threads, slow)
    calls = dict(baselines.load(backend).calls(work))
    if backend.name != REFERENCE and _has_reference():
        reference = baselines.load(registry.load(REFERENCE))
        calls[REFERENCE] = reference.calls(replace(work, seq_length=None, mode=reference.MODES[0]))["native"]
    times, errors = measure(calls, seconds, rest=REST if threads > 1 else 0)
    if backend.name == REFERENCE and "native" in times:
        times[REFERENCE] = times["native"]
    figures = {}
    for name, samples in times.items():
        first, median, third = np.percentile(samples, (25, 50, 75)).tolist()
        figures[name] = {"median": median, "quartiles": [first, third], "calls": len(samples)}
    ratios = {}
    if "ours" in figures:
        ours = figures["ours"]["median"]
        ratios = {name: ours / figure["median"] for name, figure in figures.items() if name != "ours"}
    return {
        "backend": backend.name,
        "mode": mode,
        "threads": threads,
        **asdict(layer),
        "fill": work.fill,
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
