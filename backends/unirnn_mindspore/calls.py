"""The arguments of a model's call while MindSpore compiles it: what is known of them, and the core's checks."""

import functools
from typing import Any

import numpy as np
from mindspore import PYNATIVE_MODE, Tensor, get_context, nn, ops
from mindspore.nn import cell as _cells

from unirnn import Spec
from unirnn.contract import call as _call
from unirnn.contract.call import Sizes, check_lengths, check_resets
from unirnn.contract.models import is_batch_first, prepare_model, prepare_model_step
from unirnn.devices import short_name

from . import dispatch
from .operators import shared

__all__ = [
    "as_tuples",
    "described",
    "described_state",
    "end_mixed_precision",
    "known",
    "on_host",
    "traced",
    "with_batch",
    "without_batch",
]


def end_mixed_precision(cell: nn.Cell) -> None:
    """End what `to_float` began for a call that has failed: MindSpore ends it for calls that succeed.

    All that follows in the process would be computed in that dtype.
    """
    # MindSpore has no public way to do so. In graphs there is nothing to end.
    if cell.mixed_precision_type is not None and get_context("mode") == PYNATIVE_MODE:
        _cells._pynative_executor.set_mixed_precision_type(_cells.MixedPrecisionType.NOTSET, False)


def on_host(given: Any) -> Any:
    """Lengths or resets as the core's checks read them."""
    return given.asnumpy() if isinstance(given, Tensor) else given


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


def described_state(hx: Any) -> Any:
    """The same of each part of each state, in the form of the state; False stands for an array."""
    if not isinstance(hx, (tuple, list)):
        return hx is None, ()
    found: Any = ()
    for item in hx:
        if isinstance(item, (tuple, list)):
            parts: Any = ()
            for part in item:
                parts += (described(part),)
            found += (("parts", parts),)
        elif item is None:
            found += (("none", ()),)
        else:
            found += (("array", (described(item),)),)
    return False, found


def known(given: Any) -> Any:
    """What a check can know of lengths or resets: a constant, or the shape and the dtype of a tensor."""
    return (None, given.shape, given.dtype) if isinstance(given, Tensor) else (given, None, None)


class _Known:
    """Stands for a tensor while a call is compiled."""

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = tuple(shape), dtype

    def __getitem__(self, index: Any) -> "_Known":
        return self


_Known.__module__, _Known.__name__ = "mindspore", "Tensor"  # what the messages of the core call it


@functools.cache
def traced(spec: Spec) -> tuple[Any, ...]:
    """Make the functions that run while MindSpore compiles.

    They check a call, and a step; say whether a file is exported; and give the shape of the output if the input
    has no elements, else None.
    """

    def array(found: Any) -> Any:
        return "something else" if found is None else _Known(*found)

    def state(found: Any) -> Any:
        is_none, items = found
        if is_none:
            return None
        return tuple(None if form == "none" else state_item(form, parts) for form, parts in items)

    def state_item(form: str, parts: Any) -> Any:
        return array(parts[0]) if form == "array" else tuple(map(array, parts))

    def given(found: Any) -> Any:
        constant, shape, dtype = found
        return constant if shape is None else _Known(shape, dtype)

    def read_lengths(seq_length: Any, sizes: Sizes) -> Any:
        if not isinstance(seq_length, _Known):
            return _call.lengths(seq_length, sizes)
        check_lengths(seq_length.shape, short_name(seq_length.dtype), sizes)
        return seq_length

    def read_resets(resets: Any, sizes: Sizes, batch_first: bool) -> Any:
        if not isinstance(resets, _Known):
            return _call.resets(resets, sizes, batch_first)
        check_resets(resets.shape, short_name(resets.dtype), sizes, batch_first)
        return resets

    def check(x: Any, hx: Any, dtype: Any, seq_length: Any, resets: Any) -> bool:
        if x is None or None not in x[0]:  # an exported file may take any size
            prepare_model(
                spec,
                array(x),
                state(hx),
                given(seq_length),
                given(resets),
                like=(_Known, dtype),
                read_lengths=read_lengths,
                read_resets=read_resets,
            )
        return True

    def check_step(x: Any, hx: Any, dtype: Any, seq_length: Any, resets: Any) -> bool:
        if x is None or None not in x[0]:
            prepare_model_step(spec, array(x), state(hx), like=(_Known, dtype))
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

    at_compile_time = ops.constexpr(check=False)
    functions = (check, check_step, dispatch.is_exporting, empty_shape)
    return tuple(shared(at_compile_time(function)) for function in functions)
