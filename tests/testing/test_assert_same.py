"""Equal models of any framework pass; for models that differ, the message names the difference."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

import unirnn
from unirnn import (
    BatchNormSpec,
    DropoutSpec,
    EmbeddingSpec,
    GRUSpec,
    LinearSpec,
    LSTMSpec,
    PoolSpec,
    RNNSpec,
    Sequential,
    Snapshot,
)
from unirnn.errors import ArgumentError
from unirnn.testing import assert_same, batch

LAYER = GRUSpec(3, 4, 2, bidirectional=True, batch_first=True)
MODEL = Sequential(
    embedding=EmbeddingSpec(20, 3),
    dropout=DropoutSpec(0.5),
    encoder=LSTMSpec(3, 4, batch_first=True, bidirectional=True),
    pool=PoolSpec("mean"),
    head=LinearSpec(8, 2),
)


def message(*args: Any, **kwargs: Any) -> list[str]:
    """The lines of the message after the first one, which names the models."""
    with pytest.raises(AssertionError) as caught:
        assert_same(*args, **kwargs)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("a (")
    assert first.endswith(" differ.")
    return lines


def changed(
    spec: Any, change: Callable[[dict[str, Any]], dict[str, Any]], *, seed: int = 0, as_spec: Any = None
) -> Any:
    """A NumPy module with changed weights."""
    weights = dict(unirnn.snapshot(spec.build("numpy", seed=seed)).weights)
    return Snapshot(as_spec or spec, {**weights, **change(weights)}).build("numpy")


# ---- equal models ----------------------------------------------------------------------------


@pytest.mark.parametrize("spec", [LAYER, MODEL, RNNSpec(3, 4)], ids=lambda spec: spec.kind)
@pytest.mark.parametrize("other", ["numpy", "torch", "mindspore"])
def test_modules_of_one_seed_are_the_same(spec: Any, other: str) -> None:
    pytest.importorskip(other)
    if other == "mindspore":
        pytest.importorskip("mindspore").runtime.launch_blocking()
    given = batch(spec, with_state=spec is not MODEL)
    assert_same(spec.build(other, seed=0), spec.build("numpy", seed=0, dtype="float64"), given)


def test_layouts_and_dtypes_may_differ() -> None:
    a = replace(LAYER, batch_first=False).build("numpy", seed=0)
    b = LAYER.build("numpy", seed=0, dtype="float64")
    assert_same(a, b, batch(LAYER, with_state=True, with_resets=True))
    assert_same(b, a, batch(a, dtype="float64"))
    assert message(a, b, batch(LAYER), tolerance=1e-12)[0].startswith("The output differs by ")


def test_a_model_is_left_as_it_was() -> None:
    torch = pytest.importorskip("torch")
    spec = Sequential(encoder=GRUSpec(3, 4, batch_first=True), norm=BatchNormSpec(4), drop=DropoutSpec(0.5))
    net = spec.build("torch", seed=0)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert net.training
    assert_same(net, spec.build("numpy", seed=0), batch(spec))
    assert net.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_layer_of_torch_is_the_same_as_ours() -> None:
    torch = pytest.importorskip("torch")
    for layer in (torch.nn.GRU(3, 4, 2, bidirectional=True), torch.nn.LSTM(3, 4, batch_first=True)):
        ours = unirnn.snapshot(layer).build("numpy")
        assert_same(layer, ours, batch(ours, min_length=1, with_state=True))


def test_functions_of_numpy_are_compared() -> None:
    def pooled(x: Any, lengths: Any) -> Any:
        return np.stack([row[:n].sum(axis=0) for row, n in zip(x, lengths, strict=True)])

    def by_mask(x: Any, mask: Any) -> Any:
        return (x * mask[..., None]).sum(axis=1)

    given = batch(features=3, dtype="float64")
    assert_same(pooled, by_mask, given)
    assert message(pooled, lambda x, lengths: x.sum(axis=1), given)[0].startswith("The output differs by ")


def test_a_call_can_be_given() -> None:
    def net(x: Any, scale: float) -> Any:
        return scale * x

    given = batch(features=3)
    with pytest.raises(ArgumentError, match="call: not given"):
        assert_same(net, net, given)
    assert_same(net, net, given, call=lambda model, input, seq_length: model(input, 2.0))


# ---- differences -----------------------------------------------------------------------------


def test_the_other_variant_of_a_gru_is_recognised() -> None:
    other = replace(LAYER, reset_after=False)
    lines = message(changed(LAYER, dict, as_spec=other), LAYER.build("numpy", seed=0), batch(LAYER))
    assert lines == [
        "The output differs by 3.3e-01 of its largest value, more than the tolerance of 1e-05, first at step 0 of "
        "sequence 0, which has 2 steps.",
        "The final state h_n differs by 3.4e-01 of its largest value, more than the tolerance of 1e-05, first in layer "
        "0, in its forward direction, in sequence 0.",
        f"Their specs differ: a is {other!r}, and b is {LAYER!r}.",
        "Usual cause, in a: the GRU variant: the reset gate is applied before the product with W_hn, instead of after "
        "it.",
    ]


def test_another_order_of_gates_is_recognised() -> None:
    spec = LSTMSpec(3, 4)

    def reordered(weights: dict[str, Any]) -> dict[str, Any]:
        return {n: a.reshape(4, 4, *a.shape[1:])[[0, 1, 3, 2]].reshape(a.shape) for n, a in weights.items()}

    lines = message(changed(spec, reordered), spec.build("numpy", seed=0), batch(spec))
    assert lines[-2:] == [
        "The weights of a are not those of b: the gates are in the order i, f, o, g instead of i, f, g, o.",
        "Usual cause, in a: the gates are taken in the order i, f, o, g instead of i, f, g, o.",
    ]


def test_the_layer_and_direction_in_a_stack_are_named() -> None:
    name = "weight_hh_l1_reverse"
    lines = message(changed(LAYER, lambda w: {name: 2 * w[name]}), LAYER.build("numpy", seed=0), batch(LAYER))
    assert ", first in layer 1, in its reverse direction, in sequence " in lines[1]
    assert lines[2:] == [f"The weights of a are not those of b: {name} differs, by up to 1 of the largest value."]


def test_the_first_layer_that_differs_is_named() -> None:
    name = "encoder.bias_hh_l0"
    lines = message(changed(MODEL, lambda w: {name: 0 * w[name]}), MODEL.build("numpy", seed=0), batch(MODEL))
    assert lines[0].endswith(", first in sequence 0.")
    assert lines[1].startswith("The final state h of encoder differs by ")
    assert lines[-2:] == [
        "The first layer that differs is encoder, an LSTM. The one before it, dropout, is the same.",
        "The weights of a are not those of b: encoder.bias_hh_l0 is zeros.",
    ]


class Wrong:
    """A layer with the spec and the weights of another one, which changes its results."""

    def __init__(self, module: Any, change: Callable[[Any, Any], Any]) -> None:
        self.module, self.change, self.spec = module, change, module.spec

    def __call__(self, input: Any, hx: Any = None, seq_length: Any = None, resets: Any = None) -> Any:
        return self.change(*self.module(input, hx, seq_length, resets))


def test_a_difference_only_in_the_padding_is_recognised() -> None:
    given = batch(LAYER)
    right = LAYER.build("numpy", seed=0)
    wrong = Wrong(right, lambda output, h_n: (np.where(given.padding[..., None], 7, output), h_n))
    lines = message(wrong, right, given)
    assert lines == [
        lines[0],
        "Usual cause, in a: the output is not set to zero in the padding.",
    ]
    assert lines[0].startswith("The output in the padding differs by ")
    assert lines[0].endswith(", first at step 0 of sequence 3, which has 0 steps.")


def test_a_nan_in_only_one_model_is_named() -> None:
    given = batch(LAYER).filled(np.nan)
    right = LAYER.build("numpy", seed=0)
    wrong = Wrong(right, lambda output, h_n: (output, np.where(np.arange(4)[:, None, None] == 2, np.nan, h_n)))
    assert message(wrong, right, given) == [
        "The final state h_n is NaN in a, where b has numbers, first in layer 1, in its forward direction, in sequence "
        "0.",
        "Usual cause, in a: NaN leaks from the padding of the input, as when it is multiplied by a mask: 0 * NaN is "
        "NaN.",
    ]


def test_different_shapes_and_numbers_of_results() -> None:
    def net(x: Any, lengths: Any) -> Any:
        return x

    given = batch(features=3)
    assert message(net, lambda x, lengths: x[..., :2], given) == [
        "The output has shape (4, 6, 3) in a, and (4, 6, 2) in b."
    ]
    assert message(lambda x, lengths: (x, x, x), lambda x, lengths: (x, x), given) == ["a returns 3 arrays, and b 2."]


@dataclass
class Record:
    """The results of a model."""

    y: Any
    state: Any = None


def test_results_in_dicts_and_dataclasses_are_matched_by_name() -> None:
    given = batch(features=3)
    assert_same(lambda x, lengths: {"y": x, "n": 1.0}, lambda x, lengths: {"n": 1.0, "y": x}, given)
    assert_same(lambda x, lengths: (x, Record(x[:, 0], "a")), lambda x, lengths: (x, Record(x[:, 0], "b")), given)
    for other, name in ((Record(0, 2), "y"), (Record(1, 1), "state")):
        lines = message(lambda x, lengths: (x, Record(1, 2)), lambda x, lengths, own=other: (x, own), given)
        assert lines[0].startswith(f"The result [1].{name} differs")
    assert message(lambda x, lengths: 1.0, lambda x, lengths: 2.0, given)[0].startswith("The output differs by 5.0e-01")
    lines = message(lambda x, lengths: {"y": x, "z": x > 0}, lambda x, lengths: {"y": x, "z": x < 0}, given)
    assert lines[0].startswith("The result ['z'] differs")


def test_the_padding_of_a_further_result_is_not_compared() -> None:
    given = batch(features=3)

    def net(x: Any, lengths: Any, padding: float = 0.0) -> Any:
        valid = np.arange(x.shape[1]) < lengths[:, None]
        return x[:, 0], np.where(valid[..., None], x, padding)

    assert_same(net, lambda x, lengths: net(x, lengths, 1.0), given)
    assert message(net, lambda x, lengths: (x[:, 0], 0 * x), given)[0].startswith("The result 1 differs")


def test_a_model_that_changes_its_input_does_not_change_the_batch() -> None:
    def changes(x: Any, lengths: Any) -> Any:
        x[:, 0] = 0
        return x

    given = batch(features=3, min_length=1)
    before = given.input.copy()
    assert message(changes, lambda x, lengths: x, given)[0].startswith("The output differs")
    np.testing.assert_array_equal(given.input, before)


@pytest.mark.parametrize(
    ("a", "b", "words"),
    [
        (
            lambda x, lengths: x,
            lambda x, lengths: (x, x),
            "any but the first result, since a returns 1 arrays, and b 2",
        ),
        (
            lambda x, lengths: (x, iter([])),
            lambda x, lengths: x,
            r"a returns an object of the class list_iterator \(result\[1\]\)",
        ),
        (lambda x, lengths: x * np.nan, lambda x, lengths: x * np.nan, "output, where both models give NaN"),
        (lambda x, lengths: 1j * x, lambda x, lengths: 1j * x, "the gradients of complex numbers"),
    ],
)
def test_a_warning_names_what_is_not_compared(a: Any, b: Any, words: str) -> None:
    with pytest.warns(UserWarning, match=f"^not compared: {words}"):
        assert_same(a, b, batch(features=3))


def test_a_warning_names_gradients_that_only_one_model_has() -> None:
    torch = pytest.importorskip("torch")

    def of_torch(name: str) -> Any:
        return torch.nn.Sequential(OrderedDict({name: torch.nn.Linear(3, 2)}))

    def call(model: Any, input: Any, seq_length: Any) -> Any:
        return model(input)

    a, b, frozen = of_torch("fc"), of_torch("head"), of_torch("fc")
    b.head.load_state_dict(a.fc.state_dict())
    frozen.load_state_dict(a.state_dict())
    frozen.fc.bias.requires_grad_(False)
    given = batch(features=3)
    with pytest.warns(UserWarning, match=r"only one of the two has .*: fc.weight, fc.bias, head.weight, head.bias$"):
        assert_same(a, b, given, call=call)
    with pytest.warns(UserWarning, match=r"only one of the two has .*: fc.bias$"):
        assert_same(frozen, a, given, call=call)
    weight, bias = (array.detach().numpy() for array in (a.fc.weight, a.fc.bias))
    with pytest.warns(UserWarning, match=r"the gradients, since b .* has none; give gradients=False to compare none$"):
        assert_same(a, lambda x: x @ weight.T + bias, given, call=lambda model, x, seq_length: model(x))
    assert_same(a, lambda x: x @ weight.T + bias, given, call=lambda model, x, seq_length: model(x), gradients=False)
    assert_same(torch.nn.DataParallel(a), a, given, call=call)  # their weights have the same names


def test_nothing_to_compare_is_an_error() -> None:
    given = batch(features=3)
    for nothing in (None, object(), {"name": "text"}):
        with pytest.raises(ArgumentError, match=r"which returns .*, expected arrays"):
            assert_same(lambda x, lengths, own=nothing: own, lambda x, lengths: x, given)
    for wrong in (-1, np.nan, np.inf):
        with pytest.raises(ArgumentError, match=f"tolerance: given {wrong}, expected a finite number"):
            assert_same(lambda x, lengths: x, lambda x, lengths: x, given, tolerance=wrong)


def test_the_call_of_a_layer_that_is_called_twice_is_named() -> None:
    torch = pytest.importorskip("torch")

    class Twice(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, between: Any) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.fc, self.between = torch.nn.Linear(3, 3), between

        def forward(self, x: Any, lengths: Any) -> Any:
            return self.fc(self.between(self.fc(x)))

    lines = message(Twice(torch.tanh), Twice(torch.relu), batch(features=3))
    assert lines[1] == "The first layer that differs is fc in its call 2, a Linear. The one before it, fc, is the same."


def test_integers_have_no_tolerance() -> None:
    given = batch(num_tokens=10**6)
    lines = message(lambda x, lengths: x, lambda x, lengths: x + 1, given, tolerance=0.1)
    assert lines[0].startswith("The output differs by 1.")
    assert "more than the tolerance of 0," in lines[0]


def test_a_difference_only_in_the_gradients_is_recognised() -> None:
    torch = pytest.importorskip("torch")

    class Net(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, detached: bool) -> None:
            super().__init__()
            self.rnn = torch.nn.GRU(3, 4, batch_first=True)
            self.fc = torch.nn.Linear(4, 2)
            self.detached = detached

        def forward(self, x: Any, mask: Any) -> Any:
            y, _ = self.rnn(x)
            y = y.detach() if self.detached else y
            return self.fc(torch.where(mask[..., None], y, 0))

    torch.manual_seed(0)
    right, wrong = Net(False), Net(True)
    wrong.load_state_dict(right.state_dict())
    lines = message(wrong, right, batch(features=3))
    assert lines[0].startswith(
        "The gradient of input differs by 1.0e+00 of its largest value, more than the tolerance of"
    )
    assert lines[-1] == (
        "Usual cause, in a: the gradient of input, rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0, rnn.bias_hh_l0 "
        "is missing, or zero."
    )
    assert_same(wrong, right, batch(features=3), gradients=False)


@pytest.mark.parametrize("change", ["packing", "mean", "weights"])
def test_differences_of_models_of_torch(change: str) -> None:
    torch = pytest.importorskip("torch")
    rnn = torch.nn.utils.rnn

    class Classifier(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self, change: str) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn, self.fc = torch.nn.LSTM(3, 4, batch_first=True, bidirectional=True), torch.nn.Linear(8, 2)
            self.change = change
            if change == "weights":
                self.rnn.weight_hh_l0.data[:] = 0

        def forward(self, x: Any, lengths: Any) -> Any:
            if self.change == "packing":
                y, _ = self.rnn(x)
            else:
                packed = rnn.pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
                y, _ = rnn.pad_packed_sequence(self.rnn(packed)[0], batch_first=True, total_length=x.shape[1])
            valid = torch.arange(x.shape[1]) < lengths[:, None]
            total = (y * valid[..., None]).sum(1)
            return self.fc(total / (x.shape[1] if self.change == "mean" else lengths[:, None]))

    assert_same(Classifier(""), Classifier(""), batch(features=3, min_length=1))
    lines = message(Classifier(change), Classifier(""), batch(features=3, min_length=1))
    expected = {
        "packing": [
            "The first layer that differs is rnn, an LSTM.",
            "Usual cause, in a: the lengths (seq_length) are ignored: the padding is computed like valid steps.",
        ],
        "mean": ["The first layer that differs is fc, a Linear. The one before it, rnn, is the same."],
        "weights": [
            "The first layer that differs is rnn, an LSTM.",
            "The weights of a are not those of b: rnn.weight_hh_l0 is zeros.",
        ],
    }
    assert lines[1:] == expected[change]
