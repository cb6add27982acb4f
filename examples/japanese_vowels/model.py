"""The model: a bidirectional GRU reads an utterance, and a linear layer tells from its final states who is speaking.

This is the whole definition of the model, for all backends.
"""

import unirnn

__all__ = ["MODEL"]

MODEL = unirnn.Sequential(
    gru=unirnn.GRUSpec(12, 64, batch_first=True, bidirectional=True),  # (B, T, 12) to (B, T, 128)
    pool=unirnn.PoolSpec("first_last"),  # forward at the last step, backward at the first: (B, 128)
    head=unirnn.LinearSpec(out_features=9),  # a logit for each speaker: (B, 9)
)
