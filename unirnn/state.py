"""The hidden state's layout: its axes by name, and other frameworks' layouts.

A state is `(L*D, B, H)`: layer-major, then direction, whatever ``batch_first`` says; `(L*D, H)` when unbatched.
An LSTM's state is a pair of them, ``(h, c)``: apply these functions to each (`detach` takes the pair). They use
nothing of an array but ``shape``, ``reshape``, ``swapaxes`` and indexing, and so work on NumPy, torch and MindSpore
alike, and keep gradients.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

from unirnn import registry
from unirnn.errors import ArgumentError, ShapeError
from unirnn.specs import RecurrentSpec

__all__ = ["axes", "detach", "from_batch_major", "from_layers", "last_layer", "to_batch_major", "to_layers"]


def _checked(function: Callable[[RecurrentSpec, Any], Any]) -> Callable[[RecurrentSpec, Any], Any]:
    """Check the shape before a call; MindSpore's graph mode, which can't raise, compiles what is wrapped."""

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
    """Name the axes: `(L*D, B, H)` to `(L, D, B, H)`, that is (layer, direction, batch, hidden).

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
    """The last layer's state with its directions side by side, forward first.

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
    """`(L*D, B, H)` to `(B, L*D, H)`: what ONNX calls ``layout=1``, and what splits over devices by batch."""
    return state.swapaxes(0, 1)


def from_batch_major(state: Any) -> Any:
    """`(B, L*D, H)` to `(L*D, B, H)`."""
    return state.swapaxes(0, 1)


def to_layers(spec: RecurrentSpec, state: Any) -> list[tuple[Any, ...]]:
    """One array for each layer and direction, as Keras and Flax hold their states.

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
        For each layer, its directions' arrays `(B, H)`.
    stack
        The framework's own: ``numpy.stack``, ``torch.stack``, ``mindspore.ops.stack``.

    Returns
    -------
    array
        `(L*D, B, H)`.
    """
    return stack([part for layer in layers for part in layer])


def detach(state: Any) -> Any:
    """Cut a state off from what computed it: no gradient flows back from there.

    For truncated backpropagation through time, where the state goes on from chunk to chunk and the gradient does not.
    A compiled function (``torch.compile``, ``mindspore.jit``) uses its framework's own word instead.

    Parameters
    ----------
    state
        `(L*D, B, H)`, or for LSTM the pair ``(h, c)``; an array of a backend that was used before.

    Returns
    -------
    array or tuple
        The same numbers, in the same form; NumPy's arrays are returned as they are, since they have no history.

    Raises
    ------
    ArgumentError
        If no backend knows such an array.

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
