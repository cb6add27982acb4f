"""The layers on which the emitted graphs are checked."""

from typing import Any

from hypothesis import strategies as st

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

KINDS: dict[str, tuple[type[RecurrentSpec], dict[str, Any]]] = {
    "RNN-tanh": (RNNSpec, {"nonlinearity": "tanh"}),
    "RNN-relu": (RNNSpec, {"nonlinearity": "relu"}),
    "GRU": (GRUSpec, {}),
    "GRU-reset-before": (GRUSpec, {"reset_after": False}),
    "LSTM": (LSTMSpec, {}),
}


@st.composite
def specs(draw: st.DrawFn) -> RecurrentSpec:
    cls, options = KINDS[draw(st.sampled_from(list(KINDS)))]
    num_layers = draw(st.integers(1, 3))
    return cls(
        draw(st.integers(1, 4)),
        draw(st.integers(1, 5)),
        num_layers,
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.25])) if num_layers > 1 else 0.0,
        bidirectional=draw(st.booleans()),
        **options,
    )
