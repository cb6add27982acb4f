"""Hypothesis strategies."""

from typing import Any

from cases import KINDS
from hypothesis import strategies as st

from unirnn import LSTMSpec, RecurrentSpec

__all__ = ["specs"]


@st.composite
def specs(draw: st.DrawFn, *, max_layers: int = 3, projections: bool = False) -> RecurrentSpec:
    """Any spec of recurrent layers; projections only on request, since not every backend supports them."""
    cls, kind_options = KINDS[draw(st.sampled_from(list(KINDS)))]
    options: dict[str, Any] = dict(kind_options)
    hidden_size, num_layers = draw(st.integers(1, 5)), draw(st.integers(1, max_layers))
    if cls is LSTMSpec and projections:
        options["proj_size"] = draw(st.integers(0, hidden_size - 1))
    return cls(
        draw(st.integers(1, 4)),
        hidden_size,
        num_layers,
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.25])) if num_layers > 1 else 0.0,
        bidirectional=draw(st.booleans()),
        **options,
    )
