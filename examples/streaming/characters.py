"""A language model learns the documentation of Python character by character, and writes some in every framework.

    python examples/streaming/characters.py

The model learns in PyTorch and in MindSpore, from the same weights and with the same losses. The model from PyTorch is
saved to a file, and built from it in each framework. There it reads a text that it has not seen, whole, in chunks of
any size and by single steps, and then writes a text of its own. The exit status is 1 if losses, log-likelihoods or
texts differ, or if the model has not learned. Frameworks that are not installed are left out.
"""

import argparse
import importlib
import os
import pydoc_data.topics
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from language_model import CHARACTERS, MODEL
from numpy.typing import NDArray

import unirnn
from unirnn import registry
from unirnn.errors import MissingBackendError

__all__ = ["Reader", "main", "train"]

LEARNING, ALL = ("torch", "mindspore"), ("torch", "mindspore", "numpy", "onnxruntime")
COLUMNS, STEPS, RATE = 16, 64, 0.01
TRAINING, UNSEEN, WRITTEN, BEGINNING = 160_000, 2000, 300, "The "  # characters; the start of the written text
TEMPERATURE = 0.6  # below 1, likely characters are written more often than they were read
LARGEST_LOSS = 2.2  # nats for each character; without learning it is log(len(CHARACTERS)), 4.6
READING_TOLERANCE, LEARNING_TOLERANCE = 1e-5, 1e-3

Array = NDArray[Any]


def numbers(text: str) -> NDArray[np.int64]:
    """The indices of characters in `CHARACTERS`; other characters are left out."""
    return np.array([CHARACTERS.index(character) for character in text if character in CHARACTERS])


def documentation() -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The prose of Python's own ``help()``: the beginning for training, and the end, which is not seen in training."""
    topics = pydoc_data.topics.topics
    lines = (line for name in sorted(topics) for line in topics[name].splitlines())
    text = numbers(" ".join(line for line in lines if line[:1].isalpha()))  # without code and tables
    return text[:TRAINING], text[-UNSEEN:]


def train(backend: str, text: NDArray[np.int64], seed: int) -> tuple[unirnn.Snapshot, list[float]]:
    """Train on the text once, cut into columns that are read side by side, chunk by chunk; also return the losses."""
    length = len(text) // COLUMNS
    columns = text[: length * COLUMNS].reshape(COLUMNS, length).T.copy()  # (length, COLUMNS)
    chunks = [columns[start : start + STEPS + 1] for start in range(0, length - STEPS, STEPS)]
    loop = importlib.import_module(f"learn_{backend}")
    net = MODEL.build(backend, seed=seed)
    losses = list(loop.learn(net, chunks, RATE))
    return unirnn.snapshot(net), losses


# Three ways to read a text `(T, 1)`. Each yields logits `(n, 1, characters)`; the sum of all n is T.


def whole(net: Any, text: Any) -> Iterator[Any]:
    """Read it in one call."""
    yield net(text)


def in_chunks(net: Any, text: Any) -> Iterator[Any]:
    """Read it in chunks of 1 to 200 characters, as they may arrive from a network."""
    ends = np.random.default_rng(0).integers(1, 201, len(text)).cumsum()
    start, state = 0, None
    for end in [*ends[ends < len(text)].tolist(), len(text)]:
        logits, state = net(text[start:end], state, return_state=True)
        start = end
        yield logits


def by_step(net: Any, text: Any) -> Iterator[Any]:
    """Read it character by character."""
    state = None
    for character in text:
        logits, state = net.step(character, state)
        yield logits[None]


WAYS: list[Callable[[Any, Any], Iterator[Any]]] = [whole, in_chunks, by_step]


class Reader:
    """A trained model in one framework.

    Parameters
    ----------
    trained
        The model and its weights.
    backend
        The framework.
    """

    def __init__(self, trained: unirnn.Snapshot, backend: str) -> None:
        self.net = trained.build(backend)
        self.backend = registry.load(backend)

    def array(self, text: NDArray[np.int64]) -> Any:
        """An array of the framework."""
        return self.backend.from_numpy(text, self.net)

    def log_probs(self, logits: Any) -> Array:
        """The log-probabilities of the next character."""
        shifted = self.backend.to_numpy(logits).astype(np.float64)
        shifted -= shifted.max(-1, keepdims=True)
        return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))  # type: ignore[no-any-return]

    def log_likelihood(self, text: NDArray[np.int64], way: Callable[[Any, Any], Iterator[Any]]) -> float:
        """The log-likelihood of a text after its first character, read in one of the ways."""
        found = np.concatenate([self.log_probs(logits)[:, 0] for logits in way(self.net, self.array(text[:-1, None]))])
        return float(found[np.arange(len(found)), text[1:]].sum())

    def write(self, beginning: str, length: int, seed: int) -> str:
        """Continue a beginning, character by character."""
        random, text = np.random.default_rng(seed), beginning
        logits, state = self.net(self.array(numbers(beginning)[:, None]), return_state=True)
        last = logits[-1]
        for _ in range(length):
            probs = np.exp(self.log_probs(last)[0] / TEMPERATURE)
            number = random.choice(len(CHARACTERS), p=probs / probs.sum())
            text += CHARACTERS[number]
            last, state = self.net.step(self.array(np.array([number])), state)
        return text


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Learn, read in all ways, write, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", choices=LEARNING, help="learn in this one only")
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of what is written (default 0)")
    options = parser.parse_args(arguments)
    known, unseen = documentation()
    print(f"{len(known):,} characters to learn from, once, with {MODEL.num_weights:,} weights\n")

    learned, curves = {}, []
    for backend in installed([options.backend] if options.backend else LEARNING):
        start = time.perf_counter()
        learned[backend], losses = train(backend, known, options.seed)
        seconds = time.perf_counter() - start
        curves.append(np.array([part.mean() for part in np.array_split(losses, 6)]))
        print(f"losses in {backend:11}{'  '.join(f'{loss:.5f}' for loss in curves[-1])}  {seconds:5.0f} s")

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "characters.safetensors"
        next(iter(learned.values())).save(path)
        readers = {backend: Reader(unirnn.load(path), backend) for backend in installed(ALL)}

    print("\nlog-likelihood of new text      whole   in chunks     by step")
    likelihoods = []
    for backend, reader in readers.items():
        likelihoods.append([reader.log_likelihood(unseen, way) for way in WAYS])
        print(f"{backend:25}", *(f"{value:12.3f}" for value in likelihoods[-1]), sep="")
    texts = {backend: reader.write(BEGINNING, WRITTEN, options.seed) for backend, reader in readers.items()}
    text = next(iter(texts.values()))
    same = [backend for backend in texts if texts[backend] == text]
    print(f"\nWritten, the same by {', '.join(same)}:\n\n{textwrap.fill(text, 100)}")

    loss = -likelihoods[0][0] / (UNSEEN - 1)
    checks = {
        f"{loss:.3f} nats for each new character, expected {LARGEST_LOSS} at most": loss <= LARGEST_LOSS,
        "the losses differ": np.allclose(curves, curves[0], rtol=LEARNING_TOLERANCE),
        "the log-likelihoods differ": np.allclose(likelihoods, likelihoods[0][0], rtol=READING_TOLERANCE),
        "the texts differ": len(same) == len(texts),
    }
    wrong = [complaint for complaint, passed in checks.items() if not passed]
    print(*(f"Failed: {complaint}" for complaint in wrong), sep="\n", end="")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
