"""T single steps give the same numbers as one call over T steps, and a reset sets the state to zeros."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from unirnn import GRUSpec, LSTMSpec, errors
from unirnn.contract.call import join_state, state_parts
from unirnn.testing.conformance.cases import (
    KINDS,
    Case,
    assert_dropout,
    assume_supported,
    available,
    built,
    cases,
    in_words_of,
    skip_if_brief,
    zeros,
)
from unirnn.testing.subjects import Subject
from unirnn.testing.tolerances import close

B, I, H = 3, 2, 4  # noqa: E741


def call_in_steps(rnn_backend: Subject, module: Any, case: Case, batch: Any) -> Any:
    """Compute the outputs, `(T, B, H)` or `(T, H)`, and the final state step by step."""
    steps, resets = batch.input, batch.resets
    if case.batch_first and case.batch_size is not None:
        steps, resets = steps.swapaxes(0, 1), None if resets is None else resets.T
    state, outputs = batch.hx if case.state else None, []
    for t, x in enumerate(steps):
        if resets is not None and state is not None:
            state = tuple(np.where(resets[t][..., None], 0, part).astype(part.dtype) for part in state)
        given = None if state is None else join_state([rnn_backend.array(part, module) for part in state])
        y, after = module.step(rnn_backend.array(x, module), given)
        outputs.append(rnn_backend.to_numpy(y))
        state = tuple(rnn_backend.to_numpy(part) for part in state_parts(module.spec, after) or ())
    return np.stack(outputs), state


@pytest.mark.promise("steps")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)  # of each kind
@given(case=cases())
def test_steps_are_one_call(rnn_backend: Subject, kind: str, case: Case) -> None:
    skip_if_brief(rnn_backend, kind)
    case = replace(case, bidirectional=False, reverse=False, lengths=None, dtype=available(rnn_backend, case.dtype))
    assume_supported(rnn_backend, kind, case)
    module, batch = built(rnn_backend, kind, case)
    outputs, final = call_in_steps(rnn_backend, module, case, batch)
    whole, whole_final = rnn_backend.call(module, batch.input, batch.hx if case.state else None, None, batch.resets)
    if case.batch_first and case.batch_size is not None:
        outputs = outputs.swapaxes(0, 1)
    close(outputs, whole, rnn_backend.tolerance_of(case.dtype), "output")
    for part, expected in zip(final, whole_final, strict=True):
        close(part, expected, rnn_backend.tolerance_of(case.dtype), "state")
        assert part.dtype == case.dtype


@pytest.mark.promise("dropout", cell="GRU")
def test_dropout_of_a_step(rnn_backend: Subject) -> None:
    module = rnn_backend.build(GRUSpec(I, 64, 2, dropout=0.5), seed=0)
    x = rnn_backend.array(np.ones((B, I), np.float32), module)
    rnn_backend.backend.set_training(module, True)
    first, second = (rnn_backend.to_numpy(module.step(x)[0]) for _ in range(2))
    rnn_backend.backend.set_training(module, False)
    third, fourth = (rnn_backend.to_numpy(module.step(x)[0]) for _ in range(2))
    np.testing.assert_array_equal(third, fourth)
    assert_dropout(rnn_backend, first, second)


X = zeros(B, I)
MISTAKES = {
    "two directions": (
        GRUSpec(I, H, bidirectional=True),
        lambda module, to: module.step(to(X)),
        errors.ArgumentError,
        "step: given layers in two directions, expected layers that run forward only; the reverse direction begins at "
        "the end of a sequence, so call the module on the whole sequence",
    ),
    "two directions, and a pair": (
        GRUSpec(I, H, bidirectional=True),
        lambda module, to: module.step(to(X), (to(zeros(2, B, H)), to(zeros(2, B, H)))),
        errors.ArgumentError,
        "step: given layers in two directions, expected layers that run forward only; the reverse direction begins at "
        "the end of a sequence, so call the module on the whole sequence",
    ),
    "x with an axis T": (
        GRUSpec(I, H),
        lambda module, to: module.step(to(zeros(1, B, I))),
        errors.ShapeError,
        "x: given shape (1, 3, 2), expected (B, I), or (I,) when unbatched",
    ),
    "x with a wrong last axis": (
        GRUSpec(I, H),
        lambda module, to: module.step(to(zeros(B, 7))),
        errors.ShapeError,
        "x: given shape (3, 7), expected 2 (input_size) on the last axis",
    ),
    "x of another dtype": (
        GRUSpec(I, H),
        lambda module, to: module.step(to(zeros(B, I, dtype="float64"))),
        errors.DTypeError,
        "x: given dtype float64, expected float32, the module's own; cast the input, or build with dtype='float64'",
    ),
    "x is a list": (
        GRUSpec(I, H),
        lambda module, to: module.step([[1.0, 2.0]]),
        errors.ArgumentError,
        "x: given list, expected a {array}",
    ),
    "a state of the wrong batch": (
        GRUSpec(I, H, 2),
        lambda module, to: module.step(to(X), to(zeros(2, 7, H))),
        errors.ShapeError,
        "state: given shape (2, 7, 4), expected (2, 3, 4), (L*D, B, H) whatever batch_first says",
    ),
    "a pair for a GRU": (
        GRUSpec(I, H),
        lambda module, to: module.step(to(X), (to(zeros(1, B, H)), to(zeros(1, B, H)))),
        errors.ArgumentError,
        "state: given a tuple of 2, expected one array h for GRU",
    ),
    "a cell state of another dtype": (
        LSTMSpec(I, H),
        lambda module, to: module.step(to(X), (to(zeros(1, B, H)), to(zeros(1, B, H, dtype="float64")))),
        errors.DTypeError,
        "state[1]: given dtype float64, expected float32, the input's",
    ),
    "one array for an LSTM": (
        LSTMSpec(I, H),
        lambda module, to: module.step(to(X), to(zeros(1, B, H))),
        errors.ArgumentError,
        "state: given one {type}, expected a pair (h, c) for LSTM",
    ),
}


@pytest.mark.promise("errors", cell="GRU")
@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(rnn_backend: Subject, mistake: Any) -> None:
    spec, action, exception, words = mistake
    module = rnn_backend.build(spec, seed=0)
    with pytest.raises(exception, match=f"^{in_words_of(rnn_backend.array(X, module), words)}$"):
        action(module, lambda array: rnn_backend.array(array, module))
