"""One recurrent node of an ONNX model: the spec that its attributes and the shapes of its weights give."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unirnn.contract.weights import Array, Weights
from unirnn.devices import DTYPES
from unirnn.errors import FileError, SpecError
from unirnn.files.onnx_constants import Constants
from unirnn.files.onnx_graph import HARD_SIGMOIDS
from unirnn.files.onnx_scopes import Scope
from unirnn.snapshots import layouts
from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

__all__ = ["KINDS", "QUANTIZED", "Node", "describe", "is_recurrent"]

KINDS: dict[str, type[RecurrentSpec]] = {cls.kind: cls for cls in (RNNSpec, GRUSpec, LSTMSpec)}
"""The operators of ONNX that are recurrent layers."""

QUANTIZED = "DynamicQuantizeLSTM"
"""The operator of ONNX Runtime, in the domain ``com.microsoft``, that is an LSTM whose weights are integers."""

_INPUTS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
_INPUTS_OF_QUANTIZED = (*_INPUTS, "W_scale", "W_zero_point", "R_scale", "R_zero_point")
_ATTRIBUTES = {
    "activation_alpha": "FLOATS",
    "activation_beta": "FLOATS",
    "activations": "STRINGS",
    "clip": "FLOAT",
    "direction": "STRING",
    "hidden_size": "INT",
    "input_forget": "INT",
    "layout": "INT",
    "linear_before_reset": "INT",
}
_OTHER_ACTIVATIONS = {"RNN": (), "GRU": ("tanh",), "LSTM": ("tanh", "tanh")}  # all but the gates'


def is_recurrent(node: Any) -> bool:
    """Whether a node is a recurrent layer that can be read."""
    if node.op_type == QUANTIZED:
        return bool(node.domain == "com.microsoft")
    return node.op_type in KINDS and node.domain in ("", "ai.onnx")


@dataclass(frozen=True)
class Node:
    """A recurrent node.

    Parameters
    ----------
    name
        The name that no other node in the model has.
    scope, index
        Where it is.
    spec
        Its spec, of one layer, or the error that says why none describes it.
    dtype
        The dtype of its weights after reading.
    notes
        What a user should know of it.
    """

    name: str
    scope: Scope
    index: int
    spec: RecurrentSpec | SpecError
    dtype: str = "float32"
    notes: tuple[str, ...] = ()

    @property
    def proto(self) -> Any:
        """The node in the model."""
        return self.scope.nodes[self.index]

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are integers in the file."""
        return bool(self.proto.op_type == QUANTIZED)

    def input(self, role: str) -> str:
        """The name of the value that it takes in a role, empty if there is none."""
        return _inputs(self.proto)[role]

    def read(self, constants: Constants) -> Weights:
        """Its weights, by the names of `unirnn.Spec.weight_shapes`."""
        if isinstance(self.spec, SpecError):
            raise self.spec
        arrays = {}
        for role in ("W", "R", "B")[: 3 if self.spec.bias else 2]:
            array = constants.array(self.scope, self.input(role), role)
            if self.is_quantized and role != "B":
                scale, zero = (self.input(f"{role}_{part}") for part in ("scale", "zero_point"))
                array = _dequantized(
                    array,
                    constants.array(self.scope, scale, f"{role}_scale"),
                    constants.array(self.scope, zero, f"{role}_zero_point") if zero else np.zeros(1, np.float32),
                )
            constants.budget.take(array.nbytes, f"{role} of node {self.name!r}")
            arrays[f"{role}_l0"] = array
        return layouts.from_framework("onnx", self.spec, arrays)


def describe(name: str, scope: Scope, index: int, constants: Constants) -> Node:
    """Find the spec of a recurrent node."""
    node = scope.nodes[index]
    where = f"onnx: node {name!r} ({node.op_type})"
    try:
        spec, dtype = _describe(scope, node, constants)
    except SpecError as error:
        return Node(name, scope, index, SpecError(f"{where}: {error}"))
    except FileError as error:
        raise FileError(f"{where}: {error}") from None
    return Node(name, scope, index, spec, dtype, tuple(_notes(scope, node, constants)))


def _notes(scope: Scope, node: Any, constants: Constants) -> Iterator[str]:
    """What a user should know of a node, besides its spec and its weights."""
    inputs = _inputs(node)
    if node.op_type == QUANTIZED:
        yield (
            "its weights are 8-bit integers in the file, and floats after reading; the model itself also rounds the "
            "input and the state of each step, so that its numbers differ by that"
        )
    for role in ("initial_h", "initial_c"):
        if inputs[role] and constants.is_nonzero(scope, inputs[role]):
            yield f"the model begins with a state that is no part of the layer, its {role}; give it to each call"
    if inputs["sequence_lens"] and constants.is_nonzero(scope, inputs["sequence_lens"]):
        yield "the model has lengths that are no part of the layer, its sequence_lens; give them to each call"


def _describe(scope: Scope, node: Any, constants: Constants) -> tuple[RecurrentSpec, str]:
    """The spec of a node, and the dtype of its weights."""
    attributes = {a.name: _value(a, constants.onnx) for a in scope.attributes(node)}
    inputs = _inputs(node)
    if inputs["P"] and not constants.is_zero(scope, inputs["P"]):
        raise SpecError(f"it has peepholes (P), {inputs['P']!r}, which no spec describes")
    described = {role: constants.described(scope, inputs[role], role) for role in "WRB" if inputs[role]}
    shapes = {role: shape for role, (shape, _) in described.items()}
    if len(shapes.get("W", ())) != 3 or len(shapes.get("R", ())) != 3:
        raise FileError(f"given weights of shapes {shapes}, expected W (D, gates*H, I) and R (D, gates*H, H)")
    dtypes = {dtype for role, (_, dtype) in described.items()}
    if node.op_type == QUANTIZED:
        _check_quantized(scope, inputs, described, constants)
        dtypes = {"float32"}
        shapes |= {role: (shapes[role][0], *shapes[role][:0:-1]) for role in "WR"}
    spec = _spec(KINDS["LSTM" if node.op_type == QUANTIZED else node.op_type], attributes, shapes)
    rows = len(spec.gates) * spec.hidden_size
    expected = {
        "W": (spec.num_directions, rows, spec.input_size),
        "R": (spec.num_directions, rows, spec.hidden_size),
        **({"B": (spec.num_directions, 2 * rows)} if spec.bias else {}),
    }
    if shapes != expected:
        raise FileError(f"given weights of shapes {shapes}, expected {expected}")
    if len(dtypes) > 1 or not dtypes <= set(DTYPES):
        raise FileError(f"its weights are {', '.join(sorted(dtypes))}, expected one floating dtype")
    return spec, dtypes.pop()


def _inputs(node: Any) -> dict[str, str]:
    """The names of a node's inputs by their roles."""
    roles = _INPUTS_OF_QUANTIZED if node.op_type == QUANTIZED else _INPUTS
    return dict(zip(roles, [*node.input, *[""] * len(roles)], strict=False))


def _value(attribute: Any, onnx: Any) -> Any:
    """The value of an attribute; a FileError if it is not of the type that ONNX prescribes."""
    kind = onnx.AttributeProto.AttributeType.Name(attribute.type)
    expected = _ATTRIBUTES.get(attribute.name, kind)
    if kind != expected or kind == "UNDEFINED":
        raise FileError(f"attribute {attribute.name!r}: given type {kind}, expected {expected}")
    return onnx.helper.get_attribute_value(attribute)


def _spec(cls: type[RecurrentSpec], given: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> RecurrentSpec:
    """The spec that the attributes and the shapes of a node give."""
    input_size, hidden_size = shapes["W"][-1], shapes["R"][-1]
    if given.pop("hidden_size", hidden_size) != hidden_size:
        raise FileError(f"hidden_size is not that of R, {hidden_size}")
    direction = given.pop("direction", b"forward").decode(errors="replace")
    if direction not in ("forward", "reverse", "bidirectional"):
        raise SpecError(
            f"direction={direction!r}, which no spec describes; expected 'forward', 'reverse' or 'bidirectional'"
        )
    options: dict[str, Any] = {
        "bias": "B" in shapes,
        "bidirectional": direction == "bidirectional",
        "reverse": direction == "reverse",
        "batch_first": bool(given.pop("layout", 0)),
    }
    if cls is GRUSpec:
        options["reset_after"] = bool(given.pop("linear_before_reset", 0))
    options |= _activations(cls.kind, given, 1 + options["bidirectional"])
    given.pop("output_sequence", None)  # an attribute of opset 1, which says which outputs are wanted
    if not given.get("input_forget", 1):
        del given["input_forget"]
    for name, value in given.items():
        raise SpecError(f"{name}={value!r}, which no spec describes")
    return cls(input_size, hidden_size, **options)


def _activations(kind: str, given: dict[str, Any], directions: int) -> dict[str, str]:
    """The argument that the activations give, ``nonlinearity`` or ``gate_activation``, unless it is the default."""
    argument, default = ("nonlinearity", "tanh") if kind == "RNN" else ("gate_activation", "sigmoid")
    others = _OTHER_ACTIVATIONS[kind]
    wanted = (default, *others) * directions
    names = tuple(name.decode(errors="replace").lower() for name in given.pop("activations", ())) or wanted
    functions = []
    for name in names:
        if name != "hardsigmoid":
            functions.append(name)
            continue
        # Each function that has a parameter takes the next one, or else its default.
        alpha, beta = (_take(given, f"activation_{part}", value) for part, value in (("alpha", 0.2), ("beta", 0.5)))
        known = [k for k, pair in HARD_SIGMOIDS.items() if np.allclose(pair, (alpha, beta), rtol=1e-7, atol=0)]
        if not known:
            raise SpecError(
                f"activations={list(names)} with alpha={alpha:.9g} and beta={beta:.9g} of the hard sigmoid, which no "
                "spec describes; expected alpha=0.2 or 1/6, and beta=0.5"
            )
        functions += known
    first = functions[0]
    if tuple(functions) != (first, *others) * directions or first not in _FIRST_ACTIVATIONS[kind]:
        raise SpecError(f"activations={list(names)}, which no spec describes; expected {list(wanted)}")
    return {} if first == default else {argument: first}


_FIRST_ACTIVATIONS = {"RNN": ("tanh", "relu"), **dict.fromkeys(("GRU", "LSTM"), ("sigmoid", *HARD_SIGMOIDS))}


def _take(given: dict[str, Any], name: str, default: float) -> float:
    """Take the first value of a list, which is left out once it is empty; the default if there is none."""
    values = list(given.pop(name, ()))
    if len(values) > 1:
        given[name] = values[1:]
    return float(values[0]) if values else default


# ---- weights that are integers --------------------------------------------------------------------


def _check_quantized(
    scope: Scope, inputs: dict[str, str], described: dict[str, tuple[tuple[int, ...], str]], constants: Constants
) -> None:
    """Check what makes floats of the integers; the roles of ``described`` are those of the weights."""
    for role in "WR":
        (directions, _, rows), dtype = described[role]
        if dtype not in ("int8", "uint8"):
            raise FileError(f"its {role} is {dtype}, expected int8 or uint8")
        for part in ("scale", "zero_point"):
            name = inputs[f"{role}_{part}"]
            if not name and part == "zero_point":
                continue
            shape, _ = constants.described(scope, name, f"{role}_{part}")
            if int(np.prod(shape, dtype=object)) not in (directions, directions * rows):
                raise FileError(
                    f"its {role}_{part} is of shape {shape}, expected {(directions,)} or {(directions, rows)}"
                )


def _dequantized(array: Array, scale: Array, zero: Array) -> Array:
    """`(D, I, gates*H)` of integers as `(D, gates*H, I)` of float32."""

    def aligned(values: Sequence[Any] | Array) -> Array:
        flat = np.asarray(values, np.float32).reshape(-1)
        return flat.reshape(-1, 1, 1) if flat.size in (1, len(array)) else flat.reshape(len(array), 1, -1)

    floats: Array = (array.astype(np.float32) - aligned(zero)) * aligned(scale)
    return floats.transpose(0, 2, 1)
