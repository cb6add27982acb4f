"""Take gradients of a model of any framework, watch its layers, and set its mode, in the same way for all."""

import copy
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unirnn import registry
from unirnn.contract.backend import Backend, Watched
from unirnn.errors import ArgumentError, LimitError
from unirnn.registry import to_numpy
from unirnn.specs import Spec

if TYPE_CHECKING:
    from ._keras import KerasFramework

__all__ = ["Framework", "framework_of", "generators_kept", "gradient", "native", "to_numpy", "without_cudnn"]

Array = NDArray[Any]


class PlainFramework:
    """The framework of callables that compute with NumPy. They have no gradients, and no layers to watch."""

    name = "numpy"

    def from_numpy(self, array: Array, module: Any) -> Array:
        return array

    def to_numpy(self, array: Any) -> Array:
        return np.asarray(array)

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], module: Any = None
    ) -> tuple[list[Array | None], dict[str, Array]]:
        raise LimitError("numpy has no gradients of functions")

    @contextmanager
    def restored(self, module: Any) -> Iterator[Any]:
        yield copy.deepcopy(module)

    @contextmanager
    def watch(self, module: Any) -> Iterator[list[Watched]]:
        yield []

    def set_training(self, module: Any, mode: bool) -> None:
        if hasattr(module, "train"):
            module.train(mode)

    def random_seed(self, seed: int) -> None:
        np.random.seed(seed)

    def all_weights(self, module: Any) -> dict[tuple[str, ...], Array] | None:
        return None


Framework: TypeAlias = "Backend | KerasFramework | PlainFramework"
"""The framework of a model. The kit uses only the members that all of these have; `Backend` documents them."""


def framework_of(model: Any) -> Framework:
    """The framework of a model.

    Parameters
    ----------
    model
        A ``torch.nn.Module``, a ``mindspore.nn.Cell``, a layer or a model of Keras, a module that unirnn built for any
        backend, or a callable that computes with NumPy.

    Raises
    ------
    ArgumentError
        If it is not callable, or is a class or a spec instead of a model.

    Examples
    --------
    >>> import unirnn
    >>> framework_of(unirnn.GRUSpec(3, 4).build("numpy")).name, framework_of(lambda x, lengths: x).name
    ('numpy', 'numpy')
    """
    if isinstance(model, Spec):
        raise ArgumentError(f"model: given the spec {model!r}, expected a module that its build(...) returns")
    if isinstance(model, type):
        raise ArgumentError(f"model: given the class {model.__qualname__}, expected an instance of it")
    if not callable(model):
        raise ArgumentError(f"model: given {type(model).__name__}, expected something that can be called")
    own = registry.packages(model)
    if "keras" in own:  # checked first, since on PyTorch a layer of Keras is also a torch.nn.Module
        from ._keras import KerasFramework

        return KerasFramework()
    named = [name for name in registry.backends() if name in own]
    if named:
        return registry.load(named[0])
    for backend in registry.backends_for(model):
        if backend.describe(model) is not None:
            return backend
    return PlainFramework()


def without_cudnn() -> AbstractContextManager[Any]:
    """A context in which torch does not use cuDNN, whose recurrent layers have gradients in training mode only."""
    torch = sys.modules.get("torch")
    return nullcontext() if torch is None else torch.backends.cudnn.flags(enabled=False)


def native(array: Any, model: Any) -> Any:
    """Convert an array for a model: to an array of its framework, on its device.

    Parameters
    ----------
    array
        A NumPy array or a list.
    model
        A model of any framework; see `framework_of`.

    Examples
    --------
    >>> import unirnn
    >>> native([1, 2], unirnn.GRUSpec(3, 4).build("numpy"))
    array([1, 2])
    """
    return framework_of(model).from_numpy(np.asarray(array), model)


def gradient(
    backend: Backend | str, function: Callable[..., Any], *arrays: Any, module: Any = None
) -> tuple[list[Array | None], dict[str, Array]]:
    """Differentiate ``function(*arrays)``, a single number, by the autodiff of a framework.

    Parameters
    ----------
    backend
        The backend of the framework, or its name.
    function
        A function that takes arrays of the framework and returns a single number as an array of the framework.
    *arrays
        NumPy arrays of floats or integers, or lists.
    module
        A module of the framework. If given, the gradients of its weights are computed as well, and the arrays are put
        on its device.

    Returns
    -------
    list
        The gradient with respect to each array of floats; None for an array of integers or bools.
    dict
        The gradient of each trained weight of the module, by name; empty without a module.

    Raises
    ------
    LimitError
        If the framework has no gradients of functions.

    Examples
    --------
    The function may use everything that its framework offers::

        gru = unirnn.GRUSpec(3, 4).build("torch")
        (d_x,), weights = gradient("torch", lambda x: gru(x)[0].sum(), np.ones((5, 2, 3), "float32"), module=gru)
    """
    loaded = registry.load(backend) if isinstance(backend, str) else backend
    given = [loaded.from_numpy(np.asarray(array), module) for array in arrays]
    return loaded.gradient(function, given, module)


@contextmanager
def generators_kept() -> Iterator[None]:
    """A context that restores the states of the global random generators of Python, NumPy and torch on exit."""
    own, numpy_state = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    devices = range(torch.cuda.device_count()) if torch is not None and torch.cuda.is_initialized() else ()
    try:
        with nullcontext() if torch is None else torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy_state)
