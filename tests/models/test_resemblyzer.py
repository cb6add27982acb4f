"""Resemblyzer 0.1.4: a three-layer LSTM that embeds voices, trained in torch, from the file that the package ships.

The package itself is a dependency of the tests; no file of it is copied here.
"""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from subjects import close

import unirnn
from unirnn import LSTMSpec, registry
from unirnn.contract.backend import Backend

BACKENDS = [registry.load(name) for name in ("numpy", "torch", "mindspore", "onnxruntime")]

# These read audio; they are not needed for prediction, since the encoder takes spectrograms.
NOT_NEEDED = ("librosa", "webrtcvad", "scipy", "scipy.ndimage", "scipy.ndimage.morphology")
with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in NOT_NEEDED}):
    from resemblyzer.voice_encoder import VoiceEncoder

package = find_spec("resemblyzer")
assert package is not None
assert package.origin is not None
PRETRAINED = Path(package.origin).with_name("pretrained.pt")


@pytest.fixture(scope="module")
def theirs() -> Any:
    return VoiceEncoder("cpu", verbose=False)


@pytest.fixture(scope="module")
def snapshot() -> unirnn.Snapshot:
    return unirnn.load(PRETRAINED, prefix="model_state.lstm.")


def test_the_file_and_the_layer_are_one_snapshot(theirs: Any, snapshot: unirnn.Snapshot) -> None:
    assert snapshot.spec == LSTMSpec(40, 256, 3)
    of_layer = unirnn.snapshot(theirs.lstm)
    assert of_layer.spec == LSTMSpec(40, 256, 3, batch_first=True)
    assert all(np.array_equal(array, of_layer.weights[name]) for name, array in snapshot.weights.items())
    assert unirnn.load(PRETRAINED) == snapshot  # it has no other recurrent layer


@pytest.mark.parametrize("suffix", ["pt", "safetensors", "onnx"])
@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_embeddings_are_theirs_on_every_backend_and_through_every_file(
    backend: Backend, suffix: str, theirs: Any, snapshot: unirnn.Snapshot, tmp_path: Path
) -> None:
    if suffix != "pt":
        snapshot.save(tmp_path / f"encoder.{suffix}")
        snapshot = unirnn.load(tmp_path / f"encoder.{suffix}")
    module = snapshot.build(backend.name)
    mels = np.random.default_rng(0).exponential(size=(4, 160, 40)).astype(np.float32)  # 1.6 seconds each
    _, (h_n, _) = module(backend.from_numpy(mels.swapaxes(0, 1), module))

    with torch.no_grad():
        expected = theirs(torch.from_numpy(mels)).numpy()
        raw = theirs.relu(theirs.linear(torch.from_numpy(backend.to_numpy(h_n)[-1])))
        embeddings = (raw / torch.norm(raw, dim=1, keepdim=True)).numpy()
    assert np.ptp(expected, axis=0).max() > 0.01  # the four embeddings differ
    close(embeddings, expected, 1e-5, "embedding")
