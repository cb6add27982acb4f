"""Reading and writing the layers of Keras, and refusing those that no spec describes.

Their numbers are tested in tests/roundtrip.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, errors
from unirnn.contract import weights as _weights


def built(layer: Any) -> Any:
    layer.build((None, None, 3))
    return layer


def drawn(spec: RecurrentSpec) -> Snapshot:
    return Snapshot(spec, _weights.draw(spec, 0)).cast("float32")


SPECS: dict[str, tuple[Callable[[], Any], RecurrentSpec]] = {
    "SimpleRNN": (lambda: layers.SimpleRNN(4), RNNSpec(3, 4, batch_first=True)),
    "SimpleRNN, relu": (
        lambda: layers.SimpleRNN(4, activation="relu", use_bias=False),
        RNNSpec(3, 4, nonlinearity="relu", bias=False, batch_first=True),
    ),
    "GRU": (lambda: layers.GRU(4, dropout=0.5, return_state=True), GRUSpec(3, 4, batch_first=True)),
    "GRU, no bias": (lambda: layers.GRU(4, use_bias=False), GRUSpec(3, 4, bias=False, batch_first=True)),
    "GRU, reset before": (
        lambda: layers.GRU(4, reset_after=False),
        GRUSpec(3, 4, reset_after=False, batch_first=True),
    ),
    "LSTM": (lambda: layers.LSTM(4, recurrent_dropout=0.5), LSTMSpec(3, 4, batch_first=True)),
    "Bidirectional": (
        lambda: layers.Bidirectional(layers.LSTM(4)),
        LSTMSpec(3, 4, bidirectional=True, batch_first=True),
    ),
    "backwards": (lambda: layers.GRU(4, go_backwards=True), GRUSpec(3, 4, reverse=True, batch_first=True)),
    "hard sigmoid": (
        lambda: layers.LSTM(4, recurrent_activation="hard_sigmoid"),
        LSTMSpec(3, 4, gate_activation="hard_sigmoid", batch_first=True),
    ),
    "a cell": (lambda: layers.RNN(layers.LSTMCell(4)), LSTMSpec(3, 4, batch_first=True)),
    "a subclass": (lambda: type("Mine", (layers.GRU,), {})(4), GRUSpec(3, 4, batch_first=True)),
}


@pytest.mark.parametrize(("make", "spec"), SPECS.values(), ids=SPECS.keys())
def test_the_spec_of_a_layer(make: Callable[[], Any], spec: RecurrentSpec) -> None:
    layer = built(make())
    assert unirnn.snapshot(layer).spec == spec
    taken = Snapshot(spec, {n: np.zeros_like(a) if "bias_hh" in n else a for n, a in drawn(spec).weights.items()})
    unirnn.load_weights(layer, taken)
    assert unirnn.snapshot(layer) == taken


def test_a_list_of_layers_is_a_stack() -> None:
    stacked = [layers.GRU(4, return_sequences=True), layers.GRU(4)]
    keras.Sequential([keras.Input((None, 3)), *stacked])
    assert unirnn.snapshot(stacked).spec == GRUSpec(3, 4, 2, batch_first=True)


def different() -> Any:
    return layers.Bidirectional(layers.GRU(4), backward_layer=layers.LSTM(4, go_backwards=True))


def swapped() -> Any:
    return layers.Bidirectional(layers.GRU(4, go_backwards=True), backward_layer=layers.GRU(4))


def same_name(a: Any) -> Any:
    return 2 * keras.ops.tanh(a)


same_name.__name__ = "tanh"


class OwnCell(layers.GRUCell):  # type: ignore[misc]
    def call(self, *given: Any, **options: Any) -> Any:
        output, states = super().call(*given, **options)
        return 2 * output, states


def with_own_cell(layer: Any) -> Any:
    layer.cell.__class__ = OwnCell
    return layer


MISTAKES: dict[str, tuple[Callable[[], Any], type[errors.UnirnnError], str]] = {
    "no weights yet": (
        lambda: layers.GRU(4, name="gru"),
        errors.ArgumentError,
        "keras: gru: given a layer without weights; call it, or its build, first",
    ),
    "gives its output backwards": (
        lambda: built(layers.GRU(4, name="gru", go_backwards=True, return_sequences=True)),
        errors.SpecError,
        "keras: gru: given go_backwards=True with return_sequences=True, whose output is in the order in which it was",
    ),
    "another activation": (
        lambda: built(layers.GRU(4, name="gru", activation="relu")),
        errors.SpecError,
        "keras: gru: given activation=<function relu",
    ),
    "an activation of the same name": (
        lambda: built(layers.GRU(4, name="gru", activation=same_name)),
        errors.SpecError,
        "keras: gru: given activation=<function same_name",
    ),
    "another activation of an RNN": (
        lambda: built(layers.SimpleRNN(4, name="rnn", activation="sigmoid")),
        errors.SpecError,
        "keras: rnn: given activation=<function sigmoid",
    ),
    "another activation of the gates": (
        lambda: built(layers.LSTM(4, name="lstm", recurrent_activation="tanh")),
        errors.SpecError,
        "keras: lstm: given recurrent_activation=<function tanh",
    ),
    "directions that are summed": (
        lambda: built(layers.Bidirectional(layers.GRU(4), merge_mode="sum", name="both")),
        errors.SpecError,
        "keras: both: given merge_mode='sum', expected 'concat'",
    ),
    "directions of two kinds": (
        lambda: built(different()),
        errors.SpecError,
        "keras: bidirectional",
    ),
    "directions in the wrong order": (
        lambda: built(swapped()),
        errors.SpecError,
        "keras: bidirectional",
    ),
    "not a recurrent layer": (
        lambda: built(layers.Dense(4)),
        errors.ArgumentError,
        "obj: given keras.src.layers.core.dense.Dense, expected a module that unirnn built",
    ),
    "a subclass that computes something else": (
        lambda: built(type("Own", (layers.GRU,), {"call": lambda self, *given, **options: 2 * given[0]})(4)),
        errors.SpecError,
        f"module: given {__name__}.Own, whose call is its own, expected that of GRU",
    ),
    "a subclass with its own beginning": (
        lambda: built(
            type("Own", (layers.GRU,), {"get_initial_state": lambda self, size: [keras.ops.ones((size, 4))]})(4)
        ),
        errors.SpecError,
        f"module: given {__name__}.Own, whose get_initial_state is its own, expected that of GRU",
    ),
    "a cell that computes something else": (
        lambda: with_own_cell(built(layers.GRU(4))),
        errors.SpecError,
        f"module: given {__name__}.OwnCell, whose call is its own, expected that of GRUCell",
    ),
    "several cells": (
        lambda: built(layers.RNN([layers.GRUCell(4), layers.GRUCell(4)], name="rnn")),
        errors.SpecError,
        "keras: rnn: given a cell StackedRNNCells, expected one of SimpleRNNCell, GRUCell, LSTMCell",
    ),
}


@pytest.mark.parametrize(("make", "kind", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(make: Callable[[], Any], kind: type[Exception], words: str) -> None:
    layer = make()
    with pytest.raises(kind) as caught:
        unirnn.snapshot(layer)
    assert str(caught.value).startswith(words)


def test_biases_that_a_layer_does_not_have() -> None:
    layer = built(layers.GRU(4, use_bias=False))
    before = unirnn.snapshot(layer)
    with pytest.raises(errors.ArgumentError, match="it has no biases, so that the snapshot's would be lost"):
        unirnn.load_weights(layer, drawn(GRUSpec(3, 4)))
    assert unirnn.snapshot(layer) == before


def test_bfloat16_weights_are_read_as_float32() -> None:
    # No backend of Keras can draw an orthogonal matrix in bfloat16.
    layer = built(layers.GRU(4, dtype="bfloat16", recurrent_initializer="glorot_uniform"))
    taken = unirnn.snapshot(layer)
    assert taken.dtype == "float32"
    with pytest.raises(errors.DTypeError, match="module: it is of bfloat16, which can't hold kernel_l0"):
        unirnn.load_weights(layer, drawn(taken.spec))
    assert unirnn.snapshot(layer) == taken
    unirnn.load_weights(layer, taken)


def test_one_layer_cannot_hold_two() -> None:
    twice = [built(layers.GRU(3, return_sequences=True))] * 2
    before = unirnn.snapshot(twice)
    with pytest.raises(errors.ArgumentError, match="it shares a weight between layers or directions"):
        unirnn.load_weights(twice, drawn(before.spec))
    assert unirnn.snapshot(twice) == before
