"""The names of a model's arguments tell how it is called, whatever its framework."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import unirnn
from unirnn.errors import ArgumentError, ShapeError
from unirnn.testing import assert_same, padding_is_inert
from unirnn.testing.batches import Batch, batch
from unirnn.testing.calling import call_model, in_layout_of

BATCH = batch(features=3, steps=4, batch_size=3, dtype="float64")
TIME_FIRST = batch(features=3, steps=4, batch_size=3, dtype="float64", batch_first=False)
VALID = ~BATCH.padding


def with_lengths(x: Any, lengths: Any) -> Any:
    return lengths


def with_a_mask(x: Any, mask: Any = None) -> Any:
    return mask


def with_a_mask_of_attention(x: Any, *, attention_mask: Any) -> Any:
    return attention_mask


def with_a_mask_of_padding(x: Any, scale: float = 1, key_padding_mask: Any = None) -> Any:
    return key_padding_mask


def with_a_mask_of_attention_as_well(x: Any, mask: Any = None, src_key_padding_mask: Any = None) -> Any:
    """Like ``torch.nn.TransformerEncoder``, whose ``mask`` is about pairs of steps."""
    assert mask is None
    return src_key_padding_mask


class WithForward:
    """Like a torch module: a call runs the method ``forward``, whose signature has the names of the arguments."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, input: Any, input_lengths: Any = None, mask: Any = None) -> Any:
        assert mask is None  # the lengths are enough
        return input_lengths


def without(x: Any, scale: float = 1) -> Any:
    return x


@pytest.mark.parametrize(
    ("model", "given", "expected"),
    [
        (with_lengths, BATCH, BATCH.seq_length),
        (WithForward(), BATCH, BATCH.seq_length),
        (with_a_mask, BATCH, VALID),
        (with_a_mask, TIME_FIRST, ~TIME_FIRST.padding),
        (with_a_mask_of_attention, BATCH, VALID.astype(int)),
        (with_a_mask_of_padding, BATCH, BATCH.padding),
        (with_a_mask_of_padding, TIME_FIRST, TIME_FIRST.padding.T),
        (with_a_mask_of_attention_as_well, BATCH, BATCH.padding),
    ],
)
def test_a_function_gets_lengths_or_a_mask_by_name(model: Any, given: Batch, expected: Any) -> None:
    np.testing.assert_array_equal(call_model(model, given), expected, strict=True)


def test_without_lengths_the_model_needs_no_argument_for_them() -> None:
    dense = replace(BATCH, seq_length=None)
    assert call_model(without, dense) is dense.input


def test_the_way_to_call_can_be_given() -> None:
    found = call_model(without, BATCH, lambda model, input, seq_length: model(input, scale=2) + seq_length.sum())
    np.testing.assert_array_equal(found, BATCH.input + BATCH.lengths.sum())


def test_a_model_without_an_argument_for_lengths_is_an_error() -> None:
    with pytest.raises(ArgumentError, match=r"without has no argument with a known name .*: it has scale; give call="):
        call_model(without, BATCH)
    with pytest.raises(ArgumentError, match=r"batch: given with hx, expected a batch without: .*with_lengths has no"):
        call_model(with_lengths, replace(BATCH, hx=np.zeros((1, 3, 4))))
    with pytest.raises(ArgumentError, match="batch: given with resets, expected a batch without"):
        call_model(with_lengths, replace(BATCH, resets=np.zeros((3, 4), bool)))
    with pytest.raises(ArgumentError, match="call: given together with a batch with hx or resets"):
        call_model(without, replace(BATCH, hx=np.zeros((1, 3, 4))), lambda model, input, seq_length: input)
    with pytest.raises(ArgumentError, match="further arguments without a default: other; give call="):
        call_model(lambda x, lengths, other, scale=1: x, BATCH)


def test_a_module_of_unirnn_gets_everything_and_returns_its_state() -> None:
    spec = unirnn.Sequential(encoder=unirnn.LSTMSpec(3, 4, batch_first=True), head=unirnn.LinearSpec(4, 2))
    net = spec.build("numpy", seed=0)
    given = batch(spec, with_state=True, with_resets=True)
    output, states = call_model(net, given)
    expected, expected_states = net(given.input, given.hx, given.seq_length, given.resets, return_state=True)
    np.testing.assert_array_equal(output, expected)
    np.testing.assert_array_equal(states[0][1], expected_states[0][1])


def test_a_model_from_code_is_called_by_the_names_of_its_forward() -> None:
    class Tagger(unirnn.Model):
        def __init__(self) -> None:
            self.encoder = unirnn.GRUSpec(3, 4, batch_first=True)

        def forward(self, xp: Any, features: Any, lens: Any) -> Any:
            return self.encoder(features, seq_length=lens)[0]

    net = Tagger().build("numpy", seed=0)
    given = batch(features=3)
    np.testing.assert_array_equal(call_model(net, given), net(given.input, given.seq_length))


def test_a_layer_of_torch_gets_a_packed_sequence() -> None:
    torch = pytest.importorskip("torch")
    layer = torch.nn.GRU(3, 4, 2, bidirectional=True, batch_first=True)
    given = batch(features=3, min_length=1)
    native = replace(given, input=torch.from_numpy(given.input))
    output, final = call_model(layer, native)
    expected, expected_final = unirnn.snapshot(layer).build("numpy")(given.input, seq_length=given.seq_length)
    np.testing.assert_allclose(output.detach(), expected, atol=1e-6)
    np.testing.assert_allclose(final.detach(), expected_final, atol=1e-6)
    with pytest.raises(ArgumentError, match=r"seq_length: given a length of 0, .*min_length=1"):
        call_model(layer, replace(native, seq_length=np.array([6, 0, 1, 2])))


def test_a_layer_of_mindspore_gets_its_lengths() -> None:
    mindspore = pytest.importorskip("mindspore")
    mindspore.runtime.launch_blocking()
    layer = mindspore.nn.LSTM(3, 4, batch_first=True)
    given = batch(features=3, min_length=1)
    output, _ = call_model(layer, replace(given, input=mindspore.Tensor(given.input)))
    expected, _ = unirnn.snapshot(layer).build("numpy")(given.input, seq_length=given.seq_length)
    np.testing.assert_allclose(output.asnumpy(), expected, atol=1e-6)


def test_a_batch_is_passed_in_the_layout_of_the_model() -> None:
    time_first = unirnn.GRUSpec(3, 4).build("numpy")
    given = in_layout_of(time_first, batch(features=3, with_resets=True))
    assert given.input.shape == (6, 4, 3)
    assert given.resets is not None
    assert given.resets.shape == (6, 4)
    np.testing.assert_array_equal(given.padding, batch(features=3).padding.T)
    assert in_layout_of(time_first, given) is given
    assert in_layout_of(without, given) is given


def test_an_invalid_batch_is_an_error() -> None:
    right = Batch([[[1.0], [2.0]]], [1])  # type: ignore[arg-type]
    assert right.padding.tolist() == [[False, True]]
    for arguments, words in (
        ((np.ones(3),), r"input: given shape \(3,\), expected"),
        (
            (BATCH.input, np.array([1, 2])),
            r"seq_length: given int64 of shape \(2,\), expected integers of shape \(3,\)",
        ),
        ((BATCH.input, np.array([1.0, 2, 3])), "seq_length: given float64"),
        ((BATCH.input, np.array([1, 2, 5])), "expected 0 to T = 4"),
        ((BATCH.input, np.array([1, 2, -1])), "expected 0 to T = 4"),
        ((BATCH.input, None, None, np.zeros((4, 3), bool)), r"resets: given shape \(4, 3\), expected \(3, 4\)"),
    ):
        with pytest.raises(ShapeError, match=words):
            Batch(*arguments)
    no_batch: Any = BATCH.input
    with pytest.raises(ArgumentError, match=r"^batch: given ndarray, expected a unirnn"):
        padding_is_inert(with_lengths, no_batch)
    with pytest.raises(ArgumentError, match=r"^batch: given ndarray, expected a unirnn"):
        assert_same(with_lengths, with_lengths, no_batch)


def test_a_model_cannot_change_the_lengths_of_the_batch() -> None:
    def changes(x: Any, lengths: Any) -> Any:
        lengths += 1
        return lengths

    before = BATCH.lengths.copy()
    call_model(changes, BATCH)
    np.testing.assert_array_equal(BATCH.lengths, before)


@pytest.mark.parametrize("wrapped", ["compile", "DataParallel"])
def test_the_arguments_of_a_wrapped_module(wrapped: str) -> None:
    torch = pytest.importorskip("torch")

    class Lengths(torch.nn.Module):  # type: ignore[name-defined, misc]
        def forward(self, x: Any, lengths: Any) -> Any:
            return lengths

    net = Lengths()
    wrapper = torch.compile(net, backend="eager") if wrapped == "compile" else torch.nn.DataParallel(net)
    found = call_model(wrapper, replace(BATCH, input=torch.tensor(BATCH.input)))
    np.testing.assert_array_equal(found, BATCH.lengths)
