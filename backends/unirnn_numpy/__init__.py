"""The ``numpy`` backend: plain NumPy in, plain NumPy out, on the core's packed kernels."""

from .backend import NumpyBackend
from .module import NumpyModule

__all__ = ["NumpyBackend", "NumpyModule", "backend"]

backend = NumpyBackend()
