"""Call a model of any framework, for `assert_same` and `padding_is_inert`."""

import inspect
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn import registry
from unirnn.contract.backend import Backend
from unirnn.contract.models import is_batch_first
from unirnn.errors import ArgumentError, LimitError
from unirnn.specs import Model, RecurrentSpec, Spec

from ._tracebacks import is_for_the_test
from .batches import Batch
from .frameworks import Framework

__all__ = ["Call", "as_taken_by", "call_model", "gradients_of_module", "in_layout_of", "unwrapped"]

__tracebackhide__ = is_for_the_test

Call = Callable[[Any, Any, Any], Any]
"""``call(model, input, seq_length)`` calls the model with native arrays, and returns its results."""

LENGTHS = (
    "seq_length",
    "seq_lengths",
    "seq_len",
    "seq_lens",
    "sequence_length",
    "sequence_lengths",
    "lengths",
    "lens",
    "input_lengths",
    "x_lengths",
    "x_len",
    "x_lens",
    "src_lengths",
    "text_lengths",
)
"""Names of arguments that take the lengths, `(B,)`."""
VALID = ("mask", "valid_mask")
"""Names of arguments that take a mask in which True marks a valid step; so does ``attention_mask``, with integers."""
PADDING = ("padding_mask", "key_padding_mask", "src_key_padding_mask", "pad_mask")
"""Names of arguments that take a mask in which True marks padding. In Keras, a ``padding_mask`` marks valid steps."""
STATES = ("hx", "initial_state", "h_0", "h0", "hidden", "state")
"""Names of arguments that take the initial state."""


def call_model(model: Any, batch: Batch, call: Call | None = None) -> Any:
    """Call a model with a batch.

    A module that unirnn built is called with everything in the batch, and returns its final state as well.
    ``torch.nn.RNN``, ``GRU`` and ``LSTM`` get a packed sequence, and their output is padded again. The arguments of any
    other model are recognised by their names, such as one for the lengths or for a mask.

    Parameters
    ----------
    model
        A module or a layer of any framework, or a function.
    batch
        The arguments. ``input`` and ``hx`` are arrays of the model's framework, or NumPy arrays if the model computes
        with those.
    call
        ``call(model, input, seq_length)`` calls a model whose argument names are not recognised.

    Returns
    -------
    object
        The results of the model.

    Raises
    ------
    ArgumentError
        If the model has no argument for something that is in the batch.

    Examples
    --------
    >>> import numpy as np
    >>> def total(x, lengths):
    ...     return np.array([row[:n].sum() for row, n in zip(x, lengths)])
    >>> call_model(total, Batch(np.ones((2, 3, 1)), np.array([1, 3]))).tolist()
    [1.0, 3.0]
    """
    lengths = None if batch.seq_length is None else _like(batch.seq_length, batch.input)
    if call is not None:
        if batch.hx is not None or batch.resets is not None:
            raise ArgumentError("call: given together with a batch with hx or resets, expected a batch without them")
        return call(model, batch.input, lengths)
    built = _arguments_of_module(model, batch)
    if built is not None:
        return model(**built)
    if not isinstance(getattr(model, "spec", None), Spec) and _is_recurrent_layer_of_torch(model):
        return _call_packed(model, batch)
    arguments = _named_arguments(model, batch, lengths)
    if not _is_of_keras(model):
        return model(batch.input, **arguments)
    with warnings.catch_warnings():
        # Keras warns about a model that takes a mask but passes none on.
        warnings.filterwarnings("ignore", f"Layer '{re.escape(model.name)}' .* does not support masking")
        return model(batch.input, **arguments)


def in_layout_of(model: Any, batch: Batch) -> Batch:
    """The batch in the layout that a model takes: `(B, T, ...)` or `(T, B, ...)`.

    The layout is known for modules that unirnn built, for layers with an attribute ``batch_first``, and for Keras,
    which is always batch-first. Any other model is given the batch as it is.

    Parameters
    ----------
    model
        A module or a layer of any framework, or a function.
    batch
        A batch of NumPy arrays.

    Examples
    --------
    >>> import unirnn
    >>> b = Batch(np.ones((2, 3, 1)))
    >>> in_layout_of(unirnn.GRUSpec(1, 4).build("numpy"), b).input.shape
    (3, 2, 1)
    """
    spec, own = getattr(model, "spec", None), getattr(model, "batch_first", None)
    wanted = is_batch_first(spec) if isinstance(spec, Spec) else True if _is_of_keras(model) else own
    return batch.in_layout(wanted) if isinstance(wanted, bool) else batch


def gradients_of_module(
    framework: Framework, module: Any, batch: Batch, cotangents: Sequence[NDArray[Any]]
) -> dict[str, NDArray[Any]] | None:
    """Gradients that a backend computes for its own modules only; see `Backend.gradients`.

    Parameters
    ----------
    framework, module
        The module, and its framework.
    batch
        A batch of NumPy arrays.
    cotangents
        A cotangent for each array that the module returns.

    Returns
    -------
    dict or None
        The gradients by name; None if there are none.
    """
    arguments = _arguments_of_module(module, batch)
    if arguments is None or not isinstance(framework, Backend):
        return None
    try:
        return framework.gradients(module, arguments, cotangents)
    except (ArgumentError, LimitError):  # such as a kernel without gradients
        return None


def _arguments_of_module(model: Any, batch: Batch) -> dict[str, Any] | None:
    """All arguments for a module that unirnn built from a spec other than a `Model`; None for anything else."""
    spec = getattr(model, "spec", None)
    if not isinstance(spec, Spec) or isinstance(spec, Model):
        return None
    given = {"input": batch.input, "hx": batch.hx, "seq_length": batch.seq_length, "resets": batch.resets}
    return given if isinstance(spec, RecurrentSpec) else {**given, "return_state": bool(spec.stateful)}


def as_taken_by(model: Any, batch: Batch, weights: Mapping[Any, NDArray[Any]] | None) -> Batch:
    """The batch in the layout of a model, see `in_layout_of`, with its floats in the dtype of the model's weights."""
    if not isinstance(batch, Batch) or not isinstance(batch.input, np.ndarray):
        given = type(batch.input if isinstance(batch, Batch) else batch).__qualname__
        raise ArgumentError(f"batch: given {given}, expected a unirnn.testing.Batch of NumPy arrays")
    own = in_layout_of(model, batch)
    dtype = next((array.dtype for array in (weights or {}).values() if array.dtype.kind == "f"), None)
    if dtype is None:
        return own
    return own.changed(lambda array: array.astype(dtype) if array.dtype.kind == "f" else array)


def _named_arguments(model: Any, batch: Batch, lengths: Any) -> dict[str, Any]:
    """The arguments other than the input, by the names in the signature of the model."""
    parameters = _parameters(model)
    names = tuple(parameters)
    found: dict[str, Any] = {}
    if lengths is not None:
        for name, argument in _ways_to_say_lengths(model, batch, lengths).items():
            if name in names:
                found[name] = argument()
                break
        else:
            raise ArgumentError(
                f"call: not given, and {_class_name(model)} has no argument with a known name for the lengths or for a "
                f"mask: it has {', '.join(names) or 'no others'}; give call=lambda model, input, seq_length: ..."
            )
    for wanted, value in ((STATES, batch.hx), (("resets",), batch.resets)):
        if value is not None:
            own = [name for name in wanted if name in names]
            if not own:
                raise ArgumentError(
                    f"batch: given with {'hx' if wanted is STATES else 'resets'}, expected a batch without: "
                    f"{_class_name(model)} has no argument of that name; it has {', '.join(names) or 'no others'}"
                )
            found[own[0]] = value
    given_by_keras = ("training", "mask") if _is_of_keras(model) else ()
    needed = [n for n, p in parameters.items() if p.default is p.empty and n not in (*found, *given_by_keras)]
    if needed:
        raise ArgumentError(
            f"call: not given, and {_class_name(model)} has further arguments without a default: {', '.join(needed)}; "
            "give call=lambda model, input, seq_length: ..."
        )
    return found


def _ways_to_say_lengths(model: Any, batch: Batch, lengths: Any) -> dict[str, Callable[[], Any]]:
    """For each known name of an argument, a function that makes what it takes."""
    by_sequence = np.arange(batch.steps) < batch.lengths[:, None]  # `(B, T)`

    def mask(array: NDArray[Any]) -> Any:
        return _like(np.ascontiguousarray(array), batch.input)

    if _is_of_keras(model):  # in Keras, a padding_mask marks valid steps as well
        masks = dict.fromkeys((*VALID, "attention_mask", "padding_mask"), lambda: mask(by_sequence))
        return {**masks, **dict.fromkeys(LENGTHS, lambda: lengths)}
    return {
        **dict.fromkeys(LENGTHS, lambda: lengths),
        # In torch.nn, these are `(B, T)` in any layout. They come first: there, `mask` is about pairs of steps.
        **dict.fromkeys(PADDING, lambda: mask(~by_sequence)),
        "attention_mask": lambda: mask(by_sequence.astype(np.int64)),  # in transformers, this is `(B, T)` of 0 and 1
        **dict.fromkeys(VALID, lambda: mask(~batch.padding)),
    }


def _parameters(model: Any) -> dict[str, inspect.Parameter]:
    """The parameters of a model's call after the input, by name."""
    model = unwrapped(model)
    spec = getattr(model, "spec", None)
    if isinstance(spec, Model):
        own: Any = spec.forward
        skipped = 2  # xp and the input
    else:
        own = next((getattr(model, name) for name in ("forward", "construct") if hasattr(model, name)), model)
        skipped = 1  # the input
    if _is_of_keras(model):  # the class has it, since the `call` of a watched layer is replaced
        own, skipped = type(model).call, 2  # self and the input
    try:
        parameters = list(inspect.signature(own).parameters.values())[skipped:]
    except (TypeError, ValueError):  # a function in C
        return {}
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    return {parameter.name: parameter for parameter in parameters if parameter.kind not in variable}


def unwrapped(model: Any) -> Any:
    """The module inside torch's wrappers, which are those of `torch.compile` and of training on several devices."""
    torch = sys.modules.get("torch")
    while torch is not None and isinstance(model, torch.nn.Module):
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)):
            model = model.module
        else:
            break
    return model


def _call_packed(layer: Any, batch: Batch) -> tuple[Any, Any]:
    """The output and the final state of one of torch's own layers, which is given a packed sequence."""
    if batch.resets is not None:
        raise ArgumentError(f"batch: given with resets, expected a batch without: {_class_name(layer)} has none")
    if batch.seq_length is None:
        result: tuple[Any, Any] = layer(batch.input, batch.hx)
        return result
    if not batch.seq_length.all():
        raise ArgumentError(
            "seq_length: given a length of 0, expected at least 1, since torch can't pack an empty sequence; give "
            "batch(..., min_length=1)"
        )
    rnn: Any = sys.modules["torch.nn.utils.rnn"]
    lengths = _like(batch.seq_length, batch.input).cpu()
    packed = rnn.pack_padded_sequence(batch.input, lengths, batch.batch_first, enforce_sorted=False)
    output, final = layer(packed, batch.hx)
    padded, _ = rnn.pad_packed_sequence(output, batch.batch_first, total_length=batch.steps)
    return padded, final


def _is_recurrent_layer_of_torch(model: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(model, torch.nn.RNNBase)


def _is_of_keras(model: Any) -> bool:
    return "keras" in registry.packages(model)


def _like(array: NDArray[Any], other: Any) -> Any:
    """A copy of a NumPy array, as an array of the framework of another one and on its device."""
    array = array.copy()  # the model may change it in place
    if isinstance(other, np.ndarray):
        return array
    if "mindspore" in registry.packages(other) and array.dtype == np.int64:
        array = array.astype(np.int32)  # the integers of MindSpore's own layers
    for backend in registry.backends_for(other):
        found = backend.like(array, other)
        if found is not None:
            return found
    return array


def _class_name(model: Any) -> str:
    kind = model if inspect.isroutine(model) else type(model)
    return f"{kind.__module__}.{kind.__qualname__}"
