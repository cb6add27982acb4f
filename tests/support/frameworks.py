"""The frameworks of the round trips. Each makes a native layer, fills it, runs it, and loads a snapshot into it.

Only `Numpy` and loading a snapshot use unirnn. The others use the framework's own constructor, its own way to set
random weights (also the biases, which are zeros at first in Keras and Flax), and its own call. Whatever the shapes of
the framework, the input and the results are NumPy arrays `(T, B, ...)`, and the states are `(L*D, B, H)`.
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot

__all__ = ["CASES", "FRAMEWORKS", "Case", "Framework", "draw_input", "installed"]

Array = NDArray[Any]
Result = tuple[Array, tuple[Array, ...]]

T, B, I, H = 5, 3, 3, 4  # noqa: E741 - the names of the sizes in the documentation

KINDS: dict[str, tuple[type[RecurrentSpec], dict[str, Any]]] = {
    "RNN": (RNNSpec, {}),
    "GRU": (GRUSpec, {}),
    "GRU without b_hn": (GRUSpec, {}),  # as in Flax
    "GRU reset before": (GRUSpec, {"reset_after": False}),
    "LSTM": (LSTMSpec, {}),
}


@dataclass(frozen=True)
class Case:
    """A layer to convert."""

    kind: str
    spec: RecurrentSpec

    @property
    def name(self) -> str:
        direction = "bi" if self.spec.bidirectional else "uni"
        return f"{self.kind}-{self.spec.num_layers}-{direction}"

    def clear(self, b_hh: Array) -> Array:
        """If the case has no b_hn, set it to zeros; it is the last third of b_hh in every framework."""
        if self.kind == "GRU without b_hn":
            b_hh[..., 2 * H :] = 0
        return b_hh


def _cases() -> list[Case]:
    found = []
    for kind, (cell, options) in KINDS.items():
        for num_layers in (1, 3):
            for bidirectional in (False, True):
                if kind == "RNN":
                    options = {"nonlinearity": "relu" if bidirectional else "tanh"}
                spec = cell(I, H, num_layers, bidirectional=bidirectional, **options)
                found.append(Case(kind, spec))
    return found


CASES = _cases()


def draw_input() -> Array:
    """The input of every layer, `(T, B, I)`."""
    return np.random.default_rng(0).standard_normal((T, B, I)).astype(np.float32)


def draw(rng: np.random.Generator, shape: Sequence[int]) -> Array:
    return rng.uniform(-0.7, 0.7, tuple(shape)).astype(np.float32)


def join(outputs: Array, states: list[tuple[Array, ...]]) -> Result:
    """Join the final states of each layer and direction to `(L*D, B, H)`."""
    return outputs, tuple(np.stack(part) for part in zip(*states, strict=True))


class Framework(ABC):
    """A framework, with the kinds of layers that it can hold."""

    name: str
    kinds: tuple[str, ...] = ("RNN", "GRU", "GRU without b_hn", "LSTM")

    @abstractmethod
    def make(self, case: Case, rng: np.random.Generator) -> Any:
        """A native layer, or a list of stacked ones, with random weights."""

    @abstractmethod
    def run(self, native: Any, x: Array) -> Result:
        """The output and the final states that the framework computes."""

    def load(self, snapshot: Snapshot, case: Case, folder: Path) -> Any:
        """A native layer with the weights of a snapshot."""
        native = self.make(case, np.random.default_rng(99))
        unirnn.load_weights(native, snapshot)
        return native


class Numpy(Framework):
    name = "numpy"
    kinds = tuple(KINDS)

    def make(self, case: Case, rng: np.random.Generator) -> Any:
        weights = {name: draw(rng, shape) for name, shape in case.spec.weight_shapes().items()}
        for name, array in weights.items():
            if name.startswith("bias_hh"):
                case.clear(array)
        return Snapshot(case.spec, weights).build("numpy")

    def run(self, native: Any, x: Array) -> Result:
        output, state = native(x)
        return output, state if isinstance(state, tuple) else (state,)


class Torch(Framework):
    name = "torch"

    def make(self, case: Case, rng: np.random.Generator) -> Any:
        import torch

        layer = getattr(torch.nn, case.spec.kind)(**case.spec.to_kwargs("torch"))
        with torch.no_grad():
            for name, parameter in layer.named_parameters():
                array = draw(rng, parameter.shape)
                parameter.copy_(torch.from_numpy(case.clear(array) if name.startswith("bias_hh") else array))
        return layer

    def run(self, native: Any, x: Array) -> Result:
        import torch

        with torch.no_grad():
            output, state = native(torch.from_numpy(x))
        parts = state if isinstance(state, tuple) else (state,)
        return output.numpy(), tuple(part.numpy() for part in parts)


class MindSpore(Framework):
    name = "mindspore"

    def make(self, case: Case, rng: np.random.Generator) -> Any:
        import mindspore

        mindspore.runtime.launch_blocking()  # faster for small operators than the asynchronous queue
        layer = getattr(mindspore.nn, case.spec.kind)(**case.spec.to_kwargs("mindspore"))
        for name, parameter in layer.parameters_and_names():
            array = draw(rng, parameter.shape)
            parameter.set_data(mindspore.Tensor(case.clear(array) if name.startswith("bias_hh") else array))
        return layer

    def run(self, native: Any, x: Array) -> Result:
        import mindspore

        output, state = native(mindspore.Tensor(x))
        parts = state if isinstance(state, tuple) else (state,)
        return output.asnumpy(), tuple(part.asnumpy() for part in parts)


class Keras(Framework):
    name = "keras"
    kinds = ("RNN", "GRU", "GRU without b_hn", "GRU reset before", "LSTM")

    def make(self, case: Case, rng: np.random.Generator) -> Any:
        from keras import layers

        spec, stack = case.spec, []
        for index in range(spec.num_layers):
            # Unrolled, since JAX would compile the loop of every layer anew.
            options: dict[str, Any] = {"return_sequences": True, "return_state": True, "unroll": True}
            if isinstance(spec, RNNSpec):
                options["activation"] = spec.nonlinearity
            if isinstance(spec, GRUSpec):
                options["reset_after"] = spec.reset_after
            layer = getattr(layers, "SimpleRNN" if spec.kind == "RNN" else spec.kind)(H, **options)
            if spec.bidirectional:
                layer = layers.Bidirectional(layer)
            layer.build((None, T, I if index == 0 else H * spec.num_directions))
            arrays = [draw(rng, weight.shape) for weight in layer.weights]
            for array in arrays:
                if array.shape == (2, 3 * H):  # a GRU's two biases
                    case.clear(array[1])
            layer.set_weights(arrays)
            stack.append(layer)
        return stack if len(stack) > 1 else stack[0]

    def run(self, native: Any, x: Array) -> Result:
        from keras import ops

        outputs, states = np.swapaxes(x, 0, 1), []
        for layer in native if isinstance(native, list) else [native]:
            results = [ops.convert_to_numpy(part) for part in layer(outputs)]
            outputs, directions = results[0], 2 if hasattr(layer, "forward_layer") else 1
            each = (len(results) - 1) // directions  # h, or h and c; the forward direction's come first
            states += [tuple(results[1 + d * each : 1 + (d + 1) * each]) for d in range(directions)]
        return join(np.swapaxes(outputs, 0, 1), states)


class Flax(Framework):
    name = "flax"
    kinds = ("RNN", "GRU without b_hn", "LSTM")

    @staticmethod
    @functools.cache
    def compiled() -> Any:
        """The call of a layer, compiled once for all layers of the same shape."""
        from flax import nnx

        return nnx.jit(lambda layer, x: layer(x, return_carry=True))

    def make(self, case: Case, rng: np.random.Generator) -> Any:
        from flax import nnx

        spec, stack = case.spec, []
        kind = {"RNN": nnx.SimpleCell, "GRU": nnx.GRUCell, "LSTM": nnx.OptimizedLSTMCell}[spec.kind]
        options = {"activation_fn": getattr(nnx, spec.nonlinearity)} if isinstance(spec, RNNSpec) else {}
        for index in range(spec.num_layers):
            width = I if index == 0 else H * spec.num_directions
            layers = []
            for _ in range(spec.num_directions):
                cell = kind(width, H, rngs=nnx.Rngs(0), **options)
                for _, parameter in nnx.to_flat_state(nnx.state(cell, nnx.Param)):
                    parameter[...] = draw(rng, parameter.shape)
                layers.append(nnx.RNN(cell))
            stack.append(nnx.Bidirectional(*layers) if spec.bidirectional else layers[0])
        return stack if len(stack) > 1 else stack[0]

    def run(self, native: Any, x: Array) -> Result:
        outputs, states = np.swapaxes(x, 0, 1), []
        for layer in native if isinstance(native, list) else [native]:
            carry, outputs = self.compiled()(layer, outputs)
            carries = list(carry) if hasattr(layer, "forward_rnn") else [carry]
            # The carry of an LSTM is (c, h).
            states += [tuple(map(np.asarray, c[::-1] if isinstance(c, tuple) else (c,))) for c in carries]
        return join(np.swapaxes(np.asarray(outputs), 0, 1), states)


class Onnx(Framework):
    """As a source, a model made node by node; as a target, a file that unirnn wrote."""

    name = "onnx"
    kinds = tuple(KINDS)

    def make(self, case: Case, rng: np.random.Generator) -> Any:
        from onnx import TensorProto, helper, numpy_helper

        spec = case.spec
        gates, directions = len(spec.gates), spec.num_directions
        nodes, constants, states = [], [numpy_helper.from_array(np.array([0, 0, -1]), "joined")], []
        name = "x"
        for index in range(spec.num_layers):
            width = I if index == 0 else H * directions
            for part, shape in (("W", (gates * H, width)), ("R", (gates * H, H)), ("B", (2 * gates * H,))):
                array = draw(rng, (directions, *shape))
                if part == "B" and spec.kind == "GRU":
                    case.clear(array[:, 3 * H :])
                constants.append(numpy_helper.from_array(array, f"{part}{index}"))
            options: dict[str, Any] = {"direction": "bidirectional"} if spec.bidirectional else {}
            if isinstance(spec, RNNSpec):
                options["activations"] = [spec.nonlinearity.capitalize()] * directions
            if isinstance(spec, GRUSpec):
                options["linear_before_reset"] = int(spec.reset_after)
            finals = [f"{state}{index}" for state in spec.states]
            inputs = [name, f"W{index}", f"R{index}", f"B{index}"]
            nodes.append(
                helper.make_node(spec.kind, inputs, [f"y{index}", *finals], f"layer{index}", hidden_size=H, **options)
            )
            nodes.append(helper.make_node("Transpose", [f"y{index}"], [f"t{index}"], perm=[0, 2, 1, 3]))
            name = f"out{index}"
            nodes.append(helper.make_node("Reshape", [f"t{index}", "joined"], [name]))
            states += finals
        for state in spec.states:
            parts = [f"{state}{index}" for index in range(spec.num_layers)]
            nodes.append(helper.make_node("Concat", parts, [f"final_{state}"], axis=0))
        outputs = [name, *(f"final_{state}" for state in spec.states)]
        floats = TensorProto.FLOAT
        graph = helper.make_graph(
            nodes,
            "made by hand",
            [helper.make_tensor_value_info("x", floats, ["T", "B", I])],
            [helper.make_tensor_value_info(output, floats, None) for output in outputs],
            constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def load(self, snapshot: Snapshot, case: Case, folder: Path) -> Any:
        snapshot.save(folder / "target.onnx")
        return folder / "target.onnx"

    def run(self, native: Any, x: Array) -> Result:
        import onnxruntime

        source = str(native) if isinstance(native, Path) else native.SerializeToString()
        session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
        first, *others = session.get_inputs()
        batch_first = first.shape[0] == "B"
        feed = {first.name: np.swapaxes(x, 0, 1) if batch_first else x}
        for value in others:
            if value.name == "seq_length":
                feed[value.name] = np.full(B, T, {"tensor(int64)": np.int64, "tensor(int32)": np.int32}[value.type])
            else:
                feed[value.name] = np.zeros((value.shape[0], B, H), np.float32)
        output, *finals = session.run(None, feed)
        return np.swapaxes(output, 0, 1) if batch_first else output, tuple(finals)


FRAMEWORKS: dict[str, Framework] = {
    framework.name: framework for framework in (Numpy(), Torch(), MindSpore(), Keras(), Flax(), Onnx())
}
"""All of them, installed or not."""


def installed() -> list[Framework]:
    """The frameworks that are installed."""
    return [found for name, found in FRAMEWORKS.items() if find_spec("onnxruntime" if name == "onnx" else name)]
