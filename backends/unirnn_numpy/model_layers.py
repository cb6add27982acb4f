"""The layers over NumPy's arrays: what each of them computes, and the pullback that gives its gradients.

A pullback takes the gradient of the output, and gives the gradients of the input and of the weights. It is made only if
``keep`` asks for it. It keeps what it needs of the forward pass, but never the output itself, since the caller may
write over it.

`LAYERS` are the layers that compute each step by itself. Their arrays have any leading axes, and hold no padding.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from unirnn import kernels, reference
from unirnn.contract.call import Batch
from unirnn.reference.cells import sigmoid
from unirnn.reference.functions import ACTIVATIONS, erf
from unirnn.specs import (
    ActivationSpec,
    BatchNormSpec,
    Conv1dSpec,
    EmbeddingSpec,
    LayerNormSpec,
    LinearSpec,
    NormalizeSpec,
    PoolSpec,
    RecurrentSpec,
    Spec,
    SumDirectionsSpec,
)

__all__ = [
    "LAYERS",
    "Layer",
    "Pullback",
    "batch_norm",
    "computed",
    "conv1d",
    "noise",
    "pool",
    "recurrent",
    "recurrent_noise",
]

Array = NDArray[Any]
Gradients = dict[str, Array]
Pullback = Callable[[Array], tuple[Array, Gradients]]
Layer = Callable[[Any, Mapping[str, Array], Array, bool], tuple[Array, Pullback | None]]
"""``layer(spec, weights, x, keep)``: the output and the pullback, which is None without ``keep``."""


def computed(dtype: Any) -> np.dtype[Any]:
    """The dtype that is computed with: float32 for float16, which is rounded at the end."""
    return np.dtype(np.float32) if dtype == np.float16 else np.dtype(dtype)


def _rows(x: Array) -> Array:
    """`(N, F)` of `(..., F)`."""
    return x.reshape(-1, x.shape[-1])


def _total(x: Array) -> Array:
    """`(F,)`: the sum over all axes but the last."""
    total: Array = _rows(x).sum(axis=0)
    return total


# ---- each step by itself -------------------------------------------------------------------------


def _embedding(
    spec: EmbeddingSpec, weights: Mapping[str, Array], x: Array, keep: bool
) -> tuple[Array, Pullback | None]:
    weight = weights["weight"]
    y = weight.take(x, axis=0).astype(computed(weight.dtype), copy=False)
    if not keep:
        return y, None

    def pullback(d_y: Array) -> tuple[Array, Gradients]:
        d_weight = np.zeros(weight.shape, d_y.dtype)
        tokens, rows = x.reshape(-1), _rows(d_y)
        if tokens.size:
            # Sorted by tokens, the rows of each token are one piece, whose sum is taken at once.
            order = np.argsort(tokens, kind="stable")
            in_order = tokens[order]
            begins = np.flatnonzero(np.append(True, in_order[1:] != in_order[:-1]))
            d_weight[in_order[begins]] = np.add.reduceat(rows[order], begins, axis=0)
        if spec.padding_idx is not None:
            d_weight[spec.padding_idx] = 0
        return np.zeros(x.shape, d_y.dtype), {"weight": d_weight}  # tokens have no gradient

    return y, pullback


def _linear(spec: LinearSpec, weights: Mapping[str, Array], x: Array, keep: bool) -> tuple[Array, Pullback | None]:
    weight, rows = weights["weight"], _rows(x)
    product = rows @ weight.T
    if spec.bias:
        product += weights["bias"]
    y = product.reshape(*x.shape[:-1], spec.out_features)
    if not keep:
        return y, None

    def pullback(d_y: Array) -> tuple[Array, Gradients]:
        d_rows = _rows(d_y)
        gradients = {"weight": d_rows.T @ rows, **({"bias": d_rows.sum(axis=0)} if spec.bias else {})}
        return (d_rows @ weight).reshape(x.shape), gradients

    return y, pullback


def _activation(spec: ActivationSpec, _: Mapping[str, Array], x: Array, keep: bool) -> tuple[Array, Pullback | None]:
    function = spec.function
    if function in ("softmax", "log_softmax"):
        return _softmax(function, x, keep)
    y, slope = _elementwise(function, x, keep)
    if slope is None:
        return y, None
    return y, lambda d_y: (np.where(slope, d_y, 0) if slope.dtype == bool else d_y * slope, {})


def _softmax(function: str, x: Array, keep: bool) -> tuple[Array, Pullback | None]:
    is_log = function == "log_softmax"
    y: Array = ACTIVATIONS[function](np, x)
    if not keep:
        return y, None
    share = np.exp(y) if is_log else y.copy()

    def pullback(d_y: Array) -> tuple[Array, Gradients]:
        if is_log:
            return d_y - share * d_y.sum(axis=-1, keepdims=True), {}
        return share * (d_y - (share * d_y).sum(axis=-1, keepdims=True)), {}

    return y, pullback


def _elementwise(function: str, x: Array, keep: bool) -> tuple[Array, Array | None]:
    """A function of each element, and if asked for its derivative, which is of bools if it is 0 or 1."""
    if function == "gelu":
        below = _normal_distribution(x)
        y = x * below
        return y, below + x * np.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi)) if keep else None
    y = ACTIVATIONS[function](np, x)
    if not keep:
        return y, None
    match function:
        case "relu":
            return y, x > 0
        case "tanh":
            return y, 1 - y * y
        case "sigmoid":
            return y, y * (1 - y)
        case "silu":
            s = sigmoid(np, x)
            return y, s + y * (1 - s)
        case "hard_sigmoid":
            return y, ((x > -3) & (x < 3)) * x.dtype.type(1 / 6)
        case _:
            raise NotImplementedError(function)


def _normal_distribution(x: Array) -> Array:
    """The probability of values below x, some elements at a time: the terms of its series then stay in the cache."""
    elements = x.reshape(-1)
    below = np.empty_like(elements)
    for begin in range(0, elements.size, 8192):
        part = slice(begin, begin + 8192)
        below[part] = 0.5 * (1 + erf(np, elements[part] * math.sqrt(0.5)))
    return below.reshape(x.shape)


def _layer_norm(
    spec: LayerNormSpec, weights: Mapping[str, Array], x: Array, keep: bool
) -> tuple[Array, Pullback | None]:
    normal = x - x.mean(axis=-1, keepdims=True)
    normal -= normal.mean(axis=-1, keepdims=True)  # a large mean was rounded
    deviation = np.sqrt((normal * normal).mean(axis=-1, keepdims=True) + spec.eps)
    normal /= deviation
    y = normal * weights["weight"]
    y += weights["bias"]
    if not keep:
        return y, None

    def pullback(d_y: Array) -> tuple[Array, Gradients]:
        gradients = {"weight": _total(d_y * normal), "bias": _total(d_y)}
        d_normal = d_y * weights["weight"]
        d_x = d_normal - d_normal.mean(axis=-1, keepdims=True)
        d_x -= normal * (d_normal * normal).mean(axis=-1, keepdims=True)
        d_x /= deviation
        return d_x, gradients

    return y, pullback


def _normalize(spec: NormalizeSpec, _: Mapping[str, Array], x: Array, keep: bool) -> tuple[Array, Pullback | None]:
    squares = (x * x).sum(axis=-1, keepdims=True)
    norm = np.sqrt(np.maximum(squares, spec.eps**2))
    y: Array = x / norm
    if not keep:
        return y, None

    def pullback(d_y: Array) -> tuple[Array, Gradients]:
        unit = np.where(squares > spec.eps**2, x / norm, 0)  # below eps the norm is a constant
        return (d_y - unit * (unit * d_y).sum(axis=-1, keepdims=True)) / norm, {}

    return y, pullback


def _sum_directions(
    _spec: SumDirectionsSpec, _: Mapping[str, Array], x: Array, keep: bool
) -> tuple[Array, Pullback | None]:
    half = x.shape[-1] // 2
    y = x[..., :half] + x[..., half:]
    return y, (lambda d_y: (np.concatenate([d_y, d_y], axis=-1), {})) if keep else None


LAYERS: dict[type[Spec], Layer] = {
    ActivationSpec: _activation,
    EmbeddingSpec: _embedding,
    LayerNormSpec: _layer_norm,
    LinearSpec: _linear,
    NormalizeSpec: _normalize,
    SumDirectionsSpec: _sum_directions,
}


# ---- with what the whole batch has in common -----------------------------------------------------


def batch_norm(
    spec: BatchNormSpec, weights: Mapping[str, Array], x: Array, keep: bool, *, training: bool
) -> tuple[Array, Pullback | None, tuple[Array, Array]]:
    """Normalise each feature.

    Parameters
    ----------
    spec, weights, x, keep
        See `Layer`.
    training
        Whether to do so by the mean and the variance of x, which has two steps or more, rather than by the running
        ones.

    Returns
    -------
    y, pullback
        See `Layer`.
    running
        Mean and variance, `(F,)` each, as they should be from now on.
    """
    count = x.size // spec.num_features
    mean, variance = running = (weights["running_mean"], weights["running_var"])
    if training:
        # Summed in float64, since there may be millions of steps.
        mean = _rows(x).mean(axis=0, dtype=np.float64)
        variance = np.square(_rows(x) - mean.astype(x.dtype)).mean(axis=0, dtype=np.float64)
        m, unbiased = spec.momentum, variance * (count / (count - 1))
        before = [array.astype(np.float64) for array in running]
        running = (1 - m) * before[0] + m * mean, (1 - m) * before[1] + m * unbiased
    scale = (1 / np.sqrt(variance.astype(np.float64) + spec.eps)).astype(x.dtype)
    normal = x - mean.astype(x.dtype)
    normal *= scale
    y = normal * weights["weight"]
    y += weights["bias"]
    if not keep:
        return y, None, running

    def pullback(d_y: Array) -> tuple[Array, Gradients]:
        gradients = {"weight": _total(d_y * normal), "bias": _total(d_y)}
        d_x = d_y
        if training:
            d_x = d_x - normal * (gradients["weight"] / count)
            d_x -= gradients["bias"] / count
        return d_x * (weights["weight"] * scale), gradients

    return y, pullback, running


def noise(generator: np.random.Generator, shape: tuple[int, ...], p: float, dtype: np.dtype[Any]) -> Array:
    """What dropout multiplies with: 0 with probability p, else ``1 / (1 - p)``."""
    kept = generator.random(shape, dtype=np.float64 if dtype == np.float64 else np.float32) >= p
    factor: Array = kept * dtype.type(1 / (1 - p))
    return factor


def recurrent_noise(
    generator: np.random.Generator, spec: RecurrentSpec, sizes: tuple[int, ...], dtype: np.dtype[Any]
) -> Array | None:
    """`(L-1, T, B, D*H)`: what dropout multiplies the outputs of all layers but the last with; None for nothing.

    Parameters
    ----------
    sizes
        T and B.
    """
    if not spec.dropout or spec.num_layers == 1:
        return None
    shape = (spec.num_layers - 1, *sizes, spec.num_directions * spec.output_size)
    return noise(generator, shape, spec.dropout, dtype)


# ---- over the steps ------------------------------------------------------------------------------


def recurrent(
    spec: RecurrentSpec,
    weights: Mapping[str, Array],
    batch: Batch,
    *,
    kernel: str,
    noise: Array | None = None,
    keep: bool = False,
) -> tuple[Array, tuple[Array, ...], kernels.Pullback | None]:
    """Run recurrent layers by a kernel; see `unirnn.kernels.recurrent`.

    Parameters
    ----------
    kernel
        One of `unirnn_numpy.dispatch.SUPPORT`. The reference has no pullback.
    """
    if kernel != "reference":
        named: Any = None if kernel == "auto" else kernel
        if named == "compiled":
            kernels.check_compiled()  # the module may have been built, and pickled, elsewhere
        return kernels.recurrent(spec, weights, batch, noise=noise, keep=keep, kernel=named)

    import array_api_compat.numpy as xp  # a third of the time that NumPy itself takes, and only needed here

    layers = iter(()) if noise is None else iter(noise.astype(batch.input.dtype))
    dropout = None if noise is None else lambda x: x * next(layers)
    output, final = reference.recurrent(xp, spec, weights, batch, dropout=dropout)
    return output, final, None


class Convolved(NamedTuple):
    """What `conv1d` gives: the output, the context after the last step, and the pullback."""

    y: Array
    context: Array | None
    pullback: Callable[[Array, Array | None], tuple[Array, Gradients, Array]] | None
    """``pullback(d_y, d_context)``: the gradients of the input, the weights, and the context before the first step."""


def conv1d(
    spec: Conv1dSpec,
    weights: Mapping[str, Array],
    x: Array,
    context: Array | None,
    lengths: NDArray[np.int64] | None,
    keep: bool,
) -> Convolved:
    """Convolve over the steps, by one matrix product.

    Parameters
    ----------
    spec, weights, keep
        See `Layer`.
    x
        `(T, B, C)`, zero in the padding.
    context
        `(left, B, C)`: the steps before x; None is zeros.
    lengths
        `(B,)`; None if every step is valid.
    """
    (left, right), (steps, batch_size, features), k = spec.padded, x.shape, spec.kernel_size
    padded = x
    if left or right:
        padded = np.zeros((left + steps + right, batch_size, features), x.dtype)
        padded[left : left + steps] = x
        if context is not None:
            padded[:left] = context
    ends = np.full(batch_size, steps) if lengths is None else lengths
    last = np.arange(left)[:, None] + ends, np.arange(batch_size)
    after = padded[last] if spec.state_shapes(None) else None

    groups, size = spec.groups, features // spec.groups
    outputs = (len(padded) - spec.span) // spec.stride + 1
    step, *others = padded.strides
    windows = as_strided(
        padded,
        (outputs, batch_size, k, features),
        (step * spec.stride, others[0], step * spec.dilation, others[1]),
        writeable=False,
    )
    # (G, T' * B, k * C/G) and (G, k * C/G, C'/G)
    rows = windows.reshape(outputs, batch_size, k, groups, size).transpose(3, 0, 1, 2, 4)
    rows = rows.reshape(groups, outputs * batch_size, k * size)
    matrix = weights["weight"].reshape(groups, -1, size, k).transpose(0, 3, 2, 1).reshape(groups, k * size, -1)
    y = np.matmul(rows, matrix).transpose(1, 0, 2).reshape(outputs, batch_size, spec.out_channels)
    if spec.bias:
        y += weights["bias"]
    if not keep:
        return Convolved(y, after, None)

    def pullback(d_y: Array, d_context: Array | None) -> tuple[Array, Gradients, Array]:
        d_rows = d_y.reshape(outputs * batch_size, groups, spec.out_channels // groups).transpose(1, 0, 2)
        d_matrix = np.matmul(rows.transpose(0, 2, 1), d_rows)
        d_weight = d_matrix.reshape(groups, k, size, -1).transpose(0, 3, 2, 1).reshape(weights["weight"].shape)
        d_windows = np.matmul(d_rows, matrix.transpose(0, 2, 1))
        d_windows = d_windows.reshape(groups, outputs, batch_size, k, size).transpose(3, 1, 2, 0, 4)
        d_padded = np.zeros(padded.shape, d_y.dtype)
        for position in range(k):
            begin = position * spec.dilation
            seen = d_padded[begin : begin + (outputs - 1) * spec.stride + 1 : spec.stride]
            seen += d_windows[position].reshape(seen.shape)
        if d_context is not None:
            d_padded[last] += d_context
        return (
            d_padded[left : left + steps],
            {"weight": d_weight, **({"bias": _total(d_y)} if spec.bias else {})},
            d_padded[:left],
        )

    return Convolved(y, after, pullback)


def pool(
    spec: PoolSpec, x: Array, lengths: NDArray[np.int64] | None, keep: bool
) -> tuple[Array, Callable[[Array], Array] | None]:
    """Pool the valid steps.

    Parameters
    ----------
    spec, keep
        See `Layer`.
    x
        `(T, B, F)`, zero in the padding.
    lengths
        `(B,)`; None if every step is valid.

    Returns
    -------
    y
        `(B, F)`.
    pullback
        Gives the gradient of x, with anything in the padding.
    """
    steps, batch_size, features = shape = x.shape
    if spec.how == "mean":
        count: Any = steps if lengths is None else np.maximum(lengths, 1)[:, None].astype(x.dtype)
        y = x.sum(axis=0) / count
        return y, (lambda d_y: np.broadcast_to(d_y / count, shape)) if keep else None
    if spec.how == "max":
        seen = x
        if lengths is not None:  # a sequence of length 0 sees its zeros
            is_padding = np.arange(steps)[:, None] >= np.maximum(lengths, 1)
            seen = np.where(is_padding[..., None], -np.inf, x).astype(x.dtype, copy=False)
        if not keep:
            return seen.max(axis=0), None
        at = seen.argmax(axis=0)[None]

        def of_largest(d_y: Array) -> Array:
            d_x = np.zeros(shape, d_y.dtype)
            np.put_along_axis(d_x, at, d_y[None], axis=0)
            return d_x

        return np.take_along_axis(seen, at, axis=0)[0], of_largest
    last: Any = steps - 1 if lengths is None else np.maximum(lengths - 1, 0)  # where it is 0, there are zeros
    columns = np.arange(batch_size)
    half = features if spec.how == "last" else features // 2
    y = x[0].copy()
    y[:, :half] = x[last, columns, :half]

    def of_ends(d_y: Array) -> Array:
        d_x = np.zeros(shape, d_y.dtype)
        d_x[last, columns, :half] = d_y[:, :half]
        d_x[0, :, half:] = d_y[:, half:]
        return d_x

    return y, of_ends if keep else None
