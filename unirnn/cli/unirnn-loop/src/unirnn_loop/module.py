"""Recurrent layers."""

from typing import Any

import array_api_compat.torch as xp  # any namespace that follows the array API standard will do
import torch
from numpy.typing import NDArray

from unirnn import RecurrentSpec, reference
from unirnn.contract.call import Call
from unirnn.contract.module import Module


class LoopModule(Module):
    """A stack of recurrent layers."""

    def __init__(self, spec: RecurrentSpec, weights: dict[str, torch.Tensor], generator: torch.Generator) -> None:
        super().__init__(spec)
        self.weights = weights
        self._generator = generator

    def _like(self) -> tuple[type[Any], Any]:
        return torch.Tensor, self.weights["weight_ih_l0"].dtype

    def _from_numpy(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.tensor(array)

    def _run(self, call: Call) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        dropout = self._dropout if self.training and self.spec.dropout else None
        return reference.recurrent(xp, self.spec, self.weights, call.batch, dropout=dropout)

    def _dropout(self, x: torch.Tensor) -> torch.Tensor:
        kept = torch.rand(x.shape, generator=self._generator) >= self.spec.dropout
        return torch.where(kept, x / (1 - self.spec.dropout), 0)
