"""Plan which rows of the benchmark are measured, and in which process."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from unirnn import registry
from unirnn.contract.backend import Backend
from unirnn.errors import ArgumentError, UnirnnError
from unirnn.specs import RecurrentSpec

from . import baselines
from .work import LENGTHS, MODELS, SIZES, STEPS, Layer

__all__ = ["WHOLE", "Grid", "Job", "Plan", "plan"]


@dataclass(frozen=True)
class Grid:
    """The rows that are measured on each backend: all combinations of these options, forward and with backward.

    There are two exceptions. A size of one step is only measured dense, for one layer in one direction, and forward. A
    size of a model has one layer in two directions, and no resets.

    Raises
    ------
    ArgumentError
        If a size, a kind of lengths or a number of threads is not valid.

    Examples
    --------
    >>> for layer in Grid(cells=("GRU",), sizes=("S", "step"), lengths=("short",)).layers():
    ...     print(layer)
    GRU S, 1 layer, short, forward
    GRU S, 1 layer, short, with backward
    GRU step, 1 layer, dense, forward
    """

    cells: tuple[str, ...] = ("RNN", "GRU", "LSTM")
    sizes: tuple[str, ...] = ("S", "M", "step")
    num_layers: tuple[int, ...] = (1,)
    bidirectional: tuple[bool, ...] = (False,)
    lengths: tuple[str, ...] = ("dense", "uniform")
    threads: tuple[int, ...] = (1,)
    modes: tuple[str, ...] | None = None
    """The modes to measure, see `unirnn_bench.baselines`; None means all modes of each backend."""

    def __post_init__(self) -> None:
        for what, given, known in (("size", self.sizes, tuple(SIZES)), ("lengths", self.lengths, LENGTHS)):
            for name in given:
                if name not in known:
                    raise ArgumentError(f"{what}: given {name!r}, expected one of {', '.join(known)}")
        if any(count < 1 for count in self.threads):
            raise ArgumentError(f"threads: given {min(self.threads)}, expected at least 1")

    def layers(self) -> tuple[Layer, ...]:
        """List the layers, without duplicates.

        Raises
        ------
        SpecError
            If a number of layers is not valid.
        """
        layers: dict[Layer, None] = {}
        for cell, size, number, both, lengths, backward in itertools.product(
            self.cells, self.sizes, self.num_layers, self.bidirectional, self.lengths, (False, True)
        ):
            layer = Layer(cell, size, number, both, lengths, backward)
            if size in STEPS:
                layer = Layer(cell, size, 1, False, "dense", False)
            if size in MODELS:
                layer = Layer(cell, size, 1, True, "dense" if lengths == "resets" else lengths, backward)
            _ = layer.spec  # an invalid layer raises its error here, not later in a process
            layers[layer] = None
        return tuple(layers)


WHOLE = Grid(sizes=tuple(SIZES), num_layers=(1, 2), bidirectional=(False, True), lengths=LENGTHS)
"""All rows that can be measured with one thread."""


@dataclass(frozen=True)
class Job:
    """The rows that one process measures."""

    backend: str
    mode: str
    threads: int
    layers: tuple[Layer, ...]


class Plan(NamedTuple):
    """The jobs, the version of each backend that is measured, and for each other backend why it is left out."""

    jobs: list[Job]
    versions: dict[str, str]
    left_out: dict[str, str]


def plan(grid: Grid, backends: Sequence[str] | None = None) -> Plan:
    """Plan a benchmark.

    Parameters
    ----------
    grid
        The rows to measure on each backend.
    backends
        The names of the backends. None means every backend that is installed and can build without further options.

    Raises
    ------
    BackendError
        If a backend that was requested by name is not available.
    ArgumentError
        If a mode is not known to any backend, or if a backend that was requested by name needs further options.
    SpecError
        If a number of layers is not valid.
    """
    layers, threads = grid.layers(), tuple(dict.fromkeys(grid.threads))
    known_modes: dict[str, None] = {}
    jobs: list[Job] = []
    versions: dict[str, str] = {}
    left_out: dict[str, str] = {}
    for name in registry.backends() if backends is None else dict.fromkeys(backends):
        try:
            backend = _load(name)
        except UnirnnError as error:
            if backends is not None:
                raise
            left_out[name] = _why_left_out(name, error)
            continue
        modes = baselines.load(backend).MODES
        known_modes.update(dict.fromkeys(modes))
        chosen = [mode for mode in modes if grid.modes is None or mode in grid.modes]
        if not chosen:
            left_out[name] = f"its modes are {', '.join(modes)}"
            continue
        versions[name] = backend.version()
        possible = tuple(layer for layer in layers if _is_possible(backend, layer))
        jobs += [Job(name, mode, count, possible) for count in threads for mode in chosen]
    for mode in grid.modes or ():
        if mode not in known_modes:
            raise ArgumentError(f"mode: given {mode!r}, expected one of {', '.join(known_modes)}")
    return Plan(jobs, versions, left_out)


def _is_possible(backend: Backend, layer: Layer) -> bool:
    has_model = layer.model is None or backend.support.unsupported_reason(layer.model) is None
    return has_model and (backend.support.derivatives > 0 or not layer.backward)


def _why_left_out(name: str, error: UnirnnError) -> str:
    if isinstance(error, ArgumentError) and (options := registry.load(name).required_options):
        return f"it needs the option {', '.join(options)} of build, and can't be measured without one"
    return str(error)


def _load(name: str) -> Backend:
    backend = registry.load(name)
    # This raises an error for a backend that can't build without further options.
    RecurrentSpec.from_dict({"kind": "RNN", "input_size": 1, "hidden_size": 1}).build(name, seed=0)
    return backend
