"""Right models pass. For wrong ones, the message says what moved, in which layer, and why."""

import random
import re
import warnings
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import unirnn
from unirnn import GRUSpec
from unirnn.errors import ArgumentError
from unirnn.testing.batches import Batch, batch
from unirnn.testing.frameworks import to_numpy
from unirnn.testing.inert import padding_is_inert
from unirnn.testing.subjects import launch_blocking

BATCH = batch(features=3, min_length=1, dtype="float64")
RAGGED = batch(features=3, dtype="float64")
TOKENS = batch(num_tokens=7, min_length=1)

Results = namedtuple("Results", "steps pooled")


# ---- callables over NumPy --------------------------------------------------------------------------


def mask_of(x: Any, lengths: Any) -> Any:
    return (np.arange(x.shape[1]) < np.asarray(lengths)[:, None])[..., None]


def masked_mean(x: Any, lengths: Any) -> Any:
    return np.where(mask_of(x, lengths), x, 0).sum(1) / np.maximum(lengths, 1)[:, None]


def multiplied_mask(x: Any, lengths: Any) -> Any:
    return (x * mask_of(x, lengths)).sum(1)


def nested(x: Any, lengths: Any) -> Any:
    """Nested results that contain the padding, integers, a number, and an array with two axes of steps."""
    scores = np.einsum("btf,bsf->bts", x, x)
    pooled = masked_mean(x, lengths)
    return {
        "r": Results(x * 2, (pooled, pooled.argmax(-1))),
        "scores": scores,
        "lengths": lengths,
        "total": 3.0,
        "no": None,
    }


def strided(x: Any, lengths: Any) -> Any:
    """The sums of three steps each, in a time-first array."""
    steps = x.shape[1] // 3
    return x[:, : 3 * steps].reshape(len(x), steps, 3, x.shape[-1]).sum(2).swapaxes(0, 1)


def flat(x: Any, lengths: Any) -> Any:
    return x.reshape(-1, x.shape[-1]) * 2


def valid_steps_alone(x: Any, lengths: Any) -> Any:
    return x[mask_of(x, lengths)[..., 0]]


def reversed_by_length(x: Any, lengths: Any) -> Any:
    return np.stack([np.concatenate([row[:n][::-1], row[n:]]) for row, n in zip(x, lengths, strict=True)]).cumsum(1)


def reversed_whole(x: Any, lengths: Any) -> Any:
    return x[:, ::-1].cumsum(1)[:, ::-1]


def last(x: Any, lengths: Any) -> Any:
    return x[np.arange(len(x)), np.asarray(lengths) - 1]


class Stateful:
    """A model that keeps a state from call to call."""

    state = 0.0

    def __call__(self, x: Any, lengths: Any) -> Any:
        self.state = self.state + 1
        return x + self.state


class Noise:
    """Dropout with its own generator, which ignores NumPy's seed, but is copied together with the object."""

    training = False

    def __init__(self) -> None:
        self.generator = np.random.default_rng(0)

    def train(self, mode: bool) -> None:
        self.training = mode

    def __call__(self, x: Any, lengths: Any) -> Any:
        return x * self.generator.integers(0, 2, x.shape) if self.training else x


RIGHT: dict[str, tuple[Any, Batch]] = {
    "masked mean": (masked_mean, RAGGED),
    "nested": (nested, RAGGED),
    "nested, batch of T": (nested, batch(features=3, batch_size=6, dtype="float64")),
    "one sequence": (masked_mean, Batch(np.ones((1, 4, 2)), np.array([2]))),
    "strided": (strided, RAGGED),
    "flat": (flat, RAGGED),
    "valid steps alone": (valid_steps_alone, RAGGED),
    "reversed": (reversed_by_length, RAGGED),
    "last": (last, BATCH),
    "negative zero": (lambda x, lengths: x * 0.0, replace(BATCH, input=np.abs(BATCH.input))),
    "dropout": (Noise(), BATCH),
}


@pytest.mark.parametrize(("model", "given"), RIGHT.values(), ids=RIGHT.keys())
def test_right_functions_pass(model: Any, given: Batch) -> None:
    padding_is_inert(model, given, nan=model is not RIGHT["negative zero"][0])


WRONG: dict[str, tuple[Any, Batch, list[str]]] = {
    "mean": (
        lambda x, lengths: x.mean(1),
        BATCH,
        [r"output: became NaN|output: off by", r"also: .*NaN, more padding, sequence 0 alone"],
    ),
    "mean, zeros in the padding": (
        lambda x, lengths: np.where(mask_of(x, lengths), x, 0).mean(1),
        BATCH,
        [r"output: off by .*more padding|when there are 3 more steps of padding", "sequence 0 alone"],
    ),
    "multiplied mask": (multiplied_mask, BATCH, ["NaN is in the padding$", r"usual cause: only NaN .* give nan=False"]),
    "reversed": (reversed_whole, BATCH, [r"first in sequence 0 \(length 3 of 6\), step 0, when"]),
    "length 0": (
        last,
        RAGGED,
        [r"sequence 3 \(length 0 of 6\)", "usual cause: a sequence of length 0 has no last step"],
    ),
    "a shape": (lambda x, lengths: x[x > 5], BATCH, [r"output: its shape \(\d+,\) became \(\d+,\)"]),
    "integers": (lambda x, lengths: (x, (x > 0).sum(1)), BATCH, [r"output\[1\]: off by"]),
    "nested": (
        lambda x, lengths: {"a": Results(x, x.max(1))},
        BATCH,
        [r"output\['a'\]\.pooled: off by .*when 1000 is in the padding"],
    ),
}


@pytest.mark.parametrize(("model", "given", "words"), WRONG.values(), ids=WRONG.keys())
def test_wrong_functions_are_found(model: Any, given: Batch, words: list[str]) -> None:
    assert_found(model, given, words)


def assert_found(model: Any, given: Batch, words: list[str], **arguments: Any) -> None:
    """Check that the message contains all patterns."""
    with pytest.raises(AssertionError) as raised:
        padding_is_inert(model, given, **arguments)
    for pattern in words:
        assert re.search(pattern, str(raised.value), re.MULTILINE), f"{pattern}\n{raised.value}"


def test_a_model_of_tokens_is_checked() -> None:
    table = np.random.default_rng(0).standard_normal((7, 4))
    padding_is_inert(lambda tokens, lengths: masked_mean(table[tokens], lengths), TOKENS)
    assert_found(lambda tokens, lengths: table[tokens].max(1), TOKENS, ["token 6 is in the padding|token 6"])


@pytest.mark.parametrize(
    ("model", "given", "words"),
    [
        (masked_mean, replace(BATCH, seq_length=np.full(4, 6)), r"^batch: all of its sequences have T steps"),
        (Stateful(), BATCH, None),  # each run uses a copy, so the state does not carry over
        (
            lambda x, lengths: x + np.random.default_rng().random(),
            BATCH,
            r"^model: given one whose output differs in evaluation",
        ),
        (lambda x: x, BATCH, r"^call: not given"),
    ],
)
def test_models_that_cannot_be_checked_are_refused(model: Any, given: Batch, words: str | None) -> None:
    if words is None:
        padding_is_inert(model, given)
        return
    with pytest.raises(ArgumentError, match=words):
        padding_is_inert(model, given)


def fixed_steps(x: Any, lengths: Any) -> Any:
    if x.shape[1] != BATCH.steps:
        raise ValueError("6 steps")
    return masked_mean(x, lengths)


NOT_CHECKED: dict[str, tuple[Any, str]] = {
    "steps": (fixed_steps, r"the model raised ValueError: 6 steps: when there are 3 more .*; when sequence 0 is alone"),
    "nan": (lambda x, lengths: last(x, lengths) * [1, 1, np.nan], "it has NaN at valid steps.*: output"),
    "complex": (lambda x, lengths: 1j * masked_mean(x, lengths), "it has complex numbers: the gradients of output"),
    "object": (
        lambda x, lengths: (x, iter([])),
        r"an object of the class list_iterator has no .*: output.*\[1\]",
    ),
    "a second input": (
        lambda x, lengths: masked_mean(x, lengths) + np.ones((4, 1)),
        "the model returns a batch of 4 for one sequence as well: when sequence 0 is alone",
    ),
}


@pytest.mark.parametrize(("model", "words"), NOT_CHECKED.values(), ids=NOT_CHECKED.keys())
def test_a_warning_names_what_is_not_checked(model: Any, words: str) -> None:
    with pytest.warns(UserWarning, match=f"^not checked, since {words}"):
        padding_is_inert(model, BATCH)
    assert_found(lambda x, lengths: (model(x, lengths), x.max()), BATCH, [f"not checked, since {words}"])


def test_models_without_arrays_to_check_are_refused() -> None:
    for nothing in (None, object(), []):
        with pytest.raises(ArgumentError, match=r"which returns .*, expected arrays"):
            padding_is_inert(lambda x, lengths, own=nothing: own, BATCH)
    with pytest.raises(ArgumentError, match="batch: given NaN or infinity at valid steps"):
        padding_is_inert(masked_mean, replace(BATCH, input=BATCH.input * np.nan))
    for wrong, words in ((GRUSpec(3, 4), "given the spec GRUSpec"), (Noise, "given the class Noise")):
        with pytest.raises(ArgumentError, match=words):
            padding_is_inert(wrong, BATCH)


def test_generators_of_random_numbers_are_restored() -> None:
    before = random.getstate(), str(np.random.get_state())
    padding_is_inert(masked_mean, BATCH)
    assert (random.getstate(), str(np.random.get_state())) == before


# ---- torch -----------------------------------------------------------------------------------------


def torch_model(**options: Any) -> Any:
    """A model of torch's layers; the options decide whether it is right."""
    torch = pytest.importorskip("torch")
    nn, rnn = torch.nn, torch.nn.utils.rnn

    class Tagger(nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self, packed: bool = True, norm: str = "", pool: str = "", kind: str = "GRU", **own: Any) -> None:
            super().__init__()
            self.packed, self.pool = packed, pool
            self.norm = {
                "": nn.Identity(),
                "batch": nn.BatchNorm1d(3, momentum=None),
                "instance": nn.InstanceNorm1d(3),
                "conv": nn.Conv1d(3, 3, 3, padding=1),
                "strided": nn.Conv1d(3, 3, 2, stride=2),
                "dropout": nn.Dropout(0.5),
            }[norm]
            self.rnn = getattr(nn, kind)(3, 4, batch_first=True, **own)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True) if pool.startswith("attention") else None
            self.head = nn.Linear(8 if own.get("bidirectional") else 4, 2)

        def forward(self, x: Any, lengths: Any) -> Any:
            x = self.norm(x.transpose(1, 2)).transpose(1, 2)
            lengths = lengths if x.shape[1] >= max(lengths) else lengths // 2
            if self.packed:
                packed = rnn.pack_padded_sequence(x, lengths.clamp(min=1), batch_first=True, enforce_sorted=False)
                y, state = self.rnn(packed)
                y, _ = rnn.pad_packed_sequence(y, batch_first=True)
            else:
                y, state = self.rnn(x)
            valid = torch.arange(y.shape[1]) < lengths[:, None]
            if self.attention is not None:
                y, _ = self.attention(y, y, y, key_padding_mask=~valid if self.pool == "attention" else None)
            if self.pool == "mean":
                return self.head(y.mean(1))
            if self.pool == "masked mean":
                return self.head((y * valid[..., None]).sum(1) / lengths[:, None])
            if self.pool == "last":
                return self.head(y[torch.arange(len(y)), lengths - 1])
            if self.pool == "flipped":
                return self.head(self.rnn(x.flip(1))[0].flip(1))
            return self.head(y), state

    torch.manual_seed(0)
    return Tagger(**options).double()


TORCH_RIGHT: list[dict[str, Any]] = [
    {"bidirectional": True, "num_layers": 2, "dropout": 0.4},
    {"kind": "LSTM", "pool": "masked mean", "norm": "dropout"},
    {"packed": False, "pool": "last"},  # right for finite numbers
    {"norm": "strided"},  # likewise
    {"bidirectional": True, "pool": "attention"},
]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("options", TORCH_RIGHT, ids=str)
def test_right_models_of_torch_pass_unchanged(options: dict[str, Any]) -> None:
    """The check changes no weight, mode or statistic of the model."""
    model = torch_model(**options)
    model.rnn.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    is_computed = options.get("norm") == "strided" or options.get("pool") == "last"
    padding_is_inert(model, batch(features=3, min_length=2, dtype="float64"), nan=not is_computed)
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())
    assert (model.training, model.rnn.training) == (True, False)


@pytest.mark.parametrize("fails", [False, True])
def test_a_module_of_torch_is_left_as_it_was(fails: bool) -> None:
    """The module replaces buffers, changes weights, modes and requires_grad, and may raise an error."""
    torch = pytest.importorskip("torch")

    class Changes(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.other = torch.nn.Linear(3, 2), torch.nn.Linear(1, 1)
            self.calls: Any
            self.register_buffer("calls", torch.zeros(1))

        def forward(self, x: Any, lengths: Any) -> Any:
            self.calls = self.calls + 1
            if fails and self.fc.training:
                raise RuntimeError("in training")
            self.other.eval().requires_grad_(False)
            with torch.no_grad():
                self.other.weight += 1
            return self.fc(torch.nan_to_num(x).masked_fill(x.abs() > 100, 0))

    model = Changes()
    model.other.bias.requires_grad_(False)
    calls, generator = model.calls, torch.get_rng_state()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if fails:
        with pytest.raises(RuntimeError, match="in training"):
            padding_is_inert(model, BATCH, gradients=False)  # in the dtype of its weights
    else:
        padding_is_inert(model, BATCH, gradients=False)
    assert model.calls is calls
    assert all((tensor == before[name]).all() for name, tensor in model.state_dict().items())
    assert all(layer.training for layer in model.modules())
    assert [p.requires_grad for p in model.parameters()] == [True, True, True, False]
    assert (torch.get_rng_state() == generator).all()


def test_a_scripted_module_of_torch() -> None:
    torch = pytest.importorskip("torch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = torch.jit.script(torch.nn.Softmax(dim=1))
    assert_found(model, BATCH, ["output: off by"], call=lambda model, x, lengths: model(x))


TORCH_WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "two directions without lengths": (
        {"packed": False, "bidirectional": True},
        [
            r"in evaluation:\n    output\[0\]: off by .*step 0",
            r"the gradient of the padding: it is up to .* expected 0",
            r"first layer that moved: rnn \(GRU\)",
            "usual cause: its reverse direction begins in the padding",
        ],
    ),
    "state of step T": (
        {"packed": False, "kind": "LSTM"},
        [r"^    output\[1\]\[1\]", r"the gradient of .*more weights", "usual cause: its final state is that of step T"],
    ),
    "reversed with its padding": (
        {"packed": False, "pool": "flipped"},
        [r"first layer that moved: rnn \(GRU\)", "usual cause: it(s final state| reads the padding before)"],
    ),
    "mean": (
        {"pool": "mean"},
        [
            r"sequence \d alone",
            r"first layer that moved: head \(Linear\); before it: rnn \(GRU\)",
            "code between rnn .GRU. and",
        ],
    ),
    "batch norm": (
        {"norm": "batch"},
        [
            r"in training:\n    output\[0\]",
            r"norm\.running_mean after training: off by",
            r"first layer that moved: norm \(BatchNorm1d\)",
            "usual cause: in training it takes its mean and its variance over the padding",
        ],
    ),
    "instance norm": ({"norm": "instance"}, ["usual cause: it takes its mean and its variance over all T steps"]),
    "convolution": ({"norm": "conv"}, [r"norm \(Conv1d\)", "usual cause: its window reaches from a valid step"]),
    "attention": (
        {"pool": "attention without mask", "bidirectional": True},
        [r"first layer that moved: attention \(MultiheadAttention\)", "usual cause: its softmax runs over all T steps"],
    ),
}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("options", "words"), TORCH_WRONG.values(), ids=TORCH_WRONG.keys())
def test_wrong_models_of_torch_are_found(options: dict[str, Any], words: list[str]) -> None:
    assert_found(torch_model(**options), BATCH, words)


def test_only_the_gradient_of_a_weight_is_nan() -> None:
    """A linear layer that also computes the padding is right if the padding is finite."""
    torch = pytest.importorskip("torch")

    class Projected(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.project = torch.nn.Linear(3, 3).double()

        def forward(self, x: Any, lengths: Any) -> Any:
            return self.project(x)

    padding_is_inert(Projected(), BATCH, nan=False)
    assert_found(
        Projected(),
        BATCH,
        [r"the gradient of project.weight: became NaN", "only NaN has this effect.*gradient of its weights"],
    )
    padding_is_inert(Projected(), BATCH, gradients=False)


def test_a_batch_norm_passes_in_evaluation_mode() -> None:
    padding_is_inert(torch_model(norm="batch"), BATCH, training=False, nan=False)


def test_a_model_that_takes_only_one_size() -> None:
    """If something is wrong, the message also says which checks could not run."""
    torch = pytest.importorskip("torch")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(18, 2)).double()
    words = [
        r"first layer that moved: 1 \(Linear\)",
        r"not checked, since the model raised RuntimeError: .*: when there are 3 more steps of padding",
    ]
    assert_found(model, BATCH, words, call=lambda model, x, lengths: model(x))


# ---- MindSpore -------------------------------------------------------------------------------------


def mindspore_model(**options: Any) -> Any:
    ms = pytest.importorskip("mindspore")
    launch_blocking()
    nn, ops = ms.nn, ms.ops

    class Tagger(nn.Cell):  # type: ignore[name-defined, misc]
        def __init__(self, lengths: bool = True, pool: str = "", norm: bool = False, **own: Any) -> None:
            super().__init__()
            self.lengths, self.pool = lengths, pool
            self.norm = nn.BatchNorm1d(3) if norm else None
            self.dropout = nn.Dropout(p=0.5)
            self.rnn = nn.GRU(3, 4, batch_first=True, **own)
            self.head = nn.Dense(8 if own.get("bidirectional") else 4, 2)

        def construct(self, x: Any, seq_length: Any) -> Any:
            if self.norm is not None:
                x = self.norm(x.reshape(-1, 3)).reshape(x.shape)
            y, state = self.rnn(self.dropout(x), seq_length=seq_length if self.lengths else None)
            if self.pool:
                valid = ops.arange(x.shape[1]) < seq_length[:, None]
                return self.head(ops.where(valid[..., None], y, ops.zeros_like(y)).sum(1) / seq_length[:, None])
            return self.head(y), state

    ms.set_seed(0)
    return Tagger(**options)


FLOATS = batch(features=3, min_length=1)


def test_a_right_model_of_mindspore_passes() -> None:
    """MindSpore's dropout ignores the seed, so the check switches it off and on again."""
    model = mindspore_model(pool="mean", bidirectional=True)
    model.set_train(True)
    padding_is_inert(model, FLOATS, nan=False)
    assert model.dropout.training


MINDSPORE_WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no lengths": (
        {"lengths": False, "bidirectional": True},
        [r"first layer that moved: rnn", "its reverse direction begins in the padding|reads the padding"],
    ),
    "batch norm": (
        {"norm": True},
        [r"norm\.moving_mean after training: off by", r"first layer that moved: norm \(BatchNorm1d\)"],
    ),
}


@pytest.mark.parametrize(("options", "words"), MINDSPORE_WRONG.values(), ids=MINDSPORE_WRONG.keys())
def test_wrong_models_of_mindspore_are_found(options: dict[str, Any], words: list[str]) -> None:
    assert_found(mindspore_model(**options), FLOATS, words)


# ---- modules of unirnn -----------------------------------------------------------------------------


CHAIN = unirnn.Sequential(
    embedding=unirnn.EmbeddingSpec(7, 3),
    conv=unirnn.Conv1dSpec(3, 4, 3, stride=2),
    norm=unirnn.BatchNormSpec(4),
    encoder=unirnn.GRUSpec(4, 5, bidirectional=True, batch_first=True, num_layers=2, dropout=0.3),
)
LAYER = unirnn.LSTMSpec(3, 4, num_layers=2, bidirectional=True, dropout=0.3)


@pytest.mark.parametrize("name", ["numpy", "torch", "mindspore"])
@pytest.mark.parametrize(
    "given", [batch(LAYER, with_state=True, with_resets=True), batch(CHAIN)], ids=["layer", "chain"]
)
def test_modules_of_unirnn_pass(name: str, given: Batch) -> None:
    pytest.importorskip(name)
    launch_blocking()
    padding_is_inert((LAYER if given.num_tokens is None else CHAIN).build(name, seed=0), given)


def test_gradients_without_autodiff_are_checked() -> None:
    """The check finds a NumPy module whose ``vjp`` is wrong."""
    module = unirnn.GRUSpec(3, 4).build("numpy", seed=0)
    right: Callable[..., Any] = type(module).vjp

    class Wrong(type(module)):  # type: ignore[misc]
        def vjp(self, input: Any, *args: Any, **kwargs: Any) -> Any:
            output, state, pullback = right(self, input, *args, **kwargs)
            return output, state, lambda *d: {name: array + 1 for name, array in pullback(*d).items()}

    module.__class__ = Wrong
    assert_found(module, batch(LAYER), [r"the gradient of the padding: it is up to 1, expected 0"])
    assert to_numpy(module.weights["weight_ih_l0"]).shape == (12, 3)
