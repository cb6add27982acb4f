"""Which recurrent nodes of an ONNX model are one layer: those that feed each other, and the two directions of one.

Between the nodes there may be others that only change the layout of what passes, or fill its padding with zeros.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from unirnn.contract.weights import Weights
from unirnn.errors import SpecError
from unirnn.files.onnx_constants import Constants
from unirnn.files.onnx_nodes import Node
from unirnn.files.onnx_scopes import Scope

__all__ = ["Part", "chains"]


@dataclass(frozen=True)
class Part:
    """One layer of a stack: a node, or a forward and a reverse one that are the two directions of a layer.

    Parameters
    ----------
    nodes
        The node, or the forward and the reverse one.
    spec
        The spec of the layer, or the error that says why none describes it.
    """

    nodes: tuple[Node, ...]
    spec: Any  # a RecurrentSpec or a SpecError

    def read(self, constants: Constants) -> Weights:
        """Its weights, by the names of `unirnn.Spec.weight_shapes`."""
        first, *reverse = (node.read(constants) for node in self.nodes)
        return first | {f"{name}_reverse": array for weights in reverse for name, array in weights.items()}


@dataclass(frozen=True)
class _End:
    """How far the output of a part goes before a node computes with it: its name there, its axes, and who takes it."""

    name: str
    axes: list[str]
    index: int
    taking: list[int]
    is_reverse: bool


def chains(nodes: Sequence[Node], constants: Constants) -> dict[str, list[Part]]:
    """The layers by the names of their first nodes, each as its parts, the lowest first."""
    links: dict[int, _Links] = {}
    parts: list[Part] = []
    for node in nodes:
        own = links.setdefault(id(node.scope), _Links(node.scope, constants))
        own.nodes[node.index] = node
    for own in links.values():
        parts += own.parts()
    order = {node.name: position for position, node in enumerate(nodes)}
    parts.sort(key=lambda part: order[part.nodes[0].name])
    after = {id(part): links[id(part.nodes[0].scope)].next(part) for part in parts}
    taken: set[int] = set()
    found: dict[str, list[Part]] = {}
    for part in parts:
        if id(part) in taken:
            continue
        chain = [part]
        while (following := after[id(chain[-1])]) and _continues(chain[0], following):
            chain.append(following)
        taken |= {id(one) for one in chain}
        found[part.nodes[0].name] = chain
    return found


def _continues(first: Part, part: Part) -> bool:
    """Whether a part is another layer of the stack that begins with ``first``."""
    if isinstance(first.spec, SpecError) or isinstance(part.spec, SpecError):
        return False
    # Exporters name a node after its module: /encoder/GRU, /encoder/GRU_1, /decoder/GRU.
    one, other = first.nodes[0], part.nodes[0]
    if one.name.rpartition("/")[0] != other.name.rpartition("/")[0]:
        return False
    return bool(
        part.spec.input_size == first.spec.output_features(0)
        and replace(part.spec, input_size=first.spec.input_size) == first.spec
        and one.dtype == other.dtype
    )


class _Links:
    """The connections between the nodes of a scope."""

    def __init__(self, scope: Scope, constants: Constants) -> None:
        self.scope, self.constants = scope, constants
        self.nodes: dict[int, Node] = {}
        self.consumers = scope.consumers()
        self._part_of: dict[int, Part] = {}
        self._ends: dict[int, _End] = {}

    def parts(self) -> list[Part]:
        """The layers in the scope, the nodes of both directions joined."""
        ends = {index: self.end(node) for index, node in self.nodes.items()}
        by_consumer: dict[int, list[int]] = {}
        for index, end in ends.items():
            if end is not None and len(end.taking) == 1:
                by_consumer.setdefault(end.taking[0], []).append(index)
        for taking, indices in by_consumer.items():
            if len(indices) == 2:
                self.join(taking, [(self.nodes[index], ends[index]) for index in indices])
        for index, node in self.nodes.items():
            if index not in self._part_of:
                part = self._part_of[index] = Part((node,), node.spec)
                if (end := ends[index]) is not None:
                    self._ends[id(part)] = end
        return list({id(part): part for part in self._part_of.values()}.values())

    def join(self, taking: int, pair: list[tuple[Node, Any]]) -> None:
        """Make one part of a forward and a reverse node, if the node that takes both outputs joins their features."""
        concat = self.scope.nodes[taking]
        (forward, end), (reverse, other) = sorted(pair, key=lambda one: one[1].is_reverse)
        spec = forward.spec
        axis = [a.i for a in self.scope.attributes(concat) if a.name == "axis"]
        if (
            (concat.domain, concat.op_type) not in (("", "Concat"), ("ai.onnx", "Concat"))
            or list(concat.input) != [end.name, other.name]
            or end.axes != other.axes
            or end.axes[2:] != ["D*H"]
            or axis not in ([2], [-1])
            or isinstance(spec, SpecError)
            or spec.bidirectional
            or reverse.spec != replace(spec, reverse=True)
            or spec.reverse
            or forward.dtype != reverse.dtype
            or forward.input("X") != reverse.input("X")
            or self.lengths(forward) != self.lengths(reverse)
        ):
            return
        part = Part((forward, reverse), replace(spec, bidirectional=True))
        self._part_of |= {forward.index: part, reverse.index: part}
        self._ends[id(part)] = self.follow(concat.output[0], end.axes, taking, part)

    def next(self, part: Part) -> Part | None:
        """The part whose input is this part's output, if nothing else takes it."""
        end = self._ends.get(id(part))
        if end is None or not end.taking or end.taking[0] not in self._part_of:
            return None
        following = self._part_of[end.taking[0]]
        wanted = ["B", "T", "D*H"] if part.spec.batch_first else ["T", "B", "D*H"]
        is_all = {node.index for node in following.nodes} == set(end.taking) and end.taking[0] > end.index
        is_input = all(
            node.input("X") == end.name and list(node.proto.input).count(end.name) == 1 for node in following.nodes
        )
        is_padded_alike = self.lengths(following.nodes[0]) == self.lengths(part.nodes[0])
        return following if is_all and is_input and is_padded_alike and end.axes == wanted else None

    def lengths(self, node: Node) -> tuple[int, str] | None:
        """What the lengths of the sequences come from: a scope and a name in it; None if all have all steps."""
        scope, name = self.scope.find(node.input("sequence_lens"))
        seen: set[str] = set()
        while name in scope.producers and name not in seen:
            seen.add(name)
            producer = scope.nodes[scope.producers[name]]
            if producer.op_type not in ("Cast", "Identity") or not producer.input:
                break
            scope, name = scope.find(producer.input[0])
        return (id(scope), name) if name else None

    def sources(self, name: str) -> set[tuple[int, str]]:
        """The inputs of the model from which a value is computed; what is known of their sizes does not count."""
        found: set[tuple[int, str]] = set()
        seen: set[tuple[int, str]] = set()
        left = [self.scope.find(name)] if name else []
        while left:
            scope, name = left.pop()
            if (id(scope), name) in seen or name in scope.initializers:
                continue
            seen.add((id(scope), name))
            node = scope.nodes[scope.producers[name]] if name in scope.producers else None
            if node is None or any(a.HasField("g") or len(a.graphs) for a in node.attribute):
                found.add((id(scope), name))
            elif node.op_type not in ("Shape", "Size"):
                left += [scope.find(given) for given in node.input if given]
        return found

    def end(self, node: Node) -> _End | None:
        """How far the output of a node goes."""
        if not node.proto.output or isinstance(node.spec, SpecError):
            return None
        axes = ["B", "T", "D", "H"] if node.spec.batch_first else ["T", "D", "B", "H"]
        return self.follow(node.proto.output[0], axes, node.index, Part((node,), node.spec))

    def follow(self, name: str, axes: list[str], index: int, part: Part) -> _End:
        """Follow a value through the nodes that only change its layout."""
        while True:
            taking = [i for i in self.consumers.get(name, ()) if self.scope.nodes[i].op_type != "Shape"]
            end = _End(name, axes, index, [] if name in self.scope.results else taking, part.spec.reverse)
            if len(end.taking) != 1 or taking[0] <= index or taking[0] in self.nodes:
                return end
            following = self.scope.nodes[taking[0]]
            moved = self.axes_after(following, name, axes, part)
            if moved is None or not following.output:
                return end
            name, axes, index = following.output[0], moved, taking[0]

    def axes_after(self, node: Any, name: str, axes: list[str], part: Part) -> list[str] | None:
        """The axes of a value after a node that only changes its layout; None if the node does anything else."""
        kind, spec = node.op_type, part.spec
        if node.domain not in ("", "ai.onnx"):
            return None
        if kind == "Where":
            return axes if self.fills_padding(node, name, part) else None
        if not node.input or node.input[0] != name:
            return None
        if kind == "Identity" or (kind == "Dropout" and self.does_nothing(node)):
            return axes
        attributes = {a.name: list(a.ints) for a in self.scope.attributes(node)}
        if kind == "Transpose":
            order = attributes.get("perm", [])
            return [axes[i] for i in order] if sorted(order) == list(range(len(axes))) else None
        given = attributes.get("axes") if len(node.input) < 2 else self.constants.ints(self.scope, node.input[1])
        if kind == "Squeeze" and spec.num_directions == 1 and given and len(given) == 1 and "D" in axes:
            at = given[0] % len(axes)
            left = [axis for axis in axes if axis != "D"]
            return [*left[:2], "D*H"] if axes[at] == "D" and left[-1:] == ["H"] else None
        if kind == "Reshape" and axes[2:] == ["D", "H"]:
            given = given or self.last_size(node.input[1])
            features = spec.num_directions * spec.hidden_size
            return [*axes[:2], "D*H"] if given and len(given) == 3 and given[2] in (-1, features) else None
        return None

    def fills_padding(self, node: Any, name: str, part: Part) -> bool:
        """Whether a ``Where`` puts zeros where a part has none but padding: by nothing else than the lengths."""
        fills = len(node.input) == 3 and node.input[1] == name and self.constants.is_zero(self.scope, node.input[2])
        lengths = self.sources(part.nodes[0].input("sequence_lens")) if fills else set()
        return bool(lengths) and self.sources(node.input[0]) <= lengths

    def does_nothing(self, dropout: Any) -> bool:
        """Whether a node of dropout drops nothing, since the model is not in training."""
        return len(dropout.input) < 3 or not dropout.input[2] or self.constants.is_zero(self.scope, dropout.input[2])

    def last_size(self, name: str) -> list[int] | None:
        """A shape of three sizes of which only the last is known; None if the name is no such shape."""
        scope, name = self.scope.find(name)
        node = scope.nodes[scope.producers[name]] if name in scope.producers else None
        if node is None or node.op_type != "Concat" or len(node.input) != 3:
            return None
        last = self.constants.ints(scope, node.input[2])
        return [0, 0, *last] if last and len(last) == 1 else None
