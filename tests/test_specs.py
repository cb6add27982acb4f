"""Specs: their values, the checks of their arguments, and their other forms."""

import dataclasses
import math
import re
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Spec, errors
from unirnn.contract import weights as _weights
from unirnn.snapshots import layouts
from unirnn.specs import arguments as names
from unirnn.specs.base import Random
from unirnn.testing.strategies import specs

SPECS = (RNNSpec, GRUSpec, LSTMSpec)


@given(specs())
def test_a_spec_is_a_value(spec: RecurrentSpec) -> None:
    same = dataclasses.replace(spec)
    assert same == spec
    assert hash(same) == hash(spec)
    assert eval(repr(spec), vars(unirnn)) == spec
    assert Spec.from_dict(spec.to_dict()) == spec
    assert type(spec).from_dict(spec.to_dict()) == spec
    with pytest.raises(dataclasses.FrozenInstanceError):
        spec.hidden_size = 3  # type: ignore[misc]


@given(specs())
def test_shapes_of_weights_and_states(spec: RecurrentSpec) -> None:
    shapes = spec.weight_shapes()
    assert spec.num_weights == sum(math.prod(shape) for shape in shapes.values())
    assert len(spec.suffixes()) == spec.num_layers * spec.num_directions
    assert {shape[0] for name, shape in shapes.items() if "_ih" in name} == {len(spec.gates) * spec.hidden_size}
    for name, shape in spec.state_shapes(5).items():
        assert shape[:2] == (spec.num_layers * spec.num_directions, 5)
        assert spec.state_shapes(None)[name] == (shape[0], shape[2])


@given(specs(), st.sampled_from(names.FRAMEWORKS))
def test_arguments_of_a_framework_and_back(spec: RecurrentSpec, framework: str) -> None:
    reason = layouts.SUPPORT[framework].unsupported_reason(spec)
    if reason is not None:
        with pytest.raises(errors.LimitError, match=re.escape(reason)):
            spec.to_kwargs(framework)
        return
    kwargs = spec.to_kwargs(framework)
    assert isinstance(kwargs["dropout"], float)
    assert type(spec).from_kwargs(framework, kwargs) == spec


@pytest.mark.parametrize("cls", SPECS)
def test_both_spellings_of_bias(cls: type[RecurrentSpec]) -> None:
    assert cls(3, 4, has_bias=False) == cls(3, 4, bias=False)
    assert cls(3, 4, has_bias=True) == cls(3, 4)
    assert cls(input_size=3, hidden_size=4, num_layers=2) == cls(3, 4, 2)


def test_has_bias_is_for_arguments_only() -> None:
    spec: Any = GRUSpec(3, 4, has_bias=False)
    with pytest.raises(errors.ArgumentError, match=r"read spec\.bias"):
        bool(spec.has_bias)


def test_specs_of_different_kinds_differ() -> None:
    assert len({RNNSpec(3, 4), GRUSpec(3, 4), GRUSpec(3, 4, reset_after=False), LSTMSpec(3, 4)}) == 4


def test_a_dict_without_reset_after_is_the_default_variant() -> None:
    written = GRUSpec(3, 4, reset_after=False).to_dict()
    assert written.pop("reset_after") is False
    assert Spec.from_dict(written) == GRUSpec(3, 4)


def test_numbers_of_numpy_become_numbers_of_python() -> None:
    sizes: Any = (np.int64(3), np.int32(4), np.int8(2))
    dropout: Any = np.float32(0.5)
    spec = GRUSpec(*sizes, dropout=dropout)
    assert spec == GRUSpec(3, 4, 2, dropout=0.5)
    assert {type(value) for value in (spec.input_size, spec.hidden_size, spec.num_layers)} == {int}
    flag: Any = np.False_
    assert GRUSpec(3, 4, reset_after=flag).reset_after is False
    assert type(spec.dropout) is float
    assert GRUSpec(3, 4, dropout=0).dropout == 0.0


@dataclass(frozen=True)
class ScaleSpec(Spec):
    """A layer that multiplies by one weight, with its own initial values."""

    kind = "test-only scale"
    size: int

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"scale": (self.size,)}

    def draw_weights(self, random: Random) -> dict[str, NDArray[np.float64]]:
        return {"scale": 1 + 0.1 * random((self.size,))}


def test_a_new_kind_of_spec() -> None:
    spec = ScaleSpec(3)
    assert spec.to_dict() == {"kind": "test-only scale", "size": 3}
    assert Spec.from_dict(spec.to_dict()) == ScaleSpec.from_dict(spec.to_dict()) == spec
    assert spec.num_weights == 3
    assert not spec.fits(ScaleSpec(4))
    with pytest.raises(
        errors.SpecError, match=r"^kind: given 'test-only scale', expected one of 'RNN', 'GRU', 'LSTM'$"
    ):
        RecurrentSpec.from_dict(spec.to_dict())


def test_the_spec_draws_the_initial_weights() -> None:
    drawn = _weights.draw(ScaleSpec(100), 0)["scale"]
    assert drawn.shape == (100,)
    assert ((drawn >= 1) & (drawn < 1.1)).all()
    np.testing.assert_array_equal(drawn, 1 + 0.1 * np.random.default_rng(0).random(100))


def test_a_subclass_of_a_layer_has_its_kind() -> None:
    class NamedGRUSpec(GRUSpec):
        pass

    written = NamedGRUSpec(3, 4).to_dict()
    assert type(NamedGRUSpec.from_dict(written)) is NamedGRUSpec
    assert type(Spec.from_dict(written)) is type(RecurrentSpec.from_dict(written)) is GRUSpec


MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    "no size": (lambda: GRUSpec(), TypeError, "GRU: hidden_size is missing"),
    "a fourth positional argument": (
        lambda: RNNSpec(*(3, 4, 1, "relu")),  # type: ignore[call-arg, arg-type]
        TypeError,
        "positional arguments but 5 were given",
    ),
    "hidden_size 0": (lambda: GRUSpec(3, 0), errors.SpecError, "hidden_size: given 0, expected at least 1"),
    "input_size negative": (lambda: GRUSpec(-3, 4), errors.SpecError, "input_size: given -3, expected at least 1"),
    "num_layers 0": (lambda: GRUSpec(3, 4, 0), errors.SpecError, "num_layers: given 0, expected at least 1"),
    "a size that is a float": (
        lambda: GRUSpec(3, 4.0),  # type: ignore[arg-type]
        errors.ArgumentError,
        "hidden_size: given 4.0, expected an integer",
    ),
    "a size that is a bool": (
        lambda: GRUSpec(3, 4, True),
        errors.ArgumentError,
        "num_layers: given True, expected an integer",
    ),
    "a size that is NaN": (
        lambda: GRUSpec(math.nan, 4),  # type: ignore[arg-type]
        errors.ArgumentError,
        "input_size: given nan, expected an integer",
    ),
    "dropout 1": (lambda: GRUSpec(3, 4, 2, dropout=1), errors.SpecError, "dropout: given 1, expected 0 <= dropout < 1"),
    "dropout negative": (
        lambda: GRUSpec(3, 4, 2, dropout=-0.1),
        errors.SpecError,
        "dropout: given -0.1, expected 0 <= dropout < 1",
    ),
    "dropout NaN": (
        lambda: GRUSpec(3, 4, 2, dropout=math.nan),
        errors.SpecError,
        "dropout: given nan, expected 0 <= dropout < 1",
    ),
    "dropout that is a bool": (
        lambda: GRUSpec(3, 4, 2, dropout=True),
        errors.ArgumentError,
        "dropout: given True, expected a number",
    ),
    "dropout that is a string": (
        lambda: GRUSpec(3, 4, 2, dropout="0.5"),  # type: ignore[arg-type]
        errors.ArgumentError,
        "dropout: given '0.5', expected a number",
    ),
    "bias that is 1": (
        lambda: GRUSpec(3, 4, bias=1),  # type: ignore[arg-type]
        errors.ArgumentError,
        "bias: given 1, expected True or False",
    ),
    "has_bias that is a string": (
        lambda: GRUSpec(3, 4, has_bias="no"),  # type: ignore[arg-type]
        errors.ArgumentError,
        "bias: given 'no', expected True or False",
    ),
    "batch_first None": (
        lambda: GRUSpec(3, 4, batch_first=None),  # type: ignore[arg-type]
        errors.ArgumentError,
        "batch_first: given None, expected True or False",
    ),
    "reset_after 0": (
        lambda: GRUSpec(3, 4, reset_after=0),  # type: ignore[arg-type]
        errors.ArgumentError,
        "reset_after: given 0, expected True or False",
    ),
    "reset_after of an LSTM": (
        lambda: Spec.from_dict({**LSTMSpec(3, 4).to_dict(), "reset_after": True}),
        errors.ArgumentError,
        "LSTM: unknown argument 'reset_after'",
    ),
    "bias spelled twice": (
        lambda: GRUSpec(3, 4, bias=True, has_bias=True),
        errors.ArgumentError,
        "GRU: 'bias' and 'has_bias' are two spellings of one argument; give one",
    ),
    "an unknown argument": (
        lambda: GRUSpec(3, 4, nonlinearity="relu"),  # type: ignore[call-arg]
        TypeError,
        "unexpected keyword argument 'nonlinearity'",
    ),
    "an unknown nonlinearity": (
        lambda: RNNSpec(3, 4, nonlinearity="gelu"),  # type: ignore[arg-type]
        errors.SpecError,
        "nonlinearity: given 'gelu', expected 'tanh' or 'relu'",
    ),
    "reverse and bidirectional": (
        lambda: GRUSpec(3, 4, reverse=True, bidirectional=True),
        errors.SpecError,
        "reverse: given True together with bidirectional=True",
    ),
    "an unknown gate_activation": (
        lambda: LSTMSpec(3, 4, gate_activation="relu"),  # type: ignore[arg-type]
        errors.SpecError,
        "gate_activation: given 'relu', expected 'sigmoid' or 'hard_sigmoid' or 'hard_sigmoid_0.2'",
    ),
    "proj_size as large as hidden_size": (
        lambda: LSTMSpec(3, 4, proj_size=4),
        errors.SpecError,
        "proj_size: given 4, expected less than hidden_size=4",
    ),
    "proj_size negative": (
        lambda: LSTMSpec(3, 4, proj_size=-1),
        errors.SpecError,
        "proj_size: given -1, expected at least 0",
    ),
    "the base class": (
        lambda: Spec(),
        errors.ArgumentError,
        "Spec is not a layer; expected one of RNNSpec, GRUSpec, LSTMSpec, EmbeddingSpec, ",
    ),
    "a dict without a kind": (
        lambda: Spec.from_dict({"input_size": 3, "hidden_size": 4}),
        errors.SpecError,
        "kind: given None, expected one of 'RNN', 'GRU', 'LSTM', 'Embedding', ",
    ),
    "a dict whose kind is not a string": (
        lambda: Spec.from_dict({"kind": [1], "input_size": 3, "hidden_size": 4}),
        errors.SpecError,
        "kind: given [1], expected one of 'RNN', 'GRU', 'LSTM', 'Embedding', ",
    ),
    "a dict of another kind": (
        lambda: GRUSpec.from_dict(LSTMSpec(3, 4).to_dict()),
        errors.SpecError,
        "kind: given 'LSTM', expected one of 'GRU'",
    ),
    "a dict with an unknown key": (
        lambda: Spec.from_dict({**GRUSpec(3, 4).to_dict(), "layers": 2}),
        errors.ArgumentError,
        "GRU: unknown argument 'layers'",
    ),
    "a dict without a size": (
        lambda: Spec.from_dict({"kind": "GRU", "input_size": 3}),
        errors.ArgumentError,
        "GRU: hidden_size is missing, which nothing else tells",
    ),
    "arguments of an unknown framework": (
        lambda: GRUSpec(3, 4).to_kwargs("tensorflow"),
        errors.ArgumentError,
        "framework: given 'tensorflow', expected one of 'torch', 'mindspore'",
    ),
    "an argument of build": (
        lambda: GRUSpec.from_kwargs("mindspore", {"input_size": 3, "hidden_size": 4, "dtype": "float32"}),
        errors.ArgumentError,
        "mindspore: 'dtype' is not part of a spec; give it to build",
    ),
    "another framework's argument": (
        lambda: GRUSpec.from_kwargs("torch", {"input_size": 3, "hidden_size": 4, "has_bias": True}),
        errors.ArgumentError,
        "torch: unknown argument 'has_bias'",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(mistake: tuple[Any, type[Exception], str]) -> None:
    action, exception, words = mistake
    with pytest.raises(exception, match=re.escape(words)):
        action()


@pytest.mark.parametrize("cls", SPECS)
def test_dropout_of_one_layer_warns_at_the_line_of_the_caller(cls: type[RecurrentSpec]) -> None:
    with pytest.warns(UserWarning, match="dropout=0.5 has no effect") as caught:
        cls(3, 4, dropout=0.5)
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cls(3, 4, 2, dropout=0.5)
