"""Batches padded on the left, and masks: every backend moves the steps, and moves gradients back."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import unirnn
from unirnn import GRUSpec, errors
from unirnn.testing.subjects import Subject

LENGTHS = [3, 0, 5, 1]
B, T = len(LENGTHS), 5


def native(subject: Subject, array: NDArray[Any]) -> Any:
    """A NumPy array as an array of the framework, with the same dtype."""
    module = GRUSpec(2, 2).build(subject.backend.name, dtype="float32", **subject.options)
    return subject.backend.from_numpy(np.ascontiguousarray(array), module)


def moved(x: NDArray[Any], lengths: list[int], *, to_the_right: bool) -> NDArray[Any]:
    """`(B, T, ...)`, one step at a time."""
    found = np.empty_like(x)
    for b, n in enumerate(lengths):
        for t in range(x.shape[1]):
            left, right = (t + len(x[b]) - n) % len(x[b]), t
            found[b, right if to_the_right else left] = x[b, left if to_the_right else right]
    return found


@pytest.mark.parametrize("shape", [(B, T), (B, T, 2), (B, T, 2, 3)])
@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
@pytest.mark.parametrize("batch_first", [True, False])
def test_steps_are_moved(rnn_backend: Subject, shape: tuple[int, ...], dtype: str, batch_first: bool) -> None:
    x = (np.arange(np.prod(shape)).reshape(shape) % (3 if dtype == "bool" else 1_000)).astype(dtype)
    to_numpy = rnn_backend.backend.to_numpy
    for function, to_the_right in ((unirnn.left_to_right, True), (unirnn.right_to_left, False)):
        given = native(rnn_backend, x if batch_first else x.swapaxes(0, 1))
        found = function(given, native(rnn_backend, np.array(LENGTHS)), batch_first=batch_first)
        assert (type(found), found.dtype) == (type(given), given.dtype)
        expected = moved(x, LENGTHS, to_the_right=to_the_right)
        np.testing.assert_array_equal(to_numpy(found), expected if batch_first else expected.swapaxes(0, 1))


def test_gradients_are_moved_back(rnn_backend: Subject) -> None:
    x, d = np.random.default_rng(0).standard_normal((2, B, T, 2)).astype(np.float32)
    weight = native(rnn_backend, d)

    def loss(x: Any) -> Any:
        return (unirnn.left_to_right(x, LENGTHS, batch_first=True) * weight).sum()

    (gradient,), _ = rnn_backend.gradient(loss, x)
    assert gradient is not None
    np.testing.assert_array_equal(gradient, moved(d, LENGTHS, to_the_right=False))


def test_a_batch_padded_on_the_left_gives_each_sequence_its_own_results(rnn_backend: Subject) -> None:
    """Each sequence gives the same results as alone, at its own steps."""
    net = GRUSpec(2, 3, bidirectional=True).build(rnn_backend.backend.name, seed=0, **rnn_backend.options)
    x = np.random.default_rng(0).standard_normal((T, B, 2)).astype(np.float32)
    to_numpy = rnn_backend.backend.to_numpy
    right = unirnn.left_to_right(native(rnn_backend, x), LENGTHS, batch_first=False)
    output, _ = net(right, seq_length=LENGTHS)
    left = to_numpy(unirnn.right_to_left(output, LENGTHS, batch_first=False))
    for b, n in enumerate(LENGTHS):
        assert not left[: T - n, b].any()
        if n:
            alone, _ = net(native(rnn_backend, x[T - n :, b : b + 1]))
            np.testing.assert_allclose(left[T - n :, b], to_numpy(alone)[:, 0], rtol=1e-5, atol=1e-6)


@given(st.data(), st.integers(0, 4), st.integers(0, 6), st.booleans())
def test_moving_steps_there_and_back_changes_nothing(
    data: st.DataObject, batch_size: int, steps: int, batch_first: bool
) -> None:
    lengths = data.draw(st.lists(st.integers(0, steps), min_size=batch_size, max_size=batch_size))
    x = np.arange(batch_size * steps * 2).reshape((batch_size, steps, 2))
    x = x if batch_first else x.swapaxes(0, 1)
    right = unirnn.left_to_right(x, lengths, batch_first=batch_first)
    np.testing.assert_array_equal(unirnn.right_to_left(right, lengths, batch_first=batch_first), x)


@given(st.data(), st.integers(0, 4), st.integers(0, 6), st.sampled_from(["bool", "int8", "uint8", "int64"]))
def test_the_lengths_of_a_mask(data: st.DataObject, batch_size: int, steps: int, dtype: str) -> None:
    lengths = data.draw(st.lists(st.integers(0, steps), min_size=batch_size, max_size=batch_size))
    mask = np.array([[t < n for t in range(steps)] for n in lengths], bool).reshape(batch_size, steps).astype(dtype)
    found = unirnn.lengths_of(mask)
    assert (found.tolist(), found.dtype.name, found.shape) == (lengths, "int64", (batch_size,))


def test_a_mask_of_a_framework(rnn_backend: Subject) -> None:
    mask = np.arange(T) < np.array(LENGTHS)[:, None]
    for dtype in ("bool", "int32", "int64"):
        assert unirnn.lengths_of(native(rnn_backend, mask.astype(dtype))).tolist() == LENGTHS


ON_THE_LEFT = (
    "mask[1]: given [0, 1, 1], expected ones and then zeros; if the batch is padded on the left, its lengths are "
    "mask.sum(1), and unirnn.left_to_right(x, lengths, batch_first=...) moves its steps; if the ones are the padding, "
    "invert the mask"
)
X = np.zeros((3, 2, 4))
MISTAKES: dict[str, tuple[Callable[[], Any], type[errors.UnirnnError], str]] = {
    "padded on the left": (
        lambda: unirnn.lengths_of([[1, 1, 1], [0, 1, 1], [0, 0, 1]]),
        errors.ArgumentError,
        ON_THE_LEFT,
    ),
    "ones after zeros": (
        lambda: unirnn.lengths_of(np.array([[1, 1, 0], [1, 0, 1], [0, 1, 0]], bool)),
        errors.ArgumentError,
        "mask[1]: given [1, 0, 1], expected ones and then zeros",
    ),
    "a long row": (
        lambda: unirnn.lengths_of(np.arange(100)[None] % 2),
        errors.ArgumentError,
        f"mask[0]: given [{'0, 1, ' * 16}...], expected ones and then zeros",
    ),
    "another number": (
        lambda: unirnn.lengths_of([[1, 0], [2, 0]]),
        errors.ArgumentError,
        "mask[1, 0]: given 2, expected 0 or 1",
    ),
    "floats": (
        lambda: unirnn.lengths_of([[1.0, 0.0]]),
        errors.DTypeError,
        "mask: given dtype float64, expected bool, or integers 0 and 1",
    ),
    "one row": (
        lambda: unirnn.lengths_of([1, 0]),
        errors.ShapeError,
        "mask: given shape (2,), expected (B, T), one row for each sequence",
    ),
    "rows of several lengths": (
        lambda: unirnn.lengths_of([[1], [1, 0]]),
        errors.ShapeError,
        "mask: given rows of several lengths, expected (B, T)",
    ),
    "lengths of another batch": (
        lambda: unirnn.left_to_right(X, [1, 2, 3], batch_first=False),
        errors.ShapeError,
        "seq_length: given shape (3,), expected (2,), one integer for each sequence",
    ),
    "a length beyond the steps": (
        lambda: unirnn.right_to_left(X, [1, 2, 3], batch_first=True),
        errors.LengthError,
        "seq_length[2]: given 3, expected 0 <= n <= 2, the number of time steps",
    ),
    "one axis": (
        lambda: unirnn.left_to_right(X[0, 0], [1], batch_first=True),
        errors.ShapeError,
        "x: given shape (4,), expected (B, T, ...)",
    ),
    "no array": (
        lambda: unirnn.left_to_right([[1, 2]], [1], batch_first=True),
        errors.ArgumentError,
        "x: given list, expected an array",
    ),
    "no layout": (
        lambda: unirnn.left_to_right(X, [1, 2, 3], batch_first=None),  # type: ignore[arg-type]
        errors.ArgumentError,
        "batch_first: given None, expected True or False",
    ),
}


@pytest.mark.parametrize(("call", "kind", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(call: Callable[[], Any], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert str(caught.value).startswith(words)
