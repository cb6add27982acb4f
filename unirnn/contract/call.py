"""The call: its arguments are understood, checked and laid out in one place, for every backend.

Every module is called as ``module(input, hx=None, seq_length=None, resets=None)``, and makes one step as
``module.step(x, state=None)``. `prepare` and `prepare_step` resolve the spellings of the arguments, refuse what is
wrong before any work is done, and give a `Call`: the arrays in one layout, `(T, B, I)`, and what restores the caller's.
So the same mistake raises the same exception with the same words everywhere.

Nothing here looks at the values in an array except those of ``seq_length`` and ``resets``, whose rules are in
`unirnn.contract.lengths`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from unirnn.errors import ArgumentError, ShapeError
from unirnn.specs import RecurrentSpec
from unirnn.specs import arguments as names

from .arrays import check_array, check_dtype, check_state_dtype
from .lengths import Sizes, parse_lengths, parse_resets

__all__ = [
    "Arguments",
    "Batch",
    "Call",
    "Layout",
    "bind",
    "check_call",
    "check_step",
    "join_state",
    "prepare",
    "prepare_step",
    "state_parts",
]


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


class Batch(NamedTuple):
    """What recurrent layers compute from: the arguments of a call, checked, in one layout.

    Parameters
    ----------
    input
        `(T, B, I)`.
    state
        The initial state, `(L*D, B, H)` each; None is zeros.
    lengths
        `(B,)`; None if every step is valid.
    resets
        `(T, B)` bool: whether a new sequence begins at a step; None if none does.
    """

    input: Any
    state: tuple[Any, ...] | None = None
    lengths: Any = None
    resets: Any = None


class Call(NamedTuple):
    """A `Batch`, and how the caller laid it out.

    Parameters
    ----------
    input, state, lengths, resets
        See `Batch`; the lengths and the resets are as `read_lengths` and `read_resets` of `prepare` returned them.
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

    @property
    def batch(self) -> Batch:
        """What the layers compute from."""
        return Batch(self.input, self.state, self.lengths, self.resets)

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
        Checks ``seq_length`` and makes an array `(B,)` of it; None is `parse_lengths`.
    read_resets
        Checks ``resets`` and makes an array `(T, B)` of it; None is `parse_resets`.
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
    begins = None if resets is None else (read_resets or parse_resets)(resets, sizes, spec.batch_first)
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
        If a layer runs in reverse, an argument is not an array of the framework, or the state has the wrong
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
    return state, sizes, None if seq_length is None else (read_lengths or parse_lengths)(seq_length, sizes)


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
    input, state = ("x", "state") if is_step else ("input", "hx")
    return (input, state) if len(spec.states) == 1 else (input, f"{state}[0]", f"{state}[1]")


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
            check_state_dtype(name, state_dtype, dtype)
    return Sizes(steps, batch_size)
