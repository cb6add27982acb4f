"""Learn in PyTorch how English words are pronounced, and pronounce new words in every framework.

    python examples/letters_to_sounds/letters_to_sounds.py

The exit status is 1 if a framework pronounces a word otherwise than PyTorch, if more than a fifth of the phonemes are
wrong, or if a beam finds worse pronunciations than greedy search. MindSpore is left out if it is not installed.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import dictionary
import numpy as np
import per_framework
import torch
from dictionary import Words, spoken
from numpy.typing import NDArray
from per_framework import Framework
from pronouncer import Pronouncer, Weights
from rich.console import Console
from rich.table import Table
from search import beam_search, edits

from unirnn.errors import MissingBackendError

BATCH_SIZE = 64
LEARNING_RATE = 8e-3
GREEDY, BEAM = 1, 4  # the widths of the searches
MOST_ERRORS = 0.2
# A beam finds likelier pronunciations, and those are mostly better, but not each time. It may lose by this much.
MARGIN = 0.005
SHOWN = 8

console = Console()


@dataclass(frozen=True)
class Decoded:
    """What a framework has made of the test words.

    Parameters
    ----------
    title
        The framework.
    phonemes
        `(B, T)` for each width of a search.
    speeds
        Words per second for each width.
    """

    title: str
    phonemes: dict[int, NDArray[np.int64]]
    speeds: dict[int, float]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, decode and compare; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=4, help="number of epochs (default 4)")
    parser.add_argument("--seed", type=int, default=0, help="of the words, the weights and the order (default 0)")
    options = parser.parse_args(arguments)
    if options.epochs < 1 or options.seed < 0:
        parser.error("--epochs must be at least 1, and --seed at least 0")

    # The layers are small: more threads would wait for each other longer than they work.
    torch.set_num_threads(1)
    training, test = dictionary.load(16000, 1000, lengths=range(4, 9), seed=options.seed)
    console.print(f"{len(training)} words for training, {len(test)} for testing\n")
    weights = train(training, options.epochs, options.seed)
    decoded = [decode(framework, weights, test) for framework in installed()]

    show_words(decoded[0], test)
    wrong = show_errors(decoded[0], test) + show_frameworks(decoded)
    for complaint in wrong:
        console.print(f"[bold red]Failed:[/] {complaint}")
    return 1 if wrong else 0


def train(words: Words, epochs: int, seed: int) -> Weights:
    """Train in PyTorch."""
    model = Pronouncer(per_framework.torch(), Weights.draw(seed))
    others = [tensor.requires_grad_() for tensor in model.others.values()]
    optimizer = torch.optim.Adam([*model.encoder.parameters(), *model.decoder.parameters(), *others])
    steps = epochs * -(-len(words) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    cross_entropy = torch.nn.NLLLoss()
    generator = np.random.default_rng(seed)
    for epoch in range(1, epochs + 1):
        losses = []
        for batch in words.shuffled_batches(BATCH_SIZE, generator):
            optimizer.zero_grad()
            valid = np.arange(batch.phonemes.shape[1]) < batch.phoneme_counts[:, None]
            log_p = model.teach(batch)[torch.from_numpy(valid)]
            loss = cross_entropy(log_p, torch.from_numpy(batch.phonemes[valid]))
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        console.print(f"epoch {epoch} of {epochs}  loss {np.mean(losses):.3f}")
    return model.weights()


def installed() -> list[Framework]:
    """The frameworks that are installed, PyTorch first."""
    found = [per_framework.torch(), per_framework.numpy()]
    try:
        found.append(per_framework.mindspore())
    except MissingBackendError as error:
        # No markup: the brackets in 'unirnn[mindspore]' belong to the command.
        console.print(f"Left out: MindSpore. {error}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    return found


def decode(framework: Framework, weights: Weights, words: Words) -> Decoded:
    """Pronounce words in one framework."""
    # In float32, rounding could decide between two phonemes that are nearly as likely as each other.
    model = Pronouncer(framework, weights, dtype="float64")
    decoded = Decoded(framework.title, {}, {})
    with torch.no_grad():
        beam_search(model, words[:1], GREEDY)  # the first call of an operator takes longer
        for width in (GREEDY, BEAM):
            start = time.perf_counter()
            decoded.phonemes[width] = beam_search(model, words, width)
            decoded.speeds[width] = len(words) / (time.perf_counter() - start)
    return decoded


def show_words(decoded: Decoded, words: Words) -> None:
    """Print how some words are pronounced."""
    table = Table("word", "dictionary", "greedy", f"beam of {BEAM}", title="\nNew words", title_justify="left")
    for n in range(SHOWN):
        found = (decoded.phonemes[width][n] for width in (GREEDY, BEAM))
        table.add_row(words.spelled(n), *(" ".join(spoken(phonemes)) for phonemes in (words.phonemes[n], *found)))
    console.print(table)


def show_errors(decoded: Decoded, words: Words) -> list[str]:
    """Print how many phonemes are wrong, and return the complaints about them."""
    greedy, beam = (error_rate(decoded.phonemes[width], words) for width in (GREEDY, BEAM))
    console.print(f"\nPhonemes that are wrong: {greedy:.1%} by greedy search, {beam:.1%} by a beam of {BEAM}")
    wrong = []
    if greedy > MOST_ERRORS:
        wrong.append(f"greedy search gets {greedy:.1%} of the phonemes wrong, expected {MOST_ERRORS:.0%} at most")
    if beam > greedy + MARGIN:
        wrong.append(f"a beam gets {beam:.2%} of the phonemes wrong, and greedy search {greedy:.2%}")
    return wrong


def error_rate(phonemes: NDArray[np.int64], words: Words) -> float:
    """The number of edits that correct the phonemes, by the number of phonemes in the dictionary."""
    pairs = [(spoken(given), spoken(expected)) for given, expected in zip(phonemes, words.phonemes, strict=True)]
    return sum(edits(*pair) for pair in pairs) / sum(len(expected) for _, expected in pairs)


def show_frameworks(decoded: list[Decoded]) -> list[str]:
    """Compare each framework with the first, and return the complaints about them."""
    table = Table("computed by", title="\nThe same weights in every framework", title_justify="left")
    for heading in ("same words", "words/s, greedy", "words/s, beam"):
        table.add_column(heading, justify="right")
    expected, wrong = decoded[0], []
    for each in decoded:
        same = [
            np.array_equal(one, other)
            for width in (GREEDY, BEAM)
            for one, other in zip(each.phonemes[width], expected.phonemes[width], strict=True)
        ]
        agreement = "" if each is expected else f"{sum(same)} of {len(same)}"
        table.add_row(each.title, agreement, *(f"{speed:,.0f}" for speed in each.speeds.values()))
        if not all(same):
            wrong.append(f"{each.title} pronounces {len(same) - sum(same)} words otherwise than {expected.title}")
    console.print(table)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
