"""The models that the ``mindspore`` backend builds, and the layers around recurrent ones.

A `Model` is what the caller holds: it checks a call, and knows the layout and the lengths. Its body is a tree of cells,
of `Chain`, `Sum` and `Beside` and the layers in them. A layer that computes each step by itself is called as
``layer(x)``, and MindSpore's own is taken where it is right on a CPU. A layer that mixes steps, and each cell that has
other layers, is called as::

    layer(x, lengths, resets, states) -> x, lengths, states

with x of `(B, T, F)`, or of `(T, B, F)` if the model is not batch-first, `(B,)` lengths or None, and a tuple with the
state of each layer in it that has one, which is None for zeros.

When a model is built, it is known where the padding may be anything but zeros. So what must be cleaned is cleaned there
only, by selection, and nothing of it runs without lengths.

Numbers of Python are float32 for MindSpore, even where a tensor is float64. So numbers that float32 does not hold are
tensors here.

This file is written in the part of Python that MindSpore's graph mode compiles.
"""

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from mindspore import GRAPH_MODE, Parameter, Tensor, get_context, nn, ops
from mindspore import dtype as mstype
from numpy.typing import NDArray

from unirnn import (
    ActivationSpec,
    BatchNormSpec,
    Concat,
    Conv1dSpec,
    DropoutSpec,
    EmbeddingSpec,
    LayerNormSpec,
    LinearSpec,
    NormalizeSpec,
    PoolSpec,
    RecurrentSpec,
    Residual,
    Sequential,
    Spec,
    SumDirectionsSpec,
)
from unirnn.contract.models import (
    ModelCall,
    check_steps_of_batch_norms,
    check_tokens,
    is_batch_first,
    prepare_model,
    prepare_model_step,
    stateful,
)
from unirnn.contract.models import ModelModule as ModelOnHost
from unirnn.devices import short_name
from unirnn.errors import LimitError
from unirnn.specs import ModelSpec

from . import dispatch
from .calls import as_tuples, described, described_state, known, on_host, traced, with_batch, without_batch
from .lengths import (
    in_graph,
    is_compiling,
    lengths_after,
    rows_at,
    seen_steps,
    select,
    step_counts,
    total_steps,
    valid_steps,
    valid_steps_on_host,
    widened,
)
from .module import Recurrent
from .operators import CheckedLengths, CheckedTokens

__all__ = ["Model"]

Array = NDArray[Any]


def _constant(value: float, dtype: Any) -> Tensor:
    """A number for the arithmetic of tensors that `widened` gave."""
    return Tensor(value, mstype.float32 if dtype == mstype.float16 else dtype)


class WideCell(nn.Cell):
    """A layer that sums many numbers, and computes float16 in float32."""

    def add_flags(self, **flags: Any) -> Any:
        """Set attributes. Where `to_float` asks for float16, MindSpore would cast what was widened back."""
        if flags.get("fp16"):
            flags = {**flags, "fp16": False, "fp32": True}
        return super().add_flags(**flags)


# ---- layers that compute each step by itself ---------------------------------------------------------


class Embedding(nn.Cell):
    """See `unirnn.EmbeddingSpec`. ``nn.Embedding`` names its weight otherwise, ``mint.nn.Embedding`` needs Ascend."""

    def __init__(self, spec: EmbeddingSpec, weight: Parameter) -> None:
        super().__init__()
        self.weight = weight
        self.padding_idx = -1 if spec.padding_idx is None else spec.padding_idx

    def construct(self, tokens: Any) -> Any:
        """Tokens of any shape to `(..., F)`."""
        found = ops.gather(self.weight, tokens, 0)
        if self.padding_idx < 0:
            return found
        is_padding = ops.equal(tokens, self.padding_idx).expand_dims(-1)
        return ops.where(is_padding, ops.stop_gradient(found), found)


class Tanh(nn.Cell):
    """MindSpore's own tanh is off by 1e-4 in float32 on a CPU; its sigmoid is right."""

    def construct(self, x: Any) -> Any:
        """Give the tanh of each element."""
        return ops.sigmoid(x * 2) * 2 - 1 if x.dtype == mstype.float32 else ops.tanh(x)


class LogSoftmax(WideCell):
    """MindSpore's own log_softmax of float64 is that of float32 on a CPU."""

    def construct(self, x: Any) -> Any:
        """Give the logarithm of the softmax of the last axis."""
        if x.dtype != mstype.float64:
            return ops.log_softmax(widened(x), -1).astype(x.dtype)
        shifted = x - ops.amax(x, -1, True)
        return shifted - ops.log(ops.exp(shifted).sum(-1, keepdims=True))


class LockedDropout(nn.Cell):
    """See `unirnn.DropoutSpec`: all steps of a sequence have the same elements dropped."""

    def __init__(self, p: float, axis: int) -> None:
        super().__init__()
        self.p = p
        self.axis = axis

    def construct(self, x: Any) -> Any:
        """`(B, T, F)` or `(T, B, F)`; the axis of the steps is the same from the end where there are more."""
        if not self.training:
            return x
        shape = x.shape
        if x.ndim > 1:
            axis = x.ndim - 3 + self.axis if x.ndim > 2 else 0
            shape = (*x.shape[:axis], 1, *x.shape[axis + 1 :])
        return x * ops.dropout(ops.full(shape, 1, dtype=x.dtype), self.p, True)


class LayerNorm(WideCell):
    """See `unirnn.LayerNormSpec`. MindSpore's operator computes float64 in float32 on a CPU."""

    def __init__(self, spec: LayerNormSpec, weight: Parameter, bias: Parameter) -> None:
        super().__init__()
        self.weight, self.bias = weight, bias
        self.eps = _constant(spec.eps, weight.dtype)
        self.normalize = ops.LayerNorm(-1, -1, spec.eps)

    def construct(self, x: Any) -> Any:
        """`(..., F)`."""
        if x.dtype != mstype.float64:
            y = self.normalize(widened(x), widened(self.weight), widened(self.bias))[0]
            return y.astype(x.dtype)
        centred = x - x.mean(-1, keep_dims=True)
        variance = (centred * centred).mean(-1, keep_dims=True)
        return centred / ops.sqrt(variance + self.eps) * self.weight + self.bias


class Normalize(WideCell):
    """See `unirnn.NormalizeSpec`."""

    def __init__(self, spec: NormalizeSpec, dtype: Any) -> None:
        super().__init__()
        self.least = _constant(spec.eps**2, dtype)

    def construct(self, x: Any) -> Any:
        """`(..., F)`."""
        wide = widened(x)
        # The square root of the larger one, since the slope of the root of 0 is infinite.
        squares = (wide * wide).sum(-1, keepdims=True)
        return (wide / ops.sqrt(ops.maximum(squares, self.least))).astype(x.dtype)


class SumDirections(nn.Cell):
    """See `unirnn.SumDirectionsSpec`."""

    def construct(self, x: Any) -> Any:
        """`(..., 2*H)` to `(..., H)`."""
        half = x.shape[-1] // 2
        return x[..., :half] + x[..., half:]


# ---- layers that mix steps ---------------------------------------------------------------------------


class Place(NamedTuple):
    """Where a layer stands in a model.

    Parameters
    ----------
    batch_first
        Whether the model is.
    has_steps
        Whether there is an axis T; not so after a pooling.
    is_clean
        Whether what stands in the padding is zeros.
    """

    batch_first: bool
    has_steps: bool
    is_clean: bool


class BatchNorm(WideCell):
    """See `unirnn.BatchNormSpec`. No layer of MindSpore knows of lengths."""

    def __init__(self, spec: BatchNormSpec, parameters: Mapping[str, Parameter], place: Place) -> None:
        super().__init__()
        self.weight, self.bias = parameters["weight"], parameters["bias"]
        self.running_mean, self.running_var = parameters["running_mean"], parameters["running_var"]
        self.place = tuple(place)
        dtype = self.weight.dtype
        self.eps, self.momentum = _constant(spec.eps, dtype), _constant(spec.momentum, dtype)

    def construct(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """`(B, T, F)` or `(T, B, F)`, or `(B, F)`."""
        wide = widened(x)
        mean, variance = self.running_mean, self.running_var
        if self.training:
            mean, variance = self._statistics(wide, lengths)
        scale = widened(self.weight) / ops.sqrt(widened(variance) + self.eps)
        y = (wide - widened(mean)) * scale + widened(self.bias)
        return y.astype(x.dtype), lengths, ()

    def _statistics(self, x: Any, lengths: Any) -> Any:
        """Give mean and variance over the valid steps, towards which the running ones move."""
        batch_first, has_steps, is_clean = self.place
        axes = tuple(range(x.ndim - 1))
        if lengths is None or not has_steps:
            count = ops.full((), math.prod(x.shape[:-1]), dtype=x.dtype)
            mean = x.sum(axes) / count
            deviations = x - mean
        else:
            count = total_steps(lengths, x.dtype)
            at_least_one = ops.maximum(count, 1)
            cleaned = x if is_clean else select(x, lengths, batch_first)
            mean = cleaned.sum(axes) / at_least_one
            deviations = select(x - mean, lengths, batch_first)
            count = at_least_one
        squares = (deviations * deviations).sum(axes)
        # The variance of fewer than two steps is not known, so the running statistics stay as they are.
        rate = ops.where(count > 1, self.momentum, ops.zeros_like(self.momentum))
        self._move(self.running_mean, mean, rate)
        self._move(self.running_var, squares / ops.maximum(count - 1, 1), rate)
        return mean, squares / count

    def _move(self, running: Any, value: Any, rate: Any) -> None:
        wide = widened(running)
        moved = wide + rate * (ops.stop_gradient(value) - wide)
        ops.assign(running, moved.astype(running.dtype))


class Convolution(nn.Cell):
    """See `unirnn.Conv1dSpec`: one product, after the steps that are multiplied are gathered.

    MindSpore's own convolution has no float64 on a CPU, and another layout.
    """

    def __init__(self, spec: Conv1dSpec, parameters: Mapping[str, Parameter], place: Place) -> None:
        super().__init__()
        self.weight = parameters["weight"]
        self.has_bias = spec.bias
        if spec.bias:
            self.bias = parameters["bias"]
        self.rules = tuple(tuple(rule) for rule in spec.length_rules)
        self.left, self.right = spec.padded
        self.context = bool(spec.state_shapes(None))
        self.size, self.groups = spec.kernel_size, spec.groups
        self.span, self.stride, self.dilation = spec.span, spec.stride, spec.dilation
        self.batch_first, self.is_clean = place.batch_first, place.is_clean

    def construct(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """`(B, T, F)` or `(T, B, F)`."""
        if not self.is_clean:
            x = select(x, lengths, self.batch_first)
        padded = self._padded(x, states[0] if self.context else None)
        finals: Any = (self._last(padded, lengths),) if self.context else ()
        y = self._product(padded)
        if lengths is not None and len(self.rules) > 0:
            lengths = lengths_after(self.rules, lengths)
        return y, lengths, finals

    def _padded(self, x: Any, state: Any) -> Any:
        """Put the context, or zeros, before the first step, and zeros after the last."""
        parts: Any = (x,)
        if state is not None:
            parts = (state.swapaxes(0, 1) if self.batch_first else state, x)
        elif self.left > 0:
            parts = (self._zeros(x, self.left), x)
        if self.right > 0:
            parts += (self._zeros(x, self.right),)
        return x if len(parts) == 1 else ops.concat(parts, 1 if self.batch_first else 0)

    def _zeros(self, x: Any, steps: int) -> Any:
        shape = (x.shape[0], steps, x.shape[2]) if self.batch_first else (steps, x.shape[1], x.shape[2])
        return ops.full(shape, 0, dtype=x.dtype)

    def _last(self, padded: Any, lengths: Any) -> Any:
        """`(span-1, B, F)`: the last steps of each sequence, those before it included."""
        if lengths is None:
            last = (
                padded[:, padded.shape[1] - self.left :] if self.batch_first else padded[padded.shape[0] - self.left :]
            )
            return last.swapaxes(0, 1) if self.batch_first else last
        rows = rows_at(lengths, 0, self.left, padded.shape[1 if self.batch_first else 0], self.batch_first)
        return ops.gather(padded.reshape((-1, padded.shape[2])), rows, 0)

    def _product(self, padded: Any) -> Any:
        axis = 1 if self.batch_first else 0
        seen = padded  # `(B, T, K*F)` or `(T, B, K*F)`
        if self.size > 1 or self.stride > 1:
            steps = (padded.shape[axis] - self.span) // self.stride + 1
            at = seen_steps(steps, self.size, self.stride, self.dilation)
            seen = ops.gather(padded, at, axis)
            if not self.batch_first:
                seen = seen.transpose((0, 2, 1, 3))
        size_out, size_in, _ = self.weight.shape
        if self.groups == 1:
            weight = self.weight.transpose((0, 2, 1)).reshape((size_out, self.size * size_in))
            seen = seen.reshape((*seen.shape[:2], self.size * size_in))
            return ops.dense(seen, weight, self.bias) if self.has_bias else ops.dense(seen, weight)
        leading = seen.shape[:2]
        size = self.size * size_in
        columns = seen.reshape((-1, self.size, self.groups, size_in)).transpose((2, 0, 1, 3))
        weight = self.weight.reshape((self.groups, size_out // self.groups, size_in, self.size))
        weight = weight.transpose((0, 3, 2, 1)).reshape((self.groups, size, size_out // self.groups))
        y = ops.bmm(columns.reshape((self.groups, -1, size)), weight).swapaxes(0, 1)
        y = y.reshape((*leading, size_out))
        return y + self.bias if self.has_bias else y


class Pool(WideCell):
    """See `unirnn.PoolSpec`."""

    def __init__(self, spec: PoolSpec, place: Place) -> None:
        super().__init__()
        self.how = spec.how
        self.batch_first, self.is_clean = place.batch_first, place.is_clean

    def construct(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """`(B, T, F)` or `(T, B, F)` to `(B, F)`."""
        if not self.is_clean:
            x = select(x, lengths, self.batch_first)
        return self._pooled(x, lengths), None, ()

    def _pooled(self, x: Any, lengths: Any) -> Any:
        axis = 1 if self.batch_first else 0
        if self.how == "mean":
            wide = widened(x)
            total = wide.sum(axis)
            mean = total / x.shape[axis] if lengths is None else total / step_counts(lengths, wide.dtype)
            return mean.astype(x.dtype)
        if self.how == "max":
            return self._largest(x, lengths, axis)
        last = self._last(x, lengths, axis)
        if self.how == "last":
            return last
        first = x[:, 0] if self.batch_first else x[0]
        half = x.shape[2] // 2
        return ops.concat((last[:, :half], first[:, half:]), 1)

    def _largest(self, x: Any, lengths: Any, axis: int) -> Any:
        if lengths is None:
            return ops.amax(x, axis)
        valid = valid_steps(lengths, x.shape[axis], self.batch_first)
        largest = ops.amax(ops.where(valid, x, ops.full_like(x, -math.inf)), axis)
        has_steps = valid[:, 0] if self.batch_first else valid[0]
        return ops.where(has_steps, largest, ops.zeros_like(largest))

    def _last(self, x: Any, lengths: Any, axis: int) -> Any:
        """Step n-1. For a sequence of length 0 it is step 0, which is zeros, as all of its padding."""
        if lengths is None:
            return x[:, x.shape[1] - 1] if self.batch_first else x[x.shape[0] - 1]
        rows = rows_at(lengths, -1, 1, x.shape[axis], self.batch_first)
        return ops.gather(x.reshape((-1, x.shape[2])), rows[0], 0)


# ---- layers of layers --------------------------------------------------------------------------------

Kind = Literal["pointwise", "recurrent", "steps"]
"""How a layer is called: ``layer(x)``, as a `Recurrent`, or as the module's documentation says."""


class Layers(nn.Cell):
    """What `Chain`, `Sum` and `Beside` have in common: cells by names.

    Parameters
    ----------
    layers
        The cells by their names.
    kinds
        How each of them is called.
    states
        How many states each of them takes.
    """

    def __init__(self, layers: Mapping[str, nn.Cell], kinds: tuple[Kind, ...], states: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = tuple(layers.values())
        self.kinds = kinds
        self.first_states = tuple(sum(states[:k]) for k in range(len(states) + 1))
        for name, layer in layers.items():
            if hasattr(self, name):  # such as "phase", which a cell has; then it is in `layers` only
                self._cells[name] = layer
            else:
                setattr(self, name, layer)

    def _run(self, position: int, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        layer, kind = self.layers[position], self.kinds[position]
        if kind == "pointwise":
            return layer(x), lengths, ()
        own = states[self.first_states[position] : self.first_states[position + 1]]
        if kind == "recurrent":
            x, final = layer(x, own[0], lengths, resets)
            return x, lengths, (final,)
        return layer(x, lengths, resets, own)


class Chain(Layers):
    """See `unirnn.Sequential`."""

    def construct(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """Run one layer after another."""
        finals: Any = ()
        for position in range(len(self.layers)):
            x, lengths, found = self._run(position, x, lengths, resets, states)
            finals += found
        return x, lengths, finals


class Sum(Layers):
    """See `unirnn.Residual`."""

    def construct(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """Add what the layer gives to what it takes."""
        y, lengths, finals = self._run(0, x, lengths, resets, states)
        return x + y, lengths, finals


class Beside(Layers):
    """See `unirnn.Concat`."""

    def construct(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """Put what the layers give side by side."""
        outputs: Any = ()
        finals: Any = ()
        after: Any = None
        for position in range(len(self.layers)):
            y, after, found = self._run(position, x, lengths, resets, states)
            outputs += (y,)
            finals += found
        return ops.concat(outputs, -1), after, finals


# ---- building ----------------------------------------------------------------------------------------

_ACTIVATIONS: dict[str, Callable[[], nn.Cell]] = {
    "relu": nn.ReLU,
    "tanh": Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": lambda: nn.GELU(approximate=False),
    "silu": nn.SiLU,
    "hard_sigmoid": nn.HSigmoid,
    "softmax": nn.Softmax,
    "log_softmax": LogSoftmax,
}


def _keeps_zeros(spec: Spec) -> bool:
    """Whether a layer that computes each step by itself gives zeros for zeros."""
    if isinstance(spec, ActivationSpec):
        return spec.function in ("relu", "gelu", "silu")
    return isinstance(spec, (DropoutSpec, NormalizeSpec, SumDirectionsSpec)) or (
        isinstance(spec, LinearSpec) and not spec.bias
    )


def _starts_recurrent(spec: Spec) -> bool:
    """Whether a recurrent layer is the only one that sees the input."""
    if isinstance(spec, Sequential):
        return len(spec) > 0 and _starts_recurrent(next(iter(spec)))
    return isinstance(spec, RecurrentSpec)


class _Builder:
    """Makes the cells of a model from its spec."""

    def __init__(
        self, spec: Spec, weights: Mapping[str, Array], dtype: Any, device: dispatch.DeviceKind, kernel: str
    ) -> None:
        self.dtype, self.kernel = dtype, kernel
        self.device: dispatch.DeviceKind = device
        self.arrays = {name: np.asarray(weights[name], short_name(dtype)) for name in spec.weight_shapes()}
        tied = spec.tied() if isinstance(spec, ModelSpec) else {}
        buffers = set(spec.buffers)
        # Recurrent layers make their own parameters.
        owners = tuple(f"{name}." for name, leaf in spec.leaves().items() if isinstance(leaf, RecurrentSpec))
        self.parameters = {
            name: Parameter(array, name=name, requires_grad=name not in buffers)
            for name, array in self.arrays.items()
            if not name.startswith(owners)
        }
        self.parameters |= {name: self.parameters[other] for name, other in tied.items()}

    def layer(self, path: str, spec: Spec, place: Place) -> tuple[nn.Cell, Kind, Place]:
        """Make a layer; returns how it is called, and what follows it."""
        prefix = f"{path}." if path else ""
        if isinstance(spec, ModelSpec):
            return self.layers(prefix, spec, place)
        if isinstance(spec, RecurrentSpec):
            own = {name: self.arrays[prefix + name] for name in spec.weight_shapes()}
            cell = Recurrent(spec, own, self.dtype, self.device, self.kernel)
            return cell, "recurrent", place._replace(is_clean=True)
        names = [*spec.weight_shapes(), *(["weight"] if isinstance(spec, LinearSpec) and spec.tied_to else [])]
        parameters = {name: self.parameters[prefix + name] for name in names}
        match spec:
            case Conv1dSpec():
                return Convolution(spec, parameters, place), "steps", place._replace(is_clean=False)
            case PoolSpec():
                return Pool(spec, place), "steps", place._replace(has_steps=False)
            case BatchNormSpec():
                return BatchNorm(spec, parameters, place), "steps", place._replace(is_clean=False)
        after = place._replace(is_clean=place.is_clean and _keeps_zeros(spec))
        return self.pointwise(spec, parameters, place), "pointwise", after

    def pointwise(self, spec: Spec, parameters: Mapping[str, Parameter], place: Place) -> nn.Cell:
        """Make a layer that computes each step by itself."""
        match spec:
            case EmbeddingSpec():
                return Embedding(spec, parameters["weight"])
            case LinearSpec():
                cell = nn.Dense(
                    spec.in_features, spec.out_features, "zeros", "zeros", has_bias=spec.bias, dtype=self.dtype
                )
                for name, parameter in parameters.items():
                    setattr(cell, name, parameter)
                return cell
            case ActivationSpec():
                return _ACTIVATIONS[spec.function]()
            case DropoutSpec() if spec.locked and spec.p and place.has_steps:
                return LockedDropout(spec.p, 1 if place.batch_first else 0)
            case DropoutSpec():
                return nn.Dropout(p=spec.p)
            case LayerNormSpec():
                return LayerNorm(spec, parameters["weight"], parameters["bias"])
            case NormalizeSpec():
                return Normalize(spec, self.dtype)
            case SumDirectionsSpec():
                return SumDirections()
            case _:
                raise NotImplementedError(spec.kind)

    def layers(self, prefix: str, spec: ModelSpec, place: Place) -> tuple[nn.Cell, Kind, Place]:
        """Make the layers of a model, and the cell that runs them."""
        cells: dict[str, nn.Cell] = {}
        kinds: list[Kind] = []
        after, ends = place, []
        for name, child in spec.children:
            cells[name], kind, after = self.layer(
                prefix + name, child, after if isinstance(spec, Sequential) else place
            )
            kinds.append(kind)
            ends.append(after)
        states = tuple(len(stateful(child)) for child in spec)
        if isinstance(spec, Sequential):
            return Chain(cells, tuple(kinds), states), "steps", after
        is_clean = all(end.is_clean for end in ends)
        if isinstance(spec, Residual):
            return Sum(cells, tuple(kinds), states), "steps", after._replace(is_clean=is_clean and place.is_clean)
        assert isinstance(spec, Concat)
        return Beside(cells, tuple(kinds), states), "steps", after._replace(is_clean=is_clean)


# ---- the model ---------------------------------------------------------------------------------------


class Model(Layers):
    """A model, or one layer that is not recurrent.

    Parameters
    ----------
    spec
        The spec of the model.
    weights
        By the names of `unirnn.Spec.weight_shapes`; copied.
    dtype
        The dtype of the parameters.
    device
        ``"cpu"``, ``"gpu"`` or ``"ascend"``: where it will run.
    kernel
        That of the recurrent layers; one of `unirnn_mindspore.dispatch.SUPPORT`.

    Attributes
    ----------
    spec
        The spec of the model.
    dtype
        The dtype of the parameters.
    body
        The cell with the layers. Each of them is an attribute of the model too, by its name.

    Examples
    --------
    >>> import mindspore, unirnn
    >>> spec = unirnn.Sequential(
    ...     embedding=unirnn.EmbeddingSpec(50, 8), pool=unirnn.PoolSpec("mean"), head=unirnn.LinearSpec(8, 2)
    ... )
    >>> net = spec.build("mindspore", seed=0)
    >>> net(mindspore.ops.ones((3, 5), mindspore.int64), seq_length=[5, 2, 0]).shape
    (3, 2)
    >>> [parameter.name for parameter in net.trainable_params()]
    ['embedding.weight', 'head.weight', 'head.bias']
    """

    def __init__(
        self,
        spec: Spec,
        weights: Mapping[str, Array],
        dtype: Any,
        device: dispatch.DeviceKind,
        kernel: str = "auto",
    ) -> None:
        batch_first = is_batch_first(spec)
        place = Place(batch_first, True, is_clean=not _starts_recurrent(spec))
        body, kind, after = _Builder(spec, weights, dtype, device, kernel).layer("", spec, place)
        super().__init__({"body": body}, (kind,), (len(stateful(spec)),))
        self.spec = spec
        self.dtype = dtype
        self.batch_first = batch_first
        self.takes_tokens = bool(spec.takes_tokens)
        self.is_pointwise = spec.is_pointwise and not spec.needs_steps
        self.rank = 2 if spec.takes_tokens else 3
        self.cleans_input = place.is_clean
        self.cleans_output = after.has_steps and not after.is_clean
        self.ends_steps = spec.ends_steps
        self.rules = tuple(tuple(rule) for rule in spec.length_rules)
        # The shape of each part of each state, without the axis B.
        self.states = tuple(tuple(leaf.state_shapes(None).values()) for leaf in stateful(spec).values())
        # `to_float`, with which `mindspore.amp` sets mixed precision, changes these.
        self.fp16 = self.fp32 = False
        self.on_cpu = device == "cpu"
        self.checked_lengths = CheckedLengths()
        self.checked_tokens = CheckedTokens(spec)
        self.check, self.check_step, self.is_exporting, self.empty_shape = traced(spec)
        for name, parameter in self.parameters_and_names():
            parameter.name = name

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            body = self.__dict__.get("_cells", {}).get("body")
            if body is None or name not in body._cells:
                raise
            return body._cells[name]

    def cells_and_names(self, cells: Any = None, name_prefix: str = "") -> Iterator[tuple[str, nn.Cell]]:
        """Iterate over all cells; the body has the model's own name, so that parameters have the names of the spec."""
        seen = cells if cells else set()
        if self not in seen:
            seen.add(self)
            yield name_prefix, self
            yield from self.body.cells_and_names(seen, name_prefix)

    def add_flags(self, **flags: Any) -> Any:
        """Set attributes, as MindSpore's `to_float` does for mixed precision."""
        if flags.get("bf16"):
            raise LimitError("to_float: given bfloat16, but mindspore has no bfloat16 layers; it has float16, float32")
        return super().add_flags(**flags)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if get_context("mode") == GRAPH_MODE:  # values are known here, and no more when `construct` is compiled
            return super().__call__(*self._checked_on_host(*args, **kwargs))
        # For gradients of the model itself, MindSpore must see the caller's own arguments.
        return super().__call__(*args, **kwargs)

    __call__.__doc__ = ModelOnHost.__call__.__doc__

    def _checked_on_host(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, return_state: bool = False
    ) -> Any:
        """Check the arguments of a call, values included, and give those of `construct`."""
        given = on_host(resets)
        call = prepare_model(self.spec, input, hx, on_host(seq_length), given, like=self._like())
        if self.training:
            check_steps_of_batch_norms(self.spec, call)
        if call.lengths is not None:
            seq_length = Tensor(call.lengths if call.is_batched else call.lengths[0])
        if call.resets is None:
            resets = None
        elif not isinstance(resets, Tensor):
            resets = Tensor(np.asarray(given))
        if self.takes_tokens:
            input = self._tokens(input, call)
        return input, as_tuples(hx), seq_length, resets, return_state

    def _checked(self, input: Any, hx: Any, seq_length: Any, resets: Any, return_state: bool) -> Any:
        """Do the same when MindSpore compiles, and only shapes and dtypes are known; see below the class."""
        self.check(described(input), described_state(hx), self._dtype(), known(seq_length), known(resets))
        return input, hx, seq_length, resets, return_state

    def construct(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, return_state: bool = False
    ) -> Any:
        """Run the model; see the call."""
        input, hx, seq_length, resets, return_state = self._checked(input, hx, seq_length, resets, return_state)
        x = input
        states: Any = self._given(hx)
        if self.is_pointwise and seq_length is None and resets is None:  # of any shape
            y, _, _ = self._run(0, x, None, None, states)
            return (y, ()) if return_state else y
        batched = x.ndim == self.rank
        batch_axis = 0 if self.batch_first else 1
        lengths: Any = None
        begins: Any = None
        if seq_length is not None:
            lengths = seq_length if isinstance(seq_length, Tensor) else Tensor(seq_length, mstype.int64)
            lengths = lengths if lengths.dtype == mstype.int64 else lengths.astype(mstype.int64)
        if resets is not None:
            begins = resets if isinstance(resets, Tensor) else Tensor(resets, mstype.bool_)
        if not batched:
            x, states = x.expand_dims(batch_axis), with_batch(states)
            lengths = lengths if lengths is None else lengths.reshape((1,))
            begins = begins if begins is None else begins.expand_dims(batch_axis)
        shape = self.empty_shape(x.shape)
        if shape is not None:  # MindSpore's operators fail for arrays without elements
            y, finals = ops.full(shape, 0, dtype=self.dtype), self.zero_state(0)
        else:
            y, finals = self._flow(x, lengths, begins, states)
        if not batched:
            y = y.squeeze(0 if self.ends_steps else batch_axis)
            finals = without_batch(finals)
        return (y, finals) if return_state else y

    def step(self, x: Any, state: Any = None) -> Any:
        if is_compiling():
            self.check_step(described(x), described_state(state), self._dtype(), None, None)
        states: Any = self._given(state)
        batched = x.ndim == self.rank - 1
        if not batched:
            x, states = x.expand_dims(0), with_batch(states)
        axis = 1 if self.batch_first else 0
        y, finals = self._flow(x.expand_dims(axis), None, None, states)
        y = y.squeeze(axis)
        return (y, finals) if batched else (y.squeeze(0), without_batch(finals))

    def output_lengths(self, seq_length: Any) -> Any:
        """How many valid steps the output has; see `unirnn.Spec.output_lengths`."""
        if self.ends_steps:
            return None
        if isinstance(seq_length, Tensor):
            return lengths_after(self.rules, seq_length)
        return self.spec.output_lengths(seq_length)

    def zero_state(self, batch_size: Any = None) -> Any:
        """Give the state before the first step of a sequence; see `unirnn.state.zeros`."""
        found: Any = ()
        for shapes in self.states:
            parts: Any = ()
            for shape in shapes:
                whole = shape if batch_size is None else (shape[0], batch_size, shape[1])
                parts += (ops.full(whole, 0, dtype=self.dtype),)
            found += (parts[0] if len(parts) == 1 else parts,)
        return found

    def _flow(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """Run the layers over what has an axis B; give the output with zeros in the padding, and the final states."""
        if self.takes_tokens:
            if is_compiling():
                x = self._compiled_tokens(x, lengths)
        elif self.cleans_input:
            x = select(x, lengths, self.batch_first)
        if lengths is not None and is_compiling() and self.on_cpu and not self.is_exporting():
            lengths = self.checked_lengths(lengths, x.shape[1 if self.batch_first else 0])
        y, lengths, finals = self._run(0, x, lengths, resets, states)
        return select(y, lengths, self.batch_first) if self.cleans_output else y, finals

    def _compiled_tokens(self, tokens: Any, lengths: Any) -> Any:
        """Give the tokens with 0 in the padding. Where nothing else tells, one out of range raises when it is read."""
        tokens = tokens.astype(mstype.int64)
        if lengths is not None:
            valid = valid_steps(lengths, tokens.shape[1 if self.batch_first else 0], self.batch_first)
            tokens = ops.where(valid.squeeze(-1), tokens, 0)
        return self.checked_tokens(tokens) if self.on_cpu and not self.is_exporting() else tokens

    def _tokens(self, tokens: Tensor, call: ModelCall) -> Tensor:
        """The tokens of a call in PyNative mode, checked, with 0 in the padding."""
        given = tokens.asnumpy()
        valid = None
        if call.lengths is not None and call.sizes is not None:
            valid = valid_steps_on_host(call.lengths, call.sizes.steps, self.batch_first)[..., 0]
            valid = valid if call.is_batched else valid.reshape(-1)
        check_tokens(self.spec, given, valid)
        if valid is None:
            return tokens if tokens.dtype in (mstype.int32, mstype.int64) else Tensor(given.astype(np.int64))
        return Tensor(np.where(valid, given, 0).astype(np.int64))

    def _given(self, hx: Any) -> Any:
        """Give one state for each layer that has one; None is zeros."""
        return (None,) * len(self.states) if hx is None else hx

    def _dtype(self) -> Any:
        """Give the dtype that the input must have; None where `to_float` casts it."""
        return None if self.fp16 or self.fp32 else self.dtype

    def _like(self) -> tuple[type[Any], Any]:
        return Tensor, self._dtype()


def _checked_step(step: Any) -> Any:
    """Check the arguments of a step in PyNative mode. MindSpore compiles the wrapped function, with its own checks."""

    @functools.wraps(step)
    def checked(self: Model, x: Any, state: Any = None) -> tuple[Tensor, Any]:
        call = prepare_model_step(self.spec, x, state, like=self._like())
        x = self._tokens(x, call) if self.takes_tokens else x
        result: tuple[Tensor, Any] = step(self, x, as_tuples(state))
        return result

    checked.__doc__ = ModelOnHost.step.__doc__
    return checked


# Not as decorators: automatic mixed precision copies the class to another module, without the functions of this one.
Model._checked = in_graph(Model._checked)(Model._checked_on_host)  # type: ignore[method-assign]
Model.step = _checked_step(Model.step)  # type: ignore[method-assign]
