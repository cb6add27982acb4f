"""The sequences of a batch with resets, which are computed side by side."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from unirnn.contract.sequences import sequences


@given(data=st.data())
def test_every_valid_step_is_in_one_sequence(data: st.DataObject) -> None:
    steps, batch_size = data.draw(st.integers(1, 9)), data.draw(st.integers(0, 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    lengths, resets = rng.integers(0, steps + 1, batch_size), rng.random((steps, batch_size)) < 0.4
    found = sequences(steps, batch_size, lengths, resets)
    numbers = np.full((steps, batch_size), -1)
    for number, (column, begin, length) in enumerate(zip(found.columns, found.begins, found.lengths, strict=True)):
        assert (numbers[begin : begin + length, column] == -1).all()
        numbers[begin : begin + length, column] = number
    np.testing.assert_array_equal(numbers >= 0, np.arange(steps)[:, None] < lengths)
    begins = (np.diff(numbers, axis=0) != 0) & (numbers[1:] >= 0)
    np.testing.assert_array_equal(begins, resets[1:] & (numbers[1:] >= 0))
    # Each column has one initial and one final state per direction; a reset at step 0 removes the forward initial one.
    for direction in (0, 1):
        np.testing.assert_array_equal(np.sort(found.columns[found.has_final[direction]]), np.arange(batch_size))
    np.testing.assert_array_equal(np.sort(found.columns[found.has_initial[1]]), np.arange(batch_size))
    np.testing.assert_array_equal(found.columns[found.has_initial[0]], np.flatnonzero(~(resets[0] & (lengths > 0))))


def test_groups_have_little_padding() -> None:
    lengths = np.random.default_rng(0).integers(0, 101, 50)
    groups = sequences(100, 50, lengths, None).groups()
    np.testing.assert_array_equal(np.sort(np.concatenate(groups)), np.arange(50))
    for group in groups:
        found = np.maximum(1, lengths[group])
        assert found.max() < 2 * found.min()
