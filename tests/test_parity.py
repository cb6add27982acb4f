"""The parity check: correct backends pass, wrong ones are found, and those left out are named."""

import importlib.util
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from unirnn_numpy import NumpyBackend

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, registry
from unirnn.errors import ArgumentError, DTypeError, LimitError, MissingBackendError, ShapeError, UnknownBackendError
from unirnn.testing import parity

INSTALLED = [name for name in ("numpy", "torch", "mindspore") if importlib.util.find_spec(name)]
SPECS = [
    GRUSpec(10, 16),
    LSTMSpec(10, 16, 2, bidirectional=True, batch_first=True),
    RNNSpec(3, 5, 2, nonlinearity="relu", bias=False),
]


class Pretender(NumpyBackend):
    """A third-party backend: NumPy's, with one error."""

    name = "pretender"

    def __init__(self, **wrong: Any) -> None:
        self.wrong = wrong

    def build(self, *args: Any, **kwargs: Any) -> Any:
        if "build" in self.wrong:
            raise self.wrong["build"]
        spec, *others = args
        return super().build(replace(spec, **self.wrong.get("spec", {})), *others, **kwargs)

    def to_numpy(self, array: Any) -> Any:
        return self.wrong.get("to_numpy", np.asarray)(array)

    def gradients(self, *args: Any, **kwargs: Any) -> Any:
        return self.wrong.get("gradients", dict)(super().gradients(*args, **kwargs))


@pytest.fixture
def pretend(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that registers a `Pretender` as the backend ``pretender``."""

    def install(backend: Any = None, **wrong: Any) -> None:
        monkeypatch.setitem(registry._loaded, "pretender", backend or Pretender(**wrong))

    return install


@pytest.mark.parametrize("spec", SPECS, ids=repr)
@pytest.mark.parametrize("backend", INSTALLED)
def test_backends_agree_in_each_dtype(backend: str, spec: RecurrentSpec) -> None:
    found = parity.compare(spec, [backend])
    assert [(c.backend, c.dtype) for c in found] == [(backend, "float32"), (backend, "float64")]
    assert found.within, found
    assert all(c.gradients is not None for c in found)
    assert parity.compare(spec, [backend], ["float16"]).within


def test_relu_gradients_are_not_compared_in_half_precision() -> None:
    (comparison,) = parity.compare(SPECS[2], ["numpy"], ["float16"])
    assert comparison.gradients is None


def test_the_oracle_gets_the_rounded_numbers() -> None:
    """A difference comes from the computation only, not from the rounding of weights and input."""
    found = {c.dtype: c for c in parity.compare(GRUSpec(10, 16), ["numpy"], ["float16", "float32", "float64"])}
    assert 0 < found["float64"].output < 1e-14  # not zero: the oracle and the backend do not share code
    assert 0 < found["float32"].output < 1e-6
    assert 1e-5 < found["float16"].output < 1e-3


@pytest.mark.parametrize(("steps", "batch_size"), [(1, 1), (1, 5), (7, 1), (7, 2), (100, 8)])
def test_the_batch_is_ragged(steps: int, batch_size: int) -> None:
    trial = parity._draw(GRUSpec(3, 4), "float32", steps, batch_size, 0)
    lengths = trial.seq_length.tolist()
    assert max(lengths) == steps
    if batch_size > 1:
        assert min(lengths) == 0
    if batch_size > 2:
        assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))
    padded = np.isnan(trial.input).all(axis=-1)
    np.testing.assert_array_equal(steps - padded.sum(axis=0), lengths)
    assert parity.compare(GRUSpec(3, 4), ["numpy"], steps=steps, batch_size=batch_size).within


def test_the_seed_decides_all_numbers() -> None:
    def outputs(seed: int) -> list[float]:
        return [c.output for c in parity.compare(GRUSpec(3, 4), ["numpy"], ["float32"], seed=seed)]

    assert outputs(0) == outputs(0) != outputs(1)


def test_dropout_is_taken_as_zero() -> None:
    assert parity.compare(GRUSpec(3, 4, 2, dropout=0.5), INSTALLED, ["float32"], steps=5).within


@pytest.mark.parametrize(
    ("wrong", "out"),
    [
        ({"to_numpy": lambda a: a * (1 + 1e-4)}, {"output", "state"}),
        ({"to_numpy": lambda a: np.full_like(a, np.nan)}, {"output", "state"}),
        ({"gradients": lambda g: {**g, "hx": g["hx"] + 1e-4}}, {"gradients"}),
    ],
    ids=["perturbed", "nan", "gradient"],
)
def test_a_wrong_backend_is_out_of_tolerance(pretend: Any, wrong: dict[str, Any], out: set[str]) -> None:
    pretend(**wrong)
    found = parity.compare(GRUSpec(3, 4), ["numpy", "pretender"], ["float32"], steps=10)
    right, bad = found
    assert right.within
    assert not bad.within
    assert not found.within
    assert {n for n in ("output", "state", "gradients") if not getattr(bad, n) <= bad.tolerance} == out


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        (
            {"spec": {"reset_after": False}},
            "the GRU variant: the reset gate is applied before the product with W_hn, instead of after it",
        ),
        ({"to_numpy": lambda a: a.astype("float16").astype("float32")}, "it was computed in float16, or rounded to it"),
        (
            {"gradients": lambda g: {**g, "hx": 0 * g["hx"]}},
            "the gradient of h_0 is missing, or zero: it is cut off (detached) from the graph",
        ),
        ({"gradients": lambda g: {**g, "input": g["input"][::-1]}}, None),
    ],
    ids=["variant", "float16", "detached", "unusual"],
)
def test_the_usual_cause_is_named(pretend: Any, wrong: dict[str, Any], cause: str | None) -> None:
    pretend(**wrong)
    (found,) = parity.compare(GRUSpec(3, 4), ["pretender"], ["float32"], steps=10)
    assert not found.within
    assert found.cause == cause


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"to_numpy": lambda a: a[..., :1]}, "ShapeError: output: given shape (10, 8, 1), expected (10, 8, 4)"),
        ({"gradients": lambda g: {"input": g["input"]}}, "ArgumentError: hx: missing; given input"),
        ({"gradients": lambda g: 1 // 0}, "ZeroDivisionError: "),
        ({"build": RuntimeError("out of memory")}, "RuntimeError: out of memory"),
    ],
    ids=["shape", "missing", "crash", "build"],
)
def test_a_failing_backend_does_not_stop_others(pretend: Any, wrong: dict[str, Any], reason: str) -> None:
    pretend(**wrong)
    found = parity.compare(GRUSpec(3, 4), ["pretender", "numpy"], ["float32"], steps=10)
    assert [(c.backend, c.within) for c in found] == [("numpy", True)]
    (failure,) = found.failures
    assert failure.backend == "pretender"
    assert failure.reason.startswith(f"float32: {reason}")
    assert not found.within


def test_a_backend_without_gradients_is_compared_by_its_outputs(pretend: Any) -> None:
    class NoGradients(Pretender):
        support = replace(NumpyBackend.support, derivatives=0)

    pretend(NoGradients())
    (comparison,) = parity.compare(GRUSpec(3, 4), ["pretender"], ["float32"])
    assert comparison.gradients is None
    assert comparison.within


def test_bfloat16_is_compared_in_float32(pretend: Any) -> None:
    class Bfloat16(Pretender):
        """Computes in float32 and rounds, like a framework with bfloat16."""

        support = replace(NumpyBackend.support, dtypes=("bfloat16",))

        def build(self, *args: Any, **kwargs: Any) -> Any:
            assert kwargs["dtype"] == "bfloat16"
            return super().build(*args, **{**kwargs, "dtype": "float32"})

        def to_numpy(self, array: Any) -> Any:
            return parity._round(array, "bfloat16")

    pretend(Bfloat16())
    (comparison,) = parity.compare(GRUSpec(3, 4), ["pretender"], ["bfloat16"])
    assert comparison.within
    assert 2**-10 < comparison.output <= 2**-8  # one rounding costs up to half of epsilon, 2**-8


def test_round_to_bfloat16() -> None:
    given = np.array([1, 1 + 2**-7, 1 + 2**-8, 1 + 3 * 2**-8, -3.14159, 1e-30, 0, np.nan, np.inf], np.float32)
    # The upper half of a float32's bits, rounded to even, as every framework's cast does.
    bits = given.view(np.uint32)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)
    rounded = parity._round(given.astype(np.float64), "bfloat16")
    assert rounded.dtype == np.float32
    np.testing.assert_array_equal(rounded, expected)


@pytest.fixture
def third_parties(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Register a backend whose framework is missing, besides numpy and array_api."""
    (tmp_path / "absent_backend.py").write_text("import a_framework_that_is_not_there")
    monkeypatch.syspath_prepend(tmp_path)
    ours = registry._entry_points()
    absent = EntryPoint("absent", "absent_backend:backend", registry.GROUP)
    monkeypatch.setattr(
        registry,
        "_entry_points",
        lambda: {"absent": absent, "array_api": ours["array_api"], "numpy": ours["numpy"]},
    )


@pytest.mark.usefixtures("third_parties")
def test_by_default_backends_that_cannot_be_built_are_left_out() -> None:
    found = parity.compare(GRUSpec(3, 4), steps=10)
    assert [c.backend for c in found] == ["numpy", "numpy"]
    assert found.within
    assert [note.backend for note in found.left_out] == ["absent", "array_api"]
    assert "python -m pip install a_framework_that_is_not_there" in found.left_out[0].reason
    assert found.left_out[1].reason.startswith("it needs the option namespace of build")


@pytest.mark.usefixtures("third_parties")
def test_comparing_nothing_is_not_within_tolerance() -> None:
    found = parity.compare(GRUSpec(3, 4), None, ["bfloat16"])
    assert not found.comparisons
    assert not found.within
    for note, words in zip(found.left_out[1:], ("array_api computes in", "numpy computes in"), strict=True):
        assert words in note.reason


@pytest.mark.usefixtures("third_parties")
@pytest.mark.parametrize(
    ("backends", "dtypes", "error"),
    [
        (["absent"], None, MissingBackendError),
        (["numpy", "nope"], None, UnknownBackendError),
        (["array_api"], None, ArgumentError),
        (["numpy"], ["bfloat16"], LimitError),
        (["numpy"], ["float31"], DTypeError),
    ],
)
def test_a_named_backend_that_cannot_be_compared_is_an_error(
    backends: list[str], dtypes: list[str] | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        parity.compare(GRUSpec(3, 4), backends, dtypes)


def test_float64_is_optional_unless_asked_for(pretend: Any) -> None:
    class NoFloat64(Pretender):
        def limits(self, spec: RecurrentSpec, device: unirnn.Device, dtype: str) -> Any:
            if dtype == "float64":
                yield unirnn.Limit("not on this device")

    pretend(NoFloat64())
    found = parity.compare(GRUSpec(3, 4), ["pretender"])
    assert [c.dtype for c in found] == ["float32"]
    (note,) = found.left_out
    assert note.backend == "pretender"
    assert "not on this device" in note.reason
    with pytest.raises(LimitError, match="not on this device"):
        parity.compare(GRUSpec(3, 4), ["pretender"], ["float64"])


@pytest.mark.skipif("torch" not in INSTALLED, reason="needs torch")
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
def test_a_projection_is_compared() -> None:
    found = parity.compare(LSTMSpec(3, 4, proj_size=2), ["numpy", "torch"])
    assert found.within, found


@pytest.mark.parametrize(("steps", "batch_size"), [(0, 8), (10, -1)])
def test_sizes_are_positive(steps: int, batch_size: int) -> None:
    with pytest.raises(ShapeError, match=f"given {steps}, {batch_size}, expected at least 1 each"):
        parity.compare(GRUSpec(3, 4), ["numpy"], steps=steps, batch_size=batch_size)
