"""One of the two models that `assert_same` compares. It runs in evaluation mode, and nothing changes it."""

import sys
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

import unirnn
from unirnn.devices import Device, short_name
from unirnn.errors import UnirnnError
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import Model, RecurrentSpec, Spec

from ._results import arrays_by_path
from ._runs import Runner
from ._tracebacks import is_for_the_test
from .batches import Batch
from .calling import Call, as_taken_by, unwrapped
from .frameworks import without_cudnn
from .tolerances import TOLERANCES, tolerance

__all__ = ["Side", "snapshot_of"]

__tracebackhide__ = is_for_the_test

Array = NDArray[Any]
Gradients = dict[str, Array | None]


def snapshot_of(model: Any) -> Snapshot | None:
    """Take the snapshot of a model; None if unirnn can't read the model."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return unirnn.snapshot(model)
    except UnirnnError:
        return None


class Side(Runner):
    """One of the two models, together with its results and gradients."""

    def __init__(self, label: str, model: Any, batch: Batch, call: Call | None) -> None:
        super().__init__(model, call)
        self.label = label
        self.batch = as_taken_by(model, batch, self.all_weights())
        own = getattr(model, "spec", None)
        self.is_built = isinstance(own, Spec)
        self.snapshot = snapshot_of(model)
        self.spec: Spec | None = own if isinstance(own, Spec) else getattr(self.snapshot, "spec", None)
        self.results: list[Array] = []  # the first axis of the first one is B
        self.paths: list[str] = []
        self.with_gradients: set[str] = set()  # the paths of the results that are arrays of floats
        self.cotangents: list[Array] = []
        self.found: Gradients | None = None
        self.is_time_first = False
        self.tolerance = 0.0

    def __str__(self) -> str:
        spec, own = self.spec, getattr(self.model, "__qualname__", type(self.model).__qualname__)
        name = repr(spec) if isinstance(spec, RecurrentSpec) else type(spec).__name__ if self.is_built else own
        return f"{self.label} ({name} of {self.framework.name})"

    def all_weights(self) -> dict[tuple[str, ...], Array]:
        """The weights by name; empty if they can't be read."""
        return self.framework.all_weights(unwrapped(self.model)) or {}

    def run(self, like: "Side | None" = None) -> None:
        """Compute the results, and put them into the order of another side if both have the same names."""
        with self.mode(training=False) as net:
            found = self.call_on(net, self.native(self.batch, net))
            if like is not None and set(like.paths) == set(found):
                found = {path: found[path] for path in like.paths}
            names = [short_name(array.dtype) for array in found.values() if hasattr(array, "dtype")]
            dtype = max((name for name in names if name in TOLERANCES), key=TOLERANCES.__getitem__, default="float64")
            self.tolerance = tolerance(dtype, _device_of(next(iter(found.values()))))
            arrays = self.numpy(found)
        self.paths, self.results = list(arrays), self._canonical(arrays)
        self.with_gradients = {p for p, x in found.items() if arrays[p].dtype.kind == "f" and hasattr(x, "dtype")}

    def watched(self) -> dict[tuple[str, int], tuple[str, list[Array]]]:
        """The class and the results of each call of a layer, by the layer's path and the number of the call."""
        with self.mode(training=False) as net:
            _, layers = self.watch(net, self.native(self.batch, net))
            results = {key: arrays_by_path(_padded(layer.results, self.batch)) for key, layer in layers.items()}
            return {key: (layers[key].kind, self._canonical(self.numpy(own))) for key, own in results.items() if key[0]}

    def gradients(self, cotangents: list[Array]) -> Gradients | None:
        """The gradients of the sum of results times cotangents, by name; None if the framework has none.

        Both the first cotangent and the gradient of the input are `(B, T, ...)`.
        """
        factors = {
            path: self._in_own_layout(k, d) for k, (path, d) in enumerate(zip(self.paths, cotangents, strict=False))
        }
        with self.mode(training=False) as net, without_cudnn():
            own = {path: factor for path, factor in factors.items() if path in self.with_gradients}
            found = self.differentiate(net, self.batch, own)
        if found is None:
            return None
        named: Gradients = {**found}
        if "input" in found and not self.batch.batch_first:
            named["input"] = found["input"].swapaxes(0, 1)
        return named

    def _canonical(self, results: dict[str, Array]) -> list[Array]:
        """The arrays of a result as a list; the first one is transposed if its first axis is not B."""
        arrays = list(results.values())
        if not arrays:
            return []
        self.is_time_first = self._has_steps_first(arrays[0])
        return [arrays[0].swapaxes(0, 1) if self.is_time_first else arrays[0], *arrays[1:]]

    def _has_steps_first(self, array: Array) -> bool:
        if self.batch.batch_first or array.ndim < 2:
            return False
        if self.spec is not None and self.spec.ends_steps and array.ndim == 2:
            return False
        own = array.shape[1] == self.batch.batch_size
        return own and (array.shape[0] != self.batch.batch_size or array.ndim > 2)

    def _in_own_layout(self, position: int, array: Array) -> Array:
        moved = array.swapaxes(0, 1) if position == 0 and self.is_time_first else array
        kind = self.results[position].dtype
        return np.ascontiguousarray(moved, kind if kind.kind == "f" else None)

    def valid(self, output: Array, position: int = 0) -> NDArray[np.bool_] | None:
        """Where a result `(B, T', ...)` is valid; None if it has no axis of steps, or if that is not known."""
        lengths = self.batch.lengths
        if position and (self.spec is not None or not self.batch.batch_first or len(lengths) == self.batch.steps):
            return None  # it is a state, or might be one
        if self.is_built and self.spec is not None and not isinstance(self.spec, Model):
            if self.spec.ends_steps:
                return None
            lengths = self.spec.output_lengths(lengths)
        elif output.shape[:2] != (self.batch.batch_size, self.batch.steps):
            return None
        found: NDArray[np.bool_] = np.arange(output.shape[1]) < lengths[:, None]
        return found


# ---- the batch and the results -------------------------------------------------------------------


def _padded(results: Any, batch: Batch) -> Any:
    """Replace torch's packed sequences in what a layer returned by padded ones."""
    torch = sys.modules.get("torch")
    if torch is None:
        return results
    rnn = torch.nn.utils.rnn

    def pad(value: Any) -> Any:
        if not isinstance(value, rnn.PackedSequence):
            return tuple(pad(part) for part in value) if type(value) in (tuple, list) else value
        return rnn.pad_packed_sequence(value, batch.batch_first, total_length=batch.steps)[0]

    return pad(results)


def _device_of(array: Any) -> Device | None:
    """The GPU or Ascend that holds an array; None for a CPU."""
    name = str(getattr(array, "device", "")).lower()
    if name.startswith(("cuda", "gpu")):
        return Device("gpu")
    return Device("ascend") if name.startswith(("npu", "ascend")) else None
