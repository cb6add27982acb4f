"""PyTorch's files: checkpoints are read without running anything in them, and ours are loaded by torch."""

import io
import pickle
import resource
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.pytorch import LightningModule, Trainer

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, files
from unirnn.errors import ArgumentError, FileError, SpecError, UnirnnError

# The files of these tests do not say batch_first; what is done then is tested in test_snapshots.py.
pytestmark = pytest.mark.filterwarnings("ignore::unirnn.errors.AssumptionWarning")

GRU = GRUSpec(2, 3)
SPECS = [RNNSpec(2, 3, nonlinearity="relu"), GRUSpec(2, 3, 2, bidirectional=True), LSTMSpec(2, 4, 2, proj_size=3)]
each_layout = pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before 1.6"])


def layer_of(spec: RecurrentSpec) -> torch.nn.RNNBase:
    torch.manual_seed(0)
    kind: Any = {"RNN": torch.nn.RNN, "GRU": torch.nn.GRU, "LSTM": torch.nn.LSTM}[spec.kind]
    layer: torch.nn.RNNBase = kind(**spec.to_kwargs("torch"))
    return layer


def snapshot_of(spec: RecurrentSpec) -> Snapshot:
    return Snapshot(spec, {name: tensor.numpy() for name, tensor in layer_of(spec).state_dict().items()})


def save(obj: Any, path: Path, zipped: bool = True) -> None:
    torch.save(obj, path, _use_new_zipfile_serialization=zipped)


def tensors(prefix: str = "") -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in layer_of(GRU).state_dict().items()}


# ---- ours, in torch ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_torch_loads_what_is_saved(tmp_path: Path, spec: RecurrentSpec) -> None:
    snapshot_of(spec).save(tmp_path / "a.safetensors")
    layer: Any = {"RNN": torch.nn.RNN, "GRU": torch.nn.GRU, "LSTM": torch.nn.LSTM}[spec.kind]
    layer = layer(**spec.to_kwargs("torch"))
    layer.load_state_dict(safetensors.torch.load_file(tmp_path / "a.safetensors"), strict=True)
    x = torch.randn(4, 5, 2)
    torch.testing.assert_close(layer(x)[0], layer_of(spec)(x)[0], rtol=0, atol=0)


# ---- checkpoints ---------------------------------------------------------------------------------


@each_layout
@pytest.mark.parametrize("suffix", [".pt", ".pth"])
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_a_state_dict(tmp_path: Path, spec: RecurrentSpec, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"a{suffix}"
    save(layer_of(spec).state_dict(), path, zipped)
    assert files.load(path, spec=spec) == snapshot_of(spec)
    assert (files.contents(path).format, files.contents(path).version) == ("torch", None)


@each_layout
def test_a_state_dict_in_a_training_checkpoint(tmp_path: Path, zipped: bool) -> None:
    layer, path = layer_of(GRU), tmp_path / "a.pt"
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(4, 1, 2))[0].sum().backward()
    optimizer.step()
    state = {"model_state": {"gru": layer.state_dict()}, "optimizer": optimizer.state_dict(), "epoch": 3, "name": "a"}
    state["itself"] = state
    save(state, path, zipped)
    found = files.load(path)
    assert found == unirnn.snapshot(layer)
    assert list(files.contents(path).layers) == ["model_state.gru."]


@each_layout
def test_parameters_and_tensors_that_share_their_memory(tmp_path: Path, zipped: bool) -> None:
    path, expected = tmp_path / "a.pt", snapshot_of(GRU)
    whole = torch.cat([tensor.reshape(-1) for tensor in tensors().values()])
    parts = torch.split(whole, [tensor.numel() for tensor in tensors().values()])
    state = {name: part.view(tensor.shape) for part, (name, tensor) in zip(parts, tensors().items(), strict=True)}
    state["weight_hh_l0"] = torch.nn.Parameter(state["weight_hh_l0"].t().contiguous().t())
    save(state | {"whole": whole}, path, zipped)
    assert files.load(path) == expected


@each_layout
def test_bfloat16_is_read_as_float32(tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "a.pt"
    whole = layer_of(GRU).bfloat16().state_dict()
    whole["weight_hh_l0"] = whole["weight_hh_l0"].t().contiguous().t()
    save(whole, path, zipped)
    found = files.load(path)
    assert found.dtype == "float32"
    for name, tensor in whole.items():
        np.testing.assert_array_equal(found.weights[name], tensor.float().numpy())
    assert files.contents(path).layers[""].num_bytes == 4 * GRU.num_weights


def test_what_is_no_float_tensor_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of sparse tensors and quantised ones
        quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        others = {
            "a.weight_ih_l0": torch.ones(9, 2).to_sparse(),
            "b.weight_ih_l0": quantised,
            "c.weight_ih_l0": torch.ones(9, 2, device="meta"),
            "d.weight_ih_l0": torch.ones(9, 2, dtype=torch.int64),
            "e.weight_ih_l0": torch.ones(1).expand(9, 2),
            "f.weight_ih_l0": [torch.ones(9, 2)],
            "g.weight_ih_l0": torch.ones(9, 2, dtype=torch.float8_e4m3fn),
            "h.weight_ih_l0": torch.ones(9, 2, dtype=torch.complex64),
            3: torch.ones(2),
        }
        save(tensors("rnn.") | others, path)
        assert files.load(path) == snapshot_of(GRU)
        assert list(files.contents(path).layers) == ["rnn."]


def test_weights_of_integers_are_none(tmp_path: Path) -> None:
    save({name: tensor.long() for name, tensor in tensors().items()}, tmp_path / "a.pt")
    with pytest.raises(ArgumentError, match=r"no recurrent layer, expected .* of arrays of floats; given none$"):
        files.load(tmp_path / "a.pt")


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [torch.nn.utils.weight_norm, torch.nn.utils.parametrizations.weight_norm])
def test_a_parametrization_is_named(tmp_path: Path, norm: Any) -> None:
    save({"rnn": norm(layer_of(GRU), "weight_hh_l0").state_dict()}, tmp_path / "a.pt")
    with pytest.raises(SpecError, match="a parametrization of weight_hh_l0, expected the weight itself; remove it"):
        files.load(tmp_path / "a.pt")


def test_a_checkpoint_of_lightning(tmp_path: Path) -> None:
    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = layer_of(GRU)

    model = Model()
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_model_summary=False, accelerator="cpu")
    trainer.strategy.connect(model)
    trainer.save_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert files.load(tmp_path / "a.ckpt") == snapshot_of(GRU)
    assert list(files.contents(tmp_path / "a.ckpt").layers) == ["state_dict.encoder."]


def test_several_layers_need_a_prefix(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save(tensors("encoder.") | tensors("decoder."), path)
    with pytest.raises(ArgumentError, match=r"a\.pt: prefix: given none.*'encoder\.', 'decoder\.'"):
        files.load(path)
    assert files.load(path, prefix="decoder") == snapshot_of(GRU)


# ---- hostile ones --------------------------------------------------------------------------------


class Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@each_layout
@pytest.mark.parametrize("what", ["code", "module", "plain pickle"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, what: str, zipped: bool) -> None:
    path, marker = tmp_path / "a.pt", tmp_path / "marker"
    if what == "plain pickle":
        path.write_bytes(pickle.dumps(tensors() | {"code": Runs(marker)}, protocol=2))
    else:
        save(tensors() | {"code": Runs(marker)} if what == "code" else layer_of(GRU), path, zipped)
    with pytest.raises(FileError, match="nothing from a file is executed") as caught:
        files.load(path)
    assert str(caught.value).startswith(str(path))
    assert isinstance(caught.value.__cause__, FileError)
    assert isinstance(caught.value.__cause__.__cause__, pickle.UnpicklingError)
    assert "safe_globals" not in str(caught.value)  # torch's advice is to trust the file
    assert not marker.exists()
    if what == "code":  # it is such a file: torch runs what is in it, where it is told to trust it
        torch.load(path, weights_only=False)
        assert marker.exists()


def rezipped(path: Path, change: Callable[[bytes], bytes], method: int = zipfile.ZIP_STORED) -> None:
    """Change the pickle in a file; checksums are right again."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in records:
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


def lie(numbers: int | None = None, rows: int | None = None) -> Callable[[bytes], bytes]:
    """Say something else of the first tensor, `(9, 2)`: how many numbers are stored, how many rows it has."""

    def change(data: bytes) -> bytes:
        stored = data.index(b"K\x12", data.index(b"cpu"))  # the integer 18
        if numbers is not None:
            data = data[:stored] + b"\x8a\x08" + numbers.to_bytes(8, "little") + data[stored + 2 :]
        if rows is not None:
            shape = data.index(b"K\x09K\x02", stored)
            data = data[:shape] + b"\x8a\x08" + rows.to_bytes(8, "little") + data[shape + 2 :]
        return data

    return change


def call(what: str) -> Callable[[bytes], bytes]:
    """Another pickle: one that calls something with 2**30."""
    return lambda data: f"\x80\x02c{what}\n".encode("latin-1") + b"J\x00\x00\x00\x40\x85R."


def mapping(data: bytes) -> Callable[[bytes], bytes]:
    return lambda _: b"\x80\x02}X\x0c\x00\x00\x00weight_hh_l0" + data + b"s."


@pytest.mark.parametrize(
    "change",
    [
        lie(numbers=2**20, rows=2**19),
        lie(rows=2**19),
        lie(numbers=2**40, rows=2**39),
        lie(rows=2**62),
        lie(numbers=2**63 - 1),
        call("builtins\nbytearray"),
        call("__builtin__\nbytearray"),
        call("torch\nTensor"),
        call("torch\nFloatTensor"),
        mapping(b"ctorch\nFloatTensor\nJ\x00\x00\x00\x40\x85R"),
        lambda data: b"",
        lambda data: data[:-20],
    ],
)
def test_claims_that_no_byte_backs(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.pt"
    save(tensors(), path)
    assert files.load(path) == snapshot_of(GRU)
    rezipped(path, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = files.load(path)
    except UnirnnError:
        found = None
    assert found is None or found == snapshot_of(GRU)  # a storage said to be larger, of which no more is used
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB; the least of them claims 2 GiB


def test_an_expanded_tensor_is_not_filled_in(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save(tensors() | {"weight_ih_l0": torch.ones(1).expand(9, 2**40)}, path)
    with pytest.raises(SpecError, match="expected weight_ih_l0 and weight_hh_l0 of two axes"):
        files.load(path)


def test_compressed_records_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save(tensors(), path)
    rezipped(path, lambda data: data, zipfile.ZIP_DEFLATED)
    with pytest.raises(FileError, match="its records are compressed"):
        files.load(path)


def test_a_name_that_occurs_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save({"a": tensors(), "a.weight_ih_l0": torch.ones(9, 2)}, path)
    with pytest.raises(FileError, match=r"'a\.weight_ih_l0' occurs twice"):
        files.load(path)


def whole_file(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors(), buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def load_or_refuse(path: Path, data: bytes) -> Snapshot | None:
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, of a strange file
            return files.load(path)
    except UnirnnError as error:  # a FileError, or that of a layer whose names or shapes were altered
        return None if str(error).startswith(str(path)) else pytest.fail(str(error))


some = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@each_layout
@some
@given(data=st.data())
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, zipped: bool, data: st.DataObject) -> None:
    whole = whole_file(zipped)
    assert load_or_refuse(tmp_path / "a.pt", whole[: data.draw(st.integers(0, len(whole) - 1))]) is None


@each_layout
@some
@given(data=st.data())
def test_a_flipped_bit_in_a_checkpoint(tmp_path: Path, zipped: bool, data: st.DataObject) -> None:
    altered = bytearray(whole_file(zipped))
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = load_or_refuse(tmp_path / "a.pt", bytes(altered))
    # A zip has checksums: no number in it changes unseen.
    assert found is None or not zipped or found == snapshot_of(GRU)


FLIPS = """
import sys, warnings
from pathlib import Path
from unirnn import files
from unirnn.errors import UnirnnError
warnings.simplefilter("ignore")
folder = Path(sys.argv[1])
whole = (folder / "whole.pt").read_bytes()
path = folder / "flipped.pt"
for at in range(0, len(whole), 5):
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1:])
    try:
        files.load(path)
    except UnirnnError:
        pass
"""


@each_layout
def test_no_inverted_byte_ends_the_process(tmp_path: Path, zipped: bool) -> None:
    (tmp_path / "whole.pt").write_bytes(whole_file(zipped))
    done = subprocess.run([sys.executable, "-c", FLIPS, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
