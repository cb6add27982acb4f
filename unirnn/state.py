"""The layout of the hidden state: naming its axes, and converting it to other layouts.

A state is `(L*D, B, H)`, or `(L*D, H)` when unbatched, whatever ``batch_first`` says. The first axis goes through the
layers, and within each layer through the directions. An LSTM's state is a pair ``(h, c)``: apply these functions to
each part (`detach` takes the pair). The functions only use ``shape``, ``reshape``, ``swapaxes`` and indexing, so they
work on arrays of NumPy, torch and MindSpore, and gradients flow through them.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from unirnn import registry
from unirnn.errors import ArgumentError, ShapeError
from unirnn.specs import RecurrentSpec

__all__ = ["axes", "detach", "from_batch_major", "from_layers", "last_layer", "to_batch_major", "to_layers"]


def _checked(function: Callable[[RecurrentSpec, Any], Any]) -> Callable[[RecurrentSpec, Any], Any]:
    """Check the shape before a call. MindSpore's graph mode can't raise, so it compiles the wrapped function."""

    @functools.wraps(function)
    def checked(spec: RecurrentSpec, state: Any) -> Any:
        shape = tuple(state.shape)
        if len(shape) not in (2, 3) or shape[0] != spec.num_layers * spec.num_directions:
            raise ShapeError(
                f"state: given shape {shape}, expected (L*D, B, H) or (L*D, H) with "
                f"L*D = {spec.num_layers * spec.num_directions}"
            )
        return function(spec, state)

    return checked


@_checked
def axes(spec: RecurrentSpec, state: Any) -> Any:
    """Separate layers and directions: `(L*D, B, H)` to `(L, D, B, H)`.

    Parameters
    ----------
    spec
        The layers.
    state
        `(L*D, B, H)`, or `(L*D, H)`, which becomes `(L, D, H)`.

    Raises
    ------
    ShapeError
        If the first axis is not L*D.

    Examples
    --------
    >>> import numpy, unirnn
    >>> axes(unirnn.GRUSpec(3, 4, 2, bidirectional=True), numpy.zeros((4, 5, 4))).shape
    (2, 2, 5, 4)
    """
    return state.reshape(spec.num_layers, spec.num_directions, *state.shape[1:])


@_checked
def last_layer(spec: RecurrentSpec, state: Any) -> Any:
    """The state of the last layer, with the directions side by side, forward first.

    Parameters
    ----------
    spec
        The layers.
    state
        `(L*D, B, H)` or `(L*D, H)`.

    Returns
    -------
    array
        `(B, D*H)` or `(D*H,)`.

    Examples
    --------
    >>> import numpy, unirnn
    >>> last_layer(unirnn.GRUSpec(3, 4, 2, bidirectional=True), numpy.zeros((4, 5, 4))).shape
    (5, 8)
    """
    last = axes(spec, state)[spec.num_layers - 1]
    if len(last.shape) == 2:
        return last.reshape(-1)
    directions, batch_size, size = last.shape
    return last.swapaxes(0, 1).reshape(batch_size, directions * size)


def to_batch_major(state: Any) -> Any:
    """`(L*D, B, H)` to `(B, L*D, H)`, as for ONNX's ``layout=1``, or to split a batch over devices."""
    return state.swapaxes(0, 1)


def from_batch_major(state: Any) -> Any:
    """`(B, L*D, H)` to `(L*D, B, H)`."""
    return state.swapaxes(0, 1)


def to_layers(spec: RecurrentSpec, state: Any) -> list[tuple[Any, ...]]:
    """Split a state into one array for each layer and direction, as Keras and Flax have them.

    Returns
    -------
    list
        For each layer, a tuple of D arrays `(B, H)`, forward first.

    Examples
    --------
    >>> import numpy, unirnn
    >>> layers = to_layers(unirnn.GRUSpec(3, 4, 2, bidirectional=True), numpy.zeros((4, 5, 4)))
    >>> len(layers), [part.shape for part in layers[0]]
    (2, [(5, 4), (5, 4)])
    """
    named = axes(spec, state)
    return [tuple(named[layer][d] for d in range(spec.num_directions)) for layer in range(spec.num_layers)]


def from_layers(layers: Sequence[Sequence[Any]], stack: Callable[[list[Any]], Any]) -> Any:
    """The inverse of `to_layers`.

    Parameters
    ----------
    layers
        For each layer, the arrays `(B, H)` of its directions.
    stack
        The framework's function: ``numpy.stack``, ``torch.stack``, ``mindspore.ops.stack``.

    Returns
    -------
    array
        `(L*D, B, H)`.
    """
    return stack([part for layer in layers for part in layer])


def detach(state: Any) -> Any:
    """Detach a state from the computation that produced it, so that no gradient flows back through it.

    This is for truncated backpropagation through time, where the state goes from chunk to chunk without the gradient.
    In a compiled function (``torch.compile``, ``mindspore.jit``), use the framework's own function instead.

    Parameters
    ----------
    state
        `(L*D, B, H)`, or the pair ``(h, c)`` of an LSTM; arrays of a backend that was used before.

    Returns
    -------
    array or tuple
        The same numbers in the same form. NumPy's arrays are returned as they are, since they have no history.

    Raises
    ------
    ArgumentError
        If the array is not of a backend that was used before.

    Examples
    --------
    >>> import numpy, unirnn
    >>> gru = unirnn.GRUSpec(3, 4).build("numpy", seed=0)
    >>> _, h_n = gru(numpy.ones((5, 2, 3), "float32"))
    >>> _, h_n = gru(numpy.ones((7, 2, 3), "float32"), unirnn.detach(h_n))
    """
    if isinstance(state, (tuple, list)):
        return tuple(detach(part) for part in state)
    backends = registry.loaded()
    for backend in backends:
        found = backend.detach(state)
        if found is not None:
            return found
    raise ArgumentError(
        f"state: given {type(state).__module__}.{type(state).__name__}, expected an array of a backend that was used "
        f"({', '.join(backend.name for backend in backends) or 'none yet'}), or a pair of them"
    )
