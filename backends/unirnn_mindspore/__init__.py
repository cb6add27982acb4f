"""The ``mindspore`` backend: a ``mindspore.nn.Cell`` on primitive operations, in PyNative and graph mode."""

from .backend import MindSporeBackend
from .module import Recurrent

__all__ = ["MindSporeBackend", "Recurrent", "backend"]

backend = MindSporeBackend()
