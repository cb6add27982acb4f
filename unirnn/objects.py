"""Taking a snapshot of an object of any framework, and writing one back into it.

An object is recognised by the packages that its classes come from, and no framework is imported that is not loaded
already. Backends read and write the modules that they built and their framework's own layers. Keras and Flax have no
backend, so `unirnn.snapshots` has a module for each of them. ONNX models are read by `unirnn.files.onnx_reader`.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np

from unirnn import registry
from unirnn.contract.weights import cast_exact, check_weights
from unirnn.errors import ArgumentError, SpecError
from unirnn.files import onnx_reader
from unirnn.files._contents import Choice, read_state_dict, stored
from unirnn.snapshots import flax, keras, layouts, state_dicts
from unirnn.snapshots.snapshot import Snapshot
from unirnn.snapshots.stacking import stack, unstack
from unirnn.snapshots.state_dicts import Rename
from unirnn.specs import RecurrentSpec, Spec

__all__ = ["load_weights", "snapshot"]


def snapshot(
    obj: Any, *, spec: Spec | None = None, prefix: str | None = None, rename: Rename | None = None
) -> Snapshot:
    """Take the spec of an object and a copy of its weights.

    Parameters
    ----------
    obj
        One of

        - a module that unirnn built, a layer or a model, on any backend;
        - a layer of ``torch.nn`` or ``mindspore.nn``: ``RNN``, ``GRU``, ``LSTM``;
        - a layer of Keras 3: ``SimpleRNN``, ``GRU``, ``LSTM``, or ``Bidirectional`` of one;
        - ``flax.nnx.RNN``, or ``Bidirectional`` of two, over ``SimpleCell``, ``GRUCell`` or ``OptimizedLSTMCell``;
        - an ``onnx.ModelProto`` with RNN, GRU or LSTM nodes;
        - a mapping of names to arrays or tensors, such as a ``state_dict``; see `unirnn.snapshots.state_dicts`;
        - a list of recurrent layers, the lowest first.
    spec
        For a mapping or an ONNX model: the spec of the recurrent layer, None if names and shapes determine it; or the
        spec of a model whose weights the mapping has.
    prefix
        For a mapping: the beginning of the names of the layer or the model, such as ``"encoder.lstm."``. For an ONNX
        model: the name of its first node. None if there is only one layer.
    rename
        For a mapping with the weights of a model: new beginnings of names by the old ones, of which the longest counts;
        None leaves those arrays out. All other arrays of floats have to be weights of the model, which may have
        MindSpore's names.

    Raises
    ------
    ArgumentError
        If the object is not one of these, or there is no layer, or several and no prefix; or if weights of the model
        are missing, or arrays are left over; or if two arrays differ that the model ties.
    SpecError
        If no spec describes the layer: a subclass with a ``forward`` of its own, a Keras layer that runs backward, an
        activation that no other framework has, the weights of an RNN without its nonlinearity.
    ShapeError, DTypeError
        If the arrays do not fit the layer.

    Examples
    --------
    >>> import numpy, unirnn
    >>> unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy", seed=0))
    <snapshot of GRUSpec(3, 4), 108 numbers, float32>
    >>> unirnn.snapshot({"lstm.weight_ih_l0": numpy.ones((8, 3)), "lstm.weight_hh_l0": numpy.ones((8, 2))})
    <snapshot of LSTMSpec(3, 2, bias=False), 40 numbers, float64>
    >>> model = unirnn.Sequential(head=unirnn.LinearSpec(3, 2, bias=False))
    >>> unirnn.snapshot({"fc.weight": numpy.ones((2, 3))}, spec=model, rename={"fc.": "head."})
    <snapshot of Sequential(head=LinearSpec(3, 2, bias=False)), 6 numbers, float64>
    """
    state_dicts.check_types(prefix, spec, rename)
    if isinstance(obj, Mapping):
        arrays = {name: stored(array) for name, array in obj.items() if isinstance(name, str)}
        return read_state_dict(arrays, Choice(prefix, spec, rename))
    if rename is None and "onnx" in registry.packages(obj):
        return onnx_reader.read_model(obj, prefix, spec)
    if spec is not None or prefix is not None:
        given = "rename" if rename is not None else "spec" if spec is not None else "prefix"
        raise ArgumentError(f"{given}: given with a module, whose spec and names are known; leave it out")
    if _is_list(obj):
        return stack([snapshot(layer) for layer in obj])
    return _read(obj)[1]


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
    parts = list(module) if _is_list(module) else [module]
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


def _is_list(obj: Any) -> bool:
    return isinstance(obj, Sequence) and not isinstance(obj, (str, bytes))


def _read(obj: Any) -> tuple[Any, Snapshot]:
    """What reads and writes the module, a backend or the module for Keras or Flax, and the module's snapshot."""
    packages = registry.packages(obj)
    readers: list[Any] = [module for module in (keras, flax) if module.name in packages]
    for reader in (*readers, *registry.backends_for(obj)):
        found = reader.read(obj)
        if found is not None:
            spec, weights = found
            return reader, Snapshot(spec, weights)
    given = f"{type(obj).__module__}.{type(obj).__qualname__}"
    if isinstance(obj, (str, os.PathLike)):
        raise ArgumentError(f"obj: given {given}, expected an object; unirnn.load(path) reads a file")
    wrapped = next((f", or what it wraps, its .{name}" for name in ("_orig_mod", "module") if hasattr(obj, name)), "")
    raise ArgumentError(
        f"obj: given {given}, expected a module that unirnn built, a recurrent layer of torch, mindspore, keras or "
        f"flax, an ONNX model, a mapping of names to arrays, or a list of layers{wrapped}"
    )
