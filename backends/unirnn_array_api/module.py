"""The modules that the ``array_api`` backend builds."""

import importlib
from collections.abc import Mapping
from typing import Any

import array_api_compat
import numpy as np
from numpy.typing import NDArray

from unirnn import RecurrentSpec, reference
from unirnn.contract.call import Call
from unirnn.contract.models import ModelCall, ModelModule, check_steps_of_batch_norms, clean_tokens, is_batch_first
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
        xp, spec, x = self.namespace, self.spec, call.input
        if self.training:
            check_steps_of_batch_norms(spec, call)
        device = array_api_compat.device(x)
        if spec.takes_tokens:
            x = self._tokens(call)
        if call.sizes is None:
            shape = tuple(x.shape)
            x = xp.reshape(x, (-1, 1) if spec.takes_tokens else (-1, 1, shape[-1]))
            y, _ = self._reference(x, (), None, None)
            return xp.reshape(y, (*(shape if spec.takes_tokens else shape[:-1]), y.shape[-1])), ()
        is_swapped = is_batch_first(spec)
        x = _swapped(xp, x) if is_swapped else x
        ns, begins = (
            None if array is None else xp.asarray(np.ascontiguousarray(array), device=device)
            for array in (call.lengths, call.resets)
        )
        y, states = self._reference(x, call.states, ns, begins)
        return _swapped(xp, y) if is_swapped and not spec.ends_steps else y, states

    def _run_step(self, call: ModelCall) -> tuple[Any, tuple[Any, ...]]:
        if self.training:
            check_steps_of_batch_norms(self.spec, call)
        x = self._tokens(call) if self.spec.takes_tokens else call.input
        y, states = self._reference(x[None, ...], call.states, None, None)
        return y[0, ...], states

    def _reference(self, x: Any, states: Any, lengths: Any, resets: Any) -> tuple[Any, tuple[Any, ...]]:
        training = None
        if self.training:
            like = self.namespace.zeros(
                (), dtype=getattr(self.namespace, self._dtype), device=array_api_compat.device(x)
            )
            training = reference.Training(lambda shape, p: _keep(self._generator, like, shape, p))
        result = reference.model(
            self.namespace, self.spec, self.weights, x, states, lengths, resets, training, detach=_detached
        )
        if training is not None:
            self.weights |= training.statistics
        return result

    def _tokens(self, call: ModelCall) -> Any:
        found = clean_tokens(self.spec, call, np.asarray(call.input))
        return self.namespace.asarray(found, device=array_api_compat.device(call.input))


def _detached(array: Any) -> Any:
    """The array without its history, if the namespace has gradients."""
    return array.detach() if hasattr(array, "detach") else array


def _swapped(xp: Any, array: Any) -> Any:
    """`(T, B)` to `(B, T)` with whatever axes follow, and back."""
    return xp.permute_dims(array, (1, 0, *range(2, len(array.shape))))


def _keep(generator: np.random.Generator, like: Any, shape: tuple[int, ...], p: float) -> Any:
    """0 with probability p, else ``1 / (1 - p)``, as an array of a dtype and on the device of another."""
    xp: Any = array_api_compat.array_namespace(like)
    kept = (generator.random(shape) >= p) / (1 - p)
    return xp.asarray(kept, dtype=like.dtype, device=array_api_compat.device(like))
