"""What a layer or a model is: frozen values, free of any framework.

What is around recurrent layers is imported on its first use, since making so many classes takes time.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .base import Spec
from .recurrent import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

if TYPE_CHECKING:
    from .layers import (
        ActivationSpec,
        BatchNormSpec,
        Conv1dSpec,
        DropoutSpec,
        EmbeddingSpec,
        LayerNormSpec,
        LinearSpec,
        NormalizeSpec,
        PoolSpec,
        SumDirectionsSpec,
    )
    from .model import Model
    from .sequential import Concat, ModelSpec, Residual, Sequential

__all__ = [
    "ActivationSpec",
    "BatchNormSpec",
    "Concat",
    "Conv1dSpec",
    "DropoutSpec",
    "EmbeddingSpec",
    "GRUSpec",
    "LSTMSpec",
    "LayerNormSpec",
    "LinearSpec",
    "Model",
    "ModelSpec",
    "NormalizeSpec",
    "PoolSpec",
    "RNNSpec",
    "RecurrentSpec",
    "Residual",
    "Sequential",
    "Spec",
    "SumDirectionsSpec",
]


def __getattr__(name: str) -> Any:
    """Import a spec on its first use."""
    if name in __all__:
        for module in ("layers", "sequential", "model"):
            found = vars(import_module(f"{__name__}.{module}"))
            if name in found:
                globals()[name] = found[name]
                return found[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
