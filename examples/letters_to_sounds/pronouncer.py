"""The model: a GRU reads the letters, another gives the phonemes, and attention lets it look back at the letters.

This is the whole definition of the model, for all backends.
"""

from typing import Any

import unirnn

__all__ = ["Pronouncer"]


class Pronouncer(unirnn.Model):
    """From the letters of words to their phonemes.

    Parameters
    ----------
    letters, phonemes
        How many there are.
    """

    def __init__(self, letters: int, phonemes: int) -> None:
        self.letters: Any = unirnn.EmbeddingSpec(letters, 32)
        self.phonemes: Any = unirnn.EmbeddingSpec(phonemes, 32)
        self.encoder: Any = unirnn.GRUSpec(32, 64, batch_first=True, bidirectional=True)
        # As wide as the encoder's two directions together: it begins with their final states, and the attention
        # compares its outputs with theirs by dot products.
        self.decoder: Any = unirnn.GRUSpec(32, 128, batch_first=True)
        self.head: Any = unirnn.LinearSpec(256, phonemes)

    def forward(self, xp: Any, letters: Any, letter_counts: Any, before: Any, phoneme_counts: Any) -> Any:
        """Logits of each phoneme, given those before it. All steps of the decoder are one call.

        Parameters
        ----------
        letters, letter_counts
            `(B, S)` and `(B,)`: the letters of each word, padded, and their number.
        before, phoneme_counts
            `(B, T)` and `(B,)`: the phoneme before each phoneme, padded, and their number.

        Returns
        -------
        array
            `(B, T, phonemes)`.
        """
        memory, state = self.read(letters, letter_counts)
        output, _ = self.decoder(self.phonemes(before), state, seq_length=phoneme_counts)
        return self.attend(output, memory, letter_counts)

    def read(self, letters: Any, letter_counts: Any) -> tuple[Any, Any]:
        """The memory that the decoder attends to, `(B, S, 128)`, and its initial state, `(1, B, 128)`."""
        memory, h_n = self.encoder(self.letters(letters), seq_length=letter_counts)
        return memory, self.xp.concat([h_n[:1, ...], h_n[1:, ...]], axis=-1)

    def speak(self, before: Any, state: Any, memory: Any, letter_counts: Any) -> tuple[Any, Any]:
        """One step of the decoder, when each phoneme is known only after the step before.

        Parameters
        ----------
        before
            `(B*K,)`: the last phoneme of each of K hypotheses of each word.
        state
            `(1, B*K, 128)`.
        memory, letter_counts
            `(B, S, 128)` and `(B,)`: all hypotheses of a word attend to the same letters.

        Returns
        -------
        log_p
            `(B, K, phonemes)`: the log-probabilities of the next phoneme.
        state
            The next state.
        """
        xp = self.xp
        y, state = self.decoder.step(self.phonemes(before), state)
        output = xp.reshape(y, (memory.shape[0], -1, y.shape[-1]))
        return xp.log_softmax(self.attend(output, memory, letter_counts), axis=-1), state

    def attend(self, output: Any, memory: Any, letter_counts: Any) -> Any:
        """From the decoder's outputs `(B, N, 128)` to logits `(B, N, phonemes)`, each output by itself."""
        xp = self.xp
        scores = xp.matmul(output, xp.matrix_transpose(memory))  # (B, N, S)
        context = xp.matmul(xp.masked_softmax(scores, letter_counts), memory)
        return self.head(xp.concat([output, context], axis=-1))
