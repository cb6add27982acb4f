"""Snapshots: a spec and its weights, free of any framework."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np

from unirnn import registry
from unirnn.building import build
from unirnn.contract.weights import Array, Weights, check_dtype, check_weights
from unirnn.devices import dtype_name
from unirnn.errors import ArgumentError, DTypeError, LimitError
from unirnn.snapshots import layouts
from unirnn.specs import RecurrentSpec, Spec

__all__ = ["Snapshot"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A spec and its weights.

    Parameters
    ----------
    spec
        The spec of the layer, or of the model.
    weights
        One array or tensor for each name of `Spec.weight_shapes`, of that shape, and of float16, float32 or float64.
        They are copied, and the copies are read-only. NumPy has no bfloat16, so it becomes float32, which holds each of
        its values.
    assumed
        The arguments of the spec that nobody has said: ``("batch_first",)`` for a layer from a state dict, if it was
        not given. The snapshot shows it when it is printed. It counts neither for equality nor for files.

    Raises
    ------
    ArgumentError, ShapeError
        If the names or shapes are not those of the spec's weights.
    DTypeError
        If the weights are of another dtype.

    Examples
    --------
    >>> import numpy, unirnn
    >>> spec = unirnn.RNNSpec(1, 2, bias=False)
    >>> unirnn.Snapshot(spec, {"weight_ih_l0": numpy.ones((2, 1)), "weight_hh_l0": numpy.eye(2)})
    <snapshot of RNNSpec(1, 2, bias=False), 6 numbers, float64>
    """

    spec: Any  # a Spec; what the subclasses have would have to be asked for at each use
    weights: Mapping[str, Array]
    assumed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.spec, Spec) or not isinstance(self.weights, Mapping):
            given = f"{type(self.spec).__name__}, {type(self.weights).__name__}"
            raise ArgumentError(f"spec, weights: given {given}, expected a spec and a mapping of names to arrays")
        self.spec.check_complete()
        check_weights(self.spec, {name: np.shape(array) for name, array in self.weights.items()})
        copies = {name: _copy(name, self.weights[name]) for name in self.spec.weight_shapes()}
        object.__setattr__(self, "weights", MappingProxyType(copies))

    @property
    def dtype(self) -> str:
        """The name of the dtype of the weights."""
        return str(np.result_type(*self.weights.values())) if self.weights else "float32"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Snapshot)
            and self.spec == other.spec
            and all(
                self.weights[name].dtype == other.weights[name].dtype
                and self.weights[name].tobytes() == other.weights[name].tobytes()
                for name in self.weights
            )
        )

    def __reduce__(self) -> Any:
        return Snapshot, (self.spec, dict(self.weights), self.assumed)

    __hash__ = None  # type: ignore[assignment]  # a hash would have to read all numbers

    def __repr__(self) -> str:
        unknown = "".join(f", {name} unknown" for name in self.assumed)
        return f"<snapshot of {self.spec!r}, {self.spec.num_weights} numbers, {self.dtype}{unknown}>"

    def build(
        self,
        backend: str | None = None,
        *,
        device: Any = None,
        dtype: Any = None,
        seed: int | None = None,
        **options: Any,
    ) -> Any:
        """Build a module with these weights; see `Spec.build`.

        Parameters
        ----------
        backend, device, **options
            As in `Spec.build`.
        dtype
            None is the dtype of the weights.
        seed
            Seeds what is random besides the weights: dropout, on a backend with its own generator for it.

        Raises
        ------
        BackendError, DeviceError, LimitError
            As `Spec.build`.
        DTypeError
            If the dtype is unknown, or can't hold a weight; see `cast`.
        """
        kind = self.dtype if dtype is None else dtype_name(dtype)
        held = self if kind in (self.dtype, "bfloat16") else self.cast(kind)
        return build(self.spec, backend, device=device, dtype=kind, seed=seed, weights=held.weights, options=options)

    def to(self, framework: str) -> Weights:
        """The weights under a framework's own names, in its own shapes and gate order.

        Parameters
        ----------
        framework
            ``"torch"``, ``"mindspore"``, ``"keras"``, ``"flax"`` or ``"onnx"``; see `unirnn.snapshots.layouts`.

        Raises
        ------
        ArgumentError
            If the framework is not one of these.
        LimitError
            If the framework has no such layer, or can't hold these weights; the message says what would be lost.

        Examples
        --------
        >>> import unirnn
        >>> taken = unirnn.snapshot(unirnn.LSTMSpec(3, 4, bias=False).build("numpy", seed=0))
        >>> {name: array.shape for name, array in taken.to("onnx").items()}
        {'W_l0': (1, 16, 3), 'R_l0': (1, 16, 4)}
        """
        if not isinstance(self.spec, RecurrentSpec):
            raise LimitError(f"{framework}: given {self.spec.kind}, expected a recurrent layer; see Snapshot.weights")
        return layouts.to_framework(framework, self.spec, self.weights)

    def cast(self, dtype: Any) -> "Snapshot":
        """The same snapshot with its weights rounded to another dtype.

        Parameters
        ----------
        dtype
            ``float16``, ``float32`` or ``float64``, as a name or as a framework's object.

        Raises
        ------
        DTypeError
            If it is not one of these, or if a weight would become infinite.

        Examples
        --------
        >>> import unirnn
        >>> unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy", seed=0)).cast("float16")
        <snapshot of GRUSpec(3, 4), 108 numbers, float16>
        """
        kind = dtype_name(dtype)
        if kind == "bfloat16":
            raise DTypeError(
                "dtype: given bfloat16, expected float16, float32 or float64, since NumPy has no other; "
                "give dtype='bfloat16' to build"
            )
        weights = {}
        for name, array in self.weights.items():
            with np.errstate(over="ignore"):
                weights[name] = array.astype(kind)
            if np.isinf(weights[name]).any() and not np.isinf(array).any():
                raise DTypeError(f"dtype: given {kind}, which can't hold {name}: it reaches {np.abs(array).max():.3g}")
        return Snapshot(self.spec, weights, self.assumed)

    def save(self, path: "str | os.PathLike[str]") -> None:
        """Save the snapshot; see `unirnn.files.save`, which raises the errors.

        A ``.safetensors`` or ``.npz`` file holds the weights by name, and the spec. An ``.onnx`` file holds a graph
        that computes the layer or the model. `unirnn.load` reads all of them back as the same snapshot. No file holds
        the code of a `unirnn.Model`, so `unirnn.load` has to be given the definition as ``spec``.

        Parameters
        ----------
        path
            Where to save it; an existing file is replaced.
        """
        from unirnn import files

        files.save(self, path)


def _copy(name: str, array: Any) -> Array:
    """A read-only copy as NumPy's floats, in this machine's byte order."""
    given = registry.to_numpy(array, f"weights[{name!r}]")
    # The package ml_dtypes, which JAX uses, adds bfloat16 to NumPy.
    dtype = "float32" if given.dtype.name == "bfloat16" else given.dtype.name
    check_dtype(name, dtype)
    copy = np.array(given, dtype, order="C")
    copy.flags.writeable = False
    return copy
