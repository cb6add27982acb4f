"""The call: its arguments are understood, checked and laid out in one place, for every backend.

Every module is called as ``module(input, hx=None, seq_length=None, resets=None)``, and makes one step as
``module.step(x, state=None)``. `prepare` and `prepare_step` resolve the spellings of the arguments, refuse what is
wrong before any work is done, and give a `Call`: the arrays in one layout, `(T, B, I)`, and what restores the caller's.
So the same mistake raises the same exception with the same words everywhere.

Nothing here looks at the values in an array except `lengths` and `resets`. The rule for ``seq_length``:

- one integer for each sequence, in any order: ``0 <= n <= T``; for an unbatched input, one integer;
- from step n on the output is exactly 0, in both directions and every layer;
- the forward final state is the state after step n-1; the reverse direction starts at step n-1, and its final state is
  the one after step 0; **for n = 0 both are the initial state**;
- the output keeps its T steps, whatever the longest n is;
- padding has no influence: what stands in steps t >= n changes no output, no state and no gradient.

The rule for ``resets``, one bool for each step:

- at a step where it is true, a new sequence begins, whose state before that step is zeros; no gradient passes;
- so a column of the batch is several sequences, one after another: the first begins from the initial state (unless its
  step 0 is a reset), the others from zeros, and the final state is that of the last one;
- the reverse direction reads each of them from its own end to its own beginning. So it begins with the last one, from
  the initial state, and the final state is the one after step 0;
- what stands in the padding has no influence.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirnn.devices import DTYPES, short_name
from unirnn.errors import ArgumentError, DTypeError, LengthError, ShapeError
from unirnn.specs import RecurrentSpec
from unirnn.specs import arguments as names

__all__ = [
    "Arguments",
    "Call",
    "Layout",
    "Sizes",
    "as_plain",
    "bind",
    "check_array",
    "check_call",
    "check_dtype",
    "check_lengths",
    "check_resets",
    "check_step",
    "join_state",
    "lengths",
    "prepare",
    "prepare_step",
    "resets",
    "state_parts",
    "type_name",
]


class Sizes(NamedTuple):
    """T and B of a call; B is None for an unbatched input."""

    steps: int
    batch_size: int | None


def swap_axes(array: Any) -> Any:
    """`(T, B, F)` to `(B, T, F)`, and back: as NumPy, torch and MindSpore spell it."""
    return array.swapaxes(0, 1)


class Layout(NamedTuple):
    """How the caller lays out the arrays, and the way from there to `(T, B, F)` and `(L*D, B, H)`, and back.

    Parameters
    ----------
    batched
        Whether the caller's arrays have an axis B.
    batch_first
        Whether the caller's steps are `(B, T, F)`.
    swap
        Swaps the first two axes of an array of three.
    is_step
        Whether the caller's arrays have no axis T, but one step.
    """

    batched: bool
    batch_first: bool
    swap: Callable[[Any], Any] = swap_axes
    is_step: bool = False

    def canonical_steps(self, array: Any) -> Any:
        """`(T, B, F)` of the caller's `(T, B, F)`, `(B, T, F)` or `(T, F)`."""
        if self.is_step:
            array = array[None, ...]
        if not self.batched:
            return array[:, None, :]
        return self.swap(array) if self.batch_first else array

    def restore_steps(self, array: Any) -> Any:
        """The inverse of `canonical_steps`."""
        if self.is_step:
            return array[0, ...] if self.batched else array[0, 0, :]
        if not self.batched:
            return array[:, 0, :]
        return self.swap(array) if self.batch_first else array

    def canonical_state(self, parts: Sequence[Any]) -> tuple[Any, ...]:
        """`(L*D, B, H)` each of the caller's `(L*D, B, H)` or `(L*D, H)`."""
        return tuple(parts) if self.batched else tuple(part[:, None, :] for part in parts)

    def restore_state(self, parts: Sequence[Any]) -> Any:
        """The inverse of `canonical_state`, as the caller gets it: one array, or an LSTM's pair."""
        return join_state(parts if self.batched else [part[:, 0, :] for part in parts])


class Arguments(NamedTuple):
    """The arguments of a call as they were given, under unirnn's names; see `bind`."""

    input: Any
    hx: Any = None
    seq_length: Any = None
    resets: Any = None


class Call(NamedTuple):
    """The arguments of a call, checked, in one layout.

    Parameters
    ----------
    input
        `(T, B, I)`.
    state
        The initial state, `(L*D, B, H)` each; None is zeros.
    lengths
        `(B,)`, as `read_lengths` returned them; None if every step is valid.
    resets
        `(T, B)`, as `read_resets` returned them; None if no sequence begins anew.
    sizes
        T and B, as the caller gave them.
    layout
        The caller's.
    """

    input: Any
    state: tuple[Any, ...] | None
    lengths: Any
    resets: Any
    sizes: Sizes
    layout: Layout

    def restore(self, output: Any, final: Sequence[Any]) -> tuple[Any, Any]:
        """`(T, B, D*H)` and the final state `(L*D, B, H)` each as the caller gets them."""
        return self.layout.restore_steps(output), self.layout.restore_state(final)


def prepare(
    spec: RecurrentSpec,
    given: Arguments,
    *,
    like: tuple[type[Any], Any],
    read_lengths: Callable[[Any, Sizes], Any] | None = None,
    read_resets: Callable[[Any, Sizes, bool], Any] | None = None,
    swap: Callable[[Any], Any] = swap_axes,
) -> Call:
    """Check and lay out the arguments of a call.

    Parameters
    ----------
    spec
        The module's spec.
    given
        The arguments, from `bind`.
    like
        The framework's class of an array, and the module's dtype, as a name or as the framework's object. None for the
        dtype: any floating dtype.
    read_lengths
        Checks ``seq_length`` and makes an array `(B,)` of it; None is `lengths`.
    read_resets
        Checks ``resets`` and makes an array `(T, B)` of it; None is `resets`.
    swap
        Swaps the first two axes of an array, where the framework's arrays have no method ``swapaxes``.

    Returns
    -------
    Call
        The arguments in one layout.

    Raises
    ------
    ArgumentError
        If an argument is not an array of the framework, or if the state has the wrong number of parts.
    ShapeError, DTypeError
        If an array, the lengths or the resets have the wrong shape or dtype.
    LengthError
        If a length is below 0 or above T.
    """
    input, hx, seq_length, resets = given
    state, sizes, ns = check_call(spec, input, hx, seq_length, like=like, read_lengths=read_lengths)
    begins = None if resets is None else (read_resets or _resets)(resets, sizes, spec.batch_first)
    return _lay_out(Layout(sizes.batch_size is not None, spec.batch_first, swap), input, state, ns, begins, sizes)


def prepare_step(spec: RecurrentSpec, x: Any, state: Any, *, like: tuple[type[Any], Any]) -> Call:
    """Check and lay out the arguments of one step, as a call over one step.

    Parameters
    ----------
    spec
        The module's spec.
    x
        `(B, I)` or `(I,)`.
    state
        `(L, B, H)` or `(L, H)`; a pair for LSTM; None is zeros.
    like
        See `prepare`.

    Raises
    ------
    ArgumentError
        If the layers have two directions, an argument is not an array of the framework, or the state has the wrong
        number of parts.
    ShapeError, DTypeError
        If an array has the wrong shape or dtype.
    """
    parts, sizes = check_step(spec, x, state, like=like)
    return _lay_out(Layout(sizes.batch_size is not None, False, is_step=True), x, parts, None, None, sizes)


def check_step(
    spec: RecurrentSpec, x: Any, state: Any, *, like: tuple[type[Any], Any]
) -> tuple[tuple[Any, ...] | None, Sizes]:
    """Check the arguments of one step: the state's parts, and the sizes; see `prepare_step`."""
    _check_runs_forward(spec)
    parts = state_parts(spec, state, "state")
    return parts, _check(spec, *like, x, parts, is_step=True)


def _check_runs_forward(spec: RecurrentSpec) -> None:
    """Refuse a step of layers that do not run forward only; raises ArgumentError."""
    if not spec.can_stream:
        given = "in two directions" if spec.bidirectional else "that run in reverse"
        raise ArgumentError(
            f"step: given layers {given}, expected layers that run forward only; the reverse direction begins at the "
            "end of a sequence, so call the module on the whole sequence"
        )


def _lay_out(
    layout: Layout, input: Any, state: tuple[Any, ...] | None, lengths: Any, resets: Any, sizes: Sizes
) -> Call:
    canonical_state = None if state is None else layout.canonical_state(state)
    return Call(layout.canonical_steps(input), canonical_state, lengths, resets, sizes, layout)


def check_call(
    spec: RecurrentSpec,
    input: Any,
    hx: Any,
    seq_length: Any,
    *,
    like: tuple[type[Any], Any],
    read_lengths: Callable[[Any, Sizes], Any] | None = None,
) -> tuple[tuple[Any, ...] | None, Sizes, Any]:
    """Check the arguments of a call: the state's parts, T and B, and the lengths; see `prepare`."""
    state = state_parts(spec, hx)
    sizes = _check(spec, *like, input, state, is_step=False)
    return state, sizes, None if seq_length is None else (read_lengths or lengths)(seq_length, sizes)


def bind(
    spec: RecurrentSpec, input: Any, hx: Any, seq_length: Any, resets: Any, aliases: Mapping[str, Any]
) -> Arguments:
    """Resolve the spellings of a call's arguments.

    Parameters
    ----------
    spec
        The module's spec.
    input, hx, seq_length, resets
        As given under unirnn's names; None where not given.
    aliases
        The other keyword arguments: ``x``, ``h_0``, or a mistake.

    Raises
    ------
    ArgumentError
        If a name is unknown, given twice, or ``input`` is missing.
    """
    if aliases:
        named = {"input": input, "hx": hx, "seq_length": seq_length, "resets": resets}
        given = tuple(name for name, value in named.items() if value is not None)
        named.update(names.canonical(spec.kind, "call", aliases, already=given))
        input, hx, seq_length, resets = named["input"], named["hx"], named["seq_length"], named["resets"]
    if input is None:
        raise ArgumentError(
            f"{spec.kind}: input is missing; call it as module(input, hx=None, seq_length=None, resets=None)"
        )
    return Arguments(input, hx, seq_length, resets)


def state_parts(spec: RecurrentSpec, hx: Any, argument: str = "hx") -> tuple[Any, ...] | None:
    """The initial state as a tuple: ``(h_0,)``, or ``(h_0, c_0)`` for LSTM; None if not given.

    Raises
    ------
    ArgumentError
        If an LSTM's state is not a pair, or another cell's is not one array.
    """
    if hx is None:
        return None
    in_pair = isinstance(hx, (tuple, list))
    if len(spec.states) == 1 and not in_pair:
        return (hx,)
    if len(spec.states) == 2 and in_pair and len(hx) == 2:
        return tuple(hx)
    parts = ("h", "c") if argument == "state" else ("h_0", "c_0")
    expected = f"one array {parts[0]}" if len(spec.states) == 1 else f"a pair ({', '.join(parts)})"
    given = f"a {type(hx).__name__} of {len(hx)}" if in_pair else f"one {type(hx).__name__}"
    raise ArgumentError(f"{argument}: given {given}, expected {expected} for {spec.kind}")


def join_state(parts: Sequence[Any]) -> Any:
    """The inverse of `state_parts`: one array, or an LSTM's pair."""
    return parts[0] if len(parts) == 1 else tuple(parts)


def _check(
    spec: RecurrentSpec, array_type: type[Any], dtype: Any, input: Any, state: tuple[Any, ...] | None, *, is_step: bool
) -> Sizes:
    """Check that input and state are arrays of the framework, then their shapes and dtypes."""
    found: list[tuple[tuple[int, ...], Any]] = []
    for array in (input, *(state or ())):
        if type(array) is not array_type:
            check_array(_array_names(spec, is_step=is_step)[len(found)], array, array_type)
        found.append((tuple(array.shape), array.dtype))
    return _check_arrays(spec, dtype, found[0], found[1:], is_step=is_step)


def _array_names(spec: RecurrentSpec, *, is_step: bool) -> tuple[str, ...]:
    """The names of a call's arrays in messages: the input, and each part of the state."""
    if not is_step:
        return "input", *(f"{part}_0" for part in spec.states)
    return ("x", "state") if len(spec.states) == 1 else ("x", "state[0]", "state[1]")


def check_array(argument: str, array: Any, array_type: type[Any]) -> None:
    """Check that an argument is an array of the framework.

    Memory-mapped arrays are the only subclass of NumPy's arrays that is accepted: others hide numbers, as masked arrays
    do, or compute something else, as matrices do.

    Raises
    ------
    ArgumentError
        If it is not one.
    """
    if not isinstance(array, array_type):
        raise ArgumentError(f"{argument}: given {type_name(type(array))}, expected a {type_name(array_type)}")
    _check_plain(argument, type(array))


def as_plain(argument: str, given: Any) -> NDArray[Any]:
    """Convert anything that NumPy reads to a NumPy array, but refuse its subclasses; see `check_array`.

    Raises
    ------
    ArgumentError
        If it is of a subclass, or a list of such arrays.
    Exception
        Whatever an array of some framework raises.
    """
    for kind in {*map(type, given)} if isinstance(given, (list, tuple)) else ():
        _check_plain(argument, kind)
    values: NDArray[Any] = np.asanyarray(given)
    _check_plain(argument, type(values))
    return values


def _check_plain(argument: str, kind: type[Any]) -> None:
    if issubclass(kind, np.ndarray) and kind not in (np.ndarray, np.memmap):
        advice = "numpy.asarray makes one of it"
        if issubclass(kind, np.ma.MaskedArray):
            advice = "its mask would be ignored, so say what counts by seq_length, and give the numbers by filled()"
        raise ArgumentError(f"{argument}: given {type_name(kind)}, expected a numpy.ndarray, not a subclass; {advice}")


def type_name(kind: type) -> str:
    """The name of a class in messages: ``list``, ``torch.Tensor``."""
    package = kind.__module__.partition(".")[0]
    name = kind.__name__.rpartition(".")[2]  # JAX's class has the name "jaxlib._jax.Array"
    return name if package == "builtins" else f"{package}.{name}"


def _check_arrays(
    spec: RecurrentSpec,
    dtype: Any,
    input: tuple[tuple[int, ...], Any],
    hx: Sequence[tuple[tuple[int, ...], Any]],
    *,
    is_step: bool,
) -> Sizes:
    """Check shape and dtype of the input and of each part of the state, and find T and B."""
    shape, given = input
    argument, rank = ("x", 2) if is_step else ("input", 3)
    batched = len(shape) == rank
    if len(shape) not in (rank - 1, rank):
        layout = "(B, I)" if is_step else "(B, T, I)" if spec.batch_first else "(T, B, I)"
        unbatched = "(I,)" if is_step else "(T, I)"
        raise ShapeError(f"{argument}: given shape {shape}, expected {layout}, or {unbatched} when unbatched")
    if shape[-1] != spec.input_size:
        raise ShapeError(f"{argument}: given shape {shape}, expected {spec.input_size} (input_size) on the last axis")
    steps = 1 if is_step else shape[1 if batched and spec.batch_first else 0]
    batch_size = shape[0 if is_step or spec.batch_first else 1] if batched else None
    if steps == 0:
        raise ShapeError(f"input: given shape {shape}, expected at least one time step")
    check_dtype(argument, given, dtype)
    if hx:
        names, shapes = _array_names(spec, is_step=is_step)[1:], spec.state_shapes(batch_size).values()
        for name, expected, (state_shape, state_dtype) in zip(names, shapes, hx, strict=False):
            if state_shape != expected:
                raise ShapeError(
                    f"{name}: given shape {state_shape}, expected {expected}, "
                    + ("(L*D, B, H) whatever batch_first says" if batched else "(L*D, H) for an unbatched input")
                )
            if not _fits(state_dtype, dtype):
                raise DTypeError(
                    f"{name}: given dtype {short_name(state_dtype)}, expected {_wanted(dtype)}, the input's"
                )
    return Sizes(steps, batch_size)


def check_dtype(argument: str, given: Any, dtype: Any) -> None:
    """Check that an input has the module's dtype; None: that it has a floating one. Raises DTypeError."""
    if not _fits(given, dtype):
        name = short_name(given)
        advice = f", or build with dtype={name!r}" if name in DTYPES else ""
        raise DTypeError(
            f"{argument}: given dtype {name}, expected {_wanted(dtype)}, the module's own; cast the input{advice}"
        )


def _fits(given: Any, dtype: Any) -> bool:
    if dtype is None:
        return short_name(given) in DTYPES
    # Objects of one framework need no names, which cost as much as the rest of a short call.
    return bool(given == dtype) or short_name(given) == short_name(dtype)


def _wanted(dtype: Any) -> str:
    return "a floating one" if dtype is None else short_name(dtype)


def check_lengths(shape: tuple[int, ...], dtype: str, sizes: Sizes) -> None:
    """Check the shape and the dtype of ``seq_length``, without looking at its values.

    Parameters
    ----------
    shape, dtype
        Its shape, and its dtype's name.
    sizes
        T and B of the call.

    Raises
    ------
    ShapeError
        If it is not one integer for each sequence.
    DTypeError
        If it does not hold integers.
    """
    if not dtype.startswith(("int", "uint")):
        raise DTypeError(f"seq_length: given dtype {dtype}, expected integers")
    expected = () if sizes.batch_size is None else (sizes.batch_size,)
    if shape != expected:
        raise ShapeError(
            f"seq_length: given shape {shape}, expected {expected}, "
            + ("one integer for each sequence" if expected else "one integer for an unbatched input")
        )


def lengths(seq_length: Any, sizes: Sizes) -> NDArray[np.int64]:
    """Check ``seq_length`` and make it one int64 array.

    Parameters
    ----------
    seq_length
        Integers as a list, a tuple, or anything that NumPy reads; one integer for an unbatched input.
    sizes
        T and B of the call.

    Returns
    -------
    numpy.ndarray
        `(B,)`, or `(1,)` for an unbatched input.

    Raises
    ------
    ShapeError
        If it is not one integer for each sequence.
    DTypeError
        If it does not hold integers.
    LengthError
        If a value is below 0 or above T; the message names its position.
    """
    values = _read_values("seq_length", seq_length, "integers")
    # An empty list is an array of floats. Getting a dtype's name, and NumPy's min and max, are slow for small batches.
    is_integer = values.dtype.kind in "iu" or not values.size
    check_lengths(values.shape, "int64" if is_integer else values.dtype.name, sizes)
    values = values.reshape(-1)
    numbers = values.tolist()
    if numbers and (min(numbers) < 0 or max(numbers) > sizes.steps):
        position = next(i for i, n in enumerate(numbers) if not 0 <= n <= sizes.steps)
        raise LengthError(
            f"seq_length[{position}]: given {numbers[position]}, "
            f"expected 0 <= n <= {sizes.steps}, the number of time steps"
        )
    return values.astype(np.int64)


def _read_values(argument: str, given: Any, expected: str) -> NDArray[Any]:
    """A NumPy array of lengths or resets; a DTypeError if NumPy can't read them."""
    try:
        return as_plain(argument, given)
    except ArgumentError:
        raise
    except Exception as error:  # whatever an array of some framework raises
        raise DTypeError(f"{argument}: given {type_name(type(given))}, expected {expected} ({error})") from None


def check_resets(shape: tuple[int, ...], dtype: str, sizes: Sizes, batch_first: bool) -> None:
    """Check the shape and the dtype of ``resets``, without looking at its values.

    Parameters
    ----------
    shape, dtype
        Its shape, and its dtype's name.
    sizes
        T and B of the call.
    batch_first
        Whether its shape is `(B, T)`.

    Raises
    ------
    ShapeError
        If it is not one bool for each step.
    DTypeError
        If it does not hold bools.
    """
    if dtype != "bool":
        raise DTypeError(f"resets: given dtype {dtype}, expected bool; cast it")
    steps, batch_size = sizes
    expected: tuple[int | None, ...]
    if batch_size is None:
        layout, expected = "(T,) for an unbatched input", (steps,)
    elif batch_first:
        layout, expected = "(B, T)", (batch_size, steps)
    else:
        layout, expected = "(T, B)", (steps, batch_size)
    if shape != expected:
        raise ShapeError(f"resets: given shape {shape}, expected {expected}, {layout}: one bool for each step")


def resets(resets: Any, sizes: Sizes, batch_first: bool) -> NDArray[np.bool_] | None:
    """Check ``resets`` and make it one array of bools.

    Parameters
    ----------
    resets
        Bools in lists or tuples, or anything that NumPy reads: `(T, B)`, `(B, T)` if ``batch_first``, or `(T,)`.
    sizes
        T and B of the call.
    batch_first
        Whether it is `(B, T)`.

    Returns
    -------
    numpy.ndarray or None
        `(T, B)`; `(T, 1)` for an unbatched input. None if no step is a reset.

    Raises
    ------
    ShapeError
        If it is not one bool for each step.
    DTypeError
        If it does not hold bools.
    """
    values = _read_values("resets", resets, "bools")
    # An empty list is an array of floats.
    check_resets(values.shape, values.dtype.name if values.size else "bool", sizes, batch_first)
    if not values.any():
        return None
    if sizes.batch_size is None:
        values = values[:, None]
    elif batch_first:
        values = values.T
    return np.array(values, order="C")


_resets = resets  # where an argument has its name
