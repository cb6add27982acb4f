"""Ragged batches for tests, drawn from a seed, as NumPy arrays."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.contract.backend import map_arrays
from unirnn.contract.call import join_state
from unirnn.contract.models import check_takes_resets, is_batch_first
from unirnn.errors import ArgumentError, ShapeError
from unirnn.specs import RecurrentSpec, Spec

from ._tracebacks import is_for_the_test

__all__ = ["Batch", "batch", "zeroed"]

__tracebackhide__ = is_for_the_test

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Batch:
    """The arguments of a call.

    Parameters
    ----------
    input
        `(B, T, F)`, or `(B, T)` for tokens. B and T are exchanged unless ``batch_first``.
    seq_length
        The length of each sequence, `(B,)` integers. None means that every step is valid.
    hx
        The initial state in the form that the model takes: an array, or nested tuples of arrays, each `(.., B, ..)`.
        None means zeros.
    resets
        Where new sequences begin: bools, `(B, T)` or `(T, B)`. None means nowhere.
    batch_first
        Whether the first axis of the input is B.
    num_tokens
        The size of the vocabulary if the input is tokens, else None.

    Raises
    ------
    ShapeError
        If the input has less than two axes, if the shape of the lengths or resets does not match it, or if a length is
        not in 0..T.

    Examples
    --------
    >>> import numpy as np
    >>> b = Batch(np.ones((2, 3, 1)), np.array([1, 3]))
    >>> b.filled(np.nan).input[..., 0]
    array([[ 1., nan, nan],
           [ 1.,  1.,  1.]])
    """

    input: Array
    seq_length: NDArray[np.int64] | None = None
    hx: Any = None
    resets: NDArray[np.bool_] | None = None
    batch_first: bool = True
    num_tokens: int | None = None

    def __post_init__(self) -> None:
        if not hasattr(self.input, "shape"):  # a list; arrays of other frameworks are kept
            object.__setattr__(self, "input", np.asarray(self.input))
        if len(self.input.shape) < 2:
            raise ShapeError(f"input: given shape {tuple(self.input.shape)}, expected (B, T, ...), or (T, B, ...)")
        if self.seq_length is not None:
            lengths = np.asarray(self.seq_length)
            if lengths.shape != (self.batch_size,) or lengths.dtype.kind not in "iu":
                given = f"{lengths.dtype} of shape {lengths.shape}"
                raise ShapeError(f"seq_length: given {given}, expected integers of shape ({self.batch_size},)")
            if lengths.min(initial=0) < 0 or lengths.max(initial=0) > self.steps:
                raise ShapeError(f"seq_length: given {lengths.tolist()}, expected 0 to T = {self.steps}")
            object.__setattr__(self, "seq_length", lengths)
        if self.resets is not None:
            object.__setattr__(self, "resets", np.asarray(self.resets, bool))
            if self.resets.shape != tuple(self.input.shape[:2]):
                raise ShapeError(f"resets: given shape {self.resets.shape}, expected {tuple(self.input.shape[:2])}")

    @property
    def batch_size(self) -> int:
        """B."""
        return self.input.shape[0 if self.batch_first else 1]

    @property
    def steps(self) -> int:
        """T."""
        return self.input.shape[1 if self.batch_first else 0]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """The number of valid steps of each sequence, `(B,)`."""
        return np.full(self.batch_size, self.steps) if self.seq_length is None else self.seq_length

    @property
    def padding(self) -> NDArray[np.bool_]:
        """A mask that is True in the padding: `(B, T)`, or `(T, B)`."""
        padding = np.arange(self.steps) >= self.lengths[:, None]
        return padding if self.batch_first else padding.T

    def filled(self, value: float) -> "Batch":
        """The same batch with its padding filled with a value or a token."""
        input = self.input.copy()
        input[self.padding] = value
        return replace(self, input=input)

    def changed(self, change: Callable[[Any], Any]) -> "Batch":
        """The same batch with a function applied to its input and to each part of its state."""
        hx = None if self.hx is None else map_arrays(self.hx, change)
        return replace(self, input=change(self.input), hx=hx)

    def in_layout(self, batch_first: bool) -> "Batch":
        """The same batch with B or T as its first axis."""
        if batch_first == self.batch_first:
            return self
        resets = None if self.resets is None else self.resets.T
        return replace(self, input=self.input.swapaxes(0, 1), resets=resets, batch_first=batch_first)

    def with_more_padding(self, steps: int, value: float = 0) -> "Batch":
        """The same batch with further steps of padding at its end."""
        axis = 1 if self.batch_first else 0

        def longer(array: Array, value: float) -> Array:
            widths = [(0, steps if k == axis else 0) for k in range(array.ndim)]
            return np.pad(array, widths, constant_values=value)

        resets = None if self.resets is None else longer(self.resets, False)
        return replace(self, input=longer(self.input, value), seq_length=self.lengths, resets=resets)

    def alone(self, b: int) -> "Batch":
        """A batch of sequence b alone, without its padding."""
        valid = slice(self.lengths[b])
        at = (slice(b, b + 1), valid) if self.batch_first else (valid, slice(b, b + 1))
        resets = None if self.resets is None else self.resets[at]
        hx = None if self.hx is None else map_arrays(self.hx, lambda part: part[:, b : b + 1])
        return replace(self, input=self.input[at], seq_length=self.lengths[b : b + 1], hx=hx, resets=resets)


def batch(
    model: Any = None,
    *,
    seed: int = 0,
    features: int | None = None,
    num_tokens: int | None = None,
    batch_first: bool | None = None,
    steps: int = 6,
    batch_size: int = 4,
    dtype: str = "float32",
    min_length: int = 0,
    with_state: bool = False,
    with_resets: bool = False,
) -> Batch:
    """Draw a ragged batch. Its lengths are unsorted, and include ``min_length`` and T.

    Parameters
    ----------
    model
        The model for which the batch is drawn: a spec, or a module that unirnn built. It determines the features or
        tokens, the layout and the states. None means that the other arguments determine them.
    seed
        The seed from which the batch is drawn.
    features, num_tokens
        F or the size of the vocabulary, for a batch without a model, or with one that determines neither.
    batch_first
        Whether the input is `(B, T, ...)`. None means the layout of the model, and True without a model.
    steps, batch_size
        T and B.
    dtype
        The name of the input's dtype; ignored for tokens.
    min_length
        The shortest length, from 0 to T.
    with_state
        Whether the batch has an initial state, which needs a model.
    with_resets
        Whether the batch has resets.

    Returns
    -------
    Batch
        The batch. Its padding is drawn like the valid steps.

    Raises
    ------
    ArgumentError
        If neither the model nor the arguments determine the features or tokens, if they contradict each other, or if
        the model can't take a state or resets.
    ShapeError
        If a size is less than 1, or ``min_length`` is not in 0..T.

    Examples
    --------
    >>> import unirnn
    >>> b = batch(unirnn.GRUSpec(3, 4), steps=5, batch_size=3)
    >>> b.input.shape, b.seq_length.tolist()
    ((5, 3, 3), [4, 5, 0])
    """
    spec = _spec_of(model)
    if spec is not None:
        features, num_tokens, batch_first = _as_the_spec_says(spec, features, num_tokens, batch_first)
    if (features is None) == (num_tokens is None):
        why = "" if spec is None else f", since {type(spec).__name__} does not determine its input"
        raise ArgumentError(f"features, num_tokens: given {features}, {num_tokens}, expected one of them{why}")
    if steps < 1 or batch_size < 1 or not 0 <= min_length <= steps:
        raise ShapeError(
            f"steps, batch_size, min_length: given {steps}, {batch_size}, {min_length}, expected at least 1, at least "
            "1, and 0 <= min_length <= steps"
        )
    is_first = True if batch_first is None else batch_first
    rng = np.random.default_rng([seed, 3])
    leading = (batch_size, steps) if is_first else (steps, batch_size)
    if num_tokens is not None:
        input = rng.integers(0, num_tokens, leading)
    else:
        assert features is not None
        input = rng.standard_normal((*leading, features)).astype(dtype)
    lengths = rng.integers(min_length, steps + 1, batch_size)
    lengths[-2:] = (steps, min_length)[-batch_size:] if batch_size > 1 else (steps,)
    hx = None
    if with_state:
        hx = _draw_state(spec, batch_size, lambda shape: rng.standard_normal(shape).astype(dtype))
    resets = None
    if with_resets:
        if spec is not None:
            check_takes_resets(spec)
        resets = rng.random(leading) < 0.3
    return Batch(input, lengths, hx, resets, is_first, num_tokens)


def zeroed(array: Array, padding: NDArray[np.bool_]) -> Array:
    """A copy of an array with zeros in its padding, which is a mask over its leading axes.

    Examples
    --------
    >>> zeroed(np.ones((2, 2)), np.array([False, True])).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    return np.where(padding.reshape(*padding.shape, *[1] * (array.ndim - padding.ndim)), 0, array)


def _spec_of(model: Any) -> Spec | None:
    """The spec of a model, which may itself be a spec or None; raises ArgumentError for any other object."""
    spec = getattr(model, "spec", model)
    if spec is None or isinstance(spec, Spec):
        return spec
    raise ArgumentError(
        f"model: given {type(model).__module__}.{type(model).__qualname__}, expected a spec, or a module that unirnn "
        "built; for any other model, give features= or num_tokens="
    )


def _as_the_spec_says(
    spec: Spec, features: int | None, num_tokens: int | None, batch_first: bool | None
) -> tuple[int | None, int | None, bool]:
    """Features, number of tokens and layout of a spec, or the given ones where the spec does not determine them."""
    size = spec.input_features or None
    own = {"features": None if spec.takes_tokens else size, "num_tokens": size if spec.takes_tokens else None}
    own["batch_first"] = is_batch_first(spec)
    given = {"features": features, "num_tokens": num_tokens, "batch_first": batch_first}
    for name, value in given.items():
        if value is not None and own[name] not in (None, value):
            raise ArgumentError(f"{name}: given {value}, expected {own[name]}, the model's; leave it out")
    return own["features"] or features, own["num_tokens"] or num_tokens, is_batch_first(spec)


def _draw_state(spec: Spec | None, batch_size: int, draw: Callable[[tuple[int, ...]], Array]) -> Any:
    """Draw an initial state in the form that a module of this spec takes."""
    if spec is None or not spec.stateful:
        raise ArgumentError(f"with_state: given {spec!r}, expected a model with a layer that has a state")
    states = tuple(
        join_state([draw(shape) for shape in leaf.state_shapes(batch_size).values()]) for leaf in spec.stateful.values()
    )
    return states[0] if isinstance(spec, RecurrentSpec) else states
