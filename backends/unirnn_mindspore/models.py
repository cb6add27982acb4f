"""The models that the ``mindspore`` backend builds, and the layers around recurrent ones.

A `Model` is what the caller holds: it checks a call, and knows the layout and the lengths. Its body is a tree of cells,
of `Chain`, `Sum` and `Beside` and the layers in them. A layer that computes each step by itself is called as
``layer(x)``, and MindSpore's own is taken where it is right on a CPU. A layer that mixes steps, and each cell that has
other layers, is called as::

    layer(x, lengths, resets, states) -> x, lengths, states

with x of `(B, T, F)`, or of `(T, B, F)` if the model is not batch-first, `(B,)` lengths or None, and a tuple with the
state of each layer in it that has one, which is None for zeros.

When a model is built, it is known where the padding may be anything but zeros. So what must be cleaned is cleaned there
only, by selection, and nothing of it runs without lengths.

This file is written in the part of Python that MindSpore's graph mode compiles.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import numpy as np
from mindspore import Parameter, Tensor, nn, ops
from mindspore import dtype as mstype
from numpy.typing import NDArray

from unirnn import (
    ActivationSpec,
    BatchNormSpec,
    Concat,
    Conv1dSpec,
    DropoutSpec,
    EmbeddingSpec,
    LayerNormSpec,
    LinearSpec,
    NormalizeSpec,
    PoolSpec,
    RecurrentSpec,
    Residual,
    Sequential,
    Spec,
    SumDirectionsSpec,
)
from unirnn.contract.models import ModelModule as ModelOnHost
from unirnn.contract.models import (
    check_steps_of_batch_norms,
    clean_tokens,
    is_batch_first,
    keeps_zeros,
    prepare_model,
    prepare_model_step,
    starts_recurrent,
)
from unirnn.devices import short_name
from unirnn.specs import ModelSpec

from . import dispatch
from .calls import (
    CheckedCell,
    as_lengths,
    as_resets,
    as_tuples,
    described,
    described_states,
    known,
    on_host,
    traced_model,
    with_batch,
    without_batch,
)
from .lengths import in_graph, is_compiling, lengths_after, select, valid_steps
from .model_layers import (
    BatchNorm,
    Convolution,
    Embedding,
    LayerNorm,
    LockedDropout,
    LogSoftmax,
    Normalize,
    Place,
    Pool,
    SumDirections,
    Tanh,
)
from .module import Recurrent
from .operators import CheckedLengths, CheckedTokens

__all__ = ["Model", "build"]

Array = NDArray[Any]

# ---- layers of layers --------------------------------------------------------------------------------

Kind = Literal["pointwise", "recurrent", "steps"]
"""How a layer is called: ``layer(x)``, as a `Recurrent`, or as the module's documentation says."""


class Layers(nn.Cell):
    """What `Chain`, `Sum` and `Beside` have in common: cells by names.

    Parameters
    ----------
    layers
        The cells by their names.
    kinds
        How each of them is called.
    states
        How many states each of them takes.
    """

    def __init__(self, layers: Mapping[str, nn.Cell], kinds: tuple[Kind, ...], states: tuple[int, ...]) -> None:
        super().__init__()
        self.layers = tuple(layers.values())
        self.kinds = kinds
        self.first_states = tuple(sum(states[:k]) for k in range(len(states) + 1))
        for name, layer in layers.items():
            if hasattr(self, name):  # such as "phase", which a cell has; then it is in `layers` only
                self._cells[name] = layer
            else:
                setattr(self, name, layer)

    def _run(self, position: int, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        layer, kind = self.layers[position], self.kinds[position]
        if kind == "pointwise":
            return layer(x), lengths, ()
        own = states[self.first_states[position] : self.first_states[position + 1]]
        if kind == "recurrent":
            x, final = layer(x, own[0], lengths, resets)
            return x, lengths, (final,)
        return layer(x, lengths, resets, own)


class Chain(Layers):
    """See `unirnn.Sequential`."""

    def construct(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """Run one layer after another."""
        finals: Any = ()
        for position in range(len(self.layers)):
            x, lengths, found = self._run(position, x, lengths, resets, states)
            finals += found
        return x, lengths, finals


class Sum(Layers):
    """See `unirnn.Residual`."""

    def construct(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """Add what the layer gives to what it takes."""
        y, lengths, finals = self._run(0, x, lengths, resets, states)
        return x + y, lengths, finals


class Beside(Layers):
    """See `unirnn.Concat`."""

    def construct(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """Put what the layers give side by side."""
        outputs: Any = ()
        finals: Any = ()
        after: Any = None
        for position in range(len(self.layers)):
            y, after, found = self._run(position, x, lengths, resets, states)
            outputs += (y,)
            finals += found
        return ops.concat(outputs, -1), after, finals


# ---- building ----------------------------------------------------------------------------------------

_ACTIVATIONS: dict[str, Callable[[], nn.Cell]] = {
    "relu": nn.ReLU,
    "tanh": Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": lambda: nn.GELU(approximate=False),
    "silu": nn.SiLU,
    "hard_sigmoid": nn.HSigmoid,
    "softmax": nn.Softmax,
    "log_softmax": LogSoftmax,
}


class _Builder:
    """Makes the cells of a model from its spec."""

    def __init__(
        self, spec: Spec, weights: Mapping[str, Array], dtype: Any, device: dispatch.DeviceKind, kernel: str
    ) -> None:
        self.dtype, self.kernel = dtype, kernel
        self.device: dispatch.DeviceKind = device
        self.arrays = {name: np.asarray(weights[name], short_name(dtype)) for name in spec.weight_shapes()}
        tied = spec.tied() if isinstance(spec, ModelSpec) else {}
        buffers = set(spec.buffers)
        # Recurrent layers make their own parameters.
        owners = tuple(f"{name}." for name, leaf in spec.leaves().items() if isinstance(leaf, RecurrentSpec))
        self.parameters = {
            name: Parameter(array, name=name, requires_grad=name not in buffers)
            for name, array in self.arrays.items()
            if not name.startswith(owners)
        }
        self.parameters |= {name: self.parameters[other] for name, other in tied.items()}

    def layer(self, path: str, spec: Spec, place: Place) -> tuple[nn.Cell, Kind, Place]:
        """Make a layer; returns how it is called, and what follows it."""
        prefix = f"{path}." if path else ""
        if isinstance(spec, ModelSpec):
            return self.layers(prefix, spec, place)
        if isinstance(spec, RecurrentSpec):
            own = {name: self.arrays[prefix + name] for name in spec.weight_shapes()}
            cell = Recurrent(spec, own, self.dtype, self.device, self.kernel)
            return cell, "recurrent", place._replace(is_clean=True)
        names = [*spec.weight_shapes(), *(["weight"] if isinstance(spec, LinearSpec) and spec.tied_to else [])]
        parameters = {name: self.parameters[prefix + name] for name in names}
        match spec:
            case Conv1dSpec():
                return Convolution(spec, parameters, place), "steps", place._replace(is_clean=False)
            case PoolSpec():
                return Pool(spec, place), "steps", place._replace(has_steps=False)
            case BatchNormSpec():
                return BatchNorm(spec, parameters, place), "steps", place._replace(is_clean=False)
        # MindSpore's tanh of 0 need not be exactly 0.
        is_clean = place.is_clean and keeps_zeros(spec) and spec != ActivationSpec("tanh")
        return self.pointwise(spec, parameters, place), "pointwise", place._replace(is_clean=is_clean)

    def pointwise(self, spec: Spec, parameters: Mapping[str, Parameter], place: Place) -> nn.Cell:
        """Make a layer that computes each step by itself."""
        match spec:
            case EmbeddingSpec():
                return Embedding(spec, parameters["weight"])
            case LinearSpec():
                cell = nn.Dense(
                    spec.in_features, spec.out_features, "zeros", "zeros", has_bias=spec.bias, dtype=self.dtype
                )
                for name, parameter in parameters.items():
                    setattr(cell, name, parameter)
                return cell
            case ActivationSpec():
                return _ACTIVATIONS[spec.function]()
            case DropoutSpec() if spec.locked and spec.p and place.has_steps:
                return LockedDropout(spec.p, 1 if place.batch_first else 0)
            case DropoutSpec():
                return nn.Dropout(p=spec.p)
            case LayerNormSpec():
                return LayerNorm(spec, parameters["weight"], parameters["bias"])
            case NormalizeSpec():
                return Normalize(spec, self.dtype)
            case SumDirectionsSpec():
                return SumDirections()
            case _:
                raise NotImplementedError(spec.kind)

    def layers(self, prefix: str, spec: ModelSpec, place: Place) -> tuple[nn.Cell, Kind, Place]:
        """Make the layers of a model, and the cell that runs them."""
        cells: dict[str, nn.Cell] = {}
        kinds: list[Kind] = []
        after, ends = place, []
        for name, child in spec.children:
            cells[name], kind, after = self.layer(
                prefix + name, child, after if isinstance(spec, Sequential) else place
            )
            kinds.append(kind)
            ends.append(after)
        states = tuple(len(child.stateful) for child in spec)
        if isinstance(spec, Sequential):
            return Chain(cells, tuple(kinds), states), "steps", after
        is_clean = all(end.is_clean for end in ends)
        if isinstance(spec, Residual):
            return Sum(cells, tuple(kinds), states), "steps", after._replace(is_clean=is_clean and place.is_clean)
        assert isinstance(spec, Concat)
        return Beside(cells, tuple(kinds), states), "steps", after._replace(is_clean=is_clean)


# ---- the model ---------------------------------------------------------------------------------------


class Model(CheckedCell, Layers):
    """A model, or one layer that is not recurrent.

    Parameters
    ----------
    spec
        The spec of the model.
    weights
        By the names of `unirnn.Spec.weight_shapes`; copied.
    dtype
        The dtype of the parameters.
    device
        ``"cpu"``, ``"gpu"`` or ``"ascend"``: where it will run.
    kernel
        That of the recurrent layers; one of `unirnn_mindspore.dispatch.SUPPORT`.

    Attributes
    ----------
    spec
        The spec of the model.
    dtype
        The dtype of the parameters.
    body
        The cell with the layers. Each of them is an attribute of the model too, by its name.

    Examples
    --------
    >>> import mindspore, unirnn
    >>> spec = unirnn.Sequential(
    ...     embedding=unirnn.EmbeddingSpec(50, 8), pool=unirnn.PoolSpec("mean"), head=unirnn.LinearSpec(8, 2)
    ... )
    >>> net = spec.build("mindspore", seed=0)
    >>> net(mindspore.ops.ones((3, 5), mindspore.int64), seq_length=[5, 2, 0]).shape
    (3, 2)
    >>> [parameter.name for parameter in net.trainable_params()]
    ['embedding.weight', 'head.weight', 'head.bias']
    """

    def __init__(
        self,
        spec: Spec,
        weights: Mapping[str, Array],
        dtype: Any,
        device: dispatch.DeviceKind,
        kernel: str = "auto",
    ) -> None:
        batch_first = is_batch_first(spec)
        place = Place(batch_first, True, is_clean=not starts_recurrent(spec))
        body, kind, after = _Builder(spec, weights, dtype, device, kernel).layer("", spec, place)
        super().__init__({"body": body}, (kind,), (len(spec.stateful),))
        self.spec = spec
        self.dtype = dtype
        self.batch_first = batch_first
        self.takes_tokens = bool(spec.takes_tokens)
        self.is_pointwise = spec.is_pointwise and not spec.needs_steps
        self.rank = 2 if spec.takes_tokens else 3
        self.cleans_input = place.is_clean
        self.cleans_output = after.has_steps and not after.is_clean
        self.ends_steps = spec.ends_steps
        self.rules = tuple(tuple(rule) for rule in spec.length_rules)
        # The shape of each part of each state, without the axis B.
        self.states = tuple(tuple(leaf.state_shapes(None).values()) for leaf in spec.stateful.values())
        # `to_float`, with which `mindspore.amp` sets mixed precision, changes these.
        self.fp16 = self.fp32 = False
        self.on_cpu = device == "cpu"
        self.checked_lengths = CheckedLengths()
        self.checked_tokens = CheckedTokens(spec)
        self.check, self.check_step, self.is_exporting, self.empty_shape = traced_model(spec)
        for name, parameter in self.parameters_and_names():
            parameter.name = name

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            body = self.__dict__.get("_cells", {}).get("body")
            if body is None or name not in body._cells:
                raise
            return body._cells[name]

    def cells_and_names(self, cells: Any = None, name_prefix: str = "") -> Iterator[tuple[str, nn.Cell]]:
        """Iterate over all cells; the body has the model's own name, so that parameters have the names of the spec."""
        seen = cells if cells else set()
        if self not in seen:
            seen.add(self)
            yield name_prefix, self
            yield from self.body.cells_and_names(seen, name_prefix)

    def _checked_on_host(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, return_state: bool = False
    ) -> Any:
        """Check the arguments of a call, values included, and give those of `construct`."""
        given = on_host(resets)
        call = prepare_model(self.spec, input, hx, on_host(seq_length), given, like=self._like())
        if self.training:
            check_steps_of_batch_norms(self.spec, call)
        if call.lengths is not None:
            seq_length = Tensor(call.lengths if call.is_batched else call.lengths[0])
        if call.resets is None:
            resets = None
        elif not isinstance(resets, Tensor):
            resets = Tensor(np.asarray(given))
        if self.takes_tokens:
            input = Tensor(clean_tokens(self.spec, call, input.asnumpy()))
        return input, as_tuples(hx), seq_length, resets, return_state

    def _checked(self, input: Any, hx: Any, seq_length: Any, resets: Any, return_state: bool) -> Any:
        """Do the same when MindSpore compiles, and only shapes and dtypes are known; see below the class."""
        self.check(described(input), described_states(hx), self._dtype(), known(seq_length), known(resets))
        return input, hx, seq_length, resets, return_state

    def construct(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, return_state: bool = False
    ) -> Any:
        input, hx, seq_length, resets, return_state = self._checked(input, hx, seq_length, resets, return_state)
        x = input
        states: Any = self._given(hx)
        if self.is_pointwise and seq_length is None and resets is None:  # of any shape
            y, _, _ = self._run(0, x, None, None, states)
            return (y, ()) if return_state else y
        batched = x.ndim == self.rank
        batch_axis = 0 if self.batch_first else 1
        lengths, begins = as_lengths(seq_length), as_resets(resets)
        if not batched:
            x, states = x.expand_dims(batch_axis), with_batch(states)
            begins = begins if begins is None else begins.expand_dims(batch_axis)
        shape = self.empty_shape(x.shape)
        if shape is not None:  # MindSpore's operators fail for arrays without elements
            y, finals = ops.full(shape, 0, dtype=self.dtype), self.zero_state(0)
        else:
            y, finals = self._flow(x, lengths, begins, states)
        if not batched:
            y = y.squeeze(0 if self.ends_steps else batch_axis)
            finals = without_batch(finals)
        return (y, finals) if return_state else y

    construct.__doc__ = ModelOnHost.__call__.__doc__

    def step(self, x: Any, state: Any = None) -> Any:
        if is_compiling():
            self.check_step(described(x), described_states(state), self._dtype())
        states: Any = self._given(state)
        batched = x.ndim == self.rank - 1
        if not batched:
            x, states = x.expand_dims(0), with_batch(states)
        axis = 1 if self.batch_first else 0
        y, finals = self._flow(x.expand_dims(axis), None, None, states)
        y = y.squeeze(axis)
        return (y, finals) if batched else (y.squeeze(0), without_batch(finals))

    def output_lengths(self, seq_length: Any) -> Any:
        """How many valid steps the output has; see `unirnn.Spec.output_lengths`."""
        if self.ends_steps:
            return None
        if isinstance(seq_length, Tensor):
            return lengths_after(self.rules, seq_length)
        return self.spec.output_lengths(seq_length)

    def zero_state(self, batch_size: Any = None) -> Any:
        """Give the state before the first step of a sequence; see `unirnn.state.zeros`."""
        found: Any = ()
        for shapes in self.states:
            parts: Any = ()
            for shape in shapes:
                whole = shape if batch_size is None else (shape[0], batch_size, shape[1])
                parts += (ops.full(whole, 0, dtype=self.dtype),)
            found += (parts[0] if len(parts) == 1 else parts,)
        return found

    def _flow(self, x: Any, lengths: Any, resets: Any, states: Any) -> Any:
        """Run the layers over what has an axis B; give the output with zeros in the padding, and the final states."""
        if self.takes_tokens:
            if is_compiling():
                x = self._tokens_in_graph(x, lengths)
        elif self.cleans_input:
            x = select(x, lengths, self.batch_first)
        if lengths is not None and is_compiling() and self.on_cpu and not self.is_exporting():
            lengths = self.checked_lengths(lengths, x.shape[1 if self.batch_first else 0])
        y, lengths, finals = self._run(0, x, lengths, resets, states)
        return select(y, lengths, self.batch_first) if self.cleans_output else y, finals

    def _tokens_in_graph(self, tokens: Any, lengths: Any) -> Any:
        """Give the tokens with 0 in the padding. Where nothing else tells, one out of range raises when it is read."""
        tokens = tokens.astype(mstype.int64)
        if lengths is not None:
            valid = valid_steps(lengths, tokens.shape[1 if self.batch_first else 0], self.batch_first)
            tokens = ops.where(valid.squeeze(-1), tokens, 0)
        return self.checked_tokens(tokens) if self.on_cpu and not self.is_exporting() else tokens

    def _given(self, hx: Any) -> Any:
        """Give one state for each layer that has one; None is zeros."""
        return (None,) * len(self.states) if hx is None else hx

    def _dtype(self) -> Any:
        """Give the dtype that the input must have; None where `to_float` casts it."""
        return None if self.fp16 or self.fp32 else self.dtype

    def _like(self) -> tuple[type[Any], Any]:
        return Tensor, self._dtype()


def _checked_step(step: Any) -> Any:
    """Check the arguments of a step in PyNative mode. MindSpore compiles the wrapped function, with its own checks."""

    @functools.wraps(step)
    def checked(self: Model, x: Any, state: Any = None) -> tuple[Tensor, Any]:
        call = prepare_model_step(self.spec, x, state, like=self._like())
        x = Tensor(clean_tokens(self.spec, call, x.asnumpy())) if self.takes_tokens else x
        result: tuple[Tensor, Any] = step(self, x, as_tuples(state))
        return result

    checked.__doc__ = ModelOnHost.step.__doc__
    return checked


# Not as decorators: automatic mixed precision copies the class to another module, without the functions of this one.
Model._checked = in_graph(Model._checked)(Model._checked_on_host)  # type: ignore[method-assign]
Model.step = _checked_step(Model.step)  # type: ignore[method-assign]


def build(
    spec: Spec, weights: Mapping[str, Array], dtype: Any, device: dispatch.DeviceKind, kernel: str
) -> Recurrent | Model:
    """Build a recurrent layer, or anything else; the arguments are those of `Model`."""
    if isinstance(spec, RecurrentSpec):
        return Recurrent(spec, weights, dtype, device, kernel)
    return Model(spec, weights, dtype, device, kernel)
