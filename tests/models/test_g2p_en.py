"""g2p_en 2.1.0: a GRU encoder and decoder that torch trained and its authors rewrote in NumPy by hand.

Our layers take its weights as they are. The package itself is a dependency of the tests; no file of it is copied here.
"""

import re
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from subjects import close

import unirnn
from unirnn import registry
from unirnn.contract.backend import Backend

TOLERANCE = 5e-5  # theirs is in float32 too, and this recurrence magnifies the rounding errors of both
BACKENDS = [registry.load(name) for name in ("numpy", "torch", "mindspore", "onnxruntime")]

# These read and tag text, and download data on import; they are not needed for prediction.
NOT_NEEDED = ("nltk", "nltk.corpus", "nltk.tokenize", "inflect")
with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in NOT_NEEDED}), warnings.catch_warnings():
    warnings.filterwarnings("ignore", "invalid escape sequence")  # in a regular expression of the package
    from g2p_en import g2p as package


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


def layer(theirs: Any, part: str) -> unirnn.Snapshot:
    """The encoder or the decoder, recognised by torch's names."""
    names = {f"{kind}_{side}": f"{kind[0]}_{side}" for kind in ("weight", "bias") for side in ("ih", "hh")}
    return unirnn.snapshot({f"{name}_l0": theirs.variables[f"{part}_{own}"] for name, own in names.items()})


def test_the_spec_follows_from_names_and_shapes(theirs: Any) -> None:
    assert layer(theirs, "enc").spec == layer(theirs, "dec").spec == unirnn.GRUSpec(256, 256)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_the_encoder_and_the_decoder_are_theirs_on_every_backend(
    backend: Backend, theirs: Any, words: list[str]
) -> None:
    def call(module: Any, input: Any, *rest: Any) -> list[Any]:
        return [backend.to_numpy(array) for array in module(backend.from_numpy(input, module), *rest)]

    # Their encoder takes one word at a time; ours takes all words in one ragged batch.
    encodings = [theirs.encode(word)[0] for word in words]
    parameters = [theirs.enc_w_ih, theirs.enc_w_hh, theirs.enc_b_ih, theirs.enc_b_hh]
    states = [theirs.gru(encoding[None], len(encoding), *parameters)[0] for encoding in encodings]
    lengths = [len(encoding) for encoding in encodings]
    ragged = np.zeros((max(lengths), len(words), 256), np.float32)
    for index, encoding in enumerate(encodings):
        ragged[: len(encoding), index] = encoding
    encoder = layer(theirs, "enc").build(backend.name)
    output, h_n = call(encoder, ragged, None, lengths)
    for index, state in enumerate(states):
        close(output[: len(state), index], state, TOLERANCE, words[index])
        close(h_n[0, index], state[-1], TOLERANCE, words[index])
    for index in range(0, len(words), 100):  # and some of them alone
        alone, last = call(encoder, encodings[index][:, None])
        close(alone[:, 0], states[index], TOLERANCE, words[index])
        close(last[0, 0], states[index][-1], TOLERANCE, words[index])

    # Their greedy decoding, with our GRU called step by step.
    decoder = layer(theirs, "dec").build(backend.name)
    start, end = theirs.p2idx["<s>"], theirs.p2idx["</s>"]
    token, state = np.full(len(words), start), backend.from_numpy(h_n, decoder)
    decoded: list[list[str]] = [[] for _ in words]
    going = np.ones(len(words), bool)
    for _ in range(20):
        _, state = decoder(backend.from_numpy(theirs.dec_emb[token][None], decoder), state)
        token = (backend.to_numpy(state)[0] @ theirs.fc_w.T + theirs.fc_b).argmax(-1)
        going &= token != end
        for index in np.flatnonzero(going):
            decoded[index].append(theirs.idx2p[token[index]])
    assert decoded == [theirs.predict(word) for word in words]
