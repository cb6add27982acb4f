"""The ``mindspore`` backend's own answers to `unirnn.contract.backend.Backend`."""

import functools
import logging
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import mindspore as ms
from numpy.typing import NDArray

from unirnn import Device, Limit, RecurrentSpec, kernels
from unirnn.contract import weights as _weights
from unirnn.contract.backend import Arrays, Backend, leaves, with_leaves
from unirnn.contract.limits import Kernel, Support, check_kernel
from unirnn.errors import DeviceError, LimitError
from unirnn_mindspore.checkpoints import read_checkpoint
from unirnn_mindspore.module import Recurrent
from unirnn_mindspore.native import by_steps

__all__ = ["MindSporeBackend"]

Array = NDArray[Any]

_TARGETS: dict[Literal["cpu", "gpu", "ascend"], str] = {"cpu": "CPU", "gpu": "GPU", "ascend": "Ascend"}

_KERNELS = ("auto", "native", "packed", "numba")
"""MindSpore's own operators, fused where it has them, or on the CPU the core's kernels, by NumPy or by numba."""


def _native_lack(spec: RecurrentSpec, dtype: str) -> str | None:
    """What MindSpore's own operators can't do on the CPU."""
    if spec.kind == "LSTM" and dtype != "float32":
        return f"MindSpore's LSTM on the CPU is right in float32 only, not in {dtype}"
    return None


@functools.cache
def _hint_at_blocking() -> None:
    """Log, once, what costs more in PyNative mode on a CPU than any layer."""
    is_graph = ms.get_context("mode") == ms.GRAPH_MODE
    # There is no public way to ask.
    runtime = getattr(getattr(ms, "_c_expression", None), "RuntimeConf", None)
    is_blocking = getattr(runtime and runtime.get_instance(), "is_launch_blocking", None)
    if not is_graph and is_blocking is not None and not is_blocking():
        logging.getLogger("unirnn").warning(
            "mindspore runs asynchronously: on a CPU its worker threads take the time that the work needs; call "
            "mindspore.runtime.launch_blocking() once, at the start"
        )


class MindSporeBackend(Backend):
    """Builds `Recurrent`."""

    name = "mindspore"
    support = Support("mindspore", lacks=("proj_size",), dtypes=("float16", "float32", "float64"))
    options = ("kernel",)

    def version(self) -> str:
        return f"mindspore {ms.__version__}"

    def devices(self) -> tuple[Device, ...]:
        current = self.default_device()
        if current.kind == "cpu":
            return (current,)
        # What else there may be is not asked for: MindSpore answers with warnings, and runs on one target at a time.
        count = ms.hal.device_count(_TARGETS[current.kind])
        return (Device("cpu"), *(Device(current.kind, n) for n in range(count)))

    def default_device(self) -> Device:
        current = ms.get_context("device_target")
        return Device(next(kind for kind, target in _TARGETS.items() if target == current))

    def limits(self, spec: RecurrentSpec, device: Device, dtype: str) -> Iterable[Limit]:
        if device.kind == "cpu":
            if dtype == "float16":
                yield Limit("float16 is computed in float32, and rounded at the end", refuses=False)
            yield Limit(
                "on the CPU there are no second derivatives; a MindIR file has MindSpore's own operators: RNN and GRU "
                "step by step, for a fixed T, and LSTM in float32",
                refuses=False,
            )
            if sys.platform != "linux":
                yield Limit(f"MindSpore's custom operators, which run the kernels, need Linux, given {sys.platform}")
            return
        if dtype == "float64":
            yield Limit(f"the fused operators on {device.kind} have no float64; float32 and float16 are there")
        if by_steps(spec, _TARGETS[device.kind]):
            variant = " of reset_after=False" if spec.kind == "GRU" else ""
            yield Limit(f"{device.kind} has no fused {spec.kind}{variant}: it runs step by step", refuses=False)
            return
        if device.kind == "ascend" and spec.kind == "GRU" and spec.hidden_size % 16:
            yield Limit(
                f"Ascend's GRU takes hidden sizes that are multiples of 16, given {spec.hidden_size}; "
                f"{-spec.hidden_size // 16 * -16} is the next"
            )
        if device.kind == "ascend":
            yield Limit(f"Ascend's {spec.kind} is computed in float16", refuses=False)

    def kernels(self, spec: RecurrentSpec, device: Device, dtype: str) -> Iterable[Kernel]:
        if device.kind != "cpu":
            yield Kernel("native", "always")
            return
        by_itself = "always, but in an exported file"
        if kernels.has_numba(spec):
            yield Kernel("numba", by_itself)
            by_itself = "by name only"
        yield Kernel("packed", by_itself)
        if _native_lack(spec, dtype) is None:
            yield Kernel("native", "in an exported file")

    def build(
        self,
        spec: RecurrentSpec,
        *,
        device: Device,
        dtype: str,
        weights: Arrays | None,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> Recurrent:
        kernel = options.get("kernel", "auto")
        check_kernel(kernel, _KERNELS)
        why_not = None
        if kernel in ("packed", "numba") and device.kind != "cpu":
            why_not = f"the packed kernels run on cpu only, not on {device.kind}"
        elif kernel == "numba":
            kernels.check_numba(spec)
        elif kernel == "native" and device.kind == "cpu":
            why_not = _native_lack(spec, dtype)
        if why_not is not None:
            raise LimitError(f"kernel: given {kernel!r}, but {why_not}; 'auto' takes what there is")
        target, current = _TARGETS[device.kind], ms.get_context("device_target")
        if target != current or device.index not in (None, ms.get_context("device_id")):
            which = f"{target!r}" if device.index is None else f"{target!r}, {device.index}"
            raise DeviceError(
                f"device: given {str(device)!r}, but MindSpore runs on {current} {ms.get_context('device_id')}; "
                f"call mindspore.set_device({which}) before anything is built"
            )
        if target == "CPU":
            _hint_at_blocking()
        drawn = _weights.draw_globally(spec) if weights is None else weights
        return Recurrent(spec, drawn, getattr(ms, dtype), target, kernel)

    def read(self, module: Any) -> tuple[RecurrentSpec, dict[str, Array]] | None:
        spec = module.spec if isinstance(module, Recurrent) else _native_spec(module)
        if spec is None:
            return None
        parameters = _parameters(module)
        return spec, {name: parameters[name].asnumpy() for name in spec.weight_shapes()}

    def write(self, module: Any, weights: Arrays) -> None:
        parameters = _parameters(module)
        for name, array in weights.items():
            # Not by set_data, which a function that ms.jit has compiled does not see.
            ms.ops.assign(parameters[name], ms.Tensor(array, parameters[name].dtype))

    def read_file(self, path: str) -> dict[str, Array]:
        return read_checkpoint(path)

    def from_numpy(self, array: Array, module: Any) -> ms.Tensor:
        return ms.Tensor(array)

    def to_numpy(self, array: Any) -> Array:
        result: Array = array.asnumpy()
        return result

    def detach(self, array: Any) -> Any | None:
        return ms.ops.stop_gradient(array) if isinstance(array, ms.Tensor) else None

    def gradients(self, module: Any, arguments: Mapping[str, Any], cotangents: Sequence[Array]) -> dict[str, Array]:
        given = leaves(arguments)
        floats = {name: array for name, array in given.items() if array.dtype.kind == "f"}
        ds = [ms.Tensor(d) for d in cotangents]

        def weighted(*tensors: ms.Tensor) -> ms.Tensor:
            moved = {**given, **dict(zip(floats, tensors, strict=True))}
            results = leaves({"results": module(**with_leaves(arguments, moved))})
            return sum((r * d).sum() for r, d in zip(results.values(), ds, strict=True))

        parameters = module.trainable_params()
        positions = tuple(range(len(floats)))
        of_arrays, of_weights = ms.grad(weighted, positions, parameters)(*map(ms.Tensor, floats.values()))
        names = [*floats, *(p.name.rpartition(".")[2] for p in parameters)]
        return {name: g.asnumpy() for name, g in zip(names, (*of_arrays, *of_weights), strict=True)}


def _parameters(module: Any) -> dict[str, Any]:
    """By torch's names, whatever a cell around the module has put before the parameters' own."""
    return {p.name.rpartition(".")[2]: p for p in module.get_parameters()}


def _native_spec(module: Any) -> RecurrentSpec | None:
    """The spec of one of MindSpore's own layers, which keep some of their constructor's arguments."""
    kinds = {"RNN": ms.nn.RNN, "GRU": ms.nn.GRU, "LSTM": ms.nn.LSTM}
    cell = next((cell for cell, kind in kinds.items() if isinstance(module, kind)), None)
    if cell is None:
        return None
    parameters = _parameters(module)
    arguments: dict[str, Any] = {
        "kind": cell,
        "input_size": parameters["weight_ih_l0"].shape[1],
        "bias": "bias_ih_l0" in parameters,
        **{name: getattr(module, name) for name in ("hidden_size", "num_layers", "batch_first", "dropout")},
        "bidirectional": module.bidirectional,
    }
    if cell == "RNN":
        arguments["nonlinearity"] = {"_DynamicRNNTanh": "tanh", "_DynamicRNNRelu": "relu"}[type(module.rnn).__name__]
    return RecurrentSpec.from_dict(arguments)
