"""Models, and layers that are not recurrent, as modules of torch.

The layers are torch's own, under the names that the spec gives them, so the ``state_dict`` of a model that was written
by hand can be loaded here. `Model` calls them, and does between them what they can't know: it keeps padding out, tells
each layer the lengths, and hands the states through; see `unirnn_torch.model_layers`.
"""

from collections.abc import Iterator
from functools import cache
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unirnn.contract import models as _models
from unirnn.contract.backend import Arrays, check_computes_as
from unirnn.contract.call import join_state
from unirnn.contract.models import (
    ModelCall,
    check_steps_of_batch_norms,
    is_batch_first,
    prepare_model,
    prepare_model_step,
    starts_recurrent,
)
from unirnn.errors import LimitError, SpecError
from unirnn.specs import ModelSpec, RecurrentSpec, Spec

from . import dispatch, native, operators
from .model_layers import RUN, Flow, Layer, Padding, batch_norm, described
from .module import Recurrent, read_lengths, read_resets

__all__ = [
    "Model",
    "ModelModule",
    "build",
    "check_layers",
    "find_tensor",
    "first_tensor",
    "tie",
    "under",
    "with_tensor",
]


class ModelModule(nn.Module):
    """The call of a model, and of a layer that is not recurrent; see `unirnn.contract.models`.

    Attributes
    ----------
    spec
        The spec of the model.
    """

    spec: Any  # a Spec, typed as Any since each subclass has its own kind
    __prepare_scriptable__ = dispatch.refuse_script

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
        return call.restore(self.spec, flow.x), call.restore_states(flow.finals)

    step.__doc__ = _models.ModelModule.step.__doc__

    def output_lengths(self, seq_length: Any) -> Any:
        """How many valid steps the output has; see `unirnn.Spec.output_lengths`."""
        return self.spec.output_lengths(seq_length)

    def zero_state(self, batch_size: int | None = None) -> tuple[Any, ...]:
        """The state before the first step of a sequence; see `unirnn.state.zeros`."""
        like = first_tensor(self)
        return tuple(
            join_state([like.new_zeros(shape) for shape in leaf.state_shapes(batch_size).values()])
            for leaf in self.spec.stateful.values()
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

        if not dispatch.hides_values():
            check_steps_of_batch_norms(self.spec, call, is_training)

    def _run(self, flow: Flow) -> Flow:
        raise NotImplementedError


def first_tensor(module: nn.Module) -> Tensor:
    """A tensor of the dtype and on the device of a module: its first parameter, or a buffer."""
    found = find_tensor(module)
    assert found is not None
    return found


def find_tensor(module: nn.Module) -> Tensor | None:
    """The first floating parameter or buffer of a module, if it has one."""
    # Each call of a model asks for it, and `parameters` takes longer than a small layer.
    for held in (module._parameters, module._buffers):
        for tensor in held.values():
            if tensor is not None and tensor.is_floating_point():
                return tensor
    for child in module._modules.values():
        found = None if child is None else find_tensor(child)
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
    return flow if starts_recurrent(spec) else flow.cleaned()


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
                flow = RUN[spec.kind](layer, spec, flow)
            return flow
        if self.spec.kind == "Residual":
            ((layer, spec),) = children
            after = RUN[spec.kind](layer, spec, flow)
            return after.to(flow.x + after.x, is_clean=flow.is_clean and after.is_clean)
        outputs, is_clean, after = [], True, flow
        for layer, spec in children:
            after = RUN[spec.kind](layer, spec, flow._replace(states=after.states, finals=after.finals))
            outputs.append(after.x)
            is_clean = is_clean and after.is_clean
        return after.to(torch.cat(outputs, dim=-1), is_clean=is_clean)

    def _children(self) -> Iterator[tuple[Any, Spec]]:
        for name, spec in self.spec.children:
            yield self._modules[name], spec


class LayerModule(ModelModule):
    """A single layer with the call of a model; its other base class is the native layer."""

    def _run(self, flow: Flow) -> Flow:
        layer: Layer = super(ModelModule, self).forward
        if isinstance(self, nn.BatchNorm1d):  # a graph can't ask a method what it is bound to
            return batch_norm(layer, self.spec, flow, module=self)
        return RUN[self.spec.kind](layer, self.spec, flow)

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
    kind = _alone(described(spec)[0])
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
    if find_tensor(module) is None:
        module.register_buffer("_like", torch.empty(0, device=device, dtype=dtype), persistent=False)
    return module


def _made(
    spec: Spec, *, device: Any, dtype: torch.dtype | None, weights: Arrays | None, kernel: str, alone: bool = False
) -> Any:
    if isinstance(spec, RecurrentSpec):
        return Recurrent(spec, device=device, dtype=dtype, weights=weights, kernel=kernel)
    if isinstance(spec, ModelSpec):
        return Model(spec, device=device, dtype=dtype, weights=weights, kernel=kernel)
    kind, arguments = described(spec)
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
    """Refuse a model whose layers no longer match its spec.

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
        check_computes_as(ModelModule, module, "__call__", "forward")
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
        kind, arguments = described(spec)
        if kind is nn.BatchNorm1d and isinstance(layer, nn.SyncBatchNorm):
            kind = nn.SyncBatchNorm
        computed = {name: value for name, value in arguments.items() if name not in spec._not_computed}
        is_same = isinstance(layer, kind) and all(_has(layer, *item) for item in computed.items())
    if is_same:
        check_computes_as(ModelModule if isinstance(layer, LayerModule) else kind, layer, "__call__", "forward")
    return is_same


def _has(layer: Any, argument: str, value: Any) -> bool:
    """Whether a layer was made with an argument."""
    own = getattr(layer, argument)
    if argument == "bias":
        return (own is not None) is bool(value)
    return bool(own == ((value,) if isinstance(own, tuple) else value))
