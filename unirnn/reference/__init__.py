"""The readable path in the array API standard, against which every kernel is checked."""

from .cells import State, Weights, step
from .layers import Direction, direction, in_direction, recurrent
from .lengths import Lengths, last_valid, turn
from .models import Training, model

__all__ = [
    "Direction",
    "Lengths",
    "State",
    "Training",
    "Weights",
    "direction",
    "in_direction",
    "last_valid",
    "model",
    "recurrent",
    "step",
    "turn",
]
