"""Silero VAD 6.2.3: the probability that somebody speaks, from convolutions and an LSTM, trained in torch.

ONNX Runtime runs the file that the package ships for it, and our models take the weights of that file. (The weights in
the package's ``.safetensors`` file differ from those of all its other files.) The package itself is a dependency of the
tests; no file of it is copied here.

Their model takes one chunk of 512 samples (32 ms) after another, each with the 64 samples before it. Within a chunk the
convolutions see 4 frames, which are their time steps. The LSTM has one step for each chunk. No chain can say for many
chunks at once that a sequence of the convolutions is one step of the LSTM, so `VoiceActivity` is code. For one chunk,
from the magnitudes on, the same layers are a chain, `CHAIN`, whose state goes from chunk to chunk.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import array_api_strict
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray

import unirnn
from unirnn.contract.backend import Backend
from unirnn.testing.tolerances import close

Array = NDArray[Any]

package = find_spec("silero_vad")
assert package is not None
assert package.origin is not None
PRETRAINED = Path(package.origin).parent / "data" / "silero_vad_16k_op15.onnx"

FRAMES = {f"model.encoder.{k}.reparam_conv.": f"frames.conv{k}." for k in range(4)}
CELL = {f"model.decoder.rnn.{k}": f"chunks.lstm.{k}_l0" for k in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")}
RENAME = {**FRAMES, **CELL, "model.decoder.decoder.2.": "chunks.head."}
STFT = "model.stft.forward_basis_buffer"


class VoiceActivity(unirnn.Model):
    """Samples in chunks `(B, N, 576)` and the state of the LSTM, to probabilities `(B, N)` and the state."""

    def __init__(self) -> None:
        self.stft = unirnn.Conv1dSpec(1, 258, 256, stride=128, bias=False)
        self.frames = unirnn.Sequential(
            conv0=unirnn.Conv1dSpec(129, 128, 3, padding=1),
            relu0=unirnn.ActivationSpec("relu"),
            conv1=unirnn.Conv1dSpec(128, 64, 3, stride=2, padding=1),
            relu1=unirnn.ActivationSpec("relu"),
            conv2=unirnn.Conv1dSpec(64, 64, 3, stride=2, padding=1),
            relu2=unirnn.ActivationSpec("relu"),
            conv3=unirnn.Conv1dSpec(64, 128, 3, padding=1),
            relu3=unirnn.ActivationSpec("relu"),
        )
        self.chunks = unirnn.Sequential(
            lstm=unirnn.LSTMSpec(128, 128, batch_first=True),
            relu=unirnn.ActivationSpec("relu"),
            head=unirnn.Conv1dSpec(128, 1, 1),
            sigmoid=unirnn.ActivationSpec("sigmoid"),
        )

    def magnitudes(self, chunks: Any) -> Any:
        """The magnitudes `(B, 4, 129)` of 4 frames of each chunk; its last 64 samples are mirrored at its end."""
        mirrored = self.xp.flip(chunks[:, -65:-1], axis=1)
        parts = self.stft(self.xp.concat([chunks, mirrored], axis=1)[:, :, None])
        return self.xp.sqrt(parts[:, :, :129] ** 2 + parts[:, :, 129:] ** 2)

    def forward(self, xp: Any, samples: Any, state: Any = None) -> Any:
        batch_size, steps, size = samples.shape
        frames = self.frames(self.magnitudes(xp.reshape(samples, (batch_size * steps, size))))
        features = xp.reshape(frames, (batch_size, steps, 128))
        probabilities, state = self.chunks(features, state, return_state=True)
        return probabilities[:, :, 0], state


MODEL = VoiceActivity()
CHAIN = unirnn.Sequential(frames=MODEL.frames, chunks=MODEL.chunks)


class Theirs(NamedTuple):
    """Their results for chunks `(N, 576)`: the probabilities `(N,)`, and h and c `(2, N, 128)`."""

    chunks: Array
    probabilities: Array
    states: Array


def signal(seconds: int = 3, rate: int = 16000) -> Array:
    """A signal like speech: vowels of varying pitch, noise and pauses."""
    time = np.arange(seconds * rate) / rate
    pitch = 130 + 30 * np.sin(2 * np.pi * 0.7 * time)
    phase = 2 * np.pi * np.cumsum(pitch) / rate
    formants = np.array([[730, 1090, 2440], [270, 2290, 3010], [300, 870, 2240]])[(time * 4).astype(int) % 3]
    voice = np.zeros_like(time)
    for harmonic in range(1, 30):
        distances = (harmonic * pitch[:, None] - formants) / [120, 160, 200]
        voice += (np.exp(-(distances**2)) @ [1, 1 / 2, 1 / 3] + 0.02) * np.sin(harmonic * phase)
    syllables = 0.2 + 0.8 * np.sqrt(np.clip(np.sin(2 * np.pi * 4 * time), 0, 1))
    voice *= syllables * ((time / 0.8).astype(int) % 2 == 0)
    noise = np.random.default_rng(0).standard_normal(len(time))
    sound: Array = 0.3 * voice / np.abs(voice).max() + 0.003 * noise
    sound[(time > 0.9) & (time < 1.2)] = 0  # magnitudes of 0
    return sound.astype(np.float32)


@pytest.fixture(scope="module")
def theirs() -> Theirs:
    samples = np.concatenate([np.zeros(64, np.float32), signal()])
    chunks = np.lib.stride_tricks.sliding_window_view(samples, 576)[::512]
    session = onnxruntime.InferenceSession(PRETRAINED, providers=["CPUExecutionProvider"])
    probabilities, states = [], [np.zeros((2, 1, 128), np.float32)]
    for chunk in chunks:
        given = {"input": chunk[None], "state": states[-1], "sr": np.array(16000)}
        probability, state = session.run(None, given)
        probabilities.append(probability[0, 0])
        states.append(state)
    found = Theirs(chunks, np.array(probabilities), np.concatenate(states[1:], axis=1))
    assert found.probabilities.min() < 0.01
    assert found.probabilities.max() > 0.99
    return found


@pytest.fixture(scope="module")
def weights() -> dict[str, Array]:
    return {array.name: onnx.numpy_helper.to_array(array) for array in onnx.load(PRETRAINED).graph.initializer}


@pytest.mark.parametrize("backend", ["numpy", "torch", "mindspore", "array_api"], indirect=True)  # they take code
def test_code_computes_all_chunks_at_once(backend: Backend, theirs: Theirs, weights: dict[str, Array]) -> None:
    options: dict[str, Any] = {"namespace": array_api_strict} if backend.name == "array_api" else {}
    net = unirnn.snapshot(weights, spec=MODEL, rename={**RENAME, STFT: "stft.weight"}).build(backend.name, **options)
    state, found = None, []
    for part in np.split(theirs.chunks[None], [50, 60], axis=1):  # in three calls, which pass the state on
        probabilities, state = net(backend.from_numpy(part, net), state)
        found.append(backend.to_numpy(probabilities)[0])
    close(np.concatenate(found), theirs.probabilities, 1e-5, "probabilities")
    assert state is not None
    for name, array, expected in zip("hc", state[0], theirs.states[:, -1], strict=True):
        close(backend.to_numpy(array)[0, 0], expected, 1e-5, name)


def test_a_chain_computes_chunk_by_chunk(backend: Backend, theirs: Theirs, weights: dict[str, Array]) -> None:
    model = unirnn.snapshot(weights, spec=MODEL, rename={**RENAME, STFT: "stft.weight"})
    magnitudes = model.build("numpy").magnitudes(theirs.chunks)
    chain = unirnn.snapshot(weights, spec=CHAIN, rename={**RENAME, STFT: None}).build(backend.name)
    state, found = None, []
    for frames in magnitudes:
        probability, state = chain(backend.from_numpy(frames[None], chain), state, return_state=True)
        found.append(backend.to_numpy(probability)[0, 0, 0])
    close(np.array(found), theirs.probabilities, 1e-5, "probabilities")
