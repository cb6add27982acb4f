"""What every backend guarantees for models written as code, with `unirnn.Model`."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import unirnn
from unirnn.contract.weights import draw
from unirnn.testing import model_oracle as oracle
from unirnn.testing.conformance.cases import available, skip_if_refused
from unirnn.testing.subjects import Subject
from unirnn.testing.tolerances import close

pytestmark = pytest.mark.promise("definitions")

Array = NDArray[Any]
B, T = 3, 5
LENGTHS = np.array([3, 5, 0])


class Tagger(unirnn.Model):
    """Scores of tags, from each step and from an attention over all valid steps."""

    def __init__(self, features: int, tags: int) -> None:
        self.encoder = unirnn.LSTMSpec(features, 4, bidirectional=True, batch_first=True)
        self.attention = unirnn.Sequential(unirnn.LinearSpec(8, 1), unirnn.ActivationSpec("tanh"))
        self.pool = unirnn.PoolSpec("max")
        self.head = unirnn.LinearSpec(8, tags)
        self.scale = 2.0

    def encode(self, x: Any, seq_length: Any) -> Any:
        output, _ = self.encoder(x, seq_length=seq_length)
        return output

    def forward(self, xp: Any, x: Any, seq_length: Any) -> Any:
        h = self.encode(x, seq_length)
        weights = xp.masked_softmax(self.scale * self.attention(h)[:, :, 0], seq_length)
        context = xp.matmul(weights[:, None, :], h)[:, 0, :]
        pooled = self.pool(h, seq_length=seq_length) + xp.masked_mean(h, seq_length)
        scores = self.head(h) + self.head(xp.concat([context[:, :4], pooled[:, 4:]], axis=-1))[:, None, :]
        return xp.where(xp.mask(seq_length, h.shape[1])[:, :, None], xp.log_softmax(scores, axis=-1), 0.0)


class LanguageModel(unirnn.Model):
    """Scores of the next token, with a tied weight and a method that generates tokens."""

    def __init__(self) -> None:
        self.embedding = unirnn.EmbeddingSpec(7, 4)
        self.encoder = unirnn.GRUSpec(4, 4, batch_first=True)
        self.head = unirnn.LinearSpec(4, 7, tied_to="embedding")

    def forward(self, xp: Any, tokens: Any, hx: Any = None) -> Any:
        output, state = self.encoder(self.embedding(tokens), hx)
        return self.head(output), state

    def generate(self, tokens: Any, count: int) -> Any:
        xp, found, state = self.xp, [], None
        for _ in range(count):
            scores, state = self(tokens, state)
            tokens = xp.argmax(scores[:, -1:, :], axis=-1)
            found.append(tokens)
        return xp.concat(found, axis=1)


@pytest.fixture
def definition_backend(model_backend: Subject) -> Subject:
    dtype = available(model_backend, "float32")
    skip_if_refused(model_backend, Tagger(3, 3), dtype, 0, lambda net: assert_tags(model_backend, net, dtype))
    return model_backend


def built(rnn_backend: Subject, spec: unirnn.Model, dtype: str) -> tuple[Any, dict[str, Array]]:
    net = rnn_backend.build(spec, dtype=dtype, seed=0)
    found = rnn_backend.read(net)
    assert found[0] == spec
    return net, {name: np.array(array, np.float64) for name, array in found[1].items()}


def tagger_by_hand(spec: Tagger, weights: dict[str, Array], x: Array, lengths: Array) -> Array:
    def layer(name: str, input: Array, states: Any = ()) -> Array:
        own = {key.removeprefix(f"{name}."): array for key, array in weights.items() if key.startswith(f"{name}.")}
        output, _ = oracle.model(dict(spec.children)[name], own, input[None], states)
        rows: Array = output[0]
        return rows

    output = np.zeros((*x.shape[:2], 3))
    for b, n in enumerate(lengths):
        if n:
            h = layer("encoder", x[b, :n], (None,))
            powers = np.exp(spec.scale * layer("attention", h)[:, 0])
            context = powers @ h / powers.sum()
            pooled = h.max(axis=0) + h.mean(axis=0)
            scores = layer("head", h) + layer("head", np.concatenate([context[:4], pooled[4:]])[None])
            output[b, :n] = scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))
    return output


def assert_tags(rnn_backend: Subject, net: Any, dtype: str) -> None:
    """Check a tagger against a computation by hand."""
    found = rnn_backend.read(net)
    weights = {name: np.array(array, np.float64) for name, array in found[1].items()}
    x = np.random.default_rng(0).standard_normal((B, T, 3)).astype(dtype)
    expected = tagger_by_hand(found[0], weights, x.astype(np.float64), LENGTHS)
    x[np.arange(T) >= LENGTHS[:, None]] = np.nan
    lengths = rnn_backend.array(LENGTHS, net)
    output = rnn_backend.to_numpy(net(rnn_backend.array(x, net), lengths))
    close(output, expected, rnn_backend.tolerance_of(dtype))
    assert tuple(net.encode(rnn_backend.array(x, net), lengths).shape) == (B, T, 8)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_tagger(definition_backend: Subject, dtype: str) -> None:
    dtype = available(definition_backend, dtype)
    net, _ = built(definition_backend, Tagger(3, 3), dtype)
    assert_tags(definition_backend, net, dtype)


def test_a_tied_weight_and_a_method(definition_backend: Subject) -> None:
    spec = LanguageModel()
    net, weights = built(definition_backend, spec, "float32")
    assert weights.keys() == spec.weight_shapes().keys()
    assert "head.weight" not in weights
    tokens = np.array([[1, 2], [6, 0]])
    found = definition_backend.to_numpy(net.generate(definition_backend.array(tokens, net), 4))
    whole = tokens
    for _ in range(4):
        embedded = weights["embedding.weight"][whole]
        encoder = {key.removeprefix("encoder."): array for key, array in weights.items() if "encoder" in key}
        output, _ = oracle.model(spec.encoder, encoder, embedded, (None,))
        scores = output[:, -1] @ weights["embedding.weight"].T + weights["head.bias"]
        whole = np.concatenate([whole, scores.argmax(axis=-1)[:, None]], axis=1)
    np.testing.assert_array_equal(found, whole[:, 2:])


def test_a_snapshot_is_built_again(definition_backend: Subject) -> None:
    spec = LanguageModel()
    net, _ = built(definition_backend, spec, "float32")
    other, _ = built(definition_backend, spec, "float32")
    changed = {name: np.float32(2) * array for name, array in unirnn.snapshot(net).weights.items()}
    unirnn.load_weights(other, unirnn.Snapshot(spec, changed))
    again = unirnn.snapshot(other).build(definition_backend.name, **definition_backend.options)
    tokens = definition_backend.array(np.array([[1, 2], [6, 0]]), net)
    one, another = (definition_backend.to_numpy(module(tokens)[0]) for module in (other, again))
    np.testing.assert_array_equal(one, another)
    np.testing.assert_array_equal(
        definition_backend.to_numpy(other.embedding(tokens)), changed["embedding.weight"][[[1, 2], [6, 0]]]
    )


def test_one_seed_draws_the_same_model(definition_backend: Subject) -> None:
    _, weights = built(definition_backend, LanguageModel(), "float32")
    for name, array in draw(LanguageModel(), 0).items():
        np.testing.assert_array_equal(weights[name], array.astype("float32"), name)
