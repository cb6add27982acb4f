"""The fast path on a CPU: recurrent layers, forward and backward, over the valid steps only.

`recurrent` runs a whole stack of layers over NumPy's arrays, and `Step` runs single time steps. They call
the compiled kernels, the library that is built from ``csrc``, or, if it is not available, NumPy.
`unirnn.kernels.compiled` calls the library over the memory of any framework's arrays.
"""

from .arrays import Step
from .layers import SUPPORT, KernelName, Pullback, check_compiled, is_compiled, recurrent

__all__ = ["SUPPORT", "KernelName", "Pullback", "Step", "check_compiled", "is_compiled", "recurrent"]
