"""MindSpore's checkpoints are read without MindSpore's reader, and MindSpore loads the files that unirnn saves."""

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_limit import limited_memory
from mindspore import nn
from mindspore.train.checkpoint_pb2 import Checkpoint

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, files
from unirnn.errors import ArgumentError, FileError, SpecError, UnirnnError

# The files of these tests do not say batch_first; test_snapshots.py tests the warning about that.
pytestmark = pytest.mark.filterwarnings("ignore::unirnn.errors.AssumptionWarning")

GRU = GRUSpec(2, 3)
SPECS = [RNNSpec(2, 3, nonlinearity="relu"), GRUSpec(2, 3, 2, bidirectional=True), LSTMSpec(2, 3, 2, bias=False)]


def layer_of(spec: RecurrentSpec) -> Any:
    kind = {"RNN": ms.nn.RNN, "GRU": ms.nn.GRU, "LSTM": ms.nn.LSTM}[spec.kind]
    return kind(**spec.to_kwargs("mindspore"))


def snapshot_of(layer: Any, spec: RecurrentSpec) -> Snapshot:
    named = {p.name.rpartition(".")[2]: p.asnumpy() for p in layer.get_parameters()}
    return Snapshot(spec, {name: named[name] for name in spec.weight_shapes()})


# ---- files of unirnn -----------------------------------------------------------------------------


@pytest.mark.parametrize("format", ["safetensors", "ckpt"])
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_mindspore_loads_a_saved_snapshot(tmp_path: Path, spec: RecurrentSpec, format: str) -> None:
    snapshot, path = unirnn.snapshot(spec.build("numpy", seed=0)), str(tmp_path / f"a.{format}")
    snapshot.save(path)
    assert files.load(path) == snapshot
    loaded = ms.load_checkpoint(path, format=format)
    for layer in (layer_of(spec), spec.build("mindspore")):
        assert ms.load_param_into_net(layer, loaded, strict_load=True) == ([], [])
        assert snapshot_of(layer, spec) == snapshot


class Net(nn.Cell):
    """`MODEL`, written with MindSpore's own layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.conv = nn.Conv1d(4, 6, 3, pad_mode="valid", has_bias=True)
        self.norm = nn.BatchNorm1d(6)
        self.block = nn.CellDict({"encoder": nn.GRU(6, 6), "scale": nn.LayerNorm((6,))})
        self.head = nn.Dense(6, 2)


MODEL = unirnn.Sequential(
    embedding=unirnn.EmbeddingSpec(7, 4),
    conv=unirnn.Conv1dSpec(4, 6, 3),
    norm=unirnn.BatchNormSpec(6),
    block=unirnn.Sequential(encoder=GRUSpec(6, 6), scale=unirnn.LayerNormSpec(6)),
    head=unirnn.LinearSpec(6, 2),
)


def test_mindspores_own_layers_load_a_saved_model(tmp_path: Path) -> None:
    path, net = str(tmp_path / "a.ckpt"), Net()
    snapshot = unirnn.snapshot(MODEL.build("numpy", seed=0))
    snapshot.save(path)
    assert ms.load_param_into_net(net, ms.load_checkpoint(path), strict_load=True) == ([], [])
    theirs = {name: parameter.asnumpy() for name, parameter in net.parameters_dict().items()}
    assert len(theirs) == len(snapshot.weights)
    assert theirs["conv.weight"].shape == (6, 4, 1, 3)
    assert unirnn.snapshot(theirs, spec=MODEL) == snapshot == files.load(path)
    built = MODEL.build("mindspore")
    unirnn.load_weights(built, files.load(path))
    assert unirnn.snapshot(built) == snapshot
    data = Path(path).read_bytes()
    snapshot.save(path)
    assert Path(path).read_bytes() == data


# ---- checkpoints ---------------------------------------------------------------------------------


@pytest.mark.parametrize("crc_check", [True, False])
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_reading_a_checkpoint(tmp_path: Path, spec: RecurrentSpec, crc_check: bool) -> None:
    layer, path = layer_of(spec), tmp_path / "a.ckpt"
    ms.save_checkpoint(layer, str(path), crc_check=crc_check)
    assert files.load(path, spec=spec) == snapshot_of(layer, spec)
    assert (files.contents(path).format, files.contents(path).version) == ("mindspore", None)


def test_reading_a_checkpoint_of_a_built_module(tmp_path: Path) -> None:
    cell = GRU.build("mindspore", seed=0)
    ms.save_checkpoint(cell, str(tmp_path / "a.ckpt"))
    assert files.load(tmp_path / "a.ckpt") == unirnn.snapshot(cell)


def test_reading_a_checkpoint_with_optimizer_state(tmp_path: Path) -> None:
    model, path = ms.nn.Cell(), tmp_path / "a.ckpt"
    model.encoder, model.decoder, model.head = layer_of(GRU), layer_of(GRU), ms.nn.Dense(3, 2)
    optimizer = ms.nn.Adam(model.trainable_params())
    ms.save_checkpoint(optimizer, str(path), append_dict={"epoch": 3, "name": "a", "rate": 0.5})
    moments = {"moment1.decoder.", "moment1.encoder.", "moment2.decoder.", "moment2.encoder."}
    assert set(files.contents(path).layers) == {"decoder.", "encoder."} | moments
    assert files.load(path, prefix="encoder") == snapshot_of(model.encoder, GRU)
    with pytest.raises(ArgumentError, match=r"a\.ckpt: prefix: given none, but there are several layers"):
        files.load(path)


def test_bfloat16_is_read_as_float32(tmp_path: Path) -> None:
    expected = snapshot_of(layer_of(GRU), GRU)
    tensors = {name: ms.Tensor(array, ms.bfloat16) for name, array in expected.weights.items()}
    ms.save_checkpoint([{"name": n, "data": t} for n, t in tensors.items()], str(tmp_path / "a.ckpt"))
    found = files.load(tmp_path / "a.ckpt")
    assert found.dtype == "float32"
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(found.weights[name], tensor.float().asnumpy())
    assert files.contents(tmp_path / "a.ckpt").layers[""].num_bytes == 4 * GRU.num_weights


# ---- invalid checkpoints -------------------------------------------------------------------------

Entry = tuple[str, str, list[int], bytes]
FINE: list[Entry] = [
    ("rnn.weight_ih_l0", "Float32", [9, 2], bytes(72)),
    ("rnn.weight_hh_l0", "Float32", [9, 3], bytes(108)),
]


def write(path: Path, entries: list[Entry]) -> None:
    message = Checkpoint()
    for name, dtype, dims, content in entries:
        value = message.value.add()
        value.tag, value.tensor.tensor_type, value.tensor.tensor_content = name, dtype, content
        value.tensor.dims.extend(dims)
    path.write_bytes(message.SerializeToString())


def test_a_parameter_stored_in_parts_is_joined(tmp_path: Path) -> None:
    """MindSpore splits parameters of more than half a GiB."""
    (name, dtype, dims, _), other = FINE
    content = np.arange(18, dtype="<f4").tobytes()
    write(tmp_path / "a.ckpt", [(name, dtype, dims, content[:40]), (name, dtype, dims, content[40:]), other])
    weight = files.load(tmp_path / "a.ckpt").weights["weight_ih_l0"]
    np.testing.assert_array_equal(weight, np.arange(18).reshape(9, 2))
    write(tmp_path / "a.ckpt", [(name, dtype, dims, content[:40]), other, (name, dtype, dims, content[40:])])
    with pytest.raises(FileError, match=r"'rnn\.weight_ih_l0' occurs twice"):
        files.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("dtype", "dims", "content", "message"),
    [
        ("Float32", [9, 3], bytes(72), r"'rnn\.weight_ih_l0' claims shape \(9, 3\), but has 18 numbers"),
        ("Float32", [2**40, 2**40], bytes(72), "claims shape"),
        ("Float32", [-9, -2], bytes(72), "claims shape"),
        ("Float32", [9, 2], b"", "but has 0 numbers"),
        ("Float32", [9, 2], bytes(71), "truncated, altered"),
        ("Float64", [9, 2], bytes(72), "but has 9 numbers"),
    ],
)
def test_false_claims_are_refused(tmp_path: Path, dtype: str, dims: list[int], content: bytes, message: str) -> None:
    path = tmp_path / "a.ckpt"
    write(path, FINE)
    assert files.load(path).spec == GRUSpec(2, 3, bias=False)
    write(path, [(FINE[0][0], dtype, dims, content), FINE[1]])
    with pytest.raises(FileError, match=message) as caught:
        files.load(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("dtype", "dims", "content"),
    [("Float32", [0], bytes(4)), ("Int32", [9, 2], bytes(72)), ("str", [2], "ab".encode("utf-32-le"))],
)
def test_a_weight_of_another_dtype_is_refused(tmp_path: Path, dtype: str, dims: list[int], content: bytes) -> None:
    write(tmp_path / "a.ckpt", [(FINE[0][0], dtype, dims, content), FINE[1]])
    with pytest.raises(SpecError, match=r"a\.ckpt: .* expected weight_ih_l0 and weight_hh_l0 of two axes"):
        files.load(tmp_path / "a.ckpt")


@pytest.fixture(scope="module", params=["checked", "unchecked", "unirnn"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Snapshot, bytes, bool]:
    layer, path = layer_of(GRU), tmp_path_factory.mktemp("whole") / "a.ckpt"
    snapshot, is_checked = snapshot_of(layer, GRU), request.param == "checked"
    if request.param == "unirnn":
        snapshot.save(path)
    else:
        ms.save_checkpoint(layer, str(path), crc_check=is_checked)
    return snapshot, path.read_bytes(), is_checked


def load_or_refuse(path: Path, data: bytes) -> Snapshot | None:
    path.write_bytes(data)
    try:
        with limited_memory():
            return files.load(path)
    except UnirnnError as error:  # a FileError, or the error of a layer whose names or shapes were altered
        caught = error
    assert str(caught).startswith(str(path))
    return None


often = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


@often
@given(data=st.data())
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, whole: Any, data: st.DataObject) -> None:
    snapshot, content, _ = whole
    length = data.draw(st.integers(0, len(content) - 1))
    found = load_or_refuse(tmp_path / "a.ckpt", content[:length])
    # A cut between two parameters may leave a valid layer without biases, and it removes the checksum.
    assert found is None or found == snapshot or not found.spec.bias


@often
@given(data=st.data())
def test_a_flipped_bit_is_harmless(tmp_path: Path, whole: Any, data: st.DataObject) -> None:
    _, content, checked = whole
    altered = bytearray(content)
    at = data.draw(st.integers(0, len(altered) - 1))
    altered[at] ^= 1 << data.draw(st.integers(0, 7))
    found = load_or_refuse(tmp_path / "a.ckpt", bytes(altered))
    assert found is None or not checked or at >= len(content) - 17
