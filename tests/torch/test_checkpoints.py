"""PyTorch's files: checkpoints are read without running anything in them, and torch loads ours."""

import argparse
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
from lightning.pytorch import LightningModule, Trainer
from memory_limit import limited_memory

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, files
from unirnn.errors import ArgumentError, DTypeError, FileError, SpecError, UnirnnError

# The files of these tests do not say batch_first; test_snapshots.py tests the warning about that.
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


# ---- torch loads ours ----------------------------------------------------------------------------


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


def test_tensors_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from torch, about sparse and quantised tensors
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
    assert [name for name in files.contents(path).arrays if not name.startswith("rnn.")] == [
        "d.weight_ih_l0",
        "f.weight_ih_l0.0",
        "h.weight_ih_l0",
        "3",
    ]


def test_a_tensor_that_is_to_be_negated_is_left_out(tmp_path: Path) -> None:
    negated = torch.view_as_complex(torch.ones(9, 3, 2)).conj().imag  # torch negates it when it is used
    save(tensors() | {"weight_hh_l0": negated}, tmp_path / "a.pt")
    assert "weight_hh_l0" not in files.contents(tmp_path / "a.pt").arrays


def test_weights_of_integers_are_refused(tmp_path: Path) -> None:
    save({name: tensor.long() for name, tensor in tensors().items()}, tmp_path / "a.pt")
    with pytest.raises(DTypeError, match=r"weights\['weight_ih_l0'\]: given dtype int64, expected float16"):
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


# ---- whatever torch writes -----------------------------------------------------------------------


class Model(torch.nn.Module):
    """A model with everything that a module may hold."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.LSTM(2, 4, 2, bidirectional=True, proj_size=3)
        self.blocks = torch.nn.ModuleList([torch.nn.GRU(6, 3), torch.nn.BatchNorm1d(3)])
        self.table = torch.nn.ParameterDict({"a": torch.nn.Parameter(torch.randn(2, 3).t())})
        self.head, self.tied = torch.nn.Linear(3, 5), torch.nn.Linear(3, 5)
        self.tied.weight = self.head.weight
        self.rounded = torch.nn.Parameter(torch.randn(3, 4, dtype=torch.bfloat16)[1:, ::2])
        self.register_buffer("scalar", torch.tensor(2.5, dtype=torch.float64))
        self.register_buffer("empty", torch.ones(0, 3, dtype=torch.float16))
        self.register_buffer("scratch", torch.ones(3), persistent=False)
        self.options = argparse.Namespace(rate=np.float64(0.1), folder=Path("data"))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = self.blocks[0](self.rnn(x)[0])[0]
        return torch.add(self.head(output), self.tied(output))


def write_pickle(model: Model, path: Path, protocol: int) -> None:
    path.write_bytes(pickle.dumps(model, protocol))


def write_script(model: Model, path: Path) -> None:
    torch.jit.save(torch.jit.trace(model.eval(), torch.ones(4, 1, 2)), path)  # type: ignore[no-untyped-call]


WRITERS: dict[str, Callable[[Model, Path], Any]] = {
    "state dict": lambda model, path: save(model.state_dict(), path),
    "before 1.6": lambda model, path: save(model.state_dict(), path, zipped=False),
    "module": save,
    "module before 1.6": lambda model, path: save(model, path, zipped=False),
    "protocol 5": lambda model, path: torch.save(model, path, pickle_protocol=5),
    "pickle of protocol 2": lambda model, path: write_pickle(model, path, 2),
    "pickle of protocol 4": lambda model, path: write_pickle(model, path, 4),
    "TorchScript": write_script,
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
@pytest.mark.parametrize("writer", WRITERS)
def test_all_tensors_are_read_as_torch_reads_them(tmp_path: Path, writer: str) -> None:
    torch.manual_seed(0)
    model, path = Model(), tmp_path / "a"
    WRITERS[writer](model, path)
    arrays = files.contents(path).arrays
    expected = model.state_dict()
    if writer == "TorchScript":
        expected = torch.jit.load(path).state_dict()  # type: ignore[no-untyped-call]
    assert {name for name in arrays if not name.startswith("options")} >= expected.keys()
    assert writer == "TorchScript" or "scratch" not in arrays
    for name, tensor in expected.items():
        wanted = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        assert (arrays[name].shape, arrays[name].dtype) == (wanted.shape, wanted.dtype.name)
        np.testing.assert_array_equal(arrays[name].read(), wanted)


class Own(torch.nn.RNN):
    """A subclass, whose computation a file does not show."""


@each_layout
def test_a_whole_module_also_says_its_options(tmp_path: Path, zipped: bool) -> None:
    encoder = torch.nn.RNN(2, 3, 2, nonlinearity="relu", batch_first=True, dropout=0.5)
    head = torch.nn.LSTM(3, 4, proj_size=2)
    model = torch.nn.ModuleDict({"encoder": encoder, "heads": torch.nn.ModuleList([head])})
    path = tmp_path / "a"
    save(model, path, zipped)
    for prefix, layer in (("encoder", encoder), ("heads.0.", head)):
        assert files.load(path, prefix=prefix) == unirnn.snapshot(layer)
    assert {prefix: layer.spec for prefix, layer in files.contents(path).layers.items()} == {
        "encoder.": unirnn.snapshot(encoder).spec,
        "heads.0.": LSTMSpec(3, 4, proj_size=2),
    }
    save(encoder, path, zipped)
    assert files.load(path) == unirnn.snapshot(encoder)
    assert not files.load(path).assumed
    with pytest.raises(ArgumentError, match="batch_first: given False, but the spec says True"):
        files.load(path, batch_first=False)
    save(Own(2, 3), path, zipped)
    with pytest.raises(SpecError, match="tanh or relu does not follow"):
        files.load(path)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("path", sorted((Path(__file__).parents[1] / "data").glob("torch_*")), ids=lambda p: p.name)
def test_torch_and_unirnn_read_the_same_from_a_file(path: Path) -> None:
    if path.suffix == ".jit":
        loaded = torch.jit.load(path).state_dict()  # type: ignore[no-untyped-call]
    elif path.suffix:
        loaded = torch.load(path, weights_only=False)
    else:
        loaded = pickle.loads(path.read_bytes())
    loaded = loaded.state_dict() if isinstance(loaded, torch.nn.Module) else loaded.get("state_dict", loaded)
    weights = {name.removeprefix("rnn."): tensor.numpy() for name, tensor in loaded.items()}
    assert Snapshot(GRU, weights) == files.load(path)


# ---- checkpoints that unirnn writes --------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_torch_loads_a_checkpoint_of_ours(tmp_path: Path, suffix: str) -> None:
    model = unirnn.Sequential(
        embedding=unirnn.EmbeddingSpec(9, 4),
        rnn=LSTMSpec(4, 4, batch_first=True),
        norm=unirnn.BatchNormSpec(4),
        head=unirnn.LinearSpec(4, 9, tied_to="embedding"),
    )
    snapshot, path = unirnn.snapshot(model.build("numpy", seed=0)), tmp_path / f"a{suffix}"
    snapshot.save(path)
    assert files.load(path) == snapshot
    for mapped in (True, False):
        loaded = torch.load(path, weights_only=True, mmap=mapped)
        module = model.build("torch", seed=1)
        module.load_state_dict(loaded, strict=True)
        assert unirnn.snapshot(module) == snapshot
        # The tied weight is stored once.
        assert loaded["head.weight"].data_ptr() == loaded["embedding.weight"].data_ptr()


# ---- hostile files -------------------------------------------------------------------------------


def test_many_weights_that_share_one_storage_are_refused(tmp_path: Path) -> None:
    path, shared = tmp_path / "a.pt", torch.zeros(768, 256)
    save({f"weight_{kind}_l{layer}": shared for layer in range(50) for kind in ("ih", "hh")}, path)
    words = r"its weights share their memory, .* at most 16777216 are read from a file"
    with pytest.raises(FileError, match=words), limited_memory(20 << 20):
        files.load(path)
    save({f"weight_{kind}_l{layer}": shared for layer in range(4) for kind in ("ih", "hh")}, path)
    assert files.load(path).spec == GRUSpec(256, 256, 4, bias=False)  # a few weights may share a storage


class Runs:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


@each_layout
def test_nothing_in_a_file_is_executed(tmp_path: Path, zipped: bool) -> None:
    path, marker = tmp_path / "a.pt", tmp_path / "marker"
    save(tensors() | {"code": Runs(marker)}, path, zipped)
    assert files.load(path) == snapshot_of(GRU)
    assert not marker.exists()
    torch.load(path, weights_only=False)  # torch runs the code in the file when told to trust it
    assert marker.exists()


def rezipped(path: Path, change: Callable[[bytes], bytes], method: int = zipfile.ZIP_STORED) -> None:
    """Change the pickle in a file, with correct checksums."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in records:
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


def lie(numbers: int | None = None, rows: int | None = None) -> Callable[[bytes], bytes]:
    """Claim another number of stored elements, or of rows, for the first tensor, which is `(9, 2)`."""

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
    """Replace the pickle by one that calls something with 2**30."""
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
def test_false_claims_about_sizes_are_harmless(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "a.pt"
    save(tensors(), path)
    assert files.load(path) == snapshot_of(GRU)
    rezipped(path, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        found = files.load(path)
    except UnirnnError:
        found = None
    assert found is None or found == snapshot_of(GRU)  # a storage may claim to be larger if the rest is unused
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
    with pytest.raises(FileError, match=r"is compressed, which torch\.save does not do"):
        files.load(path)


def test_a_name_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    save({"a": tensors(), "a.weight_ih_l0": torch.ones(9, 2)}, path)
    with pytest.raises(FileError, match=r"'a\.weight_ih_l0' occurs twice"):
        files.load(path)


def whole_file(zipped: bool) -> bytes:
    buffer = io.BytesIO()
    torch.save(tensors(), buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


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
def test_no_inverted_byte_crashes_the_process(tmp_path: Path, zipped: bool) -> None:
    (tmp_path / "whole.pt").write_bytes(whole_file(zipped))
    done = subprocess.run([sys.executable, "-c", FLIPS, str(tmp_path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
