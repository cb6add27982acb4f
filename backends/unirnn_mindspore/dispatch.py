"""Which implementation runs a layer on which device, and what each of them supports.

On a CPU, inference and training run on the core's kernels: the compiled ones, or, in PyNative mode only, the fallback.
A file can't hold them, so ``mindspore.export`` writes MindSpore's own operators. These also run on a GPU and on Ascend,
in modules built with ``kernel="native"``, and in graphs where there are no compiled kernels. If MindSpore has no fused
operator for a layer (`FUSED`), small operators compute it step by step.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Literal

import mindspore as ms

from unirnn import RecurrentSpec, Spec, kernels
from unirnn.contract.limits import ALL_KINDS, ROUNDED_FLOAT16, Kernel, Limit, Support, check_kernel
from unirnn.errors import ArgumentError, LimitError

__all__ = [
    "FUSED",
    "MODELS",
    "SUPPORT",
    "DeviceKind",
    "Route",
    "check_build",
    "describe",
    "is_exporting",
    "is_fused",
    "limits",
    "route",
]

DeviceKind = Literal["cpu", "gpu", "ascend"]
Route = Literal["compiled", "fallback", "fused", "steps"]

_NATIVE = ("float16", "float32")
_UNCOMMON = ("reset_after", "proj_size", "gate_activation")  # a layer in reverse is the same operator
_ALL = replace(
    kernels.SUPPORT["compiled"],
    who="mindspore",
    devices=("cpu", "gpu", "ascend"),
    exports=("MindIR",),
)

SUPPORT = {"auto": _ALL, "native": _ALL, **kernels.SUPPORT}
"""What the recurrent layers can be, by the names that ``kernel`` may have."""

MODELS = replace(_ALL, kinds=ALL_KINDS)
"""What the backend builds."""

_PLACES = {"gpu": "a GPU", "ascend": "Ascend"}
"""The devices in a sentence."""

FUSED = {
    ("GRU", "gpu"): Support("CudnnGRU", lacks=_UNCOMMON, dtypes=_NATIVE),
    ("LSTM", "gpu"): Support("MindSpore's LSTM", lacks=_UNCOMMON, dtypes=_NATIVE),
    ("GRU", "ascend"): Support("DynamicGRUV2", lacks=_UNCOMMON, dtypes=_NATIVE),
    ("LSTM", "ascend"): Support("DynamicRNN", lacks=_UNCOMMON, dtypes=_NATIVE),
    ("LSTM", "cpu"): Support("MindSpore's LSTM on the CPU", lacks=_UNCOMMON, dtypes=("float32",)),
}
"""MindSpore's fused operators by kind of layer and device; see `unirnn_mindspore.native`. The CPU's ``GRUV2`` is
missing, since it computes another GRU."""


def is_fused(spec: RecurrentSpec, device: DeviceKind) -> bool:
    """Whether a fused operator computes a layer on a device, rather than small operators step by step."""
    row = FUSED.get((spec.kind, device))
    return row is not None and row.unsupported_reason(spec) is None


def is_exporting() -> bool:
    """Whether MindSpore compiles for `mindspore.export`.

    There is no way to ask but for the level of syntax, which only an export makes strict.
    """
    return bool(ms.get_context("jit_syntax_level") == ms.STRICT)


def route(spec: RecurrentSpec, device: DeviceKind, kernel: str, dtype: str, *, in_graph: bool) -> Route:
    """The implementation that runs a call, or that MindSpore compiles, at this moment.

    Parameters
    ----------
    spec
        The layer.
    device
        The device of the module.
    kernel
        As the module was built.
    dtype
        The dtype that the layer computes in.
    in_graph
        Whether MindSpore compiles the call.

    Raises
    ------
    LimitError
        If what the module was built for can't be part of a graph or of an exported file.
    """
    native: Route = "fused" if is_fused(spec, device) else "steps"
    if device != "cpu" or kernel == "native":
        return native
    if in_graph and is_exporting():
        if not SUPPORT[kernel].exports:
            raise LimitError(
                f"kernel: built with {kernel!r}, which can't be part of an exported file; build with 'auto' or 'native'"
            )
        return native
    if kernel == "compiled" or (kernel == "auto" and kernels.is_compiled()):
        return "compiled"
    if not in_graph:
        return "fallback"
    if kernel == "fallback":
        raise LimitError("kernel: built with 'fallback', which can't be part of a graph; build with 'auto' or 'native'")
    if native == "fused" and dtype == "float64":
        raise LimitError(
            "graph mode: given float64, but without unirnn's compiled kernels a graph has MindSpore's own LSTM, which "
            "computes in float32; build in float32, or call it in PyNative mode"
        )
    return native


def check_build(kernel: str, spec: Spec, device: DeviceKind, dtype: str) -> None:
    """Refuse a kernel that can't run the recurrent layers; raises what `unirnn.contract.limits.check_kernel` does."""
    if kernel not in SUPPORT:
        raise ArgumentError(f"kernel: given {kernel!r}, expected one of {', '.join(map(repr, SUPPORT))}")
    if kernel == "compiled":
        kernels.check_compiled()
    for leaf in spec.leaves().values():
        if not isinstance(leaf, RecurrentSpec):
            continue
        check_kernel(kernel, SUPPORT, leaf, device, dtype)
        if kernel == "native" and is_fused(leaf, device):
            reason = FUSED[leaf.kind, device].unsupported_reason(leaf, device, dtype)
            if reason is not None:
                raise LimitError(f"kernel: given {kernel!r}, but {reason}; build with 'auto'")


def limits(spec: Spec, device: DeviceKind, dtype: str) -> Iterator[Limit]:
    """What a layer can't do on a device, or does differently there; see `unirnn.contract.backend.Backend.limits`."""
    if not isinstance(spec, RecurrentSpec):
        return
    if device == "cpu":
        if dtype == "float16":
            yield ROUNDED_FLOAT16
        yield Limit("there are no second derivatives on a CPU", refuses=False)
        yield Limit(
            (
                "an exported file has MindSpore's own LSTM, which computes in float32, and runs once for each step if "
                "there are resets"
                if is_fused(spec, device)
                else "an exported file computes the layer step by step, for one number of time steps only"
            ),
            refuses=False,
        )
        if sys.platform != "linux":
            yield Limit(f"MindSpore's custom operators, which run the kernels, need Linux, given {sys.platform}")
        return
    if dtype not in _NATIVE:
        yield Limit(f"MindSpore's operators for {_PLACES[device]} have no {dtype}; build in float32 or float16")
    if not is_fused(spec, device):
        variant = "".join(f" with {name}={value!r}" for name, value in spec.uncommon().items() if name in _UNCOMMON)
        yield Limit(
            f"MindSpore has no fused {spec.kind}{variant} for {_PLACES[device]}, so the layer runs step by step",
            refuses=False,
        )
        return
    if device == "ascend" and spec.kind == "GRU" and spec.hidden_size % 16:
        yield Limit(
            f"hidden_size: given {spec.hidden_size}, but a GRU on Ascend needs a multiple of 16; the next is "
            f"{-spec.hidden_size // 16 * -16}"
        )
    if device == "ascend":
        yield Limit(f"{spec.kind} layers are computed in float16 on Ascend", refuses=False)
    fused = FUSED[spec.kind, device].who
    yield Limit(f"in a graph, a call with resets runs {fused} once for each step", refuses=False)


def describe(spec: RecurrentSpec, device: DeviceKind, dtype: str) -> Iterator[Kernel]:
    """The kernels that a spec has on a device, and when ``auto`` takes which."""
    if device != "cpu":
        yield Kernel("native", "in all cases")
        return
    has_native = not is_fused(spec, device) or FUSED[spec.kind, device].unsupported_reason(spec, device, dtype) is None
    if kernels.is_compiled():
        yield Kernel("compiled", "in all cases, except in an exported file")
        yield Kernel("fallback", None)
        native_when = "in an exported file"
    else:
        yield Kernel("fallback", "in PyNative mode")
        native_when = "in a graph or an exported file"
    if has_native:
        yield Kernel("native", native_when)
