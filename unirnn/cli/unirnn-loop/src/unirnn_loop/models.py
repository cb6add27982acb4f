"""Models and non-recurrent layers."""

from typing import Any

import array_api_compat.torch as xp
import torch

from unirnn import Spec, reference
from unirnn.contract.models import (
    ModelCall,
    ModelModule,
    State,
    check_steps_of_batch_norms,
    check_tokens,
    is_batch_first,
)


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
        x = call.input
        if call.sizes is None:  # no layer needs an axis T, so x may have any shape; its rows become a batch
            shape = x.shape if self.spec.takes_tokens else x.shape[:-1]
            y, _ = self._reference(x.reshape(1, -1, *x.shape[len(shape) :]), call)
            return y.reshape(*shape, y.shape[-1]), ()
        if not is_batch_first(self.spec):
            return self._reference(x, call)
        y, states = self._reference(x.swapaxes(0, 1), call)
        return y if self.spec.ends_steps else y.swapaxes(0, 1), states

    def _run_step(self, call: ModelCall) -> tuple[torch.Tensor, tuple[State, ...]]:
        y, states = self._reference(call.input[None], call)
        return y[0], states

    def _reference(self, x: torch.Tensor, call: ModelCall) -> tuple[torch.Tensor, tuple[State, ...]]:
        lengths, resets = (None if array is None else torch.tensor(array) for array in (call.lengths, call.resets))
        if self.spec.takes_tokens:
            valid = None if lengths is None else torch.arange(len(x))[:, None] < lengths
            check_tokens(self.spec, x.numpy(), None if valid is None else valid.numpy())
        training = None
        if self.training:
            check_steps_of_batch_norms(self.spec, call)
            training = reference.Training(self._keep)
        arguments = self.spec, self.weights, x, call.states, lengths, resets, training
        y, states = reference.model(xp, *arguments, detach=torch.Tensor.detach)
        if training is not None:
            self.weights |= {name: array.detach() for name, array in training.statistics.items()}
        return y, states

    def _keep(self, shape: tuple[int, ...], p: float) -> torch.Tensor:
        return (torch.rand(shape, generator=self._generator, dtype=self._dtype) >= p) / (1 - p)
