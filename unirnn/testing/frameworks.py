"""A common way to call a model of any framework, take gradients, and watch its layers."""

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
    """A callable of Python that computes with NumPy: it has no gradients, and no layers that can be watched."""

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
"""What the kit asks of the framework of a model: the members that all of them have, of which `Backend` says more."""


def framework_of(model: Any) -> Framework:
    """The framework of a model.

    Parameters
    ----------
    model
        A ``torch.nn.Module``, a ``mindspore.nn.Cell``, a layer or a model of Keras, what unirnn built for any backend,
        or a callable that computes with NumPy.

    Raises
    ------
    ArgumentError
        If it can't be called, or is a class or a spec, which stand for models that are not yet made.

    Examples
    --------
    >>> import unirnn
    >>> framework_of(unirnn.GRUSpec(3, 4).build("numpy")).name, framework_of(lambda x, lengths: x).name
    ('numpy', 'numpy')
    """
    if isinstance(model, Spec):
        raise ArgumentError(f"model: given the spec {model!r}, expected what its build(...) gives")
    if isinstance(model, type):
        raise ArgumentError(f"model: given the class {model.__qualname__}, expected an object of it")
    if not callable(model):
        raise ArgumentError(f"model: given {type(model).__name__}, expected something that can be called")
    own = registry.packages(model)
    if "keras" in own:  # first, since on PyTorch a layer of Keras is a torch.nn.Module as well
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
    """A context in which torch does without cuDNN, whose recurrent layers have gradients while training only."""
    torch = sys.modules.get("torch")
    return nullcontext() if torch is None else torch.backends.cudnn.flags(enabled=False)


def native(array: Any, model: Any) -> Any:
    """An array as a model takes it: of its framework, and on its device.

    Parameters
    ----------
    array
        An array of NumPy, or a list.
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
    """Gradients of ``function(*arrays)``, one number, by the autodiff of a framework.

    Parameters
    ----------
    backend
        The backend of the framework, or its name.
    function
        Takes arrays of the framework, and gives one number in an array of the framework.
    *arrays
        Arrays of NumPy, of floats or integers, or lists.
    module
        A module of the framework whose weights are wanted as well; the arrays are put on its device.

    Returns
    -------
    list
        The gradient with respect to each array of floats; None for an array of integers or flags.
    dict
        The gradient of each weight of the module that is trained, by its name; empty without a module.

    Raises
    ------
    LimitError
        If the framework has no gradients of functions.

    Examples
    --------
    The function may use whatever its framework has::

        gru = unirnn.GRUSpec(3, 4).build("torch")
        (d_x,), weights = gradient("torch", lambda x: gru(x)[0].sum(), np.ones((5, 2, 3), "float32"), module=gru)
    """
    loaded = registry.load(backend) if isinstance(backend, str) else backend
    given = [loaded.from_numpy(np.asarray(array), module) for array in arrays]
    return loaded.gradient(function, given, module)


@contextmanager
def generators_kept() -> Iterator[None]:
    """A context that restores the random generators of Python, NumPy and torch on exit."""
    own, numpy_state = random.getstate(), np.random.get_state()
    torch = sys.modules.get("torch")
    devices = range(torch.cuda.device_count()) if torch is not None and torch.cuda.is_initialized() else ()
    try:
        with nullcontext() if torch is None else torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(own)
        np.random.set_state(numpy_state)
