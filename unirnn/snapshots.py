"""Snapshots: a spec and its weights, free of any framework."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import registry
from . import weights as _weights
from .building import build
from .errors import ArgumentError
from .specs import Spec

__all__ = ["Snapshot", "snapshot"]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A spec and its weights.

    Parameters
    ----------
    spec
        What the layer is.
    weights
        One array for each name of `Spec.weight_shapes`, of that shape; copied. Of a bfloat16 module they are
        float32, which holds each of its values, since NumPy has no bfloat16.

    Raises
    ------
    ArgumentError, ShapeError
        If the weights are not the spec's.
    """

    spec: Spec
    weights: Mapping[str, NDArray[Any]]

    def __post_init__(self) -> None:
        _weights.check(self.spec, self.weights)
        copies = {name: np.array(self.weights[name]) for name in self.spec.weight_shapes()}
        object.__setattr__(self, "weights", MappingProxyType(copies))

    @property
    def dtype(self) -> str:
        """The name of the weights' dtype."""
        return str(np.result_type(*self.weights.values()))

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Snapshot)
            and self.spec == other.spec
            and all(
                self.weights[name].dtype == other.weights[name].dtype
                and np.array_equal(self.weights[name], other.weights[name])
                for name in self.weights
            )
        )

    def __reduce__(self) -> Any:
        return Snapshot, (self.spec, dict(self.weights))

    __hash__ = None  # type: ignore[assignment]  # its arrays can be written to

    def __repr__(self) -> str:
        return f"<snapshot of {self.spec!r}, {self.spec.num_weights} numbers, {self.dtype}>"

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
            None is the weights' own.
        seed
            Of what is random besides the weights, dropout, on a backend that has a generator for it.
        """
        return build(
            self.spec,
            backend,
            device=device,
            dtype=self.dtype if dtype is None else dtype,
            seed=seed,
            weights=self.weights,
            options=options,
        )


def snapshot(module: Any) -> Snapshot:
    """Take a module's spec and a copy of its weights.

    Parameters
    ----------
    module
        A module that unirnn built.

    Raises
    ------
    ArgumentError
        If no backend built it.

    Examples
    --------
    >>> import unirnn
    >>> unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy", seed=0))
    <snapshot of GRUSpec(3, 4), 108 numbers, float32>
    """
    for backend in registry.loaded():
        found = backend.read(module)
        if found is not None:
            return Snapshot(*found)
    raise ArgumentError(f"module: given {type(module).__name__}, expected a module that unirnn built")
