"""The module that the ``array_api`` backend builds."""

from collections.abc import Mapping
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from unirnn import RecurrentSpec, reference
from unirnn.contract.call import Call
from unirnn.contract.module import Module

__all__ = ["ArrayModule"]


class ArrayModule(Module):
    """A stack of recurrent layers over the arrays of one namespace.

    Whatever autodiff the namespace has goes through it.

    Parameters
    ----------
    spec
        The spec of the layers.
    weights
        Arrays of the namespace, by the names of `unirnn.Spec.weight_shapes`.
    generator
        Draws dropout while training.

    Attributes
    ----------
    spec
        The spec of the layers.
    weights
        Its weights by name.
    training
        Whether dropout is on; False until `train`.
    """

    def __init__(self, spec: RecurrentSpec, weights: Mapping[str, Any], generator: np.random.Generator) -> None:
        super().__init__(spec)
        self.weights = dict(weights)
        self._generator = generator

    @property
    def _xp(self) -> Any:
        return array_api_compat.array_namespace(*self.weights.values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r}, {self._xp.__name__})"

    def _like(self) -> tuple[type[Any], Any]:
        # Not the weight's own type, which may be a subclass, such as torch.nn.Parameter.
        return type(self._xp.asarray(0.0)), self.weights["weight_ih_l0"].dtype

    def _native(self, array: NDArray[Any]) -> Any:
        device = array_api_compat.device(self.weights["weight_ih_l0"])
        return self._xp.asarray(np.ascontiguousarray(array), device=device)

    def _swap_axes(self, array: Any) -> Any:
        return self._xp.permute_dims(array, (1, 0, 2))

    def _run(self, call: Call) -> tuple[Any, tuple[Any, ...]]:
        dropout = self._dropout if self.training and self.spec.dropout else None
        return reference.recurrent(
            self._xp, self.spec, self.weights, call.input, call.state, call.lengths, call.resets, dropout=dropout
        )

    def _dropout(self, x: Any) -> Any:
        kept = self._generator.random(tuple(x.shape)) >= self.spec.dropout
        scale = kept / (1 - self.spec.dropout)
        return x * self._xp.asarray(scale, dtype=x.dtype, device=array_api_compat.device(x))
