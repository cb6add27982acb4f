"""The backend: it builds modules, and converts arrays between NumPy and the framework."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from unirnn import Device, RecurrentSpec, Spec
from unirnn.contract.backend import Backend
from unirnn.contract.limits import ALL_KINDS, Support
from unirnn.contract.weights import draw_globally

from .models import LoopModel
from .module import LoopModule

Array = NDArray[Any]


class LoopBackend(Backend):
    """The backend ``loop``."""

    name = "loop"
    support = Support(  # what the framework can compute; unirnn refuses everything else, and says why
        "loop",
        kinds=tuple(kind for kind in ALL_KINDS if kind != "Model"),
        devices=("cpu",),
        dtypes=("float32", "float64"),
    )

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def build(
        self,
        spec: Spec,
        *,
        device: Device,
        dtype: str,
        weights: Mapping[str, Array] | None,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> LoopModule | LoopModel:
        drawn = draw_globally(spec) if weights is None else weights
        kind = getattr(torch, dtype)
        arrays = {
            name: torch.tensor(array, dtype=kind, requires_grad=name not in spec.buffers)
            for name, array in drawn.items()
        }
        generator = torch.Generator().manual_seed(torch.initial_seed() if seed is None else seed)
        if isinstance(spec, RecurrentSpec):
            return LoopModule(spec, arrays, generator)
        return LoopModel(spec, arrays, kind, generator)

    def read(self, module: Any) -> tuple[Spec, dict[str, Array]] | None:
        if not isinstance(module, (LoopModule, LoopModel)):
            return None
        return module.spec, {name: self.to_numpy(array) for name, array in module.weights.items()}

    def write(self, module: LoopModule | LoopModel, weights: Mapping[str, Array]) -> None:
        with torch.no_grad():  # if arrays can't be changed in place, replace those in `module.weights`
            for name, array in module.weights.items():
                array.copy_(torch.tensor(weights[name]))

    def from_numpy(self, array: Array, module: LoopModule | LoopModel) -> torch.Tensor:
        return torch.tensor(array)

    def to_numpy(self, array: torch.Tensor) -> Array:
        return array.detach().numpy()

    def detach(self, array: Any) -> torch.Tensor | None:
        return array.detach() if isinstance(array, torch.Tensor) else None

    def like(self, array: Array, other: Any) -> torch.Tensor | None:
        return torch.as_tensor(array, device=other.device) if isinstance(other, torch.Tensor) else None

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], module: LoopModule | LoopModel | None = None
    ) -> tuple[list[Array | None], dict[str, Array]]:
        inputs = [array.detach().clone() for array in arrays]
        floats = [array.requires_grad_() for array in inputs if array.is_floating_point()]
        weights = {} if module is None else module.weights
        trained = {name: array for name, array in weights.items() if array.requires_grad}
        found = torch.autograd.grad(function(*inputs), [*floats, *trained.values()], materialize_grads=True)
        gradients = iter(map(self.to_numpy, found))
        by_input = [next(gradients) if array.is_floating_point() else None for array in inputs]
        return by_input, dict(zip(trained, gradients, strict=True))
