"""The ``numpy`` backend: plain NumPy in, plain NumPy out, on the core's packed kernels."""

from unirnn_numpy.backend import NumpyBackend
from unirnn_numpy.module import NumpyModule

__all__ = ["NumpyBackend", "NumpyModule", "backend"]

backend = NumpyBackend()
