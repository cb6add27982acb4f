"""`padding_is_inert` and `gradient` for models of Keras."""

import re
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from unirnn.testing.batches import batch
from unirnn.testing.frameworks import framework_of, native, to_numpy
from unirnn.testing.inert import padding_is_inert

BATCH = batch(features=3, min_length=1)
takes_seconds = pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="JAX compiles the layers for each size, which takes minutes"
)


class Tagger(keras.Model):  # type: ignore[misc]
    """A model whose arguments decide whether it handles padding correctly."""

    def __init__(self, masked: bool = True, pool: str = "", norm: bool = False) -> None:
        super().__init__()
        self.masked, self.pool, self.supports_masking = masked, pool, True
        self.norm = layers.BatchNormalization() if norm else None
        self.encoder = layers.Bidirectional(layers.GRU(4, return_sequences=True))
        self.dropout = layers.Dropout(0.5)
        self.head = layers.Dense(2)

    def call(self, x: Any, mask: Any = None) -> Any:
        if self.norm is not None:
            x = self.norm(x, mask=mask if self.masked else None)
        y = self.dropout(self.encoder(x, mask=mask if self.masked else None))
        if self.pool == "mean":
            y = keras.ops.mean(y, 1)
        return self.head(y)


def drawn(**options: Any) -> Any:
    keras.utils.set_random_seed(0)
    return Tagger(**options)


@takes_seconds
def test_a_right_model_passes() -> None:
    model = drawn()
    model(keras.ops.ones((2, 4, 3)))
    before = [to_numpy(variable.value) for variable in model.variables]
    padding_is_inert(model, BATCH, nan=False)
    for variable, expected in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(to_numpy(variable.value), expected)


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no mask": (
        {"masked": False},
        [r"first layer that moved: .*\(Bidirectional\)", "its reverse direction begins in the padding"],
    ),
    "mean": (
        {"pool": "mean"},
        ["output: off by", r"first layer that moved: .*\(Dense\)", "the code between .*Dropout"],
    ),
    "batch norm": (
        {"norm": True, "masked": False},
        [r"in training:", r"moving_mean after training: off by"],
    ),
}


@takes_seconds
@pytest.mark.parametrize(("options", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_models_are_found(options: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(AssertionError) as raised:
        padding_is_inert(drawn(**options), BATCH, nan=False)
    for pattern in words:
        assert re.search(pattern, str(raised.value)), f"{pattern}\n{raised.value}"


def test_gradients_of_a_function() -> None:
    """Gradients reach the weights and a float array; an integer array beside it has none."""
    layer = layers.Dense(2)
    x = np.array([[1.0, 2.0, 3.0]], np.float32)
    layer(x)
    framework = framework_of(layer)
    arrays = [native(x, layer), native(np.array([4], np.int32), layer)]
    found, weights = framework.gradient(lambda x, k: keras.ops.sum(layer(x)) * 3, arrays, layer)
    assert found[0] is not None
    np.testing.assert_allclose(found[0], 3 * to_numpy(layer.kernel.value).sum(1)[None], rtol=1e-5)
    assert found[1] is None
    np.testing.assert_array_equal(weights[layer.bias.path], [3, 3])
    np.testing.assert_array_equal(weights[layer.kernel.path], np.repeat(3 * x.T, 2, 1))
