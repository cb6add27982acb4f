"""Which kernel runs a call: what the packed one can't do, and the table of when it is the faster.

``kernel="native"``, ``"packed"``, ``"numba"`` and ``"plain"`` are obeyed, or refused; ``"auto"`` chooses:

- where the packed kernel can't serve (`obstacle`), native;
- in `torch.compile` and `torch.export`, packed: one operator, with any T and B, where torch's own are unrolled; on a
  GPU the native computation is one operator there, too;
- else what `TABLE` says. The packed kernel's cost follows the valid steps, and its backward pass is the faster one, but
  for that of a dense LSTM, which has oneDNN's; natively there is less to do before the first step. By numba the packed
  kernel has next to no cost for a step, and slower products; compiled and exported graphs ask the table when they run.

Without numba a call without gradients and without lengths is native everywhere: neither is clearly the faster there,
and native gives the bits of torch's own layer.
"""

from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec
from unirnn import kernels as core
from unirnn.contract.limits import Kernel, check_kernel
from unirnn.devices import short_name
from unirnn.errors import LimitError
from unirnn.kernels import threads

__all__ = [
    "KERNELS",
    "TABLE",
    "WIDE",
    "Row",
    "check",
    "fastest",
    "is_stepped",
    "kernels",
    "no_operator",
    "num_parts",
    "obstacle",
    "rows_are_faster",
]

KERNELS = ("auto", "native", "packed", "numba", "plain")
"""What ``kernel`` may be; *plain* is step by step, on any device, for what has neither of the others."""
_DTYPES = ("float32", "float64")
_PLAIN = Kernel("plain", "by name only")

# Private, since torch has no public way to ask; without it a transformed call would meet torch's own error.
_functorch_level = getattr(getattr(torch._C, "_functorch", None), "maybe_current_level", None)


class Row(NamedTuple):
    """A case in which a kernel of ours is the fastest."""

    cell: str
    gradients: bool
    """Whether the call keeps what a backward pass needs."""
    lengths: bool
    """Whether it has lengths; if they are all the same, it has none."""
    steps: int
    """From how many steps on, up to the longest sequence."""
    width: int = 0
    """From which B*H on; empty sequences do not count."""
    fill: float = 1.0
    """Up to which share of valid steps."""
    dtypes: tuple[str, ...] = _DTYPES
    kernel: str = "packed"
    widest: int | None = None
    """Up to which B*H; a large call is divided among `num_parts` threads, and that is what each may have."""

    def __str__(self) -> str:
        bounds = [f"T >= {self.steps}"]
        if self.width:
            bounds.append(f"B*H >= {self.width}")
        if self.widest is not None:
            bounds.append(f"B*H <= {self.widest} a thread")
        if self.fill < 1:
            bounds.append(f"up to {self.fill:.0%} valid")
        return f"{'training' if self.gradients else 'inference'}{' with lengths' * self.lengths} ({', '.join(bounds)})"


# Measured with torch 2.13 on an Intel Xeon and an AMD EPYC, by one thread and by two; at a row's bounds both cost about
# the same. An LSTM in float32 is natively oneDNN's.
# Of rows that fit a call the first counts; those of numba, where it is installed.
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
"""From which H on a native call on a GPU, with lengths, runs over the valid steps alone; measured on an H100."""


def check(kernel: str, spec: RecurrentSpec, device: str, dtype: str) -> None:
    """Refuse what no call can do.

    Raises
    ------
    ArgumentError
        If there is no such kernel.
    LimitError
        If it can't run this spec, on this kind of device, in this dtype.
    """
    check_kernel(kernel, KERNELS)
    why_not = None
    if kernel == "numba":
        core.check_numba(spec)
    if kernel in ("packed", "numba"):
        why_not = _lacking(spec, device, dtype)
    elif kernel == "native" and is_stepped(spec):
        why_not = "torch has no GRU of reset_after=False"
    if why_not is not None:
        raise LimitError(f"kernel: given {kernel!r}, but {why_not}; 'auto' takes what there is")


def is_stepped(spec: RecurrentSpec) -> bool:
    """Whether torch has no such layer: a GRU of ``reset_after=False``."""
    return isinstance(spec, GRUSpec) and not spec.reset_after


def _unknown(spec: RecurrentSpec) -> str | None:
    """Why no operator can serve."""
    if is_stepped(spec):
        return "it has no GRU of reset_after=False"
    if isinstance(spec, LSTMSpec) and spec.proj_size:
        return f"it has no proj_size (given {spec.proj_size})"
    return None


def _lacking(spec: RecurrentSpec, device: str, dtype: str) -> str | None:
    """Why a kernel of ours can't serve, as far as the build tells."""
    why_not = _unknown(spec)
    if why_not is not None:
        return why_not
    if device != "cpu":
        return f"it runs on cpu only, not on {device}"
    if dtype not in _DTYPES:
        return f"it computes in {' and '.join(_DTYPES)}, not in {dtype}"
    return None


def is_traced_by_jit() -> bool:
    """Whether `torch.jit.trace` is at work."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def no_operator(spec: RecurrentSpec) -> str | None:
    """Why no operator, be it of a kernel of ours or native, can run a layer in a graph; None if one can."""
    why_not = _unknown(spec)
    if why_not is not None:
        return why_not
    if not hasattr(torch.onnx, "ops") and torch.onnx.is_in_onnx_export():
        return "this torch can't write a node of ONNX"  # that came with torch 2.8
    if _functorch_level is not None and _functorch_level() is not None:
        return "it knows no torch.func"
    if getattr(forward_ad, "_current_level", -1) >= 0:
        return "it knows no forward-mode gradients"
    return None


def obstacle(spec: RecurrentSpec, input: Tensor) -> str | None:
    """Why a kernel of ours can't run a call; None if it can."""
    why_not = _lacking(spec, input.device.type, short_name(input.dtype))
    if why_not is not None:
        return why_not
    if torch.is_autocast_enabled("cpu"):
        return "it knows no autocast"
    why_not = no_operator(spec)
    if why_not is not None:
        return why_not
    if not torch.compiler.is_compiling() and is_traced_by_jit():
        return "torch.jit does not see into it"
    return None


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
        Whether the call keeps what a backward pass needs.

    Returns
    -------
    str
        One of `KERNELS`.
    """
    width = batch_size * spec.hidden_size
    for row in _rows(spec.kind, dtype, gradients, valid is not None, core.has_numba(spec)):
        if (
            steps >= row.steps
            and row.width <= width
            and (valid is None or valid <= row.fill * steps * batch_size)
            and (row.widest is None or width <= row.widest * num_parts(spec, batch_size, valid or steps * batch_size))
        ):
            return row.kernel
    return "native"


def num_parts(spec: RecurrentSpec, batch_size: int, valid: int) -> int:
    """How many threads the compiled cells have for a call: 1 unless it is large, and at most as many as torch has."""
    return threads.num_parts(spec, batch_size, valid, torch.get_num_threads())


def rows_are_faster(spec: RecurrentSpec, input: Tensor, steps: int, valid: int, *, gradients: bool) -> bool:
    """Whether a native call with lengths is the faster one over the valid steps alone, not over all of them.

    On a CPU its backward pass is slow. On a GPU dense steps have kernels that keep the weights on the chip, if they
    are not too wide.
    """
    if input.is_cuda:
        # Of bfloat16 torch does not keep a stack's weights in one piece, and warns of that at each call.
        return spec.hidden_size >= WIDE[spec.kind] and input.dtype != torch.bfloat16 and no_operator(spec) is None
    if gradients or obstacle(spec, input) is not None:
        return False
    most = 0.6 if spec.kind == "LSTM" and input.dtype == torch.float32 else 1.0  # oneDNN's runs over dense steps only
    return valid <= most * steps


@cache
def _rows(cell: str, dtype: torch.dtype, gradients: bool, lengths: bool, numba: bool) -> tuple[Row, ...]:
    case = cell, gradients, lengths
    rows = (row for row in TABLE if row[:3] == case and short_name(dtype) in row.dtypes)
    return tuple(row for row in rows if numba or row.kernel != "numba")


def kernels(spec: RecurrentSpec, device: str, dtype: str) -> Iterator[Kernel]:
    """The kernels that a spec has there, and when ``auto`` takes which."""
    if is_stepped(spec):
        yield Kernel("plain", "always, step by step")
    elif _lacking(spec, device, dtype) is not None:
        yield Kernel("native", "always")
        yield _PLAIN
    else:
        rows = [row for row in TABLE if row.cell == spec.kind and dtype in row.dtypes]
        numba = core.has_numba(spec)
        if numba:
            yield Kernel("numba", "; ".join(str(row) for row in rows if row.kernel == "numba"))
        traced = "else if compiled or exported" if numba else "compiled or exported"
        yield Kernel("packed", "; ".join([traced, *(str(row) for row in rows if row.kernel == "packed")]))
        yield Kernel("native", "else")
        yield _PLAIN
