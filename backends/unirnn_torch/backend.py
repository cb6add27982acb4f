"""The ``torch`` backend's own answers to `unirnn.contract.backend.Backend`."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from numpy.typing import NDArray

from unirnn import Device, GRUSpec, Limit, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.contract.backend import Arrays, Backend, check_computes_as, leaves_by_path
from unirnn.contract.limits import Kernel
from unirnn.devices import DTYPES, short_name
from unirnn.errors import ArgumentError, DeviceError, DTypeError
from unirnn.snapshots import layouts
from unirnn.specs import Conv1dSpec, Model, Spec
from unirnn.specs import arguments as names

from . import definitions, dispatch, models
from .checkpoints import encode_checkpoint
from .definitions import DefinitionModule
from .dispatch import DEVICE_TYPES
from .models import ModelModule
from .module import Recurrent

__all__ = ["TorchBackend"]

_NATIVE: dict[type[RecurrentSpec], type[torch.nn.RNNBase]] = {
    RNNSpec: torch.nn.RNN,
    GRUSpec: torch.nn.GRU,
    LSTMSpec: torch.nn.LSTM,
}
"""torch's own layers."""
_CELLS: dict[type[RecurrentSpec], type[torch.nn.RNNCellBase]] = {
    RNNSpec: torch.nn.RNNCell,
    GRUSpec: torch.nn.GRUCell,
    LSTMSpec: torch.nn.LSTMCell,
}
"""torch's own cells, which are read as layers of one step."""

Array = NDArray[Any]


class TorchBackend(Backend):
    """Builds `Recurrent` layers, models of them (`ModelModule`), and models from code (`DefinitionModule`)."""

    name = "torch"
    support = dispatch.KERNELS["auto"]
    options = ("kernel",)

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def devices(self) -> tuple[Device, ...]:
        present = [Device("cpu"), *(Device("gpu", n) for n in range(torch.cuda.device_count()))]
        npu = getattr(torch, "npu", None)
        if npu is not None:
            present += [Device("ascend", n) for n in range(npu.device_count())]
        return tuple(present)

    def default_device(self) -> Device:
        default = torch.get_default_device()
        for kind, type_ in DEVICE_TYPES.items():
            if type_ == default.type:
                return Device(kind, default.index)
        raise DeviceError(f"device: torch's default is {default.type!r}, which unirnn does not know; give device=")

    def limits(self, spec: Spec, device: Device, dtype: str) -> Iterable[Limit]:
        if device.kind == "ascend":
            yield Limit("it runs through torch_npu, with which unirnn has not been tested", refuses=False)
        if device.kind == "gpu" and dtype == "float32" and isinstance(spec, (RecurrentSpec, Conv1dSpec)):
            yield Limit(
                "by default cuDNN computes float32 in TensorFloat-32 where the GPU has it, and then agrees with a CPU "
                "only to 1e-3; with torch.backends.cudnn.allow_tf32 = False it agrees to 1e-5",
                refuses=False,
            )
        if not isinstance(spec, RecurrentSpec):
            return
        if device.kind == "gpu" and isinstance(spec, RNNSpec) and spec.nonlinearity == "relu":
            yield Limit("cuDNN's relu has the gradient 1 at exactly 0, where it is 0 on other devices", refuses=False)
        reason = layouts.SUPPORT["torch"].unsupported_reason(spec)
        if reason is not None:
            if dispatch.unsupported_reason("compiled", spec, device.kind, dtype) is None:
                instead = "the compiled kernels compute it"
            elif dispatch.has_native(spec):
                instead = "torch's own layer computes it over the steps in the opposite order"
            else:
                instead = "the reference computes it, step by step"
            yield Limit(
                f"{reason}, so {instead}; torch.nn.{spec.kind} loads its state_dict, but computes something else",
                refuses=False,
            )
            return
        faster = ("compiled", "native operator")
        if all(dispatch.unsupported_reason(kernel, spec, device.kind, dtype) is not None for kernel in faster):
            yield Limit("a call with resets is computed by the reference, step by step", refuses=False)

    def kernels(self, spec: RecurrentSpec, device: Device, dtype: str) -> Iterable[Kernel]:
        return dispatch.describe(spec, device.kind, dtype)

    def build(
        self,
        spec: Spec,
        *,
        device: Device,
        dtype: str,
        weights: Arrays | None,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> torch.nn.Module:
        kernel = options.get("kernel", "auto")
        dispatch.check_build(kernel, spec, device.kind, dtype)
        kind: torch.dtype = getattr(torch, dtype)
        name = DEVICE_TYPES[device.kind] + ("" if device.index is None else f":{device.index}")
        make: Any = definitions.build if isinstance(spec, Model) else models.build
        made: torch.nn.Module = make(spec, device=name, dtype=kind, weights=weights, kernel=kernel)
        return made

    def read(self, module: Any) -> tuple[Spec, dict[str, Array]] | None:
        spec = _spec(module)
        if spec is None:
            return None
        if isinstance(spec, RecurrentSpec):
            natives = _CELLS if isinstance(module, torch.nn.RNNCellBase) else _NATIVE
            kind = Recurrent if isinstance(module, Recurrent) else natives[type(spec)]
            check_computes_as(kind, module, "__call__", "forward")
        else:
            models.check_layers(module)
        # As attributes, since a parametrization renames what is in the state_dict.
        weights = {name: attrgetter(_held_as(name, module))(module) for name in spec.weight_shapes()}
        for name, weight in weights.items():
            name = _held_as(name, module)
            _check_readable(name, weight)
            _check_current(name, weight, module)
        return spec, {name: self.to_numpy(weight) for name, weight in weights.items()}

    def describe(self, module: Any) -> tuple[Spec, str] | None:
        spec = _spec(module)
        if spec is None:
            return None
        dtype = short_name(models.first_tensor(module).dtype)
        return spec, "float32" if dtype == "bfloat16" else dtype

    def write(self, module: Any, weights: Arrays) -> None:
        tensors = {_held_as(name, module): torch.tensor(array, device="cpu") for name, array in weights.items()}
        owned = {**dict(module.named_parameters(remove_duplicate=False)), **dict(module.named_buffers())}
        for name, tensor in tensors.items():
            weight = owned.get(name)
            if weight is None:
                raise ArgumentError(f"module: its {name} is computed by a parametrization; remove that first")
            if weight.dtype == torch.bfloat16 and not torch.equal(tensor.to(torch.bfloat16).to(tensor.dtype), tensor):
                raise DTypeError(f"module: it is of bfloat16, which can't hold {name} without rounding")
        with torch.no_grad():
            for name, tensor in tensors.items():
                owned[name].copy_(tensor)

    def all_weights(self, module: Any) -> dict[tuple[str, ...], Array] | None:
        if not isinstance(module, torch.nn.Module):
            return None
        names: dict[int, list[str]] = {}
        weights = _checkpointed(module)
        for name, weight in weights.items():
            _check_readable(name, weight)
            names.setdefault(id(weight), []).append(name)
        return {(*own,): self.to_numpy(weights[own[0]]) for own in names.values()}

    def known_layers(self, module: Any) -> dict[str, Spec]:
        found = {path: _spec(own) for path, own in module.named_modules(remove_duplicate=False)}
        return leaves_by_path(found)

    def write_some(self, module: Any, weights: Arrays) -> None:
        owned = _checkpointed(module)
        with torch.no_grad():
            for name, array in weights.items():
                owned[name].copy_(torch.tensor(array, device="cpu"))

    def encode_file(self, spec: Spec, weights: Arrays, metadata: Mapping[str, str]) -> bytes:
        return encode_checkpoint(spec, weights, metadata)

    def from_numpy(self, array: Array, module: Any) -> torch.Tensor:
        weight = None if module is None else models.find_tensor(module)
        if weight is None:
            return torch.tensor(array)
        # NumPy has no bfloat16, so for such a module every float is meant to be one.
        dtype = weight.dtype if weight.dtype == torch.bfloat16 and array.dtype.kind == "f" else None
        return torch.tensor(array, device=weight.device, dtype=dtype)

    def to_numpy(self, array: Any) -> Array:
        tensor = array.detach().cpu()
        # NumPy has no bfloat16; float32 holds all of its values.
        result: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return result

    def detach(self, array: Any) -> Any | None:
        return array.detach() if isinstance(array, torch.Tensor) else None

    def like(self, array: Array, other: Any) -> Any | None:
        return torch.as_tensor(array, device=other.device) if isinstance(other, torch.Tensor) else None

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], module: Any = None
    ) -> tuple[list[Array | None], dict[str, Array]]:
        # Copies, so that a gradient of the caller's own tensors is neither asked for nor changed.
        inputs = [array.detach().clone() for array in arrays]
        floats = [tensor.requires_grad_() for tensor in inputs if tensor.is_floating_point()]
        parameters = {} if module is None else dict(module.named_parameters())
        weights = {name: parameter for name, parameter in parameters.items() if parameter.requires_grad}
        with torch.enable_grad():
            value = function(*inputs)
        wanted = [*floats, *weights.values()]
        if isinstance(value, torch.Tensor) and value.requires_grad and wanted:
            found = iter(torch.autograd.grad(value, wanted, materialize_grads=True))
        else:  # it depends on nothing that has a gradient
            found = map(torch.zeros_like, wanted)
        by_input = [self.to_numpy(next(found)) if tensor.is_floating_point() else None for tensor in inputs]
        return by_input, {name: self.to_numpy(gradient) for name, gradient in zip(weights, found, strict=True)}

    @contextmanager
    def restored(self, module: Any) -> Iterator[Any]:
        modes = [(layer, layer.training) for layer in module.modules()]
        weights = [(weight, weight.requires_grad, weight.detach().clone()) for weight in module.parameters()]
        buffers = [
            (layer, name, buffer, buffer.clone())
            for layer in module.modules()
            for name, buffer in layer.named_buffers(recurse=False)
        ]
        try:
            yield module
        finally:
            for weight, is_trained, before in weights:
                weight.data.copy_(before)
                weight.requires_grad_(is_trained)
            for layer, name, buffer, before in buffers:
                buffer.data.copy_(before)
                setattr(layer, name, buffer)  # another one may have taken its place
            for layer, mode in modes:
                layer.training = mode

    def hookable_layers(self, module: Any) -> Iterable[tuple[str, torch.nn.Module]]:
        # A scripted module takes no hooks.
        return [row for row in module.named_modules() if not isinstance(row[1], torch.jit.ScriptModule)]

    def random_seed(self, seed: int) -> None:
        torch.manual_seed(seed)


def _checkpointed(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The floating parameters and buffers of a module, by the names of its state dict."""
    owned = module.state_dict(keep_vars=True).items()
    return {name: t for name, t in owned if isinstance(t, torch.Tensor) and short_name(t.dtype) in DTYPES}


def _check_readable(name: str, weight: torch.Tensor) -> None:
    """Refuse a weight that has no values, or only a part of them."""
    if hasattr(weight, "full_tensor"):  # a DTensor: importing it takes a second
        raise ArgumentError(
            "module: its weights are sharded over processes, expected whole ones; gather them in all processes with "
            "torch.distributed.checkpoint.state_dict.get_model_state_dict(..., full_state_dict=True)"
        )
    if weight.is_meta:
        raise ArgumentError(f"module: its {name} is on the device 'meta' and has no values; load or draw it first")
    if torch.nn.parameter.is_lazy(weight):
        raise ArgumentError(f"module: its {name} has no shape yet; call the module once first")


_COMPUTED = {
    "g": "torch.nn.utils.weight_norm last computed, maybe out of date; call remove_weight_norm, or use "
    "torch.nn.utils.parametrizations.weight_norm",
    "orig": "torch.nn.utils.prune or spectral_norm last computed, maybe out of date; call prune.remove or "
    "remove_spectral_norm",
    "raw": "the last dropout left of its raw weight; take a snapshot of a plain layer that has the raw weight, or of "
    "the state dict, in which it is found",
}
"""What a weight is, by the ends of the names of the parameters from which some hooks compute it at each call."""


def _check_current(name: str, weight: torch.Tensor, module: torch.nn.Module) -> None:
    """Refuse a weight that is computed anew at each call, since its present value may be out of date."""
    layer, _, own = name.rpartition(".")
    owner = module.get_submodule(layer)
    for end, words in _COMPUTED.items():
        if f"{own}_{end}" in owner._parameters:
            raise ArgumentError(f"module: its {name} is what {words}")
    if own in owner._parameters and not isinstance(weight, torch.nn.Parameter):
        raise ArgumentError(
            f"module: its {name} is no torch.nn.Parameter, so it may have been computed for a call from another "
            "weight, as by fastai's WeightDropout; read the state dict of the whole model"
        )


def _spec(module: Any) -> Spec | None:
    """The spec of a module of ours, or of torch's own layers and cells, by their constructor's arguments."""
    if isinstance(module, (DefinitionModule, ModelModule, Recurrent)):
        spec: Spec = module.spec
        return spec
    for kind, native in _NATIVE.items():
        if isinstance(module, native):
            rows = names.arguments(kind.kind, "constructor")
            return kind.from_kwargs("torch", {row.torch: getattr(module, row.torch) for row in rows if row.torch})
    for kind, cell in _CELLS.items():
        if isinstance(module, cell):
            own: dict[str, Any] = {"nonlinearity": module.nonlinearity} if kind is RNNSpec else {}
            return kind(module.input_size, module.hidden_size, bias=module.bias, **own)
    return None


def _held_as(weight: str, module: Any) -> str:
    """The attribute of a module that holds a weight; a cell's has no number of a layer."""
    return weight.removesuffix("_l0") if isinstance(module, torch.nn.RNNCellBase) else weight
