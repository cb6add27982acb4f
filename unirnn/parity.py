"""Parity: whether backends compute the same numbers.

Each backend builds the same spec with the same weights, runs the same ragged batch, and is held against an
oracle: the ``numpy`` backend in float64. Only the members of `unirnn.backend.Backend` are used, so a third
party's backend is compared like any other.

What is compared is the computation, and not the rounding of what goes in: weights and batch are drawn once,
rounded to the dtype that is tested, and the oracle gets those very numbers. The batch is made to be difficult:
lengths in no order, one of them 0 and one T, an initial state that is not zero, and NaN in the padding.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from . import registry
from . import weights as _weights
from .backend import Backend
from .call import join_state, state_parts
from .devices import Device, dtype_name
from .errors import BackendError, ShapeError, UnirnnError
from .limits import explain
from .snapshots import Snapshot
from .specs import Spec

__all__ = ["TOLERANCES", "Comparison", "Note", "Parity", "compare"]

Array = NDArray[Any]

TOLERANCES: Mapping[str, float] = MappingProxyType(
    {"float64": 1e-12, "float32": 1e-5, "float16": 1e-2, "bfloat16": 1e-1}
)
"""The largest relative difference that a dtype is allowed at T = 100.

Those of float64 and float32 are unirnn's promise. Those of float16 and bfloat16 are ten times the dtype's
epsilon, 1e-3 and 8e-3: room for a framework that rounds after each of its operations, as torch does on a CPU.
"""

_NAME = "numpy"
_DEFAULT_DTYPES = ("float32", "float64")


@dataclass(frozen=True)
class Comparison:
    """How far one backend is from the oracle, in one dtype.

    A difference is relative: the largest absolute difference of an array, by the largest absolute value of the
    oracle's; of several arrays, the largest. It is NaN where a backend gives a NaN.

    Parameters
    ----------
    backend
        The backend's name.
    device
        Where it ran: the backend's default.
    dtype
        The name of the dtype in which it ran.
    output, state
        Differences of the output, and of the final state.
    gradients
        Difference of the gradients with respect to the input, the initial state and each weight; None if the
        backend is not differentiable.
    tolerance
        What each of them may be.
    """

    backend: str
    device: Device
    dtype: str
    output: float
    state: float
    gradients: float | None
    tolerance: float

    @property
    def within(self) -> bool:
        """Whether every difference is within the tolerance."""
        differences = (self.output, self.state, 0.0 if self.gradients is None else self.gradients)
        return all(difference <= self.tolerance for difference in differences)  # False for NaN
