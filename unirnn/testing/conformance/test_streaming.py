"""A sequence fed in chunks, with the state passed on, gives the same numbers as one call."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unirnn
from unirnn import GRUSpec, LSTMSpec, errors
from unirnn.contract.call import join_state
from unirnn.testing.conformance.cases import (
    KINDS,
    Arrays,
    Case,
    assume_supported,
    built,
    cases,
    in_its_dtype,
    skip_if_brief,
    skip_without_gradients,
)
from unirnn.testing.subjects import Subject
from unirnn.testing.tolerances import close


def chunked(rnn_backend: Subject, module: Any, batch: Arrays, case: Case, cuts: list[int]) -> Any:
    """Feed the input in chunks split at the cuts, with the remaining length of each sequence."""
    axis = 1 if case.batch_first and case.batch_size is not None else 0
    state = batch.hx if case.state else None
    outputs = []
    for start, stop in zip([0, *cuts], [*cuts, case.steps], strict=True):
        chunk = batch.input.take(range(start, stop), axis)
        left = None if batch.lengths is None else np.clip(batch.lengths - start, 0, stop - start)
        given_lengths = left if left is None or case.batch_size is not None else int(left[0])
        output, state = rnn_backend.call(module, chunk, state, given_lengths)
        outputs.append(output)
    return np.concatenate(outputs, axis), state


@st.composite
def streams(draw: st.DrawFn) -> tuple[Case, list[int]]:
    case = replace(draw(cases()), bidirectional=False, reverse=False)
    cuts = draw(st.lists(st.integers(1, max(1, case.steps - 1)), unique=True)) if case.steps > 1 else []
    return case, sorted(cuts)


@pytest.mark.promise("steps")
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)  # of each kind
@given(stream=streams())
def test_chunks_of_any_sizes(rnn_backend: Subject, kind: str, stream: tuple[Case, list[int]]) -> None:
    skip_if_brief(rnn_backend, kind)
    case, cuts = stream
    case = in_its_dtype(rnn_backend, case)
    assume_supported(rnn_backend, kind, case)
    module, batch = built(rnn_backend, kind, case)
    output, final = chunked(rnn_backend, module, batch, case, cuts)
    whole, whole_final = rnn_backend.call(module, batch.input, batch.hx if case.state else None, case.seq_length)
    tolerance = 1e-12 if case.dtype == "float64" else 1e-5
    close(output, whole, tolerance, "output")
    for part, expected in zip(final, whole_final, strict=True):
        close(part, expected, tolerance, "state")


@pytest.mark.promise("state", cell="GRU")
def test_a_detached_state_has_the_same_numbers(rnn_backend: Subject) -> None:
    skip_without_gradients(rnn_backend)
    for spec in (GRUSpec(3, 4), LSTMSpec(3, 4)):
        module = rnn_backend.build(spec, seed=0)
        _, final = module(rnn_backend.array(np.ones((5, 2, 3), np.float32), module), seq_length=[5, 0])
        detached = unirnn.detach(final)
        assert isinstance(detached, tuple) == isinstance(final, tuple)
        parts = (detached, final) if isinstance(final, tuple) else ((detached,), (final,))
        for actual, expected in zip(*parts, strict=True):
            assert type(actual) is type(expected)
            np.testing.assert_array_equal(rnn_backend.to_numpy(actual), rnn_backend.to_numpy(expected))
        module(rnn_backend.array(np.ones((5, 2, 3), np.float32), module), join_state(parts[0]))


@pytest.mark.promise("steps", cell="GRU")
def test_no_gradient_passes_a_detached_state(rnn_backend: Subject) -> None:
    skip_without_gradients(rnn_backend)
    module = rnn_backend.build(GRUSpec(3, 4), seed=0)
    x = rnn_backend.native(np.ones((5, 2, 3)))
    gradients, _ = rnn_backend.gradient(lambda h: module(x, rnn_backend.backend.detach(h))[0].sum(), np.ones((1, 2, 4)))
    assert gradients[0] is not None
    assert not gradients[0].any(), "a gradient passes a state that was detached"


def test_detach_refuses_other_objects() -> None:
    unirnn.GRUSpec(3, 4).build("numpy")
    with pytest.raises(errors.ArgumentError, match=r"state: given builtins\.float, expected an array of a backend"):
        unirnn.detach((1.0, 2.0))
