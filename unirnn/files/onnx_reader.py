"""Reading ``.onnx``: the recurrent layers that a model holds, whoever wrote it, and whole models that unirnn wrote.

Nothing is executed but single operators of ONNX over constants; see `unirnn.files.onnx_constants`. Whatever is not
understood is an error that names the node. The size that a tensor claims is checked against its bytes before an array
is made, and all that is made has one budget.
"""

import itertools
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from unirnn.contract.weights import Array, Weights
from unirnn.devices import DTYPES
from unirnn.errors import ArgumentError, FileError, SpecError, UnirnnError
from unirnn.files._contents import (
    Choice,
    Contents,
    Layer,
    StoredArray,
    contents_of_snapshot,
    contents_of_state_dict,
)
from unirnn.files._header import reject_duplicates, spec_from_metadata
from unirnn.files.onnx_chains import Part, chains
from unirnn.files.onnx_constants import Constants, external_size
from unirnn.files.onnx_layers import is_by_steps
from unirnn.files.onnx_nodes import KINDS, QUANTIZED, Node, describe, is_recurrent
from unirnn.files.onnx_scopes import Budget, Scope, label, text, walk
from unirnn.files.onnx_writer import import_onnx
from unirnn.snapshots.snapshot import Snapshot
from unirnn.snapshots.stacking import stack
from unirnn.snapshots.state_dicts import choose_name
from unirnn.specs import RecurrentSpec, Spec

if TYPE_CHECKING:
    from onnx import ModelProto

__all__ = ["contents_of_model", "parse", "read", "read_model"]


def read(path: str) -> Contents:
    """Describe what a file holds."""
    with open(path, "rb") as file:
        data = file.read()
    return contents_of_model(parse(data), len(data), os.path.dirname(os.path.abspath(path)))


def parse(data: bytes) -> "ModelProto":
    """Parse the bytes of an ``.onnx`` file.

    Raises
    ------
    MissingBackendError
        If onnx is not installed.
    FileError
        If they are not an ONNX model.
    """
    onnx = import_onnx()
    from google.protobuf.message import DecodeError  # a dependency of onnx

    model: ModelProto = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except (DecodeError, UnicodeDecodeError) as error:  # the latter by protobuf's decoder in Python
        raise FileError(f"onnx: no ONNX model, or a truncated or altered one ({error})") from None
    if not model.HasField("graph"):
        raise FileError("onnx: no ONNX model, or a truncated or altered one (it holds no graph)")
    return model


def read_model(model: "ModelProto", prefix: str | None = None, spec: Spec | None = None) -> Snapshot:
    """Read a recurrent layer of a model. If `emit` made the model, this is the snapshot that it was made from.

    Parameters
    ----------
    model
        A model.
    prefix
        The name of the layer's first node, if there are several layers; see `contents_of_model`. Of a model that
        unirnn wrote, the name of one of its layers.
    spec
        The layer's spec, which adds what a graph does not say: ``dropout`` and ``batch_first``.

    Raises
    ------
    ArgumentError
        If it is not a model, or there are several layers and no prefix, or no layer has the prefix as its name.
    SpecError
        If no spec describes the layer, or the given one does not.
    FileError
        If the model is altered, hostile, or in a newer format.

    Examples
    --------
    >>> import unirnn
    >>> from unirnn.files import onnx_writer
    >>> snapshot = unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy", seed=0))
    >>> read_model(onnx_writer.emit(snapshot.spec, snapshot.weights)) == snapshot
    True
    """
    return contents_of_model(model).read(Choice(prefix, spec))


def contents_of_model(model: "ModelProto", size: int | None = None, folder: str | None = None) -> Contents:
    """Describe the recurrent layers of a model, by the names of their first nodes.

    A node in a branch of ``If``, in the body of ``Loop`` or ``Scan``, or in a function is named by its path, such as
    ``"If_0/then_branch/lstm"``. Nodes that feed each other, and nothing else, are one layer of several, if one spec
    describes them; so are a forward and a reverse node over one input, whose outputs are joined. A node without a name,
    or with a name that another node has, goes by the name of its first output, or by its number. If `emit` made the
    model, there is one entry, of all of it, and its name is empty.

    Parameters
    ----------
    model
        A model.
    size
        The bytes of its file; None to measure the model.
    folder
        Where the file is, if files beside it may hold its numbers.

    Raises
    ------
    ArgumentError
        If it is not a model.
    FileError
        If the model is altered, hostile, or in a newer format.
    """
    if not isinstance(model, import_onnx().ModelProto):
        raise ArgumentError(f"onnx: given {type(model).__name__}, expected an onnx.ModelProto, the whole model")
    entries = [(text(entry.key), text(entry.value)) for entry in model.metadata_props]
    spec = spec_from_metadata(reject_duplicates(entries))
    found = _Reader(model, model.ByteSize() if size is None else size, folder)
    if spec is None:
        return found.contents()
    try:
        whole = found.whole(spec)
        return found.contents() if whole is None else whole
    except FileError:
        raise
    except UnirnnError as error:
        raise FileError(f"onnx: an altered file: {error}") from error


class _Reader:
    """Describes a model, and reads from it."""

    def __init__(self, model: Any, size: int, folder: str | None) -> None:
        self.root, self.folder = Scope.of_model(model), folder
        self.is_by_pytorch = model.producer_name == "pytorch"
        self.size = size + external_size(model, folder)
        constants = self.constants()
        self.nodes: list[Node] = []
        self.others: dict[str, SpecError] = {}
        names: set[str] = set()
        for scope, index in walk(self.root, frozenset({*KINDS, QUANTIZED}), constants.budget):
            node = scope.nodes[index]
            is_known = is_recurrent(node)
            if not is_known and (scope.function(node) or not _looks_recurrent(node)):
                continue
            possible = itertools.chain((node.name, *node.output), (f"node {i}" for i in itertools.count(index)))
            name = next(path for name in possible if name and (path := scope.path + text(name)) not in names)
            names.add(name)
            if is_known:
                self.nodes.append(describe(name, scope, index, constants))
            else:
                operator = f"{text(node.domain)}::{text(node.op_type)}"
                self.others[name] = SpecError(
                    f"onnx: node {name!r}: {operator} is no operator of ONNX, and is not read"
                )
        self.chains = chains(self.nodes, constants)

    def constants(self) -> Constants:
        """The constants of the model, with a budget of their own."""
        return Constants(Budget(self.size), self.folder)

    # ---- layers of any model ----

    def contents(self) -> Contents:
        """Describe the layers one by one."""
        layers = {name: _layer(chain) for name, chain in self.chains.items()}
        layers |= {name: Layer(error, {}) for name, error in self.others.items()}
        if not layers:
            return self.contents_without_nodes()

        def read(choice: Choice) -> Snapshot:
            name = choose_name(layers, choice.only_prefix)
            found: Any = layers[name].spec
            if isinstance(found, UnirnnError):
                raise found
            given = choice.spec
            if given is None and choice.batch_first is not None:
                given = replace(found, batch_first=choice.batch_first)
            if given is not None and not given.fits(found):
                raise SpecError(f"spec: given {given!r}, but the model says {found!r}")
            return self.read(self.chains[name], given or found)

        return Contents("onnx", None, layers, read)

    def contents_without_nodes(self) -> Contents:
        """Describe a model in which whatever is recurrent was written as single operations.

        If PyTorch's exporter wrote it, parameters of a layer may be there under their names, but it renames those that
        it changes. So the layer is read only if it is known what it is.
        """
        named = contents_of_state_dict("onnx", dict(self.floats()) if self.is_by_pytorch else {})
        names = tuple(named.arrays)
        layers = {
            prefix: Layer(_named_error(layer.spec), {})
            for prefix, layer in named.layers.items()
            if any(name.startswith(f"{prefix}weight_hh") for name in names)
        }
        hints = {} if layers else _hints(self.root)
        layers |= {name: Layer(SpecError(f"onnx: {reason}"), {}) for name, reason in hints.items()}

        def read(choice: Choice) -> Snapshot:
            if choice.spec is not None and layers and not hints:
                return named.read(choice)
            reasons = [str(layer.spec).removeprefix("onnx: ") for layer in layers.values()][:3]
            reasons = reasons or ["a recurrent layer of single operations is not recognised"]
            raise ArgumentError("; ".join(["onnx: the model has no RNN, GRU or LSTM node", *reasons]))

        return Contents("onnx", None, layers, read)

    def floats(self) -> Iterator[tuple[str, StoredArray]]:
        """The initializers of floats that the graph has, and that can be read."""
        constants = self.constants()
        for name in self.root.initializers:
            try:
                dtype = constants.described(self.root, name, "weight")[1]
            except SpecError:
                continue
            if dtype in DTYPES and isinstance(name, str):
                yield name, self.weight(name, constants)

    def read(self, chain: Sequence[Part], spec: Spec) -> Snapshot:
        """Read the parts of a layer, the lowest first."""
        note = _note(chain)
        if note:
            warnings.warn(f"{chain[0].nodes[0].name!r}: {note}", UserWarning, stacklevel=2)
        constants = self.constants()
        parts = [Snapshot(part.spec, part.read(constants)) for part in chain]
        return Snapshot(spec, stack(parts).weights)

    # ---- models that unirnn wrote ----

    def whole(self, spec: Spec) -> Contents | None:
        """Describe all of a model that unirnn wrote; None if it was merged into another, and only the nodes are right.

        Recurrent layers are read from their nodes, all other weights by their names.
        """
        is_layer = isinstance(spec, RecurrentSpec) and not is_by_steps(spec)
        if is_layer and len(self.chains) > 1:
            return None
        constants = self.constants()
        if is_layer:
            return contents_of_snapshot("onnx", spec, self.only_layer(spec, constants))
        arrays: dict[str, StoredArray] = {}
        for layer, leaf in spec.leaves().items():
            prefix = f"{layer}." if layer else ""
            if isinstance(leaf, RecurrentSpec) and not is_by_steps(leaf):
                own = self.recurrent_layer(prefix, leaf, constants)
            else:
                self.check_claim(leaf)
                own = {
                    name: self.own_weight(prefix + name, shape, constants)
                    for name, shape in leaf.weight_shapes().items()
                }
            arrays |= {prefix + name: array for name, array in own.items()}
        return contents_of_snapshot("onnx", spec, arrays)

    def only_layer(self, spec: Any, constants: Constants) -> dict[str, StoredArray]:
        """The weights of a layer that unirnn wrote by itself, whose nodes may have been renamed."""
        if not self.chains:
            raise FileError("onnx: an altered file: its metadata is unirnn's, and it has no RNN, GRU or LSTM node")
        (chain,) = self.chains.values()
        layer = _layer(chain).spec
        if isinstance(layer, UnirnnError):
            raise FileError(f"onnx: an altered file: {layer}")
        if not spec.fits(layer):
            raise FileError(f"onnx: an altered file: its metadata says {spec!r}, its nodes are {layer!r}")
        return _stored(chain, constants)

    def recurrent_layer(self, prefix: str, spec: RecurrentSpec, constants: Constants) -> dict[str, StoredArray]:
        """The weights of a recurrent layer of a model that unirnn wrote."""
        nodes = {node.name: node for node in self.nodes}
        chain = []
        for number in range(spec.num_layers):  # a hostile spec may claim any number of them
            name = f"{prefix}{spec.kind}_l{number}"
            node = nodes.get(name)
            if node is None or isinstance(node.spec, SpecError):
                reason = f"it has no node {name!r}" if node is None else node.spec
                raise FileError(f"onnx: an altered file: its metadata says {spec!r}, but {reason}")
            width = spec.output_features(0) if number else spec.input_size
            expected = replace(spec, input_size=width, num_layers=1, dropout=0.0)
            if not expected.fits(node.spec):
                raise FileError(f"onnx: an altered file: its metadata says {spec!r}, node {name!r} is {node.spec!r}")
            chain.append(Part((node,), node.spec))
        return _stored(chain, constants)

    def check_claim(self, spec: Spec) -> None:
        """Refuse a hostile spec that claims more layers than there are initializers, before its weights are listed."""
        if isinstance(spec, RecurrentSpec) and spec.num_layers > len(self.root.initializers):
            raise FileError(f"onnx: an altered file: its metadata says {spec!r}, which has more weights than the file")

    def own_weight(self, name: str, expected: tuple[int, ...], constants: Constants) -> StoredArray:
        """A weight of a model that unirnn wrote."""
        if name not in self.root.initializers:
            raise FileError(f"onnx: an altered file: it has no initializer {name!r}")
        found = self.weight(name, constants)
        if found.shape != expected or found.dtype not in DTYPES:
            raise FileError(
                f"onnx: an altered file: {name}: given {found.dtype} of shape {found.shape}, expected floats of "
                f"{expected}"
            )
        return found

    def weight(self, name: str, constants: Constants) -> StoredArray:
        """A weight that is read when it is asked for."""
        shape, dtype = constants.described(self.root, name, "weight")
        return StoredArray(dtype, shape, lambda: constants.array(self.root, name, "weight"))


def _layer(chain: Sequence[Part]) -> Layer:
    """Describe the parts of one layer."""
    spec = chain[0].spec
    if isinstance(spec, UnirnnError):
        return Layer(spec, {})
    whole = replace(spec, num_layers=len(chain))
    weights = {name: (shape, chain[0].nodes[0].dtype) for name, shape in whole.weight_shapes().items()}
    return Layer(whole, weights, note=_note(chain))


def _note(chain: Sequence[Part]) -> str:
    """What a user should know of a layer."""
    return "; ".join(dict.fromkeys(note for part in chain for node in part.nodes for note in node.notes))


def _stored(chain: Sequence[Part], constants: Constants) -> dict[str, StoredArray]:
    """The weights of a layer that are read when they are asked for."""
    found = {}
    for number, part in enumerate(chain):
        read: Callable[[], Weights] = cache(lambda part=part: part.read(constants))
        for name, shape in part.spec.weight_shapes().items():
            own = name.replace("_l0", f"_l{number}")
            found[own] = StoredArray(part.nodes[0].dtype, shape, _one(read, name))
    return found


def _one(read: Callable[[], Mapping[str, Array]], name: str) -> Callable[[], Array]:
    return lambda: read()[name]


# ---- what is said of a model without layers that can be read ------------------------------------------


def _named_error(found: Spec | UnirnnError) -> UnirnnError:
    """Why a layer whose parameters are there is not read without a spec."""
    if isinstance(found, UnirnnError):
        return SpecError(f"onnx: {found}")
    return SpecError(
        "onnx: it was written as single operations, and parameters have the names and shapes of a layer; some may be "
        f"missing; if that is all of it, give as spec {found!r}"
    )


def _looks_recurrent(node: Any) -> bool:
    """Whether an operator that is not ONNX's is a recurrent layer by its name."""
    return node.domain not in ("", "ai.onnx") and any(kind in text(node.op_type) for kind in KINDS)


def _hints(root: Scope) -> dict[str, str]:
    """By name what may be a recurrent layer that was written as single operations, and what to do about it."""
    modules: dict[str, str] = {}
    loops: dict[str, str] = {}
    for scope, index in walk(root, frozenset({"Loop", "Scan"}), Budget(2**30)):
        node = scope.nodes[index]
        for name, module in _modules(node):
            modules.setdefault(name, module)
        if node.domain in ("", "ai.onnx") and _has_state(node):
            loops.setdefault(scope.path + label(index, node), node.op_type)
    if modules:
        return {
            name: f"{name!r} is a {module}, which PyTorch's exporter wrote as single operations, which are not read; "
            + _advice(module)
            for name, module in modules.items()
        }
    return {
        name: f"node {name!r} ({kind}) repeats single operations, which are not read; if they are a recurrent layer, "
        "take it from the model that was exported"
        for name, kind in loops.items()
    }


def _modules(node: Any) -> list[tuple[str, str]]:
    """The recurrent modules of PyTorch from which an exporter says that it made a node: their names and classes."""
    entries = {entry.key: entry.value for entry in node.metadata_props}
    found = []
    for part in text(entries.get("namespace", "")).split("/"):
        name, _, module = part.partition(": ")
        kind = module.removeprefix("torch.nn.modules.rnn.")
        if kind != module and kind.isidentifier():
            found.append((name or f"torch.nn.{kind}", f"torch.nn.{kind}"))
    return found


def _has_state(node: Any) -> bool:
    """Whether it is a Loop or a Scan that passes something from each repetition to the next."""
    if node.op_type == "Loop":
        return len(node.input) > 2  # after the number of repetitions, and whether to begin
    scanned = sum(a.i for a in node.attribute if a.name == "num_scan_inputs")
    return bool(node.op_type == "Scan" and len(node.input) > scanned)


def _advice(module: str) -> str:
    if module.removeprefix("torch.nn.") in KINDS:
        return "export it with dynamo=False, or take it from the module or its state dict"
    return "take it from the module or its state dict"
