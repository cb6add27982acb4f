"""One layer in one direction by torch's own operations, and its gradients by torch's autograd.

The operators (`unirnn_torch.operators`) run this where they can't run the C kernels. Second derivatives of
an operator are computed here too, whatever it runs. They are those of the reference, since a fused layer, such as
cuDNN's, has none.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from typing import get_args

import array_api_compat.torch as xp
import torch
from torch import Tensor

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, reference
from unirnn.kernels.compiled import cell_of
from unirnn.specs.recurrent import GateActivation

from . import native
from .c_kernels import Call, num_weights

__all__ = ["backward", "forward", "gradients"]


def forward(call: Call) -> tuple[Tensor, ...]:
    """Run a layer: ``(output, *final)``, the output `(T, B, H)` and each part of the final state `(B, H)`."""
    with _without_autocast(call):
        return _run(call, _own_direction(call))


def backward(call: Call, d_results: Sequence[Tensor | None], needed: tuple[bool, bool]) -> Sequence[Tensor | None]:
    """As `unirnn_torch.c_kernels.backward`. It runs the forward pass again, to record it."""
    of_x, of_weights = needed
    wanted = [of_x, False, False, *[True] * len(call.state), *[of_weights] * num_weights(call.cell)]
    with _recording(), _without_autocast(call):
        leaves = [t if t is None else t.detach().requires_grad_(w) for t, w in zip(call.tensors(), wanted, strict=True)]
        found = _gradients(
            Call.of_tensors(call.cell, leaves, call.reverse),
            _own_direction(call),
            wanted,
            d_results,
            create_graph=False,
        )
    del found[1:3]  # lengths and resets have none
    return found


def gradients(call: Call, needed: Sequence[bool], d_results: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
    """Compute gradients that can be differentiated again.

    Parameters
    ----------
    call
        The layer.
    needed
        Whether the gradient of each of its tensors is needed.
    d_results
        The gradients of the output and of each part of the final state; None is zeros.

    Returns
    -------
    list
        The gradients of the call's tensors; None where they are not needed.
    """
    return _gradients(call, reference.direction, needed, d_results, create_graph=True)


def _gradients(
    call: Call,
    direction: reference.Direction,
    needed: Sequence[bool],
    d_results: Sequence[Tensor | None],
    *,
    create_graph: bool,
) -> list[Tensor | None]:
    """The gradients of the call's tensors, by autograd through `_run`; None where they are not needed."""
    results = zip(_run(call, direction), d_results, strict=True)
    given = [(result, d) for result, d in results if d is not None]
    tensors = call.tensors()
    found = iter(
        torch.autograd.grad(
            [result for result, _ in given],
            [t for t, need in zip(tensors, needed, strict=True) if need and t is not None],
            [d for _, d in given],
            create_graph=create_graph,
            materialize_grads=True,
        )
    )
    return [next(found) if need and t is not None else None for t, need in zip(tensors, needed, strict=True)]


def _run(call: Call, direction: reference.Direction) -> tuple[Tensor, ...]:
    """``(output, *final)``, by a function of one direction as in `unirnn.reference.recurrent`."""
    x, spec = call.x, _spec(call)
    if call.resets is not None and direction is native.direction:
        lengths = call.checked_lengths()
        if lengths is None or lengths.any():
            return native.direction_with_resets(spec, call, lengths)
        call = call._replace(resets=None)  # without a valid step there is no reset
    ragged = None if call.lengths is None else reference.Lengths(xp, call.lengths, x.shape[0])
    if ragged is not None:
        x = ragged.select(xp, x)
    run = partial(direction, xp, spec, call.weights)
    output, final = reference.in_direction(xp, run, x, call.state, ragged, call.resets, reverse=call.reverse)
    return output, *final


def _own_direction(call: Call) -> reference.Direction:
    """What computes a layer: torch's own layer, if it has such a one."""
    return native.direction if call.cell in native.NATIVE else reference.direction


# ---- the spec of a call --------------------------------------------------------------------------

_KINDS: list[Callable[..., RecurrentSpec]] = [
    *(partial(RNNSpec, nonlinearity=nonlinearity) for nonlinearity in ("tanh", "relu")),
    *(
        partial(GRUSpec, reset_after=reset_after, gate_activation=gates)
        for reset_after in (True, False)
        for gates in get_args(GateActivation)
    ),
    *(partial(LSTMSpec, gate_activation=gates) for gates in get_args(GateActivation)),
]
_VARIANTS = {cell_of(kind(1, 1)): kind for kind in _KINDS}
"""What makes the spec of each cell."""


def _spec(call: Call) -> RecurrentSpec:
    """The layer of a call, as one layer in one direction."""
    proj_size = 0 if call.weights.weight_hr is None else call.output_size
    return _spec_of(call.cell, call.x.shape[2], call.hidden_size, proj_size, call.weights.bias_ih is not None)


@cache
def _spec_of(cell: str, input_size: int, hidden_size: int, proj_size: int, bias: bool) -> RecurrentSpec:
    projection = {"proj_size": proj_size} if proj_size else {}
    return _VARIANTS[cell](input_size, hidden_size, bias=bias, **projection)


# ---- what surrounds an operator ------------------------------------------------------------------


def _without_autocast(call: Call) -> torch.autocast:
    """The inputs of an operator were cast when the graph was captured."""
    return torch.autocast(call.x.device.type, enabled=False)


@contextmanager
def _recording() -> Iterator[None]:
    """Make autograd work within an operator, even under a dispatch mode such as a compiler's.

    Such modes exclude autograd from the thread's dispatch, and there is no public way to include it again.
    """
    keys = [torch._C.DispatchKey.AutogradFunctionality, torch._C.DispatchKey.ADInplaceOrView]
    shut_off = [key for key in keys if torch._C._dispatch_tls_is_dispatch_key_excluded(key)]
    try:
        for key in shut_off:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
        with torch.enable_grad():
            yield
    finally:
        for key in shut_off:
            torch._C._dispatch_tls_set_dispatch_key_excluded(key, True)
