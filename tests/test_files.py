"""Files are written completely or not at all, are read back as they were written, and are never trusted."""

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import pickle
import re
import socket
import stat
import subprocess
import sys
import zipfile
import zlib
from contextlib import suppress
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from memory_limit import limited_memory
from numpy.typing import NDArray

import unirnn
from unirnn import (
    ActivationSpec,
    BatchNormSpec,
    DropoutSpec,
    EmbeddingSpec,
    GRUSpec,
    LinearSpec,
    LSTMSpec,
    Model,
    RecurrentSpec,
    Residual,
    RNNSpec,
    Sequential,
    Snapshot,
    Spec,
    files,
    registry,
)
from unirnn.contract import weights
from unirnn.errors import (
    ArgumentError,
    DTypeError,
    FileError,
    LimitError,
    MissingBackendError,
    ShapeError,
    SpecError,
    UnirnnError,
)
from unirnn.files import writing
from unirnn.files._header import spec_to_metadata
from unirnn.files.pickles import Global, Object, PickledDict, read_pickle
from unirnn.testing.strategies import models

# The files of these tests do not say batch_first; test_snapshots.py tests the warning about that.
pytestmark = pytest.mark.filterwarnings("ignore::unirnn.errors.AssumptionWarning")

FORMAT_OF = {".safetensors": "safetensors", ".npz": "npz", ".onnx": "onnx", ".pt": "torch"}
"""The format of a file by a suffix that is written; ``.pth`` is another name for ``.pt``."""
SUFFIXES = [suffix for suffix in FORMAT_OF if suffix[1:] in ("safetensors", "npz") or find_spec(FORMAT_OF[suffix])]
SPECS = [
    RNNSpec(2, 3, nonlinearity="relu"),
    GRUSpec(2, 3, 2, bidirectional=True, batch_first=True, dropout=0.25),
    GRUSpec(2, 3, reset_after=False),
    LSTMSpec(2, 3, 3, bias=False),
]
GRU = GRUSpec(2, 3)
DATA = Path(__file__).parent / "data"
"""Files that earlier versions wrote, and those of PyTorch; they are read without it."""

TORCH = sorted(DATA.glob("torch_*"))
"""A checkpoint with foreign objects in it, one of before 1.6, a whole module, a TorchScript archive, and a pickle."""

Header = dict[str, Any]


def snapshot_of(spec: RecurrentSpec, dtype: str = "float32") -> Snapshot:
    return unirnn.snapshot(spec.build("numpy", seed=0)).cast(dtype)


def assert_refused(path: Path, message: str = "", kind: type[UnirnnError] = FileError) -> None:
    with pytest.raises(UnirnnError) as caught, limited_memory():
        files.load(path)
    assert type(caught.value) is kind
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


# ---- writing and reading back ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_saved_snapshot_is_loaded(tmp_path: Path, suffix: str, spec: RecurrentSpec, dtype: str) -> None:
    snapshot, path = snapshot_of(spec, dtype), tmp_path / f"a{suffix.upper()}"
    files.save(snapshot, path)
    assert files.load(path) == snapshot
    assert files.load(str(path), prefix="", spec=spec) == snapshot
    found = files.contents(path)
    assert (found.format, found.version, list(found.layers)) == (FORMAT_OF[suffix], files.FORMAT, [""])
    assert found.layers[""].spec == spec
    assert found.layers[""].num_weights == spec.num_weights
    assert found.layers[""].num_bytes == sum(array.nbytes for array in snapshot.weights.values())


@pytest.mark.parametrize("suffix", [suffix for suffix in SUFFIXES if suffix in (".safetensors", ".onnx")])
def test_files_of_format_1_are_read(suffix: str) -> None:
    path = DATA / f"format_1{suffix}"
    spec = GRUSpec(2, 3, 2, bidirectional=True, batch_first=True, dropout=0.25, reset_after=False)
    assert files.load(path) == files.load(path, spec=spec) == snapshot_of(spec)


def test_safetensors_itself_reads_what_is_saved(tmp_path: Path) -> None:
    snapshot, path = snapshot_of(GRU), tmp_path / "a.safetensors"
    snapshot.save(path)
    arrays = safetensors.numpy.load_file(path)
    assert list(arrays) == sorted(snapshot.weights)
    for name, array in snapshot.weights.items():
        np.testing.assert_array_equal(arrays[name], array)
    with safetensors.safe_open(path, framework="np") as file:
        assert file.metadata() == {"unirnn": json.dumps({"format": 2, "spec": GRU.to_dict()})}


@pytest.mark.parametrize("layout", ["F", "reversed", "big-endian", "strided"])
def test_arrays_of_any_layout_are_saved_in_order(tmp_path: Path, layout: str) -> None:
    def laid_out(array: NDArray[Any]) -> NDArray[Any]:
        strided = np.zeros((*array.shape, 2), array.dtype)
        strided[..., 0] = array
        return {
            "F": np.asfortranarray(array),
            "reversed": np.ascontiguousarray(array[::-1])[::-1],
            "big-endian": array.astype(">f4"),
            "strided": strided[..., 0],
        }[layout]

    snapshot, path = snapshot_of(GRU), tmp_path / "a.safetensors"
    odd = Snapshot(GRU, snapshot.weights)
    # A snapshot copies its arrays, so replace them afterwards.
    object.__setattr__(odd, "weights", {name: laid_out(array) for name, array in snapshot.weights.items()})
    files.save(odd, path)
    assert files.load(path) == snapshot


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("stop", ["the disk is full", "the file is too large", "interrupted"])
def test_an_error_while_saving_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, stop: str
) -> None:
    path = tmp_path / f"a{suffix}"
    snapshot_of(GRU).save(path)
    before = path.read_bytes()
    raised: BaseException = {
        "the disk is full": OSError(errno.ENOSPC, "No space left on device"),
        "the file is too large": OSError(errno.EFBIG, "File too large", "another.tmp"),
        "interrupted": KeyboardInterrupt(),
    }[stop]

    def fail(descriptor: int) -> None:
        raise raised

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(type(raised)) as caught:
        snapshot_of(LSTMSpec(5, 6)).save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]
    if isinstance(raised, OSError):
        assert isinstance(caught.value, OSError)
        assert (caught.value.errno, caught.value.filename) == (raised.errno, str(path))


SAVING = """
import os, resource, signal, sys, unirnn
path, how = sys.argv[1:]
snapshot = unirnn.snapshot(unirnn.LSTMSpec(64, 64).build("numpy", seed=0))
if how == "killed":
    os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL)
else:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
snapshot.save(path)
"""


@pytest.mark.parametrize(("how", "status", "left"), [("killed", -9, 1), ("out of space", 1, 0)])
def test_a_process_that_ends_while_saving_leaves_the_file_as_it_was(
    tmp_path: Path, how: str, status: int, left: int
) -> None:
    path = tmp_path / "a.safetensors"
    snapshot_of(GRU).save(path)
    done = subprocess.run([sys.executable, "-c", SAVING, str(path), how], capture_output=True, text=True)
    assert done.returncode == status
    assert ("File too large" in done.stderr) == (how != "killed")
    assert files.load(path) == snapshot_of(GRU)
    # A killed process can't remove its temporary file, which is hidden.
    assert sum(name.startswith(".unirnn-") for name in os.listdir(tmp_path)) == left


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_permissions_follow_the_umask_or_the_old_file(tmp_path: Path, umask: int) -> None:
    path, old = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    old.touch()
    old.chmod(0o640)
    before = os.umask(umask)
    try:
        snapshot_of(GRU).save(path)
        snapshot_of(GRU).save(old)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE(old.stat().st_mode) == 0o640


@pytest.mark.parametrize("there", [True, False])
def test_a_symbolic_link_is_followed(tmp_path: Path, there: bool) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    target, link = folder / "v1.safetensors", tmp_path / "latest.safetensors"
    if there:
        target.touch()
    link.symlink_to(target)
    snapshot_of(GRU).save(link)
    assert link.is_symlink()
    assert files.load(target) == snapshot_of(GRU)
    assert os.listdir(folder) == [target.name]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("a.h5", ArgumentError, "expected one of the suffixes that are written: .safetensors, .npz, .onnx, .pt, .pth"),
        ("a", ArgumentError, "suffixes that are written"),
        ("absent/a.safetensors", FileNotFoundError, "absent/a.safetensors"),
        ("folder.safetensors", IsADirectoryError, "folder.safetensors"),
    ],
)
def test_paths_that_cannot_be_written_are_an_error(
    tmp_path: Path, name: str, error: type[Exception], message: str
) -> None:
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(error, match=message):
        files.save(snapshot_of(GRU), tmp_path / name)
    assert os.listdir(tmp_path) == ["folder.safetensors"]


@pytest.mark.parametrize(
    ("path", "error", "message"),
    [
        ("absent.pt", FileNotFoundError, "absent.pt"),
        ("folder", IsADirectoryError, "such as one of those in it: model.safetensors, rnn.npz: '.*folder'"),
    ],
)
def test_paths_that_cannot_be_read_are_an_error(
    tmp_path: Path, path: str, error: type[Exception], message: str
) -> None:
    for name in ("README.md", "rnn.npz", "model.safetensors"):
        (tmp_path / "folder" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "folder" / name).touch()
    with pytest.raises(error, match=message):
        files.load(tmp_path / path)


def test_a_path_of_the_wrong_type_is_refused() -> None:
    for call in (files.load, lambda path: files.save(snapshot_of(GRU), path)):
        with pytest.raises(ArgumentError, match="path: given 3, expected a str or an"):
            call(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "arguments",
    [{"spec": "GRU"}, {"spec": GRU.to_dict()}, {"spec": GRUSpec}, {"prefix": 3}],
    ids=repr,
)
def test_a_spec_or_prefix_of_the_wrong_type_is_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    path = tmp_path / "a.safetensors"
    snapshot_of(GRU).save(path)
    (given,) = arguments.values()
    with pytest.raises(ArgumentError, match=r"^spec, prefix: given .* expected a spec such as .* and a str$") as caught:
        files.load(path, **arguments)
    assert repr(given) in str(caught.value)


def test_a_missing_backend_says_how_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = snapshot_of(GRU)
    monkeypatch.setattr(registry, "_loaded", {})
    for module in [name for name in sys.modules if name.startswith(("unirnn_torch", "unirnn_mindspore"))]:
        monkeypatch.delitem(sys.modules, module)
    for name in ("torch", "mindspore"):
        monkeypatch.setitem(sys.modules, name, None)
    for name, suffix in (("torch", ".pt"), ("torch", ".pth"), ("mindspore", ".ckpt")):
        with pytest.raises(MissingBackendError, match=re.escape(registry.install_hint(name, name))):
            snapshot.save(tmp_path / f"b{suffix}")
    # A checkpoint of MindSpore begins with a parameter: its name, then its sizes or, if it has none, its dtype.
    for data in (b"\x0a\x1b\x0a\x04bias\x12\x13\x08\x03\x12\x07Float32", b"\x0a\x13\x0a\x04step\x12\x0b\x12\x05Int32"):
        (tmp_path / "a").write_bytes(data)
        with pytest.raises(MissingBackendError, match=re.escape(registry.install_hint("mindspore", "mindspore"))):
            files.load(tmp_path / "a")


def test_importing_unirnn_imports_no_file_format() -> None:
    code = "import sys, numpy; before = set(sys.modules); import unirnn; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {"safetensors", "zipfile", "onnx", "torch", "mindspore"}.isdisjoint(done.stdout.split())


# ---- snapshots in .safetensors ---------------------------------------------------------------------------


def header_of(snapshot: Snapshot) -> tuple[Header, bytes]:
    data = safetensors.numpy.save(dict(snapshot.weights), spec_to_metadata(snapshot.spec))
    length = 8 + int.from_bytes(data[:8], "little")
    return json.loads(data[8:length]), data[length:]


def write_safetensors(path: Path, header: Header | str, data: bytes) -> None:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


FINE = json.dumps({"format": 2, "spec": GRU.to_dict()})


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (
            FINE.replace("2", "3", 1),
            "given format 3, newer than 2, which this unirnn reads; read it with a newer version",
        ),
        ('{"format": 3, "spec": "of another kind"}', "given format 3, newer than 2"),
        ('{"format": 3}', "given format 3, newer than 2"),
        (FINE.replace("2", "1.5", 1), "format: given 1.5, expected a version such as 2"),
        (FINE.replace("2", "true", 1), "format: given True, expected a version"),
        (FINE.replace("2", '"1"', 1), "format: given '1', expected a version"),
        (FINE.replace("2", "-1", 1), "format: given -1, expected a version"),
        (FINE.replace("2", "9" * 5_000, 1), "unirnn: given '{"),
        ("{}", "format: given None"),
        ('{"format": 2}', "expected a format and a spec"),
        ('{"format": 2, "spec": null}', "expected a format and a spec"),
        ('{"format": 2, "spec": [1, 2]}', "expected a format and a spec"),
        (FINE[:-1] + ', "more": 0}', "expected a format and a spec"),
        ("", "unirnn: given ''"),
        ("[1, 2]", "format: given None"),
        ("[" * 9_000, "unirnn: given '[[["),
        (FINE + " " * 200_000, "expected at most 200000 characters"),
        ('{"format": 2, "spec": {}}', "kind: given None"),
        (FINE.replace('"GRU"', '["GRU"]'), "kind: given ['GRU']"),
        (FINE.replace('"GRU"', '"QRNN"'), "kind: given 'QRNN'"),
        (FINE.replace('"kind"', '"cell"'), "kind: given None"),
        (FINE.replace("2", "1", 1), "kind: given None"),
        (FINE.replace('"dropout": 0.0', '"dropout": NaN'), "NaN is not a number in JSON"),
        (FINE.replace('"input_size": 2', '"input_size": Infinity'), "Infinity is not a number in JSON"),
        (FINE.replace('"input_size": 2', '"input_size": 1e400'), "input_size: given inf"),
        (FINE.replace('"input_size": 2', '"input_size": 2.0'), "input_size: given 2.0"),
        (FINE.replace('"input_size": 2', '"input_size": "2"'), "input_size: given '2'"),
        (FINE.replace('"input_size": 2', f'"input_size": 1{"0" * 5_000}'), "unirnn: given"),
        (FINE.replace('"input_size": 2', '"input_size": -2'), "input_size: given -2"),
        (FINE.replace('"bias": true', '"bias": 1'), "bias: given 1, expected True or False"),
        (FINE[:-2] + ', "gates": 3}}', "unknown argument 'gates'"),
        (FINE.replace('"bias"', '"has_bias"'), "unknown has_bias"),
        (FINE[:-2] + ', "bias": true}}', "'bias' occurs twice"),
        (FINE[:-1], "unirnn: given"),
        (FINE.replace('"hidden_size": 3', f'"hidden_size": {10**12}'), "doesn't fit the arrays"),
        (FINE.replace('"num_layers": 1', f'"num_layers": {10**12}'), "but the file has 4 arrays"),
        (spec_to_metadata(LSTMSpec(2, 3))["unirnn"], "doesn't fit the arrays: weights['weight_ih_l0']"),
        (spec_to_metadata(GRUSpec(2, 3, 2))["unirnn"], "doesn't fit the arrays: weights: missing"),
        (spec_to_metadata(GRUSpec(2, 3, bias=False))["unirnn"], "unknown bias_hh_l0, bias_ih_l0"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_altered_metadata_is_refused(tmp_path: Path, metadata: str, message: str) -> None:
    header, data = header_of(snapshot_of(GRU))
    header["__metadata__"] = {"unirnn": metadata}
    path = tmp_path / "a.safetensors"
    write_safetensors(path, header, data)
    assert_refused(path, message)


def changed(header: Header, name: str, **entry: Any) -> Header:
    return header | {name: header[name] | entry}


@pytest.mark.parametrize(
    "change",
    [
        lambda h: changed(h, "bias_hh_l0", shape=[10]),
        lambda h: changed(h, "bias_hh_l0", shape=[2**62]),
        lambda h: changed(h, "bias_hh_l0", shape=[-9]),
        lambda h: changed(h, "bias_hh_l0", shape=[9.0]),
        lambda h: changed(h, "bias_hh_l0", shape=[3, 3]),
        lambda h: changed(h, "bias_hh_l0", dtype="I32"),
        lambda h: changed(h, "bias_hh_l0", dtype="X99"),
        lambda h: changed(h, "bias_hh_l0", data_offsets=[0, 10**15]),
        lambda h: changed(h, "bias_hh_l0", data_offsets=h["bias_ih_l0"]["data_offsets"]),
        lambda h: changed(h, "bias_hh_l0", more=1),
        lambda h: {name: entry for name, entry in h.items() if name != "weight_ih_l0"},
        lambda h: h | {"more": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}},
        lambda h: json.dumps(h)[:-1] + ', "bias_hh_l0": ' + json.dumps(h["bias_hh_l0"]) + "}",
        lambda h: h | {"__metadata__": {"unirnn": 1}},
        lambda h: "[" * 5_000,
        lambda h: "",
    ],
)
def test_altered_arrays_are_refused(tmp_path: Path, change: Any) -> None:
    header, data = header_of(snapshot_of(GRU))
    path = tmp_path / "a.safetensors"
    write_safetensors(path, change(header), data)
    assert_refused(path)


@pytest.mark.parametrize("length", [0, 2**32, 2**63, 2**64 - 1])
def test_a_header_with_a_wrong_length_is_refused(tmp_path: Path, length: int) -> None:
    snapshot, path = snapshot_of(GRU), tmp_path / "a.safetensors"
    snapshot.save(path)
    path.write_bytes(length.to_bytes(8, "little") + path.read_bytes()[8:])
    assert_refused(path)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_equal_snapshots_are_saved_as_equal_bytes(tmp_path: Path, suffix: str) -> None:
    for number in range(5):
        files.save(snapshot_of(GRU), tmp_path / f"{number}{suffix}")
    assert len({(tmp_path / f"{number}{suffix}").read_bytes() for number in range(5)}) == 1


def test_a_prefix_or_another_spec_for_a_snapshot(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    snapshot_of(GRU).save(path)
    with pytest.raises(ArgumentError, match=r"prefix: given 'encoder\.', but the file is a snapshot"):
        files.load(path, prefix="encoder.")
    with pytest.raises(SpecError, match=r"spec: given GRUSpec\(2, 4\), but the file says GRUSpec\(2, 3\)"):
        files.load(path, spec=GRUSpec(2, 4))
    assert files.load(path, spec=GRUSpec(2, 3, batch_first=True)).spec == GRUSpec(2, 3, batch_first=True)


# ---- state dicts of other programs -----------------------------------------------------------------------


def write(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        safetensors.numpy.save_file(arrays, path)


def prefixed(prefix: str, snapshot: Snapshot) -> dict[str, NDArray[Any]]:
    return {prefix + name: array for name, array in snapshot.weights.items()}


each_suffix = pytest.mark.parametrize("suffix", [".safetensors", ".npz"])


@each_suffix
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize("prefix", ["", "encoder.", "model.encoder.rnn."])
def test_the_one_layer_of_a_state_dict(tmp_path: Path, suffix: str, dtype: str, prefix: str) -> None:
    snapshot, path = snapshot_of(LSTMSpec(2, 3, 2, bidirectional=True), dtype), tmp_path / f"a{suffix}"
    others = {"head.weight": np.ones((2, 2), "f4"), "step": np.array(3), "mask": np.ones(2, bool)}
    write(path, prefixed(prefix, snapshot) | others)
    assert files.load(path) == snapshot
    found = files.contents(path)
    assert (found.version, list(found.layers)) == (None, [prefix])
    assert found.layers[prefix].spec == snapshot.spec
    assert found.layers[prefix].weights["weight_hh_l0"] == ((12, 3), dtype)


@each_suffix
def test_one_layer_of_several(tmp_path: Path, suffix: str) -> None:
    one, other, path = snapshot_of(GRU), snapshot_of(RNNSpec(2, 3, nonlinearity="relu")), tmp_path / f"a{suffix}"
    write(path, prefixed("encoder.", one) | prefixed("decoder.rnn.", other))
    with pytest.raises(ArgumentError, match=r"prefix: given none.*'decoder\.rnn\.'") as caught:
        files.load(path)
    assert str(path) in str(caught.value)
    assert "'encoder.'" in str(caught.value)
    assert files.load(path, prefix="encoder.") == files.load(path, prefix="encoder") == one
    assert files.load(path, prefix="decoder.rnn", spec=other.spec) == other
    with pytest.raises(ArgumentError, match="prefix: given 'absent', expected one of"):
        files.load(path, prefix="absent")
    with pytest.raises(SpecError, match=rf"^{re.escape(str(path))}: .*tanh or relu does not follow"):
        files.load(path, prefix="decoder.rnn")
    with pytest.raises(ShapeError):
        files.load(path, prefix="encoder", spec=LSTMSpec(2, 3))
    found = files.contents(path).layers
    assert found["encoder."].spec == GRU
    assert "give as spec RNNSpec(2, 3) or" in str(found["decoder.rnn."].spec)
    assert found["decoder.rnn."].num_weights == 0


@each_suffix
def test_only_the_arrays_of_the_layer_are_read(tmp_path: Path, suffix: str) -> None:
    snapshot, path = snapshot_of(GRU), tmp_path / f"a{suffix}"
    write(path, prefixed("rnn.", snapshot) | {"embedding": np.ones((4_000, 1_000), "f4")})
    with limited_memory():
        assert files.load(path) == snapshot


@each_suffix
@pytest.mark.parametrize(
    "arrays",
    [
        {"a": np.ones(3)},
        {},
        {"weight_ih_l0": np.ones((9, 2)), "bias_ih_l0": np.ones(9)},
        {"weight_ih_l0": np.ones((9, 2)), "weight_hh_l0": np.ones((10, 3))},
        {"weight_ih_l0": np.ones((9, 2)), "weight_hh_l0": np.ones(9)},
        {"weight_ih_l0": np.ones((9, 2)), "weight_hh_l0": np.ones((9, 0))},
        {"weight_ih_l0": np.ones((9, 2)), "weight_hh_l0": np.ones((9, 3)), "weight_ih_l999999999": np.ones((9, 2))},
        {"weight_ih_l0": np.ones((9, 2), int), "weight_hh_l0": np.ones((9, 3), int)},
    ],
    ids=lambda arrays: ", ".join(f"{name} {array.dtype}{array.shape}" for name, array in arrays.items()),
)
def test_a_file_without_a_layer_raises_the_error_of_a_state_dict(
    tmp_path: Path, suffix: str, arrays: dict[str, NDArray[Any]]
) -> None:
    path = tmp_path / f"a{suffix}"
    write(path, arrays)
    with pytest.raises(UnirnnError) as expected:
        unirnn.snapshot(arrays)
    with pytest.raises(UnirnnError) as caught:
        files.load(path)
    assert type(caught.value) is type(expected.value)
    assert str(caught.value).startswith(f"{path}: weights")
    assert not any(isinstance(layer.spec, RecurrentSpec) for layer in files.contents(path).layers.values())


def test_bfloat16_is_read_as_float32_bit_for_bit(tmp_path: Path) -> None:
    snapshot, path = snapshot_of(GRUSpec(2, 3, bias=False)), tmp_path / "a.safetensors"
    halves = {name: (array.view(np.uint32) >> 16).astype("<u2") for name, array in snapshot.weights.items()}
    halves["weight_hh_l0"][0] = 0x7F80, 0xFF80, 0x0001  # infinities, and the least subnormal
    header, data = {"other": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]}}, b"\0\0"
    for name, array in halves.items():
        end = len(data) + array.nbytes
        header[name] = {"dtype": "BF16", "shape": list(array.shape), "data_offsets": [len(data), end]}
        data += array.tobytes()
    write_safetensors(path, header, data)
    found = files.load(path)
    assert found.dtype == "float32"
    for name, array in halves.items():
        np.testing.assert_array_equal(found.weights[name].view(np.uint32), array.astype(np.uint32) << 16)
    layer = files.contents(path).layers[""]
    assert (layer.weights["weight_ih_l0"], layer.num_bytes) == (((9, 2), "float32"), 4 * snapshot.spec.num_weights)


# ---- .npz ------------------------------------------------------------------------------------------------


def npy(shape: str, data: bytes, descr: str = "'<f4'", fortran: str = "False") -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': {fortran}, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + data


def write_npz(path: Path, members: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)


FINE_NPZ = [("weight_ih_l0.npy", npy("(9, 2)", bytes(72))), ("weight_hh_l0.npy", npy("(9, 3)", bytes(108)))]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", ["<f4", ">f4", ">f8", "<f2"])
def test_an_npz_of_any_byte_order_and_memory_layout(tmp_path: Path, save: Any, order: Any, dtype: str) -> None:
    snapshot, path = snapshot_of(GRU, np.dtype(dtype).name), tmp_path / "a.npz"
    save(path, **{name: np.array(array, dtype, order=order) for name, array in snapshot.weights.items()})
    assert files.load(path) == snapshot


def test_npz_headers_of_other_writers(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, FINE_NPZ)
    expected = files.load(path)
    second = b"\x93NUMPY\x02\x00" + npy("(9, 2)", b"")[8:10] + b"\0\0" + npy("(9, 2)", bytes(72))[10:]
    write_npz(path, [("weight_ih_l0.npy", second), FINE_NPZ[1], ("read.me", b"?")])
    assert files.load(path) == expected


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (npy("(9, 2)", bytes(71)), "claims shape (9, 2) of float32, but has 71 bytes"),
        (npy("(9, 2)", bytes(73)), "but has 73 bytes"),
        (npy(f"({10**12}, 2)", bytes(72)), "claims shape (1000000000000, 2)"),
        (npy(f"({2**62}, 4)", b""), "claims shape"),
        (npy("(" + "9" * 5_000 + ", 2)", bytes(72)), "truncated, altered or"),
        (npy("(-9, -2)", bytes(72)), "has no header"),
        (npy("(9, 2)", bytes(72), "'<f4'", "maybe"), "has no header"),
        (npy("(" * 9_000, bytes(72)), "has no header"),
        (b"\x93NUMPY\x01\x00\xff\xff{}", "has no header"),
        (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}", "has no header"),
        (b"\x93NUMPY\x09\x00\x02\x00{}", "has no header"),
        (b"\x93NUM", "has no header"),
        (b"", "has no header"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_an_altered_member_of_an_npz_is_refused(tmp_path: Path, member: bytes, message: str) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, [("weight_ih_l0.npy", member), FINE_NPZ[1]])
    assert_refused(path, message)


@pytest.mark.parametrize(
    ("member", "kind", "message"),
    [
        (npy("(0, 2)", b""), ShapeError, "weights['weight_ih_l0']: given shape (0, 2), expected (9, 2)"),
        (npy("(9, 2)", bytes(72), "'|O'"), DTypeError, "weights['weight_ih_l0']: given dtype '|O', expected float16, "),
        (npy("(9, 2)", bytes(72), "'<i4'"), DTypeError, "given dtype '<i4'"),
        (npy("(9, 2)", bytes(72), "[('a', '<f4')]"), DTypeError, "given dtype [('a', '<f4')]"),
        (npy("(9, 2)", bytes(72), "__import__('os').abort()"), DTypeError, "given dtype __import__"),
    ],
    ids=lambda value: repr(value)[:60],
)
def test_a_member_of_an_npz_that_is_not_a_weight(
    tmp_path: Path, member: bytes, kind: type[UnirnnError], message: str
) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, [("weight_ih_l0.npy", member), FINE_NPZ[1]])
    assert_refused(path, message, kind)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # raised by zipfile while the test writes the file
def test_a_name_that_occurs_twice_in_an_npz_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, [*FINE_NPZ, FINE_NPZ[0]])
    assert_refused(path, "'weight_ih_l0' occurs twice")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_that_numpy_does_not_use_is_refused(tmp_path: Path, method: int) -> None:
    path = tmp_path / "a.npz"
    write_npz(path, FINE_NPZ, method)
    assert_refused(path, "is compressed in a way that NumPy does not write")


def test_an_npz_whose_directory_hides_a_member_is_refused(tmp_path: Path) -> None:
    """The comment of one entry claims a length that covers the next entries, which are the biases."""
    path, data = tmp_path / "a.npz", bytearray(UNDAMAGED["stored.npz"])
    second = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    data[second + 33] = 1
    path.write_bytes(data)
    assert_refused(path, "its directory is altered: it does not list as many members as it says")


def test_an_npz_that_claims_more_bytes_than_it_has_is_refused(tmp_path: Path) -> None:
    """The sizes in the directory agree with the header of the array, but not with the file."""
    path = tmp_path / "a.npz"
    count = (1 << 31) - 256
    member = npy(f"(9, {count // 36})", b"")
    size = len(member) + 36 * (count // 36)
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        write_npz(path, [("weight_ih_l0.npy", member), FINE_NPZ[1]], method)
        data = bytearray(path.read_bytes())
        entry = data.index(b"PK\x01\x02")
        data[entry + 24 : entry + 28] = size.to_bytes(4, "little")
        path.write_bytes(data)
        assert_refused(path, "bytes, more than")
        data[entry + 20 : entry + 24] = size.to_bytes(4, "little")
        path.write_bytes(data)
        assert_refused(path, "bytes, more than the file has")


def test_an_npz_that_expands_a_thousandfold_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, weight_ih_l0=np.zeros((9, 1 << 21), "f4"), weight_hh_l0=np.zeros((9, 3), "f4"))
    assert path.stat().st_size < 100_000
    assert_refused(path, "more than 100 times the file's")
    np.savez_compressed(path, weight_ih_l0=np.zeros((9, 1 << 20), "f4"), weight_hh_l0=np.zeros((9, 3), "f4"))
    assert files.load(path).spec == GRUSpec(1 << 20, 3, bias=False)


class CreatesFile:
    """Unpickled, it creates a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def test_a_pickle_in_an_npz_is_never_loaded(tmp_path: Path) -> None:
    path, marker = tmp_path / "a.npz", tmp_path / "marker"
    snapshot = snapshot_of(GRU)
    bad = np.array([[CreatesFile(marker)] * 2] * 9, dtype=object)
    np.savez(path, **prefixed("rnn.", snapshot), vocabulary=bad)
    assert files.load(path) == snapshot  # arrays outside the layer are not read
    np.savez(path, weight_ih_l0=bad, weight_hh_l0=snapshot.weights["weight_hh_l0"])
    assert_refused(path, "given dtype '|O'", DTypeError)
    assert not marker.exists()


# ---- any damage ------------------------------------------------------------------------------------------


def _undamaged() -> dict[str, bytes]:
    snapshot = snapshot_of(GRU)
    found: dict[str, bytes] = {}
    for suffix in SUFFIXES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(writing, "_write", lambda path, data: found.__setitem__(path, data))
            files.save(snapshot, f"ours{suffix}")
    found["theirs.safetensors"] = safetensors.numpy.save(prefixed("rnn.", snapshot))
    for name, save in (("stored.npz", np.savez), ("compressed.npz", np.savez_compressed)):
        buffer = io.BytesIO()
        save(buffer, **prefixed("rnn.", snapshot))
        found[name] = buffer.getvalue()
    return found | {path.name: path.read_bytes() for path in TORCH}


UNDAMAGED = _undamaged()
each_file = pytest.mark.parametrize(
    "name", [name for name in UNDAMAGED if "module" not in name and "script" not in name]
)
often = settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def load_or_refuse(folder: Path, name: str, data: bytes) -> Snapshot | None:
    path = folder / name
    path.write_bytes(data)
    try:
        with limited_memory(8 << 20):
            return files.load(path)
    except UnirnnError as error:
        caught = error
    # In a state dict, altered names and shapes may leave the file valid but not the layer.
    assert isinstance(caught, FileError) or not name.startswith("ours")
    assert str(caught).startswith(str(path))
    return None


@each_file
def test_an_undamaged_file_is_read(tmp_path: Path, name: str) -> None:
    assert load_or_refuse(tmp_path, name, UNDAMAGED[name]) == snapshot_of(GRU)


@each_file
@often
@given(data=st.data())
def test_a_truncated_file_is_refused(tmp_path: Path, name: str, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(UNDAMAGED[name]) - 1))
    found = load_or_refuse(tmp_path, name, UNDAMAGED[name][:length])
    # To protobuf, a message without its last fields is complete, and so may the snapshot be.
    assert found is None or (name.endswith(".onnx") and found == snapshot_of(GRU))


@each_file
@often
@given(data=st.data())
def test_a_flipped_bit_is_refused_or_is_another_snapshot(tmp_path: Path, name: str, data: st.DataObject) -> None:
    altered = bytearray(UNDAMAGED[name])
    altered[data.draw(st.integers(0, len(altered) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    found = load_or_refuse(tmp_path, name, bytes(altered))
    # A zip has checksums, so a changed number is noticed.
    assert found is None or not UNDAMAGED[name].startswith(b"PK") or found == snapshot_of(GRU)


@each_file
@often
@given(data=st.data())
def test_a_replaced_part_is_refused_or_is_another_snapshot(tmp_path: Path, name: str, data: st.DataObject) -> None:
    before = UNDAMAGED[name]
    at, length = data.draw(st.integers(0, len(before))), data.draw(st.integers(0, 16))
    altered = before[:at] + data.draw(st.binary(max_size=16)) + before[at + length :]
    assume(altered != before)
    load_or_refuse(tmp_path, name, altered)


# ---- which format a file has -----------------------------------------------------------------------------

FORMATS = {"safetensors": "theirs.safetensors", "npz": "stored.npz"} | (
    {"onnx": "ours.onnx"} if ".onnx" in SUFFIXES else {}
)


@pytest.mark.parametrize("name", ["a", "a.bin", "a.pth.tar", "a.npz", "a.onnx", "a.pt", "a.h5"])
@pytest.mark.parametrize("undamaged", [*FORMATS.values(), *(path.name for path in TORCH)])
def test_the_content_of_a_file_decides_its_format(tmp_path: Path, undamaged: str, name: str) -> None:
    (tmp_path / name).write_bytes(UNDAMAGED[undamaged])
    assert files.load(tmp_path / name) == snapshot_of(GRU)


def test_a_format_may_be_given(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(UNDAMAGED["stored.npz"])
    assert files.load(path, format="npz") == snapshot_of(GRU)
    assert files.contents(path, format="npz").format == "npz"
    with pytest.raises(FileError, match=r"/a: truncated, altered or of another format"):
        files.load(path, format="safetensors")
    with pytest.raises(ArgumentError, match=r"^format: given '\.npz', expected one of 'safetensors', 'npz', 'torch', "):
        files.load(path, format=".npz")


def zipped(**members: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n", "Git LFS in place of the file; fetch"),
        (b"\n<!DOCTYPE html>\n<html>", "a web page in place of the file"),
        (b"<HTML><head>", "a web page in place of the file"),
        (b'<?xml version="1.0"?><Error>', "a web page in place of the file"),
        (gzip.compress(b"weights", mtime=0), "compressed by gzip; decompress it first"),
        (lzma.compress(b"weights"), "compressed by xz; decompress it first"),
        (bz2.compress(b"weights"), "compressed by bzip2; decompress it first"),
        (b"weights.bin".ljust(257, b"\0") + b"ustar\x0000", "a tar archive; unpack it, by: tar -xf"),
        (zlib.compress(b"weights" * 9, 3), "compressed by zlib, as joblib.dump does; load it by joblib.load"),
        (b"lmgg\x0a\0\0\0", "a GGML file"),
        (b"lCRF\xed\x01\0\0", "a model of CRFsuite, which has no recurrent layer"),
        (b"#Parameter# /rnn/vanilla-lstm-builder/_0 {400,64} 5 ZERO_GRAD\n", "the parameters of a DyNet model"),
        (b"\x08\x04\x12\x9a\x02\x0a\x1b\x0a\x05image", "a Core ML model"),
        (b"\x00\x00\x06\x08\x01\x1a\x02\x08\x01\x00", "the index of a TensorFlow checkpoint"),
        (b"\x93NUMPY\x01\x00v\x00{'descr': '<f4'", "a single array of NumPy"),
        (b"\x1c\0\0\0TFL3\x14\0", "a TensorFlow Lite model"),
        (b"\x08\x01\x12\xa0\x8d\x09\x0a\xf0\x2f\x12", "the graph of a TensorFlow SavedModel, without weights"),
        (b"\x0a\x2a\x0a\x05input\x12\x0bPlaceholder", "a frozen graph of TensorFlow"),
        (b"\x0a\x031.1\x12\x09MindSpore", "a MindIR graph of MindSpore"),
        (
            b"accuracy,loss\n0.5,1.0\n",
            "it begins with 'accuracy,loss\\n0.5,1.0\\n'; if it is one of them, give format=",
        ),
        (bytes(range(200, 255)), "it begins with b'\\xc8"),
        (
            zipped(**{"weights.pth": b""}),
            "it is a zip archive, but none of PyTorch, NumPy or Keras; unpack it and open",
        ),
        (zipped(**{"word/document.xml": b""}), "a zip archive, but none of PyTorch, NumPy or Keras of 'word/document"),
        (zipped(**{"a/archive_format": b"pt2"}), "a program of torch.export; load it by torch.export.load"),
        (zipped(**{"a/.data/extern_modules": b""}), "a package of torch.package; load its module by torch.package"),
        (pickle.dumps({"a": [1, "b"]}), "a pickle, and no checkpoint: there is no tensor in it"),
        (pickle.dumps(Fraction(1, 2)), "a pickle of an object fractions.Fraction, and no checkpoint"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",  # the bytes of an archive depend on the time
)
def test_the_error_names_what_a_file_is_instead_of_a_model(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(data)
    assert_refused(path, message)


def test_a_part_of_a_tensorflow_checkpoint_is_recognised_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "variables.data-00000-of-00001"
    path.write_bytes(np.full(9, 0.1, "<f4").tobytes())
    assert_refused(path, "a part of a TensorFlow checkpoint, without names")


# ---- paths -----------------------------------------------------------------------------------------------


def special_file(folder: Path, kind: str) -> Path:
    path = folder / "a.npz"
    if kind == "a named pipe":
        os.mkfifo(path)
    elif kind == "a socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))
    else:
        path.symlink_to("/dev/zero")
    return path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a device"])
def test_a_special_file_is_neither_read_nor_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)  # the path of a socket has at most about a hundred characters
    path = special_file(tmp_path, kind)
    link = tmp_path / "b.npz"
    link.symlink_to(path)
    for name in (path, link):
        for call in (files.load, files.contents, snapshot_of(GRU).save):
            with pytest.raises(FileError, match=f"{name}: {kind}, expected a regular file"):
                call(name)
    assert not path.is_file()
    assert sorted(os.listdir(tmp_path)) == ["a.npz", "b.npz"]


@pytest.mark.parametrize("path", ["a\0.npz", b"a\0.npz", "\ud800.npz"], ids=repr)
def test_paths_that_no_file_system_allows_are_refused(path: Any) -> None:
    for call in (files.load, files.contents, snapshot_of(GRU).save):
        with pytest.raises(ArgumentError, match=r"path: given .*\.npz', which has"):
            call(path)


# ---- PyTorch's files, without PyTorch --------------------------------------------------------------------

READING = """
import sys, unirnn
for path in sys.argv[1:]:
    try:
        print(unirnn.load(path, batch_first=False))
    except unirnn.errors.UnirnnError as error:
        print(error)
print(*{"torch", "unirnn_torch", "antigravity", "this"} & sys.modules.keys())
"""


def torch_zip(pickled: bytes, **storages: bytes) -> bytes:
    return zipped(**{"a/data.pkl": pickled}, **{f"a/data/{key}": data for key, data in storages.items()})


def test_nothing_that_a_file_of_torch_names_is_imported(tmp_path: Path) -> None:
    hostile = tmp_path / "hostile.pt"
    hostile.write_bytes(torch_zip(b"\x80\x02cantigravity\ngeohash\n(cthis\ns\ntR."))
    done = subprocess.run(
        [sys.executable, "-c", READING, *map(str, [*TORCH, hostile])], capture_output=True, text=True, check=True
    )
    *found, error, imported = done.stdout.splitlines()
    assert found == [repr(snapshot_of(GRU))] * len(TORCH)
    assert "given no recurrent layer" in error
    assert imported == ""


values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.lists(inner).map(tuple) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


def restored(value: Any) -> Any:
    """The result of `read_pickle`, converted to the pickled value."""
    if isinstance(value, PickledDict):
        return {key: restored(item) for key, item in value.pairs}
    if isinstance(value, Object):  # before protocol 3, bytes are pickled as a call
        assert value.function in (Global("_codecs", "encode"), Global("__builtin__", "bytes"))
        return value.arguments[0].encode("latin-1") if value.arguments else b""
    return type(value)(map(restored, value)) if isinstance(value, (list, tuple)) else value


@settings(max_examples=40)
@given(value=values, protocol=st.integers(0, pickle.HIGHEST_PROTOCOL))
def test_a_pickle_is_read_as_the_standard_library_reads_it(value: Any, protocol: int) -> None:
    file = io.BytesIO(pickle.dumps(value, protocol) + b"more")
    assert restored(read_pickle(file).value) == value
    assert file.read() == b"more"


@given(data=st.binary(max_size=200))
def test_any_bytes_are_a_pickle_or_an_error(data: bytes) -> None:
    with limited_memory(1 << 20):
        caught: BaseException | None = None
        try:
            read_pickle(io.BytesIO(data))
        except Exception as error:
            caught = error
    assert not isinstance(caught, (RecursionError, MemoryError))


def text_of(count: int) -> bytes:
    return b"X" + count.to_bytes(4, "little") + b"a" * count


@pytest.mark.parametrize(
    "pickled",
    [
        # one long string, passed to a function a thousand times or used in a thousand names
        b"\x80\x02]c_codecs\nencode\nq\x00" + text_of(100_000) + b"q\x01\x85Ra" + b"h\x00h\x01\x85Ra" * 1_000 + b".",
        b"\x80\x04" + text_of(100_000) + b"q\x01" + b"h\x01h\x01\x93" * 1_000 + b".",
        b"\x80\x02]q\x00(" + b"N" * 100_000 + b"tq\x01" + b"cf\ng\nh\x01R" * 1_000 + b".",
        # long keys, or a dict that holds the previous one twice, at many levels
        b"\x80\x02" + text_of(100_000) + b"q\x010" + b"}h\x01" * 90 + b"}" + b"s" * 90 + b".",
        b"\x80\x02}q\x000" + b"".join(b"}q%c(K\x01h%cK\x02h%cu0" % (n + 1, n, n) for n in range(60)) + b"h\x3c.",
        b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".",
        b"\x80\x02" + b"(" * 20_000 + b"t" * 19_999 + b".",
        # claimed sizes without the bytes
        b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b".",
        b"\x80\x05\x8e" + (1 << 40).to_bytes(8, "little") + b".",
        b"\x80\x04\x95" + (1 << 40).to_bytes(8, "little") + b"N.",
        b"\x80\x02Nr\xff\xff\xff\xff.",
        b"\x80\x02cbuiltins\nbytearray\nJ\0\0\0\x40\x85R.",
    ],
    ids=lambda pickled: repr(pickled[:12]),
)
@pytest.mark.parametrize("kind", ["zip", "pickle"])
def test_a_pickle_takes_no_more_memory_than_it_has_operations(tmp_path: Path, pickled: bytes, kind: str) -> None:
    path = tmp_path / "a.pt"
    # Bytes after the end of a pickle are ignored; without a word like this one, a pickle need not be read.
    path.write_bytes(torch_zip(pickled) if kind == "zip" else pickled + b"ndarray")
    with limited_memory(64 << 20), suppress(FileError):
        assert files.contents(path).layers == {}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("dtype", ["<f4", ">f8", "<f2"])
def test_numpy_arrays_in_a_pickle_are_read(tmp_path: Path, dtype: str, protocol: int) -> None:
    path, expected = tmp_path / "a.pkl", snapshot_of(GRU)
    arrays = {f"rnn.{name}": np.asfortranarray(array.astype(dtype)) for name, array in expected.weights.items()}
    others = {"count": np.array(3), "words": np.array(["a"]), "objects": np.array([None])}
    path.write_bytes(pickle.dumps({"model": {**arrays, **others}, "vocabulary": ["a", "b"]}, protocol))
    assert files.load(path, format="torch") == expected.cast(np.dtype(dtype).name)
    found = files.contents(path, format="torch")
    assert found.arrays.keys() == {f"model.{name}" for name in [*arrays, "count"]}


def test_a_pickled_array_that_claims_more_data_than_it_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pkl"
    pickled = pickle.dumps({"rnn.weight_ih_l0": np.ones((3, 1), "f4")}, 4)
    path.write_bytes(pickled.replace(b"K\x03K\x01\x86", b"K\x7fK\x01\x86"))
    assert_refused(path, "an array of shape (127, 1) and float32 has 12 bytes")


# ---- models ----------------------------------------------------------------------------------------------

MODEL = Sequential(
    embedding=EmbeddingSpec(9, 4),
    block=Residual(Sequential(LinearSpec(4, 4), ActivationSpec("relu"))),
    encoder=GRUSpec(4, 4, batch_first=True),
    norm=BatchNormSpec(4),
    head=LinearSpec(4, 9, tied_to="embedding"),
)


@each_suffix
@settings(often, max_examples=20)
@given(model=models())
def test_a_saved_model_is_loaded(tmp_path: Path, suffix: str, model: Sequential) -> None:
    snapshot, path = unirnn.snapshot(model.build("numpy", seed=0)), tmp_path / f"a{suffix}"
    snapshot.save(path)
    assert files.load(path) == files.load(path, spec=model) == snapshot
    found = files.contents(path)
    assert (found.version, list(found.layers), found.layers[""].spec) == (files.FORMAT, [""], model)


@each_suffix
def test_a_part_of_a_saved_model(tmp_path: Path, suffix: str) -> None:
    snapshot, path = unirnn.snapshot(MODEL.build("numpy", seed=0)), tmp_path / f"a{suffix}"
    snapshot.save(path)
    for prefix in ("encoder", "encoder."):
        assert files.load(path, prefix=prefix).weights["weight_hh_l0"].tobytes() == (
            snapshot.weights["encoder.weight_hh_l0"].tobytes()
        )
    assert files.load(path, prefix="block.layer.0").spec == LinearSpec(4, 4)
    assert files.load(path, prefix="encoder", spec=GRUSpec(4, 4)).spec == GRUSpec(4, 4)
    with pytest.raises(
        ArgumentError, match=r"prefix: given 'decoder', but the file is a snapshot, of the layers 'embed"
    ):
        files.load(path, prefix="decoder")
    with pytest.raises(SpecError, match=r"spec: given GRUSpec\(2, 3\), but the file says Sequential\("):
        files.load(path, spec=GRU)
    # With another spec, the file is read like any state dict.
    encoder = Sequential(rnn=GRUSpec(4, 4, batch_first=True))
    without: dict[str, str | None] = dict.fromkeys(("embedding.", "block.", "norm.", "head."))
    assert files.load(path, spec=encoder, rename={"encoder.": "rnn.", **without}).spec == encoder
    with pytest.raises(ArgumentError, match=r"weights: left over .*embedding"):
        files.load(path, spec=encoder, rename={"encoder.": "rnn."})


@each_suffix
def test_the_model_of_a_state_dict(tmp_path: Path, suffix: str) -> None:
    snapshot, path = unirnn.snapshot(MODEL.build("numpy", seed=0)), tmp_path / f"a{suffix}"
    arrays = {f"net.{name}".replace("encoder", "gru"): array.copy() for name, array in snapshot.weights.items()}
    more = {"net.norm.num_batches_tracked": np.array(3), "net.head.weight": arrays["net.embedding.weight"].copy()}
    write(path, {**arrays, **more})
    assert files.load(path, spec=MODEL, prefix="net", rename={"gru.": "encoder."}) == snapshot
    with pytest.raises(ArgumentError, match=r"perhaps rename=\{'gru\.': 'encoder\.'\}") as caught:
        files.load(path, spec=MODEL, prefix="net")
    assert str(caught.value).startswith(f"{path}: weights: missing encoder.weight_ih_l0, ")
    # Arrays that are left out are not read.
    write(path, {**arrays, **more, "other": np.ones((2_000, 1_000), "f4")})
    with limited_memory():
        files.load(path, spec=MODEL, rename={"net.gru.": "encoder.", "net.": "", "other": None})


class Tagger(Model):
    def __init__(self) -> None:
        self.encoder = GRUSpec(3, 4)

    def forward(self, xp: Any, x: Any) -> Any:
        return self.encoder(x)[0]


@each_suffix
def test_no_file_holds_the_code_of_a_model(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    model = Tagger()
    snapshot = Snapshot(model, weights.draw(model, 0))
    snapshot.save(path)
    assert files.load(path, spec=model) == snapshot
    assert files.contents(path).version is None


def test_numpy_itself_reads_an_npz(tmp_path: Path) -> None:
    snapshot, path = unirnn.snapshot(MODEL.build("numpy", seed=0)), tmp_path / "a.npz"
    snapshot.save(path)
    with np.load(path, allow_pickle=False) as file:
        assert list(file) == [*snapshot.weights, "unirnn"]
        assert file["unirnn"].item().decode() == spec_to_metadata(MODEL)["unirnn"]
        for name, array in snapshot.weights.items():
            np.testing.assert_array_equal(file[name], array)


def test_an_array_of_another_program_may_be_called_unirnn(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    for value in (np.ones(3), np.array("text"), np.array([b"{}"])):
        np.savez(path, unirnn=value, **prefixed("rnn.", snapshot_of(GRU)))
        assert files.load(path) == snapshot_of(GRU)


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ("", "expected the JSON of a format and a spec"),
        ("{", "expected the JSON of a format and a spec"),
        (FINE.replace("2", "3", 1), "given format 3, newer than 2"),
        (" " * 300_000 + FINE, "expected at most 200000 characters"),
        (spec_to_metadata(LSTMSpec(2, 3))["unirnn"], "doesn't fit the arrays"),
    ],
    ids=lambda value: value[:20],
)
def test_altered_metadata_of_an_npz_is_refused(tmp_path: Path, metadata: str, message: str) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, unirnn=np.bytes_(metadata), **dict(snapshot_of(GRU).weights))
    assert_refused(path, message)


def nested(depth: int) -> dict[str, Any]:
    spec = LinearSpec(3, 4).to_dict()
    for _ in range(depth):
        spec = {"kind": "Sequential", "layers": {"0": spec}}
    return spec


DROPOUT = {"kind": "Dropout", "p": 0.5, "locked": False}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (nested(40), "expected at most 64 brackets within each other"),
        (nested(200), "expected at most 64 brackets within each other"),
        (nested(31), "doesn't fit the arrays"),
        ({"kind": "Sequential", "layers": {f"a{n}": DROPOUT for n in range(5_000)}}, "expected at most 200000"),
        ({"kind": "Sequential", "layers": {f"a{n}": DROPOUT for n in range(2_000)}}, "doesn't fit the arrays"),
        ({"kind": "Sequential", "layers": {"a": {**GRU.to_dict(), "num_layers": 10**12}}}, "but the file has 4 arrays"),
        (
            {"kind": "Sequential", "layers": {"a": {"kind": "GRU", "hidden_size": 3, "has_bias": True}}},
            "unknown has_bias",
        ),
        ({"kind": "Sequential", "layers": {"build": GRU.to_dict()}}, "given the name 'build'"),
        ({"kind": "Sequential", "layers": {"a": 3}}, "given 3, expected a mapping"),
        ({"kind": "Sequential", "layers": [1]}, "expected layers by their names"),
        ({"kind": "Residual", "layers": {}}, "Residual: given layers without names"),
        ({"kind": "Sequential", "layers": {"a": {"kind": "Linear", "out_features": 3}}}, "in_features was left out"),
        ({"kind": "Model", "name": "Tagger", "layers": {}}, "is code, which no dict holds"),
        ({"kind": "Embedding", "num_embeddings": 10**15, "embedding_dim": 10**15}, "doesn't fit the arrays"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # the repr of the deepest one recurses too far
)
def test_hostile_definitions_are_refused(tmp_path: Path, spec: dict[str, Any], message: str) -> None:
    header, data = header_of(snapshot_of(GRU))
    header["__metadata__"] = {"unirnn": json.dumps({"format": 2, "spec": spec})}
    path = tmp_path / "a.safetensors"
    write_safetensors(path, header, data)
    with pytest.raises(UnirnnError) as caught, limited_memory(16 << 20):
        files.load(path)
    assert type(caught.value) is FileError
    assert message in str(caught.value)


def test_a_file_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    long = Sequential(*[DropoutSpec()] * 5_000)
    deep: Spec = DropoutSpec()
    for _ in range(40):
        deep = Residual(deep)
    for model in (long, deep):
        with pytest.raises(LimitError, match="spec: its JSON is too large for a file: expected at most"):
            Snapshot(model, {}).save(tmp_path / "a.npz")
    assert os.listdir(tmp_path) == []
