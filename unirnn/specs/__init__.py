"""What a layer is: frozen values, free of any framework."""

from .base import Spec
from .recurrent import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

__all__ = ["GRUSpec", "LSTMSpec", "RNNSpec", "RecurrentSpec", "Spec"]
