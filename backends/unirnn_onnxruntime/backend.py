"""The ``onnxruntime`` backend's own answers to `unirnn.contract.backend.Backend`."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx  # noqa: F401 - needed by onnx_writer; imported here, so that loading the backend reports a missing onnx
import onnxruntime
from numpy.typing import NDArray

from unirnn import Device, Limit, RecurrentSpec
from unirnn.contract import weights as _weights
from unirnn.contract.backend import Arrays, Backend
from unirnn.contract.limits import ROUNDED_FLOAT16, Support
from unirnn.errors import LimitError
from unirnn.files import onnx_writer
from unirnn.files.onnx_writer import oversize_reason
from unirnn.specs import BatchNormSpec, Spec

from .module import OnnxRuntimeModel, OnnxRuntimeModule
from .sessions import PROVIDERS

__all__ = ["OnnxRuntimeBackend"]

Array = NDArray[Any]


class OnnxRuntimeBackend(Backend):
    """Builds `OnnxRuntimeModule` and `OnnxRuntimeModel`; devices are execution providers."""

    name = "onnxruntime"
    support = Support(
        "onnxruntime",
        lacks=onnx_writer.SUPPORT.lacks,
        kinds=onnx_writer.SUPPORT.kinds,
        dtypes=("float16", "float32"),
        derivatives=0,
        dropout=False,
    )
    options = ("session_options",)
    """``session_options``: attributes of ``onnxruntime.SessionOptions`` and their values."""

    def version(self) -> str:
        return f"onnxruntime {onnxruntime.__version__}"

    def devices(self) -> tuple[Device, ...]:
        """Those whose provider this onnxruntime has; it doesn't tell how many units there are, so only the first."""
        available = onnxruntime.get_available_providers()
        return tuple(
            device
            for device in (Device("cpu"), Device("gpu", 0), Device("ascend", 0))
            if PROVIDERS[device.kind] in available
        )

    def limits(self, spec: Spec, device: Device, dtype: str) -> Iterable[Limit]:
        reason = oversize_reason(spec.num_weights * (2 if dtype == "float16" else 4))
        if reason is not None:
            yield Limit(reason)
        yield Limit("onnxruntime is for inference only: it has no gradients and applies no dropout", refuses=False)
        if isinstance(spec, BatchNormSpec):
            yield Limit("a batch normalisation uses its running statistics, even after train()", refuses=False)
        if device.kind == "cpu" and dtype == "float16":
            yield ROUNDED_FLOAT16
        if device.kind != "cpu":
            yield Limit(
                f"it runs through {PROVIDERS[device.kind]}, with which unirnn has not been tested", refuses=False
            )

    def build(
        self,
        spec: Spec,
        *,
        device: Device,
        dtype: str,
        weights: Arrays | None,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> OnnxRuntimeModel | OnnxRuntimeModule:
        reason = oversize_reason(spec.num_weights * np.dtype(dtype).itemsize)
        if reason is not None:  # of a model, whose layers are small enough
            raise LimitError(reason)
        drawn = _weights.draw_globally(spec) if weights is None else weights
        session_options = options.get("session_options") or {}
        if isinstance(spec, RecurrentSpec):
            return OnnxRuntimeModule(spec, dtype, drawn, device, session_options)
        return OnnxRuntimeModel(spec, dtype, drawn, device, session_options)

    def read(self, module: Any) -> tuple[Spec, dict[str, Array]] | None:
        if not isinstance(module, (OnnxRuntimeModel, OnnxRuntimeModule)):
            return None
        return module.spec, dict(module.weights)

    def describe(self, module: Any) -> tuple[Spec, str] | None:
        if not isinstance(module, (OnnxRuntimeModel, OnnxRuntimeModule)):
            return None
        return module.spec, module.dtype

    def write(self, module: Any, weights: Arrays) -> None:
        module.replace(weights)
