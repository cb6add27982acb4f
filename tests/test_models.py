"""Models as data: values, sizes inferred from layer to layer, mistakes, and summaries."""

import copy
import dataclasses
import functools
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given

import unirnn
from unirnn import (
    ActivationSpec,
    BatchNormSpec,
    Concat,
    Conv1dSpec,
    DropoutSpec,
    EmbeddingSpec,
    GRUSpec,
    LayerNormSpec,
    LinearSpec,
    LSTMSpec,
    NormalizeSpec,
    PoolSpec,
    Residual,
    Sequential,
    Spec,
    SumDirectionsSpec,
    errors,
)
from unirnn.contract import weights as _weights
from unirnn.testing.strategies import models

TAGGER = Sequential(
    embedding=EmbeddingSpec(50, 8),
    block=Sequential(LinearSpec(8, 8), ActivationSpec("relu")),
    encoder=LSTMSpec(8, 16, bidirectional=True, batch_first=True),
    head=LinearSpec(32, 9),
)


@given(models())
def test_a_model_is_a_value(model: Sequential) -> None:
    assert eval(repr(model), vars(unirnn)) == model
    assert Spec.from_dict(model.to_dict()) == Sequential.from_dict(model.to_dict()) == model
    for same in (pickle.loads(pickle.dumps(model)), copy.copy(model), copy.deepcopy(model)):
        assert same == model
        assert hash(same) == hash(model)
    assert model.fits(model)
    assert model.missing_size() is None
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.kind = "another"  # type: ignore[misc]


@given(models())
def test_a_model_has_the_weights_of_its_layers(model: Sequential) -> None:
    shapes, leaves = model.weight_shapes(), model.leaves()
    assert shapes == {
        f"{name}.{key}": shape for name, leaf in leaves.items() for key, shape in leaf.weight_shapes().items()
    }
    assert {name: array.shape for name, array in _weights.draw(model, 0).items()} == shapes
    assert model.num_weights == sum(math.prod(shape) for shape in shapes.values())
    assert set(model.buffers) <= set(shapes)
    assert not model.tied().keys() & shapes.keys()
    assert set(model.tied().values()) <= set(shapes)
    summary = model.summary(3, 1000)
    assert [row.name for row in summary.rows] == list(leaves)
    assert summary.parameters + summary.buffers == model.num_weights
    assert str(summary).count("\n") == len(leaves) + 3


@given(models())
def test_a_model_without_its_inner_sizes_is_the_same(model: Sequential) -> None:
    def without_size(spec: Spec) -> Spec:
        values = spec.to_dict()
        field = type(spec)._input_field
        return Spec.from_dict({name: value for name, value in values.items() if name != field})

    first, *others = model.children
    layers = dict([first, *((name, without_size(layer)) for name, layer in others)])
    if first[0] == "0":
        assert Sequential(*layers.values()) == model
    else:
        assert Sequential(**layers) == model


def test_layers_by_names_and_numbers() -> None:
    assert TAGGER.head == TAGGER["head"] == TAGGER[-1] == LinearSpec(32, 9)
    numbered = Sequential(GRUSpec(3, 4), LinearSpec(4, 2))
    assert numbered[1] == numbered["1"] == LinearSpec(4, 2)
    assert [len(TAGGER), list(numbered)] == [4, [GRUSpec(3, 4), LinearSpec(4, 2)]]
    assert {"embedding", "head"} <= set(dir(TAGGER))
    assert list(TAGGER.leaves()) == ["embedding", "block.0", "block.1", "encoder", "head"]
    assert Sequential(first=LinearSpec(3, 4)) != Sequential(LinearSpec(3, 4))
    with pytest.raises(AttributeError, match="Sequential has no layer and no attribute 'decoder'"):
        _ = TAGGER.decoder


@pytest.mark.parametrize(
    ("model", "input_features", "output_features"),
    [
        (TAGGER, 50, 9),
        (Sequential(ActivationSpec("relu"), DropoutSpec(), LayerNormSpec(4), LinearSpec(out_features=2)), 4, 2),
        (Sequential(LinearSpec(3, 8), SumDirectionsSpec(), LinearSpec(out_features=2)), 3, 2),
        (Sequential(SumDirectionsSpec(), LinearSpec(4, 2)), 0, 2),
        (Sequential(Sequential(SumDirectionsSpec(), LinearSpec(4, 2)), LinearSpec(2, 5)), 0, 5),
        (Sequential(Concat(Sequential(), Sequential()), LinearSpec(6, 2)), 0, 2),
        (Sequential(Concat(Sequential(), GRUSpec(3, 4)), LinearSpec(out_features=2)), 3, 2),
        (Sequential(Conv1dSpec(3, 4, 3), Residual(GRUSpec(hidden_size=4)), PoolSpec("last")), 3, 4),
        (Sequential(Residual(Sequential(LinearSpec(3, 5), LinearSpec(out_features=3))), BatchNormSpec()), 3, 3),
        (Sequential(LinearSpec(out_features=2)), 0, 2),
        (Sequential(), 0, 0),
    ],
    ids=repr,
)
def test_sizes(model: Sequential, input_features: int, output_features: int) -> None:
    assert model.input_features == input_features
    assert model.output_features(input_features) == output_features


def test_sizes_that_are_left_out_can_be_given_later() -> None:
    head = Sequential(LinearSpec(out_features=5), Sequential(ActivationSpec("relu"), LinearSpec(out_features=2)))
    assert head.missing_size() == "0.in_features"
    assert Sequential(GRUSpec(3, 4), head)[1] == head.with_input_features(4)
    assert Spec.from_dict(head.to_dict()) == eval(repr(head), vars(unirnn)) == head
    assert head._repr_html_() is None
    with pytest.raises(errors.SpecError, match=r"0\.in_features was left out, expected a number"):
        head.build("numpy")


def test_deep_nesting_costs_no_exponential_time() -> None:
    """Nesting a model once more must not double the time of any operation."""
    model: Spec = LinearSpec(out_features=3)
    for _ in range(30):
        model = Sequential(Residual(ActivationSpec("relu")), Concat(model))
    model = Sequential(LinearSpec(2, 4), model)
    assert model.output_features(2) == 3
    assert Spec.from_dict(model.to_dict()) == model
    assert model.summary().rows[-1].parameters == 15


def test_models_that_compute_the_same() -> None:
    def model(**arguments: Any) -> Sequential:
        return Sequential(rnn=GRUSpec(3, 4, **arguments), drop=DropoutSpec(0.1), head=LinearSpec(4, 2))

    assert model(batch_first=True).fits(model())
    assert not model(reset_after=False).fits(model())
    assert not Sequential(*model()).fits(model())
    assert not Sequential(LinearSpec(3, 4)).fits(Residual(LinearSpec(3, 3)))
    assert not LinearSpec(3, 4).fits(Sequential(LinearSpec(3, 4)))


Mistake = tuple[Callable[[], Any], type[errors.UnirnnError], str]
MISTAKES: dict[str, Mistake] = {
    "features that do not fit": (
        lambda: Sequential(encoder=GRUSpec(8, 16), head=LinearSpec(8, 9)),
        errors.SpecError,
        "Sequential: encoder, GRUSpec(8, 16), gives 16 features, but head, LinearSpec(8, 9), takes 8",
    ),
    "an embedding after features": (
        lambda: Sequential(GRUSpec(8, 16), EmbeddingSpec(16, 9)),
        errors.SpecError,
        "Sequential: 0, GRUSpec(8, 16), gives features, but 1, EmbeddingSpec(16, 9), takes tokens",
    ),
    "a layer over steps after a pooling": (
        lambda: Sequential(PoolSpec("mean"), GRUSpec(8, 16)),
        errors.SpecError,
        "Sequential: 0, PoolSpec('mean'), gives no time steps, but 1, GRUSpec(8, 16), needs them",
    ),
    "two layouts": (
        lambda: Sequential(a=GRUSpec(8, 16), b=Residual(GRUSpec(16, 16, batch_first=True))),
        errors.SpecError,
        "Sequential: a has batch_first=False, but b.layer has batch_first=True; expected one layout for the whole",
    ),
    "no spec": (lambda: Sequential(a=GRUSpec), errors.ArgumentError, "Sequential: a: given type, expected a spec"),  # type: ignore[arg-type]
    "some names": (
        lambda: Sequential(GRUSpec(3, 4), head=LinearSpec(4, 2)),
        errors.ArgumentError,
        "Sequential: given layers with and without names, expected one or the other",
    ),
    **{
        f"the name {name}": (
            functools.partial(Sequential, **{name: LinearSpec(3, 4)}),
            errors.ArgumentError,
            f"Sequential: given the name {name!r}, expected an identifier that is not taken",
        )
        for name in ("build", "children", "1", "a.b", "", "class")
    },
    "directions of an odd size": (
        lambda: Sequential(GRUSpec(3, 5), PoolSpec("first_last")),
        errors.SpecError,
        "PoolSpec('first_last'): given 5 features, expected those of two directions",
    ),
    "directions to add of an odd size": (
        lambda: Sequential(GRUSpec(3, 5), SumDirectionsSpec()),
        errors.SpecError,
        "SumDirectionsSpec(): given 5 features, expected those of two directions",
    ),
    "a sum of two sizes": (
        lambda: Residual(SumDirectionsSpec()),
        errors.SpecError,
        "Residual: SumDirectionsSpec() changes the number of features, so that its output can't be added to its input",
    ),
    "a sum of two sizes, of any number of features": (
        lambda: Residual(Concat(Sequential(), DropoutSpec())),
        errors.SpecError,
        "Residual: Concat(Sequential(), DropoutSpec(0.5)) changes the number of features",
    ),
    "a layer behind the first of an inner model": (
        lambda: Sequential(LinearSpec(3, 2), Sequential(SumDirectionsSpec(), LayerNormSpec(4))),
        errors.SpecError,
        "Sequential: 0, SumDirectionsSpec(), gives 1 features, but 1, LayerNormSpec(4), takes 4",
    ),
    "a layer behind the first of a branch": (
        lambda: Concat(LinearSpec(6, 2), Sequential(SumDirectionsSpec(), LayerNormSpec(4))),
        errors.SpecError,
        "Sequential: 0, SumDirectionsSpec(), gives 3 features, but 1, LayerNormSpec(4), takes 4",
    ),
    "tied to nothing": (
        lambda: Sequential(embedding=EmbeddingSpec(9, 4), head=LinearSpec(4, 9, tied_to="embeding")),
        errors.SpecError,
        "head: tied_to: given 'embeding', expected an embedding: embedding",
    ),
    "tied to another size": (
        lambda: Sequential(embedding=EmbeddingSpec(9, 4), head=LinearSpec(4, 8, tied_to="embedding")),
        errors.SpecError,
        "head: tied_to: given 'embedding', EmbeddingSpec(9, 4), expected an embedding of the sizes of LinearSpec(4, 8, "
        "tied_to='embedding'): EmbeddingSpec(8, 4)",
    ),
    "tied by itself": (
        lambda: LinearSpec(4, 9, tied_to="embedding").build("numpy"),
        errors.SpecError,
        "tied_to: given 'embedding' outside of a model, expected none",
    ),
    "a sum of other sizes": (
        lambda: Residual(LinearSpec(3, 4)),
        errors.SpecError,
        "Residual: LinearSpec(3, 4) takes 3 features and gives 4, expected as many",
    ),
    "a sum of other steps": (
        lambda: Residual(Conv1dSpec(3, 3, 3)),
        errors.SpecError,
        "Residual: Conv1dSpec(3, 3, 3) changes the number of steps, so that its output can't be added to its input",
    ),
    "a sum with tokens": (
        lambda: Residual(EmbeddingSpec(3, 3)),
        errors.SpecError,
        "Residual: EmbeddingSpec(3, 3) takes",
    ),
    "nothing side by side": (Concat, errors.SpecError, "Concat: given no layers, expected at least one"),
    "inputs of two sizes": (
        lambda: Concat(LinearSpec(3, 4), LinearSpec(4, 4)),
        errors.SpecError,
        "Concat: 0, LinearSpec(3, 4), takes 3 features, but 1, LinearSpec(4, 4), takes 4",
    ),
    "tokens and features": (
        lambda: Concat(EmbeddingSpec(3, 4), LinearSpec(3, 4)),
        errors.SpecError,
        "Concat: given layers that take tokens, and others that take features; expected one kind",
    ),
    "other steps side by side": (
        lambda: Concat(PoolSpec("mean"), Sequential()),
        errors.SpecError,
        "Concat: 0, PoolSpec('mean'), and 1, Sequential(), change the number of steps in different ways",
    ),
    "a size that nothing tells": (
        lambda: LinearSpec(3),
        errors.ArgumentError,
        "Linear: out_features is missing, which nothing else tells",
    ),
    "an unknown activation": (
        lambda: ActivationSpec("swish"),  # type: ignore[arg-type]
        errors.SpecError,
        "function: given 'swish', expected one of 'relu', 'tanh', ",
    ),
    "an unknown pooling": (lambda: PoolSpec("sum"), errors.SpecError, "how: given 'sum', expected one of 'last', "),  # type: ignore[arg-type]
    "a padding_idx beyond the tokens": (
        lambda: EmbeddingSpec(3, 4, padding_idx=3),
        errors.SpecError,
        "padding_idx: given 3, expected less than num_embeddings=3",
    ),
    "all dropped": (lambda: DropoutSpec(1), errors.SpecError, "p: given 1, expected 0 <= p < 1"),
    "an eps of text": (lambda: NormalizeSpec("1"), errors.ArgumentError, "eps: given '1', expected a number"),  # type: ignore[arg-type]
    "an eps of 0": (lambda: NormalizeSpec(0), errors.SpecError, "eps: given 0, expected 1e-15 <= eps < 1"),
    "as many steps with a stride": (
        lambda: Conv1dSpec(3, 4, 3, stride=2, padding="same"),
        errors.SpecError,
        "padding: given 'same' with stride=2, expected a stride of 1",
    ),
    "an unknown padding": (
        lambda: Conv1dSpec(3, 4, 3, padding="full"),  # type: ignore[arg-type]
        errors.SpecError,
        "padding: given 'full', expected one of 'valid', 'same', 'causal'",
    ),
    "groups that do not divide": (
        lambda: Conv1dSpec(4, 6, 3, groups=4),
        errors.SpecError,
        "groups: given 4, expected a divisor of out_channels=6",
    ),
    "a dict of nothing": (
        lambda: Spec.from_dict({"kind": "Sequential"}),
        errors.SpecError,
        "Sequential: given nothing, expected layers by their names",
    ),
    "a dict whose layer is no dict": (
        lambda: Spec.from_dict({"kind": "Sequential", "layers": {"a": 3}}),
        errors.SpecError,
        "Spec: given 3, expected a mapping, as to_dict gives it",
    ),
    "a dict with another layer": (
        lambda: Spec.from_dict({"kind": "Residual", "layers": {"a": LinearSpec(3, 3).to_dict()}}),
        errors.SpecError,
        "Residual: given layers a, expected one, layer",
    ),
    "a dict of an unknown layer": (
        lambda: Spec.from_dict({"kind": "Sequential", "layers": {"a": {"kind": "Attention"}}}),
        errors.SpecError,
        "kind: given 'Attention', expected one of ",
    ),
    "a dict with an unknown argument": (
        lambda: Spec.from_dict({**LinearSpec(3, 4).to_dict(), "units": 4}),
        errors.ArgumentError,
        "Linear: unknown argument 'units'; expected one of in_features, out_features, bias, tied_to",
    ),
    "too few steps": (
        lambda: Sequential(LinearSpec(3, 3), Conv1dSpec(3, 4, 5)).summary(steps=4),
        errors.ShapeError,
        "steps: too few, since 1 is left with 4: Conv1dSpec(3, 4, 5)",
    ),
    "no batch": (
        lambda: TAGGER.summary(batch_size=0),
        errors.ArgumentError,
        "batch_size: given 0, expected a positive integer or None",
    ),
}


@pytest.mark.parametrize(("call", "kind", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(call: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert str(caught.value).startswith(words)


# ---- summaries -----------------------------------------------------------------------------------

SPEECH = Sequential(
    conv=Conv1dSpec(8, 16, 5, stride=2, padding=2),
    norm=BatchNormSpec(),
    again=Conv1dSpec(out_channels=16, kernel_size=3, stride=2, groups=2),
    res=Residual(Sequential(LinearSpec(16, 16), ActivationSpec("gelu"))),
    encoder=LSTMSpec(hidden_size=4, num_layers=2, bidirectional=True, batch_first=True),
    pools=Concat(PoolSpec("first_last"), PoolSpec("mean")),
    head=LinearSpec(out_features=9),
)


def test_the_table_of_a_summary() -> None:
    model = Sequential(
        conv=Conv1dSpec(8, 16, 5, stride=2, padding=2),
        norm=BatchNormSpec(),
        encoder=LSTMSpec(hidden_size=4),
        pool=PoolSpec("last"),
        head=LinearSpec(out_features=900),
    )
    assert str(model.summary()).splitlines() == [
        "name     layer                                      output             parameters           multiply-adds",
        "---------------------------------------------------------------------------------------------------------",
        "conv     Conv1dSpec(8, 16, 5, stride=2, padding=2)  ((T+1)//2, B, 16)         656                     320",
        "norm     BatchNormSpec(16)                          ((T+1)//2, B, 16)          32                       0",
        "encoder  LSTMSpec(16, 4)                            ((T+1)//2, B, 4)          352                     160",
        "pool     PoolSpec('last')                           (B, 4)                      0                       0",
        "head     LinearSpec(4, 900)                         (B, 900)                4,500              3,600 once",
        "---------------------------------------------------------------------------------------------------------",
        "total    and 32 in buffers                                                  5,540  480 a step, 3,600 once",
    ]


@pytest.mark.parametrize("steps", [7, 8, 9, 100])
def test_the_shapes_in_a_summary_match_the_outputs(steps: int) -> None:
    rows = SPEECH.summary(3, steps).rows
    for end, row in ((1, rows[0]), (3, rows[2]), (7, rows[-1])):
        begin = Sequential(**dict(SPEECH.children[:end]))
        assert row.output == begin.build("numpy", seed=0)(np.ones((3, steps, 8), "float32")).shape
    symbolic = SPEECH.summary().rows[2].output[1]
    assert eval(str(symbolic), {"T": steps}) == rows[2].output[1]


def test_summaries_of_single_layers_and_of_tied_weights() -> None:
    (row,) = GRUSpec(3, 4, 2).summary(5).rows
    assert (row.output, row.parameters, row.multiply_adds) == (("T", 5, 4), 228, 12 * (3 + 4 + 4 + 4))
    tied = Sequential(embedding=EmbeddingSpec(50, 8), head=LinearSpec(8, 50, tied_to="embedding")).summary()
    assert [(row.parameters, row.multiply_adds) for row in tied.rows] == [(400, 0), (50, 400)]
    assert tied.parameters == 450
    assert Sequential(ActivationSpec("relu")).summary().rows[0].output == ("B", "T", "F")


def test_a_notebook_shows_the_summary() -> None:
    shown = SPEECH._repr_html_()
    assert shown == SPEECH.summary()._repr_html_()
    assert shown is not None
    assert shown.count("<tr>") == len(SPEECH.leaves()) + 2
    assert "ActivationSpec(&#x27;gelu&#x27;)" in shown
    assert len(re.findall(r"<(?!/)", shown)) == shown.count("</")
