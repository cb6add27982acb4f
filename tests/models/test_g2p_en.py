"""g2p_en 2.1.0: how English words are spoken, from a GRU encoder and decoder that its authors rewrote in NumPy by hand.

Our models take the arrays of its file, whose names are its own. The package itself is a dependency of the tests; no
file of it is copied here.
"""

import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray

import unirnn
from unirnn.contract.backend import Backend
from unirnn.testing.tolerances import close

# The magnitudes of the terms in a gate add up to 50, so float32 can round by 50 * 2**-24 = 3e-6, several times, and
# three gates make a state. The package's own float32 states differ from its float64 states by 9.4e-6.
TOLERANCE = 2e-5

# These packages read and tag text, and download data on import; prediction does not need them.
NOT_NEEDED = ("nltk", "nltk.corpus", "nltk.tokenize", "inflect")
with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in NOT_NEEDED}), warnings.catch_warnings():
    warnings.filterwarnings("ignore", "invalid escape sequence")  # in a regular expression of the package
    from g2p_en import g2p as package

found = find_spec("g2p_en")
assert found is not None
assert found.origin is not None
PRETRAINED = Path(found.origin).with_name("checkpoint20.npz")

ENCODER = unirnn.Sequential(embedding=unirnn.EmbeddingSpec(29, 256), gru=unirnn.GRUSpec(256, 256, batch_first=True))
DECODER = unirnn.Sequential(
    embedding=unirnn.EmbeddingSpec(74, 256),
    gru=unirnn.GRUSpec(256, 256, batch_first=True),
    head=unirnn.LinearSpec(256, 74),
)
NAMES = {
    "emb": "embedding.weight",
    "w_ih": "gru.weight_ih_l0",
    "w_hh": "gru.weight_hh_l0",
    "b_ih": "gru.bias_ih_l0",
    "b_hh": "gru.bias_hh_l0",
}
OF_ENCODER = {**{f"enc_{name}": new for name, new in NAMES.items()}, "dec_": None, "fc_": None}
OF_DECODER = {
    **{f"dec_{name}": new for name, new in NAMES.items()},
    "enc_": None,
    "fc_w": "head.weight",
    "fc_b": "head.bias",
}


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The package's own predictor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package does not close its list of homographs
        return package.G2p()


class Words(NamedTuple):
    """English words as the input of our encoder, and the package's results for them.

    ``tokens`` `(B, T)` holds the letters of each word and a token for its end; ``lengths`` `(B,)` counts them. The
    padding holds -1, an invalid token. ``states`` `(sum of lengths, 256)` has the state of their encoder after each
    valid token, computed by their code in float64. ``phonemes`` are their pronunciations.
    """

    tokens: NDArray[np.int64]
    lengths: NDArray[np.int64]
    states: NDArray[np.float64]
    phonemes: list[list[str]]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """The mask of the valid tokens."""
        is_valid: NDArray[np.bool_] = np.arange(self.tokens.shape[1]) < self.lengths[:, None]
        return is_valid


@pytest.fixture(scope="module")
def words(theirs: Any) -> Words:
    """A third of the homographs of the package, and of the words of the Apache License."""
    licence = (Path(__file__).parents[2] / "LICENSE").read_text().lower()
    words = sorted({*theirs.homograph2features, *re.findall("[a-z]{2,}", licence)})[::3]
    assert len(words) >= 200
    letters = [[theirs.g2idx[letter] for letter in (*word, "</s>")] for word in words]
    lengths = np.array([len(tokens) for tokens in letters])
    found = Words(np.full((len(words), lengths.max()), -1), lengths, np.empty(0), list(map(theirs.predict, words)))
    found.tokens[found.valid] = np.concatenate(letters)

    arrays = [theirs.variables[f"enc_{name}"].astype(np.float64) for name in ("emb", "w_ih", "w_hh", "b_ih", "b_hh")]
    states = [np.zeros((len(words), 256))]
    for tokens in found.tokens.T:
        states.append(theirs.grucell(arrays[0][tokens], states[-1], *arrays[1:]))
    return found._replace(states=np.stack(states[1:], axis=1)[found.valid])


def test_words_are_encoded_and_spoken_as_theirs_on_every_backend(backend: Backend, theirs: Any, words: Words) -> None:
    # Their encoder takes one word at a time; ours takes all words in one ragged batch.
    encoder = unirnn.load(PRETRAINED, spec=ENCODER, rename=OF_ENCODER).build(backend.name)
    tokens = backend.from_numpy(words.tokens, encoder)
    output, state = encoder(tokens, seq_length=words.lengths, return_state=True)
    close(backend.to_numpy(output)[words.valid], words.states, TOLERANCE, "output")
    close(backend.to_numpy(state[0])[0], words.states[words.lengths.cumsum() - 1], TOLERANCE, "state")

    # Their greedy decoding, step by step; the last state of our encoder is the first one of our decoder.
    decoder = unirnn.load(PRETRAINED, spec=DECODER, rename=OF_DECODER).build(backend.name)
    token, decoded = np.full(len(words.lengths), theirs.p2idx["<s>"]), []
    for _ in range(20):
        scores, state = decoder.step(backend.from_numpy(token, decoder), state)
        token = backend.to_numpy(scores).argmax(-1)
        decoded.append([theirs.idx2p[index] for index in token])
    spoken = [[*phonemes, "</s>"] for phonemes in zip(*decoded, strict=True)]
    assert [phonemes[: phonemes.index("</s>")] for phonemes in spoken] == words.phonemes
