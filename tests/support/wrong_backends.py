"""A small correct backend over torch's tensors, and many wrong ones, each with one common mistake.

The correct one, `Handmade`, shares no code with `unirnn.reference`. Each place where mistakes are common is a method,
which a wrong backend overrides. So each wrong backend really computes its wrong numbers.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
    NormalizeSpec,
    PoolSpec,
    RecurrentSpec,
    Residual,
    RNNSpec,
    Sequential,
    Snapshot,
    Spec,
    SumDirectionsSpec,
    errors,
    registry,
)
from unirnn.contract.backend import Arrays, Backend
from unirnn.contract.call import Arguments, Call
from unirnn.contract.limits import ALL_KINDS, Support
from unirnn.contract.models import ModelCall, ModelModule, check_steps_of_batch_norms, check_tokens, is_batch_first
from unirnn.contract.module import Module
from unirnn.contract.weights import draw, draw_globally

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
    """The mask `(B, T)` of the valid steps."""
    return torch.arange(steps) < lengths[:, None]


class Layers(Module):
    """A stack of recurrent layers. Arrays are `(T, B, F)` here."""

    def __init__(self, spec: RecurrentSpec, weights: dict[str, Tensor], generator: torch.Generator) -> None:
        super().__init__(spec)
        self.weights, self.generator = weights, generator

    def _like(self) -> tuple[type[Any], Any]:
        return Tensor, self.weights["weight_ih_l0"].dtype

    def _from_numpy(self, array: NDArray[Any]) -> Tensor:
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
        """The index of a layer and direction in the state."""
        return position

    def weights_of(self, position: int) -> Weights:
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
        states = self.steps(x[order, rows], state, self.weights_of(position), lengths, begins)
        output = self.zeroed(torch.stack([state[0] for state in states]), lengths)
        return self.in_order(output, order), self.final(states, state, output, lengths)

    def order(self, steps: int, lengths: Tensor, reverse: bool) -> Tensor:
        """The step `(T, B)` that is read at time t. Padding stays in place, so the order is its own inverse."""
        step = torch.arange(steps)[:, None].expand(steps, len(lengths))
        return torch.where(step < lengths, lengths - 1 - step, step) if reverse else step

    def in_order(self, output: Tensor, order: Tensor) -> Tensor:
        """The output, in the order of time."""
        return output[order, torch.arange(output.shape[1])]

    def begins(self, resets: Tensor, lengths: Tensor, reverse: bool) -> Tensor:
        """The mask `(T, B)` of the steps at which a sequence begins, in the direction of reading."""
        resets = resets & valid_steps(len(resets), lengths).T
        if not reverse:
            return resets
        return torch.cat([resets[1:], torch.zeros_like(resets[:1])])  # a sequence begins with the step before a reset

    def steps(self, x: Tensor, state: State, w: Weights, lengths: Tensor, begins: Tensor | None) -> list[State]:
        """The state after each step; in the padding, the state of the last valid step."""
        valid, initial, found = valid_steps(len(x), lengths).T[..., None], state, []
        for t in range(len(x)):
            if begins is not None:
                state = tuple(
                    torch.where(begins[t][:, None], self.after_reset(own, part), part)
                    for part, own in zip(state, initial, strict=True)
                )
            clean = tuple(torch.where(valid[t], part, 0) for part in state)  # the state of an empty sequence may be NaN
            after = self.cell(w, x[t], clean)
            state = tuple(torch.where(valid[t], new, old) for new, old in zip(after, state, strict=True))
            found.append(state)
        return found

    def after_reset(self, initial: Tensor, before: Tensor) -> Tensor:
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
        """The recurrent product of n, with the reset applied."""
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

    def layer(self, name: str, spec: Any, x: Tensor, lengths: Tensor | None, run: Run) -> tuple[Tensor, Tensor | None]:
        """The result of a layer, or of a model within the model, with its lengths."""
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
        """Pool `(B, T, F)`, which is zero in the padding, to `(B, F)`."""
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
        """Convolve `(B, T, F)`, which is zero in the padding, to `(B, T', F')`."""
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
        """The result of a layer that keeps the steps."""
        match spec:
            case EmbeddingSpec():
                return self.embedding(spec, w["weight"], x)
            case LinearSpec():
                return F.linear(x, self.tied_weight(name) if spec.tied_to else w["weight"], w.get("bias"))
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

    def tied_weight(self, name: str) -> Tensor:
        """The weight of a tied layer, which belongs to another layer."""
        assert isinstance(self.spec, (Sequential, Residual, Concat))
        return self.weights[self.spec.tied()[f"{name}.weight"]]

    def embedding(self, spec: EmbeddingSpec, weight: Tensor, tokens: Tensor) -> Tensor:
        if spec.padding_idx is not None:  # its vector is not trained
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
        """The steps `(N, F)` over which a batch normalisation takes mean and variance."""
        return x if lengths is None else x[valid_steps(x.shape[1], lengths)]

    def change_statistics(self, spec: BatchNormSpec, w: dict[str, Tensor], rows: Tensor) -> None:
        w["running_mean"].lerp_(rows.mean(0), spec.momentum)
        w["running_var"].lerp_(rows.var(0), spec.momentum)


class Handmade(Backend):
    """The correct backend; a wrong one uses other module classes or overrides a method."""

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

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], module: Any = None
    ) -> tuple[list[NDArray[Any] | None], dict[str, NDArray[Any]]]:
        given = [array.detach().requires_grad_(array.is_floating_point()) for array in arrays]
        weights = {} if module is None else {name: w for name, w in module.weights.items() if w.requires_grad}
        inputs = [*(array for array in given if array.requires_grad), *weights.values()]
        found = torch.autograd.grad(function(*given), inputs, materialize_grads=True)
        numbers = iter([self.to_numpy(gradient) for gradient in found])
        return [next(numbers) if array.requires_grad else None for array in given], dict(
            zip(weights, numbers, strict=True)
        )


@dataclass(frozen=True)
class Wrong:
    """A wrong backend, the conformance test that catches it, and the words of the message that name the cause.

    The words are None if the message shows only what is wrong, not why.
    """

    backend: Backend
    test: str
    words: str | None


WRONG: dict[str, Wrong] = {}
Class = TypeVar("Class", bound=type[Any])


def caught_by(test: str, words: str | None = None) -> Callable[[Class], Class]:
    """Add a class of modules, or a backend, to the table of wrong ones."""

    def add(kind: Class) -> Class:
        if issubclass(kind, Handmade):
            backend: Handmade = kind()
        else:
            backend = Handmade()
            setattr(backend, "layers" if issubclass(kind, Layers) else "model", kind)
        WRONG[kind.__name__] = Wrong(backend, test, words)
        return kind

    return add


CALL = "test_guarantees.py::test_guarantees"
MODEL = "test_models.py::test_guarantees"

# ---- cells ---------------------------------------------------------------------------------------


@caught_by(f"{CALL}[GRU-ragged]", "the gates are taken in the order z, r, n")
class GatesOfGruSwapped(Layers):
    """The gates of a GRU are taken in Keras' order."""

    def gates(self, array: Tensor) -> Sequence[Tensor]:
        z, r, n = super().gates(array)
        return r, z, n


@caught_by(f"{CALL}[LSTM-ragged]", "the gates are taken in the order i, g, f, o")
class GatesOfLstmSwapped(Layers):
    """The gates of an LSTM are taken in the order of TensorFlow 1."""

    def gates(self, array: Tensor) -> Sequence[Tensor]:
        i, g, f, o = super().gates(array)
        return i, f, g, o


@caught_by(f"{CALL}[GRU-ragged]", "z is inverted")
class UpdateGateInverted(Layers):
    """z and 1 - z are swapped, as in the GRU paper."""

    def between(self, z: Tensor, n: Tensor, h: Tensor) -> Tensor:
        return z * n + (1 - z) * h


@caught_by(f"{CALL}[GRU-ragged]", "the GRU variant: the reset gate is applied before the product")
class ResetGateBefore(Layers):
    """The other variant of the GRU."""

    def is_reset_after(self) -> bool:
        return False


@caught_by(f"{CALL}[GRU-ragged]", "the recurrent bias is missing")
class BiasForgotten(Layers):
    """One of the two biases is forgotten."""

    def weights_of(self, position: int) -> Weights:
        return super().weights_of(position)._replace(bias_hh=None)


@caught_by(f"{CALL}[GRU-ragged]", "the recurrent bias of n is added outside of the reset gate")
class BiasOutsideOfTheResetGate(Layers):
    """Both biases of the GRU are added to the product with the input."""

    def cell(self, w: Weights, x: Tensor, state: State) -> State:
        if isinstance(self.spec, GRUSpec) and w.bias_ih is not None and w.bias_hh is not None:
            w = w._replace(bias_ih=w.bias_ih + w.bias_hh, bias_hh=None)
        return super().cell(w, x, state)


@caught_by(f"{CALL}[LSTM-ragged]", "1 is added to the bias of the forget gate")
class ForgetBias(Layers):
    """1 is added to the forget gate, like TensorFlow's forget_bias."""

    def lstm(self, gates: Sequence[Tensor], state: State) -> State:
        i, f, g, o = gates
        return super().lstm((i, f + 1, g, o), state)


@caught_by(f"{CALL}[RNN-relu-ragged]", "the activation is tanh instead of relu")
class TanhForRelu(Layers):
    """The nonlinearity is ignored."""

    def activation(self, a: Tensor) -> Tensor:
        return torch.tanh(a)


@caught_by(f"{CALL}[GRU-ragged]", "the recurrent weights are transposed")
class WeightsTransposed(Layers):
    """The state is multiplied from the other side."""

    def weights_of(self, position: int) -> Weights:
        w = super().weights_of(position)
        return w._replace(weight_hh=torch.cat([block.T for block in w.weight_hh.chunk(len(self.spec.gates))]))


# ---- states --------------------------------------------------------------------------------------


@caught_by(f"{CALL}[LSTM-ragged]", "h_0 and c_0 are exchanged")
class InitialStatesOfLstmSwapped(Layers):
    """The initial pair is read as (c, h)."""

    def steps(self, x: Tensor, state: State, w: Weights, lengths: Tensor, begins: Tensor | None) -> list[State]:
        return super().steps(x, state[::-1], w, lengths, begins)


@caught_by(f"{CALL}[LSTM-ragged]", "h_n and c_n are exchanged")
class FinalStatesOfLstmSwapped(Layers):
    """The final pair is returned as (c, h)."""

    def final(self, states: list[State], initial: State, output: Tensor, lengths: Tensor) -> State:
        return states[-1][::-1]


@caught_by(f"{CALL}[GRU-ragged]", "the initial state is ignored")
class InitialStateIgnored(Layers):
    """Each call starts from zeros."""

    def run(self, x: Tensor, hx: State | None, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        return super().run(x, None if hx is None else tuple(0 * part for part in hx), lengths, resets)


@caught_by(f"{CALL}[GRU-ragged]", "the final state is that of step T-1")
class StateOfStepT(Layers):
    """The final state is the one after T steps, whatever the lengths are."""

    def direction(
        self, x: Tensor, state: State, position: int, lengths: Tensor, resets: Tensor | None
    ) -> tuple[Tensor, State]:
        output, _ = super().direction(x, state, position, lengths, resets)
        every = torch.full_like(lengths, len(x))
        return output, self.steps(x, state, self.weights_of(position), every, resets)[-1]

    def zeroed_input(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x


@caught_by(f"{CALL}[GRU-ragged]", "the final state is the last step of the output")
class StateOfTheLastOutput(Layers):
    """The final state is `output[-1]`, which is padding."""

    def final(self, states: list[State], initial: State, output: Tensor, lengths: Tensor) -> State:
        return (output[-1], *states[-1][1:])


@caught_by(f"{CALL}[GRU-ragged]", "the final state of an empty sequence is zeros")
class EmptySequenceEndsInZeros(Layers):
    """A sequence of length 0 does not end in its initial state."""

    def final(self, states: list[State], initial: State, output: Tensor, lengths: Tensor) -> State:
        return tuple(torch.where((lengths > 0)[:, None], part, 0) for part in states[-1])


@caught_by(f"{CALL}[GRU-ragged, 3 layers, bidirectional, batch first]", "ordered by direction and then by layer")
class StateInOrderOfDirections(Layers):
    """The states are direction-major."""

    def place(self, position: int) -> int:
        layer, direction = divmod(position, self.spec.num_directions)
        return direction * self.spec.num_layers + layer


# ---- lengths and padding -------------------------------------------------------------------------


@caught_by(f"{CALL}[GRU-ragged]", "the output is not set to zero in the padding")
class PaddingNotZeroed(Layers):
    """The output keeps the last state in the padding."""

    def zeroed(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x

    def zeroed_input(self, x: Tensor, lengths: Tensor) -> Tensor:
        return super().zeroed(x, lengths)


@caught_by(f"{CALL}[GRU-ragged]", "NaN leaks from the padding")
class MaskMultiplied(Layers):
    """The padding is multiplied by a mask, and 0 * NaN is NaN."""

    def zeroed(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x * valid_steps(len(x), lengths).T[..., None]

    def steps(self, x: Tensor, state: State, w: Weights, lengths: Tensor, begins: Tensor | None) -> list[State]:
        valid, found = valid_steps(len(x), lengths).T[..., None].to(x.dtype), []
        for t in range(len(x)):
            after = self.cell(w, x[t], state)
            state = tuple(valid[t] * new + (1 - valid[t]) * old for new, old in zip(after, state, strict=True))
            found.append(state)
        return found


@caught_by(f"{CALL}[GRU-ragged]", "gradient")
class NanInTheGradient(Layers):
    """Results are selected, but the padding enters the computation: in the backward pass, 0 * NaN is NaN."""

    def zeroed_input(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x


@caught_by(f"{CALL}[GRU-ragged]", "the lengths (seq_length) are ignored")
class LengthsIgnored(Layers):
    """The padding is computed like valid steps."""

    def run(self, x: Tensor, hx: State | None, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        return super().run(x, hx, None, resets)


class StateNotSelected(Layers):
    """The padding is computed too, starting from the last state or from the state of an empty sequence."""

    def steps(self, x: Tensor, state: State, w: Weights, lengths: Tensor, begins: Tensor | None) -> list[State]:
        valid, found = valid_steps(len(x), lengths).T[..., None], []
        running = state
        for t in range(len(x)):
            if begins is not None:
                running = tuple(torch.where(begins[t][:, None], 0, part) for part in running)
            running = self.cell(w, x[t], running)
            state = tuple(torch.where(valid[t], new, old) for new, old in zip(running, state, strict=True))
            found.append(state)
        return found


@caught_by("test_guarantees.py::test_relu_does_not_overflow_in_the_padding")
class OverflowInThePadding(StateNotSelected):
    """The state overflows in the padding, and the infinity reaches the gradient."""


@caught_by("test_guarantees.py::test_the_state_of_an_empty_sequence_changes_no_other_number[nan-GRU]")
class NanOfAnEmptySequence(StateNotSelected):
    """A NaN in the state of an empty sequence reaches the gradient of the weights."""


def by_length(lengths: Tensor) -> Tensor:
    """The order that packing needs: the longest sequence first."""
    return lengths.argsort(descending=True, stable=True)


@caught_by(f"{CALL}[GRU-ragged]", "neither the output nor the final state is sorted back")
class NotUnsorted(Layers):
    """The sequences are sorted by length and not restored to their order."""

    def run(self, x: Tensor, hx: State | None, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        if lengths is None:
            return super().run(x, hx, lengths, resets)
        order = by_length(lengths)
        hx = None if hx is None else tuple(part[:, order] for part in hx)
        return super().run(x[:, order], hx, lengths[order], None if resets is None else resets[:, order])


@caught_by(f"{CALL}[GRU-ragged]", "the final state is not sorted back")
class StateNotUnsorted(Layers):
    """The output is restored to its order, but the state is not."""

    def final(self, states: list[State], initial: State, output: Tensor, lengths: Tensor) -> State:
        return tuple(part[by_length(lengths)] for part in states[-1])


# ---- directions and layers -----------------------------------------------------------------------


@caught_by(f"{CALL}[GRU-ragged, bidirectional]", "the reverse direction begins at step T-1, in the padding")
class ReverseBeginsInThePadding(Layers):
    """The whole column is flipped, so the reverse direction reads the padding first."""

    def order(self, steps: int, lengths: Tensor, reverse: bool) -> Tensor:
        return super().order(steps, torch.full_like(lengths, steps), reverse)

    def direction(
        self, x: Tensor, state: State, position: int, lengths: Tensor, resets: Tensor | None
    ) -> tuple[Tensor, State]:
        if not self.spec.is_reverse(position):
            return super().direction(x, state, position, lengths, resets)
        output, final = super().direction(x, state, position, torch.full_like(lengths, len(x)), resets)
        return self.zeroed(output, lengths), final

    def zeroed_input(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x


@caught_by(f"{CALL}[GRU-ragged, bidirectional]", "the reverse direction is in the order in which it was computed")
class ReverseNotTurnedBack(Layers):
    """The output of the reverse direction stays in the order in which it was computed."""

    def in_order(self, output: Tensor, order: Tensor) -> Tensor:
        return output


@caught_by(f"{CALL}[GRU-ragged, bidirectional]", "the outputs of the two directions are exchanged")
class OutputsOfDirectionsSwapped(Layers):
    """The output of the reverse direction comes first."""

    def joined(self, outputs: list[Tensor]) -> Tensor:
        return torch.cat(outputs[::-1], -1)


@caught_by(f"{CALL}[GRU-ragged, bidirectional]", "the biases of the two directions are exchanged")
class BiasesOfDirectionsSwapped(Layers):
    """Each direction has the biases of the other one."""

    def weights_of(self, position: int) -> Weights:
        other = super().weights_of(position ^ 1 if self.spec.bidirectional else position)
        return super().weights_of(position)._replace(bias_ih=other.bias_ih, bias_hh=other.bias_hh)


@caught_by(
    f"{CALL}[GRU-ragged, 3 layers, bidirectional, batch first]",
    "in a layer above the first one the directions are exchanged",
)
class DirectionsOfTheSecondLayerSwapped(Layers):
    """From the second layer on, each direction has the weights of the other one."""

    def weights_of(self, position: int) -> Weights:
        return super().weights_of(position ^ 1 if self.spec.bidirectional and position > 1 else position)


@caught_by(f"{CALL}[GRU-ragged, 2 layers]", "all layers begin with the initial state of the first one")
class StateOfTheFirstLayer(Layers):
    """All layers start from the state of the first one."""

    def run(self, x: Tensor, hx: State | None, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        if hx is not None:
            hx = tuple(part[: self.spec.num_directions].repeat(self.spec.num_layers, 1, 1) for part in hx)
        return super().run(x, hx, lengths, resets)


# ---- resets --------------------------------------------------------------------------------------


@caught_by(f"{CALL}[GRU-resets]", "the resets are ignored")
class ResetsIgnored(Layers):
    """Each column is taken for one sequence."""

    def run(self, x: Tensor, hx: State | None, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        return super().run(x, hx, lengths, None)


@caught_by(f"{CALL}[GRU-resets]", "a reset takes effect one step late")
class ResetOneStepLate(Layers):
    """The state is set to zeros after the step."""

    def begins(self, resets: Tensor, lengths: Tensor, reverse: bool) -> Tensor:
        begins = super().begins(resets, lengths, reverse)
        return begins if reverse else torch.cat([torch.zeros_like(begins[:1]), begins[:-1]])


@caught_by(f"{CALL}[GRU-resets]", "a reset at step 0 does not replace the initial state")
class ResetAtStep0Ignored(Layers):
    """A reset counts only between two steps."""

    def begins(self, resets: Tensor, lengths: Tensor, reverse: bool) -> Tensor:
        begins = super().begins(resets, lengths, reverse)
        return begins if reverse else torch.cat([torch.zeros_like(begins[:1]), begins[1:]])


@caught_by(f"{CALL}[GRU-resets]", "a reset goes back to the initial state")
class ResetToTheInitialState(Layers):
    """A reset goes back to the initial state."""

    def after_reset(self, initial: Tensor, before: Tensor) -> Tensor:
        return initial


@caught_by(
    f"{CALL}[GRU-resets, ragged, bidirectional]", "in the reverse direction, a reset takes effect before its own"
)
class ResetOfTheReverseDirection(Layers):
    """In the reverse direction, too, a sequence begins with the step of the reset."""

    def begins(self, resets: Tensor, lengths: Tensor, reverse: bool) -> Tensor:
        return super().begins(resets, lengths, False)


@caught_by(f"{CALL}[GRU-resets, ragged, bidirectional]", "a reset in the padding, at step n, is read")
class ResetsReadInThePadding(Layers):
    """The reverse direction reads a reset right after the last valid step."""

    def begins(self, resets: Tensor, lengths: Tensor, reverse: bool) -> Tensor:
        every = torch.full_like(lengths, len(resets)) if reverse else lengths
        return super().begins(resets, every, reverse) & valid_steps(len(resets), lengths).T


@caught_by(f"{CALL}[GRU-resets]", "gradient of")
class GradientPassesAReset(Layers):
    """A reset sets the state to zeros, but lets the gradient pass."""

    def after_reset(self, initial: Tensor, before: Tensor) -> Tensor:
        return before - before.detach()


@caught_by(f"{CALL}[GRU-resets, ragged, 2 layers, bidirectional, batch first, float32]")
class BatchFirstIgnoredInResets(Layers):
    """Resets `(B, T)` are read as if they were `(T, B)`."""

    def run(self, x: Tensor, hx: State | None, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        if resets is not None and self.spec.batch_first:
            resets = resets.T.reshape(x.shape[:2])
        return super().run(x, hx, lengths, resets)


# ---- steps ---------------------------------------------------------------------------------------


@caught_by("test_states.py::test_what_comes_out_goes_into_a_step")
class StepIgnoresTheState(Layers):
    """Each step starts from zeros."""

    def step(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        super().step(x, state)  # it refuses invalid arguments
        return super().step(x)


@caught_by("test_states.py::test_what_comes_out_goes_into_a_step")
class StepKeepsItsOwnState(Layers):
    """A step continues from the previous step, whatever state it is given."""

    def step(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        y, self.kept = super().step(x, getattr(self, "kept", state))
        return y, self.kept


@caught_by("test_models.py::test_steps_and_chunks_are_one_call[language model]")
class StepOfAModelIgnoresTheState(Net):
    """Each step of a model starts from zeros."""

    def states_of_a_step(self, states: Sequence[Any]) -> Sequence[Any]:
        return [None] * len(states)


# ---- gradients -----------------------------------------------------------------------------------


@caught_by(f"{CALL}[GRU-ragged]", "the gradient of h_0 is missing")
class NoGradientOfTheInitialState(Layers):
    """The initial state is cut off from the graph."""

    def steps(self, x: Tensor, state: State, w: Weights, lengths: Tensor, begins: Tensor | None) -> list[State]:
        return super().steps(x, tuple(part.detach() for part in state), w, lengths, begins)


@caught_by(f"{CALL}[GRU-ragged]", "the gradient that comes from the final state is ignored")
class NoGradientFromTheFinalState(Layers):
    """The final state is cut off from the graph."""

    def final(self, states: list[State], initial: State, output: Tensor, lengths: Tensor) -> State:
        return tuple(part.detach() for part in states[-1])


@caught_by(f"{CALL}[GRU-ragged]", "the gradient of weight_hh_l0 is counted twice")
class GradientOfAWeightDoubled(Layers):
    """A weight is added to its gradient twice."""

    def weights_of(self, position: int) -> Weights:
        w = super().weights_of(position)
        return w._replace(weight_hh=w.weight_hh + (w.weight_hh - w.weight_hh.detach()))


class ZeroedForwardOnly(torch.autograd.Function):
    """A selection whose backward pass does not select."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, valid: Tensor) -> Tensor:
        return torch.where(valid, x, 0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return gradient, None


@caught_by(f"{MODEL}[Pool, mean, ragged]", "gradient of the padding is not exactly 0")
class GradientOfThePadding(Net):
    """The padding's gradient is not zero."""

    def zeroed(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        if lengths is None or not x.is_floating_point():
            return super().zeroed(x, lengths)
        found: Tensor = ZeroedForwardOnly.apply(x, valid_steps(x.shape[1], lengths)[..., None])  # type: ignore[no-untyped-call]
        return found


@caught_by(f"{MODEL}[Embedding, padding_idx, ragged]", "padding_idx is ignored")
class PaddingIdxTrained(Net):
    """The vector of padding_idx gets a gradient."""

    def embedding(self, spec: EmbeddingSpec, weight: Tensor, tokens: Tensor) -> Tensor:
        return weight[tokens.long()]


# ---- dtypes --------------------------------------------------------------------------------------


@caught_by(f"{CALL}[GRU-ragged]", "float32")
class Float32ForFloat64(Layers):
    """A step is computed in float32."""

    def cell(self, w: Weights, x: Tensor, state: State) -> State:
        narrow = Weights(*(None if array is None else array.float() for array in w))  # type: ignore[arg-type]
        found = super().cell(narrow, x.float(), tuple(part.float() for part in state))
        return tuple(part.to(x.dtype) for part in found)


@caught_by(f"{CALL}[GRU-ragged]", "float32")
class OutputInFloat32(Layers):
    """The output has another dtype than the module."""

    def joined(self, outputs: list[Tensor]) -> Tensor:
        return super().joined(outputs).float()


# ---- building and weights ------------------------------------------------------------------------


@caught_by(
    "test_building.py::test_a_seed_gives_the_same_bits_everywhere[float32-GRU]", "the weights are not those of the seed"
)
class SeedNotHonoured(Handmade):
    """The framework draws the weights by its own rules."""

    def build(self, spec: Any, *, seed: int | None, weights: Arrays | None, **others: Any) -> Layers | Net:
        torch.manual_seed(seed or 0)
        drawn = {name: torch.rand(shape).numpy() - 0.5 for name, shape in spec.weight_shapes().items()}
        return super().build(spec, seed=seed, weights=drawn, **others)


@caught_by(
    "test_building.py::test_a_seed_leaves_the_global_generator_alone", "a build with a seed moves the global generator"
)
class GlobalGeneratorMoved(Handmade):
    """A build with a seed draws from the global generator."""

    def build(self, spec: Any, *, seed: int | None, **others: Any) -> Layers | Net:
        return super().build(spec, seed=int(np.random.randint(2**31)), **others)


@caught_by("test_building.py::test_load_weights_replaces_them_in_place[GRU]", "it may keep a copy of earlier ones")
class StaleWeights(Layers):
    """The weights are prepared at the first call, and not again after `load_weights`."""

    def weights_of(self, position: int) -> Weights:
        if not hasattr(self, "prepared"):
            self.prepared: dict[int, Weights] = {}
        if position not in self.prepared:
            found = super().weights_of(position)
            self.prepared[position] = found._replace(weight_hh=found.weight_hh.detach().clone())
        return self.prepared[position]


@caught_by("test_building.py::test_a_snapshot_is_a_read_only_copy", "with which it shares memory")
class WeightsShared(Handmade):
    """A module computes with the caller's own arrays, and `load_weights` writes into them."""

    def weight(self, array: NDArray[Any], dtype: Any) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns about this mistake
            return torch.from_numpy(array).to(dtype)


@caught_by("test_building.py::test_without_a_seed_two_modules_differ", "all modules have the same weights")
class AlwaysTheSameWeights(Handmade):
    """Without a seed, the seed is 0."""

    def build(self, spec: Any, *, weights: Arrays | None, **others: Any) -> Layers | Net:
        return super().build(spec, weights=draw(spec, 0) if weights is None else weights, **others)


@caught_by("test_building.py::test_snapshot_round_trip[GRU-reset-before]")
class VariantForgotten(Handmade):
    """A snapshot loses the variant of the GRU."""

    def read(self, module: Any) -> tuple[Any, dict[str, NDArray[Any]]] | None:
        found = super().read(module)
        if found is None or not isinstance(found[0], GRUSpec):
            return found
        return replace(found[0], reset_after=True), found[1]


# ---- mistakes of the caller ----------------------------------------------------------------------


@caught_by("test_mistakes.py::test_in_a_call[input with a wrong last axis]")
class OtherWords(Layers):
    """A wrong input is refused with the framework's own message."""

    def _prepare(self, given: Arguments) -> Call:
        if isinstance(given.input, Tensor) and given.input.shape[-1] != self.spec.input_size:
            raise errors.ShapeError(f"input.size(-1) must be equal to input_size, got {given.input.shape[-1]}")
        return super()._prepare(given)


@caught_by("test_mistakes.py::test_in_a_call[seq_length above T]", "DID NOT RAISE")
class LengthsCutOff(Layers):
    """Lengths over T are read as T."""

    def _prepare(self, given: Arguments) -> Call:
        if isinstance(given.seq_length, list) and isinstance(given.input, Tensor):
            given = given._replace(seq_length=np.minimum(given.seq_length, len(given.input)))
        return super()._prepare(given)


@caught_by("test_models.py::test_a_token_out_of_range[-1]", "DID NOT RAISE")
class TokensNotChecked(Net):
    """A negative token counts from the end."""

    def check_tokens(self, tokens: Tensor, valid: Tensor) -> None:
        pass


@caught_by("test_models.py::test_one_step_has_no_variance_and_changes_no_statistics[one sequence, pooled]")
class WorkBeforeTheCheck(Net):
    """A batch that is too small is refused only after earlier layers have changed their statistics."""

    def check_training(self, call: ModelCall) -> None:
        pass

    def counted(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        rows = super().counted(x, lengths)
        if len(rows) < 2:
            raise errors.ArgumentError(
                f"input: given {len(rows)} valid steps to BatchNormSpec(3) while training, expected at least 2"
            )
        return rows


# ---- dropout -------------------------------------------------------------------------------------


@caught_by("test_guarantees.py::test_dropout_drops_and_rescales_between_layers_only", "once, between the two layers")
class DropoutAfterTheLastLayer(Layers):
    """Dropout follows each layer."""

    def has_dropout_after(self, layer: int) -> bool:
        return self.training


@caught_by("test_guarantees.py::test_dropout_is_off_unless_training[GRU]", "output in evaluation, without dropout")
class DropoutInEvaluation(Layers):
    """Dropout stays on after `eval`."""

    def has_dropout_after(self, layer: int) -> bool:
        return layer < self.spec.num_layers - 1


@caught_by("test_guarantees.py::test_dropout_drops_and_rescales_between_layers_only")
class DropoutNotRescaled(Layers):
    """The kept elements are not divided by 1 - p."""

    def dropout(self, x: Tensor) -> Tensor:
        return super().dropout(x) * (1 - self.spec.dropout)


@caught_by("test_guarantees.py::test_dropout_is_off_unless_training[GRU]")
class DropoutDrawnOnce(Layers):
    """Each call drops the same elements."""

    def dropout(self, x: Tensor) -> Tensor:
        self.generator.manual_seed(0)
        return super().dropout(x)


@caught_by(f"{MODEL}[Dropout, ragged]")
class DropoutLayerInEvaluation(Net):
    """A dropout layer is active in evaluation."""

    def same_steps(self, name: str, spec: Spec, w: dict[str, Tensor], x: Tensor, lengths: Tensor | None) -> Tensor:
        if isinstance(spec, DropoutSpec):
            return self.dropout(spec, x, lengths)
        return super().same_steps(name, spec, w, x, lengths)


@caught_by("test_models.py::test_dropout[False]")
class DropoutKeepsP(Net):
    """p is taken for the probability of keeping an element."""

    def dropout(self, spec: DropoutSpec, x: Tensor, lengths: Tensor | None) -> Tensor:
        return super().dropout(replace(spec, p=1 - spec.p), x, lengths)


@caught_by("test_models.py::test_dropout[True]", "all steps drop the same: False, expected True")
class LockedDropoutUnlocked(Net):
    """A locked dropout draws again at each step."""

    def dropout(self, spec: DropoutSpec, x: Tensor, lengths: Tensor | None) -> Tensor:
        return super().dropout(spec, x, None)


# ---- layers around recurrent ones ----------------------------------------------------------------


@caught_by(f"{MODEL}[Pool, mean, ragged]", "the mean counts the padding")
class MeanCountsPadding(Net):
    """The sum is divided by T."""

    def mean(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x.mean(1)


@caught_by(f"{MODEL}[Pool, max, ragged]", "the maximum counts the padding, which is taken to be zeros")
class MaximumSeesZeros(Net):
    """The maximum counts the padding's zeros."""

    def maximum(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x.max(1).values


@caught_by(f"{MODEL}[Pool, last, ragged]", "it takes step T-1")
class LastStepIsPadding(Net):
    """The last step is taken at T - 1."""

    def last(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x[:, -1]


@caught_by(f"{MODEL}[BatchNorm, training, ragged]", "the statistics of the batch count the padding")
class BatchNormSeesPadding(Net):
    """A batch normalisation counts the padding's zeros."""

    def counted(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        return x.reshape(-1, x.shape[-1])


@caught_by(f"{MODEL}[BatchNorm, ragged]", "it uses the statistics of the batch, instead of the running ones")
class BatchNormInEvaluation(Net):
    """A batch normalisation uses the statistics of the batch in evaluation, too."""

    def uses_statistics_of_batch(self) -> bool:
        return True


@caught_by("test_models.py::test_running_statistics_see_valid_steps_only", "divided by N, instead of N - 1")
class RunningVarianceBiased(Net):
    """The running variance is updated with the batch's biased variance."""

    def change_statistics(self, spec: BatchNormSpec, w: dict[str, Tensor], rows: Tensor) -> None:
        w["running_mean"].lerp_(rows.mean(0), spec.momentum)
        w["running_var"].lerp_(rows.var(0, unbiased=False), spec.momentum)


@caught_by("test_models.py::test_running_statistics_see_valid_steps_only", "the momentum is taken the other way round")
class MomentumTheOtherWay(Net):
    """The momentum is taken for the share of the old running statistics."""

    def change_statistics(self, spec: BatchNormSpec, w: dict[str, Tensor], rows: Tensor) -> None:
        w["running_mean"].lerp_(rows.mean(0), 1 - spec.momentum)
        w["running_var"].lerp_(rows.var(0), 1 - spec.momentum)


@caught_by(f"{MODEL}[Conv1d, same, ragged]", "it reads what stands in the padding")
class ConvolutionReadsPadding(Net):
    """A convolution reads the padding, which is not zero."""

    def zeroed_input(self, x: Tensor, lengths: Tensor) -> Tensor:
        return x

    def layer(self, name: str, spec: Any, x: Tensor, lengths: Tensor | None, run: Run) -> tuple[Tensor, Tensor | None]:
        if not isinstance(spec, Conv1dSpec) or lengths is None:
            return super().layer(name, spec, x, lengths, run)
        y, _ = super().layer(name, spec, x, torch.full_like(lengths, x.shape[1]), run)
        return y, torch.tensor(spec.output_lengths(lengths.numpy()))


@caught_by(f"{MODEL}[Conv1d, same, ragged]", "it is shifted")
class ConvolutionShifted(Net):
    """A kernel of an even size has its extra zero on the other side."""

    def zeros_around(self, spec: Conv1dSpec) -> tuple[int, int]:
        left, right = spec.padded
        return right, left


@caught_by(f"{MODEL}[Activation, softmax, ragged]", "softmax is taken over the axis of time")
class SoftmaxOverTime(Net):
    """A softmax is taken over the steps, including the padding."""

    def softmax(self, function: Callable[[Tensor, int], Tensor], x: Tensor) -> Tensor:
        return function(x, 1)


@caught_by(f"{MODEL}[Concat, ragged]")
class ConcatInTheWrongOrder(Net):
    """The last branch comes first."""

    def concatenated(self, branches: list[Tensor]) -> Tensor:
        return torch.cat(branches[::-1], -1)


@caught_by(f"{MODEL}[Pool, first_last, ragged]", "both halves are those of the last valid step")
class LastStepOfBothDirections(Net):
    """The reverse direction's result is taken at the last step, where that direction starts."""

    def pool(self, how: str, x: Tensor, lengths: Tensor) -> Tensor:
        return super().pool("last" if how == "first_last" else how, x, lengths)


@caught_by(f"{MODEL}[BatchNorm, ragged]")
class StatisticsChangeInEvaluation(Net):
    """The running statistics change in evaluation, too."""

    def batch_norm(self, spec: BatchNormSpec, w: dict[str, Tensor], x: Tensor, lengths: Tensor | None) -> Tensor:
        y = super().batch_norm(spec, {name: array.clone() for name, array in w.items()}, x, lengths)
        self.change_statistics(spec, w, self.counted(x, lengths).detach())
        return y


@caught_by(f"{MODEL}[BatchNorm, training, ragged]", "gradient of input")
class StatisticsAreConstants(Net):
    """No gradient passes through the statistics of the batch."""

    def counted(self, x: Tensor, lengths: Tensor | None) -> Tensor:
        return super().counted(x, lengths).detach()


@caught_by(f"{MODEL}[LayerNorm, ragged]", "the variance is divided by N - 1 instead of N")
class LayerNormUnbiased(Net):
    """A layer normalisation divides by N - 1."""

    def same_steps(self, name: str, spec: Spec, w: dict[str, Tensor], x: Tensor, lengths: Tensor | None) -> Tensor:
        if isinstance(spec, LayerNormSpec):
            variance, mean = torch.var_mean(x, -1, keepdim=True)
            return (x - mean) / (variance + spec.eps).sqrt() * w["weight"] + w["bias"]
        return super().same_steps(name, spec, w, x, lengths)


@caught_by(f"{MODEL}[Activation, gelu, ragged]", "GELU is approximated by a tanh")
class GeluByTanh(Net):
    """GELU is approximated."""

    def activation(self, function: str, x: Tensor) -> Tensor:
        return F.gelu(x, approximate="tanh") if function == "gelu" else super().activation(function, x)


@caught_by(f"{MODEL}[Conv1d, causal, ragged]")
class ContextOfStepT(Net):
    """The state of a causal convolution is the last steps of the padded input, whatever the lengths are."""

    def convolution(self, spec: Conv1dSpec, w: dict[str, Tensor], x: Tensor, lengths: Tensor, run: Run) -> Tensor:
        return super().convolution(spec, w, x, torch.full_like(lengths, x.shape[1]), run)


@caught_by(f"{MODEL}[strided, bidirectional, ragged]")
class LengthsAfterAConvolution(Net):
    """A convolution with a stride does not shorten the lengths; it only limits them to the new T."""

    def layer(self, name: str, spec: Any, x: Tensor, lengths: Tensor | None, run: Run) -> tuple[Tensor, Tensor | None]:
        y, after = super().layer(name, spec, x, lengths, run)
        return y, lengths.clamp(max=y.shape[1]) if isinstance(spec, Conv1dSpec) and lengths is not None else after


@caught_by(f"{MODEL}[convolutions, time first, ragged]")
class StatesOfAModelInAnotherOrder(Net):
    """The states are returned from the last layer to the first."""

    def _run(self, call: ModelCall) -> tuple[Tensor, list[State]]:
        y, finals = super()._run(call)
        return y, finals[::-1]


@caught_by(f"{MODEL}[language model, ragged]", "gradient of embedding.weight")
class TiedWeightCopied(Net):
    """The head has a copy of the embedding's weight."""

    def tied_weight(self, name: str) -> Tensor:
        return super().tied_weight(name).detach().clone()


# ---- side effects of a call, and what a backend says about itself --------------------------------


@caught_by("test_guarantees.py::test_results_and_arguments_stay_as_they_are[GRU]", "an argument is changed in place")
class InputZeroedInPlace(Layers):
    """The padding of the caller's own array is set to zeros."""

    def zeroed_input(self, x: Tensor, lengths: Tensor) -> Tensor:
        if x.requires_grad:
            return super().zeroed_input(x, lengths)
        x[~valid_steps(len(x), lengths).T] = 0
        return x


@caught_by("test_guarantees.py::test_results_and_arguments_stay_as_they_are[GRU]", "an argument is changed in place")
class StateChangedInPlace(Layers):
    """The final state is written into the caller's initial state."""

    def run(self, x: Tensor, hx: State | None, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        output, final = super().run(x, hx, lengths, resets)
        for part, new in zip(hx or (), final, strict=False):
            part.detach().copy_(new.detach())
        return output, final


@caught_by(
    "test_guarantees.py::test_results_and_arguments_stay_as_they_are[GRU]", "changes what an earlier one returned"
)
class BufferReused(Layers):
    """The final state is in a buffer that the next call writes to."""

    buffers: State | None = None

    def run(self, x: Tensor, hx: State | None, lengths: Tensor | None, resets: Tensor | None) -> tuple[Tensor, State]:
        output, final = super().run(x, hx, lengths, resets)
        if x.requires_grad:
            return output, final
        if self.buffers is None or self.buffers[0].shape != final[0].shape:
            self.buffers = tuple(torch.empty_like(part) for part in final)
        for buffer, part in zip(self.buffers, final, strict=True):
            buffer.detach().copy_(part.detach())
        return output, self.buffers


@caught_by("test_guarantees.py::test_gradients_are_not_borrowed[GRU]", "gradients are computed by")
class GradientsBorrowed(Handmade):
    """The gradients come from the numpy backend, whatever this backend computes."""

    def gradients(
        self, module: Any, arguments: Mapping[str, Any], cotangents: Sequence[NDArray[Any]]
    ) -> dict[str, NDArray[Any]]:
        spec, weights = self.read(module) or (None, {})
        other = Snapshot(spec, weights).build("numpy")
        return registry.load("numpy").gradients(other, arguments, cotangents)


@caught_by("test_streaming.py::test_no_gradient_passes_a_detached_state", "a gradient passes a state that was detached")
class DetachDoesNothing(Handmade):
    """A state is returned unchanged."""

    def detach(self, array: Any) -> Any | None:
        return array if isinstance(array, Tensor) else None


@caught_by(f"{CALL}[GRU-reverse, ragged, resets, 2 layers]", "remove the limit")
class LimitThatWorks(Handmade):
    """A limit is declared, but the call that it refuses works."""

    support = replace(Handmade.support, lacks=("gate_activation", "proj_size", "reverse"))


@caught_by(f"{CALL}[GRU-ragged]", "remove the limit")
class GradientsThatWork(Handmade):
    """The backend says that it has no gradients, but it has."""

    support = replace(Handmade.support, derivatives=0)


@caught_by("test_guarantees.py::test_dropout_is_off_unless_training[GRU]", "remove the limit")
class DropoutThatWorks(Handmade):
    """The backend says that it has no dropout, but it has."""

    support = replace(Handmade.support, dropout=False)
