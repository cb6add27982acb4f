"""The layers of models in torch, and how each is run.

Most layers are torch's own. What goes from layer to layer is a `Flow`, and `RUN` says by the kind of a layer how it is
called, and what it does to lengths and states.

Padding is kept out by selection, and only where a layer could see it. The input of a model is cleaned once, unless a
recurrent layer comes first, which does that itself. From there on padding is finite, so it can't reach a value or a
gradient through a layer that computes each step by itself. A layer that mixes steps needs zeros in the padding.
`Flow.is_clean` says whether they are there already, as they are behind a recurrent layer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unirnn.contract.call import join_state, state_parts
from unirnn.contract.models import check_tokens, keeps_zeros
from unirnn.errors import LimitError
from unirnn.specs import (
    ActivationSpec,
    BatchNormSpec,
    Conv1dSpec,
    DropoutSpec,
    EmbeddingSpec,
    LayerNormSpec,
    LinearSpec,
    NormalizeSpec,
    PoolSpec,
    RecurrentSpec,
    Spec,
    SumDirectionsSpec,
)

from . import dispatch

__all__ = ["RUN", "Flow", "Layer", "Padding", "batch_norm", "described"]

State = tuple[Tensor, ...]
Layer = Callable[..., Any]
"""A module, or what it computes: ``layer(x)``."""

# ---- what flows through a model ------------------------------------------------------------------


class Padding:
    """Which steps of a batch are valid.

    Parameters
    ----------
    lengths
        `(B,)`, checked, on the host, or in a graph a tensor.
    steps
        T.
    axis
        The axis T of arrays: 1 for `(B, T, F)`, 0 for `(T, B, F)`.
    """

    def __init__(self, lengths: NDArray[np.int64] | Tensor, steps: int, axis: int) -> None:
        self.lengths, self.steps, self._axis = lengths, steps, axis
        self._on_device: Tensor | None = None
        self._valid: Tensor | None = None

    def lengths_on(self, device: torch.device) -> Tensor:
        """`(B,)`: the lengths as a tensor."""
        if self._on_device is None:
            lengths = torch.from_numpy(self.lengths) if isinstance(self.lengths, np.ndarray) else self.lengths
            self._on_device = lengths.to(device, non_blocking=True)
        return self._on_device

    def valid(self, device: torch.device) -> Tensor:
        """`(B, T)` or `(T, B)` bool."""
        if self._valid is None:
            step, lengths = torch.arange(self.steps, device=device), self.lengths_on(device)
            self._valid = step < lengths.unsqueeze(1) if self._axis == 1 else step.unsqueeze(1) < lengths
        return self._valid

    def fill(self, x: Tensor, value: float) -> Tensor:
        """The array with a value in its padding."""
        valid = self.valid(x.device)
        return torch.where(valid if x.dim() == 2 else valid.unsqueeze(-1), x, value)

    def after(self, spec: Conv1dSpec, steps: int) -> "Padding":
        """The padding after a convolution, whose output has ``steps`` steps."""
        lengths: Any = self.lengths
        if isinstance(lengths, np.ndarray):
            return Padding(spec.output_lengths(lengths), steps, self._axis)
        for rule in spec.length_rules:
            # Not `rule` itself: ONNX divides negative numbers in another way.
            seen = lengths + (rule.padding - rule.span)
            lengths = torch.where((lengths > 0) & (seen >= 0), seen // rule.stride + 1, 0)
        return Padding(lengths, steps, self._axis)


class Flow(NamedTuple):
    """What goes from layer to layer.

    Parameters
    ----------
    x
        `(B, T, F)` or `(T, B, F)`, without F for tokens; `(B, F)` after a pooling and in a step. `(..., T, F)`, if all
        layers compute each step by itself.
    axis
        The axis T of ``x``; None if it has none.
    padding
        None if every step is valid, or there is no axis T.
    is_clean
        Whether the padding is exactly zero.
    states
        Initial states: for each layer to come that has one, its parts; None is zeros.
    finals
        The final states of the layers before.
    resets
        As recurrent layers take them.
    """

    x: Tensor
    axis: int | None
    padding: Padding | None
    is_clean: bool
    states: tuple[State | None, ...]
    finals: tuple[State, ...]
    resets: Any

    def to(self, x: Tensor, *, is_clean: bool) -> "Flow":
        """What flows on behind a layer that changes neither steps nor states."""
        return Flow(x, self.axis, self.padding, is_clean, self.states, self.finals, self.resets)

    def cleaned(self) -> "Flow":
        """The same with zeros in the padding."""
        if self.padding is None or self.is_clean:
            return self
        return self.to(self.padding.fill(self.x, 0), is_clean=True)


# ---- layers that torch does not have -------------------------------------------------------------


class Pool(nn.Module):
    """One vector for each sequence; see `unirnn.PoolSpec`.

    Parameters
    ----------
    how
        ``"last"``, ``"first_last"``, ``"mean"`` or ``"max"``.
    """

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def extra_repr(self) -> str:
        return self.how

    def forward(self, x: Tensor, axis: int, padding: Padding | None) -> Tensor:
        """`(B, T, F)` to `(B, F)`, or `(T, B, F)` if ``axis`` is 0. The padding must be zeros."""
        if self.how == "mean":
            if padding is None:
                return x.mean(axis)
            # In float32: half precision could hold neither the sum nor the number of many steps.
            dtype = torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype
            count = padding.lengths_on(x.device).clamp(min=1).unsqueeze(1).to(dtype)
            return (x.sum(axis, dtype=dtype) / count).to(x.dtype)
        if self.how == "max":
            if padding is None:
                return x.amax(axis)
            has_begun = padding.lengths_on(x.device).unsqueeze(1) > 0
            return torch.where(has_begun, padding.fill(x, -torch.inf).amax(axis), 0)
        last = x.select(axis, -1) if padding is None else _last(x, axis, padding)
        if self.how == "last":
            return last
        half = x.shape[-1] // 2
        return torch.cat((last[:, :half], x.select(axis, 0)[:, half:]), dim=-1)


def _last(x: Tensor, axis: int, padding: Padding) -> Tensor:
    """`(B, F)`: the last valid step; for a length of 0 step 0, which is padding, and so zeros."""
    step = (padding.lengths_on(x.device) - 1).clamp(min=0)
    row = torch.arange(x.shape[1 - axis], device=x.device)
    return x[row, step] if axis == 1 else x[step, row]


class LockedDropout(nn.Dropout):
    """Dropout of the same elements in all steps of a sequence; see `unirnn.DropoutSpec`."""

    def forward(self, input: Tensor, axis: int | None = None) -> Tensor:
        """The array with some elements dropped; ``axis`` is its axis T."""
        if not self.training or not self.p:
            return input
        kept = input.new_ones(input.shape if axis is None else (*input.shape[:axis], 1, *input.shape[axis + 1 :]))
        return input * nn.functional.dropout(kept, self.p, training=True)


class Normalize(nn.Module):
    """L2 normalisation of the last axis; see `unirnn.NormalizeSpec`.

    Parameters
    ----------
    eps
        The smallest norm by which is divided.
    """

    def __init__(self, eps: float) -> None:
        super().__init__()
        self.eps = eps

    def extra_repr(self) -> str:
        return f"eps={self.eps}"

    def forward(self, x: Tensor) -> Tensor:
        # Half precision could not hold eps, and 0 / 0 is NaN.
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return nn.functional.normalize(wide, dim=-1, eps=self.eps).to(x.dtype)


class SumDirections(nn.Module):
    """The sum of two directions; see `unirnn.SumDirectionsSpec`."""

    def forward(self, x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x[..., :half] + x[..., half:]


class Hardsigmoid(nn.Hardsigmoid):
    """`torch.nn.Hardsigmoid`, whose gradient in float64 torch multiplies by a sixth in float32."""

    def forward(self, input: Tensor) -> Tensor:
        return (input / 6 + 0.5).clamp(0, 1) if input.dtype == torch.float64 else super().forward(input)


_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "hard_sigmoid": Hardsigmoid,
    "softmax": nn.Softmax,
    "log_softmax": nn.LogSoftmax,
}


def described(spec: Spec) -> tuple[Any, dict[str, Any]]:
    """The class that computes a layer, and the arguments of its constructor."""
    match spec:
        case EmbeddingSpec():
            own = {"num_embeddings": spec.num_embeddings, "embedding_dim": spec.embedding_dim}
            return nn.Embedding, {**own, "padding_idx": spec.padding_idx, "max_norm": None}
        case LinearSpec():
            return nn.Linear, {"in_features": spec.in_features, "out_features": spec.out_features, "bias": spec.bias}
        case LayerNormSpec():
            return nn.LayerNorm, {"normalized_shape": spec.normalized_shape, "eps": spec.eps, "bias": True}
        case BatchNormSpec():
            of_spec = {"num_features": spec.num_features, "eps": spec.eps, "momentum": spec.momentum}
            return nn.BatchNorm1d, {**of_spec, "affine": True, "track_running_stats": True}
        case Conv1dSpec():
            left, right = spec.padded
            names = ("in_channels", "out_channels", "kernel_size", "stride", "dilation", "groups", "bias")
            own = {name: getattr(spec, name) for name in names}
            return nn.Conv1d, {**own, "padding": left if left == right else 0, "padding_mode": "zeros"}
        case ActivationSpec("gelu"):
            return nn.GELU, {"approximate": "none"}
        case ActivationSpec():
            return _ACTIVATIONS[spec.function], {"dim": -1} if spec.function.endswith("softmax") else {}
        case DropoutSpec():
            return LockedDropout if spec.locked else nn.Dropout, {"p": spec.p}
        case PoolSpec():
            return Pool, {"how": spec.how}
        case NormalizeSpec():
            return Normalize, {"eps": spec.eps}
        case SumDirectionsSpec():
            return SumDirections, {}
        case _:
            raise NotImplementedError(spec.kind)


# ---- what happens at each layer ------------------------------------------------------------------


def _recurrent(layer: Any, spec: Spec, flow: Flow) -> Flow:
    assert isinstance(spec, RecurrentSpec)
    state = None if flow.states[0] is None else join_state(flow.states[0])
    if flow.axis is None:
        x, final = layer.step(flow.x, state)
    else:
        x, final = layer(flow.x, state, None if flow.padding is None else flow.padding.lengths, flow.resets)
    finals = (*flow.finals, state_parts(spec, final) or ())
    return Flow(x, flow.axis, flow.padding, True, flow.states[1:], finals, flow.resets)


def _embedding(layer: Layer, spec: Spec, flow: Flow) -> Flow:
    tokens = flow.x if flow.x.dtype in (torch.int32, torch.int64) else flow.x.long()
    if dispatch.hides_values():
        return flow.to(layer(tokens), is_clean=False)
    try:
        return flow.to(layer(tokens), is_clean=False)
    except IndexError:
        if tokens.is_cpu:
            check_tokens(spec, tokens.numpy())
        raise


def _convolution(layer: Layer, spec: Spec, flow: Flow) -> Flow:
    assert isinstance(spec, Conv1dSpec)
    flow = flow.cleaned()
    axis, left = flow.axis, spec.padded[0]
    # To torch's layout, (B, C, T), and back.
    x = flow.x.unsqueeze(2) if axis is None else flow.x.transpose(1, 2) if axis == 1 else flow.x.permute(1, 2, 0)
    states, finals = flow.states, flow.finals
    if spec.state_shapes(None):
        context = states[0]
        x = nn.functional.pad(x, (left, 0)) if context is None else torch.cat((context[0].permute(1, 2, 0), x), dim=2)
        states, finals = states[1:], (*finals, (_context(x, left, flow.padding).permute(2, 0, 1),))
    elif spec.padded[0] != spec.padded[1]:
        x = nn.functional.pad(x, spec.padded)
    y = layer(x)
    padding = None if flow.padding is None else flow.padding.after(spec, y.shape[2])
    y = y.squeeze(2) if axis is None else y.transpose(1, 2) if axis == 1 else y.permute(2, 0, 1)
    if torch.compiler.is_compiling():
        y = y.contiguous()  # or torch.export wants to know more of T than that it is dynamic
    return Flow(y, axis, padding, False, states, finals, flow.resets)


def _context(x: Tensor, count: int, padding: Padding | None) -> Tensor:
    """`(B, C, count)`: the last ``count`` steps of each sequence. In x, ``count`` steps of context precede it."""
    if padding is None:
        return x[:, :, x.shape[2] - count :]
    step = padding.lengths_on(x.device).unsqueeze(1) + torch.arange(count, device=x.device)
    return x.gather(2, step.unsqueeze(1).expand(-1, x.shape[1], -1))


def batch_norm(layer: Any, spec: Spec, flow: Flow, module: Any = None) -> Flow:
    """Run a batch normalisation on the valid steps; ``module`` is the layer, where ``layer`` is a method of it."""
    x, padding = flow.x, flow.padding
    module = layer if module is None else module
    if padding is None or not module.training:
        return flow.to(layer(x.reshape(-1, x.shape[-1])).view(x.shape), is_clean=False)
    if isinstance(padding.lengths, Tensor):
        return flow.to(_masked_batch_norm(module, flow.cleaned().x, padding), is_clean=False)
    # The layer sees the valid steps only, so its statistics are right, also those over several processes.
    step = np.arange(padding.steps)
    is_valid = step < padding.lengths[:, None] if flow.axis == 1 else step[:, None] < padding.lengths
    rows = torch.from_numpy(np.flatnonzero(is_valid)).to(x.device, non_blocking=True)
    y = layer(x.reshape(-1, x.shape[-1]).index_select(0, rows))
    y = y.new_zeros((x.shape[0] * x.shape[1], x.shape[2])).index_copy(0, rows, y)
    return flow.to(y.view(x.shape), is_clean=True)


def _masked_batch_norm(layer: nn.Module, x: Tensor, padding: Padding) -> Tensor:
    """Batch normalisation while training in a graph, where the valid steps can't be counted."""
    if not isinstance(layer, nn.BatchNorm1d):
        raise LimitError(f"{type(layer).__name__}: given lengths while training in a graph; expected a BatchNorm1d")
    mean, var, tracked = layer.running_mean, layer.running_var, layer.num_batches_tracked
    assert mean is not None
    assert var is not None
    assert tracked is not None
    valid = padding.valid(x.device).unsqueeze(-1)
    wide = x.to(layer.weight.dtype)
    found = padding.lengths_on(x.device).sum().to(wide.dtype)
    count = found.clamp(min=1)
    of_batch = wide.sum((0, 1)) / count
    centred = torch.where(valid, wide - of_batch, 0)
    variance = centred.square().sum((0, 1)) / count
    with torch.no_grad():
        tracked += 1
        # A graph can't raise, and the variance of fewer than two steps is not known: the statistics stay as they are.
        rate = torch.where(found > 1, mean.new_full((), layer.momentum or 0.0), 0)
        mean.lerp_(of_batch, rate)
        var.lerp_(variance * (count / (count - 1).clamp(min=1)), rate)
    return (centred * (variance + layer.eps).rsqrt() * layer.weight + layer.bias).to(x.dtype)


def _pool(layer: Layer, spec: Spec, flow: Flow) -> Flow:
    flow = flow.cleaned()
    return Flow(layer(flow.x, flow.axis, flow.padding), None, None, False, flow.states, flow.finals, flow.resets)


def _pointwise(layer: Layer, spec: Spec, flow: Flow) -> Flow:
    """Any other layer that computes each step by itself."""
    is_locked = isinstance(spec, DropoutSpec) and spec.locked
    y = layer(flow.x, flow.axis) if is_locked else layer(flow.x)
    return flow.to(y, is_clean=flow.is_clean and keeps_zeros(spec))


def _model(layer: Layer, spec: Spec, flow: Flow) -> Flow:
    after: Flow = layer(flow)
    return after


RUN: dict[str, Callable[[Any, Spec, Flow], Flow]] = {
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
    "Embedding": _embedding,
    "Conv1d": _convolution,
    "BatchNorm": batch_norm,
    "Pool": _pool,
    **dict.fromkeys(("Activation", "Dropout", "LayerNorm", "Linear", "Normalize", "SumDirections"), _pointwise),
    **dict.fromkeys(("Sequential", "Residual", "Concat"), _model),
}
"""By the kinds of specs: ``run(layer, spec, flow)``."""
