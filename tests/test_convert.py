"""The commands on files: ``unirnn show`` and ``unirnn convert``."""

import json
import shlex
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

import unirnn
from unirnn import (
    BatchNormSpec,
    GRUSpec,
    LinearSpec,
    LSTMSpec,
    PoolSpec,
    RecurrentSpec,
    RNNSpec,
    Sequential,
    Snapshot,
    files,
)

if TYPE_CHECKING:
    from typer.testing import Result

FORMAT_OF = {".safetensors": "safetensors", ".npz": "npz", ".onnx": "onnx", ".pt": "torch"}
SUFFIXES = [suffix for suffix in FORMAT_OF if suffix[1:] in ("safetensors", "npz") or find_spec(FORMAT_OF[suffix])]
GRU = GRUSpec(2, 3, batch_first=True)

Run = Callable[..., "Result"]


def snapshot_of(spec: RecurrentSpec) -> Snapshot:
    return unirnn.snapshot(spec.build("numpy", seed=0))


def write_several(path: Path) -> None:
    arrays: dict[str, Any] = {"head.weight": np.ones((2, 3))}
    for prefix, spec in {"encoder.": LSTMSpec(5, 3), "decoder.rnn.": GRUSpec(2, 3), "old.": RNNSpec(2, 3)}.items():
        arrays |= {prefix + name: array for name, array in snapshot_of(spec).weights.items()}
    np.savez(path, **arrays)


# ---- unirnn show ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_show_a_snapshot(run: Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    snapshot_of(GRU).save(path)
    lines = [line.rstrip() for line in run("show", str(path)).stdout.splitlines()]
    assert lines[:4] == [
        f"{path}: unirnn snapshot, {FORMAT_OF[suffix]}, format 2",
        "GRUSpec(2, 3, batch_first=True)",
        "63 parameters, 252 bytes",
        "",
    ]
    assert [line.split(maxsplit=1) for line in lines[6:10]] == [
        ["weight_ih_l0", "(9, 2)   float32"],
        ["weight_hh_l0", "(9, 3)   float32"],
        ["bias_ih_l0", "(9,)     float32"],
        ["bias_hh_l0", "(9,)     float32"],
    ]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_show_a_snapshot_as_json(run: Run, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    snapshot_of(GRU).save(path)
    found = json.loads(run("show", str(path), "--json").stdout)
    (layer,) = found.pop("layers")
    assert found == {"file": str(path), "format": FORMAT_OF[suffix], "version": 2}
    assert RecurrentSpec.from_dict(layer["spec"]) == GRU
    assert (layer["prefix"], layer["error"], layer["parameters"], layer["bytes"]) == ("", None, 63, 252)
    assert layer["weights"][0] == {"name": "weight_ih_l0", "shape": [9, 2], "dtype": "float32"}


def test_show_the_layers_of_another_checkpoint(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    write_several(path)
    output = run("show", str(path)).stdout
    lines = output.splitlines()
    assert lines[0] == f"{path}: npz, no unirnn snapshot"
    assert [line.split() for line in lines[4:7]] == [
        ["'encoder.'", "LSTMSpec(5,", "3)", "120", "480", "float32"],
        ["'decoder.rnn.'", "GRUSpec(2,", "3)", "63", "252", "float32"],
        ["'old.'", "-", "-", "-", "-"],
    ]
    assert lines[8].startswith("'old.': ")
    assert "tanh or relu" in lines[8]
    assert "give as spec RNNSpec(2, 3) or RNNSpec(2, 3, nonlinearity='relu')" in lines[8]
    assert lines[9].startswith("batch_first is not said by such a file; give convert --batch-first or --time-major")
    found = json.loads(run("show", str(path), "--json").stdout)
    assert (found["format"], found["version"]) == ("npz", None)
    assert [(layer["prefix"], layer["parameters"], layer["assumed"]) for layer in found["layers"]] == [
        ("encoder.", 120, ["batch_first"]),
        ("decoder.rnn.", 63, ["batch_first"]),
        ("old.", None, []),
    ]
    assert (found["layers"][2]["spec"], found["layers"][2]["weights"]) == (None, [])
    assert "tanh or relu" in found["layers"][2]["error"]


def test_show_a_file_without_a_layer(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, a=np.ones(3))
    assert run("show", str(path)).stdout.splitlines() == [
        f"{path}: npz, no unirnn snapshot: no recurrent layer in it",
        "arrays: a (3,); a layer's would have names such as rnn.weight_ih_l0",
    ]
    assert json.loads(run("show", str(path), "--json").stdout)["layers"] == []


@pytest.mark.filterwarnings("ignore::unirnn.errors.AssumptionWarning")
@pytest.mark.parametrize(
    ("names", "prefix", "spec"),
    [
        (["encoder.", "decoder.rnn.", "old."], "encoder.", LSTMSpec(5, 3)),
        (["old."], None, RNNSpec(2, 3)),
        (["old.", "decoder.rnn."], "decoder.rnn.", GRUSpec(2, 3)),
    ],
)
def test_the_command_that_show_suggests_works(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], prefix: str | None, spec: RecurrentSpec
) -> None:
    monkeypatch.chdir(tmp_path)
    write_several(tmp_path / "all.npz")
    with np.load("all.npz") as arrays:
        np.savez("a b.npz", **{name: arrays[name] for name in arrays if name.startswith((*names, "head"))})
    *_, others, convert, call = run("show", "a b.npz").stdout.splitlines()
    assert others == "other arrays: head.weight (2, 3)"
    start, _, command = convert.partition("unirnn ")
    assert start == "to convert it: "
    run(*shlex.split(command))
    assert ("--prefix" in command) == (prefix is not None)
    assert files.load("out.safetensors") == snapshot_of(spec)
    start, _, code = call.partition("unirnn.load")
    assert start.strip() == "in Python:"
    assert eval(f"unirnn.load{code}") == snapshot_of(spec)


def test_a_format_may_be_given(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    snapshot_of(GRU).save(tmp_path / "a.npz")
    (tmp_path / "a.npz").rename(path)
    assert "npz, format 2" in run("show", str(path), "--format", "npz").stdout
    run("convert", str(path), str(tmp_path / "b.safetensors"), "--format", "npz")
    assert files.load(tmp_path / "b.safetensors") == snapshot_of(GRU)


@pytest.mark.parametrize("command", [["show"], ["convert", "--prefix", "a", "out.safetensors"]])
def test_files_that_cannot_be_read(run: Run, tmp_path: Path, command: list[str]) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    (tmp_path / "page.pt").write_bytes(b"<!doctype html>")
    for name, message in {
        "absent.npz": "[Errno 2] No such file or directory",
        "bad.safetensors": f"{tmp_path / 'bad.safetensors'}: truncated, altered",
        "page.pt": f"{tmp_path / 'page.pt'}: it is a web page in place of the file",
    }.items():
        result = run(command[0], str(tmp_path / name), *command[1:], status=2)
        assert result.stdout == ""
        assert result.stderr.startswith(f"unirnn: {message}")
        assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("command", ["show", "convert"])
def test_without_arguments_the_help_is_shown(run: Run, command: str) -> None:
    output = run(command, status=2).output
    assert "Usage" in output
    assert "safetensors" in output
    assert "--help" in output


# ---- unirnn convert ------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SUFFIXES)
@pytest.mark.parametrize("target", SUFFIXES)
def test_convert_a_snapshot_there_and_back(run: Run, tmp_path: Path, source: str, target: str) -> None:
    first, second, third = tmp_path / f"a{source}", tmp_path / f"b{target}", tmp_path / f"c{source}"
    snapshot_of(GRU).save(first)
    assert run("convert", str(first), str(second)).stdout == f"{second}: {GRU!r}, 63 parameters, float32\n"
    run("convert", str(second), str(third))
    assert files.load(second) == files.load(third) == snapshot_of(GRU)


def test_convert_a_file_into_itself(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    snapshot_of(GRU).save(path)
    run("convert", str(path), str(path), "--dtype", "float16")
    assert files.load(path) == snapshot_of(GRU).cast("float16")


def test_convert_one_layer_of_several(run: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "a.npz", tmp_path / "b.safetensors"
    write_several(source)
    target.write_bytes(b"as it was")
    result = run("convert", str(source), str(target), status=2)
    assert result.stderr.startswith(f"unirnn: {source}: prefix: given none, but there are several layers")
    assert "give one of 'encoder.', 'decoder.rnn.', 'old.'" in result.stderr
    assert target.read_bytes() == b"as it was"
    command = ["convert", str(source), str(target), "--prefix", "decoder.rnn", "--dtype", "float64"]
    unknown = "batch_first is not said by such a file; give convert --batch-first or --time-major\n"
    assert run(*command).stdout == f"{target}: GRUSpec(2, 3), 63 parameters, float64\n{unknown}"
    assert files.load(target) == snapshot_of(GRUSpec(2, 3)).cast("float64")
    for option, spec in {"--batch-first": GRU, "--time-major": GRUSpec(2, 3)}.items():
        assert run(*command, option).stdout == f"{target}: {spec!r}, 63 parameters, float64\n"
        assert files.load(target).spec == spec


def test_convert_with_a_spec_that_adds_to_the_file(run: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "a.npz", tmp_path / "b.safetensors"
    write_several(source)
    arguments = ["convert", str(source), str(target), "--prefix", "old."]
    advice = "give as spec RNNSpec(2, 3) or RNNSpec(2, 3, nonlinearity='relu')"
    assert advice in run(*arguments, status=2).stderr
    spec = RNNSpec(2, 3, nonlinearity="relu", batch_first=True)
    assert run(*arguments, "--spec", repr(spec)).stdout == f"{target}: {spec!r}, 21 parameters, float32\n"
    assert files.load(target) == Snapshot(spec, snapshot_of(RNNSpec(2, 3)).weights)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.safetensors", "--spec", "GRU"], "SPEC: given 'GRU', expected what Python prints"),
        (["out.safetensors", "--spec", "LSTMSpec(2, 3)"], "spec: given LSTMSpec(2, 3), but the file says GRUSpec(2, 3"),
        (["out.h5"], "path: given 'out.h5', expected one of the suffixes that are written"),
        (["out.npz", "--format", "zip"], "format: given 'zip', expected one of 'safetensors', "),
        (["out.npz", "--format", "npz"], "a.safetensors: truncated, altered or of another format"),
        (["out.safetensors", "--dtype", "int8"], "dtype: given 'int8'"),
        (["out.safetensors", "--dtype", "bfloat16"], "dtype: given bfloat16"),
        (["out.safetensors", "--prefix", "encoder."], "prefix: given 'encoder.', but the file is a snapshot"),
        (["absent/out.safetensors"], "[Errno 2] No such file or directory: 'absent/out.safetensors'\n"),
    ],
)
def test_convert_refuses_wrong_arguments(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    snapshot_of(GRU).save("a.safetensors")
    result = run("convert", "a.safetensors", *arguments, status=2)
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]


# ---- models --------------------------------------------------------------------------------------

MODEL = Sequential(encoder=GRU, norm=BatchNormSpec(3), pool=PoolSpec("last"), head=LinearSpec(3, 4))


def test_show_a_model(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    unirnn.snapshot(MODEL.build("numpy", seed=0)).save(path)
    lines = [line.rstrip() for line in run("show", str(path)).stdout.splitlines()]
    assert lines[0] == f"{path}: unirnn snapshot, npz, format 2"
    assert [line.split("  ")[0] for line in lines[2:9]] == ["name", "─" * len(lines[3]), *dict(MODEL.children), "total"]
    assert " ".join(lines[4].split()) == "encoder GRUSpec(2, 3, batch_first=True) (B, T, 3) 63 45"
    assert lines[10] == "85 parameters, 364 bytes"
    assert "encoder.weight_ih_l0   (9, 2)   float32" in lines
    found = json.loads(run("show", str(path), "--json").stdout)["layers"][0]
    assert unirnn.Spec.from_dict(found["spec"]) == MODEL
    assert found["parameters"] == 85


def test_convert_a_state_dict_into_a_model(run: Run, tmp_path: Path) -> None:
    source, target, part = tmp_path / "a.npz", tmp_path / "b.safetensors", tmp_path / "c.safetensors"
    taken = unirnn.snapshot(MODEL.build("numpy", seed=0))
    arrays: dict[str, Any] = {
        f"net.{name}".replace("net.head", "net.fc"): array for name, array in taken.weights.items()
    }
    np.savez(source, **arrays)
    command = ["convert", str(source), str(target), "--prefix", "net.", "--rename", "fc.=head."]
    for spec in (repr(MODEL), json.dumps(MODEL.to_dict())):
        result = run(*command, "--spec", spec)
        assert result.stdout == f"{target}: {MODEL!r}, 85 parameters, float32\n"
        assert files.load(target) == taken
    assert "--rename: given 'fc', expected OLD=NEW" in run(*command, "--rename", "fc", status=2).stderr
    assert "rename: given without a spec" in run(*command, status=2).stderr
    assert run("convert", str(target), str(part), "--prefix", "head").stdout.startswith(
        f"{part}: LinearSpec(3, 4), 16 "
    )
