"""The ``mindspore`` backend: a ``mindspore.nn.Cell`` on primitive operations, in PyNative and graph mode."""

from unirnn_mindspore.backend import MindSporeBackend
from unirnn_mindspore.module import Recurrent

__all__ = ["MindSporeBackend", "Recurrent", "backend"]

backend = MindSporeBackend()
