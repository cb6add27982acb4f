"""The ``torch`` backend: it builds a ``torch.nn.RNNBase``, which torch's own layers compute, or kernels for the CPU."""

from unirnn_torch.backend import TorchBackend
from unirnn_torch.module import Recurrent

__all__ = ["Recurrent", "TorchBackend", "backend"]

backend = TorchBackend()
