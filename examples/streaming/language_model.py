"""The language model: from each character, and all before it, to logits for the next one.

This is the whole definition of the model, for all backends.
"""

import unirnn

__all__ = ["CHARACTERS", "MODEL"]

CHARACTERS = "".join(map(chr, range(32, 127)))  # the printable characters of ASCII

MODEL = unirnn.Sequential(
    embedding=unirnn.EmbeddingSpec(len(CHARACTERS), 32),  # (T, B), numbers of characters, to (T, B, 32)
    encoder=unirnn.GRUSpec(hidden_size=128),
    projection=unirnn.LinearSpec(out_features=32),
    head=unirnn.LinearSpec(out_features=len(CHARACTERS), tied_to="embedding"),  # with the weight of the embedding
)
