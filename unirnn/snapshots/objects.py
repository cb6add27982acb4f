"""Taking a snapshot of an object, of whichever framework, and writing one back into it.

An object is recognised by the packages that its classes come from. Nothing is imported that is not loaded: who holds
a ``torch.nn.GRU`` has torch. A backend reads and writes the modules that it built and its framework's own
layers; Keras and Flax, for which there is no backend, have a file each here.
"""

import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unirnn import registry
from unirnn.contract import weights
from unirnn.errors import ArgumentError, SpecError
from unirnn.snapshots import layouts, state_dicts
from unirnn.snapshots.snapshot import Snapshot
from unirnn.snapshots.stacking import stack, unstack
from unirnn.specs import Spec

__all__ = ["load_weights", "snapshot"]


class _Reader(Protocol):
    """What reads and writes: a backend, or the file of a framework that is none."""

    @property
    def name(self) -> str: ...

    def read(self, module: Any) -> tuple[Spec, Mapping[str, NDArray[Any]]] | None: ...

    def write(self, module: Any, weights: Mapping[str, NDArray[Any]]) -> None: ...


def snapshot(obj: Any, *, spec: Spec | None = None, prefix: str | None = None) -> Snapshot:
    """Take what an object is and a copy of its weights.

    Parameters
    ----------
    obj
        One of

        - a module that unirnn built, of any backend;
        - a layer of ``torch.nn`` or ``mindspore.nn``: ``RNN``, ``GRU``, ``LSTM``;
        - a layer of Keras 3: ``SimpleRNN``, ``GRU``, ``LSTM``, or ``Bidirectional`` of one;
        - ``flax.nnx.RNN``, or ``Bidirectional`` of two, over ``SimpleCell``, ``GRUCell`` or ``OptimizedLSTMCell``;
        - an ``onnx.ModelProto`` with RNN, GRU or LSTM nodes;
        - a mapping of names to arrays or tensors, such as a ``state_dict``; see `unirnn.snapshots.state_dicts`;
        - a list of such objects, the lowest layer first.
    spec
        What the layer is, of a mapping; None: what names and shapes determine.
    prefix
        What the layer's names begin with in a mapping (``"encoder.lstm."``), or a node's name in an ONNX model. None:
        there is only one layer in it.

    Raises
    ------
    ArgumentError
        If the object is none of these, or there is not one layer where it was looked for.
    SpecError
        If the layer is one that no spec describes: a Keras layer that runs backward, an activation that no other
        framework has, an RNN's weights without its nonlinearity.
    ShapeError, DTypeError
        If arrays don't fit a layer.

    Examples
    --------
    >>> import numpy, unirnn
    >>> unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy", seed=0))
    <snapshot of GRUSpec(3, 4), 108 numbers, float32>
    >>> unirnn.snapshot({"lstm.weight_ih_l0": numpy.ones((8, 3)), "lstm.weight_hh_l0": numpy.ones((8, 2))})
    <snapshot of LSTMSpec(3, 2, bias=False), 40 numbers, float64>
    """
    state_dicts.check_types(prefix, spec)
    if isinstance(obj, Mapping):
        return _of_mapping(obj, spec, prefix)
    if "onnx" in registry.packages(obj):
        from unirnn.files import onnx_reader as onnx_nodes

        return onnx_nodes.read(obj, spec=spec, prefix=prefix)
    if spec is not None or prefix is not None:
        given = "spec" if spec is not None else "prefix"
        raise ArgumentError(f"{given}: given besides a module, which says itself what it is; leave it out")
    if _is_list(obj):
        return stack([snapshot(layer) for layer in obj])
    return _read(obj)[1]


def load_weights(module: Any, snapshot: Snapshot) -> None:
    """Replace a module's weights in place; an error leaves it as it was.

    Parameters
    ----------
    module
        What `snapshot` takes, but for mappings and ONNX models.
    snapshot
        Of the same names and shapes; ``batch_first`` and ``dropout`` may differ, and biases of zeros are none.

    Raises
    ------
    ArgumentError
        If the module is none, or the snapshot has other names, or the module can't hold different weights where it
        shares one between layers.
    ShapeError, SpecError
        If the snapshot's weights have other shapes, or are meant for another computation.
    DTypeError
        If the module's dtype can't hold them all exactly; `Snapshot.cast` rounds.
    LimitError
        If the module's framework can't hold them; the message says what would be lost.

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
    layers = iter(unstack(_replacing(stack([old for _, old in found]), snapshot)))
    news = [Snapshot(old.spec, stack(list(islice(layers, old.spec.num_layers))).weights) for _, old in found]
    written = []
    try:
        for part, (reader, old), new in zip(parts, found, news, strict=True):
            reader.write(part, new.weights)
            written.append((part, reader, old))
        for part, (reader, _), new in zip(parts, found, news, strict=True):
            if _read(part)[1] != _held(reader.name, new):
                raise ArgumentError("module: it shares a weight between layers or directions, and they are to differ")
    except Exception:
        for part, reader, old in written:
            reader.write(part, old.weights)
        raise


def _replacing(old: Snapshot, new: Snapshot) -> Snapshot:
    """What replaces a module's weights, if it fits: with biases where the module has some, and of its dtype."""
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
    weights.check(old.spec, {name: array.shape for name, array in given.items()})
    if not Spec.from_dict({**new.spec.to_dict(), "bias": old.spec.bias}).fits(old.spec):
        raise SpecError(f"snapshot: given {new.spec!r}, expected the module's {old.spec!r}")
    dtypes = [old.weights[name].dtype for name in given]
    return Snapshot(old.spec, weights.exactly(given, dtypes))


def _held(framework: str, snapshot: Snapshot) -> Snapshot:
    """A snapshot as a framework holds it, which may have one bias for two."""
    if framework not in ("keras", "flax"):
        return snapshot
    return Snapshot(snapshot.spec, layouts.of(framework, snapshot.spec, snapshot.to(framework)))


def _is_list(obj: Any) -> bool:
    return isinstance(obj, Sequence) and not isinstance(obj, (str, bytes))


def _read(obj: Any) -> tuple[_Reader, Snapshot]:
    packages = registry.packages(obj)
    readers: list[_Reader] = []
    if "keras" in packages:
        from unirnn.snapshots import keras as of_keras

        readers.append(of_keras)
    if "flax" in packages:
        from unirnn.snapshots import flax as of_flax

        readers.append(of_flax)
    for reader in (*readers, *registry.backends_for(obj)):
        found = reader.read(obj)
        if found is not None:
            return reader, Snapshot(*found)
    given = f"{type(obj).__module__}.{type(obj).__qualname__}"
    if isinstance(obj, (str, os.PathLike)):
        raise ArgumentError(f"obj: given {given}, expected an object; unirnn.load(path) reads a file")
    wrapped = next((f", or what it wraps, its .{name}" for name in ("_orig_mod", "module") if hasattr(obj, name)), "")
    raise ArgumentError(
        f"obj: given {given}, expected a module that unirnn built, a recurrent layer of torch, mindspore, keras or "
        f"flax, an ONNX model, a mapping of names to arrays, or a list of layers{wrapped}"
    )


def _of_mapping(obj: Mapping[Any, Any], spec: Spec | None, prefix: str | None) -> Snapshot:
    shapes = {name: _shape(array) for name, array in obj.items() if isinstance(name, str)}
    prefix, spec = state_dicts.choose(shapes, prefix=prefix, spec=spec)
    return Snapshot(spec, {name: obj[prefix + name] for name in spec.weight_shapes()})


def _shape(array: Any) -> tuple[int, ...]:
    try:
        return tuple(array.shape if hasattr(array, "shape") else np.shape(array))
    except ValueError:  # a ragged list
        return ()
