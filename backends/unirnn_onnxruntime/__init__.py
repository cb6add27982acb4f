"""The ``onnxruntime`` backend: inference on ONNX Runtime, NumPy in and NumPy out, on the core's graphs."""

from unirnn_onnxruntime.backend import OnnxRuntimeBackend
from unirnn_onnxruntime.module import OnnxRuntimeModel, OnnxRuntimeModule

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeModel", "OnnxRuntimeModule", "backend"]

backend = OnnxRuntimeBackend()
