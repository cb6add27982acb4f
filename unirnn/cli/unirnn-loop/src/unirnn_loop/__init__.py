"""The backend ``loop`` of unirnn."""

from .backend import LoopBackend
from .models import LoopModel
from .module import LoopModule

__all__ = ["LoopBackend", "LoopModel", "LoopModule", "backend"]

backend = LoopBackend()
