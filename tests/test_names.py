"""The table of argument names agrees with the installed frameworks."""

import importlib
import inspect
import re
import typing
from importlib.util import find_spec
from typing import Any

import pytest

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.specs import arguments as names

SPECS: list[RecurrentSpec] = [
    RNNSpec(2, 3, 4, nonlinearity="relu", bias=False, batch_first=True, dropout=0.25, bidirectional=True),
    GRUSpec(2, 3, 4, bias=False, batch_first=True, dropout=0.25, bidirectional=True),
    LSTMSpec(2, 3, 4, bias=False, batch_first=True, dropout=0.25, bidirectional=True),
]
each = pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.kind)


def layer(framework: str, spec: RecurrentSpec) -> Any:
    return getattr(importlib.import_module(f"{framework}.nn"), spec.kind)


def parameters(framework: str, spec: RecurrentSpec) -> set[str]:
    """The constructor's arguments, from all overloads or from the base class behind ``*args, **kwargs``."""
    cls = layer(framework, spec)
    overloads = [inspect.signature(f) for f in getattr(typing, "get_overloads", lambda _: [])(cls.__init__)]
    found = overloads or [inspect.signature(base.__init__) for base in cls.__mro__[1:2]]
    own = {name for signature in found for name in signature.parameters}
    return own - {"self", "args", "kwargs", "mode"}


@pytest.mark.parametrize("framework", [name for name in names.FRAMEWORKS if find_spec(name)])
class TestFrameworks:
    @each
    def test_every_argument_of_the_constructor_is_in_the_table(self, framework: str, spec: RecurrentSpec) -> None:
        places: tuple[names.Place, ...] = ("constructor", "build")
        rows = {row.name_in(framework) for place in places for row in names.arguments(spec.kind, place)} - {None}
        if framework == "mindspore" and spec.kind == "RNN":
            rows -= {"nonlinearity"}  # keyword only: the constructor reads it from **kwargs
            assert "nonlinearity" in layer(framework, spec).__doc__
        actual = parameters(framework, spec)
        if spec.kind != "LSTM":
            actual -= {"proj_size"}  # it is in the base class that torch's layers share
        if not hasattr(typing, "get_overloads") and spec.kind == "RNN":
            rows -= {"nonlinearity"}  # Python 3.10 does not expose the overload that names it
        assert rows == actual

    @each
    def test_the_arguments_make_the_layer_of_the_spec(self, framework: str, spec: RecurrentSpec) -> None:
        kwargs = spec.to_kwargs(framework)
        made = layer(framework, spec)(**kwargs)
        for row in names.arguments(spec.kind, "constructor"):
            spelling = row.name_in(framework)
            if spelling and hasattr(made, spelling):
                assert getattr(made, spelling) == getattr(spec, row.name)
        weights = (
            {p.name: tuple(p.shape) for p in made.get_parameters()}
            if framework == "mindspore"
            else {name: tuple(p.shape) for name, p in made.named_parameters()}
        )
        assert weights == spec.weight_shapes()

    @each
    def test_the_names_in_a_call_match_the_framework(self, framework: str, spec: RecurrentSpec) -> None:
        cls = layer(framework, spec)
        call = inspect.signature(cls.construct if framework == "mindspore" else cls.forward).parameters
        for row in names.arguments(spec.kind, "call"):
            spelling = row.name_in(framework)
            documented = re.search(rf"\b{spelling}\b", cls.__doc__ or "")
            # torch's signature has hx where the documentation of GRU and LSTM has h_0
            assert spelling is None or spelling in call or documented or set(row.spellings) & set(call), spelling


def test_the_fourth_positional_argument_differs() -> None:
    rows = names.arguments("RNN", "constructor")
    assert [row.name for row in rows][3] == "nonlinearity"
    assert rows[3].difference
    assert rows[3].difference_zh


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
@pytest.mark.parametrize("place", typing.get_args(names.Place))
def test_no_spelling_means_two_things(cell: str, place: Any) -> None:
    spellings = [s for row in names.arguments(cell, place) for s in row.spellings]
    assert len(spellings) == len(set(spellings))


def test_the_specs_understand_every_spelling() -> None:
    for spec in SPECS:
        for row in names.arguments(spec.kind, "constructor"):
            for spelling in row.spellings:
                kwargs = {"input_size": 2, "hidden_size": 3}
                value = getattr(spec, row.name)
                if spelling == "dropout":
                    kwargs["num_layers"] = 4
                assert getattr(type(spec)(**{**kwargs, spelling: value}), row.name) == value
