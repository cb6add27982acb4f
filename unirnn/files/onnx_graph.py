"""The parts of a graph of ONNX: nodes, constants, and the masks that lengths make."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from unirnn.contract.weights import Array

__all__ = ["HARD_SIGMOIDS", "Flow", "GraphBuilder", "Lengths"]

HARD_SIGMOIDS = {"hard_sigmoid": (1 / 6, 0.5), "hard_sigmoid_0.2": (0.2, 0.5)}
"""The slope and the offset of each hard sigmoid that a spec can have; ONNX calls them alpha and beta."""


class GraphBuilder:
    """Collects nodes and initializers. The name of a node says what it does, the name of a value what it holds.

    Parameters
    ----------
    onnx
        The package.
    dtype
        In which the graph computes.
    """

    def __init__(self, onnx: Any, dtype: np.dtype[Any]) -> None:
        self.onnx, self.dtype = onnx, dtype
        self.nodes: list[Any] = []
        self.initializers: dict[str, Array] = {}

    def add_node(
        self, op: str, inputs: list[str], outputs: str | list[str], *, name: str = "", **attributes: Any
    ) -> str:
        """Add a node, named after its first output unless it has a name, and return the name of that output."""
        outputs = [outputs] if isinstance(outputs, str) else outputs
        name = name or f"{op}_{outputs[0]}"
        self.nodes.append(self.onnx.helper.make_node(op, inputs, outputs, name=name, **attributes))
        return outputs[0]

    def add_constant(self, name: str, value: Any, dtype: Any = np.int64) -> str:
        """Add an initializer, and return its name. Who needs the same one adds it again."""
        self.initializers[name] = np.array(value, dtype)
        return name

    def select(self, flow: "Flow", y: str) -> "Flow":
        """Put zeros into the padding, or token 0 for tokens; nothing is added if they are there already."""
        if flow.lengths is None or not flow.has_steps or flow.is_clean:
            return flow
        mask = flow.lengths.is_valid_2d if flow.is_tokens else flow.lengths.is_valid
        zero = self.add_constant("int_0", 0) if flow.is_tokens else self.add_constant("zero", 0, self.dtype)
        return replace(flow, x=self.add_node("Where", [mask, flow.x, zero], y), is_clean=True)

    def gather_steps(self, x: str, steps: str, y: str) -> str:
        """Take steps `(B,)` or `(N, B)`, one of each column, out of `(T, B, F)`: `(B, F)` or `(N, B, F)`."""
        zero, one = self.add_constant("int_0", 0), self.add_constant("int_1", 1)
        first, last = self.add_constant("axis_0", [0]), self.add_constant("axis_last", [-1])
        batch_size = self.add_node("Shape", [x], f"{y}_batch_1d", start=1, end=2)
        batch_size = self.add_node("Squeeze", [batch_size, first], f"{y}_batch")
        columns = self.add_node("Range", [zero, batch_size, one], f"{y}_columns_1d")
        shape = self.add_node("Shape", [steps], f"{y}_shape")
        columns = self.add_node("Expand", [columns, shape], f"{y}_columns")
        both = [
            self.add_node("Unsqueeze", [value, last], f"{y}_{axis}_index")
            for axis, value in (("step", steps), ("column", columns))
        ]
        return self.add_node("GatherND", [x, self.add_node("Concat", both, f"{y}_index", axis=-1)], y)


class Lengths:
    """The lengths at one place of a graph, and the masks that they make, each of which is added when it is first used.

    Parameters
    ----------
    graph
        The graph.
    prefix
        What the names of the masks begin with.
    name
        The lengths, `(B,)` of int64.
    x
        An array `(T, B, ...)` with these lengths, for its T.
    """

    def __init__(self, graph: GraphBuilder, prefix: str, name: str, x: str) -> None:
        self.graph, self.prefix, self.name, self.x = graph, prefix, name, x

    @cached_property
    def is_valid_2d(self) -> str:
        """`(T, B)`: which steps are valid."""
        graph, prefix = self.graph, self.prefix
        zero, one = graph.add_constant("int_0", 0), graph.add_constant("int_1", 1)
        first, last = graph.add_constant("axis_0", [0]), graph.add_constant("axis_last", [-1])
        length = graph.add_node("Shape", [self.x], f"{prefix}num_steps_1d", start=0, end=1)
        length = graph.add_node("Squeeze", [length, first], f"{prefix}num_steps")
        steps = graph.add_node("Range", [zero, length, one], f"{prefix}steps_1d")
        steps = graph.add_node("Unsqueeze", [steps, last], f"{prefix}steps")
        return graph.add_node("Less", [steps, self.name], f"{prefix}is_valid_2d")

    @cached_property
    def is_valid(self) -> str:
        """`(T, B, 1)`: which steps are valid."""
        valid = self.is_valid_2d
        return self.graph.add_node("Unsqueeze", [valid, "axis_last"], f"{self.prefix}is_valid")

    @cached_property
    def has_steps(self) -> str:
        """`(B, 1)`: which sequences have any step."""
        zero, last = self.graph.add_constant("int_0", 0), self.graph.add_constant("axis_last", [-1])
        some = self.graph.add_node("Greater", [self.name, zero], f"{self.prefix}has_steps_1d")
        return self.graph.add_node("Unsqueeze", [some, last], f"{self.prefix}has_steps")

    @cached_property
    def int32(self) -> str:
        """`(B,)` of int32, which recurrent nodes take."""
        return self.graph.add_node("Cast", [self.name], f"{self.name}_int32", to=self.graph.onnx.TensorProto.INT32)


@dataclass(frozen=True)
class Flow:
    """An array on its way from layer to layer.

    Parameters
    ----------
    x
        An array `(T, B, F)`, whatever the model's layout is; `(T, B)` if they are tokens; `(B, F)` without steps.
    lengths
        None if every step is valid.
    is_tokens, has_steps
        Which of the three it is.
    is_clean
        Whether its padding is known to be zeros.
    """

    x: str
    lengths: Lengths | None
    is_tokens: bool = False
    has_steps: bool = True
    is_clean: bool = False
