"""Taking a snapshot of an object of any framework, and writing one back into it.

An object is recognised by the packages that its classes come from, and no framework is imported that is not loaded
already. Backends read and write the modules that they built and their framework's own layers. Keras and Flax have no
backend, so `unirnn.snapshots` has a module for each of them. ONNX models are read by `unirnn.files.onnx_reader`.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from unirnn import registry
from unirnn.contract.weights import cast_exact, check_weights, format_names
from unirnn.errors import ArgumentError, SpecError
from unirnn.files import onnx_reader
from unirnn.files._contents import Choice, read_state_dict, stored, warn_of_assumptions
from unirnn.snapshots import flax, keras, layouts
from unirnn.snapshots._recognition import class_name
from unirnn.snapshots.model_weights import Rename
from unirnn.snapshots.snapshot import Snapshot
from unirnn.snapshots.stacking import stack, unstack
from unirnn.specs import RecurrentSpec, Spec

__all__ = ["load_weights", "snapshot"]


def snapshot(
    obj: Any,
    *,
    spec: Spec | None = None,
    prefix: str | Sequence[str] | None = None,
    rename: Rename | None = None,
    batch_first: bool | None = None,
) -> Snapshot:
    """Take the spec of an object and a copy of its weights.

    Hooks of a module are not part of a snapshot, since nobody can see from outside what they do to input and output.

    Parameters
    ----------
    obj
        One of

        - a module that unirnn built, a layer or a model, on any backend;
        - a layer of ``torch.nn`` or ``mindspore.nn``: ``RNN``, ``GRU``, ``LSTM``; or ``RNNCell``, ``GRUCell``,
          ``LSTMCell``, which is a step of a layer;
        - a layer of Keras 3: ``SimpleRNN``, ``GRU``, ``LSTM``, ``RNN`` over such a cell, or ``Bidirectional`` of one;
        - ``flax.nnx.RNN``, or ``Bidirectional`` of two, over ``SimpleCell``, ``GRUCell``, ``LSTMCell`` or
          ``OptimizedLSTMCell``; or such a cell;
        - an ``onnx.ModelProto`` with RNN, GRU or LSTM nodes;
        - a mapping of names to arrays or tensors, such as a ``state_dict``; see `unirnn.snapshots.state_dicts`. The
          names in mappings within it are joined by dots, as in a tree of parameters of Flax: ``params.LSTMCell_0.``;
        - a list of recurrent layers or of their snapshots, the lowest first; a ``ModuleList`` or ``Sequential`` of
          torch, or a ``CellList`` or ``SequentialCell`` of MindSpore, is one. Layers of ``Dropout`` may stand between.
    spec
        For a mapping or an ONNX model: the spec of the recurrent layer, None if names and shapes determine it; or the
        spec of a model whose weights the mapping has.
    prefix
        For a mapping: the beginning of the names of the layer or the model, such as ``"encoder.lstm."``, or a list of
        them for the layers of a stack, the lowest first. For an ONNX model: the name of its first node. None if there
        is only one layer.
    rename
        For a mapping with the weights of a model: new beginnings of names by the old ones, of which the longest counts;
        None leaves those arrays out. All other arrays of floats have to be weights of the model, which may have
        MindSpore's names.
    batch_first
        For a mapping without a spec: whether the layer takes `(B, T, I)`. Names and shapes do not say it, so without it
        there is a warning, and False is assumed.

    Raises
    ------
    ArgumentError
        If the object is not one of these, or there is no layer, or several and no prefix; or if weights of the model
        are missing, or arrays are left over, or no name begins as ``rename`` says; or if two arrays differ that the
        model ties; or if ``batch_first`` is not what the spec or the module says.
    SpecError
        If no spec describes the layer: a subclass or an object with a ``forward`` of its own, a Keras layer whose
        output runs backward, an activation that no other framework has, the weights of an RNN without its nonlinearity;
        or a list with anything besides recurrent layers and dropout of one rate.
    ShapeError, DTypeError
        If the arrays do not fit the layer.

    Warns
    -----
    AssumptionWarning
        If ``batch_first`` is neither given nor known.

    Examples
    --------
    >>> import numpy, unirnn
    >>> unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy", seed=0))
    <snapshot of GRUSpec(3, 4), 108 numbers, float32>
    >>> arrays = {"lstm.weight_ih_l0": numpy.ones((8, 3)), "lstm.weight_hh_l0": numpy.ones((8, 2))}
    >>> unirnn.snapshot(arrays, batch_first=True)
    <snapshot of LSTMSpec(3, 2, bias=False, batch_first=True), 40 numbers, float64>
    >>> model = unirnn.Sequential(head=unirnn.LinearSpec(3, 2, bias=False))
    >>> unirnn.snapshot({"fc.weight": numpy.ones((2, 3))}, spec=model, rename={"fc.": "head."})
    <snapshot of Sequential(head=LinearSpec(3, 2, bias=False)), 6 numbers, float64>
    """
    choice = Choice(prefix, spec, rename, batch_first)
    found = _snapshot(obj, choice)
    if found is None:
        raise _unknown(obj)
    choice.check_layout(found.spec, "the module")
    warn_of_assumptions(found)
    return found


def _snapshot(obj: Any, choice: Choice) -> Snapshot | None:
    """As `snapshot`, or None of an object that nobody reads."""
    if isinstance(obj, Mapping):
        arrays = {name: stored(array) for name, array in flax.flatten(obj)}
        return read_state_dict(arrays, choice)
    if choice.rename is None and "onnx" in registry.packages(obj):
        return onnx_reader.read_model(obj, choice.only_prefix, choice.spec)
    if choice.spec is not None or choice.prefix is not None:
        given = "rename" if choice.rename is not None else "spec" if choice.spec is not None else "prefix"
        raise ArgumentError(f"{given}: given with a module, whose spec and names are known; leave it out")
    parts = _parts(obj)
    if parts is not None:
        return _stack(parts, choice)
    found = _find(obj)
    return None if found is None else found[1]


def _stack(parts: Sequence[Any], choice: Choice) -> Snapshot:
    """The snapshot of a list of layers, with the dropout between them."""
    rates = {position: _dropout_rate(part) for position, part in enumerate(parts)}
    positions = [position for position, rate in rates.items() if rate != 0]  # what does nothing may stand anywhere
    layers: list[Snapshot] = []
    between: list[float] = []
    others: list[str] = []
    for k, position in enumerate(positions):
        part, rate = parts[position], rates[position]
        if rate is not None and 0 < k < len(positions) - 1 and rates[positions[k - 1]] is None:
            between.append(rate)
            continue
        found = part if isinstance(part, Snapshot) else None if rate is not None else _snapshot(part, choice)
        if found is None:
            others.append(f"{position}: {_class_name(part)}")
        else:
            layers.append(found)
    if others:
        raise SpecError(
            f"layers: given {format_names(others)}, which a stack would leave out, expected recurrent layers and "
            "dropout between them; read the state dict with all layers as spec=unirnn.Sequential(...), and rename="
        )
    whole = stack(layers)
    if not between:
        return whole
    inner = [layer.spec.dropout for layer in layers if layer.spec.num_layers > 1]
    missing = [0.0] * (len(layers) - 1 - len(between))
    if len({*between, *inner, *missing}) > 1:
        raise SpecError(
            f"layers: given dropout of the rates {[*between, *inner, *missing]}, expected one rate between all layers; "
            "a unirnn.Sequential has a DropoutSpec for each"
        )
    return replace(whole, spec=replace(whole.spec, dropout=between[0]))


def load_weights(module: Any, snapshot: Snapshot) -> None:
    """Replace the weights of a module in place; after an error it is as it was.

    Parameters
    ----------
    module
        An object that `snapshot` accepts, except a mapping or an ONNX model.
    snapshot
        A snapshot with the same names and shapes. ``batch_first`` and ``dropout`` may differ. For a recurrent layer,
        biases that are all zero count as no biases.

    Raises
    ------
    ArgumentError
        If the module is not such an object; or if the snapshot has other names; or if the module shares a weight
        between layers, for which the snapshot has different weights.
    ShapeError, SpecError
        If the weights of the snapshot have other shapes, or are meant for another computation.
    DTypeError
        If the dtype of the module would round a weight; `Snapshot.cast` rounds.
    LimitError
        If the framework of the module can't hold the weights; the message says what would be lost.

    Examples
    --------
    >>> import unirnn
    >>> trained, other = (unirnn.GRUSpec(3, 4).build("numpy", seed=seed) for seed in (0, 1))
    >>> unirnn.load_weights(other, unirnn.snapshot(trained))
    >>> unirnn.snapshot(other) == unirnn.snapshot(trained)
    True
    """
    if not isinstance(snapshot, Snapshot):
        raise ArgumentError(f"snapshot: given {type(snapshot).__name__}, expected one that unirnn.snapshot took")
    inner = _parts(module)
    parts = [module] if inner is None else [part for part in inner if _dropout_rate(part) is None]
    found = [_read(part) for part in parts]
    news = _fitted([old for _, old in found], snapshot)
    written = []
    try:
        for part, (reader, old), new in zip(parts, found, news, strict=True):
            reader.write(part, new.weights)
            written.append((part, reader, old))
        for part, (reader, _), new in zip(parts, found, news, strict=True):
            if _read(part)[1] != _as_held(reader.name, new):
                raise ArgumentError("module: it shares a weight between layers or directions, and they are to differ")
    except Exception:
        for part, reader, old in written:
            reader.write(part, old.weights)
        raise


def _fitted(olds: list[Snapshot], new: Snapshot) -> list[Snapshot]:
    """The new snapshot, split as the old ones are, with their specs and in their dtypes."""
    if len(olds) == 1 and not isinstance(olds[0].spec, RecurrentSpec):
        return [_fitted_model(olds[0], new)]
    layers = iter(unstack(_fitted_stack(stack(olds), new)))
    return [Snapshot(old.spec, stack(list(islice(layers, old.spec.num_layers))).weights) for old in olds]


def _fitted_model(old: Snapshot, new: Snapshot) -> Snapshot:
    """The new snapshot of a model, or of a layer that is not recurrent, with the spec of the old one."""
    check_weights(old.spec, {name: array.shape for name, array in new.weights.items()})
    if not new.spec.fits(old.spec):
        raise SpecError(f"snapshot: given {new.spec!r}, expected the module's {old.spec!r}")
    return Snapshot(old.spec, cast_exact(new.weights, [old.weights[name].dtype for name in new.weights]))


def _fitted_stack(old: Snapshot, new: Snapshot) -> Snapshot:
    """The new snapshot of recurrent layers with the old one's spec: with biases if that has them, in its dtypes."""
    if not isinstance(new.spec, RecurrentSpec):
        raise SpecError(f"snapshot: given {new.spec!r}, expected the module's {old.spec!r}")
    given = dict(new.weights)
    biases = [name for name in old.spec.weight_shapes() if name.startswith("bias")]
    if new.spec.bias and not old.spec.bias:
        lost = max(float(np.abs(given.pop(name)).max()) for name in list(given) if name.startswith("bias"))
        if lost:
            raise ArgumentError(
                f"module: it has no biases, so that the snapshot's would be lost; they reach {lost:.3g}"
            )
    elif old.spec.bias and not new.spec.bias:
        given |= {name: np.zeros_like(old.weights[name]) for name in biases}
    check_weights(old.spec, {name: array.shape for name, array in given.items()})
    if not replace(new.spec, bias=old.spec.bias).fits(old.spec):
        raise SpecError(f"snapshot: given {new.spec!r}, expected the module's {old.spec!r}")
    dtypes = [old.weights[name].dtype for name in given]
    return Snapshot(old.spec, cast_exact(given, dtypes))


def _as_held(framework: str, snapshot: Snapshot) -> Snapshot:
    """The snapshot that a framework gives back: Keras and Flax add two biases into one."""
    if framework not in ("keras", "flax"):
        return snapshot
    return Snapshot(snapshot.spec, layouts.from_framework(framework, snapshot.spec, snapshot.to(framework)))


_METHODS = {"torch": "forward", "mindspore": "construct", "keras": "call", "flax": "__call__"}
"""The method of a framework's modules that computes."""


def _known_class(obj: Any, known: tuple[str, ...], frameworks: Iterable[str] = _METHODS) -> str | None:
    """The name of an object's class, if it is such a class of a framework, or of a subclass that computes the same."""
    packages = [package for package in frameworks if package in registry.packages(obj)]
    names = (class_name(obj, package, known, _METHODS[package]) for package in packages)
    return next(filter(None, names), None)


def _parts(obj: Any) -> list[Any] | None:
    """The items of a list, or of a module that is one; None for anything else."""
    if isinstance(obj, Sequence) and not isinstance(obj, (str, bytes)):
        return list(obj)
    holders = ("ModuleList", "Sequential", "CellList", "SequentialCell")
    return list(obj) if _known_class(obj, holders, ("torch", "mindspore")) else None


def _dropout_rate(obj: Any) -> float | None:
    """The rate of a layer of dropout, 0 of one that does nothing; None of any other object."""
    kind = _known_class(obj, ("Dropout", "Identity"))
    if kind is None:
        return None
    if kind == "Identity":
        return 0.0
    rate = getattr(obj, "rate", getattr(obj, "p", None))  # of Keras and Flax; of torch and MindSpore
    return float(1 - obj.keep_prob if rate is None else rate)  # as MindSpore had it before


def _read(obj: Any) -> tuple[Any, Snapshot]:
    """The reader and writer of a module (a backend, or our module for Keras or Flax), and the module's snapshot."""
    found = _find(obj)
    if found is None:
        raise _unknown(obj)
    return found


def _unknown(obj: Any) -> ArgumentError:
    """The error for an object that nobody reads."""
    given = _class_name(obj)
    if isinstance(obj, (str, os.PathLike)):
        return ArgumentError(f"obj: given {given}, expected an object; unirnn.load(path) reads a file")
    wrapped = next((f", or what it wraps, its .{name}" for name in ("_orig_mod", "module") if hasattr(obj, name)), "")
    return ArgumentError(
        f"obj: given {given}, expected a module that unirnn built, a recurrent layer of torch, mindspore, keras or "
        f"flax, an ONNX model, a mapping of names to arrays, or a list of layers{wrapped}"
    )


def _class_name(obj: Any) -> str:
    return f"{type(obj).__module__}.{type(obj).__qualname__}"


def _find(obj: Any) -> tuple[Any, Snapshot] | None:
    """As `_read`, or None of an object that nobody reads."""
    packages = registry.packages(obj)
    readers: list[Any] = [module for module in (keras, flax) if module.name in packages]
    for reader in (*readers, *registry.backends_for(obj)):
        found = reader.read(obj)
        if found is not None:
            spec, weights = found
            return reader, Snapshot(spec, weights)
    return None
