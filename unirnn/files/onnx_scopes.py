"""The scopes of an ONNX model: its graph, the branches and bodies in it, and the bodies of its functions at each call.

A name of a value means something in one scope. A branch of ``If``, or the body of ``Loop`` or ``Scan``, sees the names
of the scope around it; the body of a function sees only what it is called with.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from unirnn.errors import FileError

__all__ = ["Budget", "Scope", "label", "text", "walk"]

_MAX_DEPTH = 64
_NODE_BYTES = 256  # what a node is taken to cost each time that it is looked at


class Budget:
    """How many bytes may still be made out of a file: a multiple of its size, so that it can't ask for more."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.left = 16 * size + 2**20

    def take(self, num_bytes: int, what: str) -> None:
        """Take so many bytes; a FileError if they are not left."""
        if num_bytes > self.left:
            raise FileError(
                f"{what} would need {num_bytes} bytes, more than are reasonable for a model of {self.size} bytes"
            )
        self.left -= num_bytes

    def take_nodes(self, count: int, what: str) -> None:
        """Take what so many nodes cost."""
        self.take(_NODE_BYTES * count, what)


class Scope:
    """A graph, or the body of a function at one of its calls: its nodes, and what its names mean.

    Parameters
    ----------
    graph
        A GraphProto or a FunctionProto.
    opsets
        The version of each domain.
    functions
        The functions of the model by domain, name and overload.
    path
        What the names of its nodes begin with.
    outer
        The scope around it, or the one that calls the function.
    bound
        Of a function the names in the outer scope by its own, None of a graph.
    given
        The attributes with which a function is called.
    """

    def __init__(
        self,
        graph: Any,
        opsets: Mapping[str, int],
        functions: Mapping[tuple[str, str, str], Any],
        path: str = "",
        outer: "Scope | None" = None,
        bound: Mapping[str, str] | None = None,
        given: Mapping[str, Any] | None = None,
    ) -> None:
        self.nodes, self.opsets, self.functions, self.path, self.outer = graph.node, opsets, functions, path, outer
        self.bound, self.given = bound, given or {}
        self.depth: int = outer.depth + 1 if outer else 0
        if self.depth > _MAX_DEPTH:
            raise FileError(f"onnx: its graphs or functions are nested more than {_MAX_DEPTH} deep")
        self.initializers: dict[str, Any] = {}
        for tensor in () if bound is not None else graph.initializer:
            if tensor.name in self.initializers:
                raise FileError(f"onnx: an altered file: two initializers are named {tensor.name!r}")
            self.initializers[tensor.name] = tensor
        self.inputs, self.results = (
            [value if bound is not None else value.name for value in values] for values in (graph.input, graph.output)
        )
        self.producers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
        self._bodies: dict[int, Scope] = {}

    @classmethod
    def of_model(cls, model: Any) -> "Scope":
        """The scope of a model's graph."""
        functions = {(f.domain, f.name, f.overload): f for f in model.functions}
        return cls(model.graph, {entry.domain: entry.version for entry in model.opset_import}, functions)

    def find(self, name: str) -> "tuple[Scope, str]":
        """The scope in which a name is defined, and the name there."""
        scope = self
        while name not in scope.initializers and name not in scope.producers and scope.outer is not None:
            if scope.bound is not None:
                if not scope.bound.get(name):
                    break
                name = scope.bound[name]
            elif name in scope.inputs:
                break
            scope = scope.outer
        return scope, name

    def attributes(self, node: Any) -> list[Any]:
        """The attributes of a node, those that a function passes on instead of their references."""
        found = []
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                found.append(attribute)
            elif attribute.ref_attr_name in self.given:
                passed = type(attribute)()
                passed.CopyFrom(self.given[attribute.ref_attr_name])
                passed.name = attribute.name
                found.append(passed)
        return found

    def function(self, node: Any) -> Any:
        """The function of the model that a node calls, or None."""
        return self.functions.get((node.domain, node.op_type, node.overload))

    def body(self, index: int, budget: Budget) -> "Scope":
        """The body of the function that a node calls."""
        if index not in self._bodies:
            node = self.nodes[index]
            function = self.function(node)
            budget.take_nodes(len(function.node), f"onnx: function {function.name!r}")
            given = {a.name: a for a in (*function.attribute_proto, *self.attributes(node))}
            bound = dict.fromkeys(function.input, "") | dict(zip(function.input, node.input, strict=False))
            opsets = {entry.domain: entry.version for entry in function.opset_import}
            path = f"{self.path}{label(index, node)}/"
            self._bodies[index] = Scope(function, opsets, self.functions, path, self, bound, given)
        return self._bodies[index]

    def consumers(self) -> dict[str, list[int]]:
        """By the name of a value the nodes that use it, also within their branches and bodies."""
        found: dict[str, list[int]] = {}
        for index, node in enumerate(self.nodes):
            for name in node.input:
                found.setdefault(name, []).append(index)
            inner = {name for graph in _graphs(node) for one in _deep(graph) for name in one.input}
            for name in inner | {value.name for graph in _graphs(node) for value in graph.output}:
                found.setdefault(name, []).append(index)
        return found


def label(index: int, node: Any) -> str:
    """The name of a node in paths and messages: its own, its first output's, or its number."""
    return next((text(name) for name in (node.name, *node.output) if name), f"node {index}")


def text(value: str | bytes) -> str:
    """A text of a message of protobuf, which gives bytes if they are not UTF-8."""
    return value if isinstance(value, str) else value.decode(errors="replace")


def walk(root: Scope, kinds: frozenset[str], budget: Budget) -> Iterator[tuple[Scope, int]]:
    """Every node that may matter, in order: those of all branches and bodies, and of functions with nodes of a kind."""
    relevant = _functions_with(root.functions, kinds)

    def visit(scope: Scope) -> Iterator[tuple[Scope, int]]:
        for index, node in enumerate(scope.nodes):
            yield scope, index
            if (node.domain, node.op_type, node.overload) in relevant:
                yield from visit(scope.body(index, budget))
            for attribute in node.attribute:
                several = [(f"{text(attribute.name)}_{number}", graph) for number, graph in enumerate(attribute.graphs)]
                for name, graph in [(text(attribute.name), attribute.g)] * attribute.HasField("g") + several:
                    path = f"{scope.path}{label(index, node)}/{name}/"
                    yield from visit(Scope(graph, scope.opsets, scope.functions, path, scope, None, scope.given))

    return visit(root)


def _functions_with(functions: Mapping[tuple[str, str, str], Any], kinds: frozenset[str]) -> set[tuple[str, str, str]]:
    """The functions that have a node of one of the kinds, or call a function that has."""
    uses: dict[tuple[str, str, str], set[tuple[str, str, str]]] = {}
    found: set[tuple[str, str, str]] = set()
    for key, function in functions.items():
        nodes = list(_deep(function))
        uses[key] = {(node.domain, node.op_type, node.overload) for node in nodes} & functions.keys()
        if any(node.op_type in kinds for node in nodes):
            found.add(key)
    callers: dict[tuple[str, str, str], list[tuple[str, str, str]]] = {}
    for key, used in uses.items():
        for other in used:
            callers.setdefault(other, []).append(key)
    left = list(found)
    while left:
        for caller in callers.get(left.pop(), ()):
            if caller not in found:
                found.add(caller)
                left.append(caller)
    return found


def _graphs(node: Any) -> list[Any]:
    return [graph for a in node.attribute for graph in ([a.g] if a.HasField("g") else []) + list(a.graphs)]


def _deep(graph: Any) -> Iterator[Any]:
    """The nodes of a graph or a function, and those within them."""
    left = [graph]
    while left:
        for node in left.pop().node:
            yield node
            left += _graphs(node)
