"""The arguments of a call: how they are checked, and what is known of them while MindSpore compiles it.

In PyNative mode the core checks a call as it does on every backend. While MindSpore compiles, only shapes and dtypes
are known. Then `_Known` stands for each tensor, and the core's checks run over these.

What `construct` calls is written in the part of Python that MindSpore's graph mode compiles.
"""

import functools
from typing import Any

import numpy as np
from mindspore import GRAPH_MODE, PYNATIVE_MODE, Tensor, get_context, nn, ops
from mindspore import dtype as mstype
from mindspore.nn import cell as _cells

from unirnn import RecurrentSpec, Spec
from unirnn.contract.arrays import check_array
from unirnn.contract.call import bind, check_call, check_step, state_parts
from unirnn.contract.lengths import Sizes, check_lengths, check_resets, parse_lengths, parse_resets
from unirnn.contract.models import is_batch_first, prepare_model, prepare_model_step
from unirnn.devices import short_name
from unirnn.errors import LimitError, ShapeError

from . import dispatch
from .operators import shared

__all__ = [
    "CheckedCell",
    "as_lengths",
    "as_resets",
    "as_tuples",
    "described",
    "described_state",
    "described_states",
    "known",
    "on_host",
    "traced_model",
    "traced_recurrent",
    "with_batch",
    "without_batch",
]


class CheckedCell(nn.Cell):
    """What a recurrent layer and a model have in common: a call whose arguments are checked before `construct`.

    A subclass has `_checked_on_host`, which checks values too, and gives the arguments of its `construct`.
    """

    _checked_on_host: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Check the arguments, and compute; see `construct`."""
        if get_context("mode") == GRAPH_MODE:  # values are known here, but not when `construct` is compiled
            return super().__call__(*self._checked_on_host(*args, **kwargs))
        # For gradients of the cell itself, MindSpore must see the caller's own arguments.
        try:
            return super().__call__(*args, **kwargs)
        except BaseException:
            self._end_mixed_precision()
            raise

    def _end_mixed_precision(self) -> None:
        """End what `to_float` began for a call that has failed: MindSpore ends it for calls that succeed.

        All that follows in the process would be computed in that dtype.
        """
        # MindSpore has no public way to do so. In graphs there is nothing to end.
        if self.mixed_precision_type is not None and get_context("mode") == PYNATIVE_MODE:
            _cells._pynative_executor.set_mixed_precision_type(_cells.MixedPrecisionType.NOTSET, False)

    def add_flags(self, **flags: Any) -> Any:
        """Set attributes, as MindSpore's `to_float` does for mixed precision."""
        if flags.get("bf16"):
            raise LimitError("to_float: given bfloat16, but mindspore has no bfloat16 layers; it has float16, float32")
        return super().add_flags(**flags)


def on_host(given: Any) -> Any:
    """Lengths or resets as the core's checks read them."""
    return given.asnumpy() if isinstance(given, Tensor) else given


def as_lengths(seq_length: Any) -> Any:
    """Checked lengths as a tensor `(B,)` of int64; None stays None."""
    if seq_length is None:
        return None
    lengths = seq_length if isinstance(seq_length, Tensor) else Tensor(seq_length, mstype.int64)
    if lengths.ndim == 0:
        lengths = lengths.expand_dims(0)
    # In PyNative mode a cast would launch an operator, and be waited for.
    return lengths if lengths.dtype == mstype.int64 else lengths.astype(mstype.int64)


def as_resets(resets: Any) -> Any:
    """Checked resets as a tensor; None stays None."""
    return resets if resets is None or isinstance(resets, Tensor) else Tensor(resets, mstype.bool_)


def as_tuples(state: Any) -> Any:
    return tuple(as_tuples(part) for part in state) if isinstance(state, (tuple, list)) else state


def with_batch(states: Any) -> Any:
    """Unbatched states with an axis B."""
    found: Any = ()
    for state in states:
        if isinstance(state, (tuple, list)):
            found += ((state[0].expand_dims(1), state[1].expand_dims(1)),)
        else:
            found += (None if state is None else state.expand_dims(1),)
    return found


def without_batch(states: Any) -> Any:
    """The inverse of `with_batch`."""
    found: Any = ()
    for state in states:
        if isinstance(state, (tuple, list)):
            found += ((state[0].squeeze(1), state[1].squeeze(1)),)
        else:
            found += (state.squeeze(1),)
    return found


def described(array: Any) -> Any:
    """What is known of an array when a call is compiled; None if it is none."""
    return (array.shape, array.dtype) if isinstance(array, Tensor) else None


def described_state(state: Any) -> Any:
    """The same of one layer's state: its form, and each of its parts."""
    if isinstance(state, (tuple, list)):
        parts: Any = ()
        for part in state:
            parts += (described(part),)
        return "parts", parts
    return ("none", ()) if state is None else ("array", (described(state),))


def described_states(hx: Any) -> Any:
    """The same of the states of a model's layers; of anything but a tuple, whether it is None."""
    if not isinstance(hx, (tuple, list)):
        return hx is None, ()
    found: Any = ()
    for item in hx:
        found += (described_state(item),)
    return False, found


def known(given: Any) -> Any:
    """What a check can know of lengths or resets: a constant, or the shape and the dtype of a tensor."""
    return (None, given.shape, given.dtype) if isinstance(given, Tensor) else (given, None, None)


# ---- checks while MindSpore compiles -----------------------------------------------------------------


class _Known:
    """Stands for a tensor while a call is compiled."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = tuple(shape), dtype

    def __getitem__(self, index: Any) -> "_Known":
        return self


class _Other:
    """Stands for anything else that was given instead of a tensor."""


# What the messages of the core call them.
_Known.__module__, _Known.__name__ = "mindspore", "Tensor"
_Other.__module__, _Other.__name__ = "builtins", "something else"


def _array(found: Any) -> Any:
    """What stands for an array, given what `described` found."""
    return _Other() if found is None else _Known(*found)


def _state(found: Any) -> Any:
    form, parts = found
    if form == "parts":
        return tuple(map(_array, parts))
    return None if form == "none" else _array(parts[0])


def _states(found: Any) -> Any:
    is_none, items = found
    return None if is_none else tuple(map(_state, items))


def _given(found: Any) -> Any:
    constant, shape, dtype = found
    return constant if shape is None else _Known(shape, dtype)


def _read_lengths(seq_length: Any, sizes: Sizes) -> Any:
    if not isinstance(seq_length, _Known):
        return parse_lengths(seq_length, sizes)
    check_lengths(seq_length.shape, short_name(seq_length.dtype), sizes)
    return seq_length


def _read_resets(resets: Any, sizes: Sizes, batch_first: bool) -> Any:
    if not isinstance(resets, _Known):
        return parse_resets(resets, sizes, batch_first)
    check_resets(resets.shape, short_name(resets.dtype), sizes, batch_first)
    return resets


def _at_compile_time(*functions: Any) -> tuple[Any, ...]:
    """The same functions, which MindSpore runs while it compiles, and does not compile themselves."""
    decorate = ops.constexpr(check=False)
    return tuple(shared(decorate(function)) for function in functions)


@functools.cache  # making these takes as long as making the parameters
def traced_recurrent(spec: RecurrentSpec, device: dispatch.DeviceKind, kernel: str) -> tuple[Any, ...]:
    """Make three functions for recurrent layers, which check a call, check a step, and tell if `(T, B, I)` is empty."""

    def check(names: Any, x: Any, hx: Any, dtype: Any, seq_length: Any, resets: Any) -> bool:
        has_input, has_state, aliases = names
        bind(spec, has_input or None, has_state or None, None, None, dict.fromkeys(aliases, True))
        input, state = _array(x), _state(hx)
        ns, begins = _given(seq_length), _given(resets)
        parts = state_parts(spec, state) or ()
        if any(None in array.shape for array in (input, *parts, ns, begins) if isinstance(array, _Known)):
            for part in parts:
                check_array("hx", part, _Known)
            _check_unknown_sizes(spec, device, kernel, input, begins is not None)
            return True
        _, sizes, _ = check_call(spec, input, state, ns, like=(_Known, dtype), read_lengths=_read_lengths)
        if begins is not None:
            _read_resets(begins, sizes, spec.batch_first)
        return True

    def check_one_step(x: Any, state: Any, dtype: Any) -> bool:
        check_step(spec, _array(x), _state(state), like=(_Known, dtype))
        return True

    def is_empty(shape: Any) -> bool:
        return bool(shape[1] == 0)

    return _at_compile_time(check, check_one_step, is_empty)


def _check_unknown_sizes(
    spec: RecurrentSpec, device: dispatch.DeviceKind, kernel: str, input: _Known, has_resets: bool
) -> None:
    """Refuse unknown sizes (None) of an input where the implementation must know them."""
    shape = input.shape
    chosen = dispatch.route(spec, device, kernel, short_name(input.dtype), in_graph=True)
    if chosen == "compiled":
        raise ShapeError(
            f"input: given shape {shape}, whose unknown sizes (None) the CPU's kernels must know when they are "
            "compiled; leave out set_inputs, and each new shape compiles anew"
        )
    by_step = f"{spec.kind} is" if chosen == "steps" else "with resets a layer is" if has_resets else None
    if by_step and shape[1 if spec.batch_first and len(shape) == 3 else 0] is None:
        raise ShapeError(
            f"input: given shape {shape}, expected a known number of time steps: {by_step} exported step by step"
        )


@functools.cache
def traced_model(spec: Spec) -> tuple[Any, ...]:
    """Make four functions for a model, which check a call, check a step, tell whether a file is exported, and give the
    shape of the output if the input has no elements (None if it has).
    """

    def check(x: Any, hx: Any, dtype: Any, seq_length: Any, resets: Any) -> bool:
        if x is None or None not in x[0]:  # an exported file may take any size
            prepare_model(
                spec,
                _array(x),
                _states(hx),
                _given(seq_length),
                _given(resets),
                like=(_Known, dtype),
                read_lengths=_read_lengths,
                read_resets=_read_resets,
            )
        return True

    def check_one_step(x: Any, state: Any, dtype: Any) -> bool:
        if x is None or None not in x[0]:
            prepare_model_step(spec, _array(x), _states(state), like=(_Known, dtype))
        return True

    def empty_shape(shape: Any) -> tuple[int, ...] | None:
        batch_first = is_batch_first(spec)
        if shape[0 if batch_first else 1] != 0:
            return None
        features = (spec.output_features(0 if spec.takes_tokens else shape[2]),)
        if spec.ends_steps:
            return (0, *features)
        steps = int(spec.output_lengths(np.int64(shape[1 if batch_first else 0])))
        return (0, steps, *features) if batch_first else (steps, 0, *features)

    return _at_compile_time(check, check_one_step, dispatch.is_exporting, empty_shape)
