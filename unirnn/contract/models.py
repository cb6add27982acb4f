"""The call of a model: its arguments are understood and checked in one place, for every backend.

A model is called as ``net(input, hx=None, seq_length=None, resets=None, return_state=False)`` and makes one step as
``net.step(x, state=None)``. The input is `(B, T, F)`, or `(T, B, F)` if the recurrent layers of the model are not
``batch_first``; without the axis F where an embedding comes first. What flows through the layers is the array, the
lengths and the states:

- each layer maps the lengths (`unirnn.Spec.output_lengths`); a length of 0 stays 0; after a pooling there are none;
- what stands in the padding of the input changes no output, no state and no gradient, and no running statistics;
- from the last valid step on the output is exactly 0; a pooled sequence of length 0 is 0 before the layers that follow;
- ``resets`` go to the recurrent layers. A model with a layer that mixes steps in another way (a convolution over more
  than one step, a pooling) refuses them;
- the state is a tuple with one item for each layer that has a state, in the order of `unirnn.Spec.stateful`:
  a recurrent layer's ``h`` or ``(h, c)``, and the context of a causal convolution, `(span-1, B, C)`. Each item may be
  None, for zeros.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirnn.devices import short_name
from unirnn.errors import ArgumentError, DTypeError, ShapeError, SpecError
from unirnn.specs import (
    ActivationSpec,
    BatchNormSpec,
    Conv1dSpec,
    DropoutSpec,
    ModelSpec,
    NormalizeSpec,
    PoolSpec,
    RecurrentSpec,
    Sequential,
    Spec,
    SumDirectionsSpec,
)

from .arrays import check_array, check_dtype, check_state_dtype
from .call import join_state, state_parts
from .lengths import Sizes, parse_lengths, parse_resets

__all__ = [
    "ModelCall",
    "ModelModule",
    "check_steps_of_batch_norms",
    "check_tokens",
    "clean_tokens",
    "is_batch_first",
    "keeps_zeros",
    "prepare_model",
    "prepare_model_step",
    "starts_recurrent",
]

State = tuple[Any, ...]
"""The parts of the state of one layer: ``(h,)``, ``(h, c)`` or ``(context,)``."""


class ModelCall(NamedTuple):
    """The arguments of a call of a model, checked, with an axis B.

    Parameters
    ----------
    input
        `(B, T, F)` or `(T, B, F)`, without F for tokens. Of a step: `(B, F)` or `(B,)`. If ``sizes`` is None, of any
        shape.
    states
        For each layer that has a state, the parts of its initial state, with an axis B; None is zeros.
    lengths
        `(B,)`, as ``read_lengths`` returned them; None if every step is valid.
    resets
        `(T, B)`, as ``read_resets`` returned them; None if no sequence begins anew.
    sizes
        T and B, as the caller gave them; None for a model that computes each step by itself, and is called without
        lengths and resets.
    is_step
        Whether it is one step, without an axis T.
    """

    input: Any
    states: tuple[State | None, ...]
    lengths: Any
    resets: Any
    sizes: Sizes | None
    is_step: bool = False

    @property
    def is_batched(self) -> bool:
        """Whether the caller's arrays have an axis B, or need none."""
        return self.sizes is None or self.sizes.batch_size is not None

    def restore(self, spec: Spec, output: Any) -> Any:
        """The output as the caller gets it."""
        if self.is_batched:
            return output
        return output[0, ...] if self.is_step or spec.ends_steps or is_batch_first(spec) else output[:, 0, ...]

    def restore_states(self, states: Sequence[State]) -> tuple[Any, ...]:
        """The states as the caller gets them: for each layer an array, or an LSTM's pair."""
        return tuple(join_state(state if self.is_batched else [part[:, 0, ...] for part in state]) for state in states)


def is_batch_first(spec: Spec) -> bool:
    """Whether a spec takes `(B, T, F)`: a model as its recurrent layers do; whatever has none does.

    Examples
    --------
    >>> import unirnn
    >>> is_batch_first(unirnn.GRUSpec(3, 4)), is_batch_first(unirnn.PoolSpec("mean"))
    (False, True)
    """
    return spec.batch_first if isinstance(spec, (ModelSpec, RecurrentSpec)) else True


def starts_recurrent(spec: Spec) -> bool:
    """Whether a recurrent layer is the only one that sees the input, so that nothing of the padding gets through.

    Examples
    --------
    >>> import unirnn
    >>> starts_recurrent(unirnn.Sequential(unirnn.GRUSpec(3, 4), unirnn.LinearSpec(4, 2)))
    True
    """
    if isinstance(spec, Sequential):
        return len(spec) > 0 and starts_recurrent(spec.children[0][1])
    return isinstance(spec, RecurrentSpec)


def keeps_zeros(spec: Spec) -> bool:
    """Whether a layer that computes each step by itself gives exact zeros for zeros, whatever its weights are.

    Examples
    --------
    >>> import unirnn
    >>> keeps_zeros(unirnn.ActivationSpec("relu")), keeps_zeros(unirnn.ActivationSpec("sigmoid"))
    (True, False)
    """
    if isinstance(spec, ActivationSpec):
        return spec.function in ("relu", "tanh", "gelu", "silu")
    return isinstance(spec, (DropoutSpec, NormalizeSpec, SumDirectionsSpec))


def prepare_model(
    spec: Spec,
    input: Any,
    hx: Any,
    seq_length: Any,
    resets: Any,
    *,
    like: tuple[type[Any], Any],
    read_lengths: Callable[[Any, Sizes], Any] = parse_lengths,
    read_resets: Callable[[Any, Sizes, bool], Any] = parse_resets,
) -> ModelCall:
    """Check the arguments of a call.

    Parameters
    ----------
    spec
        The model.
    input, hx, seq_length, resets
        As the model was called.
    like
        The framework's class of an array, and the model's dtype; see `unirnn.contract.call.prepare`.
    read_lengths, read_resets
        See `unirnn.contract.call.prepare`.

    Raises
    ------
    ArgumentError
        If an argument is missing, or not an array of the framework; if the state has the wrong number of items or
        parts; if the model can't take lengths or resets.
    ShapeError, DTypeError
        If an array, the lengths or the resets have the wrong shape or dtype, or there are too few steps.
    LengthError
        If a length is below 0 or above T.
    """
    if input is None:
        raise ArgumentError(f"{spec.kind}: input is missing")
    array_type, dtype = like
    shape = _check_input("input", spec, input, array_type, dtype)
    if spec.is_pointwise and not spec.needs_steps and seq_length is None and resets is None:
        return ModelCall(input, _read_states(spec, hx, "hx", None, array_type, dtype), None, None, None)
    batch_first = is_batch_first(spec)
    rank = 2 if spec.takes_tokens else 3
    if len(shape) not in (rank - 1, rank):
        feature = "" if spec.takes_tokens else ", F"
        layout = f"(B, T{feature})" if batch_first else f"(T, B{feature})"
        unbatched = "(T,)" if spec.takes_tokens else "(T, F)"
        raise ShapeError(f"input: given shape {shape}, expected {layout}, or {unbatched} when unbatched")
    is_batched = len(shape) == rank
    axis = 1 if is_batched and batch_first else 0
    sizes = Sizes(shape[axis], shape[1 - axis] if is_batched else None)
    _check_steps(spec, shape, sizes.steps)
    states = _read_states(spec, hx, "hx", sizes.batch_size, array_type, dtype)
    ns = None if seq_length is None else read_lengths(seq_length, sizes)
    begins = None
    if resets is not None:
        check_takes_resets(spec)
        begins = read_resets(resets, sizes, batch_first)
    if not is_batched:
        input = input[None, ...] if batch_first else input[:, None, ...]
    return ModelCall(input, states, ns, begins, sizes)


def prepare_model_step(spec: Spec, x: Any, state: Any, *, like: tuple[type[Any], Any]) -> ModelCall:
    """Check the arguments of one step.

    Parameters
    ----------
    spec
        The model.
    x
        `(B, F)` or `(F,)`; `(B,)` or one number for tokens.
    state
        See `prepare_model`.
    like
        See `prepare_model`.

    Raises
    ------
    ArgumentError, ShapeError, DTypeError
        If the model can't go step by step, or as `prepare_model`.
    """
    check_can_stream(spec)
    array_type, dtype = like
    shape = _check_input("x", spec, x, array_type, dtype)
    rank = 1 if spec.takes_tokens else 2
    if len(shape) not in (rank - 1, rank):
        layout = "(B,), or () when unbatched" if spec.takes_tokens else "(B, F), or (F,) when unbatched"
        raise ShapeError(f"x: given shape {shape}, expected {layout}")
    sizes = Sizes(1, shape[0] if len(shape) == rank else None)
    states = _read_states(spec, state, "state", sizes.batch_size, array_type, dtype)
    return ModelCall(x if sizes.batch_size is not None else x[None, ...], states, None, None, sizes, is_step=True)


def check_can_stream(spec: Spec) -> None:
    """Refuse steps of a model that needs whole sequences; raises ArgumentError."""
    for name, leaf in spec.leaves().items():
        if not leaf.can_stream:
            raise ArgumentError(
                f"step: given a model with {name or 'a layer'}, {leaf!r}, which needs whole sequences; call the model"
            )


def check_takes_resets(spec: Spec) -> None:
    """Refuse resets for a model with a layer that would mix the sequences of a column; raises ArgumentError."""
    for name, leaf in spec.leaves().items():
        if isinstance(leaf, PoolSpec) or (isinstance(leaf, Conv1dSpec) and (leaf.span > 1 or leaf.length_rules)):
            raise ArgumentError(
                f"resets: given to a model with {name or 'a layer'}, {leaf!r}, which would mix the sequences of a "
                "column; give each sequence a column of its own, and seq_length"
            )


def check_tokens(spec: Spec, tokens: NDArray[Any], valid: NDArray[np.bool_] | None = None) -> None:
    """Check the values of tokens, where they can be read.

    Parameters
    ----------
    spec
        The model.
    tokens
        `(B, T)` or `(T, B)`, or of any shape.
    valid
        Which of them count, of the same shape; None is all.

    Raises
    ------
    ArgumentError
        If one of them is below 0, or not below the number of embeddings.
    """
    counted = tokens if valid is None else tokens[valid]
    least, largest = (int(counted.min()), int(counted.max())) if counted.size else (0, 0)
    if least < 0 or largest >= spec.input_features:
        wrong = least if least < 0 else largest
        raise ArgumentError(f"input: given token {wrong}, expected 0 <= token < {spec.input_features} (num_embeddings)")


def clean_tokens(spec: Spec, call: ModelCall, tokens: NDArray[Any]) -> NDArray[np.int64]:
    """The tokens of a call on the host, checked, with 0 in the padding.

    Parameters
    ----------
    spec
        The model.
    call
        The call. Its lengths, if any, are on the host.
    tokens
        Its input, with or without the axis B.

    Raises
    ------
    ArgumentError
        As `check_tokens`.

    Examples
    --------
    >>> import unirnn
    >>> spec = unirnn.EmbeddingSpec(5, 2)
    >>> call = prepare_model(spec, np.array([[1, 99]]), None, [1], None, like=(np.ndarray, None))
    >>> clean_tokens(spec, call, call.input).tolist()
    [[1, 0]]
    """
    if call.lengths is None or call.sizes is None:
        check_tokens(spec, tokens)
        return tokens.astype(np.int64)
    valid = np.arange(call.sizes.steps) < call.lengths[:, None]
    valid = (valid if is_batch_first(spec) else valid.T).reshape(tokens.shape)
    check_tokens(spec, tokens, valid)
    return np.where(valid, tokens, 0).astype(np.int64)


def check_steps_of_batch_norms(
    spec: Spec, call: ModelCall, is_training: Callable[[str], bool] = lambda layer: True
) -> None:
    """Check while training, before any layer runs, that each batch normalisation gets enough steps for a variance.

    Parameters
    ----------
    spec
        The model.
    call
        The call. Its lengths, if any, are on the host.
    is_training
        Whether the layer of a name normalises by the batch's own statistics.

    Raises
    ------
    ArgumentError
        If it gets fewer than two valid steps.
    """
    if call.sizes is None or not any(isinstance(leaf, BatchNormSpec) for leaf in spec.leaves().values()):
        return
    batch_size = 1 if call.sizes.batch_size is None else call.sizes.batch_size
    ns = np.full(batch_size, call.sizes.steps) if call.lengths is None else call.lengths

    def after(name: str, layer: Spec, ns: NDArray[np.int64]) -> NDArray[np.int64]:
        """The lengths after a layer."""
        if isinstance(layer, BatchNormSpec) and is_training(name) and ns.sum() < 2:
            raise ArgumentError(
                f"input: given {ns.sum()} valid steps to {layer!r} while training, expected at least 2, whose variance "
                "it needs; give it a larger batch, or switch to evaluation with eval()"
            )
        if isinstance(layer, PoolSpec):
            return np.ones_like(ns)
        if not isinstance(layer, ModelSpec):
            found: NDArray[np.int64] = layer.output_lengths(ns)
            return found
        result = ns
        for child, inner in layer.children:
            result = after(f"{name}.{child}" if name else child, inner, ns)
            ns = result if isinstance(layer, Sequential) else ns
        return result

    after("", spec, ns)


def _check_input(name: str, spec: Spec, array: Any, array_type: type[Any], dtype: Any) -> tuple[int, ...]:
    """The shape of an input whose class, dtype and last axis are right."""
    check_array(name, array, array_type)
    shape = tuple(array.shape)
    if spec.takes_tokens:
        if not short_name(array.dtype).startswith(("int", "uint")):
            raise DTypeError(f"{name}: given dtype {short_name(array.dtype)}, expected integers, which are tokens")
        return shape
    features = spec.input_features
    if not shape or shape[-1] == 0 or (features and shape[-1] != features):
        raise ShapeError(f"{name}: given shape {shape}, expected {features or 'the features'} on the last axis")
    if not features:  # a layer behind the first one may still not take so many
        try:
            spec.output_features(shape[-1])
        except SpecError as error:
            raise ShapeError(f"{name}: given shape {shape}, wrong on the last axis: {error}") from None
    check_dtype(name, array.dtype, dtype)
    return shape


def _check_steps(spec: Spec, shape: tuple[int, ...], steps: int) -> None:
    if steps == 0:
        raise ShapeError(f"input: given shape {shape}, expected at least one time step")
    for rule in spec.length_rules:
        after = rule(steps)
        if after == 0:
            raise ShapeError(
                f"input: given shape {shape}, too few time steps: a convolution sees {rule.span} steps, and is left "
                f"with {steps}"
            )
        steps = after


def _read_states(
    spec: Spec, given: Any, argument: str, batch_size: int | None, array_type: type[Any], dtype: Any
) -> tuple[State | None, ...]:
    layers = spec.stateful
    if given is None:
        return (None,) * len(layers)
    if not isinstance(given, (tuple, list)) or len(given) != len(layers):
        what = f"a {type(given).__name__} of {len(given)}" if isinstance(given, (tuple, list)) else type(given).__name__
        raise ArgumentError(
            f"{argument}: given {what}, expected a tuple with an item for each layer that has a state: "
            f"{', '.join(layer or leaf.kind for layer, leaf in layers.items()) or 'none'}"
        )
    found: list[State | None] = []
    for position, ((layer, leaf), item) in enumerate(zip(layers.items(), given, strict=True)):
        item_name, layer = f"{argument}[{position}]", layer or leaf.kind
        parts = _state_parts(leaf, item, f"{item_name} ({layer})")
        for k, (part, expected) in enumerate(zip(parts or (), leaf.state_shapes(batch_size).values(), strict=False)):
            name = f"{item_name}[{k}] ({layer})" if isinstance(item, (tuple, list)) else f"{item_name} ({layer})"
            check_array(name, part, array_type)
            if tuple(part.shape) != expected:
                raise ShapeError(f"{name}: given shape {tuple(part.shape)}, expected {expected}")
            check_state_dtype(name, part.dtype, dtype)
        if parts is not None and batch_size is None:
            parts = tuple(part[:, None, ...] for part in parts)
        found.append(parts)
    return tuple(found)


def _state_parts(leaf: Spec, item: Any, name: str) -> State | None:
    if isinstance(leaf, RecurrentSpec):
        return state_parts(leaf, item, name)
    if isinstance(item, (tuple, list)):
        raise ArgumentError(f"{name}: given a {type(item).__name__}, expected one array for {leaf.kind}")
    return None if item is None else (item,)


class ModelModule(ABC):
    """A model that is not a class of some framework: its spec, its mode, and its call.

    Subclasses implement `_like` and `_run`, and override `_run_step` if they compute a step in another way than a call.

    Parameters
    ----------
    spec
        The spec of the model, or of one layer.

    Attributes
    ----------
    spec
        As given.
    training
        Whether dropout is on, and batches are normalised by their own statistics; False until `train`.
    """

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.training = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r})"

    def train(self, mode: bool = True) -> "ModelModule":
        """Switch to training (or back)."""
        self.training = mode
        return self

    def eval(self) -> "ModelModule":
        """Switch to evaluation."""
        return self.train(False)

    def output_lengths(self, seq_length: Any) -> Any:
        """How many valid steps the output has; see `unirnn.Spec.output_lengths`."""
        return self.spec.output_lengths(seq_length)

    def __call__(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, return_state: bool = False
    ) -> Any:
        """Run the model.

        Parameters
        ----------
        input
            `(B, T, F)`, or `(T, B, F)` if the recurrent layers are not ``batch_first``, or `(T, F)`; of the weights'
            dtype. Without the axis F, and of integers, if an embedding comes first.
        hx
            A tuple with the initial state of each layer that has one, as ``return_state`` gives it; None is zeros.
        seq_length
            `(B,)` integers, ``0 <= n <= T``; None is T for every sequence. See `unirnn.contract.models`.
        resets
            `(B, T)` or `(T, B)` bools, in the layout of the input; see `unirnn.contract.lengths`.
        return_state
            Whether to return the final state too.

        Returns
        -------
        output
            As the input, with the features of the last layer, or `(B, F)` after a pooling; zero in the padding.
        state
            With ``return_state``: the final state.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, LengthError
            If an argument is wrong; see `unirnn.contract.models.prepare_model`.
        """
        call = prepare_model(self.spec, input, hx, seq_length, resets, like=self._like())
        output, states = self._run(call)
        output = call.restore(self.spec, output)
        return (output, call.restore_states(states)) if return_state else output

    def step(self, x: Any, state: Any = None) -> tuple[Any, tuple[Any, ...]]:
        """Make one time step: as a call over one step, without its axis T.

        Parameters
        ----------
        x
            `(B, F)` or `(F,)`; `(B,)` or `()` integers if an embedding comes first.
        state
            The state before it, as in a call.

        Returns
        -------
        y
            `(B, F)` or `(F,)`.
        state
            The state after it.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError
            If an argument is wrong, or a layer needs whole sequences.
        """
        call = prepare_model_step(self.spec, x, state, like=self._like())
        output, states = self._run_step(call)
        return call.restore(self.spec, output), call.restore_states(states)

    @abstractmethod
    def _like(self) -> tuple[type[Any], Any]:
        """The framework's class of an array, and the model's dtype; see `unirnn.contract.call.prepare`."""

    @abstractmethod
    def _run(self, call: ModelCall) -> tuple[Any, Sequence[State]]:
        """The output in the layout of the input, and the final states."""

    def _run_step(self, call: ModelCall) -> tuple[Any, Sequence[State]]:
        """The output `(B, F)` of one step, and the states after it."""
        return self._run(call)
