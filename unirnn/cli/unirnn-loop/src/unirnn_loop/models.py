"""Models and non-recurrent layers."""

from typing import Any

import array_api_compat.torch as xp
import torch

from unirnn import Spec, reference
from unirnn.contract.models import ModelCall, ModelModule, State, check_steps_of_batch_norms, clean_tokens


class LoopModel(ModelModule):
    """A model, or a non-recurrent layer."""

    def __init__(
        self, spec: Spec, weights: dict[str, torch.Tensor], dtype: torch.dtype, generator: torch.Generator
    ) -> None:
        super().__init__(spec)
        self.weights = weights
        self._dtype = dtype
        self._generator = generator

    def _like(self) -> tuple[type[Any], Any]:
        return torch.Tensor, self._dtype

    def _run(self, call: ModelCall) -> tuple[torch.Tensor, tuple[State, ...]]:
        training = None
        if self.training:
            check_steps_of_batch_norms(self.spec, call)
            training = reference.Training(self._keep)
        if self.spec.takes_tokens:
            call = call._replace(input=torch.tensor(clean_tokens(self.spec, call, call.input.numpy())))
        lengths, resets = (None if array is None else torch.tensor(array) for array in (call.lengths, call.resets))
        call = call._replace(lengths=lengths, resets=resets)
        y, states = reference.model(xp, self.spec, self.weights, call, training=training, detach=torch.Tensor.detach)
        if training is not None:
            self.weights |= {name: array.detach() for name, array in training.statistics.items()}
        return y, states

    def _keep(self, shape: tuple[int, ...], p: float) -> torch.Tensor:
        return (torch.rand(shape, generator=self._generator, dtype=self._dtype) >= p) / (1 - p)
