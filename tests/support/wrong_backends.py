"""A small backend over torch's tensors that is right, and many wrong ones, each of which makes one usual mistake.

The right one, `Handmade`, shares nothing with `unirnn.reference`. Each place where a mistake is often made is a method,
which a wrong one overrides. So each of them really computes its wrong numbers.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from unirnn import (
    ActivationSpec,
    BatchNormSpec,
    Concat,
    Conv1dSpec,
    Device,
    DropoutSpec,
    EmbeddingSpec,
    GRUSpec,
    LayerNormSpec,
    LinearSpec,
    LSTMSpec,
    NormalizeSpec,
    PoolSpec,
    RecurrentSpec,
    Residual,
    RNNSpec,
    Sequential,
    Spec,
    SumDirectionsSpec,
    errors,
)
from unirnn.contract.backend import Arrays, Backend, leaves, with_leaves
from unirnn.contract.call import Call
from unirnn.contract.limits import ALL_KINDS, Limit, Support
from unirnn.contract.models import ModelCall, ModelModule, check_steps_of_batch_norms, check_tokens, is_batch_first
from unirnn.contract.module import Module
from unirnn.contract.weights import draw_globally

__all__ = ["WRONG", "Handmade", "Wrong"]

F = torch.nn.functional
Tensor = torch.Tensor
State = tuple[Tensor, ...]


class Weights(NamedTuple):
    """The weights of one layer in one direction."""

    weight_ih: Tensor
    weight_hh: Tensor
    bias_ih: Tensor | None
    bias_hh: Tensor | None


def valid_steps(steps: int, lengths: Tensor) -> Tensor:
    """`(B, T)` bool: which steps are valid."""
    return torch.arange(steps) < lengths[:, None]


class Layers(Module):
    """A stack of recurrent layers. Arrays are `(T, B, F)` here."""

    def __init__(self, spec: RecurrentSpec, weights: dict[str, Tensor], generator: torch.Generator) -> None:
        super().__init__(spec)
        self.weights, self.generator = weights, generator

    def _like(self) -> tuple[type[Any], Any]:
        return Tensor, self.weights["weight_ih_l0"].dtype

    def _native(self, array: NDArray[Any]) -> Tensor:
        return torch.tensor(array)

    def _run(self, call: Call) -> tuple[Tensor, State]:
        return self.run(call.input, call.state, call.lengths, call.resets)

    def run(self, x: Tensor, hx: State | None, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        """The output `(T, B, D*H)` and the final state."""
        steps, batch_size = x.shape[:2]
        if hx is None:
            hx = tuple(x.new_zeros(shape) for shape in self.spec.state_shapes(batch_size).values())
        if lengths is None:
            lengths = torch.full((batch_size,), steps)
        x = self.zeroed_input(x, lengths)
        finals = []
        for layer in range(self.spec.num_layers):
            outputs = []
            for position in range(layer * self.spec.num_directions, (layer + 1) * self.spec.num_directions):
                state = tuple(part[self.place(position)] for part in hx)
                out, final = self.direction(x, state, position, lengths, resets)
                outputs.append(out)
                finals.append(final)
            x = self.joined(outputs)
            if self.has_dropout_after(layer):
                x = self.dropout(x)
        places = [self.place(position) for position in range(len(finals))]
        ordered = [finals[places.index(k)] for k in range(len(finals))]
        return x, tuple(torch.stack(parts) for parts in zip(*ordered, strict=True))

    def zeroed_input(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.zeroed(x, lengths)

    def zeroed(self, x: Tensor, lengths: Tensor) -> Tensor:
        """The same with zeros in the padding."""
        return torch.where(valid_steps(len(x), lengths).T[..., None], x, 0)

    def place(self, position: int) -> int:
        """Where the state of a layer and direction stands."""
        return position

    def of(self, position: int) -> Weights:
        """The weights of a layer and direction."""
        suffix = self.spec.suffixes()[position]
        return Weights(*(self.weights.get(name + suffix) for name in Weights._fields))  # type: ignore[arg-type]

    def joined(self, outputs: list[Tensor]) -> Tensor:
        return torch.cat(outputs, -1)

    def has_dropout_after(self, layer: int) -> bool:
        return self.training and layer < self.spec.num_layers - 1

    def dropout(self, x: Tensor) -> Tensor:
        kept = torch.rand(x.shape, generator=self.generator) >= self.spec.dropout
        return torch.where(kept, x / (1 - self.spec.dropout), 0)

    # ---- one layer in one direction

    def direction(
        self, x: Tensor, state: State, position: int, lengths: Tensor, resets: Tensor | None
    ) -> tuple[Tensor, State]:
        """The output `(T, B, H)`, zero in the padding, and the final state."""
        reverse = self.spec.is_reverse(position)
        order, rows = self.order(len(x), lengths, reverse), torch.arange(x.shape[1])
        begins = None if resets is None else self.begins(resets, lengths, reverse)
        if begins is not None:
            begins = begins[order, rows]
        states = self.steps(x[order, rows], state, self.of(position), lengths, begins)
        output = self.zeroed(torch.stack([state[0] for state in states]), lengths)
        return self.in_order(output, order), self.final(states, state, output, lengths)

    def order(self, steps: int, lengths: Tensor, reverse: bool) -> Tensor:
        """`(T, B)`: which step is read as the t-th; the padding is not moved, so it is its own inverse."""
        step = torch.arange(steps)[:, None].expand(steps, len(lengths))
        return torch.where(step < lengths, lengths - 1 - step, step) if reverse else step

    def in_order(self, output: Tensor, order: Tensor) -> Tensor:
        """An output in the order of time."""
        return output[order, torch.arange(output.shape[1])]

    def begins(self, resets: Tensor, lengths: Tensor, reverse: bool) -> Tensor:
        """`(T, B)`: whether a sequence begins with a step, in the direction in which it is read."""
        resets = resets & valid_steps(len(resets), lengths).T
        if not reverse:
            return resets
        return torch.cat([resets[1:], torch.zeros_like(resets[:1])])  # it begins with the step before a reset

    def steps(self, x: Tensor, state: State, w: Weights, lengths: Tensor, begins: Tensor | None) -> list[State]:
        """The state after each step; that of the last valid step from there on."""
        valid, initial, found = valid_steps(len(x), lengths).T[..., None], state, []
        for t in range(len(x)):
            if begins is not None:
                state = tuple(
                    torch.where(begins[t][:, None], self.after_reset(own), part)
                    for part, own in zip(state, initial, strict=True)
                )
            clean = tuple(torch.where(valid[t], part, 0) for part in state)  # of an empty sequence it may be NaN
            after = self.cell(w, x[t], clean)
            state = tuple(torch.where(valid[t], new, old) for new, old in zip(after, state, strict=True))
            found.append(state)
        return found

    def after_reset(self, initial: Tensor) -> Tensor:
        return torch.zeros_like(initial)

    def final(self, states: list[State], initial: State, output: Tensor, lengths: Tensor) -> State:
        """The final state of a direction; `output` is in the order in which it was computed."""
        return states[-1]

    # ---- one step

    def cell(self, w: Weights, x: Tensor, state: State) -> State:
        a, b = F.linear(x, w.weight_ih, w.bias_ih), F.linear(state[0], w.weight_hh, w.bias_hh)
        if isinstance(self.spec, RNNSpec):
            return (self.activation(a + b),)
        if isinstance(self.spec, GRUSpec):
            return (self.gru(w, a, b, state[0]),)
        return self.lstm(self.gates(a + b), state)

    def gates(self, array: Tensor) -> Sequence[Tensor]:
        """`(B, H)` for each gate: r, z, n, or i, f, g, o."""
        return array.chunk(len(self.spec.gates), -1)

    def activation(self, a: Tensor) -> Tensor:
        assert isinstance(self.spec, RNNSpec)
        return torch.tanh(a) if self.spec.nonlinearity == "tanh" else torch.relu(a)

    def gru(self, w: Weights, a: Tensor, b: Tensor, h: Tensor) -> Tensor:
        (a_r, a_z, a_n), (b_r, b_z, b_n) = self.gates(a), self.gates(b)
        r, z = torch.sigmoid(a_r + b_r), torch.sigmoid(a_z + b_z)
        n = torch.tanh(a_n + (r * b_n if self.is_reset_after() else self.recurrent_n(w, r * h)))
        return self.between(z, n, h)

    def is_reset_after(self) -> bool:
        assert isinstance(self.spec, GRUSpec)
        return self.spec.reset_after

    def recurrent_n(self, w: Weights, h: Tensor) -> Tensor:
        """The product of n with the state that has been reset."""
        weight = self.gates(w.weight_hh.T)[2].T
        return F.linear(h, weight, None if w.bias_hh is None else self.gates(w.bias_hh)[2])

    def between(self, z: Tensor, n: Tensor, h: Tensor) -> Tensor:
        return (1 - z) * n + z * h

    def lstm(self, gates: Sequence[Tensor], state: State) -> State:
        i, f, g, o = gates
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c


@dataclass
class Run:
    """One run of a model: its initial and final states, and its resets `(T, B)`."""

    states: Iterator[Any]
    resets: Tensor | None
    finals: list[State] = field(default_factory=list)


class Net(ModelModule):
    """A model. Arrays are `(B, T, F)` here, and `(B, F)` after a pooling, when there are no lengths."""

    layers: type[Layers] = Layers

    def __init__(self, spec: Spec, weights: dict[str, Tensor], dtype: Any, generator: torch.Generator) -> None:
        super().__init__(spec)
        self.weights, self.dtype, self.generator = weights, dtype, generator

    def _like(self) -> tuple[type[Any], Any]:
        return Tensor, self.dtype

    def _run(self, call: ModelCall) -> tuple[Tensor, list[State]]:
        x = call.input
        if self.training:
            self.check_training(call)
        if call.sizes is None:  # each step by itself, of any shape
            leading = x.shape if self.spec.takes_tokens else x.shape[:-1]
            y, _ = self.flow(x.reshape(1, -1, *x.shape[len(leading) :]), (), None, None)
            return y.reshape(*leading, y.shape[-1]), []
        swapped = not is_batch_first(self.spec)
        lengths, resets = (None if array is None else torch.tensor(array) for array in (call.lengths, call.resets))
        y, finals = self.flow(x.swapaxes(0, 1) if swapped else x, call.states, lengths, resets)
        return y.swapaxes(0, 1) if swapped and not self.spec.ends_steps else y, finals

    def _run_step(self, call: ModelCall) -> tuple[Tensor, list[State]]:
        y, finals = self.flow(call.input[:, None], self.states_of_a_step(call.states), None, None)
        return y[:, 0], finals

    def states_of_a_step(self, states: Sequence[Any]) -> Sequence[Any]:
        return states

    def check_training(self, call: ModelCall) -> None:
        check_steps_of_batch_norms(self.spec, call)

    def check_tokens(self, tokens: Tensor, valid: Tensor) -> None:
        check_tokens(self.spec, tokens.numpy(), valid.numpy())

    def flow(
        self, x: Tensor, states: Sequence[Any], lengths: Tensor | None, resets: Tensor | None
    ) -> tuple[Tensor, list[State]]:
        if lengths is None:
            lengths = torch.full((len(x),), x.shape[1])
        if self.spec.takes_tokens:
            self.check_tokens(x, valid_steps(x.shape[1], lengths))
        run = Run(iter(states), resets)
        after = self.layer("", self.spec, self.zeroed_input(x, lengths), lengths, run)
        return self.zeroed(*after), run.finals

    def zeroed_input(self, x: Tensor, lengths: Tensor) -> Tensor:
        return self.zeroed(x, lengths)

    def zeroed(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """The same with zeros in the padding."""
        if lengths is None:
            return x
        valid = valid_steps(x.shape[1], lengths)
        return torch.where(valid if x.ndim == 2 else valid[..., None], x, 0)

    def layer(
        self, name: str, spec: Any, x: Tensor, lengths: Tensor | None, run: Run
    ) -> tuple[Tensor, Tensor | None]:
        """What a layer, or a model within the model, makes of an array and its lengths."""
        children = [(f"{name}.{child}" if name else child, layer) for child, layer in getattr(spec, "children", ())]
        match spec:
            case Sequential():
                for path, child in children:
                    x, lengths = self.layer(path, child, x, lengths, run)
                return x, lengths
            case Residual():
                ((path, child),) = children
                y, lengths = self.layer(path, child, x, lengths, run)
                return x + y, lengths
            case Concat():
                branches = [self.layer(path, child, x, lengths, run) for path, child in children]
                return self.concatenated([y for y, _ in branches]), branches[0][1]
        w = {own: self.weights[f"{name}.{own}" if name else own] for own in spec.weight_shapes()}
        if isinstance(spec, RecurrentSpec):
            return self.recurrent(spec, w, x, lengths, run), lengths
        if isinstance(spec, PoolSpec):
            assert lengths is not None
            return self.pool(spec.how, self.zeroed(x, lengths), lengths), None
        if isinstance(spec, Conv1dSpec):
            assert lengths is not None
            y = self.convolution(spec, w, self.zeroed(x, lengths), lengths, run)
            return y, torch.tensor(spec.output_lengths(lengths.numpy()))
        return self.same_steps(name, spec, w, x, lengths), lengths

    def concatenated(self, branches: list[Tensor]) -> Tensor:
        return torch.cat(branches, -1)

    def recurrent(
        self, spec: RecurrentSpec, w: dict[str, Tensor], x: Tensor, lengths: Tensor | None, run: Run
    ) -> Tensor:
        layers = self.layers(spec, w, self.generator)
        layers.train(self.training and spec.dropout > 0)
        y, final = layers.run(x.swapaxes(0, 1), next(run.states), lengths, run.resets)
        run.finals.append(final)
        return y.swapaxes(0, 1)

    def pool(self, how: str, x: Tensor, lengths: Tensor) -> Tensor:
        """`(B, F)` of `(B, T, F)`, which is zero in the padding."""
        has_begun = (lengths > 0)[:, None]
        if how == "mean":
            return self.mean(x, lengths)
        if how == "max":
            return torch.where(has_begun, self.maximum(x, lengths), 0)
        last = self.last(x, lengths)
        if how == "first_last":
            half = x.shape[-1] // 2
            last = torch.cat([last[:, :half], x[:, 0, half:]], -1)
        return torch.where(has_begun, last, 0)

    def mean(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x.sum(1) / lengths.clamp(min=1)[:, None]

    def maximum(self, x: Tensor, lengths: Tensor) -> Tensor:
        return torch.where(valid_steps(x.shape[1], lengths)[..., None], x, -torch.inf).max(1).values

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x[torch.arange(len(x)), (lengths - 1).clamp(min=0)]

    def convolution(self, spec: Conv1dSpec, w: dict[str, Tensor], x: Tensor, lengths: Tensor, run: Run) -> Tensor:
        """`(B, T', F')` of `(B, T, F)`, which is zero in the padding."""
        left, right = self.zeros_around(spec)
        before = x.new_zeros(len(x), left, x.shape[2])
        is_causal = bool(spec.state_shapes(None))
        if is_causal:
            state = next(run.states)
            before = before if state is None else state[0].swapaxes(0, 1)
        padded = torch.cat([before, x, x.new_zeros(len(x), right, x.shape[2])], 1)
        if is_causal:
            last = lengths[:, None] + torch.arange(left)
            run.finals.append((padded[torch.arange(len(x))[:, None], last].swapaxes(0, 1),))
        options: dict[str, Any] = {"stride": spec.stride, "dilation": spec.dilation, "groups": spec.groups}
        y: Tensor = F.conv1d(padded.swapaxes(1, 2), w["weight"], w.get("bias"), **options)
        return y.swapaxes(1, 2)

    def zeros_around(self, spec: Conv1dSpec) -> tuple[int, int]:
        return spec.padded

    def same_steps(self, name: str, spec: Spec, w: dict[str, Tensor], x: Tensor, lengths: Tensor | None) -> Tensor:
        """What a layer computes that keeps the steps."""
        match spec:
            case EmbeddingSpec():
                return self.embedding(spec, w["weight"], x)
            case LinearSpec():
                tied = {**self.weights, **{own: self.weights[other] for own, other in self.tied().items()}}
                return F.linear(x, tied[f"{name}.weight" if name else "weight"], w.get("bias"))
            case ActivationSpec():
                return self.activation(spec.function, x)
            case DropoutSpec():
                return self.dropout(spec, x, lengths) if self.training else x
            case LayerNormSpec():
                return F.layer_norm(x, x.shape[-1:], w["weight"], w["bias"], spec.eps)
            case BatchNormSpec():
                return self.batch_norm(spec, w, x, lengths)
            case NormalizeSpec():
                return x / (x * x).sum(-1, keepdim=True).clamp(min=spec.eps**2).sqrt()
            case SumDirectionsSpec():
                forward, backward = x.chunk(2, -1)
                return forward + backward
        raise NotImplementedError(spec)

    def tied(self) -> Mapping[str, str]:
        return self.spec.tied() if isinstance(self.spec, (Sequential, Residual, Concat)) else {}

    def embedding(self, spec: EmbeddingSpec, weight: Tensor, tokens: Tensor) -> Tensor:
        if spec.padding_idx is not None:  # whose vector is not trained
            weight = torch.where(torch.arange(len(weight))[:, None] == spec.padding_idx, weight.detach(), weight)
        return weight[tokens.long()]

    def activation(self, function: str, x: Tensor) -> Tensor:
        if function in ("softmax", "log_softmax"):
            return self.softmax(getattr(torch, function), x)
        if function == "hard_sigmoid":
            return (x / 6 + 0.5).clamp(0, 1)
        found: Tensor = getattr(F, function)(x)
        return found

    def softmax(self, function: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
        return function(x, -1)

    def dropout(self, spec: DropoutSpec, x: Tensor, lengths: Tensor | None) -> Tensor:
        shape = (len(x), 1, x.shape[-1]) if spec.locked and lengths is not None else x.shape
        kept = torch.rand(shape, generator=self.generator) >= spec.p
        return torch.where(kept, x / (1 - spec.p), 0)

    def batch_norm(self, spec: BatchNormSpec, w: dict[str, Tensor], x: Tensor, lengths: Tensor | None) -> Tensor:
        mean, variance = w["running_mean"], w["running_var"]
        if self.uses_statistics_of_batch():
            rows = self.counted(x, lengths)
            mean, variance = rows.mean(0), rows.var(0, unbiased=False)
            if self.training:
                self.change_statistics(spec, w, rows.detach())
        return (x - mean) / (variance + spec.eps).sqrt() * w["weight"] + w["bias"]

    def uses_statistics_of_batch(self) -> bool:
        return self.training

    def counted(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        """`(N, F)`, the steps of which a batch normalisation finds mean and variance."""
        return x if lengths is None else x[valid_steps(x.shape[1], lengths)]

    def change_statistics(self, spec: BatchNormSpec, w: dict[str, Tensor], rows: Tensor) -> None:
        w["running_mean"].lerp_(rows.mean(0), spec.momentum)
        w["running_var"].lerp_(rows.var(0), spec.momentum)


class Handmade(Backend):
    """The backend; a wrong one has other classes of modules, or overrides a method."""

    name = "handmade"
    support = Support(
        "handmade",
        lacks=("gate_activation", "proj_size"),
        kinds=tuple(kind for kind in ALL_KINDS if kind != "Model"),
        devices=("cpu",),
        dtypes=("float32", "float64"),
        derivatives=1,
    )
    layers: type[Layers] = Layers
    model: type[Net] = Net

    def version(self) -> str:
        return "handmade 1"

    def devices(self) -> tuple[Device, ...]:
        return (Device("cpu"),)

    def default_device(self) -> Device:
        return Device("cpu")

    def build(
        self,
        spec: Any,
        *,
        device: Device,
        dtype: str,
        weights: Arrays | None,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> Layers | Net:
        drawn = draw_globally(spec) if weights is None else weights
        kind = getattr(torch, dtype)
        arrays = {name: self.weight(array, kind) for name, array in drawn.items()}
        for name, array in arrays.items():
            array.requires_grad_(name not in spec.buffers)
        generator = torch.Generator().manual_seed(torch.initial_seed() if seed is None else seed)
        if isinstance(spec, RecurrentSpec):
            return self.layers(spec, arrays, generator)
        return self.model(spec, arrays, kind, generator)

    def weight(self, array: NDArray[Any], dtype: Any) -> Tensor:
        return torch.tensor(array, dtype=dtype)

    def read(self, module: Any) -> tuple[Any, dict[str, NDArray[Any]]] | None:
        if not isinstance(module, (Layers, Net)):
            return None
        return module.spec, {name: self.to_numpy(array) for name, array in module.weights.items()}

    def write(self, module: Any, weights: Arrays) -> None:
        with torch.no_grad():
            for name, array in module.weights.items():
                array.copy_(torch.tensor(weights[name]))

    def from_numpy(self, array: NDArray[Any], module: Any) -> Tensor:
        return torch.tensor(array)

    def to_numpy(self, array: Tensor) -> NDArray[Any]:
        found: NDArray[Any] = array.detach().numpy()
        return found

    def detach(self, array: Any) -> Any | None:
        return array.detach() if isinstance(array, Tensor) else None

    def like(self, array: NDArray[Any], other: Any) -> Any | None:
        return torch.tensor(array) if isinstance(other, Tensor) else None

    def gradients(
        self, module: Any, arguments: Mapping[str, Any], cotangents: Sequence[NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        arrays = {name: torch.tensor(array) for name, array in leaves(arguments).items()}
        inputs = {name: array.requires_grad_() for name, array in arrays.items() if array.is_floating_point()}
        results = leaves({"result": module(**with_leaves(arguments, arrays))}).values()
        loss: Any = sum((result * torch.tensor(d)).sum() for result, d in zip(results, cotangents, strict=True))
        inputs |= {name: array for name, array in module.weights.items() if array.requires_grad}
        found = torch.autograd.grad(loss, list(inputs.values()), materialize_grads=True)
        return {name: self.to_numpy(gradient) for name, gradient in zip(inputs, found, strict=True)}


@dataclass(frozen=True)
class Wrong:
    """A wrong backend, the test of the conformance suite that catches it, and words of the message that name the cause.

    The words are None if the message shows only what is wrong, and not why.
    """

    mistake: str
    backend: Backend
    test: str
    words: str | None


WRONG: dict[str, Wrong] = {}
Class = TypeVar("Class", bound=type[Any])


def caught_by(test: str, words: str | None = None) -> Callable[[Class], Class]:
    """Add a class of modules, or a backend, to the table of wrong ones; its docstring says the mistake."""

    def add(kind: Class) -> Class:
        if issubclass(kind, Handmade):
            backend: Handmade = kind()
        else:
            backend = Handmade()
            setattr(backend, "layers" if issubclass(kind, Layers) else "model", kind)
        WRONG[kind.__name__] = Wrong(str(kind.__doc__), backend, test, words)
        return kind

    return add


CALL = "test_guarantees.py::test_guarantees"
MODEL = "test_models.py::test_guarantees"
