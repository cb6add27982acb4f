"""Round trips: a layer of every framework, through a snapshot and a file, is a layer of every other framework.

MindSpore wants NumPy 1 and JAX wants NumPy 2, so that no environment holds all six. Each writes its layers into
one folder, ``$UNIRNN_EXCHANGE``: a snapshot's file, and what the framework itself computed. Each reads what it finds
there into layers of its own and runs those. ``nox -s roundtrip`` does so in two environments, the first of them twice;
``$UNIRNN_PAIRS`` says how many ordered pairs must have been checked by then. Without the two, an environment checks its
own pairs.
"""

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sides import CASES, SIDES, Case, Side, here, x
from subjects import close

import unirnn
from unirnn.contract.call import state_parts
from unirnn.errors import LimitError, SpecError

# Keras' own reading of its variables, under NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

HERE = here()
EXCHANGE = Path(os.environ.get("UNIRNN_EXCHANGE") or tempfile.mkdtemp())
PAIRS = int(os.environ.get("UNIRNN_PAIRS") or len(HERE) ** 2)
MINE = f"numpy{np.__version__[0]}"
TOLERANCE = 1e-5  # float32, and three layers


def common(source: Side, far: Side) -> list[Case]:
    """The cases that both have."""
    kinds = {*source.kinds} & {*far.kinds}
    if "GRU" in kinds:
        kinds -= {"GRU without b_hn"}  # which says less
    return [case for case in CASES if case.kind in kinds]


def sources() -> list[tuple[str, Side]]:
    """Environments and sides whose files are here, or will be once this environment has written its own."""
    others = [path for path in sorted(EXCHANGE.glob("numpy*/*")) if path.parent.name != MINE]
    again = bool(others) and (EXCHANGE / MINE).exists()  # its own were checked the first time
    mine = [] if again else [(MINE, side) for side in HERE]
    return mine + [(path.parent.name, SIDES[path.name]) for path in others]


TRIPS = [
    pytest.param(environment, source, far, case, id=f"{environment}-{source.name}-{far.name}-{case.name}")
    for environment, source in sources()
    for far in HERE
    for case in common(source, far)
]


def rng(side: Side, case: Case) -> np.random.Generator:
    return np.random.default_rng([[*SIDES].index(side.name), CASES.index(case)])


@pytest.fixture(scope="session", autouse=True)
def written() -> None:
    """The layers of this environment, in the folder."""
    if not (EXCHANGE / MINE).exists():
        unfinished = EXCHANGE / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        for side in HERE:
            folder = unfinished / side.name
            folder.mkdir(parents=True)
            for case in CASES:
                if case.kind in side.kinds:
                    native = side.make(case, rng(side, case))
                    output, state = side.run(native, x())
                    unirnn.snapshot(native).save(folder / f"{case.name}.safetensors")
                    np.savez(folder / f"{case.name}.npz", output, *state)
        unfinished.rename(EXCHANGE / MINE)


def results(path: Path) -> list[Any]:
    with np.load(path) as file:
        return [file[name] for name in file.files]


@pytest.mark.parametrize(("environment", "source", "far", "case"), TRIPS)
def test_the_far_side_computes_what_its_source_did_and_what_ours_does(
    environment: str, source: Side, far: Side, case: Case, tmp_path: Path
) -> None:
    path = EXCHANGE / environment / source.name / f"{case.name}.safetensors"
    snapshot = unirnn.load(path)
    module = snapshot.build("numpy")
    output, state = module(x().swapaxes(0, 1) if snapshot.spec.batch_first else x())
    ours = [output.swapaxes(0, 1) if snapshot.spec.batch_first else output, *(state_parts(module.spec, state) or ())]

    output, finals = far.run(far.hold(snapshot, case, tmp_path), x())
    theirs = results(path.with_suffix(".npz"))
    for index, part in enumerate((output, *finals)):
        close(part, theirs[index], TOLERANCE, f"{source.name}'s own, part {index}")
        close(part, ours[index], TOLERANCE, f"ours, part {index}")
    assert len(theirs) == len(ours) == 1 + len(finals)

    checked = EXCHANGE / "checked" / f"{source.name} to {far.name}"
    checked.mkdir(parents=True, exist_ok=True)
    (checked / case.name).touch()


def test_every_ordered_pair_was_checked_with_every_case() -> None:
    wanted = {
        f"{source.name} to {far.name}": {case.name for case in common(source, far)}
        for source in SIDES.values()
        for far in SIDES.values()
    }
    checked = {path.name: {case.name for case in path.iterdir()} for path in (EXCHANGE / "checked").iterdir()}
    missing = sorted(wanted.keys() - checked.keys())
    assert len(checked) == PAIRS, f"missing: {missing}"
    assert checked == {pair: wanted[pair] for pair in checked}
    for cases in checked.values():
        kinds = {re.sub(" [^-]*", "", name) for name in cases}  # a GRU is a GRU
        assert kinds >= {f"{cell}-{n}-{d}" for cell in ("RNN", "GRU", "LSTM") for n in (1, 3) for d in ("uni", "bi")}


REFUSALS = [(far, kind) for far in HERE for kind in ("GRU", "GRU reset before") if kind not in far.kinds]


@pytest.mark.parametrize(("far", "kind"), REFUSALS, ids=[f"{far.name}-{kind}" for far, kind in REFUSALS])
def test_what_a_far_side_lacks_is_refused_and_leaves_it_as_it_was(far: Side, kind: str) -> None:
    given, held = (next(case for case in CASES if case.kind == wanted) for wanted in (kind, "GRU without b_hn"))
    native = far.make(held, rng(far, held))
    before = unirnn.snapshot(native)
    lost = unirnn.snapshot(SIDES["numpy"].make(given, rng(far, given)))
    error, words = (LimitError, "bias_hh_l0") if kind == "GRU" else (SpecError, "reset_after")
    with pytest.raises(error, match=words):
        unirnn.load_weights(native, lost)
    assert unirnn.snapshot(native) == before
