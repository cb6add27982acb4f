"""The command ``unirnn``: what it prints, where, and with which exit status.

Some tests need third-party backends. These are in a distribution in a temporary folder, whose entry points are found by
this process and by a fresh one.
"""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from distributions import installed, write_distribution
from hypothesis import HealthCheck, given, settings

from unirnn import (
    GRUSpec,
    LinearSpec,
    LSTMSpec,
    RecurrentSpec,
    RNNSpec,
    Sequential,
    __version__,
    explain,
    registry,
    snapshot,
)
from unirnn.errors import ArgumentError, SpecError
from unirnn.specs import arguments as names
from unirnn.testing.strategies import models

if TYPE_CHECKING:
    from typer.testing import Result

INSTALLED = [name for name in ("numpy", "torch", "mindspore", "onnxruntime") if importlib.util.find_spec(name)]


SMALL = ["--steps", "5", "--batch-size", "3"]

Run = Callable[..., "Result"]
NEEDS_CLI = "the command needs typer and rich"


def compared(name: str) -> list[str]:
    """The dtypes in which parity compares a backend by default."""
    return [dtype for dtype in ("float32", "float64") if dtype in registry.load(name).support.dtypes]


THIRD_PARTIES = """
[unirnn.backends]
absent = unirnn_of_others.absent:backend
broken = unirnn_of_others.broken:backend
lost = unirnn_of_others.good:lost
wrong = unirnn_of_others.good:wrong
"""
BROKEN = (
    "backend 'broken' fails to import: RuntimeError: no [driver]; its entry point 'unirnn_of_others.broken:backend' is "
    "that of unirnn-of-others 1: update or uninstall that"
)
GOOD = """
from unirnn_numpy import NumpyBackend

class Wrong(NumpyBackend):
    name = "wrong"

    def limits(self, spec, device, dtype):
        yield Limit("adds 1e-3 to every number", refuses=False)

    def to_numpy(self, array):
        return array + 1e-3

class Lost(NumpyBackend):
    name = "lost"

    def devices(self):
        raise RuntimeError("[driver] lost\\nin two lines")

    default_device = limits = devices

from unirnn import Limit
wrong = Wrong()
lost = Lost()
"""


@pytest.fixture(scope="session")
def third_parties(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a distribution of backends that lack their framework, can't be imported, fail, or are wrong."""
    folder = tmp_path_factory.mktemp("third_parties")
    modules = {
        "__init__": "",
        "absent": "import a_framework_that_nobody_has\n",
        "broken": "raise RuntimeError('no [driver]')\n",
        "good": GOOD,
    }
    texts = {f"unirnn_of_others/{name}.py": text for name, text in modules.items()}
    write_distribution(folder, "unirnn-of-others", THIRD_PARTIES, texts)
    return folder


@pytest.fixture
def with_third_parties(third_parties: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(registry, "_loaded", {})
    with installed(third_parties, monkeypatch):
        yield


def run_in_new_process(
    *arguments: str, path: Path | None = None, before: str = "", output: Any = subprocess.PIPE, **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run some code, then the command, in a fresh interpreter."""
    start = ["-m", "unirnn"] if not before else ["-c", f"{before}\nfrom unirnn.__main__ import main\nmain()"]
    paths = [*([str(path)] if path else []), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), **variables}
    return subprocess.run(
        [sys.executable, *start, *arguments],
        stdout=output,
        stderr=subprocess.PIPE,
        text=True,
        timeout=300,
        env=environment,
    )


# ---- the command as a whole ----------------------------------------------------------------------


def test_version(run: Run) -> None:
    assert run("--version").stdout == f"unirnn {__version__}\n"


def test_without_arguments_the_commands_are_shown(run: Run) -> None:
    output = run(status=2).output
    assert all(command in output for command in ("backends", "parity", "explain", "names"))


def test_python_m_unirnn() -> None:
    pytest.importorskip("typer", reason=NEEDS_CLI)
    result = run_in_new_process("--version")
    assert (result.returncode, result.stdout, result.stderr) == (0, f"unirnn {__version__}\n", "")


def test_only_bench_imports_the_benchmark() -> None:
    pytest.importorskip("typer", reason=NEEDS_CLI)
    before = "import sys; sys.modules['unirnn_bench'] = None"
    assert run_in_new_process("--help", before=before).returncode == 0
    assert run_in_new_process("backends", before=before).returncode == 0
    for arguments in (["bench"], ["bench", "--help"]):
        result = run_in_new_process(*arguments, before=before)
        assert (result.returncode, result.stdout) == (2, "")
        assert result.stderr == (
            "unirnn: bench: needs unirnn_bench, which is installed with unirnn; "
            "in a source tree: python -m pip install -e .\n"
        )
    assert "--whole" in run_in_new_process("bench", "--help").stdout


@pytest.mark.parametrize("missing", ["typer", "rich"])
def test_missing_typer_or_rich(missing: str) -> None:
    if missing == "rich":
        pytest.importorskip("typer", reason="the command imports typer first")
    result = run_in_new_process("backends", before=f"import sys; sys.modules[{missing!r}] = None")
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr == (
        f"unirnn: the command needs {missing}, which is not installed; "
        'to install it: python -m pip install "rich>=13" "typer>=0.16"\n'
    )


def test_an_error_is_one_line(run: Run) -> None:
    result = run("parity", "--backend", "numpy", "--dtype", "bfloat16", status=2)
    assert result.stdout == ""
    assert result.stderr == (
        "unirnn: GRUSpec(10, 16) on numpy, cpu, bfloat16: can't be built; "
        "can't: numpy computes in float16, float32, float64, not in bfloat16\n"
    )


# ---- limits of terminal, disk and memory ---------------------------------------------------------


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_the_terminal_lacks_are_escaped(encoding: str) -> None:
    result = run_in_new_process("names", "GRU", "--language", "zh", PYTHONIOENCODING=encoding)
    assert (result.returncode, result.stderr) == (0, "")
    assert names.arguments("GRU", "constructor")[0].difference_zh.encode("ascii", "backslashreplace").decode() in (
        result.stdout
    )


@pytest.mark.usefixtures("run")
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [["names"], ["explain", "-b", "numpy"], ["backends", "--json"], ["--help"]])
def test_a_full_disk_is_an_error_in_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        result = run_in_new_process(*arguments, output=full)
    assert (result.returncode, result.stderr) == (2, "unirnn: [Errno 28] No space left on device\n")


@pytest.mark.usefixtures("run")
@pytest.mark.skipif(os.name != "posix", reason="needs POSIX pipes")
def test_a_broken_pipe_ends_the_command_silently() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe:
        result = run_in_new_process("names", output=pipe)
    assert (result.returncode, result.stderr) == (1, "")


CODES = "\x1b]0;title\x07\x1b[31mred"


def test_control_characters_of_names_are_escaped(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    snapshot(GRUSpec(3, 4).build("numpy", seed=0)).save(f"{CODES}.npz")
    snapshot(GRUSpec(3, 4).build("numpy", seed=0)).save("[red].npz")
    np.savez(f"{CODES}2.npz", **{f"{CODES}.weight_ih_l0": np.zeros((12, 3))})
    shown = CODES.encode("unicode_escape").decode()
    for arguments, status in (
        (["show", f"{CODES}.npz"], 0),
        (["show", f"{CODES}2.npz"], 0),
        (["show", f"{CODES}3.npz"], 2),
        (["show", "a.npz", f"{CODES}3.npz"], 2),
        (["convert", f"{CODES}.npz", f"{CODES}.safetensors"], 0),
        ([CODES], 2),
        (["explain", f"GRUSpec(3, '{CODES}')"], 2),
    ):
        output = run(*arguments, status=status).output
        assert shown[:10] in output, arguments
        assert "\x1b" not in output, arguments
        assert "\x07" not in output, arguments
    assert "[red].npz" in run("show", "[red].npz").stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--steps", "9999999999999"],
            "parity: given GRUSpec(10, 16), T = 9999999999999, B = 8, which needs 1e+15 num",
        ),
        (["--input-size", "99999999999999999999"], "parity: given GRUSpec(99999999999999999999, 16), T = 100, B = 8, "),
        (["--num-layers", "99999999999999999999"], "num_layers: given 99999999999999999999, expected at most 10000 in"),
    ],
)
def test_sizes_beyond_any_memory_are_refused(run: Run, arguments: list[str], message: str) -> None:
    result = run("parity", "--backend", "numpy", *arguments, status=2)
    assert result.stderr.startswith(f"unirnn: {message}")
    assert result.stderr.count("\n") == 1


@pytest.mark.usefixtures("run")
@pytest.mark.skipif(sys.platform != "linux", reason="needs a limit on memory")
def test_too_little_memory_is_an_error_in_one_line() -> None:
    before = "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))"
    result = run_in_new_process("parity", "--backend", "numpy", "--steps", "1000000000", before=before)
    assert result.returncode == 2
    assert result.stderr.startswith("unirnn: too little memory: ")
    assert result.stderr.count("\n") == 1


# ---- unirnn backends -----------------------------------------------------------------------------


def test_backends(run: Run) -> None:
    output = run("backends").stdout
    for name in INSTALLED:
        backend = registry.load(name)
        line = next(line for line in output.splitlines() if line.startswith(name))
        assert backend.version() in line
        assert all(dtype in line for dtype in backend.support.dtypes)
        assert "cpu" in line
    assert "compiled kernels: " in output.splitlines()[-1]


def test_backends_as_json(run: Run) -> None:
    entries = {entry["backend"]: entry for entry in json.loads(run("backends", "--json").stdout)}
    assert tuple(entries) == registry.backends()
    for name in INSTALLED:
        backend = registry.load(name)
        assert entries[name] == {
            "backend": name,
            "installed": True,
            "version": backend.version(),
            "devices": [str(device) for device in backend.devices()],
            "dtypes": list(backend.support.dtypes),
            "install": None,
            "error": None,
        }


@pytest.mark.usefixtures("with_third_parties")
def test_missing_and_broken_backends_are_shown(run: Run) -> None:
    lines = run("backends").stdout.splitlines()
    assert [line.split()[1:] for line in lines if line.startswith(("absent ", "broken ", "lost "))] == [
        ["not", "installed"],
        ["broken"],
        ["broken"],
    ]
    assert "absent: to install it: python -m pip install a_framework_that_nobody_has" in lines
    assert f"broken: {BROKEN}" in lines
    assert "lost: RuntimeError: [driver] lost; in two lines" in lines


def test_backends_in_a_new_process(third_parties: Path) -> None:
    pytest.importorskip("typer", reason=NEEDS_CLI)
    before = "import sys; sys.modules.update(torch=None, mindspore=None)"
    result = run_in_new_process("backends", "--json", path=third_parties, before=before)
    assert result.returncode == 0, result.stderr
    entries = {entry["backend"]: entry for entry in json.loads(result.stdout)}
    assert entries["numpy"]["installed"]
    for name in ("torch", "mindspore"):
        assert not entries[name]["installed"]
        assert entries[name]["install"] == registry.install_hint(name)
    assert entries["broken"]["error"] == BROKEN


# ---- unirnn parity -------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", INSTALLED)
def test_parity(run: Run, backend: str) -> None:
    lines = run("parity", "--backend", backend, *SMALL).stdout.splitlines()
    assert lines[:2] == [
        "GRUSpec(10, 16), T = 5, B = 3, seed 0",
        "Largest relative differences from the oracle, which computes in float64:",
    ]
    rows = [line.split() for line in lines if line.startswith(backend)]
    assert [(row[1], row[2], row[-1]) for row in rows] == [("cpu", dtype, "yes") for dtype in compared(backend)]


def test_parity_by_options(run: Run) -> None:
    flags = "rnn --input-size 2 --hidden-size 3 --num-layers 2 --bidirectional --batch-first --no-bias"
    more = "--nonlinearity relu --seed 7 --dtype float32 --dtype float16 --backend numpy --json"
    found = json.loads(run("parity", *flags.split(), *more.split(), *SMALL).stdout)
    spec = RNNSpec(2, 3, 2, bidirectional=True, batch_first=True, bias=False, nonlinearity="relu")
    assert RecurrentSpec.from_dict(found["spec"]) == spec
    assert (found["steps"], found["batch_size"], found["seed"], found["within"]) == (5, 3, 7, True)
    assert [(c["backend"], c["dtype"], c["tolerance"]) for c in found["comparisons"]] == [
        ("numpy", "float32", 1e-5),
        ("numpy", "float16", 2e-2),
    ]
    assert [c["gradients"] is None for c in found["comparisons"]] == [False, True]


@pytest.mark.parametrize("command", ["parity", "explain"])
@pytest.mark.parametrize(
    ("arguments", "spec"),
    [
        ([], GRUSpec(10, 16)),
        (["lstm"], LSTMSpec(10, 16)),
        (["gru", "-i", "3", "-H", "4", "-l", "2", "--reset-before"], GRUSpec(3, 4, 2, reset_after=False)),
        (["LSTM", "--batch-first", "--no-bias"], LSTMSpec(10, 16, batch_first=True, bias=False)),
        (["RNNSpec(3, 4, nonlinearity='relu')"], RNNSpec(3, 4, nonlinearity="relu")),
        ([json.dumps(GRUSpec(3, 4).to_dict())], GRUSpec(3, 4)),
        (
            ["GRUSpec(3, 4, batch_first=True)", "-H", "5", "--bidirectional", "--time-first"],
            GRUSpec(3, 5, bidirectional=True),
        ),
    ],
)
def test_a_spec_is_given_whole_or_by_options(run: Run, command: str, arguments: list[str], spec: RecurrentSpec) -> None:
    small = SMALL if command == "parity" else []
    output = run(command, *arguments, "-b", "numpy", *small).stdout
    assert output.startswith(f"{spec!r}, T = 5" if command == "parity" else f"{spec!r} on numpy, ")


@pytest.mark.skipif("mindspore" not in INSTALLED, reason="needs MindSpore")
def test_parity_calls_launch_blocking_for_mindspore() -> None:
    pytest.importorskip("typer", reason=NEEDS_CLI)
    result = run_in_new_process("parity", "--backend", "mindspore", *SMALL)
    assert result.returncode == 0, result.stderr
    assert "launch_blocking" not in result.stderr


@pytest.mark.usefixtures("with_third_parties")
def test_parity_explains_which_backends_are_left_out(run: Run) -> None:
    lines = run("parity", *SMALL, status=1).stdout.splitlines()
    assert "array_api: left out: it needs the option namespace of build, and can't be compared without one" in lines
    assert any(
        line.startswith("absent: left out: backend 'absent' needs a_framework_that_nobody_has") for line in lines
    )


@pytest.mark.usefixtures("with_third_parties")
def test_parity_finds_a_wrong_backend(run: Run) -> None:
    lines = run("parity", "--backend", "numpy", "--backend", "wrong", *SMALL, status=1).stdout.splitlines()
    verdicts = {line.split()[0]: line.split()[-1] for line in lines if line.startswith(("numpy ", "wrong "))}
    assert verdicts == {"numpy": "yes", "wrong": "no"}
    # Below the table are the differences that the backend declares as limits.
    assert "wrong, cpu, float32: differs: adds 1e-3 to every number" in lines


def test_parity_in_a_new_process(third_parties: Path) -> None:
    """All installed and third-party backends run in one process; standard output has only JSON."""
    pytest.importorskip("typer", reason=NEEDS_CLI)
    result = run_in_new_process("parity", "--json", *SMALL, path=third_parties)
    assert result.returncode == 1, result.stderr
    found = json.loads(result.stdout)
    within = {(c["backend"], c["dtype"]): c["within"] for c in found["comparisons"]}
    assert within == {
        **{(name, dtype): True for name in INSTALLED for dtype in compared(name)},
        **{("wrong", dtype): False for dtype in ("float32", "float64")},
    }
    reasons = {note["backend"]: note["reason"] for note in found["left_out"]}
    assert "python -m pip install a_framework_that_nobody_has" in reasons["absent"]
    assert "no [driver]" in reasons["broken"]
    assert {note["backend"] for note in found["failures"]} == {"lost"}


@pytest.mark.usefixtures("run")
def test_parity_prints_nan_as_null_in_json() -> None:
    from unirnn import Device
    from unirnn.cli.parity import _comparison
    from unirnn.testing import parity

    found = _comparison(parity.Comparison("numpy", Device("cpu"), "float32", float("nan"), float("inf"), None))
    assert (found["output"], found["state"], found["gradients"], found["within"]) == (None, None, None, False)


def test_parity_on_a_narrow_terminal_is_coloured_and_complete(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    output = run("parity", "--backend", "numpy", *SMALL).stdout
    assert "\x1b[32m" in output
    assert "…" not in output


@pytest.mark.usefixtures("with_third_parties")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--backend", "absent"], "backend 'absent' needs a_framework_that_nobody_has, which is not installed"),
        (["--backend", "broken"], "backend 'broken' fails to import"),
        (["--backend", "nope"], "backend: given 'nope', expected one of "),
        (["--backend", "array_api"], "namespace: given None"),
        (["qrnn"], "SPEC: given 'qrnn', expected RNN, GRU or LSTM"),
        (["--dtype", "float31"], "dtype: given 'float31'"),
        (["--nonlinearity", "relu"], "GRU: unknown argument 'nonlinearity'"),
        (["lstm", "--reset-before"], "LSTM: unknown argument 'reset_after'"),
        (["--hidden-size", "0"], "hidden_size: given 0, expected at least 1"),
        (["--steps", "0"], "steps, batch_size: given 0, 8"),
        (["--seed", "-1"], "seed: given -1"),
    ],
)
def test_parity_refuses_wrong_options(run: Run, arguments: list[str], message: str) -> None:
    result = run("parity", *arguments, status=2)
    assert result.stdout == ""
    assert result.stderr.startswith(f"unirnn: {message}")
    assert result.stderr.count("\n") == 1


# ---- unirnn explain ------------------------------------------------------------------------------


def test_explain_what_can_be_built(run: Run) -> None:
    result = run("explain", repr(GRUSpec(10, 16, num_layers=2)), "--backend", "numpy")
    told = explain(GRUSpec(10, 16, num_layers=2), "numpy")
    assert result.stdout == f"{told}\n" == "GRUSpec(10, 16, num_layers=2) on numpy, cpu, float32: no limits\n"


def test_explain_describes_kernels_on_request(run: Run) -> None:
    spec = GRUSpec(10, 16)
    lines = run("explain", "--backend", "numpy", "--kernels").stdout.splitlines()
    assert lines[0] == str(explain(spec, "numpy"))
    assert lines[1:] == [f"  {sentence}" for sentence in explain(spec, "numpy").kernel_sentences]
    assert lines[-1] == '  reference runs only if it is asked for by name: kernel="reference".'


def test_explain_wraps_between_words(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "40")
    sentences = " ".join(explain(GRUSpec(10, 16), "numpy").kernel_sentences)
    _, *lines = run("explain", "--backend", "numpy", "--kernels").stdout.splitlines()
    assert max(map(len, lines)) <= 40
    assert " ".join(" ".join(lines).split()) == sentences


def test_explain_what_cannot_be_built(run: Run) -> None:
    spec = json.dumps(LSTMSpec(3, 4).to_dict())
    result = run("explain", spec, "--backend", "numpy", "--device", "npu:1", "--dtype", "bfloat16", status=1)
    assert result.stdout.splitlines() == [
        "LSTMSpec(3, 4) on numpy, ascend:1, bfloat16: can't be built",
        "  can't: numpy runs on cpu only, not on ascend",
    ]


@pytest.mark.usefixtures("with_third_parties")
def test_explain_every_installed_backend(run: Run) -> None:
    lines = run("explain", "GRUSpec(10, 16)").stdout.splitlines()
    explained = [line.split(" on ")[1].split(",")[0] for line in lines if line.startswith("GRUSpec(10, 16) on ")]
    assert set(explained) == {*INSTALLED, "array_api", "wrong"}
    assert "lost: left out: RuntimeError: [driver] lost; in two lines" in lines
    assert any(line.startswith("absent: left out: backend 'absent' needs") for line in lines)


@pytest.mark.usefixtures("with_third_parties")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["GRUSpec(3)"], "GRU: hidden_size is missing"),
        (["GRUSpec(3, 4"], "SPEC: given 'GRUSpec(3, 4', expected what Python prints"),
        (["GRUSpec(3, 4)", "--backend", "absent"], "backend 'absent' needs"),
        (["GRUSpec(3, 4)", "--device", "tpu"], "device: given 'tpu'"),
        (["GRUSpec(3, 4)", "--dtype", "int8"], "dtype: given 'int8'"),
    ],
)
def test_explain_refuses_wrong_arguments(run: Run, arguments: list[str], message: str) -> None:
    result = run("explain", *arguments, status=2)
    assert result.stdout == ""
    assert result.stderr.startswith(f"unirnn: {message}")


SPECS = [
    GRUSpec(10, 16),
    GRUSpec(10, 16, 2, batch_first=True, bidirectional=True, dropout=0.25, bias=False),
    LSTMSpec(3, 4, proj_size=2),
    RNNSpec(2, 3, 4, nonlinearity="relu"),
]


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_parse_spec_reads_a_repr_and_json(spec: RecurrentSpec) -> None:
    from unirnn.cli.specs import parse_spec

    assert parse_spec(repr(spec)) == spec
    assert parse_spec(f"  unirnn.{spec!r}\n") == spec
    assert parse_spec(json.dumps(spec.to_dict())) == spec


@pytest.mark.usefixtures("run")
def test_every_spelling_of_an_argument_is_read() -> None:
    from unirnn.cli.specs import parse_spec

    assert parse_spec("GRUSpec(10, hidden_size=16, has_bias=False)") == GRUSpec(10, 16, bias=False)
    assert parse_spec("GRUSpec(10, 16, 2)") == GRUSpec(10, 16, 2)


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    "text",
    [
        "",
        "GRUSpec",
        "GRUSpec(3, 4) + 1",
        "Spec(3, 4)",
        "torch.GRUSpec(3, 4)",
        "GRUSpec(3, 4, 1, True)",
        "GRUSpec(3, 4, input_size=3)",
        "GRUSpec(3, 4, bias=True, bias=False)",
        "GRUSpec(*[3, 4])",
        "GRUSpec(**{'input_size': 3, 'hidden_size': 4})",
        "GRUSpec(3, __import__('os').getpid())",
        "GRUSpec(3, hidden_size=(lambda: 4)())",
        "[GRUSpec(3, 4) for _ in '1'][0]",
        "(" * 1000,
        '{"kind": "GRU"',
        '{"kind": "QRNN", "input_size": 3, "hidden_size": 4}',
        "GRUSpec(3, 0)",
    ],
)
def test_other_expressions_are_refused_and_not_evaluated(text: str) -> None:
    from unirnn.cli.specs import parse_spec

    with pytest.raises(SpecError):
        parse_spec(text)


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize("text", ["GRUSpec(3, 4, units=2)", "GRUSpec(3, '4')", "GRUSpec(3, 4, bias=1, has_bias=1)"])
def test_a_wrong_argument_is_named(text: str) -> None:
    from unirnn.cli.specs import parse_spec

    with pytest.raises(ArgumentError):
        parse_spec(text)


# ---- unirnn names --------------------------------------------------------------------------------


def rows(output: str, cell: str) -> list[list[str]]:
    """The rows of a cell's table, without the column of differences."""
    lines = output.splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"{cell} "))
    body = lines[start + 2 :]
    end = next((n for n, line in enumerate(body) if line.startswith(("RNN ", "GRU ", "LSTM "))), len(body))
    return [[part.strip() for part in line.split("   ") if part.strip()][1:4] for line in body[:end] if line.strip()]


@pytest.mark.parametrize("cell", ["RNN", "GRU", "LSTM"])
def test_names(run: Run, cell: str) -> None:
    expected: list[Any] = [
        [row.torch or "-", row.mindspore or "-", row.name] for row in names.ARGUMENTS if cell in row.cells
    ]
    assert rows(run("names", cell.lower()).stdout, cell) == expected
    assert rows(run("names").stdout, cell) == expected


def test_names_are_not_cut_off_in_a_pipe(run: Run) -> None:
    english, chinese = run("names", "GRU").stdout, run("names", "GRU", "--language", "zh").stdout
    for row in names.arguments("GRU", "constructor"):
        assert row.difference in english
        assert row.difference_zh in chinese


def test_an_unknown_cell(run: Run) -> None:
    assert "qrnn" in run("names", "qrnn", status=2).output


# ---- models --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("run")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(models())
def test_parse_spec_reads_models(model: Sequential) -> None:
    from unirnn.cli.specs import parse_spec

    assert parse_spec(repr(model)) == parse_spec(json.dumps(model.to_dict())) == model


@pytest.mark.usefixtures("run")
@pytest.mark.parametrize(
    "text",
    [
        "Sequential(3)",
        "Sequential(a=__import__('os'))",
        "Sequential(*[LinearSpec(3, 4)])",
        "Sequential(LinearSpec)",
        "Residual(LinearSpec(3, 3), LinearSpec(3, 3))",
        "Model()",
        '{"kind": "Sequential", "layers": {"a": 3}}',
    ],
)
def test_other_models_are_refused_and_not_evaluated(text: str) -> None:
    from unirnn.cli.specs import parse_spec

    with pytest.raises(SpecError):
        parse_spec(text)


def test_explain_a_model(run: Run) -> None:
    model = Sequential(encoder=GRUSpec(3, 4), head=LinearSpec(4, 2))
    assert run("explain", repr(model), "--backend", "numpy").stdout.startswith(f"{model!r} on numpy, cpu, float32: ")
    message = f"unirnn: SPEC: given {model!r}, expected a recurrent layer\n"
    assert run("parity", repr(model), status=2).stderr == message
    result = run("explain", repr(model), "--hidden-size", "5", status=2)
    assert result.stderr == f"unirnn: SPEC: given {model!r} with the option hidden_size, expected a recurrent layer\n"
