"""A small language model reads a text as a stream, by single steps and in chunks of any size, to the same numbers.

    python examples/streaming/characters.py

A GRU learns in PyTorch to predict the next character of the licence of this project. Then the same weights read the
text in PyTorch and in NumPy: whole, in chunks of random sizes, and by single steps. The exit status is 1 if one
log-likelihood differs from the first by more than 1e-4 of it, or if the model has not learned. At the end the model
writes some text of its own.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import unirnn

__all__ = ["Model", "log_likelihood", "main", "train"]

TEXT = " ".join(Path(__file__).parents[2].joinpath("LICENSE").read_text("utf-8").split())
ALPHABET = sorted(set(TEXT))
NUMBERS = np.array([ALPHABET.index(character) for character in TEXT])
ONE_HOT = np.eye(len(ALPHABET), dtype=np.float32)

SPEC = unirnn.GRUSpec(len(ALPHABET), 128)
EPOCHS, COLUMNS, CHUNK = 40, 16, 64
LEARNED = 1.5  # nats for each character; log(len(ALPHABET)) is about 4
TOLERANCE = 1e-4

Array = NDArray[Any]


@dataclass(frozen=True)
class Model:
    """The trained weights, free of any framework."""

    gru: unirnn.Snapshot
    weight: Array
    bias: Array

    def log_probs(self, output: Array) -> Array:
        """The log-probabilities of the next character, from the outputs of the GRU `(..., H)`."""
        logits = output @ self.weight.T + self.bias
        logits = logits - logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))  # type: ignore[no-any-return]


def train(seed: int) -> Model:
    """Train on the text, cut into columns that are read side by side, chunk by chunk."""
    torch.manual_seed(seed)
    gru, head = SPEC.build("torch"), nn.Linear(SPEC.hidden_size, len(ALPHABET))
    optimizer = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=0.01)
    length = len(NUMBERS) // COLUMNS
    columns = torch.from_numpy(NUMBERS[: length * COLUMNS].reshape(COLUMNS, length).T.copy())  # (T, B)

    for _ in range(EPOCHS):
        state = None
        for start in range(0, length - 1, CHUNK):
            chunk = columns[start : start + CHUNK + 1]
            output, state = gru(torch.from_numpy(ONE_HOT[chunk[:-1]]), state)
            loss = nn.functional.cross_entropy(head(output).flatten(0, 1), chunk[1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state = unirnn.detach(state)  # the next chunk goes on from it, but no gradient flows back

    return Model(unirnn.snapshot(gru), head.weight.detach().numpy(), head.bias.detach().numpy())


# Three ways to read a stream of characters `(T, I)`. Each yields outputs `(n, H)`, whose n add up to T.


def whole(gru: Any, x: Any) -> Iterator[Any]:
    """Read it in one call."""
    output, _ = gru(x)
    yield output


def in_chunks(gru: Any, x: Any) -> Iterator[Any]:
    """Read it in chunks of 1 to 200 characters, as they may come from a network."""
    sizes = np.random.default_rng(0).integers(1, 201, len(x))
    ends = [*(end for end in sizes.cumsum().tolist() if end < len(x)), len(x)]
    start, state = 0, None
    for end in ends:
        output, state = gru(x[start:end], state)
        start = end
        yield output


def by_step(gru: Any, x: Any) -> Iterator[Any]:
    """Read it character by character."""
    state = None
    for character in x:
        y, state = gru.step(character, state)
        yield y[None]


WAYS: list[Callable[[Any, Any], Iterator[Any]]] = [whole, in_chunks, by_step]


@torch.no_grad()
def log_likelihood(model: Model, backend: str, way: Callable[[Any, Any], Iterator[Any]]) -> float:
    """The log-likelihood of the text after its first character, read in one of the ways."""
    gru = model.gru.build(backend)
    x: Any = ONE_HOT[NUMBERS[:-1]]
    outputs = way(gru, torch.from_numpy(x) if backend == "torch" else x)
    log_probs = model.log_probs(np.concatenate([np.asarray(output) for output in outputs]))
    return float(log_probs[np.arange(len(log_probs)), NUMBERS[1:]].sum())


def write(model: Model, beginning: str, length: int, seed: int) -> str:
    """Go on from a beginning, character by character, in NumPy."""
    gru, random = model.gru.build("numpy"), np.random.default_rng(seed)
    output, state = gru(ONE_HOT[[ALPHABET.index(character) for character in beginning]])
    text, y = beginning, output[-1]
    for _ in range(length):
        number = random.choice(len(ALPHABET), p=np.exp(model.log_probs(y.astype(np.float64))))
        text += ALPHABET[number]
        y, state = gru.step(ONE_HOT[number], state)
    return text


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, read the text in all ways, write some, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and of what is written (default 0)")
    seed = parser.parse_args(arguments).seed
    torch.set_num_threads(1)  # a second thread does not help in a layer of this size

    model = train(seed)
    expected = log_likelihood(model, "torch", whole)
    passed = -expected / len(TEXT) <= LEARNED
    print(f"{len(TEXT)} characters, {-expected / len(TEXT):.3f} nats for each\n")
    print("                      log-likelihood")
    for backend in ("torch", "numpy"):
        for way in WAYS:
            value = log_likelihood(model, backend, way)
            passed = passed and abs(value / expected - 1) <= TOLERANCE
            print(f"{backend:8}{way.__name__.replace('_', ' '):14}{value:14.4f}")
    print(f"\n{write(model, 'The Licensor ', 300, seed)}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
