"""What a layer or a model is: frozen values, free of any framework."""

from .base import Spec
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
from .recurrent import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
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
