"""Models, and layers that are not recurrent, as modules of torch.

The layers are torch's own, under the names that the spec gives them, so the ``state_dict`` of a model that was written
by hand can be loaded here. `Model` calls them, and does between them what they can't know: it keeps padding out, tells
each layer the lengths, and hands the states through. What goes from layer to layer is a `Flow`.

Padding is kept out by selection, and only where a layer could see it. The input is cleaned once, unless a recurrent
layer comes first, which does that itself. From there on padding is finite, so it can't reach a value or a gradient
through a layer that computes each step by itself. A layer that mixes steps needs zeros in the padding. `Flow.is_clean`
says whether they are there already, as they are behind a recurrent layer.
"""

from collections.abc import Callable, Iterator
from functools import cache
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unirnn.contract import models as _models
from unirnn.contract.backend import Arrays, check_computes_as
from unirnn.contract.call import join_state, state_parts
from unirnn.contract.models import (
    ModelCall,
    check_steps_of_batch_norms,
    check_tokens,
    is_batch_first,
    prepare_model,
    prepare_model_step,
    stateful,
)
from unirnn.errors import LimitError, SpecError
from unirnn.specs import (
    ActivationSpec,
    BatchNormSpec,
    Conv1dSpec,
    DropoutSpec,
    EmbeddingSpec,
    LayerNormSpec,
    LinearSpec,
    ModelSpec,
    NormalizeSpec,
    PoolSpec,
    RecurrentSpec,
    Spec,
    SumDirectionsSpec,
)

from . import dispatch, native, operators
from .module import Recurrent, read_lengths, read_resets

__all__ = ["Model", "ModelModule", "build", "check_layers", "first_tensor", "tie", "under", "with_tensor"]

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
        """The padding of a convolution's output, which has so many steps."""
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
        None if every step is valid, or there are none.
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
        The least norm.
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


def _described(spec: Spec) -> tuple[Any, dict[str, Any]]:
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
    if dispatch.is_traced():
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
    """`(B, C, count)`: the last steps of each sequence, which so many steps precede."""
    if padding is None:
        return x[:, :, x.shape[2] - count :]
    step = padding.lengths_on(x.device).unsqueeze(1) + torch.arange(count, device=x.device)
    return x.gather(2, step.unsqueeze(1).expand(-1, x.shape[1], -1))


def _batch_norm(layer: Any, spec: Spec, flow: Flow, module: Any = None) -> Flow:
    x, padding = flow.x, flow.padding
    module = layer if module is None else module
    if padding is None or not module.training:
        return flow.to(layer(x.reshape(-1, x.shape[-1])).view(x.shape), is_clean=False)
    if isinstance(padding.lengths, Tensor):
        return flow.to(_masked_batch_norm(module, flow.cleaned().x, padding), is_clean=False)
    # The layer sees the valid steps only, so its statistics are right, and those over processes, too.
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


def _dropout(layer: Layer, spec: Spec, flow: Flow) -> Flow:
    assert isinstance(spec, DropoutSpec)
    return flow.to(layer(flow.x, flow.axis) if spec.locked else layer(flow.x), is_clean=flow.is_clean)


def _activation(layer: Layer, spec: Spec, flow: Flow) -> Flow:
    assert isinstance(spec, ActivationSpec)
    is_clean = flow.is_clean and spec.function in ("relu", "tanh", "gelu", "silu")
    return flow.to(layer(flow.x), is_clean=is_clean)


def _keeping_zeros(layer: Layer, spec: Spec, flow: Flow) -> Flow:
    return flow.to(layer(flow.x), is_clean=flow.is_clean)


def _other(layer: Layer, spec: Spec, flow: Flow) -> Flow:
    return flow.to(layer(flow.x), is_clean=False)


def _model(layer: Layer, spec: Spec, flow: Flow) -> Flow:
    after: Flow = layer(flow)
    return after


_RUN: dict[str, Callable[[Any, Spec, Flow], Flow]] = {
    **dict.fromkeys(("RNN", "GRU", "LSTM"), _recurrent),
    "Embedding": _embedding,
    "Conv1d": _convolution,
    "BatchNorm": _batch_norm,
    "Pool": _pool,
    "Dropout": _dropout,
    "Activation": _activation,
    **dict.fromkeys(("Normalize", "SumDirections"), _keeping_zeros),
    **dict.fromkeys(("Linear", "LayerNorm"), _other),
    **dict.fromkeys(("Sequential", "Residual", "Concat"), _model),
}
"""By the kinds of specs: ``run(layer, spec, flow)``."""

# ---- the modules ---------------------------------------------------------------------------------


class ModelModule(nn.Module):
    """The call of a model, and of a layer that is not recurrent; see `unirnn.contract.models`.

    Attributes
    ----------
    spec
        The spec of the model.
    """

    spec: Any  # a Spec; what the subclasses have would have to be asked for at each use

    def forward(
        self,
        input: Any = None,
        hx: Any = None,
        seq_length: Any = None,
        resets: Any = None,
        return_state: bool = False,
    ) -> Any:
        if isinstance(input, Flow):  # the call of a model within a model
            return self._run(input)
        spec = self.spec
        call = prepare_model(
            spec,
            input,
            hx,
            seq_length,
            resets,
            like=(Tensor, self._dtype(input)),
            read_lengths=read_lengths,
            read_resets=read_resets,
        )
        self._check_steps(call)
        flow = self._run(_entry(spec, call)).cleaned()
        output = call.restore(spec, flow.x)
        return (output, call.restore_states(flow.finals)) if return_state else output

    forward.__doc__ = _models.ModelModule.__call__.__doc__

    def step(self, x: Any, state: Any = None) -> tuple[Tensor, tuple[Any, ...]]:
        call = prepare_model_step(self.spec, x, state, like=(Tensor, self._dtype(x)))
        self._check_steps(call)
        flow = self._run(Flow(call.input, None, None, False, call.states, (), None))
        return call.restore(self.spec, flow.x, is_step=True), call.restore_states(flow.finals)

    step.__doc__ = _models.ModelModule.step.__doc__

    def output_lengths(self, seq_length: Any) -> Any:
        """How many valid steps the output has; see `unirnn.Spec.output_lengths`."""
        return self.spec.output_lengths(seq_length)

    def zero_state(self, batch_size: int | None = None) -> tuple[Any, ...]:
        """The state before the first step of a sequence; see `unirnn.state.zeros`."""
        like = first_tensor(self)
        return tuple(
            join_state([like.new_zeros(shape) for shape in leaf.state_shapes(batch_size).values()])
            for leaf in stateful(self.spec).values()
        )

    def _dtype(self, input: Any) -> torch.dtype | None:
        """The dtype that arrays must have; None for any floating one."""
        own = first_tensor(self)
        # Under autocast the layers cast their inputs. A tensor of another class may become one of another dtype.
        is_free = isinstance(input, Tensor) and native.autocast_is_on(input.device.type)
        return None if is_free or type(own) not in (Tensor, nn.Parameter) else own.dtype

    def _check_steps(self, call: ModelCall) -> None:
        """See `check_steps_of_batch_norms`. A `SyncBatchNorm` needs enough steps in all processes together."""

        def is_training(name: str) -> bool:
            layer = self.get_submodule(name)
            return layer.training and isinstance(layer, nn.BatchNorm1d)

        if not dispatch.is_traced():
            check_steps_of_batch_norms(self.spec, call, is_training)

    def _run(self, flow: Flow) -> Flow:
        raise NotImplementedError


def first_tensor(module: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device of a module: its first parameter, or a buffer."""
    found = _find_tensor(module)
    assert found is not None
    return found


def _find_tensor(module: nn.Module) -> Tensor | None:
    # Each call of a model asks for it, and `parameters` takes longer than a small layer.
    for held in (module._parameters, module._buffers):
        for tensor in held.values():
            if tensor is not None and tensor.is_floating_point():
                return tensor
    for child in module._modules.values():
        found = None if child is None else _find_tensor(child)
        if found is not None:
            return found
    return None


def _entry(spec: Spec, call: ModelCall) -> Flow:
    """What flows into the first layer."""
    x, lengths, sizes = call.input, call.lengths, call.sizes
    if sizes is None:
        last = x.dim() - (1 if spec.takes_tokens else 2)
        return Flow(x, last if last >= 0 else None, None, False, call.states, (), None)
    axis = 1 if is_batch_first(spec) else 0
    resets = call.resets
    if resets is not None and axis == 1:
        resets = resets.T if isinstance(resets, np.ndarray) else resets.t()
    if isinstance(lengths, np.ndarray) and len(lengths) and lengths.min() == sizes.steps:
        lengths = None
    if lengths is None:
        return Flow(x, axis, None, False, call.states, (), resets)
    if isinstance(lengths, Tensor) and torch.compiler.is_compiling() and not dispatch.is_exporting_to_onnx():
        lengths = operators.checked_lengths(lengths, sizes.steps)
    flow = Flow(x, axis, Padding(lengths, sizes.steps, axis), False, call.states, (), resets)
    return flow if _cleans_its_input(spec) else flow.cleaned()


def _cleans_its_input(spec: Spec) -> bool:
    """Whether a recurrent layer comes first, which lets nothing of the padding through."""
    while isinstance(spec, ModelSpec) and spec.kind == "Sequential" and len(spec):
        spec = spec.children[0][1]
    return isinstance(spec, RecurrentSpec)


class Model(ModelModule):
    """A ``Sequential``, ``Residual`` or ``Concat``, with a child for each of its layers, under the layer's name.

    The children are torch's own modules, `Recurrent`, or models.

    Parameters
    ----------
    spec
        The spec of the model.
    device, dtype
        Of the parameters.
    weights
        Their values by name; None: the layers draw them as they do in torch.
    kernel
        Of the recurrent layers: one of `unirnn_torch.dispatch.KERNELS`.

    Raises
    ------
    LimitError
        If a layer has the name of an attribute of ``torch.nn.Module``.

    Examples
    --------
    >>> import torch, unirnn
    >>> model = unirnn.Sequential(
    ...     encoder=unirnn.GRUSpec(3, 4, batch_first=True), pool=unirnn.PoolSpec("mean"), head=unirnn.LinearSpec(4, 2)
    ... )
    >>> net = model.build("torch", seed=0)
    >>> net(torch.ones(5, 7, 3), seq_length=[7, 0, 2, 3, 1]).shape, isinstance(net.head, torch.nn.Linear)
    (torch.Size([5, 2]), True)
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        device: Any = None,
        dtype: torch.dtype | None = None,
        weights: Arrays | None = None,
        kernel: str = "auto",
    ) -> None:
        super().__init__()
        self.spec = spec
        for name, child in spec.children:
            if hasattr(self, name):
                raise LimitError(f"torch: given a layer named {name!r}, which torch.nn.Module has itself; rename it")
            own = None if weights is None else under(weights, name)
            self.add_module(name, _made(child, device=device, dtype=dtype, weights=own, kernel=kernel))
        tie(self, spec)

    def _get_name(self) -> str:
        return str(self.spec.kind)

    def _run(self, flow: Flow) -> Flow:
        children = self._children()
        if self.spec.kind == "Sequential":
            for layer, spec in children:
                flow = _RUN[spec.kind](layer, spec, flow)
            return flow
        if self.spec.kind == "Residual":
            ((layer, spec),) = children
            after = _RUN[spec.kind](layer, spec, flow)
            return after.to(flow.x + after.x, is_clean=flow.is_clean and after.is_clean)
        outputs, is_clean, after = [], True, flow
        for layer, spec in children:
            after = _RUN[spec.kind](layer, spec, flow._replace(states=after.states, finals=after.finals))
            outputs.append(after.x)
            is_clean = is_clean and after.is_clean
        return after.to(torch.cat(outputs, dim=-1), is_clean=is_clean)

    def _children(self) -> Iterator[tuple[Any, Spec]]:
        for name, spec in self.spec.children:
            yield self._modules[name], spec


class LayerModule(ModelModule):
    """What a layer by itself has besides being a native one: the call of a model."""

    def _run(self, flow: Flow) -> Flow:
        layer: Layer = super(ModelModule, self).forward
        if isinstance(self, nn.BatchNorm1d):  # a graph can't ask a method what it is bound to
            return _batch_norm(layer, self.spec, flow, module=self)
        return _RUN[self.spec.kind](layer, self.spec, flow)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _without_attributes, (self.spec,), self.__dict__


@cache
def _alone(kind: Any) -> Any:
    """The class of a layer that is built by itself: a subclass of the native one."""
    return type(kind.__name__, (LayerModule, kind), {"__doc__": kind.__doc__, "__module__": __name__})


@cache
def _undrawn(kind: Any) -> Any:
    """A subclass that draws no weights, so that the global generator does not move.

    `torch.nn.utils.skip_init` does the same by way of the device ``meta``, and imports for more than a second for that.
    """
    return type(kind.__name__, (kind,), {"reset_parameters": lambda self: None})


def _without_attributes(spec: Spec) -> LayerModule:
    kind = _alone(_described(spec)[0])
    made: LayerModule = kind.__new__(kind)
    return made


# ---- building, and looking at what was built -----------------------------------------------------


def build(spec: Spec, *, device: Any, dtype: torch.dtype, weights: Arrays | None, kernel: str) -> Any:
    """Build a model or a layer.

    Parameters
    ----------
    spec
        What to build.
    device, dtype
        Of the parameters.
    weights
        Their values by name; None: the layers draw them as they do in torch.
    kernel
        Of the recurrent layers: one of `unirnn_torch.dispatch.KERNELS`.

    Returns
    -------
    Recurrent or ModelModule
        A recurrent layer, or anything else.
    """
    made = _made(spec, device=device, dtype=dtype, weights=weights, kernel=kernel, alone=True)
    return with_tensor(made, device, dtype)


def with_tensor(module: nn.Module, device: Any, dtype: torch.dtype) -> nn.Module:
    """The same module; one without weights gets a buffer, by which it knows its dtype and its device."""
    if _find_tensor(module) is None:
        module.register_buffer("_like", torch.empty(0, device=device, dtype=dtype), persistent=False)
    return module


def _made(
    spec: Spec, *, device: Any, dtype: torch.dtype | None, weights: Arrays | None, kernel: str, alone: bool = False
) -> Any:
    if isinstance(spec, RecurrentSpec):
        return Recurrent(spec, device=device, dtype=dtype, weights=weights, kernel=kernel)
    if isinstance(spec, ModelSpec):
        return Model(spec, device=device, dtype=dtype, weights=weights, kernel=kernel)
    kind, arguments = _described(spec)
    cls: Any = _alone(kind) if alone else kind
    draws = issubclass(kind, (nn.Embedding, nn.Linear, nn.Conv1d))
    if draws or issubclass(kind, (nn.LayerNorm, nn.BatchNorm1d)):
        arguments |= {"device": device, "dtype": dtype}
    if draws and weights is not None:
        made = _undrawn(cls)(**arguments)
        made.__class__ = cls
    else:
        made = cls(**arguments)
    if alone:
        made.spec = spec
    with torch.no_grad():
        for name, array in (weights or {}).items():
            getattr(made, name).copy_(torch.tensor(array, device="cpu"))
    return made


def under(weights: Arrays, name: str) -> dict[str, NDArray[Any]]:
    """The weights of a layer, without its name."""
    prefix = f"{name}."
    return {weight[len(prefix) :]: array for weight, array in weights.items() if weight.startswith(prefix)}


def tie(module: nn.Module, spec: ModelSpec) -> None:
    """Make one parameter of those weights that the spec ties."""
    for tied, other in spec.tied().items():
        holder, _, name = tied.rpartition(".")
        setattr(attrgetter(holder)(module), name, attrgetter(other)(module))


def check_layers(module: nn.Module) -> None:
    """Refuse a model whose layers are no longer those of its spec.

    Parameters
    ----------
    module
        A `ModelModule`, or a `unirnn_torch.definitions.DefinitionModule`.

    Raises
    ------
    SpecError
        If a layer is of another class, has other arguments, or weights are no longer tied.
    """
    spec: Any = module.spec
    if isinstance(module, ModelModule):
        check_computes_as(ModelModule, module, "forward")
    if isinstance(module, Model):
        check_computes_as(Model, module, "_run")
    if not isinstance(spec, ModelSpec):
        return
    for name, child in spec.children:
        layer = module._modules.get(name)
        if isinstance(child, ModelSpec) and layer is not None and getattr(layer, "spec", None) == child:
            check_layers(layer)
        elif not _is_layer(layer, child):
            raise SpecError(f"module: its layer {name} is {layer!r}, expected that of {child!r}")
    for tied, other in spec.tied().items():
        if attrgetter(tied)(module) is not attrgetter(other)(module):
            raise SpecError(f"module: its {tied} and {other} are no longer one tensor, as its spec says; tie them")


def _is_layer(layer: nn.Module | None, spec: Spec) -> bool:
    """Whether a module is what is made of a layer's spec, and computes as that."""
    if isinstance(spec, ModelSpec):
        return False
    kind: Any = Recurrent
    if isinstance(spec, RecurrentSpec):
        is_same = isinstance(layer, Recurrent) and layer.spec == spec
    else:
        kind, arguments = _described(spec)
        if kind is nn.BatchNorm1d and isinstance(layer, nn.SyncBatchNorm):
            kind = nn.SyncBatchNorm
        computed = {name: value for name, value in arguments.items() if name not in spec._not_computed}
        is_same = isinstance(layer, kind) and all(_has(layer, *item) for item in computed.items())
    if is_same:
        check_computes_as(ModelModule if isinstance(layer, LayerModule) else kind, layer, "forward")
    return is_same


def _has(layer: Any, argument: str, value: Any) -> bool:
    """Whether a layer was made with an argument."""
    own = getattr(layer, argument)
    if argument == "bias":
        return (own is not None) is bool(value)
    return bool(own == ((value,) if isinstance(own, tuple) else value))
