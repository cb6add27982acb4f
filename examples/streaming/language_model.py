"""The language model: from a character, and all before it, to logits for the next one.

This is all that is written of the model, for every backend.
"""

import unirnn

__all__ = ["CHARACTERS", "MODEL"]

CHARACTERS = "".join(map(chr, range(32, 127)))  # what ASCII prints

MODEL = unirnn.Sequential(
    embedding=unirnn.EmbeddingSpec(len(CHARACTERS), 32),  # from (T, B), the places of characters, to (T, B, 32)
    encoder=unirnn.GRUSpec(hidden_size=128),
    projection=unirnn.LinearSpec(out_features=32),
    head=unirnn.LinearSpec(out_features=len(CHARACTERS), tied_to="embedding"),  # its matrix is that of the embedding
)
