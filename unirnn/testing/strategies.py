"""Hypothesis strategies, and the profiles with which the conformance suite uses them."""

from dataclasses import replace
from typing import Any, get_args

import hypothesis
import numpy as np
from hypothesis import strategies as st

from unirnn import (
    ActivationSpec,
    BatchNormSpec,
    Concat,
    Conv1dSpec,
    DropoutSpec,
    EmbeddingSpec,
    LayerNormSpec,
    LinearSpec,
    LSTMSpec,
    NormalizeSpec,
    PoolSpec,
    RecurrentSpec,
    Residual,
    RNNSpec,
    Sequential,
    Spec,
    SumDirectionsSpec,
)
from unirnn.specs.layers import Activation
from unirnn.specs.recurrent import GateActivation
from unirnn.testing.batches import Batch, batch
from unirnn.testing.conformance.cases import KINDS

__all__ = ["models", "ragged", "specs"]

hypothesis.settings.register_profile("unirnn", deadline=None, derandomize=True, max_examples=40)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=400)


@st.composite
def specs(draw: st.DrawFn, *, max_layers: int = 3, uncommon: bool = True) -> RecurrentSpec:
    """Any spec of recurrent layers; ``uncommon`` includes options that torch or MindSpore lacks."""
    cls, kind_options = KINDS[draw(st.sampled_from(list(KINDS)))]
    options: dict[str, Any] = dict(kind_options)
    hidden_size, num_layers = draw(st.integers(1, 5)), draw(st.integers(1, max_layers))
    directions = draw(st.sampled_from([(False, False), (True, False), *([(False, True)] if uncommon else ())]))
    if uncommon and cls is not RNNSpec:
        options["gate_activation"] = draw(st.sampled_from(get_args(GateActivation)))
    if uncommon and cls is LSTMSpec:
        options["proj_size"] = draw(st.integers(0, hidden_size - 1))
    return cls(
        draw(st.integers(1, 4)),
        hidden_size,
        num_layers,
        bias=draw(st.booleans()),
        batch_first=draw(st.booleans()),
        dropout=draw(st.sampled_from([0.0, 0.25])) if num_layers > 1 else 0.0,
        bidirectional=directions[0],
        reverse=directions[1],
        **options,
    )


@st.composite
def ragged(
    draw: st.DrawFn,
    /,
    model: Any = None,
    *,
    max_steps: int = 6,
    max_batch_size: int = 4,
    min_length: int = 0,
    with_state: bool = False,
    with_resets: bool = False,
    nan_padding: bool = False,
    **arguments: Any,
) -> Batch:
    """Batches of any size, with lengths in any order.

    Parameters
    ----------
    model
        The model for which the batches are drawn; see `unirnn.testing.batch`.
    max_steps, max_batch_size
        The largest T and B.
    min_length
        The shortest length; 0 allows sequences without any step.
    with_state, with_resets
        Whether some of the batches have an initial state, or resets.
    nan_padding
        Whether the padding of some of the batches is NaN.
    **arguments
        ``features``, ``num_tokens``, ``batch_first`` and ``dtype``, as `unirnn.testing.batch` takes them.

    Examples
    --------
    >>> import unirnn
    >>> from hypothesis import given, settings
    >>> spec = unirnn.GRUSpec(3, 4)
    >>> gru = spec.build("numpy", seed=0)
    >>> @settings(max_examples=5)
    ... @given(ragged(spec, nan_padding=True))
    ... def test_padding_is_zero(batch):
    ...     output, _ = gru(batch.input, batch.hx, batch.seq_length)
    ...     assert (output[batch.padding] == 0).all()
    >>> test_padding_is_zero()
    """
    steps, batch_size = draw(st.integers(max(1, min_length), max_steps)), draw(st.integers(1, max_batch_size))
    found = batch(
        model,
        seed=draw(st.integers(0, 2**16)),
        steps=steps,
        batch_size=batch_size,
        min_length=min_length,
        with_state=with_state and draw(st.booleans()),
        with_resets=with_resets and draw(st.booleans()),
        **arguments,
    )
    lengths = draw(st.lists(st.integers(min_length, steps), min_size=batch_size, max_size=batch_size))
    found = replace(found, seq_length=np.array(lengths))
    return found.filled(np.nan) if nan_padding and found.num_tokens is None and draw(st.booleans()) else found


@st.composite
def models(draw: st.DrawFn, *, max_layers: int = 5) -> Sequential:
    """Any model whose input has a known size: of tokens or features, with or without names of layers.

    A convolution sees at most 5 steps and at most halves their number. So 128 steps are enough for any 5 layers.
    """
    batch_first, is_named = draw(st.booleans()), draw(st.booleans())
    features = draw(st.integers(1, 6))
    if draw(st.booleans()):
        layers: list[Spec] = [EmbeddingSpec(draw(st.integers(1, 9)), features, draw(st.sampled_from([None, 0])))]
    else:
        layers = [draw(_sized(features, batch_first))]
        features = layers[0].output_features(features)
    has_steps = True
    for _ in range(draw(st.integers(0, max_layers - 1))):
        layers.append(draw(_layers(features, batch_first, has_steps=has_steps)))
        features = layers[-1].output_features(features)
        has_steps = has_steps and not layers[-1].ends_steps
    named = {f"layer_{number}" if is_named else str(number): layer for number, layer in enumerate(layers)}
    if isinstance(layers[0], EmbeddingSpec) and features == layers[0].embedding_dim and draw(st.booleans()):
        bias, first = draw(st.booleans()), next(iter(named))
        named["head" if is_named else str(len(layers))] = LinearSpec(
            features, layers[0].num_embeddings, bias, tied_to=first
        )
    return Sequential(**named) if is_named else Sequential(*named.values())


def _sized(features: int, batch_first: bool) -> st.SearchStrategy[Spec]:
    """A layer that has weights and a fixed input size."""
    return st.one_of(
        st.builds(LinearSpec, st.just(features), st.integers(1, 6), st.booleans()),
        _recurrent(features, batch_first),
        _convolutions(features),
        st.just(LayerNormSpec(features)),
        st.just(BatchNormSpec(features)),
    )


@st.composite
def _recurrent(draw: st.DrawFn, features: int, batch_first: bool) -> Spec:
    return replace(draw(specs(max_layers=2)), input_size=features, batch_first=batch_first)


@st.composite
def _convolutions(draw: st.DrawFn, features: int) -> Spec:
    groups = draw(st.sampled_from([size for size in (1, 2, 3) if features % size == 0]))
    padding: Any = draw(st.sampled_from(["valid", "same", "causal", 0, 1]))
    return Conv1dSpec(
        features,
        groups * draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        stride=1 if padding == "same" else draw(st.integers(1, 2)),
        padding=padding,
        dilation=draw(st.integers(1, 2)),
        groups=groups,
        bias=draw(st.booleans()),
    )


@st.composite
def _layers(draw: st.DrawFn, features: int, batch_first: bool, *, has_steps: bool) -> Spec:
    """Any layer that takes this number of features; without steps, only layers that need none."""
    keeping: list[st.SearchStrategy[Spec]] = [
        st.builds(ActivationSpec, st.sampled_from(get_args(Activation))),
        st.builds(DropoutSpec, st.sampled_from([0.0, 0.25]), st.booleans()),
        st.builds(NormalizeSpec),
        st.builds(LayerNormSpec, st.just(features)),
        st.builds(BatchNormSpec, st.just(features)),
        st.builds(LinearSpec, st.just(features), st.just(features)),
    ]
    changing: list[st.SearchStrategy[Spec]] = [st.builds(LinearSpec, st.just(features), st.integers(1, 6))]
    if features % 2 == 0:
        changing.append(st.just(SumDirectionsSpec()))
    if has_steps:
        pools = [how for how in ("last", "mean", "max", "first_last") if how != "first_last" or features % 2 == 0]
        pool = st.builds(PoolSpec, st.sampled_from(pools))
        changing += [_convolutions(features), pool, st.builds(Concat, pool, pool)]
        keeping.append(st.just(Conv1dSpec(features, features, 3, padding=draw(st.sampled_from(["same", "causal"])))))
    same = st.one_of(keeping)
    chain = st.builds(Sequential, same, same)
    combined = st.one_of(
        st.builds(Residual, st.one_of(same, chain)),
        st.builds(Concat, st.one_of(same, chain), st.just(Sequential())),
    )
    kinds = [*([_recurrent(features, batch_first)] if has_steps else ()), same, st.one_of(changing), combined]
    layer: Spec = draw(draw(st.sampled_from(kinds)))
    return layer
