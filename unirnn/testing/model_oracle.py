"""The oracle for models: computes each layer on one sequence after another, in float64 and plain NumPy.

Like `unirnn.testing.oracle`, it never sees padding: a sequence of length n is an array with n rows. Every function also
works on complex numbers, whose imaginary parts carry the derivative. Comparisons use the real parts only.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from unirnn.specs import (
    ActivationSpec,
    BatchNormSpec,
    Concat,
    Conv1dSpec,
    EmbeddingSpec,
    LayerNormSpec,
    LinearSpec,
    ModelSpec,
    NormalizeSpec,
    PoolSpec,
    RecurrentSpec,
    Residual,
    Sequential,
    Spec,
    SumDirectionsSpec,
)

from .oracle import IMAGINARY_STEP, recurrent, sigmoid

__all__ = ["derivative", "model"]

Array = Any
Rows = list[Array]
"""An array for each sequence, `(n, F)`, or `(F,)` after a pooling."""
State = tuple[Array, ...]


def model(
    spec: Spec,
    weights: Mapping[str, Array],
    input: Array,
    states: Sequence[State | None],
    lengths: Array | None = None,
    resets: Array | None = None,
    *,
    batch_first: bool = True,
    training: bool = False,
) -> tuple[Array, tuple[State, ...]]:
    """Compute a model, or one layer, on a batch.

    Parameters
    ----------
    spec
        The model; its dropout is ignored.
    weights
        The weights, with the names and shapes of `Spec.weight_shapes`.
    input
        `(B, T, F)`, or `(T, B, F)`; tokens have no axis F.
    states
        The parts of the initial state of each layer that has one; their second axis is B. None means zeros.
    lengths
        The number of valid steps of each sequence, `(B,)`. None means T for all.
    resets
        Where new sequences begin: bools, `(B, T)` or `(T, B)`. None means nowhere.
    batch_first
        Whether the input is `(B, T, F)`.
    training
        Whether batch normalisations use the statistics of the batch instead of the running ones.

    Returns
    -------
    output
        `(B, T', F')` or `(T', B, F')`, 0 in the padding; `(B, F')` after a pooling.
    states
        The final states, in the form of ``states``.

    Examples
    --------
    >>> import numpy as np, unirnn
    >>> spec = unirnn.Sequential(unirnn.PoolSpec("mean"), unirnn.ActivationSpec("relu"))
    >>> output, _ = model(spec, {}, np.array([[[1.0], [3.0], [9.0]]]), (), np.array([2]))
    >>> output.tolist()
    [[2.0]]
    """
    by_sequence = input if batch_first else input.swapaxes(0, 1)
    batch_size, steps = by_sequence.shape[:2]
    counts = [steps] * batch_size if lengths is None else [int(n) for n in lengths]
    rows = [by_sequence[b][:n] for b, n in enumerate(counts)]
    begins = None
    if resets is not None:
        begins = [column[:n] for column, n in zip(resets if batch_first else resets.T, counts, strict=True)]
    if isinstance(spec, ModelSpec):
        weights = {**weights, **{name: weights[other] for name, other in spec.tied().items()}}
    finals: list[State] = []
    rows = _Batch(weights, iter(states), finals, begins, training).layer("", spec, rows)
    if spec.ends_steps:
        return np.stack(rows), tuple(finals)
    after = int(spec.output_lengths(np.int64(steps)))
    output = np.zeros((batch_size, after, rows[0].shape[-1]), np.result_type(*rows))
    for b, row in enumerate(rows):
        output[b, : len(row)] = row
    return output if batch_first else output.swapaxes(0, 1), tuple(finals)


def derivative(
    spec: Spec,
    arrays: Mapping[str, Array],
    states: Sequence[State | None],
    cotangents: Sequence[Array],
    name: str,
    direction: Array,
    **options: Any,
) -> float:
    """Differentiate ``sum(output * d_output) + sum(state * d_state)`` along a direction in one array.

    Parameters
    ----------
    spec
        The model.
    arrays
        ``input`` and each weight.
    states
        See `model`.
    cotangents
        ``d_output``, and a cotangent for each part of each state.
    name, direction
        The name of the array that is moved, which is ``state[k][j]`` for part j of state k, and the direction.
    options
        ``lengths``, ``resets``, ``batch_first`` and ``training``; see `model`.
    """
    step = 1j * IMAGINARY_STEP * direction
    moved = dict(arrays)
    given = [None if state is None else list(state) for state in states]
    if name in moved:
        moved[name] = moved[name] + step
    else:
        k, j = (int(part.rstrip("]")) for part in name.split("[")[1:])
        state = given[k]
        assert state is not None
        state[j] = state[j] + step
    input = moved.pop("input")
    output, finals = model(spec, moved, input, [None if state is None else tuple(state) for state in given], **options)
    results = [output, *(part for final in finals for part in final)]
    total = sum((result * d).sum() for result, d in zip(results, cotangents, strict=True))
    return float(np.imag(total) / IMAGINARY_STEP)


class _Batch:
    """What all layers share in one call: the weights, the initial and final states, the resets and the mode."""

    def __init__(
        self,
        weights: Mapping[str, Array],
        states: Iterator[State | None],
        finals: list[State],
        resets: Rows | None,
        training: bool,
    ) -> None:
        self.weights, self.states, self.finals = weights, states, finals
        self.resets, self.training = resets, training

    def layer(self, name: str, spec: Spec, rows: Rows) -> Rows:
        prefix = f"{name}." if name else ""
        if isinstance(spec, Sequential):
            for child, layer in spec.children:
                rows = self.layer(prefix + child, layer, rows)
            return rows
        if isinstance(spec, Residual):
            ((child, layer),) = spec.children
            return [x + y for x, y in zip(rows, self.layer(prefix + child, layer, rows), strict=True)]
        if isinstance(spec, Concat):
            parts = [self.layer(prefix + child, layer, rows) for child, layer in spec.children]
            return [np.concatenate(part, axis=-1) for part in zip(*parts, strict=True)]
        own = {key.removeprefix(prefix): array for key, array in self.weights.items() if key.startswith(prefix)}
        if isinstance(spec, RecurrentSpec):
            return self._recurrent(spec, own, rows)
        if isinstance(spec, Conv1dSpec):
            return self._convolutions(spec, own, rows)
        if isinstance(spec, BatchNormSpec):
            return self._batch_norm(spec, own, rows)
        return [_layer(spec, own, row) for row in rows]

    def _recurrent(self, spec: RecurrentSpec, weights: Mapping[str, Array], rows: Rows) -> Rows:
        shapes = spec.state_shapes(len(rows)).values()
        initial = next(self.states) or tuple(np.zeros(shape) for shape in shapes)
        found = [
            recurrent(
                spec,
                weights,
                row,
                tuple(part[:, b] for part in initial),
                None,
                None if self.resets is None else self.resets[b],
            )
            for b, row in enumerate(rows)
        ]
        finals = zip(*(final for _, final in found), strict=True)
        self.finals.append(tuple(np.stack(part, axis=1) for part in finals))
        return [output for output, _ in found]

    def _convolutions(self, spec: Conv1dSpec, weights: Mapping[str, Array], rows: Rows) -> Rows:
        shapes = spec.state_shapes(len(rows))
        if not shapes:
            return [_convolution(spec, weights, row) for row in rows]
        (context,) = next(self.states) or (np.zeros(shapes["context"]),)
        whole = [np.concatenate([context[:, b], row]) for b, row in enumerate(rows)]
        self.finals.append((np.stack([row[len(row) - len(context) :] for row in whole], axis=1),))
        return [_convolution(spec, weights, row)[len(context) :] for row in whole]

    def _batch_norm(self, spec: BatchNormSpec, weights: Mapping[str, Array], rows: Rows) -> Rows:
        mean, variance = weights["running_mean"], weights["running_var"]
        if self.training:
            everything = np.concatenate([np.atleast_2d(row) for row in rows])
            mean = everything.mean(axis=0)
            variance = ((everything - mean) ** 2).mean(axis=0)
        scale = weights["weight"] / np.sqrt(variance + spec.eps)
        return [(row - mean) * scale + weights["bias"] for row in rows]


def _layer(spec: Spec, weights: Mapping[str, Array], x: Array) -> Array:
    """Compute a layer that treats each sequence by itself: `(n, F)`, or `(F,)` after a pooling."""
    if isinstance(spec, EmbeddingSpec):
        rows = [weights["weight"][token] for token in x]
        if spec.padding_idx is not None:  # the row of this token is not trained, so it has no derivative
            rows = [row.real if token == spec.padding_idx else row for token, row in zip(x, rows, strict=True)]
        return np.array(rows).reshape(len(x), spec.embedding_dim)
    if isinstance(spec, LinearSpec):
        return x @ weights["weight"].T + weights.get("bias", 0)
    if isinstance(spec, ActivationSpec):
        return _activation(spec.function, x)
    if isinstance(spec, LayerNormSpec):
        centred = x - x.mean(axis=-1, keepdims=True)
        variance = (centred**2).mean(axis=-1, keepdims=True)
        return centred / np.sqrt(variance + spec.eps) * weights["weight"] + weights["bias"]
    if isinstance(spec, NormalizeSpec):
        norm = np.sqrt((x**2).sum(axis=-1, keepdims=True))
        return x / np.where(norm.real > spec.eps, norm, spec.eps)
    if isinstance(spec, PoolSpec):
        return _pool(spec.how, x)
    if isinstance(spec, SumDirectionsSpec):
        return np.add(*np.split(x, 2, axis=-1))
    return x  # dropout


def _activation(function: str, x: Array) -> Array:
    if function == "relu":
        return np.where(x.real > 0, x, 0)
    if function == "tanh":
        return np.tanh(x)
    if function == "sigmoid":
        return sigmoid(x)
    if function == "gelu":
        return 0.5 * x * (1 + _erf(x / math.sqrt(2)))
    if function == "silu":
        return x * sigmoid(x)
    if function == "hard_sigmoid":
        line = x / 6 + 0.5
        return np.where(line.real <= 0, 0, np.where(line.real >= 1, 1, line))
    shifted = x - x.real.max(axis=-1, keepdims=True)
    total = np.exp(shifted).sum(axis=-1, keepdims=True)
    return np.exp(shifted) / total if function == "softmax" else shifted - np.log(total)


def _erf(x: Array) -> Array:
    """The error function, to first order in the imaginary part, which is enough for the derivative."""
    values = np.array([math.erf(value) for value in x.real.ravel()]).reshape(x.shape)
    slope = 2 / math.sqrt(math.pi) * np.exp(-(x.real**2))
    return values + 1j * slope * x.imag if np.iscomplexobj(x) else values


def _convolution(spec: Conv1dSpec, weights: Mapping[str, Array], x: Array) -> Array:
    """A convolution of one sequence `(n, F)`, computed one output step after another."""
    weight, (left, right), n = weights["weight"], spec.padded, len(x)
    width, height = spec.in_channels // spec.groups, spec.out_channels // spec.groups
    outputs: list[Array] = []
    while n and len(outputs) * spec.stride - left + spec.span <= n + right:
        y = np.array(weights.get("bias", np.zeros(spec.out_channels)), np.result_type(x, *weights.values()))
        for k in range(spec.kernel_size):
            t = len(outputs) * spec.stride - left + k * spec.dilation
            if 0 <= t < n:
                for g in range(spec.groups):
                    rows = slice(g * height, (g + 1) * height)
                    y[rows] += weight[rows, :, k] @ x[t, g * width : (g + 1) * width]
        outputs.append(y)
    return np.array(outputs).reshape(len(outputs), spec.out_channels)


def _pool(how: str, x: Array) -> Array:
    if not len(x):
        return np.zeros(x.shape[-1], x.dtype)
    if how == "mean":
        return x.mean(axis=0)
    if how == "max":
        return x[x.real.argmax(axis=0), np.arange(x.shape[1])]
    if how == "last":
        return x[-1]
    half = x.shape[1] // 2
    return np.concatenate([x[-1, :half], x[0, half:]])
