"""The ``torch`` backend: a ``torch.nn.RNNBase``, computed natively or, on a CPU, by a kernel of its own."""

from unirnn_torch.backend import TorchBackend
from unirnn_torch.module import Recurrent

__all__ = ["Recurrent", "TorchBackend", "backend"]

backend = TorchBackend()
