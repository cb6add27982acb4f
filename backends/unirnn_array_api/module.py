"""The modules that the ``array_api`` backend builds."""

import importlib
from collections.abc import Mapping
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from unirnn import RecurrentSpec, reference
from unirnn.contract.call import Call
from unirnn.contract.models import ModelCall, ModelModule, check_steps_of_batch_norms, clean_tokens
from unirnn.contract.module import Module
from unirnn.specs import Spec

__all__ = ["ArrayModel", "ArrayModule"]


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

    def _from_numpy(self, array: NDArray[Any]) -> Any:
        device = array_api_compat.device(self.weights["weight_ih_l0"])
        return self._xp.asarray(np.ascontiguousarray(array), device=device)

    def _swap_axes(self, array: Any) -> Any:
        return self._xp.permute_dims(array, (1, 0, 2))

    def _run(self, call: Call) -> tuple[Any, tuple[Any, ...]]:
        dropout = self._dropout if self.training and self.spec.dropout else None
        return reference.recurrent(self._xp, self.spec, self.weights, call.batch, dropout=dropout)

    def _dropout(self, x: Any) -> Any:
        return x * _keep(self._generator, x, tuple(x.shape), self.spec.dropout)


class ArrayModel(ModelModule):
    """A model over the arrays of one namespace.

    Whatever autodiff the namespace has goes through it.

    Parameters
    ----------
    spec
        The spec of the model.
    namespace
        The namespace, as `array_api_compat` wraps it.
    dtype
        The dtype of the weights, by name.
    weights
        Arrays of the namespace, by the names of `unirnn.Spec.weight_shapes`.
    generator
        Draws dropout while training.

    Attributes
    ----------
    spec
        The spec of the model.
    weights
        Its weights by name.
    training
        See `unirnn.contract.models.ModelModule`.
    """

    def __init__(
        self, spec: Spec, namespace: Any, dtype: str, weights: Mapping[str, Any], generator: np.random.Generator
    ) -> None:
        super().__init__(spec)
        self.weights = dict(weights)
        self._namespace, self._dtype, self._generator = namespace.__name__, dtype, generator

    @property
    def namespace(self) -> Any:
        """The namespace, as `array_api_compat` wraps it."""
        return importlib.import_module(self._namespace)  # a module can't be pickled

    def _like(self) -> tuple[type[Any], Any]:
        return type(self.namespace.asarray(0.0)), getattr(self.namespace, self._dtype)

    def _run(self, call: ModelCall) -> tuple[Any, tuple[Any, ...]]:
        xp, spec, device = self.namespace, self.spec, array_api_compat.device(call.input)
        training = None
        if self.training:
            check_steps_of_batch_norms(spec, call)
            like = xp.zeros((), dtype=getattr(xp, self._dtype), device=device)
            training = reference.Training(lambda shape, p: _keep(self._generator, like, shape, p))
        x = call.input
        if spec.takes_tokens:
            x = xp.asarray(clean_tokens(spec, call, np.asarray(x)), device=device)
        ns, begins = (
            None if array is None else xp.asarray(np.ascontiguousarray(array), device=device)
            for array in (call.lengths, call.resets)
        )
        call = call._replace(input=x, lengths=ns, resets=begins)
        result = reference.model(xp, spec, self.weights, call, training=training, detach=_detached)
        if training is not None:
            self.weights |= training.statistics
        return result


def _detached(array: Any) -> Any:
    """The array without its history, if the namespace has gradients."""
    return array.detach() if hasattr(array, "detach") else array


def _keep(generator: np.random.Generator, like: Any, shape: tuple[int, ...], p: float) -> Any:
    """0 with probability p, else ``1 / (1 - p)``, as an array of a dtype and on the device of another."""
    xp: Any = array_api_compat.array_namespace(like)
    kept = (generator.random(shape) >= p) / (1 - p)
    return xp.asarray(kept, dtype=like.dtype, device=array_api_compat.device(like))
