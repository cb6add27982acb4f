"""The models that the ``numpy`` backend builds.

Arrays are `(T, B, F)` here, whatever the model's layout is, and `(B, F)` after a pooling. Of a ragged batch, the layers
that compute each step by itself get the valid steps only, packed into rows `(N, F)`. So padding is never computed, and
can't reach a number; and a batch without lengths costs nothing for it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirnn import kernels
from unirnn.contract.backend import leaves
from unirnn.contract.call import Batch, Layout
from unirnn.contract.models import (
    ModelCall,
    ModelModule,
    check_steps_of_batch_norms,
    check_tokens,
    is_batch_first,
    prepare_model,
)
from unirnn.errors import ArgumentError
from unirnn.specs import (
    BatchNormSpec,
    Concat,
    Conv1dSpec,
    DropoutSpec,
    LinearSpec,
    ModelSpec,
    PoolSpec,
    RecurrentSpec,
    Residual,
    Sequential,
    Spec,
)

from . import model_layers
from .module import check_shape

__all__ = ["NumpyModel"]

Array = NDArray[Any]
State = tuple[Array, ...]

_STEP = Layout(batched=True, batch_first=False, is_step=True)


class NumpyModel(ModelModule):
    """A model, or a single layer, over NumPy arrays.

    Parameters
    ----------
    spec
        The spec of the model.
    dtype
        The dtype of the weights.
    weights
        By the names of `unirnn.Spec.weight_shapes`; kept, not copied.
    generator
        Draws dropout while training.
    kernel
        One of `unirnn_numpy.dispatch.SUPPORT`, which computes the recurrent layers.

    Attributes
    ----------
    spec
        The spec of the model.
    dtype
        The dtype of the weights, and of inputs and outputs.
    weights
        Its weights by name; write to the arrays to train it. A weight that is tied to another is there once.
    training
        See `unirnn.contract.models.ModelModule`.

    Examples
    --------
    >>> import numpy, unirnn
    >>> spec = unirnn.Sequential(
    ...     embedding=unirnn.EmbeddingSpec(50, 8),
    ...     encoder=unirnn.GRUSpec(8, 16, batch_first=True),
    ...     pool=unirnn.PoolSpec("mean"),
    ...     head=unirnn.LinearSpec(16, 3),
    ... )
    >>> net = spec.build("numpy", seed=0)
    >>> net(numpy.ones((2, 5), int), seq_length=[5, 2]).shape
    (2, 3)
    """

    def __init__(
        self,
        spec: Spec,
        dtype: Any,
        weights: Mapping[str, Array],
        generator: np.random.Generator,
        kernel: str = "auto",
    ) -> None:
        super().__init__(spec)
        self.weights = dict(weights)
        self.dtype = np.dtype(dtype)
        self._generator = generator
        self._kernel = kernel
        self._names = _weight_names(spec)
        self._last_steps: dict[str, kernels.Prepared | None] = {}

    def vjp(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None
    ) -> tuple[Array, tuple[Any, ...], Callable[..., dict[str, Array]]]:
        """Run the model, and also return a function that computes the gradients.

        Parameters
        ----------
        input, hx, seq_length, resets
            As in a call.

        Returns
        -------
        output, state
            As a call with ``return_state`` returns them.
        pullback
            ``pullback(d_output, d_state=None)`` gives the gradients of the sum of ``output * d_output``, and of each
            part of the state times that of ``d_state``, by name: ``input``, unless it is tokens; ``hx[0]`` or
            ``hx[0][1]`` for each part of the initial state; and each weight that is trained. In ``d_state``, None is
            zeros, as a whole or for a layer. The weights must not be changed between the call and this.

        Raises
        ------
        ArgumentError
            If the model was built with ``kernel="reference"`` and has recurrent layers, or as in a call.

        Examples
        --------
        >>> import numpy, unirnn
        >>> net = unirnn.LinearSpec(3, 1).build("numpy", dtype="float64", seed=0)
        >>> output, state, pullback = net.vjp(numpy.ones((2, 3)))
        >>> gradients = pullback(numpy.ones_like(output))
        >>> {name: gradient.shape for name, gradient in gradients.items()}
        {'input': (2, 3), 'weight': (1, 3), 'bias': (1,)}
        """
        if self._kernel == "reference" and any(isinstance(leaf, RecurrentSpec) for leaf in self.spec.leaves().values()):
            raise ArgumentError(
                "vjp: the model was built with kernel='reference', which has no gradients; the other kernels have"
            )
        call = prepare_model(self.spec, input, hx, seq_length, resets, like=self._like())
        run = _Run(self, call, keep=True)
        batched, pull = run.whole()
        output, state = call.restore(self.spec, batched), call.restore_states(run.finals)
        shape = np.shape(input)
        trained = self.weights.keys() - self.spec.buffers

        def pullback(d_output: Any, d_state: Any = None) -> dict[str, Array]:
            check_shape("d_output", d_output, output)
            back = _Backward([None] * len(run.finals))
            if d_state is not None:
                back.d_finals[:] = run.d_finals(d_state, state)
            d_input = pull(np.asarray(d_output, run.dtype).reshape(batched.shape), back)
            gradients = {} if self.spec.takes_tokens else {"input": d_input.reshape(shape)}
            gradients |= leaves({"hx": call.restore_states(back.d_initials)})
            gradients |= {name: back.d_weights[name] for name in self.weights if name in trained}
            # A mean gives all steps one gradient, in one place of memory, which can't be written to.
            return {name: d.astype(self.dtype, copy=not d.flags.writeable) for name, d in gradients.items()}

        return output, state, pullback

    def _like(self) -> tuple[type[Any], Any]:
        return np.ndarray, self.dtype

    def _run(self, call: ModelCall) -> tuple[Array, list[State]]:
        run = _Run(self, call, keep=False)
        output, _ = run.whole()
        return output, run.finals

    def _run_step(self, call: ModelCall) -> tuple[Array, list[State]]:
        run = _Run(self, call, keep=False)
        return run.step(), run.finals


def _weight_names(spec: Spec) -> dict[str, dict[str, str]]:
    """For each layer by its name, the names of its weights in the layer and in the model."""
    tied = spec.tied() if isinstance(spec, ModelSpec) else {}
    found = {}
    for name, leaf in spec.leaves().items():
        prefix = f"{name}." if name else ""
        found[name] = {weight: prefix + weight for weight in leaf.weight_shapes()}
        if isinstance(leaf, LinearSpec) and leaf.tied_to:
            found[name]["weight"] = tied[f"{prefix}weight"]
    return found


# ---- what flows through --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Ragged:
    """The lengths `(B,)` of a batch whose sequences have at most T steps."""

    lengths: NDArray[np.int64]
    steps: int

    @cached_property
    def valid(self) -> NDArray[np.bool_]:
        """`(T, B)`."""
        found: NDArray[np.bool_] = np.arange(self.steps)[:, None] < self.lengths
        return found

    @cached_property
    def index(self) -> tuple[NDArray[np.intp], ...]:
        """The step and the column of each valid step, in the order of the rows `(N, F)`."""
        return np.nonzero(self.valid)


class _Flow(NamedTuple):
    """What flows from layer to layer.

    Parameters
    ----------
    x
        `(T, B, F)`, or rows `(N, F)`; tokens without F. Any axes may stand before F, if no layer needs to know them.
    axis
        The axis of the steps; None if there is none, or it is not known.
    ragged
        The lengths; None if every step is valid.
    padding
        What stands in the padding. If it is ``"zeros"``, the layer that gave x ignores what stands there in the
        gradient. If it is ``"any"``, the layer that takes x gives zeros there in the gradient. With ``"none"``, x has
        the valid steps only, as rows.
    """

    x: Array
    axis: int | None
    ragged: _Ragged | None
    padding: Literal["any", "zeros", "none"] = "any"

    @property
    def lengths(self) -> NDArray[np.int64] | None:
        return None if self.ragged is None else self.ragged.lengths


@dataclass
class _Backward:
    """The gradients of a backward pass: of the final states, which are given, and the ones that it computes."""

    d_finals: list[State | None]
    d_initials: list[State] = field(init=False)
    d_weights: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.d_initials = [()] * len(self.d_finals)


_Pull = Callable[[Array, _Backward], Array]
"""Computes the gradient of a layer's input from the gradient of its output."""
_Result = tuple[_Flow, _Pull]


def _same(d: Array, _: _Backward) -> Array:
    return d


def _packed(flow: _Flow) -> _Result:
    """The valid steps only."""
    ragged = flow.ragged
    if ragged is None or flow.padding == "none":
        return flow, _same
    shape = flow.x.shape

    def pull(d: Array, _: _Backward) -> Array:
        d_x = np.zeros(shape, d.dtype)
        d_x[ragged.index] = d
        return d_x

    return flow._replace(x=flow.x[ragged.index], padding="none"), pull


def _padded(flow: _Flow) -> _Result:
    """All steps, with zeros in the padding."""
    ragged = flow.ragged
    if ragged is None or flow.padding == "zeros":
        return flow, _same
    if flow.padding == "none":
        x = np.zeros((*ragged.valid.shape, *flow.x.shape[1:]), flow.x.dtype)
        x[ragged.index] = flow.x
        return flow._replace(x=x, padding="zeros"), lambda d, _: d[ragged.index]
    valid = ragged.valid[..., None]
    return flow._replace(x=np.where(valid, flow.x, 0), padding="zeros"), lambda d, _: np.where(valid, d, 0)


class _Run:
    """One run of a model. All that it remembers is here, so that threads may share a model.

    Parameters
    ----------
    model
        The model.
    call
        Its arguments.
    keep
        Whether there will be a backward pass.

    Attributes
    ----------
    finals
        The final state of each layer that has one, in the dtype of the model.
    dtype
        The dtype that is computed with.
    """

    def __init__(self, model: NumpyModel, call: ModelCall, *, keep: bool) -> None:
        self._model, self._call, self._keep = model, call, keep
        self._training, self._weights = model.training, dict(model.weights)
        self._statistics: list[tuple[Array, Array]] = []
        self.finals: list[State] = []
        self.dtype = model_layers.computed(model.dtype)
        if self._training:
            check_steps_of_batch_norms(model.spec, call)

    def whole(self) -> tuple[Array, _Pull]:
        """The output in the layout of the input, and what gives the gradient of the input in its layout."""
        spec, call, x = self._model.spec, self._call, self._call.input
        swaps = call.sizes is not None and is_batch_first(spec)
        if call.sizes is None:
            rank = 2 if spec.takes_tokens else 3
            flow = _Flow(x, 1 if x.ndim == rank else None, None)
        else:
            steps, ns = call.sizes.steps, call.lengths
            ragged = None if ns is None or (ns == steps).all() else _Ragged(ns, steps)
            flow = _Flow(x.swapaxes(0, 1) if swaps else x, 0, ragged)
        is_kept = self._keep and flow.ragged is None  # the caller may write over it before the backward pass
        flow = flow._replace(x=self._entered(flow.x, copy=is_kept))
        pulls: list[_Pull] = []
        if spec.takes_tokens:
            flow, pull = _packed(flow)
            pulls.append(pull)
            check_tokens(spec, flow.x)
        flow, pull = self._layer("", spec, flow)
        pulls.append(pull)
        if flow.axis is not None:
            flow, pull = _padded(flow)
            pulls.append(pull)
        swaps_back = swaps and flow.axis is not None
        self._finish()

        def pull_all(d: Array, back: _Backward) -> Array:
            d = _in_turn(*pulls)(d.swapaxes(0, 1) if swaps_back else d, back)
            return d.swapaxes(0, 1) if swaps else d

        return self._rounded(flow.x.swapaxes(0, 1) if swaps_back else flow.x), pull_all

    def step(self) -> Array:
        """The output `(B, F)` of a single step, whose arrays have no axis T."""
        spec, x = self._model.spec, self._call.input
        if spec.takes_tokens:
            check_tokens(spec, x)
        flow, _ = self._layer("", spec, _Flow(self._entered(x, copy=False), None, None))
        self._finish()
        return self._rounded(flow.x)

    def d_finals(self, d_state: Any, state: tuple[Any, ...]) -> list[State | None]:
        """The gradients of the final states as the backward pass takes them; ArgumentError, ShapeError."""
        if not isinstance(d_state, (tuple, list)) or len(d_state) != len(state):
            raise ArgumentError(f"d_state: given {type(d_state).__name__}, expected a tuple of {len(state)}, as state")
        found: list[State | None] = []
        for k, (item, like, final) in enumerate(zip(d_state, state, self.finals, strict=True)):
            if item is None:
                found.append(None)
                continue
            given, expected = (tuple(x) if isinstance(x, (tuple, list)) else (x,) for x in (item, like))
            if len(given) != len(expected):
                raise ArgumentError(f"d_state[{k}]: given {len(given)} arrays, expected {len(expected)}, as in state")
            for d, part in zip(given, expected, strict=True):
                if d is not None:
                    check_shape(f"d_state[{k}]", d, part)
            parts = ((np.zeros_like(part) if d is None else d, part) for d, part in zip(given, final, strict=True))
            found.append(tuple(np.asarray(d, self.dtype).reshape(part.shape) for d, part in parts))
        return found

    def _entered(self, x: Array, *, copy: bool) -> Array:
        dtype = np.intp if self._model.spec.takes_tokens else self.dtype
        return np.array(x, dtype, order="C") if copy else x.astype(dtype, copy=False)

    def _rounded(self, array: Array) -> Array:
        return array.astype(self._model.dtype, copy=False)

    def _finish(self) -> None:
        """Write what batch normalisations found, once nothing can fail any more."""
        for array, value in self._statistics:
            array[...] = value

    # ---- the layers --------------------------------------------------------------------------

    def _layer(self, name: str, spec: Spec, flow: _Flow) -> _Result:
        prefix = f"{name}." if name else ""
        if isinstance(spec, Sequential):
            pulls = []
            for child, layer in spec.children:
                flow, pull = self._layer(prefix + child, layer, flow)
                pulls.append(pull)
            return flow, _in_turn(*pulls)
        if isinstance(spec, Residual):
            ((child, layer),) = spec.children
            return self._residual(prefix + child, layer, flow)
        if isinstance(spec, Concat):
            return self._concat([self._layer(prefix + child, layer, flow) for child, layer in spec.children])
        if isinstance(spec, RecurrentSpec):
            return self._recurrent(name, spec, flow)
        if isinstance(spec, Conv1dSpec):
            return self._conv1d(name, spec, flow)
        if isinstance(spec, PoolSpec):
            return self._pool(spec, flow)
        flow, pack = _packed(flow)
        x, pull = self._pointwise(name, spec, flow)
        return flow._replace(x=x), _in_turn(pack, pull)

    def _residual(self, name: str, layer: Spec, flow: _Flow) -> _Result:
        after, pull = self._layer(name, layer, flow)
        before, pull_before = _packed(flow) if after.padding == "none" else _padded(flow)
        return after._replace(x=before.x + after.x), lambda d, back: pull_before(d, back) + pull(d, back)

    def _concat(self, results: list[_Result]) -> _Result:
        are_padded = all(flow.padding == "zeros" for flow, _ in results)
        aligned = [(_padded if are_padded else _packed)(flow) for flow, _ in results]
        xs = [flow.x for flow, _ in aligned]
        ends = np.cumsum([x.shape[-1] for x in xs])[:-1]
        pulls = [_in_turn(pull, align) for (_, pull), (_, align) in zip(results, aligned, strict=True)]

        def pull(d: Array, back: _Backward) -> Array:
            parts = zip(pulls, np.split(d, ends, axis=-1), strict=True)
            first, *others = [of_layer(part, back) for of_layer, part in parts]
            return sum(others, start=first)

        return aligned[0][0]._replace(x=np.concatenate(xs, axis=-1)), pull

    def _pointwise(self, name: str, spec: Spec, flow: _Flow) -> tuple[Array, _Pull]:
        """A layer that gets the valid steps only."""
        x, weights = flow.x, self._own_weights(name)
        if isinstance(spec, DropoutSpec):
            if not self._training or not spec.p:
                return x, _same
            factor = self._dropout(spec, flow)
            return x * factor, lambda d, _: d * factor
        if isinstance(spec, BatchNormSpec):
            x, pullback, running = model_layers.batch_norm(spec, weights, x, self._keep, training=self._training)
            if self._training:
                self._statistics += zip((weights[buffer] for buffer in spec.buffers), running, strict=True)
        else:
            x, pullback = model_layers.LAYERS[type(spec)](spec, weights, x, self._keep)
        return x, _same if pullback is None else self._collecting(name, pullback)

    def _dropout(self, spec: DropoutSpec, flow: _Flow) -> Array:
        """What dropout multiplies with."""
        shape, columns = list(flow.x.shape), None
        if spec.locked and flow.axis is not None:
            if flow.ragged is None:
                shape[flow.axis] = 1
            else:
                columns = flow.ragged.index[1]
                shape[0] = len(flow.ragged.lengths)
        factor = model_layers.noise(self._model._generator, tuple(shape), spec.p, self.dtype)
        return factor if columns is None else factor[columns]

    def _recurrent(self, name: str, spec: RecurrentSpec, flow: _Flow) -> _Result:
        if flow.axis is None:  # a single step, which has no backward pass
            return flow._replace(x=self._recurrent_step(name, spec, flow.x)), _same
        unpack: _Pull = _same
        if flow.padding == "none":  # it does not read the padding
            flow, unpack = _padded(flow)
        weights, position = self._own_weights(name), len(self.finals)
        state, noise = self._call.states[position], None
        if self._training:
            noise = model_layers.recurrent_noise(self._model._generator, spec, flow.x.shape[:2], self.dtype)
        batch = Batch(flow.x, state, flow.lengths, self._call.resets)
        y, final, pullback = model_layers.recurrent(
            spec, weights, batch, kernel=self._model._kernel, noise=noise, keep=self._keep
        )
        self.finals.append(tuple(map(self._rounded, final)))

        def pull(d: Array, back: _Backward) -> Array:
            assert pullback is not None
            given = back.d_finals[position]
            gradients = pullback(d, tuple(map(np.zeros_like, final)) if given is None else given)
            back.d_initials[position] = tuple(gradients.pop(f"{part}_0") for part in spec.states)
            d_x = gradients.pop("input")
            self._collect(name, gradients, back)
            return d_x

        return flow._replace(x=y, padding="zeros"), _in_turn(unpack, pull)

    def _conv1d(self, name: str, spec: Conv1dSpec, flow: _Flow) -> _Result:
        if flow.axis is None:  # a single step, which has no backward pass
            after_step, _ = self._conv1d(name, spec, _Flow(flow.x[None], 0, None))
            return flow._replace(x=after_step.x[0]), _same
        flow, pad = _padded(flow)
        context, position = None, len(self.finals)
        if spec.state_shapes(None):
            state = self._call.states[position]
            context = None if state is None else state[0]
        y, after, pullback = model_layers.conv1d(
            spec, self._own_weights(name), flow.x, context, flow.lengths, self._keep
        )
        if after is not None:
            self.finals.append((self._rounded(after),))

        def pull(d: Array, back: _Backward) -> Array:
            assert pullback is not None
            given = None if after is None else back.d_finals[position]
            d_x, gradients, d_before = pullback(d, None if given is None else given[0])
            if after is not None:
                back.d_initials[position] = (d_before,)
            self._collect(name, gradients, back)
            return d_x

        ragged = None if flow.ragged is None else _Ragged(spec.output_lengths(flow.ragged.lengths), len(y))
        return _Flow(y, 0, ragged), _in_turn(pad, pull)

    def _pool(self, spec: PoolSpec, flow: _Flow) -> _Result:
        flow, pad = _padded(flow)
        y, pullback = model_layers.pool(spec, flow.x, flow.lengths, self._keep)

        def pull(d: Array, _: _Backward) -> Array:
            assert pullback is not None
            return pullback(d)

        return _Flow(y, None, None), _in_turn(pad, pull)

    def _recurrent_step(self, name: str, spec: RecurrentSpec, x: Array) -> Array:
        """Make a step with what was prepared for the last one, if it fits: preparing takes longer than the step."""
        steps, weights, kernel = self._model._last_steps, self._own_weights(name), self._model._kernel
        state, noise = self._call.states[len(self.finals)], None
        if self._training:
            noise = model_layers.recurrent_noise(self._model._generator, spec, (1, len(x)), self.dtype)
        parts = () if state is None else state
        last = steps.get(name)
        if noise is None and last is not None and last.fits(weights, x, parts):
            y, final = last.run(x, parts)
            self.finals.append(final)
            return y
        can_be_had = kernel in ("auto", "compiled") and kernels.Prepared.can_be_had(weights, x)
        steps[name] = kernels.Prepared(spec, weights, x, _STEP) if can_be_had else None
        ys, final, _ = model_layers.recurrent(spec, weights, Batch(x[None], state), kernel=kernel, noise=noise)
        self.finals.append(tuple(map(self._rounded, final)))
        return ys.reshape(ys.shape[1:])

    # ---- weights and their gradients ---------------------------------------------------------

    def _own_weights(self, name: str) -> dict[str, Array]:
        return {weight: self._weights[full] for weight, full in self._model._names[name].items()}

    def _collecting(self, name: str, pullback: model_layers.Pullback) -> _Pull:
        def pull(d: Array, back: _Backward) -> Array:
            d_x, gradients = pullback(d)
            self._collect(name, gradients, back)
            return d_x

        return pull

    def _collect(self, name: str, gradients: dict[str, Array], back: _Backward) -> None:
        names, found = self._model._names[name], back.d_weights
        for weight, gradient in gradients.items():
            full = names[weight]
            found[full] = found[full] + gradient if full in found else gradient  # a tied weight has two


def _in_turn(*pulls: _Pull) -> _Pull:
    """The pullback of layers one after another."""

    def pull(d: Array, back: _Backward) -> Array:
        for one in reversed(pulls):
            d = one(d, back)
        return d

    return pull
