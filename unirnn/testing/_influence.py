"""Describe in words what the padding changed."""

from dataclasses import dataclass

import numpy as np

from ._places import Deviation
from .batches import Batch

__all__ = ["Change", "Moved", "name_of_result", "sentences"]


@dataclass(frozen=True)
class Change:
    """Another batch with the same valid steps."""

    words: str
    short: str
    batch: Batch
    alone: int | None = None


@dataclass(frozen=True)
class Moved:
    """Something that a change moved."""

    training: bool
    what: str
    change: Change
    difference: Deviation
    is_of_weight: bool = False


def name_of_result(path: str) -> str:
    """The name of an array that the model returns, by its path."""
    return f"output{path}"


def sentences(found: list[Moved], base: Batch) -> list[str]:
    """What moved in evaluation, and what in training."""
    lines = []
    for training in (False, True):
        rows = [moved for moved in found if moved.training is training]
        if rows:
            lines += [f"in {'training' if training else 'evaluation'}:", *(f"  {s}" for s in _of_one_mode(rows, base))]
    return lines


def _of_one_mode(rows: list[Moved], base: Batch) -> list[str]:
    """One sentence for each thing that moved; one for the gradients of all weights."""
    by_what: dict[str, list[Moved]] = {}
    for row in rows:
        by_what.setdefault("a weight" if row.is_of_weight else row.what, []).append(row)
    lines = []
    for what, moves in by_what.items():
        worst = max(moves, key=lambda m: (np.isfinite(m.difference.size), m.difference.size))
        d = worst.difference
        size = d.text or f"off by {d.size:.2g} (the largest value is {d.largest:.2g})"
        line = f"{worst.what}: {size}{_where(d, base)}, when {worst.change.words}"
        others = list(dict.fromkeys(m.change.short for m in moves if m.change is not worst.change))
        line += f" (also: {', '.join(others)})" if others else ""
        more = len({m.what for m in moves}) - 1
        lines.append(f"{line}; {more} more weights" if what == "a weight" and more else line)
    return lines


def _where(d: Deviation, base: Batch) -> str:
    if d.sequence is None:
        return ""
    step = "" if d.step is None else f", step {d.step}"
    return f", first in sequence {d.sequence} (length {int(base.lengths[d.sequence])} of {base.steps}){step}"
