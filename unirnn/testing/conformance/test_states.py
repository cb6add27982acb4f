"""Operations on states between steps: zeros, selection, repetition, and a choice between two states."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, errors, state
from unirnn.contract.call import join_state, state_parts
from unirnn.devices import short_name
from unirnn.testing.conformance.cases import refusal
from unirnn.testing.subjects import Subject

SPECS = [GRUSpec(3, 4, 2), LSTMSpec(3, 4, 2, bidirectional=True)]
each = pytest.mark.parametrize("spec", SPECS, ids=repr)


def drawn(spec: RecurrentSpec, seed: int) -> list[NDArray[Any]]:
    """A state of three sequences."""
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in spec.state_shapes(3).values()]


class Held:
    """A module, with methods that convert states to its framework and check them."""

    def __init__(self, rnn_backend: Subject, spec: RecurrentSpec) -> None:
        self.rnn_backend, self.module = rnn_backend, rnn_backend.build(spec, seed=0)

    def native(self, parts: list[NDArray[Any]]) -> Any:
        return join_state([self.rnn_backend.array(part, self.module) for part in parts])

    def check(self, actual: Any, expected: list[NDArray[Any]]) -> None:
        parts = state_parts(self.module.spec, actual) or ()
        kind = self.rnn_backend.array(np.zeros(1, np.float32), self.module)
        for part, other in zip(parts, expected, strict=True):
            assert type(part) is type(kind)
            assert getattr(part, "device", None) == getattr(kind, "device", None)
            np.testing.assert_array_equal(self.rnn_backend.to_numpy(part), other)


@pytest.mark.promise("state")
@each
def test_zeros(rnn_backend: Subject, spec: RecurrentSpec) -> None:
    held = Held(rnn_backend, spec)
    for batch_size in (3, 0, None):
        shapes = spec.state_shapes(batch_size).values()
        held.check(state.zeros(held.module, batch_size), [np.zeros(shape, np.float32) for shape in shapes])
    x = rnn_backend.array(np.ones((5, 3, 3), np.float32), held.module)
    output, _ = held.module(x, state.zeros(held.module, 3))
    np.testing.assert_array_equal(rnn_backend.to_numpy(output), rnn_backend.to_numpy(held.module(x)[0]))


@pytest.mark.promise("state", cell="GRU")
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_zeros_of_the_dtype_of_the_module(rnn_backend: Subject, dtype: str) -> None:
    if refusal(rnn_backend, GRUSpec(3, 4), dtype) is not None:
        pytest.skip(f"no {dtype}")
    module = rnn_backend.build(GRUSpec(3, 4), dtype=dtype)
    assert short_name(state.zeros(module, 2).dtype) == dtype


@pytest.mark.promise("state")
@each
def test_select(rnn_backend: Subject, spec: RecurrentSpec) -> None:
    held, parts = Held(rnn_backend, spec), drawn(spec, 0)
    for index in ([2, 0, 0, 1], [1], []):
        expected = [part[:, index] for part in parts]
        for given in (
            index,
            np.array(index, np.int64),
            rnn_backend.array(np.array(index, np.int64), held.module),
            rnn_backend.array(np.array(index, np.int32), held.module),
        ):
            held.check(state.select(held.native(parts), given), expected)


@pytest.mark.promise("state")
@each
def test_repeat(rnn_backend: Subject, spec: RecurrentSpec) -> None:
    held, parts = Held(rnn_backend, spec), drawn(spec, 0)
    for n in (1, 3):
        held.check(state.repeat(held.native(parts), n), [part.repeat(n, axis=1) for part in parts])


@pytest.mark.promise("state")
@each
def test_where(rnn_backend: Subject, spec: RecurrentSpec) -> None:
    held, a, b = Held(rnn_backend, spec), drawn(spec, 0), drawn(spec, 1)
    mask = [True, False, True]
    expected = [np.where(np.array(mask)[:, None], *parts) for parts in zip(a, b, strict=True)]
    for part, other in zip(a, b, strict=True):
        part[:, 1], other[:, [0, 2]] = np.nan, np.inf
    for given in (mask, np.array(mask), rnn_backend.array(np.array(mask), held.module)):
        held.check(state.where(given, held.native(a), held.native(b)), expected)


@pytest.mark.promise("state", cell="LSTM")
def test_what_comes_out_goes_into_a_step(rnn_backend: Subject) -> None:
    """A reordered beam of two and a reset sequence can be passed to a step."""
    module = rnn_backend.build(LSTMSpec(3, 4), seed=0)
    whole, _ = rnn_backend.call(module, np.ones((2, 2, 3), np.float32))
    x = rnn_backend.array(np.ones((2, 3), np.float32), module)
    _, before = module.step(x, state.zeros(module, 2))
    beams = state.select(state.repeat(before, 2), [3, 0])
    after = state.where([True, False], state.zeros(module, 2), beams)
    y, _ = module.step(x, after)
    expected = [rnn_backend.to_numpy(module.step(x, given)[0]) for given in (None, before)]
    found = rnn_backend.to_numpy(y)
    np.testing.assert_allclose(found, [expected[0][0], expected[1][0]], atol=1e-6)
    np.testing.assert_allclose(found, whole[:, 0], atol=1e-6, err_msg="the steps 0 and 1 are not those of one call")


@pytest.mark.promise("errors", cell="LSTM")
class TestMistakes:
    @pytest.fixture
    def held(self, rnn_backend: Subject) -> Held:
        return Held(rnn_backend, LSTMSpec(3, 4))

    @pytest.fixture
    def pair(self, held: Held) -> Any:
        return held.native(drawn(LSTMSpec(3, 4), 0))

    def test_an_index(self, held: Held, pair: Any) -> None:
        for index, error, words in (
            ([1, 3], errors.ArgumentError, r"index\[1\]: given 3, expected 0 <= i < 3, the number of sequences"),
            ([-1], errors.ArgumentError, r"index\[0\]: given -1, expected 0 <= i < 3"),
            ([[1]], errors.ShapeError, r"index: given shape \(1, 1\), expected \(K,\)"),
            ([0.0], errors.DTypeError, "index: given dtype float64, expected integers"),
            ([True, False, True], errors.DTypeError, "index: given dtype bool, expected integers"),
            (1, errors.ArgumentError, "index: given int, expected an array or a list"),
            ([[1], []], errors.ArgumentError, "index: given a list, expected an array"),
        ):
            with pytest.raises(error, match=words):
                state.select(pair, index)

    @pytest.mark.parametrize("outside", [3, -1])
    def test_a_native_index_out_of_range(self, held: Held, pair: Any, outside: int) -> None:
        index = held.rnn_backend.array(np.array([1, outside]), held.module)
        if "cuda" in str(getattr(index, "device", "")):
            pytest.skip("on this device, an index out of range stops the whole process")
        with pytest.raises(errors.ArgumentError, match=r"index.*: .*expected 0 <= i < 3, the number of sequences"):
            state.select(pair, index)

    def test_a_mask(self, pair: Any) -> None:
        for mask, error, words in (
            (
                [True, False],
                errors.ShapeError,
                r"mask: given shape \(2,\), expected \(3,\), one bool for each sequence",
            ),
            ([1, 0, 1], errors.DTypeError, "mask: given dtype int64, expected bool"),
        ):
            with pytest.raises(error, match=words):
                state.where(mask, pair, pair)

    def test_states(self, held: Held, pair: Any) -> None:
        h, _ = pair
        wide = held.native([np.zeros((2, 3, 4), np.float32)] * 2)
        double = held.native([np.zeros((1, 3, 4))] * 2)
        with pytest.raises(errors.ArgumentError, match=r"b: given array, expected \(array, array\), as a"):
            state.where([True] * 3, pair, h)
        with pytest.raises(errors.ShapeError, match=r"b: given shape \(2, 3, 4\), expected \(1, 3, 4\), that of a"):
            state.where([True] * 3, pair, wide)
        with pytest.raises(errors.DTypeError, match="b: given dtype float64, expected float32, that of a"):
            state.where([True] * 3, pair, double)
        with pytest.raises(errors.ShapeError, match=r"state: given shape \(3, 4\), expected \(L\*D, B, H\)"):
            state.repeat(h[0, ...], 2)
        with pytest.raises(errors.ShapeError, match="state: given a float, expected"):
            state.select(1.0, [0])
        with pytest.raises(errors.ArgumentError, match=r"state: given \(\), expected a state with at least one"):
            state.select((), [0])
        with pytest.raises(errors.ShapeError, match="state: given 3 and 4 sequences, expected one number B"):
            state.select((h, state.select(h, [0, 1, 2, 0])), [0])

    def test_a_number_of_times(self, pair: Any) -> None:
        for n in (0, 2.0, True):
            with pytest.raises(errors.ArgumentError, match=f"n: given {n}, expected an integer of 1 or more"):
                state.repeat(pair, n)

    def test_arrays_of_two_frameworks(self, held: Held, pair: Any) -> None:
        h, _ = pair
        other = np.zeros((1, 3, 4), np.float32)
        if isinstance(h, np.ndarray):
            return
        with pytest.raises(errors.ArgumentError, match=r"b: given numpy\.ndarray, expected .*, as a"):
            state.where([True] * 3, h, other)
        with pytest.raises(errors.ArgumentError, match=r"state: given .* and numpy\.ndarray, expected arrays of one"):
            state.select((h, other), [0])

    def test_a_batch_size(self, held: Held) -> None:
        sizes: Any = (-1, 2.0)
        for size in sizes:
            with pytest.raises(
                errors.ArgumentError, match=f"batch_size: given {size}, expected an integer of 0 or more"
            ):
                state.zeros(held.module, size)


def test_zeros_refuses_other_objects() -> None:
    with pytest.raises(errors.ArgumentError, match=r"module: given builtins\.int, expected a module"):
        state.zeros(1)
