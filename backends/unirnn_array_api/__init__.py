"""The ``array_api`` backend: the reference, on any namespace of the array API standard."""

from unirnn_array_api.backend import ArrayBackend
from unirnn_array_api.module import ArrayModule

__all__ = ["ArrayBackend", "ArrayModule", "backend"]

backend = ArrayBackend()
