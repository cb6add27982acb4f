"""The model gives the same numbers in every framework, and padding has no influence in any."""

from gestures import MODEL
from hypothesis import given, settings

from unirnn.testing import Batch, Subject, assert_same, batch, padding_is_inert, ragged


def test_it_is_the_same_model_in_every_framework(rnn_backend: Subject) -> None:
    net = rnn_backend.build(MODEL, seed=0)
    assert_same(net, MODEL.build("numpy", seed=0), batch(MODEL))
    padding_is_inert(net, batch(MODEL))


@settings(max_examples=20, deadline=None)
@given(drawn=ragged(MODEL, nan_padding=True))
def test_it_is_the_same_for_any_batch(rnn_backend: Subject, drawn: Batch) -> None:
    assert_same(rnn_backend.build(MODEL, seed=0), MODEL.build("numpy", seed=0), drawn, gradients=False)
