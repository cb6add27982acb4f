"""The work of a row of the benchmark: a layer or a model of a given size, and the arrays with which it is called."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirnn.specs import EmbeddingSpec, LinearSpec, PoolSpec, RecurrentSpec, Sequential

__all__ = ["LENGTHS", "MODELS", "SIZES", "STEPS", "Layer", "Size", "Work"]

Array = NDArray[Any]


class Size(NamedTuple):
    """The sizes T, B, I and H."""

    steps: int
    batch_size: int
    input_size: int
    hidden_size: int


SIZES: Mapping[str, Size] = {
    "S": Size(100, 1, 64, 64),
    "M": Size(100, 32, 128, 128),
    "L": Size(200, 64, 256, 256),
    "wide": Size(50, 8, 512, 512),
    "long": Size(1000, 1, 32, 32),
    "policy": Size(128, 16, 128, 256),
    "step": Size(1, 1, 128, 128),
    "step64": Size(1, 64, 128, 128),
    "model": Size(100, 16, 128, 256),
}
"""The sizes by name; ``policy`` is that of a recurrent policy in reinforcement learning."""

STEPS = ("step", "step64")
"""The sizes at which one time step is measured: a call of the method ``step`` with a given state."""

MODELS = ("model",)
"""The sizes at which a whole model is measured, which classifies sequences of tokens."""

TOKENS, CLASSES = 5000, 9
"""The number of tokens and of classes of a model."""

LENGTHS = ("dense", "full", "uniform", "short", "resets")
"""The kinds of lengths. ``dense``: no lengths are given. ``full``: all are T. ``uniform``: they are uniform in 1..T.
``short``: a tenth of them are T, and the others at most T/10. ``resets``: no lengths are given, and a new sequence
begins at 2 % of the steps."""


@dataclass(frozen=True)
class Layer:
    """The layer of a row, described by the values of the command's options.

    Examples
    --------
    >>> layer = Layer("GRU", "M", 2, True, "uniform", backward=True)
    >>> layer.spec
    GRUSpec(128, 128, num_layers=2, bidirectional=True)
    >>> print(layer)
    GRU M, 2 layers, bidirectional, uniform, with backward
    """

    cell: str
    size: str
    num_layers: int
    bidirectional: bool
    lengths: str
    backward: bool

    @property
    def spec(self) -> RecurrentSpec:
        """The spec of the layer."""
        size = SIZES[self.size]
        arguments = {
            "kind": self.cell,
            "input_size": size.input_size,
            "hidden_size": size.hidden_size,
            "num_layers": self.num_layers,
            "bidirectional": self.bidirectional,
        }
        spec: RecurrentSpec = RecurrentSpec.from_dict(arguments)
        return spec

    @property
    def model(self) -> Sequential | None:
        """The model that contains the layer; None for a row that measures only the layer."""
        if self.size not in MODELS:
            return None
        return Sequential(
            embedding=EmbeddingSpec(TOKENS, SIZES[self.size].input_size),
            encoder=self.spec,
            pool=PoolSpec("mean"),
            head=LinearSpec(out_features=CLASSES),
        )

    def __str__(self) -> str:
        stack = f"{self.num_layers} layer" + ("s" if self.num_layers > 1 else "")
        stack += ", bidirectional" if self.bidirectional else ""
        return f"{self.cell} {self.size}, {stack}, {self.lengths}, {'with backward' if self.backward else 'forward'}"


@dataclass(frozen=True)
class Work:
    """The work that every implementation of a row does in float32, with arrays that are made before the measurement.

    Parameters
    ----------
    spec
        The layer, with ``batch_first=False``. For a model, this is its recurrent layer.
    input
        `(T, B, I)`; for a model, tokens `(T, B)`.
    hx
        The parts of the state, `(L*D, B, H)` each, for a row that measures ``step``. None means that the module is
        called, without an initial state.
    seq_length
        `(B,)`, or None for dense input.
    resets
        `(T, B)` bools, or None.
    d_output
        The gradient of the output, `(T, B, D*H)`, or `(B, F)` for a model, for rows with a backward pass. None means
        that there is only a forward pass.
    mode
        One of the modes of the backend; see `unirnn_bench.baselines`.
    threads
        The number of threads.
    slow
        Whether to include baselines that take minutes.
    model
        The model that contains the layer; None for a row that measures only the layer.
    """

    spec: RecurrentSpec
    input: Array
    hx: tuple[Array, ...] | None
    seq_length: NDArray[np.int64] | None
    resets: NDArray[np.bool_] | None
    d_output: Array | None
    mode: str
    threads: int
    slow: bool
    model: Sequential | None = None

    @classmethod
    def draw(cls, layer: Layer, mode: str, threads: int, slow: bool) -> "Work":
        """Draw the arrays of a row. They are the same for every backend."""
        rng = np.random.default_rng(0)
        steps, batch_size, input_size, _ = SIZES[layer.size]
        spec, model = layer.spec, layer.model

        def normal(*shape: int) -> Array:
            return rng.standard_normal(shape, np.float32)

        shape: tuple[int, ...] = (steps, batch_size, spec.num_directions * spec.hidden_size)
        if model is None:
            input: Array = normal(steps, batch_size, input_size)
        else:
            input, shape = rng.integers(0, TOKENS, (steps, batch_size)), (batch_size, CLASSES)
        hx = None
        if layer.size in STEPS:
            hx = tuple(normal(*shape) for shape in spec.state_shapes(batch_size).values())
        return cls(
            spec,
            input,
            hx,
            _draw_lengths(layer.lengths, steps, batch_size, rng),
            rng.random((steps, batch_size)) < 0.02 if layer.lengths == "resets" else None,
            normal(*shape) if layer.backward else None,
            mode,
            threads,
            slow,
            model,
        )

    @property
    def active(self) -> list[int]:
        """The number of sequences that have not yet ended at each step, up to the end of the longest one."""
        steps, batch_size, *_ = self.input.shape
        if self.seq_length is None:
            return [batch_size] * steps
        counts = (np.arange(steps)[:, None] < self.seq_length).sum(axis=1)
        return [n for n in counts.tolist() if n]

    @property
    def operations(self) -> int:
        """The number of floating-point operations in the matrix products of the valid steps, forward and backward.

        For a model, only those of the recurrent layer are counted, which are nearly all. For each product of the
        forward pass, the backward pass has two: one for the gradient of each factor.

        Examples
        --------
        >>> layer = Layer("GRU", "M", 1, False, "dense", backward=True)
        >>> Work.draw(layer, "eager", 1, False).operations == 3 * (2 * 100 * 32 * 3 * 128 * (128 + 128))
        True
        """
        shapes = self.spec.weight_shapes()
        names = (name + suffix for suffix in self.spec.suffixes() for name in ("weight_ih", "weight_hh"))
        forward = 2 * sum(self.active) * sum(math.prod(shapes[name]) for name in names)
        return forward if self.d_output is None else 3 * forward

    @property
    def fill(self) -> float:
        """The fraction of steps that are valid."""
        steps, batch_size, *_ = self.input.shape
        return sum(self.active) / (steps * batch_size)


def _draw_lengths(kind: str, steps: int, batch_size: int, rng: np.random.Generator) -> NDArray[np.int64] | None:
    if kind in ("dense", "resets"):
        return None
    if kind == "full":
        return np.full(batch_size, steps)
    # Spread evenly, so that the amount of work does not depend on chance if the batch is small.
    spread = (np.arange(batch_size) + 0.5) / batch_size
    lengths = np.ceil(spread * (steps if kind == "uniform" else steps / 10)).astype(np.int64)
    if kind == "short":
        lengths[: round(batch_size / 10)] = steps
    return rng.permutation(lengths)
