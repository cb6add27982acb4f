"""The ``mindspore`` backend: builds a ``mindspore.nn.Cell``, for PyNative and graph mode."""

from unirnn_mindspore.backend import MindSporeBackend
from unirnn_mindspore.models import Model
from unirnn_mindspore.module import Recurrent

__all__ = ["MindSporeBackend", "Model", "Recurrent", "backend"]

backend = MindSporeBackend()
