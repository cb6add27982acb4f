"""The ``torch`` backend: a ``torch.nn.RNNBase`` with the native computation, and lengths without packing."""

from .backend import TorchBackend
from .module import Recurrent

__all__ = ["Recurrent", "TorchBackend", "backend"]

backend = TorchBackend()
