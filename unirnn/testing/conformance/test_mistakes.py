"""The same mistake raises the same exception with the same words on every backend."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unirnn import GRUSpec, LinearSpec, LSTMSpec, Sequential, errors
from unirnn.testing.conformance.cases import in_words_of, zeros
from unirnn.testing.subjects import Subject

T, B, I, H = 5, 3, 2, 4  # noqa: E741
Mistake = tuple[Callable[[Any, Any], Any], type[errors.UnirnnError], str]


X = zeros(T, B, I)

# Each row: a function of (gru, to), where ``to`` makes a native array; the exception that it raises; its message.
# ``{array}`` is the framework's name of an array, such as torch.Tensor.
CALLS: dict[str, Mistake] = {
    "no input": (
        lambda gru, to: gru(),
        errors.ArgumentError,
        "GRU: input is missing; call it as module(input, hx=None, seq_length=None, resets=None)",
    ),
    "input is a list": (
        lambda gru, to: gru([[1.0, 2.0]]),
        errors.ArgumentError,
        "input: given list, expected a {array}",
    ),
    "input of rank 1": (
        lambda gru, to: gru(to(zeros(I))),
        errors.ShapeError,
        "input: given shape (2,), expected (T, B, I), or (T, I) when unbatched",
    ),
    "input of rank 4": (
        lambda gru, to: gru(to(zeros(1, T, B, I))),
        errors.ShapeError,
        "input: given shape (1, 5, 3, 2), expected (T, B, I), or (T, I) when unbatched",
    ),
    "input with a wrong last axis": (
        lambda gru, to: gru(to(zeros(T, B, 7))),
        errors.ShapeError,
        "input: given shape (5, 3, 7), expected 2 (input_size) on the last axis",
    ),
    "input without a time step": (
        lambda gru, to: gru(to(zeros(0, B, I))),
        errors.ShapeError,
        "input: given shape (0, 3, 2), expected at least one time step",
    ),
    "input of another dtype": (
        lambda gru, to: gru(to(zeros(T, B, I, dtype="float64"))),
        errors.DTypeError,
        "input: given dtype float64, expected float32, the module's own; cast the input, or build with dtype='float64'",
    ),
    "input of integers": (
        lambda gru, to: gru(to(zeros(T, B, I, dtype="int64"))),
        errors.DTypeError,
        "input: given dtype int64, expected float32, the module's own; cast the input",
    ),
    "input spelled twice": (
        lambda gru, to: gru(to(X), x=to(X)),
        errors.ArgumentError,
        "GRU: 'input' and 'x' are two spellings of one argument; give one",
    ),
    "hx spelled twice": (
        lambda gru, to: gru(to(X), hx=to(zeros(2, B, H)), h_0=to(zeros(2, B, H))),
        errors.ArgumentError,
        "GRU: 'hx' and 'h_0' are two spellings of one argument; give one",
    ),
    "an unknown argument": (
        lambda gru, to: gru(to(X), lengths=[1, 2, 3]),
        errors.ArgumentError,
        "GRU: unknown argument 'lengths'; expected one of input, x, hx, h_0, seq_length, resets",
    ),
    "hx is a pair": (
        lambda gru, to: gru(to(X), (to(zeros(2, B, H)), to(zeros(2, B, H)))),
        errors.ArgumentError,
        "hx: given a tuple of 2, expected one array h_0 for GRU",
    ),
    "hx is a number": (
        lambda gru, to: gru(to(X), 0.0),
        errors.ArgumentError,
        "hx: given float, expected a {array}",
    ),
    "hx of the wrong rank": (
        lambda gru, to: gru(to(X), to(zeros(B, H))),
        errors.ShapeError,
        "hx: given shape (3, 4), expected (2, 3, 4), (L*D, B, H) whatever batch_first says",
    ),
    "hx of the wrong batch": (
        lambda gru, to: gru(to(X), to(zeros(2, 7, H))),
        errors.ShapeError,
        "hx: given shape (2, 7, 4), expected (2, 3, 4), (L*D, B, H) whatever batch_first says",
    ),
    "hx of the wrong layers": (
        lambda gru, to: gru(to(X), to(zeros(1, B, H))),
        errors.ShapeError,
        "hx: given shape (1, 3, 4), expected (2, 3, 4), (L*D, B, H) whatever batch_first says",
    ),
    "hx of the wrong size": (
        lambda gru, to: gru(to(X), to(zeros(2, B, 5))),
        errors.ShapeError,
        "hx: given shape (2, 3, 5), expected (2, 3, 4), (L*D, B, H) whatever batch_first says",
    ),
    "batched hx, unbatched input": (
        lambda gru, to: gru(to(zeros(T, I)), to(zeros(2, 1, H))),
        errors.ShapeError,
        "hx: given shape (2, 1, 4), expected (2, 4), (L*D, H) for an unbatched input",
    ),
    "hx of another dtype": (
        lambda gru, to: gru(to(X), to(zeros(2, B, H, dtype="float64"))),
        errors.DTypeError,
        "hx: given dtype float64, expected float32, the input's",
    ),
    "seq_length too short": (
        lambda gru, to: gru(to(X), None, [1, 2]),
        errors.ShapeError,
        "seq_length: given shape (2,), expected (3,), one integer for each sequence",
    ),
    "seq_length of rank 2": (
        lambda gru, to: gru(to(X), None, [[1, 2, 3]]),
        errors.ShapeError,
        "seq_length: given shape (1, 3), expected (3,), one integer for each sequence",
    ),
    "seq_length is one integer": (
        lambda gru, to: gru(to(X), None, 5),
        errors.ShapeError,
        "seq_length: given shape (), expected (3,), one integer for each sequence",
    ),
    "seq_length a list, unbatched": (
        lambda gru, to: gru(to(zeros(T, I)), None, [5]),
        errors.ShapeError,
        "seq_length: given shape (1,), expected (), one integer for an unbatched input",
    ),
    "seq_length of floats": (
        lambda gru, to: gru(to(X), None, [1.0, 2.0, 3.0]),
        errors.DTypeError,
        "seq_length: given dtype float64, expected integers",
    ),
    "seq_length with NaN": (
        lambda gru, to: gru(to(X), None, [1, float("nan"), 3]),
        errors.DTypeError,
        "seq_length: given dtype float64, expected integers",
    ),
    "seq_length of bools": (
        lambda gru, to: gru(to(X), None, [True, False, True]),
        errors.DTypeError,
        "seq_length: given dtype bool, expected integers",
    ),
    "seq_length of text": (
        lambda gru, to: gru(to(X), None, ["1", "2", "3"]),
        errors.DTypeError,
        "seq_length: given dtype str32, expected integers",
    ),
    "seq_length with None": (
        lambda gru, to: gru(to(X), None, [1, None, 3]),
        errors.DTypeError,
        "seq_length: given dtype object, expected integers",
    ),
    "seq_length a dict": (
        lambda gru, to: gru(to(X), None, {"a": 1}),
        errors.DTypeError,
        "seq_length: given dtype object, expected integers",
    ),
    "native seq_length of floats": (
        lambda gru, to: gru(to(X), None, to(zeros(B))),
        errors.DTypeError,
        "seq_length: given dtype float32, expected integers",
    ),
    "seq_length negative": (
        lambda gru, to: gru(to(X), None, [5, -1, 3]),
        errors.LengthError,
        "seq_length[1]: given -1, expected 0 <= n <= 5, the number of time steps",
    ),
    "seq_length above T": (
        lambda gru, to: gru(to(X), None, [5, 0, 6]),
        errors.LengthError,
        "seq_length[2]: given 6, expected 0 <= n <= 5, the number of time steps",
    ),
    "native seq_length above T": (
        lambda gru, to: gru(to(X), None, to(np.array([5, 0, 99]))),
        errors.LengthError,
        "seq_length[2]: given 99, expected 0 <= n <= 5, the number of time steps",
    ),
    "seq_length above T, unbatched": (
        lambda gru, to: gru(to(zeros(T, I)), None, 6),
        errors.LengthError,
        "seq_length[0]: given 6, expected 0 <= n <= 5, the number of time steps",
    ),
    "resets in the other layout": (
        lambda gru, to: gru(to(X), resets=np.zeros((B, T), bool)),
        errors.ShapeError,
        "resets: given shape (3, 5), expected (5, 3), (T, B): one bool for each step",
    ),
    "native resets for each sequence": (
        lambda gru, to: gru(to(X), resets=to(np.zeros(B, bool))),
        errors.ShapeError,
        "resets: given shape (3,), expected (5, 3), (T, B): one bool for each step",
    ),
    "resets of a batch, unbatched": (
        lambda gru, to: gru(to(zeros(T, I)), resets=np.zeros((T, 1), bool)),
        errors.ShapeError,
        "resets: given shape (5, 1), expected (5,), (T,) for an unbatched input: one bool for each step",
    ),
    "resets of integers": (
        lambda gru, to: gru(to(X), resets=np.zeros((T, B), np.int64)),
        errors.DTypeError,
        "resets: given dtype int64, expected bool; cast it",
    ),
    "native resets of floats": (
        lambda gru, to: gru(to(X), resets=to(zeros(T, B))),
        errors.DTypeError,
        "resets: given dtype float32, expected bool; cast it",
    ),
}

LSTM_CALLS: dict[str, Mistake] = {
    "hx without its cell state": (
        lambda lstm, to: lstm(to(X), to(zeros(1, B, H))),
        errors.ArgumentError,
        "hx: given one {type}, expected a pair (h_0, c_0) for LSTM",
    ),
    "hx of one part": (
        lambda lstm, to: lstm(to(X), (to(zeros(1, B, H)),)),
        errors.ArgumentError,
        "hx: given a tuple of 1, expected a pair (h_0, c_0) for LSTM",
    ),
    "cell state of the wrong shape": (
        lambda lstm, to: lstm(to(X), (to(zeros(1, B, H)), to(zeros(1, B, 5)))),
        errors.ShapeError,
        "hx[1]: given shape (1, 3, 5), expected (1, 3, 4), (L*D, B, H) whatever batch_first says",
    ),
    "cell state of another dtype": (
        lambda lstm, to: lstm(to(X), (to(zeros(1, B, H)), to(zeros(1, B, H, dtype="float64")))),
        errors.DTypeError,
        "hx[1]: given dtype float64, expected float32, the input's",
    ),
    "cell state is missing": (
        lambda lstm, to: lstm(to(X), (to(zeros(1, B, H)), None)),
        errors.ArgumentError,
        "hx[1]: given NoneType, expected a {array}",
    ),
}

BUILDS: dict[str, tuple[dict[str, Any], type[errors.UnirnnError], str]] = {
    "an unknown device": (
        {"device": "tpu"},
        errors.DeviceError,
        "device: given 'tpu', expected cpu, gpu or cuda[:n], ascend or npu[:n]",
    ),
    "a malformed device": (
        {"device": "cuda:x"},
        errors.DeviceError,
        "device: given 'cuda:x', expected cpu, gpu or cuda[:n], ascend or npu[:n]",
    ),
    "an unknown dtype": (
        {"dtype": "float8"},
        errors.DTypeError,
        "dtype: given 'float8', expected one of float16, bfloat16, float32, float64",
    ),
    "a dtype of integers": (
        {"dtype": np.int64},
        errors.DTypeError,
        "dtype: given <class 'numpy.int64'>, expected one of float16, bfloat16, float32, float64",
    ),
    "a seed that is no integer": (
        {"seed": 1.5},
        errors.ArgumentError,
        "seed: given 1.5, expected a non-negative integer or None",
    ),
    "a negative seed": ({"seed": -1}, errors.SpecError, "seed: given -1, expected a non-negative integer"),
}


def expect(exception: type[Exception], pattern: str, action: Callable[[], Any]) -> None:
    with pytest.raises(exception, match=f"^{pattern}$") as caught:
        action()
    assert type(caught.value) is exception


@pytest.mark.promise("errors", cell="GRU")
@pytest.mark.parametrize("mistake", CALLS.values(), ids=CALLS.keys())
def test_in_a_call(rnn_backend: Subject, mistake: Mistake) -> None:
    action, exception, words = mistake
    gru = rnn_backend.build(GRUSpec(I, H, bidirectional=True), seed=0)
    expect(
        exception,
        in_words_of(rnn_backend.array(X, gru), words),
        lambda: action(gru, lambda array: rnn_backend.array(array, gru)),
    )


@pytest.mark.promise("errors", cell="LSTM")
@pytest.mark.parametrize("mistake", LSTM_CALLS.values(), ids=LSTM_CALLS.keys())
def test_in_a_call_of_an_lstm(rnn_backend: Subject, mistake: Mistake) -> None:
    action, exception, words = mistake
    lstm = rnn_backend.build(LSTMSpec(I, H), seed=0)
    expect(
        exception,
        in_words_of(rnn_backend.array(X, lstm), words),
        lambda: action(lstm, lambda array: rnn_backend.array(array, lstm)),
    )


@pytest.mark.promise("errors", cell="GRU")
@pytest.mark.parametrize("mistake", BUILDS.values(), ids=BUILDS.keys())
def test_in_a_build(rnn_backend: Subject, mistake: tuple[dict[str, Any], type[errors.UnirnnError], str]) -> None:
    arguments, exception, words = mistake
    expect(exception, re.escape(words), lambda: rnn_backend.build(GRUSpec(I, H), **arguments))


@pytest.mark.promise("errors", cell="GRU")
def test_an_unknown_option_of_a_build(rnn_backend: Subject) -> None:
    with pytest.raises(errors.ArgumentError, match="unknown argument 'colour'"):
        rnn_backend.build(GRUSpec(I, H), colour="red")


@pytest.mark.promise("errors", cell="GRU")
@pytest.mark.parametrize("device", ["cuda:7", "ascend:7"])
def test_a_device_that_does_not_exist(rnn_backend: Subject, device: str) -> None:
    present = ", ".join(map(str, rnn_backend.backend.devices()))
    words = f"device: given '{device}', not present; {rnn_backend.name} sees {present} on this machine"
    with pytest.raises(errors.DeviceError, match=re.escape(words)):
        rnn_backend.build(GRUSpec(I, H), device=device)


ma: Any = np.ma  # not typed in the stubs of NumPy 1
SUBCLASSES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "masked array": ("numpy.MaskedArray", lambda array: ma.masked_array(array, True)),
    "matrix": ("numpy.matrix", lambda array: array.reshape(len(array), -1).view(np.matrix)),
    "record array": ("numpy.recarray", lambda array: array.view(np.recarray)),
    "Kelvins": (r"\w+\.Kelvins", lambda array: array.view(Kelvins)),
}
LENGTHS = np.array([1, 2, 0])
# Each row: what is wrong, and a function of (gru, to, T, change).
GIVEN: dict[str, tuple[str, Callable[..., Any]]] = {
    "input": ("input", lambda gru, to, steps, change: gru(change(zeros(steps, B, I)))),
    "hx": ("hx", lambda gru, to, steps, change: gru(to(zeros(steps, B, I)), change(zeros(1, B, H)))),
    "step": ("x", lambda gru, to, steps, change: gru.step(change(zeros(B, I)))),
    "lengths": ("seq_length", lambda gru, to, steps, change: gru(to(zeros(steps, B, I)), None, change(LENGTHS))),
    "lengths in a list": (
        "seq_length",
        lambda gru, to, steps, change: gru(to(X), None, [*map(change, LENGTHS[:, None])]),
    ),
    "resets": ("resets", lambda gru, to, steps, change: gru(to(X), resets=change(np.zeros((T, B), bool)))),
    "resets in a list": (
        "resets",
        lambda gru, to, steps, change: gru(to(X), resets=[*map(change, np.zeros((T, B), bool))]),
    ),
}


class Kelvins(np.ndarray[Any, Any]):
    """A third-party array."""


@pytest.mark.promise("errors", cell="GRU")
@pytest.mark.parametrize("place", GIVEN)
@pytest.mark.parametrize("kind", SUBCLASSES)
def test_subclasses_of_numpy_arrays(rnn_backend: Subject, kind: str, place: str) -> None:
    gru = rnn_backend.build(GRUSpec(I, H), seed=0)
    name, change = SUBCLASSES[kind]
    argument, action = GIVEN[place]
    for steps in (2, 6):
        with pytest.raises(errors.ArgumentError, match=rf"^{argument}: given {name}, expected a ") as caught:
            action(gru, lambda array: rnn_backend.array(array, gru), steps, change)
    if kind == "masked array" and ("seq_length" in argument or "resets" in argument):
        assert "its mask would be ignored" in str(caught.value)


@pytest.mark.promise("errors", cell="models")
def test_subclasses_of_numpy_arrays_in_a_model(rnn_backend: Subject) -> None:
    model = Sequential(head=LinearSpec(I, I), encoder=GRUSpec(I, H))
    net = rnn_backend.build(model, seed=0)
    masked, words = ma.masked_array(X, True), "given numpy.MaskedArray, expected a "
    x = rnn_backend.array(X, net)
    actions: dict[str, Callable[[], Any]] = {
        "input": lambda: net(masked),
        r"hx\[0\] \(encoder\)": lambda: net(x, (masked[:1],)),
        "seq_length": lambda: net(x, None, ma.masked_array(LENGTHS, True)),
        "x": lambda: net.step(masked[0]),
    }
    for argument, action in actions.items():
        with pytest.raises(errors.ArgumentError, match=f"^{argument}: {words}"):
            action()


@pytest.mark.promise("errors", cell="GRU")
def test_memory_mapped_arrays_are_taken(rnn_backend: Subject, tmp_path: Path) -> None:
    gru = rnn_backend.build(GRUSpec(I, H), seed=0)
    x, ns = (
        np.memmap(tmp_path / str(k), dtype, "w+", shape=shape)
        for k, (dtype, shape) in enumerate(((np.float32, X.shape), (np.int64, B)))
    )
    x[:] = 1
    assert rnn_backend.call(gru, x, seq_length=ns)[0].shape == (T, B, H)


@pytest.mark.promise("errors", cell="GRU")
def test_a_module_still_works_after_a_mistake(rnn_backend: Subject) -> None:
    gru = rnn_backend.build(GRUSpec(I, H, bidirectional=True), seed=0)
    x = np.ones((T, B, I), np.float32)
    expected = rnn_backend.call(gru, x, seq_length=[5, 0, 2])[0]
    for action, exception, _ in CALLS.values():
        with pytest.raises(exception):
            action(gru, lambda array: rnn_backend.array(array, gru))
    np.testing.assert_array_equal(rnn_backend.call(gru, x, seq_length=[5, 0, 2])[0], expected)
