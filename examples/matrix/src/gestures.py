"""A classifier that tells from the sensors of a glove which gesture was made, written once for all frameworks."""

import unirnn

MODEL = unirnn.Sequential(
    conv=unirnn.Conv1dSpec(6, 16, 3, padding="same"),
    norm=unirnn.BatchNormSpec(),
    encoder=unirnn.GRUSpec(hidden_size=24, bidirectional=True, batch_first=True),
    pool=unirnn.PoolSpec("mean"),
    head=unirnn.LinearSpec(out_features=5),
)
