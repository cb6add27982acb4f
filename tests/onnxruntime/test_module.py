"""Saved files in ONNX Runtime alone, and the backend: sessions, limits, copies, and repeated calls."""

import copy
import pickle
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import unirnn
from unirnn import Device, GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, errors
from unirnn.files import onnx_writer
from unirnn.testing.conformance.cases import KINDS
from unirnn.testing.oracle import recurrent
from unirnn.testing.strategies import specs
from unirnn.testing.tolerances import close

STEPS = 6


def run(session: Any, **arrays: Any) -> list[NDArray[Any]]:
    found: list[NDArray[Any]] = session.run(None, arrays)
    return found


def written(taken: Snapshot) -> bytes:
    """The bytes of a snapshot's file."""
    data: bytes = onnx_writer.emit(taken.spec, taken.weights).SerializeToString()
    return data


def session_of(source: bytes | str) -> Any:
    return onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])


def assert_file_meets_guarantees(
    spec: RecurrentSpec,
    source: bytes | str,
    seq_length: list[int],
    filler: float,
    dtype: str = "float32",
    seed: int = 0,
) -> None:
    """Compare a session of the file with the oracle; padding, and states of empty sequences, hold the filler."""
    taken = unirnn.snapshot(spec.build("numpy", seed=0, dtype=dtype))
    session = session_of(source)
    rng = np.random.default_rng(seed)
    ns = np.array(seq_length)
    clean = rng.standard_normal((STEPS, len(ns), spec.input_size)).astype(dtype)
    states = [rng.standard_normal(shape).astype(dtype) for shape in spec.state_shapes(len(ns)).values()]
    padding = np.arange(STEPS)[:, None] >= ns
    dirty = clean.copy()
    dirty[padding] = filler
    if spec.batch_first:
        clean, dirty, padding = clean.swapaxes(0, 1), dirty.swapaxes(0, 1), padding.T
    feeds = {f"{name}_0": state for name, state in zip(spec.states, states, strict=True)}
    output, *final = run(session, input=dirty, seq_length=ns, **feeds)

    wide = {name: array.astype(np.float64) for name, array in taken.weights.items()}
    hx = tuple(state.astype(np.float64) for state in states)
    expected, expected_final = recurrent(spec, wide, clean.astype(np.float64), hx, ns)
    tolerance = 5e-3 if dtype == "float16" else 1e-5
    close(output, expected, tolerance, "output")
    assert output.dtype == dtype
    assert (output[padding] == 0).all()
    for part, wanted, initial in zip(final, expected_final, states, strict=True):
        close(part, wanted, tolerance, "state")
        np.testing.assert_array_equal(part[:, ns == 0], initial[:, ns == 0])

    # the initial state of a sequence of length 0 is returned, and does not affect other sequences
    for state in states:
        state[:, ns == 0] = filler
    again, *final_again = run(session, input=dirty, seq_length=ns, **feeds)
    np.testing.assert_array_equal(again, output)
    for part, before, initial in zip(final_again, final, states, strict=True):
        np.testing.assert_array_equal(part[:, ns > 0], before[:, ns > 0])
        np.testing.assert_array_equal(part[:, ns == 0], initial[:, ns == 0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_file_meets_the_guarantees(kind: str, tmp_path: Path) -> None:
    """`test_random_files_meet_the_guarantees` covers other layers."""
    cls, options = KINDS[kind]
    spec = cls(3, 4, 3, bidirectional=True, batch_first=True, **options)
    path = tmp_path / "layer.onnx"
    unirnn.snapshot(spec.build("numpy", seed=0)).save(path)
    assert_file_meets_guarantees(spec, str(path), [3, STEPS, 0, 5, 1], np.nan)


@settings(max_examples=100)
@given(
    spec=specs(),
    seq_length=st.lists(st.integers(0, STEPS), min_size=1, max_size=6),
    filler=st.sampled_from([np.nan, np.inf, -np.inf, 1e30]),
    dtype=st.sampled_from(["float32", "float32", "float16"]),
    seed=st.integers(0, 2**16),
)
def test_random_files_meet_the_guarantees(
    spec: RecurrentSpec, seq_length: list[int], filler: float, dtype: str, seed: int
) -> None:
    taken = unirnn.snapshot(spec.build("numpy", seed=0, dtype=dtype))
    with np.errstate(over="ignore"):  # 1e30 is infinite in float16
        assert_file_meets_guarantees(spec, written(taken), seq_length, filler, dtype, seed)


@pytest.mark.parametrize("wrong", [-1, STEPS + 1])
@pytest.mark.parametrize("kind", KINDS)
def test_a_length_out_of_range_is_an_error_in_a_session(kind: str, wrong: int) -> None:
    cls, options = KINDS[kind]
    taken = unirnn.snapshot(cls(3, 4, **options).build("numpy", seed=0))
    states = {f"{name}_0": np.zeros((1, 2, 4), np.float32) for name in taken.spec.states}
    x = np.zeros((STEPS, 2, 3), np.float32)
    with pytest.raises(Exception, match="Invalid value/s in sequence_lens"):
        run(session_of(written(taken)), input=x, seq_length=np.array([2, wrong]), **states)


# ---- the backend ---------------------------------------------------------------------------------

SPEC = LSTMSpec(3, 4, 2, bidirectional=True, batch_first=True)
X = np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32)


def texts(spec: RecurrentSpec, **arguments: Any) -> list[str]:
    return [str(limit) for limit in unirnn.explain(spec, "onnxruntime", **arguments)]


INFERENCE = "differs: onnxruntime is for inference only: it has no gradients and applies no dropout"
LIMITS: dict[str, tuple[RecurrentSpec, dict[str, Any], list[str]]] = {
    "inference only": (GRUSpec(3, 4), {}, []),
    "a projection": (LSTMSpec(3, 4, proj_size=2), {}, []),
    "float64": (
        GRUSpec(3, 4),
        {"dtype": "float64"},
        ["can't: onnxruntime computes in float16, float32, not in float64"],
    ),
    "float16": (
        GRUSpec(3, 4),
        {"dtype": "float16"},
        ["differs: float16 is computed in float32, and the results are rounded"],
    ),
    "a GPU": (
        GRUSpec(3, 4),
        {"device": "cuda:1"},
        ["differs: it runs through CUDAExecutionProvider, with which unirnn has not been tested"],
    ),
    "weights too large for a model": (
        RNNSpec(2**15, 2**15, bias=False),
        {},
        ["can't: onnx: given weights of 8589934592 bytes, expected at most 2146435072 in one model"],
    ),
}


@pytest.mark.parametrize(("spec", "arguments", "expected"), LIMITS.values(), ids=LIMITS.keys())
def test_explain_lists_the_limits(spec: RecurrentSpec, arguments: dict[str, Any], expected: list[str]) -> None:
    assert sorted(texts(spec, **arguments)) == sorted([INFERENCE, *expected])


@pytest.mark.parametrize("kind", KINDS)
def test_onnx_runtime_has_no_float64_layers(kind: str) -> None:
    cls, options = KINDS[kind]
    taken = unirnn.snapshot(cls(3, 4, **options).build("numpy", seed=0, dtype="float64"))
    states = {f"{name}_0": np.zeros((1, 2, 4)) for name in taken.spec.states}
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED|does not support double"):
        run(session_of(written(taken)), input=np.zeros((5, 2, 3)), seq_length=np.array([5, 5]), **states)


@pytest.mark.parametrize("again", [copy.deepcopy, copy.copy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_are_independent(again: Any) -> None:
    module = SPEC.build("onnxruntime", seed=0, session_options={"intra_op_num_threads": 1}).train()
    expected, _ = module(X, seq_length=[5, 2])
    other = again(module)
    assert other.training
    assert unirnn.snapshot(other) == unirnn.snapshot(module)
    unirnn.load_weights(module, unirnn.snapshot(SPEC.build("numpy", seed=1)))
    np.testing.assert_array_equal(other(X, seq_length=[5, 2])[0], expected)
    assert (module(X, seq_length=[5, 2])[0] != expected)[0].any()


def test_weights_are_read_only_and_replaced_for_both_graphs() -> None:
    module = SPEC.build("onnxruntime", seed=0)
    calls: tuple[dict[str, Any], ...] = ({}, {"seq_length": [5, 2]})
    for arguments in calls:
        module(X, **arguments)
    with pytest.raises(ValueError, match="read-only"):
        module.weights["weight_ih_l0"][...] = 0
    with pytest.raises(TypeError):
        module.weights["weight_ih_l0"] = 0
    reference = SPEC.build("numpy", seed=1)
    unirnn.load_weights(module, unirnn.snapshot(reference))
    for arguments in calls:
        close(module(X, **arguments)[0], reference(X, **arguments)[0], 1e-6)


def test_non_contiguous_input() -> None:
    module = SPEC.build("onnxruntime", seed=0)
    expected, _ = module(X)
    np.testing.assert_array_equal(module(np.asfortranarray(X))[0], expected)
    np.testing.assert_array_equal(module(np.repeat(X, 2, axis=1)[:, ::2])[0], expected)


@pytest.mark.parametrize("seq_length", [None, [0, 0], [3, 0]])
def test_the_cached_zero_state_is_not_returned(seq_length: Any) -> None:
    module = LSTMSpec(3, 4).build("onnxruntime", seed=0)
    x = np.ones((3, 2, 3), np.float32)
    output, state = module(x, seq_length=seq_length)
    expected = output.copy(), *(part.copy() for part in state)
    for array in (output, *state):
        array += 1
    output, state = module(x, seq_length=seq_length)
    for array, wanted in zip((output, *state), expected, strict=True):
        np.testing.assert_array_equal(array, wanted)
    assert module(x[:, :1])[0].shape == (3, 1, 4)
    assert module(x[:, 0])[1][0].shape == (1, 4)


@pytest.mark.parametrize("n", [0, 1, 3, 5])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_sequences_of_equal_length_run_valid_steps_only(kind: str, batch_first: bool, n: int) -> None:
    cls, options = KINDS[kind]
    spec = cls(3, 4, 2, bidirectional=True, batch_first=batch_first, **options)
    module, reference = (spec.build(backend, seed=0) for backend in ("onnxruntime", "numpy"))
    x = np.random.default_rng(0).standard_normal((5, 2, 3)).astype(np.float32)
    x[n:] = np.nan
    batches = (x.swapaxes(0, 1) if batch_first else x, [n, n]), (x[:, 0], n)
    for input, seq_length in batches:
        output, state = module(input, seq_length=seq_length)
        expected, expected_state = reference(input, seq_length=seq_length)
        close(output, expected, 1e-6)
        close(np.stack(state), np.stack(expected_state), 1e-6)
        padding = output[:, n:] if batch_first and output.ndim == 3 else output[n:]
        assert (padding == 0).all()


def test_the_cache_of_checked_calls_hides_no_mistake() -> None:
    """The module remembers the types and shapes of the last call that passed the checks."""
    x, h = np.ones((5, 2, 3), np.float32), np.ones((1, 2, 4), np.float32)
    gru, lstm = (cls(3, 4).build("onnxruntime", seed=0) for cls in (GRUSpec, LSTMSpec))
    mistakes: list[tuple[Any, Any, Any]] = [
        (gru, h, (h,)),
        (gru, h, (h, h)),
        (gru, h, [h]),
        (gru, h, h.tolist()),
        (gru, h, h.astype(np.float64)),
        (gru, h, h[:, :1]),
        (gru, None, h[:, :1]),
        (lstm, (h, h), h),
        (lstm, (h, h), (h,)),
        (lstm, (h, h), (h, h, h)),
        (lstm, (h, h), [h, h[0]]),
        (lstm, (h, h), (h, None)),
        (lstm, None, (h, h.astype(np.float64))),
    ]
    for module, right, wrong in mistakes:
        expected = module(x, right)[0]
        with pytest.raises(errors.UnirnnError):
            module(x, wrong)
        for input in (x.tolist(), x.astype(np.float64), x[..., :2], x[:0], x[0, 0], None):
            with pytest.raises(errors.UnirnnError):
                module(input, right)
        with pytest.raises(errors.ArgumentError, match="two spellings"):
            module(x, right, x=x)
        np.testing.assert_array_equal(module(x, right)[0], expected)
    np.testing.assert_array_equal(lstm(x, [h, h])[0], lstm(x, (h, h))[0])
    np.testing.assert_array_equal(gru(x=x, h_0=h)[0], gru(x, h)[0])


@pytest.mark.parametrize("options", [{"colour": 1}, {"intra_op_num_threads": "many"}])
def test_session_options_are_checked_when_building(options: dict[str, Any]) -> None:
    (name, value), *_ = options.items()
    with pytest.raises(errors.ArgumentError, match=f"^session_options: given {name}={value!r}, expected what "):
        SPEC.build("onnxruntime", session_options=options)


def test_session_options_have_to_be_a_mapping() -> None:
    with pytest.raises(errors.ArgumentError, match="session_options: given 5, expected a mapping"):
        SPEC.build("onnxruntime", session_options=5)


def test_session_options_reach_the_session(tmp_path: Path) -> None:
    path = tmp_path / "optimized.onnx"
    module = GRUSpec(3, 4).build("onnxruntime", seed=0, session_options={"optimized_model_filepath": str(path)})
    module(X)
    assert path.exists()


def test_a_provider_that_does_not_start_is_a_device_error(monkeypatch: pytest.MonkeyPatch) -> None:
    available = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: available)
    backend = unirnn.registry.load("onnxruntime")
    assert backend.devices() == (Device("cpu"), Device("gpu", 0))
    words = "device: given 'gpu:0', but onnxruntime could not use its CUDAExecutionProvider"
    with (
        pytest.warns(UserWarning, match="CUDAExecutionProvider"),
        pytest.raises(errors.DeviceError, match=f"^{re.escape(words)}$"),
    ):
        SPEC.build("onnxruntime", device="cuda:0")


def test_gradients_are_refused() -> None:
    with pytest.raises(errors.LimitError, match=r"^onnxruntime has no gradients"):
        unirnn.registry.load("onnxruntime").gradients(None, {"input": X}, ())


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx"])
def test_missing_packages_are_named(missing: str) -> None:
    program = f"""
import sys
sys.modules[{missing!r}] = None
import unirnn
try:
    unirnn.GRUSpec(3, 4).build("onnxruntime")
except ImportError as error:
    assert type(error) is unirnn.errors.MissingBackendError
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == (
        f"backend 'onnxruntime' needs {missing}, which is not installed; "
        'to install it: python -m pip install "onnx>=1.16" "onnxruntime>=1.17"\n'
    )


@pytest.mark.parametrize("state", ["none", "given"])
@pytest.mark.parametrize("cls", [GRUSpec, LSTMSpec])
def test_a_call_with_the_same_shapes_is_not_checked_again(cls: Any, state: str) -> None:
    x, h = np.ones((5, 2, 3), np.float32), np.ones((1, 2, 4), np.float32)
    hx = None if state == "none" else (h, h) if cls is LSTMSpec else h
    module = cls(3, 4).build("onnxruntime", seed=0)
    expected = module(x, hx)[0]
    with mock.patch("unirnn.contract.module.prepare") as prepare:
        np.testing.assert_array_equal(module(x.copy(), hx)[0], expected)
    prepare.assert_not_called()


@pytest.mark.parametrize("cls", [GRUSpec, LSTMSpec])
def test_a_step_and_an_unbatched_call_of_the_same_shapes(cls: Any) -> None:
    x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
    module = cls(3, 4).build("onnxruntime", seed=0)
    expected = module(x)[0]
    for _ in range(2):
        y, _ = module.step(x)
        np.testing.assert_allclose(y[0], expected[0], rtol=1e-6)
        output, _ = module(x)
        np.testing.assert_array_equal(output, expected)
    with mock.patch("unirnn.contract.module.prepare_step") as prepare:
        module.step(x)
        prepare.reset_mock()
        module.step(x)
    prepare.assert_not_called()
