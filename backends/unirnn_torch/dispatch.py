"""How a call is computed: what each kernel supports, and which of them is the fastest.

A module is built with a kernel: ``"native"``, ``"packed"``, ``"numba"`` or ``"reference"``; or with ``"auto"``, which
chooses at each call. `route` decides, in this order:

1. A kernel that was asked for by name is taken, or refused with the reason (`unsupported_reason`).
2. Otherwise, on a CPU, `TABLE` says which kernel is the fastest. In a graph (`torch.compile`, `torch.export`) each
   layer is one operator, with any T and B, where torch's own layers would be unrolled. On a CPU that operator asks the
   table when it runs; on a GPU it is torch's own computation.
3. If that kernel does not support the call, torch's own layer runs it. Without lengths this is one call; with lengths
   there are two ways, and `rows_are_faster` chooses.
4. If torch has no such layer, the reference computes it step by step.

The time of the packed kernel is proportional to the number of valid steps. Its backward pass is faster than torch's,
except for a dense LSTM in float32, for which torch uses oneDNN. torch's own layer has less to do before the first step.
With numba, a step costs next to nothing, but products are slower. Without numba, a call without gradients and without
lengths is always native: neither kernel is clearly faster there, and native gives the same bits as torch's own layer.
"""

from collections.abc import Iterator
from enum import Enum
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

from unirnn import RecurrentSpec
from unirnn import kernels as core
from unirnn.contract.limits import Kernel, Support, check_kernel
from unirnn.devices import short_name
from unirnn.errors import LimitError
from unirnn.kernels import threads

__all__ = [
    "DEVICE_TYPES",
    "KERNELS",
    "SUPPORT",
    "TABLE",
    "WIDE",
    "Route",
    "Row",
    "check_build",
    "describe",
    "fastest",
    "has_native",
    "is_jit_tracing",
    "num_parts",
    "route",
    "rows_are_faster",
    "unsupported_reason",
]

# ---- what each kernel supports -------------------------------------------------------------------

DEVICE_TYPES: dict[Literal["cpu", "gpu", "ascend"], str] = {"cpu": "cpu", "gpu": "cuda", "ascend": "npu"}
"""torch's names of unirnn's kinds of device; an Ascend is an 'npu' of the package torch_npu."""
_KINDS: dict[str, str] = {type_: kind for kind, type_ in DEVICE_TYPES.items()}

_UNCOMMON = ("proj_size", "reset_after")
_DTYPES = ("float32", "float64")
KERNELS = {
    "auto": Support("torch"),
    "native": Support("torch", lacks=("reset_after",)),
    "packed": Support("the packed kernel", lacks=_UNCOMMON, devices=("cpu",), dtypes=_DTYPES),
    "numba": Support("the numba kernel", lacks=_UNCOMMON, devices=("cpu",), dtypes=_DTYPES),
    "reference": Support("the reference"),
}
"""What each kernel can compute at all, by the names that the argument ``kernel`` of `build` may have."""
SUPPORT = {
    **KERNELS,
    "native operator": Support("the operator for graphs", lacks=_UNCOMMON, devices=("gpu",)),
}
"""The same, and the operator that ``"auto"`` takes in a graph on a GPU."""

# torch has no public way to ask whether torch.func transforms a call.
_functorch_level = getattr(getattr(torch._C, "_functorch", None), "maybe_current_level", None)


def is_jit_tracing() -> bool:
    """Whether `torch.jit.trace` is at work."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def unsupported_reason(
    kernel: str, spec: RecurrentSpec, device: str | None = None, dtype: str | None = None, *, now: bool = False
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
    reason = SUPPORT[kernel].unsupported_reason(spec, device, dtype)
    if reason is None and now and kernel not in ("native", "reference"):
        mode = _unsupported_mode(on_cpu=kernel != "native operator")
        reason = mode and f"{SUPPORT[kernel].who} does not support {mode}"
    return reason


def _unsupported_mode(*, on_cpu: bool) -> str | None:
    """What is at work around a call that our operators can't take part in."""
    if on_cpu and torch.is_autocast_enabled("cpu"):
        return "autocast"
    if not hasattr(torch.onnx, "ops") and torch.onnx.is_in_onnx_export():
        return "torch.onnx.export before torch 2.8"
    if _functorch_level is not None and _functorch_level() is not None:
        return "transforms of torch.func"
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return "forward-mode gradients"
    if on_cpu and not torch.compiler.is_compiling() and is_jit_tracing():
        return "torch.jit.trace"
    return None


@cache
def has_native(spec: RecurrentSpec) -> bool:
    """Whether torch has such layers."""
    return unsupported_reason("native", spec) is None


def check_build(kernel: str, spec: RecurrentSpec, device: str, dtype: str) -> None:
    """Refuse a kernel that can run no call of a module.

    Raises
    ------
    ArgumentError
        If there is no such kernel.
    LimitError
        If it can't run this spec, on this kind of device, in this dtype.
    """
    check_kernel(kernel, KERNELS, spec, device, dtype)
    if kernel == "numba":
        core.check_numba()


# ---- which kernel is the fastest -----------------------------------------------------------------


class Row(NamedTuple):
    """A case in which a kernel of our own is the fastest one on a CPU."""

    cell: str
    gradients: bool
    """Whether a backward pass may follow."""
    lengths: bool
    """Whether the call has lengths; if they are all equal, it has none."""
    steps: int
    """The least T, up to the longest sequence."""
    width: int = 0
    """The least B*H; empty sequences do not count."""
    fill: float = 1.0
    """The largest share of valid steps."""
    dtypes: tuple[str, ...] = _DTYPES
    kernel: str = "packed"
    widest: int | None = None
    """The largest B*H for each thread; several threads share a large call."""

    def __str__(self) -> str:
        bounds = [f"T >= {self.steps}"]
        if self.width:
            bounds.append(f"B*H >= {self.width}")
        if self.widest is not None:
            bounds.append(f"B*H <= {self.widest} a thread")
        if self.fill < 1:
            bounds.append(f"up to {self.fill:.0%} valid")
        return f"{'training' if self.gradients else 'inference'}{' with lengths' * self.lengths} ({', '.join(bounds)})"


# Measured with torch 2.13 on an Intel Xeon and an AMD EPYC, with one thread and with two. At a row's bounds, its kernel
# and torch's own layer take about the same time. In float32, torch's LSTM is oneDNN's. The first matching row wins;
# rows of numba count where numba is installed.
TABLE: tuple[Row, ...] = (
    *(
        row._replace(kernel="numba", dtypes=dtypes)
        for cell, steps, dtypes in (("RNN", 32, _DTYPES), ("GRU", 16, _DTYPES), ("LSTM", 16, ("float64",)))
        for row in (
            Row(cell, gradients=True, lengths=False, steps=steps, widest=8192),
            Row(cell, gradients=True, lengths=True, steps=12, widest=8192),
            Row(cell, gradients=True, lengths=True, steps=12, fill=0.7, widest=16384),
            Row(cell, gradients=False, lengths=False, steps=4 * steps, widest=2048),
            Row(cell, gradients=False, lengths=True, steps=32, widest=4096),
            Row(cell, gradients=False, lengths=True, steps=32, fill=0.7, widest=16384),
        )
    ),
    *(
        row._replace(kernel="numba", dtypes=("float32",))
        for row in (
            Row("LSTM", gradients=True, lengths=True, steps=16, width=512, fill=0.3, widest=16384),
            Row("LSTM", gradients=True, lengths=True, steps=16, width=4096, fill=0.7, widest=16384),
            Row("LSTM", gradients=False, lengths=True, steps=32, width=1024, fill=0.7, widest=16384),
        )
    ),
    *(
        row
        for cell, steps, dtypes in (("RNN", 32, _DTYPES), ("GRU", 16, _DTYPES), ("LSTM", 16, ("float64",)))
        for row in (
            Row(cell, gradients=True, lengths=False, steps=steps, dtypes=dtypes),
            Row(cell, gradients=True, lengths=True, steps=12, dtypes=dtypes),
            Row(cell, gradients=False, lengths=True, steps=16, width=8192, dtypes=dtypes),
        )
    ),
    Row("LSTM", gradients=True, lengths=True, steps=16, width=2048, fill=0.3, dtypes=("float32",)),
    Row("LSTM", gradients=True, lengths=True, steps=16, width=4096, fill=0.7, dtypes=("float32",)),
    Row("LSTM", gradients=False, lengths=True, steps=16, width=8192, fill=0.7, dtypes=("float32",)),
)


WIDE = {"RNN": 512, "GRU": 256, "LSTM": 256}
"""The least H at which torch's own layer, on a GPU and with lengths, runs over the valid steps only; measured on an
H100."""


def fastest(
    spec: RecurrentSpec, dtype: torch.dtype, steps: int, batch_size: int, valid: int | None, *, gradients: bool
) -> str:
    """The kernel that the table has for a call on the CPU.

    Parameters
    ----------
    spec
        The layer.
    dtype
        Of the call.
    steps, batch_size
        T, up to the longest sequence, and B, without the empty ones.
    valid
        The sum of the lengths; None without lengths, or if all are T.
    gradients
        Whether a backward pass may follow.

    Returns
    -------
    str
        ``"native"``, ``"packed"`` or ``"numba"``.
    """
    width = batch_size * spec.hidden_size
    for row in _rows(spec.kind, dtype, gradients, valid is not None):
        if (
            steps >= row.steps
            and (row.kernel != "numba" or core.has_numba(spec))
            and row.width <= width
            and (valid is None or valid <= row.fill * steps * batch_size)
            and (
                row.widest is None or width <= row.widest * _num_threads(spec, batch_size, valid or steps * batch_size)
            )
        ):
            return row.kernel
    return "native"


@cache
def _rows(cell: str, dtype: torch.dtype, gradients: bool, lengths: bool) -> tuple[Row, ...]:
    case = cell, gradients, lengths
    return tuple(row for row in TABLE if row[:3] == case and short_name(dtype) in row.dtypes)


def _num_threads(spec: RecurrentSpec, batch_size: int, valid: int) -> int:
    """How many threads compute a call with numba: 1 if the call is small, and never more than torch has."""
    return threads.num_parts(spec, batch_size, valid, torch.get_num_threads())


def num_parts(
    kernel: str, spec: RecurrentSpec, dtype: torch.dtype, lengths: NDArray[np.int64], *, gradients: bool
) -> int:
    """The number of parts into which an operator divides the sequences when it runs, one for each thread of numba.

    Parameters
    ----------
    kernel
        ``"packed"`` or ``"numba"``; for ``"auto"``, `TABLE` decides.
    spec, dtype
        Of the layer.
    lengths
        `(B,)`.
    gradients
        Whether a backward pass may follow.

    Returns
    -------
    int
        0 if torch's operations, not numba, compute the steps.
    """
    batch_size, valid = np.count_nonzero(lengths), int(lengths.sum())
    if kernel == "auto":
        longest = int(lengths.max(initial=0))
        ragged = None if longest * len(lengths) == valid else valid
        kernel = fastest(spec, dtype, longest, batch_size, ragged, gradients=gradients)
    if kernel != "numba" or core.compiled_cell(spec) is None:
        return 0
    return _num_threads(spec, batch_size, valid)


def describe(spec: RecurrentSpec, device: str, dtype: str) -> Iterator[Kernel]:
    """The kernels that a spec has there, and when ``"auto"`` takes which."""
    if not has_native(spec):
        yield Kernel("reference", "always, step by step")
        return
    if unsupported_reason("packed", spec, device, dtype) is not None:
        yield Kernel("native", "always")
    else:
        rows = [row for row in TABLE if row.cell == spec.kind and dtype in row.dtypes]
        if core.has_numba(spec):
            yield Kernel("numba", "; ".join(str(row) for row in rows if row.kernel == "numba"))
        in_graphs = "compiled or exported graphs"
        yield Kernel("packed", "; ".join([in_graphs, *(str(row) for row in rows if row.kernel == "packed")]))
        yield Kernel("native", "otherwise")
    yield Kernel("reference", "by name only")


# ---- the decision --------------------------------------------------------------------------------


class Route(Enum):
    """How a call is computed; `unirnn_torch.layers.run` has a branch for each."""

    DENSE = "dense"
    """One call of torch's own layer, for the whole stack."""
    ROWS = "rows"
    """The same, in its packed form, over the valid steps only."""
    DIRECTIONS = "directions"
    """torch's own layer once for each layer and direction, over dense steps; around it, padding is selected away."""
    REFERENCE = "reference"
    """The reference, step by step."""

    # One operator for each layer and direction; the values are what `unirnn_torch.operators.layer` calls the kernels.
    PACKED = "packed"
    NUMBA = "numba"
    PACKED_OR_NUMBA = "auto"
    """In a graph on a CPU: the operator asks `TABLE` when it runs."""
    NATIVE_OPERATORS = "native"
    """In a graph on a GPU."""

    @property
    def by_operators(self) -> bool:
        """Whether it is one operator for each layer and direction."""
        return self in _SUPPORT_OF


_SUPPORT_OF = {
    Route.PACKED: "packed",
    Route.NUMBA: "numba",
    Route.PACKED_OR_NUMBA: "packed",
    Route.NATIVE_OPERATORS: "native operator",
}
"""The routes of one operator for each layer and direction, and the row of `SUPPORT` that each needs."""


def route(
    kernel: str,
    spec: RecurrentSpec,
    x: Tensor,
    lengths: NDArray[np.int64] | Tensor | None,
    *,
    native: bool,
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
    native
        Whether torch has such layers: `has_native`, which was asked when the module was built.
    needs_grad
        Whether a backward pass may follow.

    Raises
    ------
    LimitError
        If the kernel was asked for by name, and does not support the call.
    """
    wanted = None
    if kernel == "auto":
        wanted = _automatic(spec, x, lengths, needs_grad)
    elif kernel in ("packed", "numba"):
        wanted = Route(kernel)
    if wanted is not None:
        reason = _reason_now(_SUPPORT_OF[wanted], spec, x)
        if reason is None:
            return wanted
        if kernel != "auto":
            raise LimitError(f"kernel: built with {kernel!r}, but {reason}; build with 'auto'")
    if kernel == "reference" or not native:
        return Route.REFERENCE
    if lengths is None:
        return Route.DENSE
    # The rows of a traced call can't be counted, or would become constants of its graph.
    is_traced = type(x) is not Tensor or is_jit_tracing()
    if isinstance(lengths, np.ndarray) and not is_traced and lengths.any():
        return Route.ROWS if rows_are_faster(spec, x, lengths, needs_grad=needs_grad) else Route.DIRECTIONS
    return Route.DIRECTIONS


def _automatic(spec: RecurrentSpec, x: Tensor, lengths: Any, needs_grad: bool) -> Route | None:
    """The kernel of our own that ``"auto"`` prefers for a call; None if it prefers none."""
    if torch.compiler.is_compiling():
        return Route.NATIVE_OPERATORS if x.is_cuda else Route.PACKED_OR_NUMBA
    # Under `torch.jit.trace`, sizes are tensors; the table needs ints.
    if not x.is_cpu or is_jit_tracing():
        return None
    steps, batch_size, _ = x.shape
    valid = None
    if lengths is not None:
        batch_size, valid = np.count_nonzero(lengths), int(lengths.sum())
    kernel = fastest(spec, x.dtype, steps, batch_size, valid, gradients=needs_grad)
    return None if kernel == "native" else Route(kernel)


def _reason_now(kernel: str, spec: RecurrentSpec, x: Tensor) -> str | None:
    return unsupported_reason(kernel, spec, _KINDS.get(x.device.type, x.device.type), short_name(x.dtype), now=True)


def rows_are_faster(spec: RecurrentSpec, x: Tensor, lengths: NDArray[np.int64], *, needs_grad: bool) -> bool:
    """Whether torch's own layer is faster over the valid steps only than over all of them.

    On a CPU its backward pass over valid steps is slow. On a GPU it has kernels for dense steps that keep the weights
    on the chip, if they are not too wide.
    """
    if x.is_cuda:
        # In bfloat16 torch does not keep a stack's weights in one piece, and warns of that at each call.
        is_wide = spec.hidden_size >= WIDE[spec.kind] and x.dtype != torch.bfloat16
        return is_wide and _reason_now("native operator", spec, x) is None
    if needs_grad or _reason_now("packed", spec, x) is not None:
        return False
    # In float32 an LSTM over dense steps is oneDNN's, which does not know the packed form.
    most = 0.6 if spec.kind == "LSTM" and x.dtype == torch.float32 else 1.0
    return int(lengths.sum()) <= most * len(lengths) * x.shape[0]
