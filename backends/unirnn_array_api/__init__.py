"""The ``array_api`` backend: the plain cells on any namespace that follows the array API standard."""

from unirnn_array_api.backend import ArrayBackend
from unirnn_array_api.module import ArrayModule

__all__ = ["ArrayBackend", "ArrayModule", "backend"]

backend = ArrayBackend()
