"""The ``numpy`` backend: NumPy arrays in and out, computed by the core's packed kernels."""

from unirnn_numpy.backend import NumpyBackend
from unirnn_numpy.models import NumpyModel
from unirnn_numpy.module import NumpyModule

__all__ = ["NumpyBackend", "NumpyModel", "NumpyModule", "backend"]

backend = NumpyBackend()
