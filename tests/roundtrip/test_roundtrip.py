"""Round trips: a layer of every framework, through a snapshot and a file, becomes a layer of every other framework.

MindSpore needs NumPy 1 and JAX needs NumPy 2, so no environment holds all six frameworks. Each environment writes its
layers into one folder, ``$UNIRNN_EXCHANGE``: the file of a snapshot, and what the framework itself computed. It reads
the files in the folder into layers of its own frameworks and runs them. ``nox -s roundtrip`` does this in two
environments, and again in the first, for the files of the second. ``$UNIRNN_PAIRS`` is the number of ordered pairs that
must have been checked at the end. Without these variables, an environment checks its own pairs.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from frameworks import CASES, FRAMEWORKS, Case, Framework, draw_input, installed

import unirnn
from unirnn.contract.call import state_parts
from unirnn.errors import LimitError, SpecError
from unirnn.testing.tolerances import close

# Keras reads its variables in a way that NumPy 2 warns about.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

INSTALLED = installed()
EXCHANGE = Path(os.environ.get("UNIRNN_EXCHANGE") or tempfile.mkdtemp())
PAIRS = int(os.environ.get("UNIRNN_PAIRS") or len(INSTALLED) ** 2)
ENVIRONMENT = f"numpy{np.__version__[0]}"
TOLERANCE = 1e-5  # for float32 and three layers


def common_cases(source: Framework, target: Framework) -> list[Case]:
    """The cases that both frameworks support."""
    kinds = {*source.kinds} & {*target.kinds}
    if "GRU" in kinds:
        kinds -= {"GRU without b_hn"}  # the GRU with all biases tests more
    return [case for case in CASES if case.kind in kinds]


def checked(source: Framework, target: Framework, case: Case) -> Path:
    """The file whose presence means that a trip was checked."""
    return EXCHANGE / "checked" / f"{source.name} to {target.name}" / case.name


def trips() -> list[Any]:
    """The trips still to check, from existing files and from those that this environment will write.

    Keras runs on another backend in each environment, so the trips to and from it are checked in both.
    """
    others = [path for path in sorted(EXCHANGE.glob("numpy*/*")) if path.parent.name != ENVIRONMENT]
    is_new = not (EXCHANGE / ENVIRONMENT).exists()
    sources = [(path.parent.name, FRAMEWORKS[path.name]) for path in others]
    found: dict[tuple[str, str, str], Any] = {}
    for environment, source in [*sources, *((ENVIRONMENT, framework) for framework in INSTALLED)]:
        for target in INSTALLED:
            other_keras = is_new and environment == ENVIRONMENT and "keras" in (source.name, target.name)
            for case in common_cases(source, target):
                if other_keras or not checked(source, target, case).exists():
                    key = source.name, target.name, case.name
                    found.setdefault(key, pytest.param(environment, source, target, case, id="-".join(key)))
    return list(found.values())


def rng(framework: Framework, case: Case) -> np.random.Generator:
    return np.random.default_rng([[*FRAMEWORKS].index(framework.name), CASES.index(case)])


@pytest.fixture(scope="session", autouse=True)
def written() -> None:
    """Write the layers of this environment into the folder."""
    if not (EXCHANGE / ENVIRONMENT).exists():
        unfinished = EXCHANGE / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        for framework in INSTALLED:
            folder = unfinished / framework.name
            folder.mkdir(parents=True)
            for case in CASES:
                if case.kind in framework.kinds:
                    native = framework.make(case, rng(framework, case))
                    output, state = framework.run(native, draw_input())
                    unirnn.snapshot(native).save(folder / f"{case.name}.safetensors")
                    np.savez(folder / f"{case.name}.npz", output, *state)
        unfinished.rename(EXCHANGE / ENVIRONMENT)


def results(path: Path) -> list[Any]:
    with np.load(path) as file:
        return [file[name] for name in file.files]


@pytest.mark.parametrize(("environment", "source", "target", "case"), trips())
def test_the_target_computes_the_same_as_the_source_and_numpy(
    environment: str, source: Framework, target: Framework, case: Case, tmp_path: Path
) -> None:
    path = EXCHANGE / environment / source.name / f"{case.name}.safetensors"
    snapshot = unirnn.load(path)
    module, x = snapshot.build("numpy"), draw_input()
    output, state = module(x.swapaxes(0, 1) if snapshot.spec.batch_first else x)
    ours = [output.swapaxes(0, 1) if snapshot.spec.batch_first else output, *(state_parts(module.spec, state) or ())]

    output, finals = target.run(target.load(snapshot, case, tmp_path), x)
    theirs = results(path.with_suffix(".npz"))
    for index, part in enumerate((output, *finals)):
        close(part, theirs[index], TOLERANCE, f"{source.name}'s own, part {index}")
        close(part, ours[index], TOLERANCE, f"ours, part {index}")
    assert len(theirs) == len(ours) == 1 + len(finals)

    marker = checked(source, target, case)
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()


def test_every_ordered_pair_was_checked_with_every_case() -> None:
    expected = {
        f"{source.name} to {target.name}": {case.name for case in common_cases(source, target)}
        for source in FRAMEWORKS.values()
        for target in FRAMEWORKS.values()
    }
    found = {path.name: {case.name for case in path.iterdir()} for path in (EXCHANGE / "checked").iterdir()}
    missing = sorted(expected.keys() - found.keys())
    assert len(found) == PAIRS, f"missing: {missing}"
    assert found == {pair: expected[pair] for pair in found}
    for cases in found.values():
        kinds = {re.sub(" [^-]*", "", name) for name in cases}  # a GRU of either variant
        assert kinds >= {f"{cell}-{n}-{d}" for cell in ("RNN", "GRU", "LSTM") for n in (1, 3) for d in ("uni", "bi")}


REFUSALS = [(target, kind) for target in INSTALLED for kind in ("GRU", "GRU reset before") if kind not in target.kinds]


@pytest.mark.parametrize(("target", "kind"), REFUSALS, ids=[f"{target.name}-{kind}" for target, kind in REFUSALS])
def test_a_target_refuses_what_it_lacks_and_does_not_change(target: Framework, kind: str) -> None:
    given, held = (next(case for case in CASES if case.kind == wanted) for wanted in (kind, "GRU without b_hn"))
    native = target.make(held, rng(target, held))
    before = unirnn.snapshot(native)
    lossy = unirnn.snapshot(FRAMEWORKS["numpy"].make(given, rng(target, given)))
    error, words = (LimitError, "bias_hh_l0") if kind == "GRU" else (SpecError, "reset_after")
    with pytest.raises(error, match=words):
        unirnn.load_weights(native, lossy)
    assert unirnn.snapshot(native) == before
