"""Models on the reference path: each layer once in the array API standard.

From layer to layer, arrays are `(T, B, F)`, whatever the model's layout is, and `(B, F)` after a pooling. Padding
is zeros at first, and finite from there on, so it can't reach a value or a gradient through a layer that computes each
step by itself. A layer that mixes steps puts zeros into the padding of its input.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from unirnn.contract.call import Batch
from unirnn.contract.models import ModelCall, is_batch_first
from unirnn.specs import (
    ActivationSpec,
    BatchNormSpec,
    Concat,
    Conv1dSpec,
    DropoutSpec,
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

from .functions import ACTIVATIONS
from .layers import recurrent
from .lengths import device_of

__all__ = ["Training", "model"]

Array = Any
State = tuple[Array, ...]


@dataclass
class Training:
    """The parts of a run that only training has.

    Parameters
    ----------
    keep
        ``keep(shape, p)``: an array of 0 and ``1 / (1 - p)`` that drops elements with probability p.
    statistics
        Receives the new running statistics of the batch normalisations, by the names of the weights.
    """

    keep: Callable[[tuple[int, ...], float], Array]
    statistics: dict[str, Array] = field(default_factory=dict)


@dataclass(frozen=True)
class _Flow:
    """What flows through a model: the array, and `(B,)` lengths, which are None if every step is valid."""

    x: Array
    lengths: Array | None
    has_steps: bool


def model(
    xp: Any,
    spec: Spec,
    weights: Mapping[str, Array],
    call: ModelCall,
    *,
    training: Training | None = None,
    detach: Callable[[Array], Array] | None = None,
) -> tuple[Array, tuple[State, ...]]:
    """Run a model, or one layer.

    Parameters
    ----------
    xp
        The namespace.
    spec
        The model.
    weights
        By the names of `Spec.weight_shapes`.
    call
        A call, or a step. All its arrays, also the lengths and the resets, are the namespace's, on one device.
    training
        What is different while training; None for evaluation.
    detach
        Gives an array with the same numbers, through which no gradient passes: for the vectors that are not trained,
        those of ``padding_idx``. None if there are no gradients.

    Returns
    -------
    output
        In the layout of the call's input, zero in the padding; `(B, F')` after a pooling.
    states
        The final state of each layer that has one.
    """
    if isinstance(spec, ModelSpec):
        weights = {**weights, **{name: weights[other] for name, other in spec.tied().items()}}
    finals: list[State] = []
    run = _Run(xp, weights, iter(call.states), finals, call.resets, training, detach)
    flow = run.layer("", spec, _select(xp, _Flow(_time_major(xp, spec, call), call.lengths, True)))
    return _restored(xp, spec, call, _select(xp, flow).x), tuple(finals)


def _time_major(xp: Any, spec: Spec, call: ModelCall) -> Array:
    """The input of a call as `(T, B, F)`, or `(T, B)` for tokens."""
    x = call.input
    if call.is_step:
        return x[None, ...]
    if call.sizes is None:  # the rows of an array of any shape are a batch of one step
        return xp.reshape(x, (1, -1) if spec.takes_tokens else (1, -1, x.shape[-1]))
    return _swapped(xp, x) if is_batch_first(spec) else x


def _restored(xp: Any, spec: Spec, call: ModelCall, y: Array) -> Array:
    """The output `(T', B, F')`, or `(B, F')` after a pooling, in the layout of the call's input."""
    if call.is_step:
        return y[0, ...]
    if call.sizes is None:
        leading = call.input.shape if spec.takes_tokens else call.input.shape[:-1]
        return xp.reshape(y, (*leading, y.shape[-1]))
    return _swapped(xp, y) if is_batch_first(spec) and not spec.ends_steps else y


def _swapped(xp: Any, array: Array) -> Array:
    """`(T, B)` to `(B, T)` with whatever axes follow, and back."""
    return xp.permute_dims(array, (1, 0, *range(2, len(array.shape))))


@dataclass(frozen=True)
class _Run:
    """One run of a model: what all of its layers share."""

    xp: Any
    weights: Mapping[str, Array]
    states: Iterator[State | None]
    finals: list[State]
    resets: Array | None
    training: Training | None
    detach: Callable[[Array], Array] | None

    def layer(self, name: str, spec: Spec, flow: _Flow) -> _Flow:
        prefix = f"{name}." if name else ""
        if isinstance(spec, Sequential):
            for child, layer in spec.children:
                flow = self.layer(prefix + child, layer, flow)
            return flow
        if isinstance(spec, Residual):
            ((child, layer),) = spec.children
            after = self.layer(prefix + child, layer, flow)
            return replace(after, x=flow.x + after.x)
        if isinstance(spec, Concat):
            flows = [self.layer(prefix + child, layer, flow) for child, layer in spec.children]
            return replace(flows[0], x=self.xp.concat([after.x for after in flows], axis=-1))
        own = {weight: self.weights[prefix + weight] for weight in spec.weight_shapes()}
        if isinstance(spec, LinearSpec) and spec.tied_to:
            own["weight"] = self.weights[prefix + "weight"]
        if isinstance(spec, RecurrentSpec):
            return self._recurrent(spec, own, flow)
        if isinstance(spec, Conv1dSpec):
            return self._convolution(spec, own, flow)
        if isinstance(spec, PoolSpec):
            return _Flow(_pool(self.xp, spec.how, flow), None, False)
        return replace(flow, x=self._same_lengths(prefix, spec, own, flow))

    def _recurrent(self, spec: RecurrentSpec, weights: Mapping[str, Array], flow: _Flow) -> _Flow:
        training, p = self.training, spec.dropout
        dropout = None if training is None or not p else lambda x: x * training.keep(tuple(x.shape), p)
        batch = Batch(flow.x, next(self.states), flow.lengths, self.resets)
        x, final = recurrent(self.xp, spec, weights, batch, dropout=dropout)
        self.finals.append(final)
        return replace(flow, x=x)

    def _convolution(self, spec: Conv1dSpec, weights: Mapping[str, Array], flow: _Flow) -> _Flow:
        xp, flow = self.xp, _select(self.xp, flow)
        x, lengths = flow.x, flow.lengths
        (left, right), batch_size = spec.padded, x.shape[1]

        def zeros(steps: int) -> Array:
            return xp.zeros((steps, batch_size, x.shape[2]), dtype=x.dtype, device=device_of(x))

        before = zeros(left)
        if spec.state_shapes(None):
            state = next(self.states)
            before = before if state is None else state[0]
        padded = xp.concat([before, x, zeros(right)], axis=0)
        if spec.state_shapes(None):
            self.finals.append((_last_steps(xp, padded, left, lengths),))
        steps = (padded.shape[0] - spec.span) // spec.stride + 1
        size_in, size_out = spec.in_channels // spec.groups, spec.out_channels // spec.groups
        outputs = []
        for group in range(spec.groups):
            part = padded[:, :, group * size_in : (group + 1) * size_in]
            total = zeros(steps)[:, :, :1]
            for k in range(spec.kernel_size):
                begin = k * spec.dilation
                seen = part[begin : begin + (steps - 1) * spec.stride + 1 : spec.stride, :, :]
                rows = weights["weight"][group * size_out : (group + 1) * size_out, :, k]
                total = total + xp.matmul(seen, rows.T)
            outputs.append(total)
        y = outputs[0] if len(outputs) == 1 else xp.concat(outputs, axis=-1)
        y = y + weights["bias"] if spec.bias else y
        return _Flow(y, None if lengths is None else spec.output_lengths(lengths), True)

    def _same_lengths(self, prefix: str, spec: Spec, weights: Mapping[str, Array], flow: _Flow) -> Array:
        """The output of a layer that keeps the number of steps."""
        xp, x, training = self.xp, flow.x, self.training
        match spec:
            case EmbeddingSpec():
                weight = weights["weight"]
                if spec.padding_idx is not None and self.detach is not None:
                    numbers = xp.arange(spec.num_embeddings, device=device_of(weight))[:, None]
                    weight = xp.where(numbers == spec.padding_idx, self.detach(weight), weight)
                rows = xp.take(weight, xp.reshape(x, (-1,)), axis=0)
                return xp.reshape(rows, (*x.shape, spec.embedding_dim))
            case LinearSpec():
                y = xp.matmul(x, weights["weight"].T)
                return y + weights["bias"] if spec.bias else y
            case ActivationSpec():
                return ACTIVATIONS[spec.function](xp, x)
            case DropoutSpec():
                if training is None or not spec.p:
                    return x
                shape = (1, *x.shape[1:]) if spec.locked and flow.has_steps else tuple(x.shape)
                return x * training.keep(shape, spec.p)
            case LayerNormSpec():
                centred = x - xp.mean(x, axis=-1, keepdims=True)
                centred = centred - xp.mean(centred, axis=-1, keepdims=True)  # a large mean was rounded
                variance = xp.mean(centred * centred, axis=-1, keepdims=True)
                return centred / xp.sqrt(variance + spec.eps) * weights["weight"] + weights["bias"]
            case BatchNormSpec():
                mean, variance = weights["running_mean"], weights["running_var"]
                if training is not None:
                    mean, variance, count = _statistics(xp, flow)
                    m, unbiased = spec.momentum, variance * (count / (count - 1))
                    for name, value in (("running_mean", mean), ("running_var", unbiased)):
                        training.statistics[prefix + name] = (1 - m) * weights[name] + m * value
                return (x - mean) / xp.sqrt(variance + spec.eps) * weights["weight"] + weights["bias"]
            case NormalizeSpec():
                # The square root of the larger one, since the slope of the root of 0 is infinite.
                squares = xp.sum(x * x, axis=-1, keepdims=True)
                return x / xp.sqrt(xp.maximum(squares, xp.full_like(squares, spec.eps**2)))
            case SumDirectionsSpec():
                half = x.shape[-1] // 2
                return x[..., :half] + x[..., half:]
            case _:
                raise NotImplementedError(spec.kind)


def _valid(xp: Any, flow: _Flow) -> Array:
    """`(T, B)` bool."""
    assert flow.lengths is not None
    steps = xp.arange(flow.x.shape[0], dtype=flow.lengths.dtype, device=device_of(flow.lengths))
    return steps[:, None] < flow.lengths


def _select(xp: Any, flow: _Flow) -> _Flow:
    """Put exact zeros into the padding, or token 0 for tokens."""
    if flow.lengths is None or not flow.has_steps:
        return flow
    valid = _valid(xp, flow)
    while len(valid.shape) < len(flow.x.shape):
        valid = valid[..., None]
    return replace(flow, x=xp.where(valid, flow.x, xp.zeros_like(flow.x)))


def _last_steps(xp: Any, padded: Array, count: int, lengths: Array | None) -> Array:
    """`(count, B, F)`: the last steps of each sequence, the ``count`` steps before it included."""
    if lengths is None:
        return padded[padded.shape[0] - count :, :, :]
    steps = xp.arange(padded.shape[0], dtype=lengths.dtype, device=device_of(lengths))[:, None]
    kept = []
    for k in range(count):
        here = (steps == lengths + k)[..., None]
        kept.append(xp.sum(xp.where(here, padded, xp.zeros_like(padded)), axis=0))
    return xp.stack(kept)


def _pool(xp: Any, how: str, flow: _Flow) -> Array:
    """`(B, F)`; zeros for a sequence of length 0."""
    flow = _select(xp, flow)
    x, lengths = flow.x, flow.lengths
    if how == "mean":
        total = xp.sum(x, axis=0)
        if lengths is None:
            return total / x.shape[0]
        counts = xp.where(lengths > 0, lengths, xp.ones_like(lengths))
        return total / xp.astype(counts, x.dtype)[:, None]
    if how == "max":
        if lengths is None:
            return xp.max(x, axis=0)
        least = xp.full_like(x, -float("inf"))
        largest = xp.max(xp.where(_valid(xp, flow)[..., None], x, least), axis=0)
        return xp.where((lengths > 0)[:, None], largest, xp.zeros_like(largest))
    last = _last_steps(xp, x, 1, None if lengths is None else lengths - 1)[0, ...]
    if how == "last":
        return last
    half = x.shape[-1] // 2
    return xp.concat([last[:, :half], x[0, :, half:]], axis=-1)


def _statistics(xp: Any, flow: _Flow) -> tuple[Array, Array, float]:
    """Mean and variance of each feature over the valid steps, and how many there are."""
    flow = _select(xp, flow)
    x = flow.x
    rows = xp.reshape(x, (-1, x.shape[-1]))
    if flow.lengths is None or not flow.has_steps:
        count = float(rows.shape[0])
        deviations = rows - xp.sum(rows, axis=0) / count
    else:
        count = float(xp.sum(flow.lengths))
        valid = xp.reshape(_valid(xp, flow), (-1, 1))
        deviations = xp.where(valid, rows - xp.sum(rows, axis=0) / count, xp.zeros_like(rows))
    return xp.sum(rows, axis=0) / count, xp.sum(deviations * deviations, axis=0) / count, count
