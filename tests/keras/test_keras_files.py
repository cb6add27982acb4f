"""Files that Keras wrote are read without it and compute the same numbers; anything else is refused.

Keras 3 writes its three kinds of files itself. Files of Keras 1 and 2 and of cuDNN's layers are made here with h5py, in
their documented layout. Their expected numbers are computed here, step by step and gate by gate.
"""

import io
import json
import re
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from keras import layers, ops
from memory_limit import limited_memory

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, files
from unirnn.errors import ArgumentError, DTypeError, FileError, ShapeError, SpecError, UnirnnError
from unirnn.files import hdf5

# Keras reads its variables in a way that NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

X = np.random.default_rng(0).standard_normal((2, 5, 3)).astype("float32")
EACH: dict[str, Any] = {"return_sequences": True}


def frozen() -> Any:
    """A layer with a frozen forward direction, whose arrays a ``.h5`` file therefore has last."""
    layer = layers.Bidirectional(layers.LSTM(4, **EACH))
    layer.forward_layer.trainable = False
    return layer


# The layers by name, each with its spec; every layer reads the input of the model.
LAYERS: dict[str, tuple[Callable[[], Any], RecurrentSpec]] = {
    "tanh": (lambda: layers.SimpleRNN(4, **EACH), RNNSpec(3, 4)),
    "relu": (
        lambda: layers.SimpleRNN(4, activation="relu", use_bias=False, **EACH),
        RNNSpec(3, 4, nonlinearity="relu", bias=False),
    ),
    "gru": (lambda: layers.GRU(4, dropout=0.5, recurrent_dropout=0.1, **EACH), GRUSpec(3, 4)),
    "gru_before": (lambda: layers.GRU(4, reset_after=False, **EACH), GRUSpec(3, 4, reset_after=False)),
    "gru_without": (lambda: layers.GRU(4, use_bias=False, unroll=True, **EACH), GRUSpec(3, 4, bias=False)),
    "lstm": (lambda: layers.LSTM(5, **EACH), LSTMSpec(3, 5)),
    "hard": (
        lambda: layers.LSTM(5, recurrent_activation="hard_sigmoid", **EACH),
        LSTMSpec(3, 5, gate_activation="hard_sigmoid"),
    ),
    "backwards": (lambda: layers.GRU(4, go_backwards=True), GRUSpec(3, 4, reverse=True)),
    "cell": (lambda: layers.RNN(layers.LSTMCell(4), **EACH), LSTMSpec(3, 4)),
    "both": (lambda: layers.Bidirectional(layers.LSTM(4, **EACH)), LSTMSpec(3, 4, bidirectional=True)),
    "frozen": (frozen, LSTMSpec(3, 4, bidirectional=True)),
    "two": (
        lambda: layers.Bidirectional(layers.GRU(4, **EACH), backward_layer=layers.GRU(4, go_backwards=True, **EACH)),
        GRUSpec(3, 4, bidirectional=True),
    ),
}


def run(snapshot: Snapshot, x: Any) -> Any:
    """Output and state of the layer, computed by NumPy."""
    return snapshot.build("numpy")(x)


def named(layer: Any, name: str) -> Any:
    layer.name = name
    return layer


def drawn(model: Any) -> Any:
    """The model with random weights, also for the biases, which are zeros at first."""
    random = np.random.default_rng(1)
    model.set_weights([random.uniform(-1, 1, weight.shape).astype("float32") for weight in model.weights])
    return model


@pytest.fixture(scope="module")
def model() -> Any:
    """A model with all layers side by side, one layer in a nested model, and some that are not recurrent."""
    x = keras.Input((None, 3))
    outputs = [named(make(), name)(layers.Masking(5.0)(x)) for name, (make, _) in LAYERS.items()]
    inner = keras.Sequential([keras.Input((None, 3)), layers.Dense(4), layers.LSTM(4, name="deep")], name="inner")
    repeated = layers.TimeDistributed(layers.GRU(2, name="words"), name="each")(layers.Reshape((-1, 1, 3))(x))
    return drawn(keras.Model(x, [*outputs, inner(x), repeated, layers.Dense(2)(x)]))


FILES = ["model.keras", "model.h5", "model.weights.h5", "weights.h5"]


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model in each kind of file; the last has no configuration, like the weights that Keras 2 saves."""
    path = tmp_path_factory.mktemp("keras")
    model.save(path / "model.keras")
    model.save(path / "model.h5")
    model.save_weights(path / "model.weights.h5")
    with h5py.File(path / "model.h5") as whole, h5py.File(path / "weights.h5", "w") as file:
        for name in whole["model_weights"]:
            whole.copy(f"model_weights/{name}", file)
        for name, value in whole["model_weights"].attrs.items():
            file.attrs[name] = value
    return path


@pytest.mark.parametrize("name", FILES)
def test_each_layer_computes_what_keras_computes(name: str, folder: Path, model: Any) -> None:
    has_specs = name in ("model.keras", "model.h5")
    found = files.contents(folder / name)
    assert (found.format, found.version) == ("keras", None)
    deep = [layer for layer in found.layers if layer.endswith(("deep", "words"))]
    assert found.layers.keys() == {*LAYERS, *deep}
    assert len(deep) == 2
    expected = [ops.convert_to_numpy(output) for output in model(X)]
    for (layer, (_, spec)), theirs in zip(LAYERS.items(), expected, strict=False):
        spec = unirnn.RecurrentSpec.from_dict({**spec.to_dict(), "batch_first": True})
        if has_specs:
            taken = unirnn.load(folder / name, prefix=layer)
            assert taken == unirnn.load(folder / name, prefix=f"{layer}.", spec=spec)
            assert found.layers[layer].spec == spec
            assert found.layers[layer].num_weights == spec.num_weights
        else:
            with pytest.raises(SpecError, match=r"given its weights only, which do not show .* give as spec "):
                unirnn.load(folder / name, prefix=layer)
            taken = unirnn.load(folder / name, prefix=layer, spec=spec)
        assert taken == unirnn.snapshot(model.get_layer(layer))
        output, state = run(taken, X)
        ours = output if theirs.ndim == 3 else state[0]
        np.testing.assert_allclose(ours, theirs, atol=2e-6, err_msg=layer)


def test_layers_within_a_model_and_a_wrapper(folder: Path, model: Any) -> None:
    for name in ("model.keras", "model.h5"):
        assert unirnn.load(folder / name, prefix="inner/deep") == unirnn.snapshot(model.get_layer("inner").layers[1])
        assert unirnn.load(folder / name, prefix="each/words") == unirnn.snapshot(model.get_layer("each").layer)


def test_two_layers_of_one_class_are_not_mixed_up(tmp_path: Path) -> None:
    """Keras 3 numbers layers by class, not by name."""
    stacked = [layers.GRU(4, name=name, return_sequences=True) for name in ("b", "a", "gru")]
    model = drawn(keras.Sequential([keras.Input((None, 4)), *stacked]))
    for name in ("a.keras", "a.h5"):
        model.save(tmp_path / name)
        taken = [unirnn.load(tmp_path / name, prefix=layer.name) for layer in stacked]
        assert taken == [unirnn.snapshot(layer) for layer in stacked]


class Tagger(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__(name="tagger")
        self.encoder = layers.Bidirectional(layers.LSTM(4, return_sequences=True))
        self.head = layers.Dense(2)

    def call(self, x: Any) -> Any:
        return self.head(self.encoder(x))


def test_a_model_that_is_code_has_no_configuration_of_its_layers(tmp_path: Path) -> None:
    model = Tagger()
    model(X)
    path = tmp_path / "a.keras"
    drawn(model).save(path)
    (name,) = files.contents(path).layers
    spec = LSTMSpec(3, 4, bidirectional=True, batch_first=True)
    with pytest.raises(
        SpecError, match=r"do not show merge_mode, activation, recurrent_activation; .* bidirectional=T"
    ):
        unirnn.load(path)
    assert unirnn.load(path, prefix=name, spec=spec) == unirnn.snapshot(model.encoder)


def test_bfloat16_weights_are_read_as_float32(tmp_path: Path) -> None:
    layer = layers.GRU(4, dtype="bfloat16", recurrent_initializer="glorot_uniform", name="gru")
    keras.Sequential([keras.Input((None, 3)), layer]).save(tmp_path / "a.keras")
    assert unirnn.load(tmp_path / "a.keras") == unirnn.snapshot(layer)


# ---- files of older releases ---------------------------------------------------------------------

Arrays = dict[str, Any]


def write_h5(path: Path, entries: list[tuple[str, Any, Arrays]], version: str | None = "2.2.4") -> None:
    """A file as Keras 1 and 2 write it: layers by their class, their arguments, and their arrays in order."""
    with h5py.File(path, "w") as file:
        configs = [{"class_name": kind, "config": config} for kind, config, _ in entries]
        config = {"layers": configs} if (version or "1") > "2.2" else configs  # older versions write the list itself
        file.attrs["model_config"] = json.dumps({"class_name": "Sequential", "config": config}).encode()
        group = file.create_group("model_weights")
        group.attrs["layer_names"] = [config["name"].encode() for _, config, _ in entries]
        if version is not None:
            file.attrs["keras_version"] = version.encode()
        for _, config, arrays in entries:
            own = group.create_group(config["name"])
            own.attrs["weight_names"] = [name.encode() for name in arrays]
            for name, array in arrays.items():
                own.create_dataset(name, data=array)


def draw(*shapes: tuple[int, ...]) -> list[Any]:
    random = np.random.default_rng(2)
    return [random.uniform(-1, 1, shape) for shape in shapes]


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def hard(x: Any) -> Any:
    return np.clip(0.2 * x + 0.5, 0, 1)


def run_lstm(gates: dict[str, Any], s: Any = sigmoid) -> Any:
    """An LSTM by its gates: the matrices `(I, H)` and `(H, H)`, and the bias."""
    h, c, outputs = np.zeros((2, 4)), np.zeros((2, 4)), []
    for t in range(X.shape[1]):
        i, f, g, o = (X[:, t] @ gates[k][0] + h @ gates[k][1] + gates[k][2] for k in "ifco")
        c = s(f) * c + s(i) * np.tanh(g)
        h = s(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, 1)


def run_gru(gates: dict[str, Any], s: Any = sigmoid) -> Any:
    """A GRU by its gates; if the gate h has a fourth array, it is the recurrent bias, and reset follows the product."""
    h, outputs = np.zeros((2, 4)), []
    for t in range(X.shape[1]):
        z, r = (s(X[:, t] @ gates[k][0] + h @ gates[k][1] + gates[k][2]) for k in "zr")
        w, u, b, *after = gates["h"]
        n = np.tanh(X[:, t] @ w + b + (r * (h @ u + after[0]) if after else (r * h) @ u))
        h = z * h + (1 - z) * n
        outputs.append(h)
    return np.stack(outputs, 1)


def by_gate(letters: str, kernel: Any, recurrent: Any, *biases: Any) -> dict[str, Any]:
    return {
        letter: [part[..., 4 * k : 4 * k + 4] for part in (kernel, recurrent, *biases)]
        for k, letter in enumerate(letters)
    }


ARGUMENTS_1 = {"name": "rnn", "output_dim": 4, "activation": "tanh", "inner_activation": "hard_sigmoid"}
ARGUMENTS_2 = {
    "name": "rnn", "units": 4, "activation": "tanh", "recurrent_activation": "hard_sigmoid", "use_bias": True,
}  # fmt: skip


def keras_1(kind: str, letters: str) -> tuple[list[tuple[str, Any, Arrays]], Any]:
    """An array for each gate."""
    parts = draw(*[(3, 4), (4, 4), (4,)] * len(letters))
    gates = {letter: parts[3 * k : 3 * k + 3] for k, letter in enumerate(letters)}
    arrays = {f"rnn_{p}_{k}": gates[k][j] for k in letters for j, p in enumerate("WUb")}
    return [(kind, ARGUMENTS_1, arrays)], (run_lstm if kind == "LSTM" else run_gru)(gates, hard)


def keras_2(kind: str, letters: str) -> tuple[list[tuple[str, Any, Arrays]], Any]:
    width = 4 * len(letters)
    parts = draw((3, width), (4, width), (width,))
    arrays: Arrays = dict(zip(("rnn/kernel:0", "rnn/recurrent_kernel:0", "rnn/bias:0"), parts, strict=True))
    return [(kind, ARGUMENTS_2, arrays)], (run_lstm if kind == "LSTM" else run_gru)(by_gate(letters, *parts), hard)


def cudnn(kind: str, letters: str) -> tuple[list[tuple[str, Any, Arrays]], Any]:
    """In cuDNN the matrix of a gate is `(H, I)`, stored row by row, whatever the shape of the array around it."""
    gates, blobs = {}, []
    for k, letter in enumerate(letters):
        w, u, b, b_u = (np.random.default_rng(k).uniform(-1, 1, shape) for shape in ((4, 3), (4, 4), (4,), (4,)))
        gates[letter] = [w.T, u.T, b, b_u] if letter == "h" else [w.T, u.T, b + b_u]
        blobs.append((w.reshape(3, 4), u, b, b_u))
    kernel, recurrent = (np.hstack([blob[part] for blob in blobs]) for part in (0, 1))
    bias = np.concatenate([blob[part] for part in (2, 3) for blob in blobs])
    arrays = {"rnn/kernel:0": kernel, "rnn/recurrent_kernel:0": recurrent, "rnn/bias:0": bias}
    return [(kind, {"name": "rnn", "units": 4}, arrays)], (run_lstm if kind == "CuDNNLSTM" else run_gru)(gates)


def both_of_keras_2() -> tuple[list[tuple[str, Any, Arrays]], Any]:
    one, first = keras_2("LSTM", "ifco")
    (_, config, arrays) = one[0]
    everything = {f"both/{way}_{name}": array for way in ("forward", "backward") for name, array in arrays.items()}
    wrapped = {"name": "both", "merge_mode": "concat", "layer": {"class_name": "LSTM", "config": config}}
    return [("Bidirectional", wrapped, everything)], first


OLD: dict[str, tuple[Any, str | None, RecurrentSpec]] = {
    "Keras 1, LSTM": (lambda: keras_1("LSTM", "icfo"), None, LSTMSpec(3, 4, gate_activation="hard_sigmoid_0.2")),
    "Keras 1, GRU": (
        lambda: keras_1("GRU", "zrh"),
        "1.2.2",
        GRUSpec(3, 4, reset_after=False, gate_activation="hard_sigmoid_0.2"),
    ),
    "Keras 2, LSTM": (lambda: keras_2("LSTM", "ifco"), "2.2.4", LSTMSpec(3, 4, gate_activation="hard_sigmoid_0.2")),
    "Keras 2, GRU": (
        lambda: keras_2("GRU", "zrh"),
        "2.4.3-tf",
        GRUSpec(3, 4, reset_after=False, gate_activation="hard_sigmoid_0.2"),
    ),
    "Keras 2, Bidirectional": (
        both_of_keras_2,
        "2.3.1",
        LSTMSpec(3, 4, gate_activation="hard_sigmoid_0.2", bidirectional=True),
    ),
    "CuDNNLSTM": (lambda: cudnn("CuDNNLSTM", "ifco"), "2.2.4", LSTMSpec(3, 4)),
    "CuDNNGRU": (lambda: cudnn("CuDNNGRU", "zrh"), "2.2.4", GRUSpec(3, 4)),
}


@pytest.mark.parametrize(("make", "version", "spec"), OLD.values(), ids=OLD.keys())
def test_files_of_older_releases_are_read(make: Any, version: str | None, spec: RecurrentSpec, tmp_path: Path) -> None:
    entries, expected = make()
    path = tmp_path / "a.h5"
    write_h5(path, entries, version)
    spec = unirnn.RecurrentSpec.from_dict({**spec.to_dict(), "batch_first": True})
    taken = unirnn.load(path)
    assert taken.spec == spec
    np.testing.assert_allclose(run(taken, X.astype("float64"))[0][..., :4], expected, atol=1e-12)
    with h5py.File(path, "a") as file:  # without its configuration
        del file.attrs["model_config"]
    assert unirnn.load(path, spec=spec) == taken


def test_lists_of_names_that_keras_splits(tmp_path: Path) -> None:
    entries, _ = keras_2("GRU", "zrh")
    path = tmp_path / "a.h5"
    write_h5(path, entries)
    expected = unirnn.load(path)
    with h5py.File(path, "a") as file:
        own = file["model_weights/rnn"]
        names = list(own.attrs["weight_names"])
        del own.attrs["weight_names"]
        own.attrs["weight_names0"], own.attrs["weight_names1"] = names[:2], names[2:]
    assert unirnn.load(path) == expected


# ---- refusals ------------------------------------------------------------------------------------


def altered(folder: Path, path: Path, layer: str, **arguments: Any) -> None:
    """A copy of the model's file with other arguments of a layer in its configuration."""
    with zipfile.ZipFile(folder / "model.keras") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name == "config.json":
                config = json.loads(data)
                (entry,) = (entry for entry in config["config"]["layers"] if entry["config"]["name"] == layer)
                for key, value in arguments.items():
                    (entry if key in entry else entry["config"])[key] = value
                data = json.dumps(config).encode()
            new.writestr(name, data)


REFUSED: dict[str, tuple[str, dict[str, Any], type[UnirnnError], str]] = {
    "an activation": ("lstm", {"activation": "relu"}, SpecError, "given activation='relu', which no spec describes"),
    "an activation of a simple layer": ("relu", {"activation": "elu"}, SpecError, "expected 'tanh' or 'relu'"),
    "an activation that is an object": ("lstm", {"activation": {"class_name": "Mine"}}, SpecError, "activation={'cl"),
    "an activation of the gates": (
        "lstm",
        {"recurrent_activation": "tanh"},
        SpecError,
        "given recurrent_activation='tanh', expected 'sigmoid' or 'hard_sigmoid'",
    ),
    "an output in reverse": (
        "backwards",
        {"return_sequences": True},
        SpecError,
        "given go_backwards=True with return_sequences=True, whose output is in the order in which it was computed",
    ),
    "directions that are added": (
        "both",
        {"merge_mode": "sum"},
        SpecError,
        "given merge_mode='sum', expected 'concat'",
    ),
    "a class of somebody else": (
        "lstm",
        {"module": "somewhere"},
        SpecError,
        "given a layer LSTM of somewhere, expected one of Keras' SimpleRNN, GRU, LSTM",
    ),
    "a kind that no spec describes": ("lstm", {"class_name": "ConvLSTM1D"}, SpecError, "given a layer ConvLSTM1D of"),
    "several cells": (
        "cell",
        {"cell": {"class_name": "StackedRNNCells", "config": {}}},
        SpecError,
        "given a layer StackedRNNCells of keras.layers",
    ),
    "another number of units": ("lstm", {"units": 7}, ShapeError, "given the weights of LSTMSpec(3, 5, batch_f"),
    "another kind": ("lstm", {"class_name": "GRU"}, ShapeError, "expected those of GRU(5)"),
    "the other variant": ("gru", {"reset_after": False}, ShapeError, "expected those of GRU(4), reset_after=False"),
    "biases that are not there": ("gru_without", {"use_bias": True}, ShapeError, "given 2 arrays, but use_bias=True"),
    "a flag that is none": ("lstm", {"use_bias": "maybe"}, ShapeError, "use_bias=maybe"),
    "a direction that is none": ("lstm", {"go_backwards": 3}, ArgumentError, "reverse: given 3, expected True or"),
}


@pytest.mark.parametrize(("layer", "arguments", "kind", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_a_layer_that_no_spec_describes_is_refused(
    layer: str, arguments: dict[str, Any], kind: type[UnirnnError], words: str, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.keras"
    altered(folder, path, layer, **arguments)
    with pytest.raises(UnirnnError) as caught:
        unirnn.load(path, prefix=layer)
    assert type(caught.value) is kind
    assert words in str(caught.value)
    assert unirnn.load(path, prefix="tanh") == unirnn.load(folder / "model.keras", prefix="tanh")


@pytest.mark.parametrize(
    ("layer", "arguments"),
    [("both", {"merge_mode": "sum"}), ("both", {"merge_mode": None}), ("backwards", {"return_sequences": True})],
)
def test_a_layer_with_an_unusual_output_needs_a_spec(
    layer: str, arguments: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.keras"
    altered(folder, path, layer, **arguments)
    expected = unirnn.load(folder / "model.keras", prefix=layer)
    with pytest.raises(SpecError, match=re.escape(f"give as spec {expected.spec!r}")):
        unirnn.load(path, prefix=layer)
    assert unirnn.load(path, prefix=layer, spec=expected.spec) == expected
    other = unirnn.RecurrentSpec.from_dict({**expected.spec.to_dict(), "gate_activation": "hard_sigmoid"})
    with pytest.raises(SpecError, match=f"but the file says that '{layer}' is"):
        unirnn.load(path, prefix=layer, spec=other)


def test_names_with_slashes_are_read(tmp_path: Path) -> None:
    entries, expected = keras_2("GRU", "zrh")
    (kind, config, arrays), path = entries[0], tmp_path / "a.h5"
    write_h5(path, [("InputLayer", {"name": "cqt/mag"}, {}), (kind, {**config, "name": "deep/rnn"}, arrays)])
    np.testing.assert_allclose(run(unirnn.load(path), X.astype("float64"))[0][..., :4], expected, atol=1e-12)


def test_arguments_that_contradict_the_file_are_refused(folder: Path, tmp_path: Path) -> None:
    path = folder / "model.keras"
    with pytest.raises(ArgumentError, match="prefix: given none, but there are several layers; give one of 'tanh', "):
        unirnn.load(path)
    with pytest.raises(ArgumentError, match="prefix: given 'absent', expected one of 'tanh'"):
        unirnn.load(path, prefix="absent")
    with pytest.raises(
        SpecError, match=r"spec: given GRUSpec\(3, 4\), but the file says that 'lstm' is LSTMSpec\(3, 5"
    ):
        unirnn.load(path, prefix="lstm", spec=GRUSpec(3, 4))
    with pytest.raises(ArgumentError, match="of a file of Keras only recurrent layers are read, one by one"):
        unirnn.load(path, prefix="lstm", spec=unirnn.LinearSpec(3, 4))
    with pytest.raises(ArgumentError, match="rename: given with a file of Keras"):
        unirnn.load(path, spec=unirnn.Sequential(unirnn.LinearSpec(3, 4)), rename={"a": "b"})
    with pytest.raises(ShapeError, match="the file has one layer in 2 direction"):
        unirnn.load(folder / "model.weights.h5", prefix="both", spec=LSTMSpec(3, 4))
    keras.Sequential([keras.Input((3,)), layers.Dense(4)]).save(tmp_path / "dense.keras")
    with pytest.raises(ArgumentError, match="weights: given no recurrent layer of Keras"):
        unirnn.load(tmp_path / "dense.keras")
    write_h5(tmp_path / "a.h5", [("GRU", ARGUMENTS_2, dict.fromkeys("abc", np.ones((4, 12), int)))])
    with pytest.raises(DTypeError, match="given dtype HDF5's class 0, expected float16"):
        unirnn.load(tmp_path / "a.h5")


# ---- HDF5 ----------------------------------------------------------------------------------------


def h5(fill: Callable[[Any], Any], **options: Any) -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w", **options) as opened:
        fill(opened)
    return file.getvalue()


STORED: dict[str, dict[str, Any]] = {
    "in one piece": {},
    "in chunks": {"chunks": (4, 4)},
    "deflated": {"compression": "gzip"},
    "shuffled and deflated": {"compression": "gzip", "shuffle": True, "chunks": (7, 3)},
}


@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2"])
@pytest.mark.parametrize("options", STORED.values(), ids=STORED.keys())
def test_datasets_and_attributes_as_h5py_writes_them(options: dict[str, Any], dtype: str) -> None:
    array = np.random.default_rng(0).standard_normal((50, 11)).astype(dtype)

    def fill(file: Any) -> None:
        file.create_dataset("some/where/array", data=array, **options)
        for number in range(300):  # more names than fit into one table
            file.create_dataset(f"many/{number}", data=np.float32(number))
        file.attrs.update({"text": "ü" * 50_000, "bytes": np.bytes_(b"abc"), "number": 3, "none": []})
        file.attrs["names"] = ["one", "two"]
        file.attrs["fixed"] = np.array([b"one", b"three"])

    root = hdf5.parse(h5(fill))
    np.testing.assert_array_equal(root.groups["some"].groups["where"].datasets["array"].read(), array)
    assert [root.groups["many"].datasets[str(number)].read() for number in range(300)] == list(range(300))
    assert root.attributes == {
        "text": ("ü" * 50_000).encode(),
        "bytes": b"abc",
        "number": None,
        "none": [],
        "names": [b"one", b"two"],
        "fixed": [b"one", b"three"],
    }


def external(file: Any) -> None:
    file.create_dataset("a", (4, 4), "f4", external=[("other.bin", 0, 64)])


def virtual(file: Any) -> None:
    layout = h5py.VirtualLayout((4,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "a", (4,))
    file.create_virtual_dataset("a", layout)


def linked(link: Any) -> Callable[[Any], None]:
    def fill(file: Any) -> None:
        file["a"] = link

    return fill


def half_written(file: Any) -> None:
    file.create_dataset("a", (4,), "f4", chunks=(2,), fillvalue=3)[:2] = 1


def deflated(rows: int) -> Callable[[Any], None]:
    def fill(file: Any) -> None:
        file.create_dataset("a", (rows, 1024), "f4", chunks=(1024, 1024), compression="gzip", fillvalue=0)
        file["a"][...] = 0

    return fill


NOT_READ: dict[str, tuple[bytes, str]] = {
    "another file's data": (h5(external), "a dataset is stored in another file"),
    "data put together from other files": (h5(virtual), "stored in a way that is not read (version 4, class 3)"),
    "a soft link": (h5(linked(h5py.SoftLink("/b"))), "it has a soft link, and links are not followed"),
    "a link to another file": (h5(linked(h5py.ExternalLink("b.h5", "/"))), "neither a group of the earliest version"),
    "the latest structures": (h5(lambda file: file.create_group("a"), libver="latest"), "written with libver='latest'"),
    "another filter": (
        h5(lambda file: file.create_dataset("a", data=np.ones((9, 9), "f4"), compression="lzf")),
        "a dataset went through filter 32000; only deflate and shuffle are read",
    ),
    "chunks that are not there": (h5(half_written), "a dataset has chunks that were never written"),
    "zeros that expand": (h5(deflated(20_000)), "more than 100 times the file's"),
    "no HDF5": (b"\x89HDF\r\n\x1a\x0b" + bytes(100), "no HDF5 file"),
}


@pytest.mark.parametrize(("data", "words"), NOT_READ.values(), ids=NOT_READ.keys())
def test_the_error_names_an_unsupported_feature_of_hdf5(data: bytes, words: str) -> None:
    with pytest.raises(FileError) as caught, limited_memory(8 << 20):
        hdf5.parse(data).datasets["a"].read()
    assert words in str(caught.value)


def entries_of(data: bytes) -> int:
    """The offset of the entries in the root's symbol table."""
    return data.index(b"SNOD") + 8


def test_overlapping_or_circular_structures_are_refused() -> None:
    data = bytearray(h5(lambda file: [file.create_group(f"group {number}").attrs.update(a="b") for number in range(8)]))
    at = entries_of(bytes(data))
    (root,) = struct.unpack_from("<Q", data, 64)
    tree = data.index(b"TREE")
    into_itself = bytearray(data)
    into_itself[at + 8 : at + 16] = struct.pack("<Q", root)
    twice = bytearray(data)
    twice[tree + 5 : tree + 8] = struct.pack("<BH", 200, 2)  # a tree of 200 levels that is its own child
    twice[tree + 32 : tree + 56 : 1] = struct.pack("<QQQ", tree, 0, tree)
    for hostile in (into_itself, twice):
        with (
            pytest.raises(FileError, match=r"go in circles|within each other|a tree is altered"),
            limited_memory(8 << 20),
        ):
            hdf5.parse(bytes(hostile))


def test_doubly_compressed_zeros_are_refused(tmp_path: Path) -> None:
    """Deflated chunks in an archive that deflates them again."""
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        archive.writestr("metadata.json", '{"keras_version": "3.0.0"}')
        archive.writestr("model.weights.h5", h5(deflated(19_000)))
    assert path.stat().st_size < 100_000
    with pytest.raises(FileError, match="more than 100 times the file's size"), limited_memory(8 << 20):
        unirnn.load(path)


@pytest.mark.parametrize("missing", ["config.json", "metadata.json", "model.weights.h5"])
def test_an_archive_with_a_missing_member_is_refused(missing: str, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.keras"
    with zipfile.ZipFile(folder / "model.keras") as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if name != missing:
                new.writestr(name, old.read(name))
    with pytest.raises(UnirnnError):  # what is left may be taken for another format
        unirnn.load(path)


def test_a_file_that_claims_more_data_than_it_has_is_refused() -> None:
    data = bytearray(h5(lambda file: file.create_dataset("a", data=np.ones((4, 4), "f4"))))
    at = bytes(data).index(struct.pack("<QQ", 4, 4))
    for rows, words in ((1 << 40, "claims 64 at"), (1 << 62, "claims 64 at"), (5, "a dataset of 80 bytes claims 64")):
        data[at : at + 8] = struct.pack("<Q", rows)
        with pytest.raises(FileError, match=words), limited_memory(1 << 20):
            hdf5.parse(bytes(data))


@pytest.fixture(scope="module")
def undamaged(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    model = keras.Sequential([keras.Input((None, 2)), layers.GRU(2, name="gru")])
    path = tmp_path_factory.mktemp("undamaged")
    drawn(model).save(path / "a.keras")
    model.save(path / "a.h5")
    model.save_weights(path / "a.weights.h5")
    return {name: (path / name).read_bytes() for name in ("a.keras", "a.h5", "a.weights.h5")}


def changes(data: bytes, draw: st.DataObject) -> bytes:
    """The bytes with a flipped bit, a replaced part, or a missing end."""
    at = draw.draw(st.integers(0, len(data) - 1))
    how = draw.draw(st.sampled_from(("flip", "replace", "repeat", "cut")))
    if how == "flip":
        return data[:at] + bytes([data[at] ^ 1 << draw.draw(st.integers(0, 7))]) + data[at + 1 :]
    if how == "cut":
        return data[:at]
    if how == "repeat":
        other = draw.draw(st.integers(0, len(data) - 1))
        return data[:at] + data[other : other + 8] + data[at + 8 :]
    return data[:at] + draw.draw(st.binary(max_size=16)) + data[at + draw.draw(st.integers(0, 16)) :]


@pytest.mark.parametrize("name", ["a.keras", "a.h5", "a.weights.h5"])
@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(draw=st.data())
def test_a_damaged_file_is_refused_or_is_another_snapshot(
    name: str, undamaged: dict[str, bytes], tmp_path: Path, draw: st.DataObject
) -> None:
    before = undamaged[name]
    altered = changes(before, draw)
    assume(altered != before)
    path = tmp_path / name
    path.write_bytes(altered)
    with suppress(UnirnnError), limited_memory(16 << 20):
        unirnn.load(path, spec=GRUSpec(2, 2, batch_first=True))
