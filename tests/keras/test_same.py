"""Layers and models of Keras compared with ours."""

from typing import Any

import keras
import pytest
from keras import layers

import unirnn
from unirnn.testing import assert_same, batch

# Keras reads its variables in a way that NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

GIVEN = batch(features=3)
NOT_EMPTY = batch(features=3, min_length=1)


def layer(**arguments: Any) -> Any:
    made = layers.GRU(4, return_sequences=True, return_state=True, **arguments)
    made.build((None, None, 3))
    return made


def test_a_layer_is_the_same_as_ours() -> None:
    for made in (layer(), layer(reset_after=False)):
        with pytest.warns(UserWarning, match="not compared: the gradients that only one of the two has by this name"):
            assert_same(made, unirnn.snapshot(made).build("numpy"), GIVEN)


def test_a_layer_that_returns_the_last_step_only() -> None:
    def last(x: Any, lengths: Any) -> Any:
        return ours(x, seq_length=lengths)[1][0]

    made = layers.GRU(4)
    made.build((None, None, 3))
    ours = unirnn.snapshot(made).build("numpy")
    assert_same(made, last, GIVEN, gradients=False)


def test_a_model_is_compared_with_another() -> None:
    def net() -> Any:
        x = keras.Input((None, 3))
        y = layers.Bidirectional(layers.LSTM(4, return_sequences=True))(x)
        return keras.Model(x, layers.Dense(2)(layers.GlobalAveragePooling1D()(y)))

    a, b = net(), net()
    b.set_weights(a.get_weights())
    with pytest.warns(UserWarning, match="not compared: the gradients that only one of the two has by this name"):
        assert_same(a, b, NOT_EMPTY)
    a.layers[-1].bias.assign([1.0, 0.0])
    with pytest.raises(AssertionError, match=r"The first layer that differs is .*, a Dense. The one before it"):
        assert_same(a, b, NOT_EMPTY)


def test_the_other_variant_is_named() -> None:
    made = layer(reset_after=False)
    weights = dict(unirnn.snapshot(made).weights)
    with pytest.raises(AssertionError, match="Usual cause, in a: the GRU variant: the reset gate is applied before"):
        assert_same(made, unirnn.Snapshot(unirnn.GRUSpec(3, 4, batch_first=True), weights).build("numpy"), GIVEN)
