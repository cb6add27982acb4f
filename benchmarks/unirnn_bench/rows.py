"""Measure one row of the benchmark."""

import functools
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from unirnn import registry
from unirnn.contract.backend import Backend
from unirnn.errors import BackendError
from unirnn.kernels import library

from . import baselines
from .timing import REST, measure
from .work import Layer, Work

__all__ = ["measure_row"]

REFERENCES = ("torch", "onnxruntime")
"""Every backend is compared with the native layers of these backends, on dense input."""


def measure_row(
    backend: Backend, layer: Layer, *, mode: str, threads: int, seconds: float, slow: bool
) -> dict[str, Any]:
    """Measure a layer on a backend, together with its baselines.

    Parameters
    ----------
    backend
        The backend that computes the row.
    layer
        The layer or model of the row.
    mode
        One of the modes of the backend; see `unirnn_bench.baselines`.
    threads
        The number of threads, with which the process should have been started.
    seconds
        How long to measure all implementations together.
    slow
        Whether to include baselines that take minutes.

    Returns
    -------
    dict
        ``times`` has the median and the quartiles (in seconds) and the number of samples of each implementation,
        ``ratios`` the time of ``ours`` divided by that of each baseline, and ``errors`` the error of each
        implementation that failed. ``peak`` is the share of the processor's peak that ``ours`` reaches, or None if it
        is not known; the peak is measured alternately with the implementations. ``fill`` is the fraction of valid
        steps. The other keys identify the row.
    """
    work = Work.draw(layer, mode, threads, slow)
    calls = dict(baselines.load(backend).calls(work))
    dense = replace(work, seq_length=None, resets=None, mode="eager")
    for name in REFERENCES:
        if name != backend.name and _can_compare(name, layer, mode):
            calls[name] = baselines.load(registry.load(name)).calls(dense)["native"]
    peaks: list[float] = []
    compiled = None if mode == "cuda" else library.load()
    if compiled is not None:
        calls["peak"] = lambda: peaks.append(compiled.unirnn_peak(0))
    times, errors = measure(calls, seconds, rest=REST if threads > 1 else 0)
    times.pop("peak", None)
    if backend.name in REFERENCES and "native" in times:
        times[backend.name] = times["native"]
    figures = {}
    for name, samples in times.items():
        first, median, third = np.percentile(samples, (25, 50, 75)).tolist()
        figures[name] = {"median": median, "quartiles": [first, third], "calls": len(samples)}
    ratios, share = {}, None
    if "ours" in figures:
        ours = figures["ours"]["median"]
        share = work.operations / (ours * threads * float(np.median(peaks))) if peaks else None
        ratios = {name: ours / figure["median"] for name, figure in figures.items() if name != "ours"}
    return {
        "backend": backend.name,
        "mode": mode,
        "threads": threads,
        **asdict(layer),
        "fill": work.fill,
        "times": figures,
        "ratios": ratios,
        "peak": share,
        "errors": errors,
    }


def _can_compare(reference: str, layer: Layer, mode: str) -> bool:
    """Whether one of `REFERENCES` is installed and can compute a row on the same device."""
    can_compute = reference != "onnxruntime" or not (layer.backward or layer.model is not None or mode == "cuda")
    return can_compute and _is_installed(reference)


@functools.cache
def _is_installed(backend: str) -> bool:
    try:
        registry.load(backend)
    except BackendError:
        return False
    return True
