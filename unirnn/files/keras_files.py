"""Reading the files of Keras, without Keras: their recurrent layers, by name.

Three kinds of files are read: the archives ``.keras`` (Keras 3, and the last releases of TensorFlow's Keras 2), the
weights that Keras 3 saves as ``.weights.h5``, and HDF5 files of whole models or of weights, ``.h5``, of Keras 1, 2 and
3 and of ``tf.keras``. A file of a whole model has its configuration, which says what a layer computes. A file of
weights has names and shapes only. So there the spec has to be given.

A layer goes by its name in Keras, ``"lstm"``. A layer of a model within the model is ``"inner/lstm"``. Layers other
than recurrent ones are not read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from unirnn.contract.weights import Array, Weights
from unirnn.errors import ArgumentError, FileError, ShapeError, SpecError, UnirnnError
from unirnn.files import hdf5
from unirnn.files._contents import Choice, Contents, Layer, StoredArray
from unirnn.files.keras_containers import CONTAINERS, ROLE, Named, Stored, arrays_of, open_container, saved_name
from unirnn.files.keras_shapes import Found, guess_spec, has_cudnn_shapes, unconfigured
from unirnn.snapshots import layouts
from unirnn.snapshots.snapshot import Snapshot
from unirnn.snapshots.state_dicts import choose_name
from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

__all__ = ["read"]

_KINDS: dict[str, type[RecurrentSpec]] = {
    "SimpleRNN": RNNSpec,
    "GRU": GRUSpec,
    "LSTM": LSTMSpec,
    "CuDNNGRU": GRUSpec,
    "CuDNNLSTM": LSTMSpec,
}
_CELLS = {f"{name}Cell": name for name in ("SimpleRNN", "GRU", "LSTM")}
_KERAS_1 = {"output_dim": "units", "inner_activation": "recurrent_activation"}
_KERAS_1_GATES = {9: (0, 1, 2), 12: (0, 2, 1, 3)}  # arrays z, r, h of a GRU, and i, c, f, o of an LSTM, in Keras' order

Config: TypeAlias = Mapping[str, Any]


def read(path: str) -> Contents:
    """Describe what a file holds; its arrays are read when they are asked for."""
    with open(path, "rb") as file:
        config, major, stored = open_container(file.read())
    found = dict(_layers(config, stored, major))
    # Layers of a model that is code are in no configuration, nor is anything in a file of weights.
    taken = {id(part) for layer in found.values() for parts in layer.directions for part in parts}
    for name, layer in unconfigured(stored, major):
        if not any(id(part) in taken for parts in layer.directions for part in parts):
            found.setdefault(name, layer)
    layers = {name: Layer(layer.spec, _describe(layer)) for name, layer in found.items()}
    return Contents("keras", None, layers, lambda choice: _choose(found, choice))


def _choose(found: Mapping[str, Found], choice: Choice) -> Snapshot:
    """Read the requested layer."""
    if choice.rename is not None:
        raise ArgumentError("rename: given with a file of Keras, whose layers go by their names; leave it out")
    spec = choice.spec
    if spec is not None and not isinstance(spec, RecurrentSpec):
        raise ArgumentError(f"spec: given {spec!r}; of a file of Keras only recurrent layers are read, one by one")
    if not found:
        raise ArgumentError("weights: given no recurrent layer of Keras (SimpleRNN, GRU, LSTM)")
    name = choose_name(found, None if choice.only_prefix is None else choice.only_prefix.rstrip("./"))
    layer = found[name]
    if isinstance(layer.spec, UnirnnError) and (layer.guess is None or spec is None):
        raise layer.spec
    if spec is None:
        assert isinstance(layer.spec, RecurrentSpec)
        spec = layer.spec
    said = layer.guess if layer.sure else layer.spec
    if isinstance(said, RecurrentSpec) and not spec.fits(said):
        raise SpecError(f"spec: given {spec!r}, but the file says that {name!r} is {said!r}")
    return Snapshot(spec, _weights(spec, layer.directions))


def _describe(layer: Found) -> dict[str, tuple[tuple[int, ...], str]]:
    """The shape and the dtype of each weight of a layer, if there is a spec."""
    if isinstance(layer.spec, UnirnnError):
        return {}
    dtype = layer.directions[0][0].dtype
    return {name: (shape, dtype) for name, shape in layer.spec.weight_shapes().items()}


def _weights(spec: RecurrentSpec, directions: list[list[StoredArray]]) -> Weights:
    """Read the weights of a layer."""
    if len(directions) != spec.num_directions or spec.num_layers != 1:
        raise ShapeError(f"spec: given {spec!r}, but the file has one layer in {len(directions)} direction(s)")
    arrays: Weights = {}
    for suffix, stored in zip(spec.suffixes(), directions, strict=True):
        values = _native([part.read() for part in stored])
        names = ("kernel", "recurrent_kernel", "bias")
        arrays |= {f"{name}{suffix}": value for name, value in zip(names, values, strict=False)}
    return layouts.from_framework("keras", spec, arrays)


def _native(values: list[Array]) -> list[Array]:
    """The arrays of one direction as Keras 3 has them: those of cuDNN's layers, and of Keras 1, are laid out anew.

    A layer of cuDNN has the bias twice in a row. Its input kernel holds the matrix `(H, I)` of each gate in the shape
    `(I, H)`, and its recurrent kernel the matrix `(H, H)`.
    """
    order = _KERAS_1_GATES.get(len(values))
    if order is not None:
        return [np.concatenate([values[3 * gate + part] for gate in order], axis=-1) for part in range(3)]
    if not has_cudnn_shapes(values):
        return values
    kernel, recurrent, bias = values
    size = len(recurrent)
    gates = range(0, kernel.shape[1], size)
    kernel = np.hstack([kernel[:, at : at + size].reshape(size, -1).T for at in gates])
    recurrent = np.hstack([recurrent[:, at : at + size].T for at in gates])
    if len(gates) == 3:
        return [kernel, recurrent, bias.reshape(2, -1)]
    return [kernel, recurrent, layouts.add_biases("keras", *np.split(bias, 2))]


def _layers(entry: Any, stored: Stored, major: int, path: str = "") -> Iterator[tuple[str, Found]]:
    """The recurrent layers in the configuration of a model or a layer, and in those within it, by their names."""
    for child, name, where in _children(entry, stored):
        inner = f"{path}/{name}" if path else name
        kind = child.get("class_name")
        if not isinstance(kind, str):
            raise FileError(f"keras: {inner}: its configuration has no class_name")
        recurrent = kind in (*_KINDS, "Bidirectional", "RNN")
        if recurrent or (re.search("RNN|GRU|LSTM", kind) and not _children(child, where)):
            yield inner, _configured(child, where, major, f"keras: {inner}")
        else:
            yield from _layers(child, where, major, inner)


def _children(entry: Any, stored: Stored) -> list[tuple[Config, str, Stored]]:
    """The layers within a model, or the one within a wrapper: configuration, name, and where the arrays are."""
    config = entry.get("config") if isinstance(entry, Mapping) else None
    wrapped = config.get("layer") if isinstance(config, Mapping) else None
    if isinstance(wrapped, Mapping):
        return [(wrapped, _name(wrapped), stored.groups.get("layer") if isinstance(stored, hdf5.Group) else stored)]
    entries = config.get("layers") if isinstance(config, Mapping) else config  # a list itself in Keras 1 and 2
    if not isinstance(entries, list):
        return []
    entries = [child for child in entries if isinstance(child, Mapping)]
    places: list[Stored]
    if isinstance(stored, hdf5.Group):
        places = list(_places(entries, stored))
    elif isinstance(stored, dict):
        places = [stored.get(_name(child)) for child in entries]
    else:
        named = _by_segment(stored or [])
        places = [named.get(_name(child)) for child in entries]
    return [(child, _name(child), place) for child, place in zip(entries, places, strict=True)]


def _name(entry: Config) -> str:
    """The name of a layer."""
    config = entry.get("config")
    name = config.get("name") if isinstance(config, Mapping) else None
    name = entry.get("name") if name is None else name
    if not isinstance(name, str):
        return str(entry.get("class_name"))  # an early Sequential has none
    return name


def _places(entries: list[Config], stored: hdf5.Group) -> Iterator[hdf5.Group | None]:
    """The groups of layers in a file of Keras 3, where they go by their classes: ``lstm``, ``lstm_1``."""
    groups = next((stored.groups[name] for name in CONTAINERS if name in stored.groups), hdf5.Group())
    by_name: dict[str | None, hdf5.Group] = {saved_name(group): group for group in groups.groups.values()}
    counts: dict[str, int] = {}
    for entry in entries:
        kind = re.sub(r"\W+", "", str(entry.get("class_name")))
        kind = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", kind)
        kind = re.sub("([a-z])([A-Z])", r"\1_\2", kind).lower()
        number = counts[kind] = counts.get(kind, -1) + 1
        group = groups.groups.get(f"{kind}_{number}" if number else kind)
        if group is None or saved_name(group) not in (None, _name(entry)):
            group = by_name.get(_name(entry))
        yield group


def _by_segment(stored: Named) -> dict[str, Named]:
    """The arrays of the layers within a model, by the parts of their names, of which one is the name of the layer.

    They are called ``model/lstm/kernel:0``, and in Keras 1 ``lstm_W_i:0``.
    """
    found: dict[str, Named] = {}
    for key, array in stored:
        *segments, end = key.split("/")
        for segment in {*segments, re.sub(r"_[WUb](_[a-z])?(:0)?$", "", end)}:
            found.setdefault(segment, []).append((key, array))
    return found


def _configured(entry: Config, stored: Stored, major: int, where: str) -> Found:
    """A recurrent layer, from its configuration."""
    directions: list[list[StoredArray]] = []
    try:
        kinds = [(entry, stored)]
        if entry["class_name"] == "Bidirectional":
            kinds = _both(entry, stored, where)
        directions = [arrays_of(place) for _, place in kinds]
        specs = [_spec(one, parts, major, where) for (one, _), parts in zip(kinds, directions, strict=True)]
        spec, config, problem = specs[0], _config(entry, where), ""
        if len(specs) == 2:
            if spec.reverse or specs[1] != replace(spec, reverse=True):
                raise SpecError(
                    f"{where}: given directions of {spec} and {specs[1]}, expected the same, the first forward"
                )
            spec, merge_mode = replace(spec, bidirectional=True), config.get("merge_mode", "concat")
            if merge_mode != "concat":
                problem = (
                    f"merge_mode={merge_mode!r}, expected 'concat'; to join the two halves of the output by yourself"
                )
        elif spec.reverse and config.get("return_sequences"):
            problem = (
                "go_backwards=True with return_sequences=True, whose output is in the order in which it was computed; "
                "to have it in the order of the input"
            )
        if not problem:
            return Found(spec, None, directions)
        reason = SpecError(f"{where}: given {problem}, give as spec {spec!r}")
        return Found(reason, spec, directions, sure=True)
    except FileError:
        raise
    except UnirnnError as error:
        return Found(error, None, directions)


def _both(entry: Config, stored: Stored, where: str) -> list[tuple[Config, Stored]]:
    """The two directions of a ``Bidirectional`` layer."""
    config = _config(entry, where)
    forward = config.get("layer")
    if not isinstance(forward, Mapping):
        raise FileError(f"{where}: its configuration has no layer")
    backward = config.get("backward_layer")
    if not isinstance(backward, Mapping):
        own = _config(forward, where)
        backward = {**forward, "config": {**own, "go_backwards": not own.get("go_backwards", False)}}
    if isinstance(stored, hdf5.Group):
        groups = stored.groups
        return [(forward, groups.get("forward_layer")), (backward, groups.get("backward_layer"))]
    first, second = _by_direction(stored if isinstance(stored, list) else [], _name(forward))
    return [(forward, first), (backward, second)]


def _by_direction(named: Named, forward: str) -> tuple[Named, Named]:
    """The arrays of the two directions. An ``.h5`` file has those of a frozen layer last, so their names decide."""
    paths = [match["path"].split("/") if (match := ROLE.fullmatch(key)) else [] for key, _ in named]
    parts = next((parts for parts in zip(*paths, strict=False) if len({*parts}) > 1), ())  # where the names differ
    is_forward = [part == forward or part.startswith("forward_") for part in parts]
    if not parts or 2 * sum(is_forward) != len(named):  # the names do not say it
        return named[: len(named) // 2], named[len(named) // 2 :]
    first, second = (
        [one for one, is_own in zip(named, is_forward, strict=True) if is_own is own] for own in (True, False)
    )
    return first, second


def _config(entry: Config, where: str) -> Config:
    """The arguments of a layer, under the names of Keras 2 and 3."""
    config = entry.get("config")
    if not isinstance(config, Mapping):
        raise FileError(f"{where}: its configuration is altered")
    return {_KERAS_1.get(str(name), str(name)): value for name, value in config.items()}


def _spec(entry: Config, parts: list[StoredArray], major: int, where: str) -> RecurrentSpec:
    """The spec of a layer in one direction."""
    kind, config = entry.get("class_name"), _config(entry, where)
    if kind == "RNN" and isinstance(config.get("cell"), Mapping):
        cell = config["cell"]
        kind, config = _CELLS.get(str(cell.get("class_name"))), {**config, **_config(cell, where)}
        kind = kind or cell.get("class_name")
    module = entry.get("module")
    if kind not in _KINDS or (isinstance(module, str) and not re.match(r"(tf_)?keras\b", module)):
        known = ", ".join(_KINDS)
        raise SpecError(f"{where}: given a layer {kind} of {module or 'Keras'}, expected one of Keras' {known}")
    cls, is_cudnn = _KINDS[kind], kind.startswith("CuDNN")
    guess = guess_spec(parts, where)
    if guess.kind != cls.kind or guess.hidden_size != config.get("units") or is_cudnn != has_cudnn_shapes(parts):
        raise ShapeError(f"{where}: given the weights of {guess!r}, expected those of {kind}({config.get('units')})")
    arguments: dict[str, Any] = {
        "bias": config.get("use_bias", True),
        "batch_first": not config.get("time_major", False),
        "reverse": config.get("go_backwards", False),
    }
    activation = "tanh" if is_cudnn else config.get("activation")
    known_activations = ("tanh", "relu") if cls is RNNSpec else ("tanh",)
    if activation not in known_activations:
        expected = " or ".join(map(repr, known_activations))
        raise SpecError(f"{where}: given activation={activation!r}, which no spec describes; expected {expected}")
    if cls is RNNSpec:
        arguments["nonlinearity"] = activation
    else:
        arguments["gate_activation"] = "sigmoid" if is_cudnn else _gate_activation(config, major, where)
    if cls is GRUSpec:
        arguments["reset_after"] = is_cudnn or config.get("reset_after", False)
        if isinstance(guess, GRUSpec) and guess.bias and guess.reset_after != arguments["reset_after"]:
            given = f"{kind}({guess.hidden_size}), reset_after={arguments['reset_after']}"
            raise ShapeError(f"{where}: given the weights of {guess!r}, expected those of {given}")
    if arguments["bias"] != guess.bias:
        raise ShapeError(f"{where}: given {len(parts)} arrays, but use_bias={arguments['bias']}")
    return cls(guess.input_size, guess.hidden_size, **arguments)


def _gate_activation(config: Config, major: int, where: str) -> str:
    """A spec's ``gate_activation``, which Keras calls ``recurrent_activation``; hard_sigmoid changed with Keras 3."""
    given = config.get("recurrent_activation")
    known = {"sigmoid": "sigmoid", "hard_sigmoid": "hard_sigmoid" if major >= 3 else "hard_sigmoid_0.2"}
    if not isinstance(given, str) or given not in known:
        raise SpecError(f"{where}: given recurrent_activation={given!r}, expected {' or '.join(map(repr, known))}")
    return known[given]
