"""The fast path on a CPU: recurrent layers, forward and backward, over the valid steps only.

`recurrent` runs a whole stack of layers over NumPy's arrays, and `Prepared` runs calls like the one before. They call
the compiled kernels, the library that is built from ``csrc``, or, if it is not available, NumPy.
`unirnn.kernels.compiled` calls the library over the memory of any framework's arrays.
"""

from .arrays import Prepared
from .layers import SUPPORT, KernelName, Pullback, check_compiled, is_compiled, recurrent

__all__ = ["SUPPORT", "KernelName", "Prepared", "Pullback", "check_compiled", "is_compiled", "recurrent"]
