"""Which kernel runs a call of the ``numpy`` backend, and what each supports."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from unirnn import RecurrentSpec, kernels
from unirnn.contract.limits import Kernel, Support, check_kernel

__all__ = ["SHORT", "SUPPORT", "check_build", "describe", "route"]

_ALL = replace(kernels.SUPPORT["packed"], who="numpy")

SUPPORT = {
    "auto": _ALL,
    **kernels.SUPPORT,
    "reference": Support("the reference", devices=("cpu",), dtypes=("float32", "float64"), derivatives=0),
}
"""By the names that ``kernel`` may have: the packed kernels, by NumPy or compiled by numba, and the reference, which
prepares nothing."""

_REFERENCE_DTYPES = {np.dtype(name) for name in SUPPORT["reference"].dtypes}  # a dtype's name costs microseconds

SHORT = 4
"""Up to how many steps ``auto`` takes the reference for inference: about where both cost the same."""


def check_build(kernel: str, spec: RecurrentSpec, dtype: str) -> None:
    """Refuse a kernel that can't run a spec.

    Raises
    ------
    ArgumentError
        If there is no such kernel.
    LimitError
        If it can't run this spec in this dtype.
    """
    check_kernel(kernel, SUPPORT, spec, "cpu", dtype)
    if kernel == "numba":
        kernels.check_numba()


def route(kernel: str, spec: RecurrentSpec, dtype: np.dtype[Any], steps: int, *, needs_grad: bool) -> str:
    """The kernel that runs a call: ``"packed"``, ``"numba"`` or ``"reference"``.

    Parameters
    ----------
    kernel
        As the module was built.
    spec
        The layer.
    dtype
        Of the call.
    steps
        T.
    needs_grad
        Whether the call is followed by a backward pass.
    """
    if kernel == "numba":
        kernels.check_numba()  # the module may have been built, and pickled, elsewhere
    if kernel != "auto":
        return kernel
    if not needs_grad and steps <= SHORT and dtype in _REFERENCE_DTYPES:
        return "reference"
    return "numba" if kernels.has_numba(spec) else "packed"


def describe(spec: RecurrentSpec, dtype: str) -> Iterator[Kernel]:
    """The kernels that a spec has, and when ``auto`` takes which."""
    rest = "always"
    if dtype in SUPPORT["reference"].dtypes:
        yield Kernel("reference", f"inference (T <= {SHORT})")
        rest = "else"
    if kernels.has_numba(spec):
        yield Kernel("numba", rest)
        rest = "by name only"
    yield Kernel("packed", rest)
