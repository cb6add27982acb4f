"""Measure functions in turns and in random order, so that a change in the speed of the machine affects all of them."""

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["REST", "measure"]

_SHORTEST_SAMPLE = 1e-3
"""The shortest time of a turn, in seconds. A faster function is called several times in a row, so that the resolution
of the clock and cold caches matter little."""

REST = 0.03
"""How many seconds to wait before each turn if several threads are used. After a call, the threads of a library keep
spinning for a while, and would take the cores away from the next function."""


def measure(
    calls: Mapping[str, Callable[[], object]], seconds: float, *, rest: float = 0
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Measure functions that take turns.

    Parameters
    ----------
    calls
        The functions by name.
    seconds
        How long to measure all of them together. Each is called at least five times, or only once if that takes all of
        the time.
    rest
        How many seconds to wait before each turn; see `REST`. If it is not 0, turns are ten times as long.

    Returns
    -------
    times
        The samples of each function, in seconds per call.
    errors
        The error of each function that raised one. This does not affect the other functions.

    Examples
    --------
    >>> times, errors = measure({"ours": lambda: sum(range(1000)), "native": lambda: 1 // 0}, 0.1)
    >>> len(times["ours"]) >= 5, errors
    (True, {'native': 'ZeroDivisionError: integer division or modulo by zero'})
    """
    shortest = 10 * _SHORTEST_SAMPLE if rest else _SHORTEST_SAMPLE
    timed: dict[str, _Timed] = {}
    errors: dict[str, str] = {}
    for name, call in calls.items():
        try:
            timed[name] = _warm_up(call, shortest, seconds)
        except Exception as error:  # an error of one function must not stop the others
            errors[name] = f"{type(error).__name__}: {error}"
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        _take_turns(list(timed.values()), seconds, rest)
    finally:
        if collecting:
            gc.enable()
    return {name: one.samples for name, one in timed.items()}, errors


@dataclass
class _Timed:
    call: Callable[[], object]
    repeats: int  # calls per turn
    samples: list[float]  # seconds per call
    spent: float  # seconds in total


def _warm_up(call: Callable[[], object], shortest: float, seconds: float) -> _Timed:
    start = time.perf_counter()
    call()  # the first call builds sessions and graphs
    if time.perf_counter() - start < seconds:
        call()  # finds the caches and the memory as a call in a loop does
    took, repeats = 0.0, 0
    while took < shortest:
        start = time.perf_counter()
        call()
        took += time.perf_counter() - start
        repeats += 1
    if took > seconds:  # too slow to be called again: this is its only sample
        return _Timed(call, repeats, [took / repeats], took / repeats)
    return _Timed(call, repeats, [], 0.0)


def _take_turns(timed: Sequence[_Timed], seconds: float, rest: float) -> None:
    order, rounds = list(timed), 0
    shuffle = random.Random(0).shuffle
    while order and (rounds < 5 or sum(one.spent for one in timed) < seconds):
        shuffle(order)
        for one in order:
            if one.spent > seconds:
                continue
            if rest:
                time.sleep(rest)
            if one.repeats > 1:
                one.call()  # not measured: it pays for the caches and the memory that another function left behind
            start = time.perf_counter()
            for _ in range(one.repeats):
                one.call()
            took = time.perf_counter() - start
            one.spent += took
            one.samples.append(took / one.repeats)
        rounds += 1
