"""Learn how English words are pronounced, and pronounce new words in every framework.

    python examples/letters_to_sounds/letters_to_sounds.py

The model learns in PyTorch, or in MindSpore with ``--backend mindspore``. The other framework trains only for the first
100 steps, with the same losses. The exit status is 1 if losses differ, if a framework pronounces a word differently
from the first one, if more than a fifth of the phonemes are wrong, or if beam search is clearly worse than greedy
search. Frameworks that are not installed are left out.
"""

import argparse
import importlib
import itertools
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import dictionary
import numpy as np
from dictionary import LETTERS, PHONEMES, Words, spoken
from numpy.typing import NDArray
from pronouncer import Pronouncer
from search import beam_search, edits

import unirnn
from unirnn import registry
from unirnn.errors import MissingBackendError

LEARNING, ALL = ("torch", "mindspore"), ("torch", "mindspore", "numpy")
BATCH_SIZE, RATE = 64, 8e-3
FIRST, PART = 100, 20  # steps that both frameworks train, and steps over which a printed mean is taken
TOLERANCE = 1e-3
GREEDY, BEAM = 1, 4  # the widths of the searches
MOST_ERRORS = 0.2
# A beam finds likelier pronunciations, which are mostly but not always better. Its error rate may be larger by this.
MARGIN = 0.005
SHOWN = 8


@dataclass(frozen=True)
class Decoded:
    """The pronunciations of the test words in one framework.

    Parameters
    ----------
    backend
        The framework.
    phonemes
        `(B, T)` for each width of a search.
    speeds
        Words per second for each width.
    """

    backend: str
    phonemes: dict[int, NDArray[np.int64]]
    speeds: dict[int, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn, decode and compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=LEARNING, default=LEARNING[0], help="learn in this one (default torch)")
    parser.add_argument("--epochs", type=int, default=4, help="number of epochs (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the words, the weights and the order (default 0)")
    options = parser.parse_args(arguments)
    if options.epochs < 1 or options.seed < 0:
        parser.error("--epochs must be at least 1, and --seed at least 0")

    training, test = dictionary.load(16000, 1000, lengths=range(4, 9), seed=options.seed)
    print(f"{len(training)} words for training, {len(test)} for testing\n")
    print(f"losses in the first {FIRST} steps, means of {PART}")
    backends = sorted(installed(ALL), key=lambda backend: backend != options.backend)
    curves: list[NDArray[np.float64]] = []
    for backend in (backend for backend in backends if backend in LEARNING):
        is_first = not curves
        snapshot, losses = train(backend, training, options.epochs, options.seed, steps=None if is_first else FIRST)
        curves.append(losses[:FIRST].reshape(-1, PART).mean(axis=1))
        print(f"{backend:10}", *(f"{loss:9.5f}" for loss in curves[-1]))
        if is_first:
            trained, every_loss = snapshot, losses
    print(f"\nlosses of each epoch in {backends[0]}")
    print(" " * 10, *(f"{epoch.mean():9.5f}" for epoch in np.split(every_loss, options.epochs)))

    decoded = [decode(trained, backend, test) for backend in backends]
    show_words(decoded[0], test)
    wrong = show_errors(decoded[0], test) + show_frameworks(decoded)
    if not np.allclose(curves, curves[0], rtol=TOLERANCE):
        wrong.append("the losses differ")
    for complaint in wrong:
        print(f"Failed: {complaint}")
    return 1 if wrong else 0


def installed(names: Sequence[str]) -> list[str]:
    """Leave out those that are not installed; print which, and how to install them."""
    os.environ.setdefault("GLOG_v", "3")  # MindSpore warns at length of each kind of device that this machine lacks
    found = []
    for name in names:
        try:
            registry.load(name)
            found.append(name)
        except MissingBackendError as error:
            print(f"Left out: {name}. {error}")
    return found


def train(
    backend: str, words: Words, epochs: int, seed: int, steps: int | None
) -> tuple[unirnn.Snapshot, NDArray[np.float64]]:
    """Train in one framework; also return the loss of each step. ``steps`` ends the training early."""
    loop = importlib.import_module(f"teach_{backend}")
    net = Pronouncer(len(LETTERS), len(PHONEMES)).build(backend, seed=seed)
    random = np.random.default_rng(seed)
    batches = itertools.chain.from_iterable(words.shuffled_batches(BATCH_SIZE, random) for _ in range(epochs))
    at = np.linspace(0, 1, epochs * -(-len(words) // BATCH_SIZE), endpoint=False)
    rates = RATE * np.interp(at, [0, 0.3, 1], [0.05, 1, 0])  # up, and then down to 0
    losses = list(loop.teach(net, itertools.islice(batches, steps), rates[:steps].tolist()))
    return unirnn.snapshot(net), np.array(losses)


def decode(trained: unirnn.Snapshot, backend: str, words: Words) -> Decoded:
    """Pronounce words in one framework."""
    # In float32, rounding could decide between two phonemes that are almost equally likely.
    net = trained.build(backend, dtype="float64")
    decoded = Decoded(backend, {}, {})
    beam_search(net, backend, words[:1], GREEDY)  # the first call of an operator takes longer
    for width in (GREEDY, BEAM):
        start = time.perf_counter()
        decoded.phonemes[width] = beam_search(net, backend, words, width)
        decoded.speeds[width] = len(words) / (time.perf_counter() - start)
    return decoded


def show_words(decoded: Decoded, words: Words) -> None:
    """Print how some words are pronounced."""
    print(f"\n{'word':9}{'dictionary':19}{'greedy':19}beam of {BEAM}")
    for n in range(SHOWN):
        found = (decoded.phonemes[width][n] for width in (GREEDY, BEAM))
        columns = [" ".join(spoken(phonemes)) for phonemes in (words.phonemes[n], *found)]
        print(f"{words.spelled(n):9}{columns[0]:19}{columns[1]:19}{columns[2]}")


def show_errors(decoded: Decoded, words: Words) -> list[str]:
    """Print how many phonemes are wrong, and return the complaints about them."""
    greedy, beam = (error_rate(decoded.phonemes[width], words) for width in (GREEDY, BEAM))
    print(f"\nPhonemes that are wrong: {greedy:.1%} by greedy search, {beam:.1%} by a beam of {BEAM}")
    wrong = []
    if greedy > MOST_ERRORS:
        wrong.append(f"greedy search gets {greedy:.1%} of the phonemes wrong, expected {MOST_ERRORS:.0%} at most")
    if beam > greedy + MARGIN:
        wrong.append(f"a beam gets {beam:.2%} of the phonemes wrong, and greedy search {greedy:.2%}")
    return wrong


def error_rate(phonemes: NDArray[np.int64], words: Words) -> float:
    """The number of edits that correct the phonemes, divided by the number of phonemes in the dictionary."""
    pairs = [(spoken(given), spoken(expected)) for given, expected in zip(phonemes, words.phonemes, strict=True)]
    return sum(edits(*pair) for pair in pairs) / sum(len(expected) for _, expected in pairs)


def show_frameworks(decoded: list[Decoded]) -> list[str]:
    """Compare each framework with the first, and return the complaints about them."""
    print("\ncomputed by   same words       words/s: greedy  beam")
    expected, wrong = decoded[0], []
    for each in decoded:
        same = [
            np.array_equal(one, other)
            for width in (GREEDY, BEAM)
            for one, other in zip(each.phonemes[width], expected.phonemes[width], strict=True)
        ]
        agreement = "" if each is expected else f"{sum(same)} of {len(same)}"
        print(f"{each.backend:14}{agreement:17}", *(f"{speed:10,.0f}" for speed in each.speeds.values()))
        if not all(same):
            wrong.append(f"{each.backend} pronounces {len(same) - sum(same)} words differently from {expected.backend}")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
