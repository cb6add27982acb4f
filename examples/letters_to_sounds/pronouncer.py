"""The model: a GRU reads the letters, another speaks the phonemes, and attention lets it look back at the letters."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from dictionary import END, LETTERS, PHONEMES, Words
from numpy.typing import NDArray
from per_framework import Framework

import unirnn
from unirnn.registry import to_numpy

__all__ = ["Memory", "Pronouncer", "Weights"]

ENCODER = unirnn.GRUSpec(32, 64, batch_first=True, bidirectional=True)
# As wide as the encoder's two directions together: its first state is their last one, and the attention compares its
# outputs with theirs by dot products.
DECODER = unirnn.GRUSpec(32, 128, batch_first=True)


@dataclass(frozen=True)
class Weights:
    """All weights, free of any framework.

    Parameters
    ----------
    encoder, decoder
        Those of the recurrent layers.
    others
        The embeddings of ``letters`` and ``phonemes``, and what the logits are made of: ``from_output`` and
        ``from_context``, both `(H, phonemes)`, and ``bias``.
    """

    encoder: unirnn.Snapshot
    decoder: unirnn.Snapshot
    others: dict[str, NDArray[Any]]

    @classmethod
    def draw(cls, seed: int) -> "Weights":
        """Draw the initial weights."""
        generator = np.random.default_rng(seed)
        width = DECODER.hidden_size
        others = {
            "letters": generator.normal(0, 1, (len(LETTERS), ENCODER.input_size)),
            "phonemes": generator.normal(0, 1, (len(PHONEMES), DECODER.input_size)),
            "from_output": generator.normal(0, width**-0.5, (width, len(PHONEMES))),
            "from_context": generator.normal(0, width**-0.5, (width, len(PHONEMES))),
            "bias": np.zeros(len(PHONEMES)),
        }
        encoder, decoder = ENCODER.build("numpy", seed=seed), DECODER.build("numpy", seed=seed + 1)
        return cls(unirnn.snapshot(encoder), unirnn.snapshot(decoder), others)


@dataclass(frozen=True)
class Memory:
    """What the decoder attends to.

    Parameters
    ----------
    outputs
        `(B, S, H)`: those of the encoder, one for each letter.
    padding
        `(B, 1, S)`: 0 at the letters of a word, -inf after them.
    """

    outputs: Any
    padding: Any


class Pronouncer:
    """The model in one framework. Arrays are the framework's, except where it says NumPy.

    Parameters
    ----------
    framework
        Where it is computed.
    weights
        Of any origin.
    dtype
        In what it is computed.
    """

    def __init__(self, framework: Framework, weights: Weights, dtype: str = "float32") -> None:
        self.framework = framework
        self.dtype = dtype
        self.encoder = weights.encoder.build(framework.backend, dtype=dtype)
        self.decoder = weights.decoder.build(framework.backend, dtype=dtype)
        self.others = {name: framework.tensor(array.astype(dtype)) for name, array in weights.others.items()}

    def weights(self) -> Weights:
        """The weights as they are now."""
        others = {name: to_numpy(array) for name, array in self.others.items()}
        return Weights(unirnn.snapshot(self.encoder), unirnn.snapshot(self.decoder), others)

    def read(self, words: Words) -> tuple[Memory, Any]:
        """Read the letters of words; return what the decoder attends to, and its first state."""
        letters = self.framework.tensor(words.letters)
        outputs, h_n = self.encoder(self.others["letters"][letters], seq_length=words.letter_counts)
        valid = np.arange(words.letters.shape[1]) < words.letter_counts[:, None, None]
        padding = np.where(valid, 0, -np.inf).astype(self.dtype)
        both_directions = unirnn.state.last_layer(ENCODER, h_n)
        state = unirnn.state.from_layers([[both_directions]], self.framework.stack)
        return Memory(outputs, self.framework.tensor(padding)), state

    def teach(self, words: Words) -> Any:
        """Log-probabilities `(B, T, phonemes)` of each phoneme of words, when those before it are known.

        This is for training: all steps of the decoder are one call.
        """
        memory, state = self.read(words)
        before = np.pad(words.phonemes[:, :-1], [(0, 0), (1, 0)], constant_values=END)
        x = self.others["phonemes"][self.framework.tensor(before)]
        output, _ = self.decoder(x, state, seq_length=words.phoneme_counts)
        return self._attend(output, memory)

    def step(self, before: NDArray[np.int64], state: Any, memory: Memory) -> tuple[NDArray[np.floating[Any]], Any]:
        """Log-probabilities of the next phonemes, `(B, K, phonemes)` in NumPy, and the next state.

        This is for decoding, when each phoneme is known only after the step before. Each word has K hypotheses, whose
        last phonemes are ``before``, `(B, K)` in NumPy. They attend to the same letters, so `memory` has B rows and the
        state B*K.
        """
        y, state = self.decoder.step(self.others["phonemes"][self.framework.tensor(before.ravel())], state)
        return to_numpy(self._attend(y.reshape(*before.shape, -1), memory)), state

    def _attend(self, output: Any, memory: Memory) -> Any:
        """From the decoder's outputs `(B, N, H)`, each by itself, to log-probabilities `(B, N, phonemes)`."""
        scores = output @ memory.outputs.swapaxes(1, 2) + memory.padding
        context = self.framework.softmax(scores) @ memory.outputs
        others = self.others
        logits = output @ others["from_output"] + context @ others["from_context"] + others["bias"]
        return self.framework.log_softmax(logits)
