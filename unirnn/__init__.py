"""One spec for RNN, GRU and LSTM layers; native modules on NumPy, PyTorch, MindSpore and others.

Importing unirnn imports no framework: a backend is imported when it is first used. Snapshots, files and `explain` are
also imported when they are first used.
"""

from typing import TYPE_CHECKING, Any

from . import errors, specs, state
from .registry import backends, default_backend, use_backend
from .specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Spec
from .state import detach

if TYPE_CHECKING:
    from .building import Explanation, explain
    from .contract.limits import Kernel, Limit
    from .devices import Device
    from .files import load
    from .migrating import Migration, migrate
    from .objects import load_weights, snapshot
    from .padding import left_to_right, lengths_of, right_to_left
    from .snapshots import Snapshot, stack
    from .specs import (
        ActivationSpec,
        BatchNormSpec,
        Concat,
        Conv1dSpec,
        DropoutSpec,
        EmbeddingSpec,
        LayerNormSpec,
        LinearSpec,
        Model,
        NormalizeSpec,
        PoolSpec,
        Residual,
        Sequential,
        SumDirectionsSpec,
    )

__all__ = [
    "ActivationSpec",
    "BatchNormSpec",
    "Concat",
    "Conv1dSpec",
    "Device",
    "DropoutSpec",
    "EmbeddingSpec",
    "Explanation",
    "GRUSpec",
    "Kernel",
    "LSTMSpec",
    "LayerNormSpec",
    "Limit",
    "LinearSpec",
    "Migration",
    "Model",
    "NormalizeSpec",
    "PoolSpec",
    "RNNSpec",
    "RecurrentSpec",
    "Residual",
    "Sequential",
    "Snapshot",
    "Spec",
    "SumDirectionsSpec",
    "__version__",
    "backends",
    "default_backend",
    "detach",
    "errors",
    "explain",
    "left_to_right",
    "lengths_of",
    "load",
    "load_weights",
    "migrate",
    "right_to_left",
    "snapshot",
    "stack",
    "state",
    "use_backend",
]

__version__ = "0.1.0"

_LAZY = {
    "Device": "devices",
    "Explanation": "building",
    "Kernel": "contract.limits",
    "Limit": "contract.limits",
    "Migration": "migrating",
    "Snapshot": "snapshots",
    "explain": "building",
    "load": "files",
    "load_weights": "objects",
    "migrate": "migrating",
    "left_to_right": "padding",
    "lengths_of": "padding",
    "right_to_left": "padding",
    "snapshot": "objects",
    "stack": "snapshots",
    **{name: "specs" for name in specs.__all__ if name in __all__},
}
"""Attributes imported on first use: they take a quarter of the time of ``import numpy``."""
_MODULES = ("devices", "files", "snapshots")


def __getattr__(name: str) -> Any:
    """Import an attribute or a module on its first use."""
    from importlib import import_module

    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
    return value


def __dir__() -> list[str]:
    return __all__
