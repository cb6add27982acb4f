"""Find the usual mistake that explains wrong results of a non-recurrent layer; see `recurrent`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, get_args

import numpy as np
from numpy.typing import NDArray

from unirnn.specs import (
    ActivationSpec,
    BatchNormSpec,
    Conv1dSpec,
    EmbeddingSpec,
    LayerNormSpec,
    LinearSpec,
    NormalizeSpec,
    PoolSpec,
    Spec,
    SumDirectionsSpec,
)
from unirnn.specs.layers import Activation
from unirnn.testing import model_oracle
from unirnn.testing.batches import zeroed

from .numbers import NAN_FROM_PADDING, NOT_ZEROED, is_close, one_of, rounding

__all__ = ["layer_cause", "layer_hypotheses", "statistics_cause"]

Array = NDArray[Any]


@dataclass(frozen=True)
class LayerTrial:
    """The arguments of the oracle, in float64 and batch first: the input is `(B, T, F)`, or tokens `(B, T)`."""

    spec: Any
    weights: Mapping[str, Array]
    input: Array
    lengths: NDArray[np.int64]
    training: bool = False

    def run(self, **changes: Any) -> Array:
        """The oracle's output, with some of the arguments changed."""
        t = replace(self, **changes)
        output: Array = model_oracle.model(t.spec, t.weights, t.input, (None,), t.lengths, training=t.training)[0]
        return output

    def padded(self, **changes: Any) -> Array:
        """The oracle's output over all T steps, including the padding."""
        return self.run(**{"lengths": np.full_like(self.lengths, self.input.shape[1]), **changes})

    @property
    def padding(self) -> NDArray[np.bool_]:
        """A mask of the padding of the input, `(B, T)`."""
        return np.arange(self.input.shape[1]) >= self.lengths[:, None]

    @property
    def zeroed(self) -> Array:
        """A copy of the input with zeros in its padding."""
        return zeroed(self.input, self.padding)

    def only_valid(self, output: Array) -> Array:
        """A copy of an output `(B, T', F')` with zeros in its padding."""
        after = self.spec.output_lengths(self.lengths)
        return zeroed(output, np.arange(output.shape[1]) >= after[:, None])


Candidates = Callable[[LayerTrial], Iterable[Array]]


class LayerHypothesis(NamedTuple):
    """A mistake in plain words, and the outputs that it gives, one for each of its variants."""

    text: str
    candidates: Candidates


def layer_cause(
    spec: Spec,
    weights: Mapping[str, Array],
    input: Array,
    lengths: Array | None,
    output: Array,
    tolerance: float,
    *,
    batch_first: bool = True,
    training: bool = False,
) -> str | None:
    """Find the usual mistake that explains the results of a non-recurrent layer.

    Parameters
    ----------
    spec
        The layer: a pooling, a normalisation, a convolution, an activation, an embedding or a linear map.
    weights
        The weights, with the names of `Spec.weight_shapes`.
    input
        `(B, T, F)`, or `(B, T)` for tokens. B and T are exchanged unless ``batch_first``.
    lengths
        The number of valid steps of each sequence, `(B,)`. None means T for all.
    output
        The output of the layer.
    tolerance
        The largest difference that is not a mistake, relative to the largest value.
    batch_first
        Whether the first axis of the input and the output is B.
    training
        Whether the layer was called in training mode.

    Returns
    -------
    str or None
        A description of the mistake, as `recurrent_cause` returns it.

    Examples
    --------
    >>> import unirnn
    >>> x = np.arange(8.0).reshape(2, 4, 1)
    >>> print(layer_cause(unirnn.PoolSpec("mean"), {}, x, np.array([2, 4]), x.mean(axis=1), 1e-5))
    the mean counts the padding: it is taken over all T steps, including the values in the padding
    """
    trial = _trial(spec, weights, input, lengths, batch_first=batch_first, training=training)
    given = np.asarray(output, np.float64)
    if not batch_first and not spec.ends_steps:
        given = given.swapaxes(0, 1)
    right = trial.run()
    arrays = trial.input[~trial.padding], *trial.weights.values()
    if is_close(given, right, tolerance) or not all(np.isfinite(array).all() for array in arrays):
        return None
    with np.errstate(all="ignore"):
        found = [
            text
            for text, candidates in layer_hypotheses(spec)
            if any(is_close(given, candidate, tolerance) for candidate in candidates(trial))
        ]
    if found:
        return one_of(found)
    if given.shape != right.shape:
        return None
    if not spec.ends_steps and is_close(trial.only_valid(given), right, tolerance):
        return NOT_ZEROED
    if np.isnan(given).any():
        return NAN_FROM_PADDING
    return rounding([(given, right)], tolerance)


def _trial(
    spec: Spec, weights: Mapping[str, Array], input: Array, lengths: Array | None, *, batch_first: bool, training: bool
) -> LayerTrial:
    x = np.asarray(input, np.int64 if spec.takes_tokens else np.float64)
    x = x if batch_first else x.swapaxes(0, 1)
    ns = np.full(len(x), x.shape[1]) if lengths is None else np.asarray(lengths)
    wide = {name: np.asarray(array, np.float64) for name, array in weights.items()}
    return LayerTrial(spec, wide, x, ns, training)


def layer_hypotheses(spec: Spec) -> Iterator[LayerHypothesis]:
    """Yield the hypotheses about a layer, the likeliest first."""
    if isinstance(spec, PoolSpec):
        yield from OF_POOLING[spec.how]
    elif isinstance(spec, ActivationSpec):
        yield from _of_activation(spec)
    elif isinstance(spec, EmbeddingSpec) and spec.padding_idx is not None:
        text = "the vector of padding_idx is taken to be zeros, whatever its weight is"
        yield LayerHypothesis(text, _zeros_of_padding_idx)
    for kind, rows in OF_KIND.items():
        if isinstance(spec, kind):
            yield from rows
    if isinstance(spec, (BatchNormSpec, LayerNormSpec, NormalizeSpec)):
        for eps in (1e-3, 1e-5, 1e-6, 1e-8, 1e-12):
            if eps != spec.eps:
                yield LayerHypothesis(f"eps is {eps:g} instead of {spec.eps:g}", _with_spec(eps=eps))
    if not spec.ends_steps:
        text = "the lengths (seq_length) are ignored: the padding is computed like valid steps"
        yield LayerHypothesis(text, lambda t: [t.padded()])


def _with_spec(**changes: Any) -> Candidates:
    return lambda t: [t.run(spec=replace(t.spec, **changes))]


def _zeros_of_padding_idx(t: LayerTrial) -> list[Array]:
    weight = t.weights["weight"].copy()
    weight[t.spec.padding_idx] = 0
    return [t.run(weights={"weight": weight})]


# ---- poolings ------------------------------------------------------------------------------------


def _after_the_last(t: LayerTrial) -> Array:
    """Step n, the first of the padding."""
    found: Array = t.input[np.arange(len(t.input)), np.minimum(t.lengths, t.input.shape[1] - 1)]
    return found


def _halves(forward: Array, backward: Array) -> Array:
    half = forward.shape[-1] // 2
    return np.concatenate([forward[:, :half], backward[:, half:]], axis=-1)


def _empty_as(t: LayerTrial, value: float) -> Array:
    """The right output, with another value for empty sequences."""
    return np.where((t.lengths == 0)[:, None], value, t.run())


OF_POOLING = {
    "mean": (
        LayerHypothesis(
            "the mean counts the padding: it is taken over all T steps, including the values in the padding",
            lambda t: [t.input.mean(axis=1)],
        ),
        LayerHypothesis(
            "the mean counts the padding: the sum over the valid steps is divided by T, instead of by n (seq_length)",
            lambda t: [t.zeroed.mean(axis=1)],
        ),
        LayerHypothesis("the sum is not divided by the number of steps", lambda t: [t.zeroed.sum(axis=1)]),
        LayerHypothesis("the mean of an empty sequence is 0 / 0, which is NaN", lambda t: [_empty_as(t, np.nan)]),
    ),
    "max": (
        LayerHypothesis("the maximum counts the padding, which is taken to be zeros", lambda t: [t.zeroed.max(axis=1)]),
        LayerHypothesis(
            "the maximum counts the padding: it is taken over all T steps, including the values in the padding",
            lambda t: [t.input.max(axis=1)],
        ),
        LayerHypothesis("the maximum of an empty sequence is minus infinity", lambda t: [_empty_as(t, -np.inf)]),
    ),
    "last": (
        LayerHypothesis("it takes step T-1, which is padding in a shorter sequence", lambda t: [t.input[:, -1]]),
        LayerHypothesis("it takes step T-1 of an output that is zero in the padding", lambda t: [t.zeroed[:, -1]]),
        LayerHypothesis("it takes step n, which is the first of the padding", lambda t: [_after_the_last(t)]),
    ),
    "first_last": (
        LayerHypothesis(
            "the forward half is that of step T-1, which is padding in a shorter sequence",
            lambda t: [_halves(t.input[:, -1], t.input[:, 0]), _halves(t.zeroed[:, -1], t.zeroed[:, 0])],
        ),
        LayerHypothesis(
            "both halves are those of the last valid step", lambda t: [t.run(spec=replace(t.spec, how="last"))]
        ),
        LayerHypothesis(
            "both halves are those of step T-1, in the padding", lambda t: [t.input[:, -1], t.zeroed[:, -1]]
        ),
        LayerHypothesis(
            "the halves are exchanged: the first half is that of step 0",
            lambda t: [_halves(t.zeroed[:, 0], t.run(spec=replace(t.spec, how="last")))],
        ),
    ),
}


# ---- functions of each step ----------------------------------------------------------------------


def _of_activation(spec: ActivationSpec) -> Iterator[LayerHypothesis]:
    if spec.function in ("softmax", "log_softmax"):
        for axis, name in ((1, "time"), (0, "the batch")):
            text = f"{spec.function} is taken over the axis of {name}, instead of the last one"
            yield LayerHypothesis(text, _over_axis(axis))
    if spec.function == "gelu":
        yield LayerHypothesis("GELU is approximated by a tanh", _gelu_by_tanh)
    if spec.function == "hard_sigmoid":
        text = "the hard sigmoid is that of Keras 1 and 2 and of ONNX, 0.2 x + 0.5, instead of x / 6 + 0.5"
        yield LayerHypothesis(text, lambda t: [t.only_valid(np.clip(0.2 * t.input + 0.5, 0, 1))])
    for function in get_args(Activation):
        if function != spec.function:
            text = f"the function is {function} instead of {spec.function}"
            yield LayerHypothesis(text, _with_spec(function=function))
    yield LayerHypothesis("the function is not applied", lambda t: [t.zeroed])


def _over_axis(axis: int) -> Candidates:
    """A softmax over another axis, which includes the padding, zeros in its place, or only the valid steps."""

    def candidates(t: LayerTrial) -> Iterator[Array]:
        is_log = t.spec.function == "log_softmax"
        for given in (t.input, t.zeroed, np.where(t.padding[..., None], -np.inf, t.input)):
            shifted = given - given.max(axis, keepdims=True)
            total = np.exp(shifted).sum(axis, keepdims=True)
            yield t.only_valid(shifted - np.log(total) if is_log else np.exp(shifted) / total)

    return candidates


def _gelu_by_tanh(t: LayerTrial) -> list[Array]:
    x = t.input
    return [t.only_valid(0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))]


# ---- normalisations, convolutions, linear maps ---------------------------------------------------


def _normalized(t: LayerTrial, mean: Array, variance: Array) -> Array:
    scaled = (t.input - mean) / np.sqrt(variance + t.spec.eps)
    return t.only_valid(scaled * t.weights["weight"] + t.weights["bias"])


def _by_statistics(select: Callable[[LayerTrial], Array], ddof: int = 0) -> Candidates:
    """Normalise by the mean and the variance of some steps, `(N, F)`."""

    def candidates(t: LayerTrial) -> list[Array]:
        steps = select(t).reshape(-1, t.input.shape[-1])
        return [_normalized(t, steps.mean(axis=0), steps.var(axis=0, ddof=ddof))]

    return candidates


def _valid_steps(t: LayerTrial) -> Array:
    return t.input[~t.padding]


def _of_each_sequence(t: LayerTrial) -> list[Array]:
    valid = ~t.padding[..., None]
    count = np.maximum(t.lengths, 1)[:, None, None]
    mean = (t.zeroed.sum(axis=1, keepdims=True)) / count
    variance = (np.where(valid, (t.zeroed - mean) ** 2, 0)).sum(axis=1, keepdims=True) / count
    return [_normalized(t, mean, variance)]


def _layer_norm_unbiased(t: LayerTrial) -> list[Array]:
    x = t.input
    if x.shape[-1] == 1:
        return []
    return [_normalized(t, x.mean(axis=-1, keepdims=True), x.var(axis=-1, ddof=1, keepdims=True))]


def _layer_norm_outside(t: LayerTrial) -> list[Array]:
    x = t.input
    scaled = (x - x.mean(axis=-1, keepdims=True)) / (x.std(axis=-1, keepdims=True) + t.spec.eps)
    return [t.only_valid(scaled * t.weights["weight"] + t.weights["bias"])]


def _without(*names: str) -> Candidates:
    return lambda t: [t.run(weights={name: array * (name not in names) for name, array in t.weights.items()})]


def _flipped(t: LayerTrial) -> list[Array]:
    return [t.run(weights={**t.weights, "weight": t.weights["weight"][:, :, ::-1]})]


def _reads_padding(t: LayerTrial) -> list[Array]:
    """Convolve the whole input with its padding, and set the padding of the output to zero."""
    return [t.only_valid(t.padded())]


def _shifted(t: LayerTrial) -> Iterator[Array]:
    """Distribute the zeros differently between the left and the right."""
    left, right = t.spec.padded
    for begin in range(left + right + 1):
        if begin != left:
            longer = np.pad(t.zeroed, ((0, 0), (begin, left + right - begin), (0, 0)))
            plain = replace(t.spec, padding="valid")
            yield t.only_valid(t.run(spec=plain, input=longer, lengths=np.full_like(t.lengths, longer.shape[1])))


def _transposed(t: LayerTrial) -> list[Array]:
    weight = t.weights["weight"]
    return [t.run(weights={**t.weights, "weight": weight.T})] if weight.shape[0] == weight.shape[1] else []


def _undilated(t: LayerTrial) -> list[Array]:
    return [t.run(spec=replace(t.spec, dilation=1))] if t.spec.dilation > 1 else []


OF_KIND: dict[type[Spec], tuple[LayerHypothesis, ...]] = {
    BatchNormSpec: (
        LayerHypothesis(
            "the statistics of the batch count the padding, with the values in it", _by_statistics(lambda t: t.input)
        ),
        LayerHypothesis(
            "the statistics of the batch count the padding, which is taken to be zeros",
            _by_statistics(lambda t: t.zeroed),
        ),
        LayerHypothesis(
            "the variance of the batch is divided by N - 1 instead of N", _by_statistics(_valid_steps, ddof=1)
        ),
        LayerHypothesis(
            "it uses the running statistics, instead of those of the batch", lambda t: [t.run(training=False)]
        ),
        LayerHypothesis(
            "it uses the statistics of the batch, instead of the running ones, as in training",
            lambda t: [t.run(training=True)],
        ),
        LayerHypothesis("each sequence is normalised by its own statistics", _of_each_sequence),
    ),
    LayerNormSpec: (
        LayerHypothesis("the variance is divided by N - 1 instead of N", _layer_norm_unbiased),
        LayerHypothesis("eps is added to the standard deviation, instead of the variance", _layer_norm_outside),
        LayerHypothesis("it normalises over the axis of time, instead of the last one", _of_each_sequence),
    ),
    Conv1dSpec: (
        LayerHypothesis("it reads what stands in the padding of the input, instead of zeros", _reads_padding),
        LayerHypothesis("it is shifted: the number of zeros before step 0 is wrong", _shifted),
        LayerHypothesis("the kernel is flipped", _flipped),
        LayerHypothesis("the bias is missing", _without("bias")),
        LayerHypothesis("the dilation is ignored", _undilated),
    ),
    LinearSpec: (
        LayerHypothesis("the bias is missing", _without("bias")),
        LayerHypothesis("the weight is transposed", _transposed),
    ),
    SumDirectionsSpec: (
        LayerHypothesis("the directions are averaged instead of added", lambda t: [t.run() / 2]),
        LayerHypothesis(
            "only one direction is taken",
            lambda t: list(np.split(t.zeroed, 2, axis=-1)),
        ),
    ),
    NormalizeSpec: (
        LayerHypothesis(
            "it divides by the sum of absolute values, instead of the root of the sum of squares",
            lambda t: [t.only_valid(t.input / np.abs(t.input).sum(axis=-1, keepdims=True))],
        ),
        LayerHypothesis(
            "it divides by the norm over the axis of time, instead of the last one",
            lambda t: [t.only_valid(t.input / np.sqrt((t.zeroed**2).sum(axis=1, keepdims=True)))],
        ),
    ),
}


def statistics_cause(
    spec: BatchNormSpec,
    weights: Mapping[str, Array],
    input: Array,
    lengths: Array | None,
    after: Mapping[str, Array],
    tolerance: float,
    *,
    batch_first: bool = True,
) -> str | None:
    """Find the usual mistake that explains the running statistics of a batch normalisation after a call in training.

    Parameters
    ----------
    spec
        The layer.
    weights
        The weights of the layer before the call.
    input, lengths, batch_first
        See `layer_cause`.
    after
        ``running_mean`` and ``running_var`` after the call.
    tolerance
        See `layer_cause`.

    Examples
    --------
    >>> import unirnn
    >>> spec = unirnn.BatchNormSpec(1, momentum=0.1)
    >>> before = {"running_mean": np.zeros(1), "running_var": np.ones(1)}
    >>> x = np.array([[[1.0], [3.0], [4.0]]])
    >>> after = {"running_mean": np.array([0.9 * 2]), "running_var": np.array([0.1 + 0.9 * 2])}
    >>> print(statistics_cause(spec, before, x, np.array([2]), after, 1e-5))
    the momentum is taken the other way round: running = momentum * running + (1 - momentum) * batch
    """
    trial = _trial(spec, weights, input, lengths, batch_first=batch_first, training=True)
    m, valid = spec.momentum, trial.input[~trial.padding]

    def moved(steps: Array, momentum: float = m, ddof: int = 1) -> tuple[Array, ...]:
        steps = steps.reshape(-1, spec.num_features)
        batch = (steps.mean(axis=0), steps.var(axis=0, ddof=ddof))
        running = (weights["running_mean"], weights["running_var"])
        return tuple((1 - momentum) * old + momentum * new for old, new in zip(running, batch, strict=True))

    variants = {
        None: moved(valid),
        "the momentum is taken the other way round: running = momentum * running + (1 - momentum) * batch": moved(
            valid, 1 - m
        ),
        "the running variance is updated with a variance divided by N, instead of N - 1": moved(valid, ddof=0),
        "the running statistics are not changed": moved(valid, 0),
        "the running statistics are replaced by those of the batch": moved(valid, 1),
        "the running statistics count the padding, with the values in it": moved(trial.input),
        "the running statistics count the padding, which is taken to be zeros": moved(trial.zeroed),
    }
    for text, (mean, variance) in variants.items():
        if is_close(np.asarray(after["running_mean"], np.float64), mean, tolerance) and is_close(
            np.asarray(after["running_var"], np.float64), variance, tolerance
        ):
            return text
    return None
