"""One layer in one direction by several threads, each with some of the sequences.

Sequences need nothing of each other but the weights, so a thread runs all steps of its own ones, and the gradients of
the weights are added up at the end. Only compiled steps gain: calls of NumPy for a step are so short that threads
would wait for Python's lock.

Meanwhile the BLAS libraries have one thread each. Theirs go on spinning for some time after a product, and so take the
cores away from whoever computes next.
"""

import contextlib
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unirnn.kernels.directions import Direction, Kept, Weights
from unirnn.kernels.packing import Packing, Part
from unirnn.specs import RecurrentSpec

__all__ = ["Threads", "blas", "cores", "num_parts"]

Array = NDArray[Any]
State = tuple[Array, ...]
Result = TypeVar("Result")

_LEAST_SEQUENCES, _LEAST_WORK = 8, 2**28
"""How many sequences a thread has, and how many multiplications of the state, at least."""


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def num_parts(spec: RecurrentSpec, batch_size: int, valid: int, threads: int) -> int:
    """How many threads are worth while, up to so many, and up to those that BLAS would have.

    Parameters
    ----------
    spec
        The layer.
    batch_size
        How many sequences there are, without the empty ones.
    valid
        The sum of their lengths.
    threads
        How many there may be.
    """
    most = min(threads, batch_size // _LEAST_SEQUENCES)
    if most < 2:
        return 1
    work = valid * len(spec.gates) * spec.hidden_size**2
    wanted = min(most, work // _LEAST_WORK)
    return min(wanted, blas.most()) if wanted > 1 else 1


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), "unirnn")


@functools.cache
def _blas() -> list[Any]:
    """The BLAS libraries of this process whose threads are the process's; none are known without threadpoolctl."""
    try:
        from threadpoolctl import ThreadpoolController  # which takes longer to import than all of unirnn
    except ImportError:
        return []
    # numba takes SciPy's, and a library is found once it is loaded. A SciPy may not fit its NumPy.
    with contextlib.suppress(ImportError, OSError, AttributeError, ValueError):
        importlib.import_module("scipy.linalg.cython_blas")
    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    # By OpenMP each thread of Python has a count of its own, which others can't set back.
    return [library for library in libraries if getattr(library, "threading_layer", None) != "openmp"]


class _Blas:
    """How many threads BLAS may have, in the whole process: the fewest that any context wants which is entered."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._wanted: dict[object, int] = {}
        self._counts: list[tuple[Any, int]] = []

    @contextlib.contextmanager
    def of(self, count: int | None) -> Iterator[None]:
        """A context within which it has at most so many, in any thread; when the last is left it has its own again.

        None: as many as it has.
        """
        if count is None:
            yield
            return
        context = object()
        try:
            with self._lock:
                if not self._wanted:
                    self._counts = self._now()
                self._wanted[context] = count
                self._set()
            yield
        finally:
            with self._lock:
                if self._wanted.pop(context, None) is not None:  # in a forked process nobody is inside
                    self._set()

    def begin_child(self) -> None:
        """In a process that was forked: nobody is inside any more."""
        self._lock = threading.Lock()
        if self._wanted:
            self._wanted = {}
            self._set()

    def most(self) -> int:
        """How many threads BLAS has outside."""
        with self._lock:
            counts = self._counts if self._wanted else self._now()
        return max((count for _, count in counts), default=1)

    def _now(self) -> list[tuple[Any, int]]:
        """The libraries that have several, and how many."""
        counts = ((library, library.num_threads) for library in _blas())
        return [(library, count) for library, count in counts if count > 1]

    def _set(self) -> None:
        for library, count in self._counts:
            # From 3.8 on threadpoolctl lets one thread of Python set it, and ignores all others; here they agree.
            set_num_threads = getattr(library, "_real_set_num_threads", library.set_num_threads)
            set_num_threads(min(count, *self._wanted.values()) if self._wanted else count)


blas = _Blas()


def _begin_child() -> None:
    """A process that was forked has none of its parent's threads."""
    _pool.cache_clear()
    blas.begin_child()


if hasattr(os, "register_at_fork"):  # not on Windows, where nothing forks
    os.register_at_fork(after_in_child=_begin_child)


class Threads:
    """A `Direction` for each part of a packing; with one part that alone.

    Parameters
    ----------
    cell
        What the directions are.
    spec, weights, backward
        As those of `Direction`.
    packing
        The whole batch.
    """

    def __init__(
        self, cell: type[Direction], spec: RecurrentSpec, weights: Weights, packing: Packing, *, backward: bool
    ) -> None:
        self._parts = packing.parts
        self.directions = [cell(spec, weights, part, backward=backward) for part in packing.parts]
        self._size = spec.hidden_size

    def forward(self, x: Any, initial: State, *, keep: bool, into: Kept | None = None) -> tuple[Array, State]:
        """See `Direction.forward`."""
        if len(self._parts) == 1:
            return self.directions[0].forward(x, initial, keep=keep, into=into)
        whole = Kept(np.empty((len(x), self._size), x.dtype), None) if into is None else into

        def run(direction: Direction, part: Part) -> None:
            own = whole.of(part, direction.kept)
            direction.forward(x[part.rows], _of(part, initial), keep=keep, into=own)

        self._each(run)
        return whole.outputs, initial

    def resume(self, x: Any, initial: State, kept: Kept) -> None:
        """See `Direction.resume`."""
        for direction, part in zip(self.directions, self._parts, strict=True):
            direction.resume(x[part.rows], _of(part, initial), kept.of(part, direction.kept))

    def backward(self, d_outputs: Array, d_final: State, *, d_x: Any, of_weights: bool = True) -> tuple[State, Weights]:
        """See `Direction.backward`."""

        def run(direction: Direction, part: Part) -> tuple[State, Weights]:
            own = None if d_x is None else d_x[part.rows]
            return direction.backward(d_outputs[part.rows], _of(part, d_final), d_x=own, of_weights=of_weights)

        (d_state, d_weights), *others = self._each(run)
        for state, weights in others:
            d_state = tuple(map(np.concatenate, zip(d_state, state, strict=True)))
            for total, more in zip(d_weights, weights, strict=True):
                if total is not None:
                    total += more
        return d_state, d_weights

    def _each(self, run: Callable[[Direction, Part], Result]) -> list[Result]:
        """Run all parts, the first in this thread; of infinities NumPy says in the others what it says in this one."""
        errors: Any = {**np.geterr(), "call": np.geterrcall()}

        def alike(direction: Direction, part: Part) -> Result:
            with np.errstate(**errors):
                return run(direction, part)

        mine, *others = zip(self.directions, self._parts, strict=True)
        if not others:
            return [run(*mine)]
        with blas.of(1):
            waiting: list[Future[Result]] = []
            try:
                with contextlib.suppress(RuntimeError):  # when Python ends, there are no new threads
                    for other in others:
                        waiting.append(_pool().submit(alike, *other))
                mine_and_left = [run(*pair) for pair in (mine, *others[len(waiting) :])]
            finally:
                wait(waiting)  # whatever happens, nobody writes once this is left, and BLAS stays as it is until then
            return [mine_and_left[0], *(future.result() for future in waiting), *mine_and_left[1:]]


def _of(part: Part, state: Sequence[Array]) -> State:
    return tuple(array[part.sequences] for array in state)
