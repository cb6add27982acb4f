"""The layers around recurrent ones: embeddings, linear maps, activations, normalisations, convolutions and poolings.

Weights have torch's names and shapes, and are first drawn as torch draws them. Where a layer keeps running statistics,
they are among the weights, and `Spec.buffers` names them.
"""

import math
import numbers
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from unirnn.errors import ArgumentError, SpecError

from .base import LEFT_OUT, LengthRule, Random, Spec, Traits, uniform

__all__ = [
    "Activation",
    "ActivationSpec",
    "BatchNormSpec",
    "Conv1dSpec",
    "DropoutSpec",
    "EmbeddingSpec",
    "LayerNormSpec",
    "LinearSpec",
    "NormalizeSpec",
    "PoolSpec",
    "SumDirectionsSpec",
]

Activation = Literal["relu", "tanh", "sigmoid", "gelu", "silu", "hard_sigmoid", "softmax", "log_softmax"]
Pooling = Literal["last", "first_last", "mean", "max"]


def _choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in known:
        raise SpecError(f"{name}: given {value!r}, expected one of {', '.join(map(repr, known))}")


def _number(name: str, value: Any, *, least: float, below: float) -> float:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise ArgumentError(f"{name}: given {value!r}, expected a number")
    number = float(value)
    if not least <= number < below:
        raise SpecError(f"{name}: given {value!r}, expected {least:g} <= {name} < {below:g}")
    return number


@dataclass(frozen=True, repr=False)
class EmbeddingSpec(Spec):
    """A vector for each of a number of tokens: ``y = weight[token]``.

    Parameters
    ----------
    num_embeddings
        How many tokens there are. The input is integers, ``0 <= token < num_embeddings``.
    embedding_dim
        The size of a vector.
    padding_idx
        A token whose vector is zeros at first, and is not trained; None for no such token. Lengths do not need it: what
        stands in the padding has no influence.

    Examples
    --------
    >>> EmbeddingSpec(5000, 64, padding_idx=0).weight_shapes()
    {'weight': (5000, 64)}
    """

    kind = "Embedding"
    _traits = Traits(takes_tokens=True)
    _not_computed = ("padding_idx",)
    _shown_first = ("num_embeddings", "embedding_dim")

    num_embeddings: int = LEFT_OUT
    embedding_dim: int = LEFT_OUT
    padding_idx: int | None = None

    def __post_init__(self) -> None:
        self._set_sizes("num_embeddings", "embedding_dim")
        if self.padding_idx is not None:
            self._set("padding_idx", self._integer("padding_idx", least=0))
            if self.padding_idx >= self.num_embeddings:
                raise SpecError(
                    f"padding_idx: given {self.padding_idx}, expected less than num_embeddings={self.num_embeddings}"
                )

    @property
    def input_features(self) -> int:
        """How many tokens there are."""
        return self.num_embeddings

    def output_features(self, features: int) -> int:
        """``embedding_dim``; see `Spec.output_features`."""
        return self.embedding_dim

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """``weight`` `(num_embeddings, embedding_dim)`."""
        return {"weight": (self.num_embeddings, self.embedding_dim)}

    def draw_weights(self, random: Random) -> dict[str, NDArray[np.float64]]:
        """Draw uniformly, with torch's mean of 0 and variance of 1; zeros for ``padding_idx``.

        Torch draws from a normal distribution. A uniform one needs no function whose last bits depend on the processor.
        """
        weight = uniform(random, (self.num_embeddings, self.embedding_dim), math.sqrt(3))
        if self.padding_idx is not None:
            weight[self.padding_idx] = 0
        return {"weight": weight}


@dataclass(frozen=True, repr=False)
class LinearSpec(Spec):
    """A linear map of the last axis: ``y = W x + b``.

    Parameters
    ----------
    in_features
        The size of the input's last axis; in a `Sequential` it may be left out.
    out_features
        The size of the output's last axis.
    bias
        Whether there is a ``b``.
    tied_to
        In a `Sequential`: the name of the `EmbeddingSpec` there whose weight is the W of this layer, as in language
        models; empty if W is its own.

    Examples
    --------
    >>> LinearSpec(3, 4).weight_shapes()
    {'weight': (4, 3), 'bias': (4,)}
    """

    kind = "Linear"
    _input_field = "in_features"
    _shown_first = ("in_features", "out_features")

    in_features: int = LEFT_OUT
    out_features: int = LEFT_OUT
    bias: bool = True
    _: KW_ONLY
    tied_to: str = ""

    def __post_init__(self) -> None:
        self._set_sizes("in_features", "out_features")
        self._set("bias", self._flag("bias"))
        if not isinstance(self.tied_to, str):
            raise ArgumentError(f"tied_to: given {self.tied_to!r}, expected the name of an embedding")

    def check_complete(self) -> None:
        """See `Spec.check_complete`; a layer whose weight is another's can't be built by itself either."""
        super().check_complete()
        if self.tied_to:
            raise SpecError(f"tied_to: given {self.tied_to!r} outside of a model, expected none")

    def output_features(self, features: int) -> int:
        """``out_features``; see `Spec.output_features`."""
        return self.out_features

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """``weight`` `(out_features, in_features)`, unless it is tied, and ``bias`` `(out_features,)`."""
        weight = {} if self.tied_to else {"weight": (self.out_features, self.in_features)}
        return {**weight, **({"bias": (self.out_features,)} if self.bias else {})}

    def draw_weights(self, random: Random) -> dict[str, NDArray[np.float64]]:
        """Draw uniformly from ``(-1/sqrt(in_features), 1/sqrt(in_features))``, as torch does."""
        bound = 1 / math.sqrt(self.in_features)
        return {name: uniform(random, shape, bound) for name, shape in self.weight_shapes().items()}


@dataclass(frozen=True, repr=False)
class ActivationSpec(Spec):
    """A function of each element; ``softmax`` and ``log_softmax`` are functions of the last axis.

    ``gelu`` is ``x * Phi(x)`` with the normal distribution's Phi, not its approximation by tanh; ``silu`` is
    ``x * sigmoid(x)``; ``hard_sigmoid`` is ``min(max(x / 6 + 1/2, 0), 1)``.

    Parameters
    ----------
    function
        Its name.

    Examples
    --------
    >>> ActivationSpec("gelu")
    ActivationSpec('gelu')
    """

    kind = "Activation"
    _shown_first = ("function",)

    function: Activation

    def __post_init__(self) -> None:
        _choice("function", self.function, get_args(Activation))


@dataclass(frozen=True, repr=False)
class DropoutSpec(Spec):
    """While training, an element becomes 0 with probability p, and the others are divided by ``1 - p``.

    Parameters
    ----------
    p
        The probability, ``0 <= p < 1``.
    locked
        Whether all steps of a sequence have the same elements dropped (Gal and Ghahramani, 2016).

    Examples
    --------
    >>> DropoutSpec(0.3, locked=True)
    DropoutSpec(0.3, locked=True)
    """

    kind = "Dropout"
    _not_computed = ("p", "locked")
    _shown_first = ("p",)

    p: float = 0.5
    locked: bool = False

    def __post_init__(self) -> None:
        self._set("p", _number("p", self.p, least=0, below=1))
        self._set("locked", self._flag("locked"))

    @property
    def is_pointwise(self) -> bool:
        """Whether it drops the elements of each step by themselves; see `Spec.is_pointwise`."""
        return not self.locked


@dataclass(frozen=True, repr=False)
class LayerNormSpec(Spec):
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` over the last axis (Ba et al., 2016).

    Parameters
    ----------
    normalized_shape
        The size of the last axis; in a `Sequential` it may be left out.
    eps
        As in the equation.

    Examples
    --------
    >>> LayerNormSpec(4).weight_shapes()
    {'weight': (4,), 'bias': (4,)}
    """

    kind = "LayerNorm"
    _input_field = "normalized_shape"
    _shown_first = ("normalized_shape",)

    normalized_shape: int = LEFT_OUT
    eps: float = 1e-5

    def __post_init__(self) -> None:
        self._set_sizes("normalized_shape")
        self._set("eps", _number("eps", self.eps, least=1e-15, below=1))

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """``weight`` and ``bias``, `(normalized_shape,)` each."""
        return dict.fromkeys(("weight", "bias"), (self.normalized_shape,))

    def draw_weights(self, random: Random) -> dict[str, NDArray[np.float64]]:
        """Ones for ``weight``, zeros for ``bias``."""
        return {"weight": np.ones(self.normalized_shape), "bias": np.zeros(self.normalized_shape)}


@dataclass(frozen=True, repr=False)
class BatchNormSpec(Spec):
    """``y = (x - mean) / sqrt(var + eps) * weight + bias`` for each feature (Ioffe and Szegedy, 2015).

    While training, mean and variance are those of the valid steps of the batch, and the running ones move towards them:
    ``running = (1 - momentum) * running + momentum * batch``, with the variance that is divided by N - 1. Otherwise the
    running ones are used.

    Parameters
    ----------
    num_features
        The size of the last axis; in a `Sequential` it may be left out.
    eps, momentum
        As in the equations.

    Examples
    --------
    >>> BatchNormSpec(4).buffers
    ('running_mean', 'running_var')
    """

    kind = "BatchNorm"
    _input_field = "num_features"
    _not_computed = ("momentum",)
    _traits = Traits(is_pointwise=False)
    _shown_first = ("num_features",)

    num_features: int = LEFT_OUT
    eps: float = 1e-5
    momentum: float = 0.1

    def __post_init__(self) -> None:
        self._set_sizes("num_features")
        self._set("eps", _number("eps", self.eps, least=1e-15, below=1))
        self._set("momentum", _number("momentum", self.momentum, least=0, below=1))

    @property
    def buffers(self) -> tuple[str, ...]:
        """The running mean and variance."""
        return ("running_mean", "running_var")

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """``weight``, ``bias``, ``running_mean`` and ``running_var``, `(num_features,)` each."""
        return dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (self.num_features,))

    def draw_weights(self, random: Random) -> dict[str, NDArray[np.float64]]:
        """Ones for ``weight`` and ``running_var``, zeros for the others."""
        is_one = {"weight": True, "bias": False, "running_mean": False, "running_var": True}
        return {name: np.full(self.num_features, float(one)) for name, one in is_one.items()}


@dataclass(frozen=True, repr=False)
class NormalizeSpec(Spec):
    """L2 normalisation of the last axis: ``y = x / max(sqrt(sum(x * x)), eps)``.

    Parameters
    ----------
    eps
        As in the equation.

    Examples
    --------
    >>> NormalizeSpec()
    NormalizeSpec()
    """

    kind = "Normalize"

    eps: float = 1e-12

    def __post_init__(self) -> None:
        self._set("eps", _number("eps", self.eps, least=1e-15, below=1))


@dataclass(frozen=True, repr=False)
class Conv1dSpec(Spec):
    """A convolution over time, in the layout of the model: the features are the last axis.

    ``y[t] = b + sum(W[:, :, k] x[t * stride - left + k * dilation] for k in range(kernel_size))``, where steps before
    and after a sequence are zeros: before step 0 there are ``left`` of them.

    Parameters
    ----------
    in_channels
        The size of the input's last axis; in a `Sequential` it may be left out.
    out_channels
        The size of the output's last axis.
    kernel_size
        How many steps are multiplied for one output.
    stride
        How many steps lie between two outputs.
    padding
        ``"valid"`` for no zeros; ``"same"`` for as many outputs as inputs, with half of the zeros on either side (one
        more on the right if their number is odd), for a stride of 1; ``"causal"`` for all of them on the left, so that
        no output depends on a later step; or a number of zeros on either side.
    dilation
        How many steps lie between two that are multiplied.
    groups
        Into how many parts the features are split; each part of the output sees one part of the input.
    bias
        Whether there is a ``b``.

    Examples
    --------
    >>> Conv1dSpec(3, 4, 5).weight_shapes()
    {'weight': (4, 3, 5), 'bias': (4,)}
    >>> Conv1dSpec(3, 4, 5, padding="causal").state_shapes(2)
    {'context': (4, 2, 3)}
    """

    kind = "Conv1d"
    _input_field = "in_channels"
    _traits = Traits(needs_steps=True, is_pointwise=False)
    _shown_first = ("in_channels", "out_channels", "kernel_size")

    in_channels: int = LEFT_OUT
    out_channels: int = LEFT_OUT
    kernel_size: int = LEFT_OUT
    stride: int = 1
    padding: int | Literal["valid", "same", "causal"] = "valid"
    dilation: int = 1
    groups: int = 1
    bias: bool = True

    def __post_init__(self) -> None:
        self._set_sizes("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups")
        self._set("bias", self._flag("bias"))
        if isinstance(self.padding, str):
            _choice("padding", self.padding, ("valid", "same", "causal"))
        else:
            self._set("padding", self._integer("padding", least=0))
        if self.padding == "same" and self.stride != 1:
            raise SpecError(f"padding: given 'same' with stride={self.stride}, expected a stride of 1")
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise SpecError(f"groups: given {self.groups}, expected a divisor of {name}={getattr(self, name)}")

    def with_input_features(self, features: int) -> "Conv1dSpec":
        """See `Spec.with_input_features`."""
        return super().with_input_features(features)

    def output_features(self, features: int) -> int:
        """``out_channels``; see `Spec.output_features`."""
        return self.out_channels

    @property
    def span(self) -> int:
        """How many steps one output sees: ``dilation * (kernel_size - 1) + 1``."""
        return self.dilation * (self.kernel_size - 1) + 1

    @property
    def padded(self) -> tuple[int, int]:
        """How many zeros stand before and after a sequence.

        Examples
        --------
        >>> [Conv1dSpec(1, 1, 4, padding=padding).padded for padding in ("valid", "same", "causal", 2)]
        [(0, 0), (1, 2), (3, 0), (2, 2)]
        """
        if isinstance(self.padding, int):
            return self.padding, self.padding
        total = 0 if self.padding == "valid" else self.span - 1
        left = total if self.padding == "causal" else total // 2
        return left, total - left

    @property
    def length_rules(self) -> tuple[LengthRule, ...]:
        """None if there are as many outputs as inputs; see `Spec.length_rules`."""
        rule = LengthRule(sum(self.padded), self.span, self.stride)
        return () if rule.stride == 1 and rule.padding == rule.span - 1 else (rule,)

    @property
    def can_stream(self) -> bool:
        """Whether it is causal with a stride of 1, or sees one step only; see `Spec.can_stream`."""
        return self.stride == 1 and (self.padding == "causal" or (self.span == 1 and not self.length_rules))

    def state_shapes(self, batch_size: int | None) -> dict[str, tuple[int, ...]]:
        """``context`` `(span-1, B, in_channels)`, the last steps, if it can stream; see `Spec.state_shapes`."""
        if not self.can_stream or self.span == 1:
            return {}
        batch = () if batch_size is None else (batch_size,)
        return {"context": (self.span - 1, *batch, self.in_channels)}

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """``weight`` `(out_channels, in_channels / groups, kernel_size)` and ``bias`` `(out_channels,)`."""
        weight = (self.out_channels, self.in_channels // self.groups, self.kernel_size)
        return {"weight": weight, **({"bias": (self.out_channels,)} if self.bias else {})}

    def draw_weights(self, random: Random) -> dict[str, NDArray[np.float64]]:
        """Draw uniformly from ``(-1/sqrt(N), 1/sqrt(N))``, N inputs for one output, as torch does."""
        bound = 1 / math.sqrt(self.in_channels // self.groups * self.kernel_size)
        return {name: uniform(random, shape, bound) for name, shape in self.weight_shapes().items()}


@dataclass(frozen=True, repr=False)
class PoolSpec(Spec):
    """One vector for each sequence, from its valid steps: `(B, T, F)` to `(B, F)`.

    For a sequence of length 0 it is zeros.

    Parameters
    ----------
    how
        ``"mean"`` or ``"max"`` over the valid steps; ``"last"`` for step n-1; ``"first_last"`` for the first half of
        the features at step n-1 and the second half at step 0, which are the final states of a bidirectional layer.

    Examples
    --------
    >>> PoolSpec("mean")
    PoolSpec('mean')
    """

    kind = "Pool"
    _traits = Traits(needs_steps=True, ends_steps=True, is_pointwise=False)
    _shown_first = ("how",)

    how: Pooling

    def __post_init__(self) -> None:
        _choice("how", self.how, get_args(Pooling))

    def output_features(self, features: int) -> int:
        """As many as the input has; see `Spec.output_features`."""
        if self.how == "first_last" and features % 2:
            raise SpecError(f"PoolSpec('first_last'): given {features} features, expected those of two directions")
        return features


@dataclass(frozen=True, repr=False)
class SumDirectionsSpec(Spec):
    """The sum of the two directions of a recurrent layer: `(B, T, 2*H)` to `(B, T, H)`.

    Examples
    --------
    >>> SumDirectionsSpec().output_features(8)
    4
    """

    kind = "SumDirections"

    def output_features(self, features: int) -> int:
        """Half as many as the input has; see `Spec.output_features`."""
        if features % 2:
            raise SpecError(f"SumDirectionsSpec(): given {features} features, expected those of two directions")
        return features // 2
