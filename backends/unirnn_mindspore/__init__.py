"""The ``mindspore`` backend: builds a ``mindspore.nn.Cell``, for PyNative and graph mode."""

from unirnn_mindspore.backend import MindSporeBackend
from unirnn_mindspore.module import Recurrent

__all__ = ["MindSporeBackend", "Recurrent", "backend"]

backend = MindSporeBackend()
