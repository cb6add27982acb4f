"""The ``array_api`` backend: the plain cells on any namespace that follows the array API standard."""

from .backend import ArrayBackend
from .module import ArrayModule

__all__ = ["ArrayBackend", "ArrayModule", "backend"]

backend = ArrayBackend()
