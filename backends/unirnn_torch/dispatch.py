"""How a call is computed: what each kernel supports, and which of them runs a call.

A module is built with a kernel: ``"compiled"``, which are the C kernels of `unirnn.kernels` (not `torch.compile`),
``"native"``, which is torch's own layer, or ``"reference"``; or with ``"auto"``, which chooses at each call. `route`
decides, in this order:

1. ``"compiled"``, asked for by name, is taken or refused with the reason (`unsupported_reason`). ``"reference"`` is
   always taken. ``"native"`` is taken as in 3 and 4, and a layer that torch lacks is refused when it is built.
2. On a CPU, ``"auto"`` takes the C kernels, which are faster than torch's own layers. In a graph (`torch.compile`,
   `torch.export`) each layer is one operator, with any T and B, where torch's own layers would be unrolled. On a GPU,
   and on a CPU without the C kernels, the operator runs torch's own layer.
3. Otherwise torch's own layer runs the call. Without lengths this is one call; with lengths there are two ways, and
   `valid_steps_are_faster` chooses. With resets it runs over the valid steps only.
4. If torch has no such layer, or its layer can't run the call, the reference computes it step by step: under
   `torch.func.vmap`, with resets under a transform or forward-mode gradients, and with resets in an export to ONNX,
   whatever the kernel is.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from enum import Enum
from functools import cache
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from unirnn import RecurrentSpec, kernels
from unirnn.contract.limits import ALL_KINDS, Kernel, Support, check_kernel
from unirnn.devices import short_name
from unirnn.errors import LimitError
from unirnn.kernels import library
from unirnn.specs import Spec

__all__ = [
    "DEVICE_TYPES",
    "KERNELS",
    "NO_LIBRARY",
    "SUPPORT",
    "WIDE",
    "Route",
    "check_build",
    "describe",
    "has_native",
    "hides_values",
    "is_batched",
    "is_exporting_to_onnx",
    "is_jit_tracing",
    "is_plain",
    "is_projection_for_onnx",
    "refuse_script",
    "route",
    "unsupported_reason",
    "unwrapped",
    "valid_steps_are_faster",
]

# ---- the tables ----------------------------------------------------------------------------------

DEVICE_TYPES: dict[Literal["cpu", "gpu", "ascend"], str] = {"cpu": "cpu", "gpu": "cuda", "ascend": "npu"}
"""torch's names of unirnn's kinds of device; an Ascend is an 'npu' of the package torch_npu."""
_KINDS: dict[str, str] = {type_: kind for kind, type_ in DEVICE_TYPES.items()}

KERNELS = {
    "auto": Support("torch", kinds=ALL_KINDS, exports=("torch.export", "ONNX")),
    # Its second derivatives are those of the reference.
    "compiled": replace(
        kernels.SUPPORT["compiled"],
        dtypes=("float32", "float64"),
        derivatives=2,
    ),
    "native": Support("torch", lacks=("reset_after", "gate_activation")),
    "reference": Support("the reference"),
}
"""What each kernel can compute at all, by the names that the argument ``kernel`` of `build` may have."""
SUPPORT = {
    **KERNELS,
    "native operator": Support(
        "the operator for graphs",
        lacks=("reset_after", "gate_activation"),
        devices=("cpu", "gpu"),
    ),
}
"""The same, and our operator that runs torch's own layer (`Route.NATIVE_OPERATORS`)."""

NO_LIBRARY = library.why_not()
"""Why the C kernels are missing on this machine, in a sentence; None if they are there."""


# ---- what surrounds a call -----------------------------------------------------------------------

# torch has no public way to ask whether torch.func transforms a call.
_functorch: Any = getattr(torch._C, "_functorch", None)
_functorch_level = getattr(_functorch, "maybe_current_level", None)


def is_jit_tracing() -> bool:
    """Whether `torch.jit.trace` is at work."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def hides_values() -> bool:
    """Whether the values of tensors can't be read, or must not be: in a graph, a trace, or a transform."""
    return torch.compiler.is_compiling() or is_jit_tracing() or _is_transformed()


def is_batched(*tensors: Any) -> bool:
    """Whether `torch.func.vmap` runs over any of the tensors, which then has several values for each element."""
    if torch.compiler.is_compiling():  # a graph can't ask
        return False
    return _is_transformed() and any(_is_batched(t) for t in tensors if isinstance(t, Tensor))


def _is_batched(tensor: Tensor) -> bool:
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False


def unwrapped(tensor: Tensor) -> Tensor:
    """The tensor inside the wrappers of `torch.func`; if it is batched, the whole batch."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        tensor = _functorch.get_unwrapped(tensor)
    return tensor


def refuse_script(module: torch.nn.Module) -> NoReturn:
    """What the classes of modules have as ``__prepare_scriptable__``, which `torch.jit.script` calls first."""
    raise LimitError(
        f"torch.jit.script: given a module of unirnn, {type(module).__name__}, which torch can't compile in this way; "
        "use torch.export.export, or torch.jit.trace with seq_length as a tensor among the inputs; torch.jit.script "
        "takes a model that calls what was traced"
    )


def is_exporting_to_onnx() -> bool:
    """Whether `torch.onnx.export` is at work."""
    # Importing torch.onnx takes longer than any other part of a first call, and an exporter has imported it already.
    is_imported = torch.compiler.is_compiling() or "torch.onnx" in sys.modules
    return is_imported and torch.onnx.is_in_onnx_export()


def is_projection_for_onnx(spec: RecurrentSpec) -> bool:
    """Whether an LSTM with a projection is being exported, which `unirnn_torch.exporting` turns into one without."""
    return spec.output_size != spec.hidden_size and is_exporting_to_onnx()


def is_plain() -> bool:
    """Whether the C kernels support all that surrounds the call, so no autocast and no transform."""
    return _unsupported_mode("compiled") is None


def _is_transformed() -> bool:
    return _functorch_level is not None and _functorch_level() is not None


def _unsupported_mode(kernel: str) -> str | None:
    """What surrounds the call and is not supported by one of our operators; None if there is nothing."""
    by_c_kernels = kernel == "compiled"
    if by_c_kernels and torch.is_autocast_enabled("cpu"):
        return "autocast"
    if is_exporting_to_onnx() and not hasattr(torch.onnx, "ops"):
        return "torch.onnx.export before torch 2.8"
    if _is_transformed():
        return "transforms of torch.func"
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return "forward-mode gradients"
    if by_c_kernels and not torch.compiler.is_compiling() and is_jit_tracing():
        return "torch.jit.trace"
    return None


# ---- which kernel supports what ------------------------------------------------------------------


def unsupported_reason(
    kernel: str, spec: Spec, device: str | None = None, dtype: str | None = None, *, now: bool = False
) -> str | None:
    """Why a kernel can't compute a layer, or None if it can.

    Parameters
    ----------
    kernel
        A key of `SUPPORT`.
    spec
        The layer.
    device
        ``"cpu"``, ``"gpu"`` or ``"ascend"``, or torch's name of another type; None if any will do.
    dtype
        The name of a dtype; None if any will do.
    now
        Whether a call is being made: what surrounds it, such as autocast or a transform, counts as well.
    """
    if kernel == "compiled" and NO_LIBRARY is not None:
        return f"the compiled kernels are missing: {NO_LIBRARY}"
    # While a graph is captured, the cache can't be used.
    find = _unsupported_spec.__wrapped__ if torch.compiler.is_compiling() else _unsupported_spec
    reason = find(kernel, spec, device, dtype)
    if reason is None and now and kernel in ("compiled", "native operator"):
        mode = _unsupported_mode(kernel)
        reason = mode and f"{SUPPORT[kernel].who} does not support {mode}"
    return reason


@cache
def _unsupported_spec(kernel: str, spec: Spec, device: str | None, dtype: str | None) -> str | None:
    return SUPPORT[kernel].unsupported_reason(spec, device, dtype)


@cache
def has_native(spec: RecurrentSpec) -> bool:
    """Whether torch has such layers."""
    return unsupported_reason("native", spec) is None


def check_build(kernel: str, spec: Spec, device: str, dtype: str) -> None:
    """Refuse a kernel that can run no call of a module; raises what `unirnn.contract.limits.check_kernel` does.

    The kernel computes the recurrent layers of a model. A model without any accepts only ``"auto"``.
    """
    layers: list[Spec] = [leaf for leaf in spec.leaves().values() if isinstance(leaf, RecurrentSpec)]
    for layer in layers or [spec]:
        check_kernel(kernel, KERNELS, layer, device, dtype)
        reason = unsupported_reason(kernel, layer, device, dtype)
        if reason is not None:
            raise LimitError(f"kernel: given {kernel!r}, but {reason}; build with 'auto'")


def describe(spec: RecurrentSpec, device: str, dtype: str) -> Iterator[Kernel]:
    """The kernels that a spec has there, and when ``"auto"`` takes which."""
    otherwise, but = ("native", ", except under torch.func.vmap") if has_native(spec) else ("reference", "")
    if unsupported_reason("compiled", spec, device, dtype) is None:
        yield Kernel(
            "compiled", "in all cases, except under autocast, torch.func and torch.jit.trace, and in forward mode"
        )
        yield Kernel(otherwise, f"in all other cases{but}")
    elif device == "cpu" and NO_LIBRARY is not None:
        yield Kernel(otherwise, f"in all cases, since the compiled kernels are missing: {NO_LIBRARY}{but}")
    else:
        yield Kernel(otherwise, "in all cases" + (but or ", step by step"))
    if otherwise == "native":
        yield Kernel("reference", "under torch.func.vmap")


# ---- the decision --------------------------------------------------------------------------------


WIDE = {"RNN": 512, "GRU": 256, "LSTM": 256}
"""The smallest H at which torch's own layer, on a GPU and with lengths, runs over the valid steps only; measured on an
H100."""


class Route(Enum):
    """How a call is computed; `unirnn_torch.layers` lists the functions that each runs through."""

    DENSE = "dense"
    """One call of torch's own layer, for the whole stack."""
    VALID_STEPS = "valid steps"
    """The same, in its packed form, over the valid steps only."""
    DIRECTIONS = "directions"
    """torch's own layer once for each layer and direction, over dense steps; around it, padding is selected away."""
    REFERENCE = "reference"
    """The reference, step by step."""

    C_KERNELS = "C kernels"
    """The C kernels once for each layer and direction; in a graph, as operators."""
    NATIVE_OPERATORS = "native operators"
    """torch's own layer within an operator, for each layer and direction: in graphs on a GPU or without the C kernels,
    and with resets where torch's packed form can't run."""

    @property
    def by_operators(self) -> bool:
        """Whether it runs each layer and direction by itself, over lengths and resets as they are given."""
        return self in _SUPPORT_OF


_SUPPORT_OF = {Route.C_KERNELS: "compiled", Route.NATIVE_OPERATORS: "native operator"}
"""The routes that have operators for graphs, and the row of `SUPPORT` that each needs."""


def route(
    kernel: str,
    spec: RecurrentSpec,
    x: Tensor,
    lengths: NDArray[np.int64] | Tensor | None,
    resets: NDArray[np.bool_] | Tensor | None,
    *,
    native_can: bool,
    needs_grad: bool,
) -> Route:
    """Decide how a call is computed.

    Parameters
    ----------
    kernel
        One of `KERNELS`, with which the module was built.
    spec
        The layers.
    x
        `(T, B, I)`, up to the longest sequence.
    lengths
        `(B,)`, on the host, or in a graph a tensor; None if every step is valid.
    resets
        `(T, B)`, likewise; None if no sequence begins anew.
    native_can
        Whether torch's own layer can compute the call: torch has such a layer (`has_native`), and `torch.func.vmap`
        does not run over the call (`is_batched`).
    needs_grad
        Whether a backward pass may follow.

    Raises
    ------
    LimitError
        If the kernel was asked for by name, and does not support the call.
    """
    if resets is not None and is_exporting_to_onnx():
        return Route.REFERENCE  # ONNX's own layers take no resets
    wanted = _automatic(x) if kernel == "auto" else Route.C_KERNELS if kernel == "compiled" else None
    if wanted is not None:
        reason = _reason_now(_SUPPORT_OF[wanted], spec, x)
        if reason is None:
            return wanted
        if kernel != "auto":
            raise LimitError(f"kernel: built with {kernel!r}, but {reason}; build with 'auto'")
    if kernel == "reference" or not native_can:
        return Route.REFERENCE
    if is_projection_for_onnx(spec):
        return Route.NATIVE_OPERATORS if torch.compiler.is_compiling() else Route.DIRECTIONS
    if resets is not None:
        return _route_with_resets(spec, x, lengths, resets)
    if lengths is None:
        return Route.DENSE
    # The valid steps of a traced call can't be counted, or would become constants of its graph.
    can_count = type(x) is Tensor and not is_jit_tracing()
    if isinstance(lengths, np.ndarray) and can_count and lengths.any():
        return (
            Route.VALID_STEPS if valid_steps_are_faster(spec, x, lengths, needs_grad=needs_grad) else Route.DIRECTIONS
        )
    return Route.DIRECTIONS


def _route_with_resets(
    spec: RecurrentSpec,
    x: Tensor,
    lengths: NDArray[np.int64] | Tensor | None,
    resets: NDArray[np.bool_] | Tensor,
) -> Route:
    """How torch's own layer computes sequences that begin anew: in its packed form, or within the operator."""
    on_host = isinstance(resets, np.ndarray) and not isinstance(lengths, Tensor)
    if _reason_now("native operator", spec, x) is None:
        # Without a valid step there is nothing to pack. For bfloat16, see `valid_steps_are_faster`; on a CPU, autocast
        # does not reach the packed form.
        has_steps = lengths is None or (isinstance(lengths, np.ndarray) and lengths.any())
        narrow = x.dtype == torch.bfloat16 or (x.is_cpu and torch.is_autocast_enabled("cpu"))
        return Route.VALID_STEPS if on_host and has_steps and not narrow else Route.NATIVE_OPERATORS
    return Route.REFERENCE


def _automatic(x: Tensor) -> Route | None:
    """The operators that ``"auto"`` prefers for a call; None if it prefers none."""
    if x.is_cpu and NO_LIBRARY is None:
        return Route.C_KERNELS
    return Route.NATIVE_OPERATORS if torch.compiler.is_compiling() else None


def _reason_now(kernel: str, spec: RecurrentSpec, x: Tensor) -> str | None:
    device = "cpu" if x.is_cpu else _KINDS.get(x.device.type, x.device.type)
    return unsupported_reason(kernel, spec, device, short_name(x.dtype), now=True)


def valid_steps_are_faster(spec: RecurrentSpec, x: Tensor, lengths: NDArray[np.int64], *, needs_grad: bool) -> bool:
    """Whether torch's own layer is faster over the valid steps only than over all of them.

    On a CPU its backward pass over valid steps is slow. On a GPU it has kernels for dense steps that keep the weights
    on the chip, if they are not too wide.
    """
    # In bfloat16 torch does not keep a stack's weights in one piece, and warns of that at each call.
    if x.dtype == torch.bfloat16 or _reason_now("native operator", spec, x) is not None:
        return False
    if x.is_cuda:
        return spec.hidden_size >= WIDE[spec.kind]
    if needs_grad or x.dtype == torch.float16 or torch.is_autocast_enabled("cpu"):
        return False
    # In float32 an LSTM over dense steps is oneDNN's, which does not know the packed form.
    most = 0.6 if spec.kind == "LSTM" and x.dtype == torch.float32 else 1.0
    return int(lengths.sum()) <= most * len(lengths) * x.shape[0]
