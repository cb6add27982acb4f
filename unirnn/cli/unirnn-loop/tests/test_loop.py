"""Tests for this backend only; ``python -m unirnn.testing loop`` tests what every backend guarantees."""

from unirnn import GRUSpec
from unirnn.testing import assert_same, batch, padding_is_inert


def test_a_layer_computes_the_same_as_on_numpy() -> None:
    spec = GRUSpec(3, 4, num_layers=2, bidirectional=True)
    layer = spec.build("loop", seed=0)
    assert_same(layer, spec.build("numpy", seed=0), batch(spec))
    padding_is_inert(layer, batch(spec))
