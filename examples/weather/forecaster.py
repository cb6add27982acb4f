"""The forecaster: from the weather of each day, and of all days before it, to the temperatures of the next seven.

This is the whole definition of the model, for all backends.
"""

import unirnn

__all__ = ["MODEL"]

MODEL = unirnn.Sequential(
    week=unirnn.Conv1dSpec(6, 32, 7, padding="causal"),  # sees a day and the six before it: (B, T, 6) to (B, T, 32)
    gelu=unirnn.ActivationSpec("gelu"),
    memory=unirnn.GRUSpec(hidden_size=32, batch_first=True),
    head=unirnn.LinearSpec(out_features=7),  # a temperature for each of the next seven days: (B, T, 7)
)
