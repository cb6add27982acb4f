"""g2p_en 2.1.0: how English words are spoken; a GRU encoder and decoder that torch trained and its authors rewrote.

Our models take the arrays of its file, which have names of its own. The package itself is a dependency of the tests; no
file of it is copied here.
"""

import re
import sys
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from numpy.typing import NDArray
from subjects import close

import unirnn
from unirnn.contract.backend import Backend

# A gate adds products whose magnitudes sum up to 50, so that each rounding in float32 is up to 50 * 2**-24 = 3e-6, and
# two gates make a state. Their own float32 states are up to 9.4e-6 away from those that their code gives in float64.
TOLERANCE = 2e-5

# These read and tag text, and download data on import; they are not needed for prediction.
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
OF_ENCODER = {f"enc_{name}": new for name, new in NAMES.items()}
OF_DECODER = {f"dec_{name}": new for name, new in NAMES.items()} | {"fc_w": "head.weight", "fc_b": "head.bias"}


@pytest.fixture(scope="module")
def theirs() -> Any:
    """The package's own predictor."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the package does not close its list of homographs
        return package.G2p()


@pytest.fixture(scope="module")
def words(theirs: Any) -> list[str]:
    """English words: the homographs of the package, and the words of the Apache License."""
    licence = (Path(__file__).parents[2] / "LICENSE").read_text().lower()
    found = sorted({*theirs.homograph2features, *re.findall("[a-z]{2,}", licence)})
    assert len(found) >= 500
    return found


@pytest.fixture(scope="module")
def pronunciations(theirs: Any, words: list[str]) -> list[list[str]]:
    return [theirs.predict(word) for word in words]


def encoder_states(theirs: Any, tokens: NDArray[np.int64], dtype: str) -> NDArray[Any]:
    """The states `(B, T, 256)` after each step of their encoder, computed by their code in a dtype."""
    arrays = [theirs.variables[f"enc_{name}"].astype(dtype) for name in ("w_ih", "w_hh", "b_ih", "b_hh")]
    state, states = np.zeros((len(tokens), 256), dtype), []
    for step in theirs.variables["enc_emb"].astype(dtype)[tokens].swapaxes(0, 1):
        state = theirs.grucell(step, state, *arrays)
        states.append(state)
    return np.stack(states, axis=1)


def test_words_are_encoded_and_spoken_as_theirs_on_every_backend(
    backend: Backend, theirs: Any, words: list[str], pronunciations: list[list[str]]
) -> None:
    # Their encoder takes one word at a time; ours takes all words in one ragged batch, with no token in the padding.
    spelled = [[theirs.g2idx[letter] for letter in (*word, "</s>")] for word in words]
    lengths = np.array([len(letters) for letters in spelled])
    tokens = np.full((len(words), lengths.max()), -1)
    for row, letters in zip(tokens, spelled, strict=True):
        row[: len(letters)] = letters
    rename = {**OF_ENCODER, "dec_": None, "fc_": None}
    encoder = unirnn.load(PRETRAINED, spec=ENCODER, rename=rename).build(backend.name)
    output, state = encoder(backend.from_numpy(tokens, encoder), seq_length=lengths, return_state=True)
    valid = np.arange(tokens.shape[1]) < lengths[:, None]
    expected = encoder_states(theirs, np.where(valid, tokens, 0), "float64")
    close(backend.to_numpy(output)[valid], expected[valid], TOLERANCE, "output")
    close(backend.to_numpy(state[0])[0], expected[np.arange(len(words)), lengths - 1], TOLERANCE, "state")

    # Their greedy decoding, step by step; the state of our encoder is that of our decoder.
    decoder = unirnn.load(PRETRAINED, spec=DECODER, rename={**OF_DECODER, "enc_": None}).build(backend.name)
    token, decoded = np.full(len(words), theirs.p2idx["<s>"]), []
    for _ in range(20):
        scores, state = decoder.step(backend.from_numpy(token, decoder), state)
        token = backend.to_numpy(scores).argmax(-1)
        decoded.append([theirs.idx2p[index] for index in token])
    spoken = [[*column, "</s>"] for column in zip(*decoded, strict=True)]
    assert [phonemes[: phonemes.index("</s>")] for phonemes in spoken] == pronunciations
