"""The fast path on a CPU, over NumPy's arrays: forward and backward over packed valid steps.

`recurrent` runs a whole stack of layers, `direction` one layer in one direction. How they work is explained in
`unirnn.kernels.layers`.
"""

from .layers import SUPPORT, Pullback, Weights, check_numba, compiled_cell, direction, has_numba, recurrent

__all__ = ["SUPPORT", "Pullback", "Weights", "check_numba", "compiled_cell", "direction", "has_numba", "recurrent"]
