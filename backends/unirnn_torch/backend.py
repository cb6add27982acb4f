"""The ``torch`` backend's own answers to `unirnn.backend.Backend`."""

from collections.abc import Iterable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from unirnn import Device, Limit, Spec
from unirnn.backend import Arrays
from unirnn.call import join_state, state_parts
from unirnn.errors import ArgumentError, DeviceError

from .module import Recurrent

__all__ = ["TorchBackend"]

Array = NDArray[Any]

# unirnn's kinds of device by torch's names: an Ascend is an 'npu' of the package torch_npu.
_TYPES: dict[Literal["cpu", "gpu", "ascend"], str] = {"cpu": "cpu", "gpu": "cuda", "ascend": "npu"}


class TorchBackend:
    """Builds `Recurrent`."""

    name = "torch"
    dtypes = ("float16", "bfloat16", "float32", "float64")
    differentiable = True

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
        for kind, type_ in _TYPES.items():
            if type_ == default.type:
                return Device(kind, default.index)
        raise DeviceError(f"device: torch's default is {default.type!r}, which unirnn does not know; give device=")

    def limits(self, spec: Spec, device: Device, dtype: str) -> Iterable[Limit]:
        if device.kind == "ascend":
            yield Limit("through torch_npu, which no test here has run: what it lacks, it says itself", refuses=False)

    def build(self, spec: Spec, *, device: Device, dtype: str, weights: Arrays | None, seed: int | None) -> Recurrent:
        kind: torch.dtype = getattr(torch, dtype)
        name = _TYPES[device.kind] + ("" if device.index is None else f":{device.index}")
        return Recurrent(spec, device=name, dtype=kind, weights=weights)

    def read(self, module: Any) -> tuple[Spec, dict[str, Array]] | None:
        if not isinstance(module, Recurrent):
            return None
        # By attribute, since a parametrization renames what is in the state_dict.
        weights = {name: getattr(module, name) for name in module.spec.weight_shapes()}
        if any(hasattr(weight, "full_tensor") for weight in weights.values()):  # a DTensor: importing it takes a second
            raise ArgumentError(
                "module: given one whose weights are sharded over processes, expected whole ones; gather them in all "
                "processes, by torch.distributed.checkpoint.state_dict.get_model_state_dict(..., full_state_dict=True)"
            )
        return module.spec, {name: self.to_numpy(weight) for name, weight in weights.items()}

    def from_numpy(self, array: Array, module: Any) -> torch.Tensor:
        weight = module.weight_ih_l0
        # NumPy has no bfloat16: floats are meant to be of the module's dtype there.
        dtype = weight.dtype if weight.dtype == torch.bfloat16 and array.dtype.kind == "f" else None
        return torch.tensor(array, device=weight.device, dtype=dtype)

    def to_numpy(self, array: Any) -> Array:
        tensor = array.detach().cpu()
        # NumPy has no bfloat16; float32 holds each of its values.
        result: Array = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        return result

    def detach(self, array: Any) -> Any | None:
        return array.detach() if isinstance(array, torch.Tensor) else None

    def gradients(
        self,
        module: Any,
        input: Array,
        hx: tuple[Array, ...],
        seq_length: NDArray[np.int64] | None,
        d_output: Array,
        d_state: tuple[Array, ...],
    ) -> dict[str, Array]:
        arrays = [self.from_numpy(array, module).requires_grad_() for array in (input, *hx)]
        output, final = module(arrays[0], join_state(arrays[1:]), seq_length)
        results = (output, *(state_parts(module.spec, final) or ()))
        cotangents = [self.from_numpy(d, module) for d in (d_output, *d_state)]
        parameters = dict(module.named_parameters())
        gradients = torch.autograd.grad(results, [*arrays, *parameters.values()], cotangents)
        names = ["input", *(f"{state}_0" for state in module.spec.states), *parameters]
        return {name: self.to_numpy(gradient) for name, gradient in zip(names, gradients, strict=True)}
