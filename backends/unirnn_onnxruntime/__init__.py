"""The ``onnxruntime`` backend: inference on ONNX Runtime, NumPy in and NumPy out, on the core's graphs."""

from .backend import OnnxRuntimeBackend
from .module import OnnxRuntimeModule

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeModule", "backend"]

backend = OnnxRuntimeBackend()
