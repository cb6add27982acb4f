"""The cases of the conformance tests: a table, and a hypothesis strategy that draws others."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st
from numpy.typing import NDArray

from unirnn import GRUSpec, LSTMSpec, Model, RecurrentSpec, RNNSpec, Spec, explain
from unirnn.contract.arrays import type_name
from unirnn.contract.call import join_state
from unirnn.contract.weights import draw as draw_weights
from unirnn.testing.batches import Batch
from unirnn.testing.causes import recurrent_cause
from unirnn.testing.conformance.promises import DeclaredLimit, promises_of, skip_for_limit
from unirnn.testing.oracle import recurrent
from unirnn.testing.subjects import Subject
from unirnn.testing.tolerances import close

KINDS: dict[str, tuple[type[RecurrentSpec], dict[str, Any]]] = {
    "RNN-tanh": (RNNSpec, {"nonlinearity": "tanh"}),
    "RNN-relu": (RNNSpec, {"nonlinearity": "relu"}),
    "GRU": (GRUSpec, {}),
    "GRU-reset-before": (GRUSpec, {"reset_after": False}),
    "LSTM": (LSTMSpec, {}),
}
VARIANTS: dict[str, tuple[type[RecurrentSpec], dict[str, Any]]] = {
    "GRU-hard-sigmoid": (GRUSpec, {"gate_activation": "hard_sigmoid"}),
    "GRU-reset-before-hard-sigmoid-0.2": (GRUSpec, {"reset_after": False, "gate_activation": "hard_sigmoid_0.2"}),
    "LSTM-hard-sigmoid-0.2": (LSTMSpec, {"gate_activation": "hard_sigmoid_0.2"}),
    "LSTM-projected": (LSTMSpec, {"proj_size": 1}),
    "LSTM-projected-hard-sigmoid": (LSTMSpec, {"proj_size": 3, "gate_activation": "hard_sigmoid"}),
}
"""Layers that not every backend can compute. They are tested with only some of the cases."""

Results = tuple[NDArray[Any], tuple[NDArray[Any], ...]]


@dataclass(frozen=True)
class Case:
    """The options of a layer, the sizes of a batch, and which arguments are passed to the call."""

    num_layers: int = 1
    bidirectional: bool = False
    reverse: bool = False
    batch_first: bool = False
    bias: bool = True
    dtype: str = "float64"
    steps: int = 6
    batch_size: int | None = 4
    lengths: tuple[int, ...] | None = None
    resets: tuple[tuple[int, ...], ...] | None = None  # the steps with a reset, for each column
    state: bool = True
    input_size: int = 3
    hidden_size: int = 4
    scale: float = 1.0
    seed: int = 0

    def spec(self, kind: str) -> RecurrentSpec:
        cls, options = {**KINDS, **VARIANTS}[kind]
        return cls(
            self.input_size,
            self.hidden_size,
            self.num_layers,
            bias=self.bias,
            batch_first=self.batch_first,
            bidirectional=self.bidirectional,
            reverse=self.reverse,
            **options,
        )

    @property
    def promises(self) -> tuple[str, ...]:
        return promises_of(self.lengths, self.steps, with_resets=bool(self.resets))

    @property
    def seq_length(self) -> Any:
        if self.lengths is None or self.batch_size is not None:
            return None if self.lengths is None else list(self.lengths)
        return self.lengths[0]


RAGGED = (3, 6, 0, 5)
RESETS = ((1, 4), (0, 3, 5), (0, 2), (0, 1, 2, 3, 4, 5))  # in columns 0 and 2, some are in the padding
CASES = {
    "dense": Case(),
    "dense, no state": Case(state=False),
    "ragged": Case(lengths=RAGGED),
    "ragged, no state": Case(lengths=RAGGED, state=False),
    "ragged, no bias": Case(lengths=RAGGED, bias=False),
    "ragged, batch first": Case(lengths=RAGGED, batch_first=True),
    "ragged, bidirectional": Case(lengths=RAGGED, bidirectional=True),
    "ragged, 2 layers": Case(lengths=RAGGED, num_layers=2),
    "ragged, 3 layers, bidirectional, batch first": Case(
        lengths=RAGGED, num_layers=3, bidirectional=True, batch_first=True
    ),
    "dense, 3 layers, bidirectional, no bias": Case(num_layers=3, bidirectional=True, bias=False),
    "ragged, float32": Case(lengths=RAGGED, dtype="float32", num_layers=2, bidirectional=True),
    "reverse, ragged, resets, 2 layers": Case(lengths=RAGGED, resets=RESETS, num_layers=2, reverse=True),
    "reverse, dense, float32, batch first": Case(dtype="float32", batch_first=True, reverse=True),
    "float32 at T = 100": Case(steps=100, lengths=(100, 0, 1, 99), dtype="float32", hidden_size=16),
    "float16": Case(lengths=RAGGED, dtype="float16", bidirectional=True),
    "huge inputs": Case(lengths=RAGGED, dtype="float32", scale=1e4, bidirectional=True),
    "resets": Case(resets=RESETS),
    "resets, ragged, bidirectional": Case(lengths=RAGGED, resets=RESETS, bidirectional=True),
    "resets, ragged, 2 layers, bidirectional, batch first, float32": Case(
        lengths=RAGGED, resets=RESETS, num_layers=2, bidirectional=True, batch_first=True, dtype="float32"
    ),
    "resets, no state, no bias": Case(resets=RESETS, state=False, bias=False),
    "resets, all lengths zero": Case(lengths=(0, 0, 0, 0), resets=RESETS, bidirectional=True),
    "resets at no step": Case(resets=((), (), (), ()), lengths=RAGGED),
    "resets, unbatched, ragged, bidirectional": Case(
        batch_size=None, lengths=(5,), resets=((0, 2, 5),), bidirectional=True
    ),
    "T = 1": Case(steps=1, lengths=(1, 0, 1, 0), bidirectional=True),
    "B = 1": Case(batch_size=1, lengths=(4,), bidirectional=True),
    "all lengths zero": Case(lengths=(0, 0, 0, 0), num_layers=2, bidirectional=True),
    "no sequence is T long": Case(lengths=(2, 0, 1, 3), bidirectional=True),
    "unbatched": Case(batch_size=None),
    "unbatched, batch first, ragged, bidirectional": Case(
        batch_size=None, lengths=(4,), batch_first=True, bidirectional=True, num_layers=2
    ),
    "unbatched, length zero": Case(batch_size=None, lengths=(0,), bidirectional=True),
}
VARIANT_CASES = {
    name: CASES[name]
    for name in (
        "ragged, 3 layers, bidirectional, batch first",
        "resets, ragged, 2 layers, bidirectional, batch first, float32",
        "huge inputs",
        "reverse, ragged, resets, 2 layers",
    )
}
"""The cases with which `VARIANTS` are tested and, if a subject is brief, most of `KINDS` as well."""


class Arrays:
    """The arrays of a case: arguments and cotangents in the dtype of the case, weights in float64."""

    def __init__(self, case: Case, spec: RecurrentSpec, weights: dict[str, NDArray[Any]]) -> None:
        rng = np.random.default_rng(case.seed)
        batch = () if case.batch_size is None else (case.batch_size,)
        leading = (case.steps, *batch)
        if case.batch_first:
            leading = leading[::-1]
        shape = (*leading, case.input_size)

        def draw(shape: tuple[int, ...], scale: float = 1.0) -> NDArray[Any]:
            return (scale * rng.standard_normal(shape)).astype(case.dtype)

        self.input = draw(shape, case.scale)
        self.hx = tuple(draw(s, case.state) for s in spec.state_shapes(case.batch_size).values())
        self.d_output = draw((*leading, spec.num_directions * spec.output_size))
        self.d_state = tuple(draw(part.shape) for part in self.hx)
        self.weights = {name: array.astype(np.float64) for name, array in weights.items()}
        self.lengths = None if case.lengths is None else np.array(case.lengths)
        self.resets: NDArray[np.bool_] | None = None
        if case.resets is not None:  # in the layout of the input
            columns = [np.isin(np.arange(case.steps), steps) for steps in case.resets]
            self.resets = np.stack(columns, axis=0 if case.batch_first else 1)
            if case.batch_size is None:
                self.resets = columns[0]
        # True in the padding, in the layout of the input: `(T, B)`, `(B, T)` or `(T,)`
        step = np.arange(case.steps)
        valid = np.ones((case.steps, case.batch_size or 1), bool)
        if self.lengths is not None:
            valid = step[:, None] < self.lengths
        valid = valid if case.batch_size is not None else valid[:, 0]
        self.padding = ~(valid.T if case.batch_first else valid)

    def expected(self, spec: RecurrentSpec) -> tuple[NDArray[Any], tuple[NDArray[Any], ...]]:
        hx = tuple(part.astype(np.float64) for part in self.hx)
        return recurrent(spec, self.weights, self.input.astype(np.float64), hx, self.lengths, self.resets)

    def cause(self, spec: RecurrentSpec, results: Results, tolerance: float) -> str | None:
        """The usual mistake that explains the results of a module; see `unirnn.testing.causes`."""
        output, state = results
        input, hx, resets, axis = self.input, self.hx, self.resets, 0 if spec.batch_first else 1
        if input.ndim == 2:  # a batch of one sequence
            input, output = np.expand_dims(input, axis), np.expand_dims(output, axis)
            hx, state = (tuple(part[:, None] for part in parts) for parts in (hx, state))
            resets = None if resets is None else np.expand_dims(resets, axis)
        given = Batch(input, self.lengths, join_state(hx), resets, spec.batch_first)
        return recurrent_cause(spec, self.weights, given, output, state, tolerance)


def available(subject: Subject, dtype: str) -> str:
    """The dtype itself if the backend supports it, else the widest one that it supports."""
    wanted = (dtype, "float64", "float32", "float16")
    return next(name for name in wanted if name in subject.backend.support.dtypes)


def no_gradients(subject: Subject) -> str:
    """The text of the limit of a backend whose ``support`` has ``derivatives=0``."""
    return f"{subject.backend.support.who} has no gradients"


def no_dropout(subject: Subject) -> str:
    """The text of the limit of a backend whose ``support`` has ``dropout=False``."""
    return f"{subject.backend.support.who} applies no dropout"


def skip_without_gradients(subject: Subject) -> None:
    """Skip a test of gradients if the backend declares that it has none."""
    if not subject.backend.support.derivatives:
        raise DeclaredLimit(no_gradients(subject))


def assert_dropout(subject: Subject, one: NDArray[Any], other: NDArray[Any]) -> None:
    """Assert that dropout made two results differ; skip the test if they don't, and the backend declares no dropout."""

    def differ() -> None:
        assert (one != other).any(), "dropout changes nothing while training"

    if not subject.backend.support.dropout:
        skip_for_limit(subject.name, no_dropout(subject), differ)
    differ()


def skip_if_brief(subject: Subject, kind: str) -> None:
    """Skip most kinds for a brief subject, since `VARIANT_CASES` and random cases test them as well."""
    if subject.is_brief and kind not in ("GRU", "LSTM"):
        pytest.skip(f"{subject.label} treats all kinds alike, except for the cell")


def in_its_dtype(subject: Subject, case: Case) -> Case:
    """The case with a dtype that the backend supports."""
    return replace(case, dtype=available(subject, case.dtype))


def refusal(subject: Subject, spec: Spec, dtype: str) -> str | None:
    """The text of the limit for which the backend refuses to build a spec; None if it builds the spec."""
    limits = explain(spec, subject.name, subject.device, dtype=dtype).limits
    return next((limit.text for limit in limits if limit.refuses), None)


def skip_if_refused(subject: Subject, spec: Spec, dtype: str, seed: int, assert_right: Callable[[Any], None]) -> None:
    """Skip a test of a spec that the backend declares it can't build; fail if the backend computes it correctly."""
    text = refusal(subject, spec, dtype)
    if text is None:
        return

    def build_anyway() -> None:
        if refusal(subject, spec, "float32") != text:
            raise LookupError("this is the limit of a dtype, which is not tried")
        assert_right(
            subject.backend.build(
                spec.copied() if isinstance(spec, Model) else spec,
                device=subject.device or subject.backend.default_device(),
                dtype=dtype,
                weights=draw_weights(spec, seed),
                seed=seed,
                options=subject.options,
            )
        )

    skip_for_limit(subject.name, text, build_anyway)


def assume_supported(subject: Subject, kind: str, case: Case) -> None:
    """Discard a random case that the backend refuses, provided that it builds a simple layer of this kind."""
    if refusal(subject, Case().spec(kind), case.dtype) is None:
        assume(refusal(subject, case.spec(kind), case.dtype) is None)


def built(subject: Subject, kind: str, case: Case) -> tuple[Any, Arrays]:
    """Build a module, and draw the arrays of its case; for a limit, skip the test as `skip_if_refused` does."""
    spec = case.spec(kind)

    def arrays(module: Any) -> Arrays:
        return Arrays(case, spec, subject.read(module)[1])

    def assert_right(module: Any) -> None:
        own = arrays(module)
        output, final = subject.call(module, own.input, own.hx, case.seq_length, own.resets)
        expected, expected_final = own.expected(spec)
        close(output, expected, subject.tolerance_of(case.dtype))
        for part, wanted in zip(final, expected_final, strict=True):
            close(part, wanted, subject.tolerance_of(case.dtype))

    skip_if_refused(subject, spec, case.dtype, case.seed, assert_right)
    module = subject.build(spec, dtype=case.dtype, seed=case.seed)
    return module, arrays(module)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    steps, directions = draw(st.integers(1, 5)), draw(st.sampled_from(["forward", "both", "reverse"]))
    batch_size = draw(st.none() | st.integers(1, 4))
    lengths = draw(st.none() | st.tuples(*[st.integers(0, steps)] * (batch_size or 1)))
    begins = st.sets(st.integers(0, steps - 1)).map(sorted).map(tuple)
    resets = draw(st.none() | st.tuples(*[begins] * (batch_size or 1)))
    return Case(
        num_layers=draw(st.integers(1, 3)),
        bidirectional=directions == "both",
        reverse=directions == "reverse",
        batch_first=draw(st.booleans()),
        bias=draw(st.booleans()),
        dtype=draw(st.sampled_from(["float32", "float64"])),
        steps=steps,
        batch_size=batch_size,
        lengths=lengths,
        resets=resets,
        state=draw(st.booleans()),
        input_size=draw(st.integers(1, 4)),
        hidden_size=draw(st.integers(1, 5)),
        seed=draw(st.integers(0, 2**16)),
    )


def zeros(*shape: int, dtype: str = "float32") -> Any:
    return np.zeros(shape, dtype)


def in_words_of(array: Any, words: str) -> str:
    """Turn the words of an error into a pattern, with the framework's names instead of ``{array}`` and ``{type}``.

    ``{type}`` is the name of the array's class. ``{array}`` may be that of any of its base classes, such as
    ``jax.Array``.
    """
    kinds = "|".join(re.escape(type_name(kind)) for kind in type(array).__mro__[:-1])
    pattern = re.escape(words.replace("{type}", type(array).__name__))
    return pattern.replace(re.escape("{array}"), f"(?:{kinds})")
