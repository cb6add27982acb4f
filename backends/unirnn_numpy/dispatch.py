"""Which kernel runs a call of the ``numpy`` backend, and what each supports."""

from collections.abc import Iterator
from dataclasses import replace

from unirnn import RecurrentSpec, kernels
from unirnn.contract.limits import ALL_KINDS, Kernel, Support, check_kernel
from unirnn.specs import Spec

__all__ = ["SUPPORT", "check_build", "describe"]

_REFERENCE = Support("the reference", devices=("cpu",), dtypes=("float32", "float64"), derivatives=0)

SUPPORT = {
    name: replace(support, kinds=ALL_KINDS)
    for name, support in {
        "auto": replace(kernels.SUPPORT["compiled"], who="numpy"),
        **kernels.SUPPORT,
        "reference": _REFERENCE,
    }.items()
}
"""By the names that ``kernel`` may have: how the recurrent layers are computed. The other layers have one way."""


def check_build(kernel: str, spec: Spec, dtype: str) -> None:
    """Refuse a kernel that can't run a spec, or is missing; raises what `unirnn.contract.limits.check_kernel` does."""
    check_kernel(kernel, SUPPORT, spec, "cpu", dtype)
    if kernel == "compiled":
        kernels.check_compiled()


def describe(spec: RecurrentSpec, dtype: str) -> Iterator[Kernel]:
    """The kernels that a spec has, and when ``auto`` takes which."""
    if kernels.is_compiled():
        yield Kernel("compiled", "in all cases")
        yield Kernel("fallback", None)
    else:
        yield Kernel("fallback", "in all cases")
    if dtype in SUPPORT["reference"].dtypes:
        yield Kernel("reference", None)
