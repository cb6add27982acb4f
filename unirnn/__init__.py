"""One spec for RNN, GRU and LSTM layers; native modules on NumPy, PyTorch, MindSpore and others.

Importing it imports no framework: a backend is imported the first time that it is asked for.
"""

from . import errors, state
from .devices import Device
from .files import load
from .limits import Explanation, Limit, explain
from .reading import load_weights, snapshot
from .registry import backends, default_backend, use_backend
from .snapshots import Snapshot
from .specs import GRUSpec, LSTMSpec, RNNSpec, Spec
from .state import detach

__all__ = [
    "Device",
    "Explanation",
    "GRUSpec",
    "LSTMSpec",
    "Limit",
    "RNNSpec",
    "Snapshot",
    "Spec",
    "__version__",
    "backends",
    "default_backend",
    "detach",
    "errors",
    "explain",
    "load",
    "load_weights",
    "snapshot",
    "state",
    "use_backend",
]

__version__ = "0.1.0"
