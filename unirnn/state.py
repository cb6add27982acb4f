"""The hidden state: its axes and other layouts, and what a loop over steps does with the states of a batch.

A state is `(L*D, B, H)`, or `(L*D, H)` when unbatched, whatever ``batch_first`` says. The first axis goes through the
layers, and within each layer through the directions. An LSTM's state is a pair ``(h, c)``.

`zeros`, `select`, `repeat`, `where` and `detach` take and give whole states, the pair of an LSTM and the tuple of a
model included, and know where the batch is. The other functions take one array; apply them to each part of a pair.
Gradients flow through all of them but `detach`.

All but `detach` work in compiled functions too (``torch.compile``, ``mindspore.jit``). What they do to an
array is written with what arrays of NumPy, torch and MindSpore have in common: ``shape``, ``reshape``, ``swapaxes`` and
indexing, and three methods that tensors of torch and MindSpore share, where other arrays have the functions of the
array API standard.
"""

import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unirnn import registry
from unirnn.contract.arrays import type_name
from unirnn.contract.call import join_state
from unirnn.devices import short_name
from unirnn.errors import ArgumentError, DTypeError, ShapeError
from unirnn.specs import RecurrentSpec

__all__ = [
    "axes",
    "detach",
    "from_batch_major",
    "from_layers",
    "last_layer",
    "repeat",
    "select",
    "to_batch_major",
    "to_layers",
    "where",
    "zeros",
]


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


def _in_graph_mode(function: Callable[..., Any]) -> Callable[[Any], Any]:
    """Decorate a function with the one that MindSpore's graph mode compiles in its place, where nothing can be checked.

    MindSpore compiles what ``__wrapped__`` names.
    """

    def decorate(eager: Any) -> Any:
        eager.__wrapped__ = function
        return eager

    return decorate


def _zeros(module: Any, batch_size: Any = None) -> Any:
    return module.zero_state(batch_size)


@_in_graph_mode(_zeros)
def zeros(module: Any, batch_size: int | None = None) -> Any:
    """The state before the first step of a sequence, as an array or a pair for a module: on its device, of its dtype.

    Parameters
    ----------
    module
        What `unirnn.Spec.build` returned, or a recurrent layer of torch or MindSpore.
    batch_size
        B; None for an unbatched input.

    Returns
    -------
    array or tuple
        `(L*D, B, H)` or `(L*D, H)`; for an LSTM a pair; for a model a tuple with the state of each layer that has one.

    Raises
    ------
    ArgumentError
        If it is no such module, or the batch size is no integer of 0 or more.

    Examples
    --------
    >>> import unirnn
    >>> lstm = unirnn.LSTMSpec(3, 4, 2).build("numpy", seed=0)
    >>> [part.shape for part in zeros(lstm, 5)]
    [(2, 5, 4), (2, 5, 4)]
    """
    size = None if batch_size is None else _integer(batch_size, "batch_size", 0)
    if hasattr(module, "zero_state"):
        return module.zero_state(size)
    for backend in registry.backends_for(module):
        described = backend.describe(module)
        if described is not None:
            spec, dtype = described
            states = [
                join_state([backend.from_numpy(np.zeros(shape, dtype), module) for shape in shapes.values()])
                for leaf in spec.leaves().values()
                if (shapes := leaf.state_shapes(size))
            ]
            return states[0] if isinstance(spec, RecurrentSpec) else tuple(states)
    raise ArgumentError(
        f"module: given {type(module).__module__}.{type(module).__qualname__}, expected a module that unirnn "
        "built, or a recurrent layer of torch or mindspore"
    )


def _select(state: Any, index: Any) -> Any:
    if isinstance(state, (tuple, list)):
        return tuple([_select(part, index) for part in state])
    return state.index_select(1, index)


@_in_graph_mode(_select)
def select(state: Any, index: Any) -> Any:
    """Select the states of some sequences of a batch, in any order: to keep the best beams, or to reorder a batch.

    Parameters
    ----------
    state
        `(L*D, B, H)`, or the pair of an LSTM, or the tuple of a model.
    index
        `(K,)` integers, ``0 <= i < B``, in any order and any number of times; of the state's framework or of NumPy, or
        a list. In a compiled function, a tensor of 64-bit integers.

    Returns
    -------
    array or tuple
        `(L*D, K, H)`, in the form of ``state``.

    Raises
    ------
    ShapeError, DTypeError
        If the state has no axis B, or the index is not one row of integers.
    ArgumentError
        If an index is below 0, or not below B.

    Examples
    --------
    >>> import numpy
    >>> h = numpy.array([[[1.0], [2.0], [3.0]]])
    >>> select(h, [2, 0, 0]).tolist()
    [[[3.0], [1.0], [1.0]]]
    """
    batch_size, like = _batch_size(state), _parts(state)[0]
    index = _array(index, np.int64, "index")
    if len(index.shape) != 1:
        raise ShapeError(f"index: given shape {tuple(index.shape)}, expected (K,), the sequences to take")
    name = short_name(index.dtype)
    if not name.startswith(("int", "uint")):
        raise DTypeError(f"index: given dtype {name}, expected integers")
    expected = f"expected 0 <= i < {batch_size}, the number of sequences"
    # MindSpore may read anything where an index is out of range. torch raises an error, on a GPU when it gets there.
    on_host = index.asnumpy() if hasattr(index, "asnumpy") else index
    if isinstance(like, np.ndarray) or hasattr(index, "__array_namespace__"):
        on_host = np.asarray(index)
    if isinstance(on_host, np.ndarray):
        for position, i in enumerate(on_host.tolist()):
            if not 0 <= i < batch_size:
                raise ArgumentError(f"index[{position}]: given {i}, {expected}")
    index = _native(index, like, "index")
    xp = _namespace(like)
    try:
        if xp is not None:
            return _mapped(lambda part: xp.take(part, index, axis=1), state)
        return _select(state, index if name == "int64" else index.long())
    except (IndexError, RuntimeError) as error:
        raise ArgumentError(f"index: {expected}, given others ({error})") from error


def _repeat(state: Any, n: int) -> Any:
    if isinstance(state, (tuple, list)):
        return tuple([_repeat(part, n) for part in state])
    return state.repeat_interleave(n, 1)


@_in_graph_mode(_repeat)
def repeat(state: Any, n: int) -> Any:
    """Repeat each state of a batch n times, one after the other, as for the beams of a search.

    Parameters
    ----------
    state
        `(L*D, B, H)`, or the pair of an LSTM, or the tuple of a model.
    n
        How many times; at least 1.

    Returns
    -------
    array or tuple
        `(L*D, B*n, H)`, in the form of ``state``.

    Raises
    ------
    ShapeError
        If the state has no axis B.
    ArgumentError
        If n is no integer, or below 1.

    Examples
    --------
    >>> import numpy
    >>> repeat(numpy.array([[[1.0], [2.0]]]), 2).tolist()
    [[[1.0], [1.0], [2.0], [2.0]]]
    """
    n, batch_size = _integer(n, "n", 1), _batch_size(state)
    if _namespace(_parts(state)[0]) is not None:
        return select(state, np.repeat(np.arange(batch_size), n))
    return _repeat(state, n)


def _where(mask: Any, a: Any, b: Any) -> Any:
    if isinstance(a, (tuple, list)):
        return tuple([_where(mask, a[k], b[k]) for k in range(len(a))])
    return a.where(mask[:, None], b)


@_in_graph_mode(_where)
def where(mask: Any, a: Any, b: Any) -> Any:
    """Choose the state of each sequence from a or from b; for example, zeros for each episode that is done.

    A state that is not chosen has no influence on the result or on a gradient, even if it is NaN.

    Parameters
    ----------
    mask
        `(B,)` bool: whether to take a sequence's state from ``a``; of the state's framework or of NumPy, or a list. In
        a compiled function, a tensor.
    a, b
        `(L*D, B, H)` each, or the pairs of an LSTM, or the tuples of a model.

    Returns
    -------
    array or tuple
        `(L*D, B, H)`, in the form of ``a``.

    Raises
    ------
    ShapeError, DTypeError
        If the states have no axis B, or differ in shape or dtype, or the mask is not one bool for each sequence.
    ArgumentError
        If one of the states is a pair, and the other is not.

    Examples
    --------
    >>> import numpy
    >>> h = numpy.array([[[1.0], [2.0], [3.0]]])
    >>> where([False, True, False], numpy.zeros_like(h), h).tolist()
    [[[1.0], [0.0], [3.0]]]
    """
    batch_size = _batch_size(a, "a")
    parts, others = _parts(a), _parts(b)
    if _described(a) != _described(b):
        raise ArgumentError(f"b: given {_described(b)}, expected {_described(a)}, as a")
    for part, other in zip(parts, others, strict=True):
        if not _are_alike(part, other):
            raise ArgumentError(f"b: given {type_name(type(other))}, expected {type_name(type(part))}, as a")
        if tuple(part.shape) != tuple(other.shape):
            raise ShapeError(f"b: given shape {tuple(other.shape)}, expected {tuple(part.shape)}, that of a")
        if part.dtype != other.dtype:
            raise DTypeError(f"b: given dtype {short_name(other.dtype)}, expected {short_name(part.dtype)}, that of a")
    mask = _array(mask, np.bool_, "mask")
    if tuple(mask.shape) != (batch_size,):
        raise ShapeError(f"mask: given shape {tuple(mask.shape)}, expected ({batch_size},), one bool for each sequence")
    if short_name(mask.dtype) != "bool":
        raise DTypeError(f"mask: given dtype {short_name(mask.dtype)}, expected bool")
    mask, xp = _native(mask, parts[0], "mask"), _namespace(parts[0])
    if xp is None:
        return _where(mask, a, b)
    return _mapped(lambda part, other: xp.where(mask[:, None], part, other), a, b)


def _parts(state: Any) -> tuple[Any, ...]:
    """The arrays of a state in one row."""
    if isinstance(state, (tuple, list)):
        return tuple(array for part in state for array in _parts(part))
    return (state,)


def _mapped(function: Callable[..., Any], *states: Any) -> Any:
    """Apply a function to each array of a state, and keep its structure."""
    if isinstance(states[0], (tuple, list)):
        return tuple(_mapped(function, *parts) for parts in zip(*states, strict=True))
    return function(*states)


def _described(state: Any) -> str:
    """The structure of a state as text: ``array``, ``(array, array)``."""
    return f"({', '.join(map(_described, state))})" if isinstance(state, (tuple, list)) else "array"


def _are_alike(one: Any, other: Any) -> bool:
    """Whether two arrays are of one framework."""
    return isinstance(one, type(other)) or isinstance(other, type(one)) or _package(one) == _package(other)


def _package(array: Any) -> str:
    return type(array).__module__.partition(".")[0]


def _integer(given: Any, argument: str, least: int) -> int:
    """An integer of any kind as Python's own."""
    number = None if isinstance(given, bool) or not hasattr(given, "__index__") else operator.index(given)
    if number is None or number < least:
        raise ArgumentError(f"{argument}: given {given!r}, expected an integer of {least} or more")
    return number


def _batch_size(state: Any, argument: str = "state") -> int:
    """B, which each part of the state must have on its second axis of three."""
    parts = _parts(state)
    if not parts:
        raise ArgumentError(f"{argument}: given {_described(state)}, expected a state with at least one array")
    sizes: list[int] = []
    for part in parts:
        if not _are_alike(parts[0], part):
            given = f"{type_name(type(parts[0]))} and {type_name(type(part))}"
            raise ArgumentError(f"{argument}: given {given}, expected arrays of one framework")
        shape = tuple(getattr(part, "shape", ()))
        if len(shape) != 3:
            given = f"shape {shape}" if hasattr(part, "shape") else f"a {type(part).__name__}"
            raise ShapeError(f"{argument}: given {given}, expected (L*D, B, H), a state with an axis B")
        sizes.append(shape[1])
        if shape[1] != sizes[0]:
            raise ShapeError(f"{argument}: given {sizes[0]} and {shape[1]} sequences, expected one number B")
    return sizes[0]


def _namespace(array: Any) -> Any:
    """The functions of the array API standard for an array; None for a tensor that has torch's methods."""
    if isinstance(array, np.ndarray):
        return np
    get = getattr(array, "__array_namespace__", None)
    return None if get is None else get()


def _array(given: Any, kind: type, argument: str) -> Any:
    """A list as a NumPy array, of a kind if it is empty; arrays as they are."""
    if hasattr(given, "shape"):
        return given
    if not isinstance(given, (list, tuple)):
        raise ArgumentError(f"{argument}: given {type(given).__name__}, expected an array or a list")
    try:
        return np.asarray(given, None if given else kind)
    except ValueError as error:  # rows of several lengths
        raise ArgumentError(f"{argument}: given a {type(given).__name__}, expected an array ({error})") from None


def _native(array: Any, like: Any, argument: str) -> Any:
    """A NumPy array as an array of the framework, and on the device, of another; others as they are."""
    if not isinstance(array, np.ndarray) or isinstance(like, np.ndarray):
        return array
    for backend in registry.loaded():
        found = backend.like(array, like)
        if found is not None:
            return found
    raise ArgumentError(f"{argument}: given an array of NumPy, expected one of {type(like).__module__}, as the state")
