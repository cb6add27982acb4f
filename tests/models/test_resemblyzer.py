"""Resemblyzer 0.1.4: an LSTM and a linear layer that embed voices, trained in torch, from the file that it ships.

The package ships no recording, so the spectrograms are random numbers from a fixed seed. The package itself is a
dependency of the tests; no file of it is copied here.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch

import unirnn
from unirnn.contract.backend import Backend
from unirnn.testing.tolerances import close

# These packages read audio; prediction does not need them, since the encoder takes spectrograms.
NOT_NEEDED = ("librosa", "webrtcvad", "scipy", "scipy.ndimage", "scipy.ndimage.morphology")
with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in NOT_NEEDED}):
    from resemblyzer.voice_encoder import VoiceEncoder

package = find_spec("resemblyzer")
assert package is not None
assert package.origin is not None
PRETRAINED = Path(package.origin).with_name("pretrained.pt")

MODEL = unirnn.Sequential(
    lstm=unirnn.LSTMSpec(40, 256, num_layers=3, batch_first=True),
    last=unirnn.PoolSpec("last"),
    linear=unirnn.LinearSpec(256, 256),
    relu=unirnn.ActivationSpec("relu"),
    norm=unirnn.NormalizeSpec(),
)


@pytest.fixture(scope="module")
def theirs() -> Any:
    return VoiceEncoder("cpu", verbose=False)


def test_the_layer_in_the_file_is_the_layer_in_the_module(theirs: Any) -> None:
    snapshot = unirnn.load(PRETRAINED, batch_first=True)  # the file has no other recurrent layer
    assert snapshot.spec == unirnn.LSTMSpec(40, 256, 3, batch_first=True)
    of_layer = unirnn.snapshot(theirs.lstm)
    assert of_layer.spec == MODEL["lstm"]
    assert all(np.array_equal(array, of_layer.weights[name]) for name, array in snapshot.weights.items())


def test_embeddings_are_theirs_on_every_backend(backend: Backend, theirs: Any) -> None:
    # The similarity is used in training only.
    snapshot = unirnn.load(PRETRAINED, spec=MODEL, prefix="model_state.", rename={"similarity_": None})
    net = snapshot.build(backend.name)

    # Their encoder takes utterances of one length, usually 160 steps for 1.6 seconds; ours takes all in one batch.
    lengths = [160, 160, 93, 20]
    mels = np.random.default_rng(0).exponential(size=(4, 160, 40)).astype(np.float32)
    with torch.no_grad():
        expected = np.concatenate([theirs(torch.from_numpy(mels[[k], :n])).numpy() for k, n in enumerate(lengths)])
    assert np.ptp(expected, axis=0).max() > 0.01  # the embeddings differ
    for index, length in enumerate(lengths):
        mels[index, length:] = np.nan
    embeddings = backend.to_numpy(net(backend.from_numpy(mels, net), seq_length=lengths))
    close(embeddings, expected, 1e-5, "embedding")
