"""The ``torch`` backend: builds a ``torch.nn.RNNBase``, which runs torch's own layers or unirnn's C kernels."""

from unirnn_torch.backend import TorchBackend
from unirnn_torch.module import Recurrent

__all__ = ["Recurrent", "TorchBackend", "backend"]

backend = TorchBackend()
