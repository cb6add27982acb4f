"""Describe what a change of the padding has moved."""

from dataclasses import dataclass

import numpy as np

from ._places import Deviation
from .batches import Batch

__all__ = ["Change", "Moved", "name_of_result", "sentences"]


@dataclass(frozen=True)
class Change:
    """Another batch with the same valid steps.

    Parameters
    ----------
    words
        A clause that describes the change, such as ``NaN is in the padding``.
    short
        The same in a word or two.
    batch
        The changed batch.
    alone
        The index of the sequence if the batch has only one, else None.
    """

    words: str
    short: str
    batch: Batch
    alone: int | None = None


@dataclass(frozen=True)
class Moved:
    """A result, gradient or statistic that was moved by a change.

    Parameters
    ----------
    training
        Whether the model was in training mode.
    what
        What moved.
    change
        The change that moved it.
    difference
        How much it moved, and where first.
    is_of_weight
        Whether it is the gradient of a weight.
    """

    training: bool
    what: str
    change: Change
    difference: Deviation
    is_of_weight: bool = False


def name_of_result(path: str) -> str:
    """Name an array that the model returns, given its path."""
    return f"output{path}"


def sentences(found: list[Moved], base: Batch) -> list[str]:
    """Describe what moved in evaluation mode, and what in training mode."""
    lines = []
    for training in (False, True):
        rows = [moved for moved in found if moved.training is training]
        if rows:
            lines += [f"in {'training' if training else 'evaluation'}:", *(f"  {s}" for s in _of_one_mode(rows, base))]
    return lines


def _of_one_mode(rows: list[Moved], base: Batch) -> list[str]:
    """Write one line for each thing that moved, and a single one for the gradients of all weights."""
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
