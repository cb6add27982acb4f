"""One layer in one direction as the operators ``unirnn::rnn_tanh``, ``rnn_relu``, ``gru`` and ``lstm``.

For `torch.compile` and `torch.export`, with or without dynamic shapes, an operator is one node of the graph, which
reads and checks the lengths when it runs. On a CPU the operators run the packed kernel (`packed`). On a GPU they run
torch's own computation (`native`); their backward pass runs it again, since the size of what cuDNN keeps is unknown
while tracing. Second derivatives are those of the reference.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from unirnn import reference

from . import native, packed
from .by_torch import CELLS, ByTorch
from .packed import Call

__all__ = ["layer"]

_TAGS = [torch.Tag.pt2_compliant_tag]
if hasattr(torch.Tag, "cudagraph_unsafe"):  # not in older torch
    # The operators read the lengths, which a CUDA graph can't hold.
    _TAGS.append(torch.Tag.cudagraph_unsafe)


def _over_dense_steps(call: Call, direction: reference.Direction) -> tuple[Tensor, ...]:
    """``(output, *final)`` of a function of one direction, as in `unirnn.reference.recurrent`."""
    x = call.x
    ragged = None if call.lengths is None else reference.Lengths(xp, call.lengths, x.shape[0])
    if ragged is not None:
        x = ragged.select(xp, x)
    if call.backward:
        x = reference.turn(xp, x, ragged)
    output, final = direction(xp, call.spec, x, call.state, call.weights, ragged)
    if ragged is not None:
        output = ragged.select(xp, output)
    return reference.turn(xp, output, ragged) if call.backward else output, *final


def _gradients(
    call: Call,
    direction: reference.Direction,
    needed: Sequence[bool],
    d_results: Sequence[Tensor | None],
    *,
    create_graph: bool,
) -> list[Tensor | None]:
    """The gradients of a call's tensors, by autograd through `_over_dense_steps`; None where they are not needed."""
    results = zip(_over_dense_steps(call, direction), d_results, strict=True)
    given = [(result, d) for result, d in results if d is not None]
    found = iter(
        torch.autograd.grad(
            [result for result, _ in given],
            [t for t, need in zip(call.tensors, needed, strict=True) if need and t is not None],
            [d for _, d in given],
            create_graph=create_graph,
            materialize_grads=True,
        )
    )
    return [next(found) if need and t is not None else None for t, need in zip(call.tensors, needed, strict=True)]


def _forward_natively(call: Call) -> tuple[Tensor, ...]:
    """``(output, *final)``, then empty tensors, since nothing is kept for the backward pass."""
    call.checked_lengths()
    with torch.autocast(call.x.device.type, enabled=False):  # inputs were cast when the graph was captured
        results = _over_dense_steps(call, native.direction)
    return *_apart(results), *packed.blank(call, keep=False)


def _backward_natively(call: Call, d_results: Sequence[Tensor | None], needed: tuple[bool, bool]) -> tuple[Tensor, ...]:
    """As `packed.backward`; it runs the forward pass again."""
    of_x, of_weights = needed
    wanted = [of_x, False, *[True] * len(call.state), *[of_weights] * 4]
    with _recording(), torch.autocast(call.x.device.type, enabled=False):
        call = call.with_tensors(
            [t if t is None else t.detach().requires_grad_(w) for t, w in zip(call.tensors, wanted, strict=True)]
        )
        found = _gradients(call, native.direction, wanted, d_results, create_graph=False)
    del found[1]
    return tuple(_apart(call.x.new_empty((0,)) if d is None else d for d in found))


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


def _apart(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each in memory of its own, as torch requires of an operator's results."""
    seen = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
        yield tensor


def _define(mode: str, cell: type[ByTorch]) -> Any:
    """Register the operator of a cell, and the one that is its backward pass."""
    name, parts = mode.lower(), cell.parts
    states = ("h", "c")[:parts]
    inputs = [
        "Tensor x",
        "Tensor? lengths",
        *(f"Tensor {part}_0" for part in states),
        "Tensor weight_ih, Tensor weight_hh, Tensor? bias_ih, Tensor? bias_hh, bool backward, str kernel",
    ]
    kept = ["Tensor outputs", "Tensor blocks", "Tensor num_parts"]
    d_results = [f"Tensor? d_{part}" for part in ("output", *states)]
    num_tensors = 6 + parts

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        call = Call(mode, arguments)
        (keep,) = call.rest
        return _forward_natively(call) if call.kernel == "native" else packed.forward(call, keep)

    def forward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        call = Call(mode, arguments)
        (keep,) = call.rest
        steps, batch_size, _ = call.x.shape
        size = call.weights.weight_hh.shape[1]
        keep = keep and call.kernel != "native"
        return (
            call.x.new_empty((steps, batch_size, size)),
            *(part.new_empty((batch_size, size)) for part in call.state),
            *packed.blank(call, keep=keep),
        )

    def backward(*arguments: Any) -> tuple[Tensor, ...]:
        call = Call(mode, arguments)
        *tensors, of_x, of_weights = call.rest
        if call.kernel == "native":
            return _backward_natively(call, tensors[3:], (of_x, of_weights))
        with torch.no_grad():  # in the graph of a whole training step, gradients are recorded here too
            return packed.backward(call, tensors[:3], tensors[3:], (of_x, of_weights))

    def backward_fake(*arguments: Any) -> tuple[Tensor, ...]:
        call = Call(mode, arguments)
        *_, of_x, of_weights = call.rest
        empty = (0,)
        return (
            call.x.new_empty(call.x.shape if of_x else empty),
            *(part.new_empty(part.shape) for part in call.state),
            *(call.x.new_empty(empty if w is None or not of_weights else w.shape) for w in call.weights[:4]),
        )

    def register(
        name: str, arguments: list[str], results: int, run: Callable[..., Any], fake: Callable[..., Any]
    ) -> Any:
        schema = f"({', '.join(arguments)}) -> ({', '.join(['Tensor'] * results)})"
        torch.library.define(f"unirnn::{name}", schema, tags=_TAGS)
        torch.library.impl(f"unirnn::{name}", ("cpu", "cuda"), run)
        torch.library.register_fake(f"unirnn::{name}", fake)
        return getattr(torch.ops.unirnn, name).default

    # Not torch.library.custom_op, whose first call imports the compiler, which takes seconds and 70 MiB.
    operator = register(name, [*inputs, "bool keep"], 4 + parts, forward, forward_fake)
    gradient = register(
        f"{name}_backward",
        [*inputs, *kept, *d_results, "bool of_x", "bool of_weights"],
        parts + 5,
        backward,
        backward_fake,
    )

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.save_for_backward(*inputs[:num_tensors], *output[1 + parts :])
        ctx.options = inputs[num_tensors : num_tensors + 2]
        ctx.mark_non_differentiable(*output[1 + parts :])
        ctx.set_materialize_grads(False)  # zeros for what is kept would cost as much as the backward pass

    def differentiate(ctx: Any, *d: Tensor | None) -> tuple[Any, ...]:
        tensors, d_results = ctx.saved_tensors, d[: 1 + parts]
        needed = ctx.needs_input_grad[:num_tensors]
        if torch.is_grad_enabled():  # which it is under create_graph only
            # Views, since the same tensor may be given as two arguments.
            call = Call(mode, [*(None if t is None else t.view_as(t) for t in tensors[:num_tensors]), *ctx.options])
            found = _gradients(call, reference.direction, needed, d_results, create_graph=True)
            return *found, None, None, None
        d_x, *others = gradient(
            *tensors[:num_tensors],
            *ctx.options,
            *tensors[num_tensors:],
            *d_results,
            needed[0],
            any(needed[2 + parts :]),
        )
        by_input = (d_x, None, *others)
        return *(g if need else None for g, need in zip(by_input, needed, strict=True)), None, None, None

    torch.library.register_autograd(f"unirnn::{name}", differentiate, setup_context=setup)
    return operator


_OPERATORS = {mode: _define(mode, cell) for mode, cell in CELLS.items()}


def layer(
    mode: str,
    x: Tensor,
    lengths: Tensor | None,
    state: Sequence[Tensor],
    weights: Sequence[reference.Weights],
    *,
    kernel: str,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer.

    Parameters
    ----------
    mode
        As `torch.nn.RNNBase` calls the cell: ``RNN_TANH``, ``RNN_RELU``, ``GRU`` or ``LSTM``.
    x
        `(T, B, I)`; float32 or float64 on the CPU, except for ``"native"``.
    lengths
        `(B,)` int64, on the same device; None if every step is valid.
    state
        Initial state, `(D, B, H)` each.
    weights
        Those of each direction; without a projection.
    kernel
        ``"packed"``, ``"numba"`` or ``"native"``; or ``"auto"``: packed or numba, by `dispatch.fastest`, when it runs.

    Returns
    -------
    output
        `(T, B, D*H)`, zero in the padding.
    final_state
        `(D, B, H)` each.

    Raises
    ------
    LengthError
        When it runs, if a length is below 0 or above T.
    """
    outputs, finals = [], []
    for k, of_direction in enumerate(weights):
        tensors = (x, lengths, *(part[k] for part in state), *of_direction[:4])
        keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
        output, *results = _OPERATORS[mode](*tensors, k == 1, kernel, keep)
        outputs.append(output)
        finals.append(results[: len(state)])
    final = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2), final
