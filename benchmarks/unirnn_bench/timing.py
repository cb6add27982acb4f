"""Measures functions fairly: they take turns in random order, so that a change of the machine's speed affects all."""

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["REST", "measure"]

_SHORTEST_SAMPLE = 1e-3
"""In seconds. A faster function is called several times in a row, so that the clock and cold caches count little."""

REST = 0.03
"""In seconds: how long to wait before each turn when several threads are used. A library's threads go on spinning for
a while after a call, and would take the cores from the next one."""


def measure(
    calls: Mapping[str, Callable[[], object]], seconds: float, *, rest: float = 0
) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Measure functions by turns.

    Parameters
    ----------
    calls
        The functions by name.
    seconds
        How long to measure all of them together. Each is called at least once, and at least five times unless it
        takes all of the time by itself.
    rest
        How many seconds to wait before each turn, which is then ten times as long; see `REST`.

    Returns
    -------
    times
        The samples of each function, in seconds a call.
    errors
        The error of each function that raised one. The others are measured all the same.

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
        except Exception as error:  # whatever one function raises, the others are measured
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
    repeats: int  # calls in each sample
    samples: list[float]  # seconds a call
    spent: float  # seconds in all


def _warm_up(call: Callable[[], object], shortest: float, seconds: float) -> _Timed:
    start = time.perf_counter()
    call()  # builds sessions and graphs
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
