"""One layer in one direction as an operator of torch's, such as ``unirnn::gru``, and without one.

For `torch.compile` and `torch.export`, with or without dynamic shapes, an operator is one node of the graph, which
reads and checks the lengths when it runs. Its argument ``kernel`` says what it runs, by the names that `build` knows:

- ``"compiled"``, on a CPU: the C kernels of `unirnn.kernels`, which have nothing to do with `torch.compile`.
- ``"native"``, on a GPU, and where there are no C kernels: torch's own layer (`unirnn_torch.autograd`). The backward
  pass then repeats the forward pass, since the size of what cuDNN keeps is unknown while tracing.

A call that nobody traces or watches does not need an operator. Torch's dispatcher would take longer than a small layer,
so `run_directly` leaves it out. The backward pass is an operator even then, since batched gradients and dispatch modes
may begin there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from unirnn.contract.lengths import Sizes, parse_lengths
from unirnn.kernels.compiled import KEPT

from . import autograd, c_kernels, dispatch
from .c_kernels import Call, num_states, num_weights

__all__ = ["checked_lengths", "needs_operator", "run", "run_directly"]


def run(call: Call, kernel: str) -> tuple[Tensor, ...]:
    """Run one layer in one direction as an operator.

    Parameters
    ----------
    call
        The layer.
    kernel
        ``"compiled"``, for float32 and float64 on a CPU, or ``"native"``.

    Returns
    -------
    output
        `(T, B, H)`, zero in the padding.
    *final_state
        `(B, H)` each.

    Raises
    ------
    LengthError
        When it runs, if a length is below 0 or above T.
    """
    tensors = call.tensors()
    records = kernel == "compiled" and torch.is_grad_enabled()
    keep = records and any(t is not None and t.requires_grad for t in tensors)
    *results, _ = _OPERATORS[call.cell](*tensors, call.reverse, kernel, keep)
    return tuple(results)


def run_directly(call: Call) -> tuple[Tensor, ...]:
    """As `run`, by the C kernels and without torch's dispatcher; allowed where `needs_operator` says no."""
    results: tuple[Tensor, ...] = _Direct.apply(*call.tensors(), call.reverse, call.cell)  # type: ignore[no-untyped-call]
    return results


_PLAIN = frozenset((Tensor, nn.Parameter))
_num_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)


def needs_operator(x: Tensor, *others: Iterable[Tensor]) -> bool:
    """Whether a call on a CPU must go through torch's dispatcher: it is traced, or some tensor or mode watches it."""
    if torch.compiler.is_compiling() or _num_modes():
        return True
    return type(x) is not Tensor or not _PLAIN.issuperset(map(type, chain(*others)))


# ---- what an operator computes -------------------------------------------------------------------


def _forward(call: Call, kernel: str, keep: bool) -> tuple[Tensor, ...]:
    """``(output, *final, kept)``; see `c_kernels.empty_kept`."""
    lengths = call.checked_lengths()
    kept = c_kernels.empty_kept(call, keep=keep and kernel == "compiled")
    if not _runs_c_kernels(kernel, call.x):
        return *_apart(autograd.forward(call)), kept
    output, final = c_kernels.empty_results(call)
    call = call._replace(lengths=None if lengths is None else torch.from_numpy(lengths))
    c_kernels.forward(call, output, final, kept if keep else None)
    return output, *final, kept


def _backward(
    call: Call, kernel: str, kept: Tensor, d_results: Sequence[Tensor | None], needed: tuple[bool, bool]
) -> tuple[Tensor, ...]:
    """The gradients ``(x, *state, *weights)``; empty where they are not needed, or there is no bias."""
    if _runs_c_kernels(kernel, call.x):
        if not len(kept):  # a graph that was traced without gradients
            *_, kept = _forward(call, kernel, True)
        lengths = call.checked_lengths()
        call = call._replace(lengths=None if lengths is None else torch.from_numpy(lengths))
        found: Sequence[Tensor | None] = c_kernels.backward(call, kept, d_results, needed)
    else:
        found = autograd.backward(call, d_results, needed)
    return tuple(_apart(call.x.new_empty((0,)) if d is None else d for d in found))


def _runs_c_kernels(kernel: str, x: Tensor) -> bool:
    """Whether an operator runs the C kernels; a graph may have been made on another machine."""
    return kernel == "compiled" and x.is_cpu and dispatch.NO_LIBRARY is None


def _apart(tensors: Iterable[Tensor]) -> Iterator[Tensor]:
    """Each in memory of its own, as torch requires of an operator's results."""
    seen = set()
    for tensor in tensors:
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in seen:
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        seen.add(storage.data_ptr())
        yield tensor


# ---- gradients -----------------------------------------------------------------------------------


def _save(ctx: Any, options: tuple[str, bool, str], tensors: Sequence[Tensor | None]) -> None:
    """Keep what `_differentiate` needs: ``(cell, reverse, kernel)``, and the call's tensors followed by ``kept``."""
    ctx.save_for_backward(*tensors)
    ctx.options = options
    ctx.set_materialize_grads(False)  # zeros for what is kept would cost as much as the backward pass


def _differentiate(ctx: Any, d_results: Sequence[Tensor | None]) -> Iterator[Tensor | None]:
    """The gradients of a call's tensors."""
    cell, reverse, kernel = ctx.options
    *tensors, kept = ctx.saved_tensors
    needed = ctx.needs_input_grad[: len(tensors)]
    if torch.is_grad_enabled():  # which it is under create_graph only
        # Views, since the same tensor may be given as two arguments.
        call = Call.of_tensors(cell, [None if t is None else t.view_as(t) for t in tensors], reverse)
        found = autograd.gradients(call, needed, d_results)
    else:
        of_weights = any(needed[3 + num_states(cell) :])
        d_x, *others = _BACKWARD[cell](*tensors, reverse, kernel, kept, *d_results, needed[0], of_weights)
        found = [d_x, None, None, *others]
    return (d if need else None for d, need in zip(found, needed, strict=True))


class _Direct(torch.autograd.Function):
    """The C kernels without an operator: ``(*tensors, reverse, cell)`` to ``(output, *final)``."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *tensors, reverse, cell = arguments
        call = Call.of_tensors(cell, tensors, reverse)
        output, final = c_kernels.empty_results(call)
        kept = c_kernels.empty_kept(call, keep=True)
        c_kernels.forward(call, output, final, kept)
        _save(ctx, (cell, reverse, "compiled"), (*tensors, kept))
        return output, *final

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Any, ...]:
        return *_differentiate(ctx, d_results), None, None  # reverse, cell


# ---- registering the operators -------------------------------------------------------------------

_TAGS = [torch.Tag.pt2_compliant_tag]
if hasattr(torch.Tag, "cudagraph_unsafe"):  # not in older torch
    # The operators read the lengths, which a CUDA graph can't hold.
    _TAGS.append(torch.Tag.cudagraph_unsafe)


def _register(
    name: str, arguments: Sequence[str], results: int, run: Callable[..., Any], fake: Callable[..., Any]
) -> Any:
    # Not torch.library.custom_op, whose first call imports the compiler, which takes seconds and 70 MiB.
    schema = f"({', '.join(arguments)}) -> ({', '.join(['Tensor'] * results)})"
    torch.library.define(f"unirnn::{name}", schema, tags=_TAGS)
    torch.library.impl(f"unirnn::{name}", ("cpu", "cuda"), run)
    torch.library.register_fake(f"unirnn::{name}", fake)
    return getattr(torch.ops.unirnn, name).default


def _inputs(cell: str) -> list[str]:
    """The arguments that a cell's operator and its backward pass share, with their types."""
    return [
        "Tensor x",
        "Tensor? lengths",
        "Tensor? resets",
        *(f"Tensor {part}_0" for part in ("h", "c")[: num_states(cell)]),
        *("Tensor weight_ih", "Tensor weight_hh", "Tensor? bias_ih", "Tensor? bias_hh", "Tensor? weight_hr")[
            : num_weights(cell)
        ],
        *("bool reverse", "str kernel"),
    ]


def _define(cell: str) -> Any:
    """Register the operator of a cell: ``(*inputs, keep)`` to ``(output, *final, kept)``."""

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        *tensors, reverse, kernel, keep = arguments
        return _forward(Call.of_tensors(cell, tensors, reverse), kernel, keep)

    def fake(*arguments: Any) -> tuple[Tensor, ...]:
        *tensors, reverse, kernel, keep = arguments
        call = Call.of_tensors(cell, tensors, reverse)
        output, final = c_kernels.empty_results(call)
        return output, *final, c_kernels.empty_kept(call, keep=keep and kernel == "compiled")

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, reverse, kernel, _ = inputs
        ctx.mark_non_differentiable(output[-1])
        _save(ctx, (cell, reverse, kernel), (*tensors, output[-1]))

    def backward(ctx: Any, *d: Tensor | None) -> tuple[Any, ...]:
        *d_results, _ = d
        return *_differentiate(ctx, d_results), None, None, None  # reverse, kernel, keep

    operator = _register(cell.lower(), [*_inputs(cell), "bool keep"], 2 + num_states(cell), run, fake)
    torch.library.register_autograd(f"unirnn::{cell.lower()}", backward, setup_context=setup)
    return operator


def _define_backward(cell: str) -> Any:
    """Register the operator that is a cell's backward pass: ``(*inputs, kept, *d_results, of_x, of_weights)``."""
    d_results = [f"Tensor? d_{part}" for part in ("output", "h", "c")[: 1 + num_states(cell)]]
    count = len(_inputs(cell))

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        *tensors, reverse, kernel = arguments[:count]
        kept, *d_results, of_x, of_weights = arguments[count:]
        with torch.no_grad():  # in the graph of a whole training step, gradients are recorded here too
            call = Call.of_tensors(cell, tensors, reverse)
            return _backward(call, kernel, kept, d_results, (of_x, of_weights))

    def fake(*arguments: Any) -> tuple[Tensor, ...]:
        *tensors, reverse, _ = arguments[:count]
        *_, of_x, of_weights = arguments
        call = Call.of_tensors(cell, tensors, reverse)
        empty = (0,)
        return (
            call.x.new_empty(call.x.shape if of_x else empty),
            *(part.new_empty(part.shape) for part in call.state),
            *(
                call.x.new_empty(empty if w is None or not of_weights else w.shape)
                for w in call.weights[: num_weights(cell)]
            ),
        )

    arguments = [*_inputs(cell), "Tensor kept", *d_results, "bool of_x", "bool of_weights"]
    results = 1 + num_states(cell) + num_weights(cell)
    return _register(f"{cell.lower()}_backward", arguments, results, run, fake)


_OPERATORS = {cell: _define(cell) for cell in KEPT}
_BACKWARD = {cell: _define_backward(cell) for cell in KEPT}


# ---- the lengths of a model in a graph -----------------------------------------------------------


def checked_lengths(lengths: Tensor, steps: int) -> Tensor:
    """The lengths `(B,)`, which are checked when a graph runs.

    Raises
    ------
    LengthError
        When it runs, if a length is below 0 or above T.
    """
    result: Tensor = _CHECKED_LENGTHS(lengths, steps)
    return result


def _check_lengths(lengths: Tensor, steps: int) -> Tensor:
    parse_lengths(lengths.cpu().numpy(), Sizes(steps, len(lengths)))
    return lengths.clone()


_CHECKED_LENGTHS = _register(
    "checked_lengths",
    ["Tensor lengths", "SymInt steps"],
    1,
    _check_lengths,
    lambda lengths, _: torch.empty_like(lengths),
)
