"""The Japanese Vowels utterances: reading their file, and the order in which a training loop sees them."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEATURES", "SPEAKERS", "Utterances", "convert", "load", "shuffled_batches"]

FEATURES = 12
SPEAKERS = 9

DATA = Path(__file__).with_name("data.npz")
_SETS = ("training", "test")


@dataclass(frozen=True)
class Utterances:
    """A set of utterances, padded, with their lengths.

    Parameters
    ----------
    features
        `(B, T, 12)`, float32 or what `astype` made of it, zero after the last step of an utterance. T is the largest
        length.
    lengths
        `(B,)` int64: the number of steps of each, 7 to 29.
    speakers
        `(B,)` int64: the speaker, 0 to 8.
    """

    features: NDArray[np.floating[Any]]
    lengths: NDArray[np.int64]
    speakers: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.lengths)

    def astype(self, dtype: str) -> "Utterances":
        """The same utterances, with features of another dtype."""
        return replace(self, features=self.features.astype(dtype))


def load(path: Path = DATA) -> tuple[Utterances, Utterances]:
    """Read the 270 utterances of the training set and the 370 of the test set.

    Each feature is scaled to mean 0 and deviation 1 over the steps of the training set.
    """
    with np.load(path) as file:
        steps, lengths, speakers = (
            [file[f"{name}_{what}"] for name in _SETS] for what in ("millionths", "lengths", "speakers")
        )
    mean, deviation = steps[0].mean(axis=0), steps[0].std(axis=0)
    training, test = (_pad((steps[n] - mean) / deviation, lengths[n], speakers[n]) for n in range(len(_SETS)))
    return training, test


def _pad(steps: NDArray[np.float64], lengths: NDArray[np.uint8], speakers: NDArray[np.uint8]) -> Utterances:
    valid = np.arange(lengths.max()) < lengths[:, None]
    features = np.zeros((*valid.shape, FEATURES), np.float32)
    features[valid] = steps
    return Utterances(features, lengths.astype(np.int64), speakers.astype(np.int64))


def shuffled_batches(count: int, *, batch_size: int, epochs: int, seed: int) -> Iterator[list[NDArray[np.int64]]]:
    """Yield the batches of each epoch, as indices of utterances. With one seed they are the same for every framework.

    Parameters
    ----------
    count
        The number of utterances. Each comes once in an epoch.
    batch_size
        The number of utterances in a batch. The last batch may have fewer.
    epochs, seed
        The number of epochs, and the seed of their orders.
    """
    generator = np.random.default_rng(seed)
    for _ in range(epochs):
        order = generator.permutation(count)
        yield [order[start : start + batch_size] for start in range(0, count, batch_size)]


def convert(training: str | os.PathLike[str], test: str | os.PathLike[str], path: Path = DATA) -> None:
    """Make the file in this folder from the two ``.ts`` files of the data set.

    The steps of all utterances follow each other in one array. The numbers have at most six decimals, so integers
    that count millionths need half the memory of float64. Divided by 1e6, they are the same float64 numbers.
    """
    arrays: dict[str, NDArray[Any]] = {}
    for name, source in zip(_SETS, (training, test), strict=True):
        lines = Path(source).read_text().partition("@data\n")[2].splitlines()
        # A line is an utterance: the steps of each channel, and then the speaker, 1 to 9.
        rows = [line.rpartition(":") for line in lines]
        steps = [np.array([channel.split(",") for channel in text.split(":")], np.float64).T for text, _, _ in rows]
        arrays[f"{name}_millionths"] = np.rint(np.concatenate(steps) * 1e6).astype(np.int32)
        arrays[f"{name}_lengths"] = np.array([len(utterance) for utterance in steps], np.uint8)
        arrays[f"{name}_speakers"] = np.array([int(speaker) - 1 for _, _, speaker in rows], np.uint8)
    np.savez_compressed(path, **arrays)
