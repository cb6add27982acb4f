"""Beam search, and the number of errors in its results. The model computes in its framework, the rest is NumPy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from dictionary import END, PHONEMES, Words
from numpy.typing import NDArray

import unirnn
from unirnn import registry

__all__ = ["beam_search", "edits"]

MOST_PHONEMES = 16


def beam_search(net: Any, backend: str, words: Words, width: int) -> NDArray[np.int64]:
    """Find a likely pronunciation of each word, all words at once. With width 1 this is greedy search.

    Parameters
    ----------
    net, backend
        A built `pronouncer.Pronouncer`, and its backend.
    words
        Only their letters are used.
    width
        K: the number of hypotheses of each word.

    Returns
    -------
    phonemes
        `(B, T)`: the best hypothesis, as indices in `dictionary.PHONEMES`, with `END` after the last phoneme.
    """
    framework = registry.load(backend)
    letter_counts = framework.from_numpy(words.letter_counts, net)
    memory, state = net.read(framework.from_numpy(words.letters, net), letter_counts)
    state = unirnn.state.repeat(state, width)
    first_rows = np.arange(len(words))[:, None] * width  # of the hypotheses of each word in the batch of the state
    hypotheses = np.full((len(words), width, 1), END)  # (B, K, T)
    # All hypotheses of a word are equal at first. Only the first one counts, or they would stay equal.
    scores: NDArray[np.float64] = np.full((len(words), width), -np.inf)
    scores[:, 0] = 0
    ended = np.zeros((len(words), width), bool)
    after_end = np.full(len(PHONEMES), -np.inf)  # after the end only `END` follows, and the score stays the same
    after_end[END] = 0

    for _ in range(MOST_PHONEMES):
        before = framework.from_numpy(hypotheses[:, :, -1].ravel(), net)
        log_p, state = net.speak(before, state, memory, letter_counts)
        gains = np.where(ended[:, :, None], after_end, framework.to_numpy(log_p))  # (B, K, phonemes)
        totals = (scores[:, :, None] + gains).reshape(len(words), -1)
        best = np.argsort(-totals, axis=1, kind="stable")[:, :width]
        scores = np.take_along_axis(totals, best, axis=1)
        # Each of the best continues one of the hypotheses, whose phonemes and state it takes over.
        parents, phonemes = np.divmod(best, len(PHONEMES))
        hypotheses = np.take_along_axis(hypotheses, parents[:, :, None], axis=1)
        hypotheses = np.concatenate([hypotheses, phonemes[:, :, None]], axis=2)
        state = unirnn.state.select(state, (first_rows + parents).ravel())
        ended = phonemes == END
        if ended.all():
            break
    return hypotheses[:, 0, 1:]


def edits(given: Sequence[str], expected: Sequence[str]) -> int:
    """How many phonemes must be inserted, deleted or replaced to turn one word into another."""
    row = list(range(len(expected) + 1))
    for i, phoneme in enumerate(given, start=1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(expected, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (phoneme != other))
    return row[-1]
