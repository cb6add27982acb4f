"""One layer in one direction as an operator of torch's, such as ``unirnn::gru``.

For `torch.compile` and `torch.export`, with or without dynamic shapes, an operator is one node of the graph, which
reads and checks the lengths when it runs. On a CPU the operators run the compiled kernels: the library of
`unirnn.kernels`, which has nothing to do with `torch.compile`. On a GPU, and where there is no such library, they run
torch's own computation (`native`). The backward pass then repeats the forward pass, since the size of what cuDNN keeps
is unknown while tracing. Second derivatives are those of the reference.

A forward pass that nobody traces or watches does not go through torch's dispatcher, which would take longer than a
small layer. Its backward pass is an operator, since batched gradients and dispatch modes may begin there.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import chain
from typing import Any, get_args

import array_api_compat.torch as xp
import torch
from torch import Tensor, nn

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, reference
from unirnn.contract.lengths import Sizes, parse_lengths
from unirnn.kernels.compiled import KEPT, cell_of
from unirnn.specs.recurrent import GateActivation

from . import compiled, dispatch, native
from .compiled import Call, num_states, num_weights

__all__ = ["checked_lengths", "layer", "needs_operator"]

_TAGS = [torch.Tag.pt2_compliant_tag]
if hasattr(torch.Tag, "cudagraph_unsafe"):  # not in older torch
    # The operators read the lengths, which a CUDA graph can't hold.
    _TAGS.append(torch.Tag.cudagraph_unsafe)


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


@cache
def _spec(cell: str, input_size: int, hidden_size: int, proj_size: int, bias: bool) -> RecurrentSpec:
    projection = {"proj_size": proj_size} if proj_size else {}
    return _VARIANTS[cell](input_size, hidden_size, bias=bias, **projection)


def _by_torch(call: Call, direction: reference.Direction) -> tuple[Tensor, ...]:
    """``(output, *final)`` of a function of one direction, as in `unirnn.reference.recurrent`."""
    x = call.x
    weights = call.weights
    proj_size = 0 if weights.weight_hr is None else call.output_size
    spec = _spec(call.cell, x.shape[2], call.hidden_size, proj_size, weights.bias_ih is not None)
    if call.resets is not None and direction is native.direction:
        lengths = call.checked_lengths()
        if lengths is None or lengths.any():
            return native.direction_with_resets(spec, call, lengths)
        call = call._replace(resets=None)  # without a valid step there is no reset
    ragged = None if call.lengths is None else reference.Lengths(xp, call.lengths, x.shape[0])
    if ragged is not None:
        x = ragged.select(xp, x)
    output, final = reference.in_direction(
        xp, spec, x, call.state, call.weights, ragged, call.resets, reverse=call.reverse, direction=direction
    )
    return output, *final


def _gradients(
    call: Call,
    direction: reference.Direction,
    needed: Sequence[bool],
    d_results: Sequence[Tensor | None],
    *,
    create_graph: bool,
) -> list[Tensor | None]:
    """The gradients of a call's tensors, by autograd through `_by_torch`; None where they are not needed."""
    results = zip(_by_torch(call, direction), d_results, strict=True)
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


def _runs_kernels(kernel: str, x: Tensor) -> bool:
    """Whether an operator runs the compiled kernels; a graph may have been made on another machine."""
    return kernel == "compiled" and x.is_cpu and dispatch.NO_LIBRARY is None


def _torch_direction(call: Call) -> reference.Direction:
    """What computes a layer without the compiled kernels: torch's own layer, if it has such a one."""
    return native.direction if call.cell in native.NATIVE else reference.direction


def _forward(call: Call, kernel: str, keep: bool) -> tuple[Tensor, ...]:
    """``(output, *final, kept)``; see `compiled.empty_kept`."""
    lengths = call.checked_lengths()
    kept = compiled.empty_kept(call, keep=keep and kernel == "compiled")
    if _runs_kernels(kernel, call.x):
        output, final = compiled.empty_results(call)
        call = call._replace(lengths=None if lengths is None else torch.from_numpy(lengths))
        compiled.forward(call, output, final, kept if keep else None)
        return output, *final, kept
    with torch.autocast(call.x.device.type, enabled=False):  # inputs were cast when the graph was captured
        results = _by_torch(call, _torch_direction(call))
    return *_apart(results), kept


def _backward(
    call: Call, kernel: str, kept: Tensor, d_results: Sequence[Tensor | None], needed: tuple[bool, bool]
) -> tuple[Tensor, ...]:
    """The gradients ``(x, *state, *weights)``; empty where they are not needed, or there is no bias."""
    if _runs_kernels(kernel, call.x):
        if not len(kept):  # a graph that was traced without gradients
            *_, kept = _forward(call, kernel, True)
        lengths = call.checked_lengths()
        call = call._replace(lengths=None if lengths is None else torch.from_numpy(lengths))
        found: Sequence[Tensor | None] = compiled.backward(call, kept, d_results, needed)
    else:
        found = _backward_again(call, d_results, needed)
    return tuple(_apart(call.x.new_empty((0,)) if d is None else d for d in found))


def _backward_again(
    call: Call, d_results: Sequence[Tensor | None], needed: tuple[bool, bool]
) -> Sequence[Tensor | None]:
    """As `compiled.backward`, by torch's autograd; it runs the forward pass again."""
    of_x, of_weights = needed
    wanted = [of_x, False, False, *[True] * len(call.state), *[of_weights] * num_weights(call.cell)]
    with _recording(), torch.autocast(call.x.device.type, enabled=False):
        leaves = [t if t is None else t.detach().requires_grad_(w) for t, w in zip(call.tensors, wanted, strict=True)]
        call = _call(call.cell, [*leaves, call.reverse])
        found = _gradients(call, _torch_direction(call), wanted, d_results, create_graph=False)
    del found[1:3]
    return found


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


# ---- the operators -------------------------------------------------------------------------------


def _call(cell: str, arguments: Sequence[Any]) -> Call:
    """The call of an operator's first arguments: ``x, lengths, resets, *state, *weights, reverse``."""
    x, lengths, resets, *others, reverse = arguments
    states = num_states(cell)
    return Call(cell, x, lengths, resets, tuple(others[:states]), reference.Weights(*others[states:]), reverse)


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
        *given, kernel, keep = arguments
        return _forward(_call(cell, given), kernel, keep)

    def fake(*arguments: Any) -> tuple[Tensor, ...]:
        *given, kernel, keep = arguments
        call = _call(cell, given)
        output, final = compiled.empty_results(call)
        return output, *final, compiled.empty_kept(call, keep=keep and kernel == "compiled")

    def setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, reverse, kernel, _ = inputs
        ctx.mark_non_differentiable(output[-1])
        _save(ctx, (cell, reverse, kernel), (*tensors, output[-1]))

    operator = _register(cell.lower(), [*_inputs(cell), "bool keep"], 2 + num_states(cell), run, fake)
    torch.library.register_autograd(f"unirnn::{cell.lower()}", _differentiate, setup_context=setup)
    return operator


def _define_backward(cell: str) -> Any:
    """Register the operator that is a cell's backward pass: ``(*inputs, kept, *d_results, of_x, of_weights)``."""
    d_results = [f"Tensor? d_{part}" for part in ("output", "h", "c")[: 1 + num_states(cell)]]
    count = len(_inputs(cell))

    def run(*arguments: Any) -> tuple[Tensor, ...]:
        *given, kernel = arguments[:count]
        kept, *d_results, of_x, of_weights = arguments[count:]
        with torch.no_grad():  # in the graph of a whole training step, gradients are recorded here too
            return _backward(_call(cell, given), kernel, kept, d_results, (of_x, of_weights))

    def fake(*arguments: Any) -> tuple[Tensor, ...]:
        call = _call(cell, arguments[: count - 1])
        of_x, of_weights = arguments[-2:]
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


def _save(ctx: Any, options: tuple[str, bool, str], tensors: Sequence[Tensor | None]) -> None:
    """Keep what `_differentiate` needs: ``(cell, reverse, kernel)``, and the call's tensors followed by ``kept``."""
    ctx.save_for_backward(*tensors)
    ctx.options = options
    ctx.set_materialize_grads(False)  # zeros for what is kept would cost as much as the backward pass


def _differentiate(ctx: Any, *d: Tensor | None) -> tuple[Any, ...]:
    """The gradients of an operator's arguments."""
    cell, reverse, kernel = ctx.options
    *tensors, kept = ctx.saved_tensors
    states = num_states(cell)
    d_results, needed = d[: 1 + states], ctx.needs_input_grad[: len(tensors)]
    if torch.is_grad_enabled():  # which it is under create_graph only
        # Views, since the same tensor may be given as two arguments.
        call = _call(cell, [*(None if t is None else t.view_as(t) for t in tensors), reverse])
        found = _gradients(call, reference.direction, needed, d_results, create_graph=True)
    else:
        of_weights = any(needed[3 + states :])
        d_x, *others = _BACKWARD[cell](*tensors, reverse, kernel, kept, *d_results, needed[0], of_weights)
        found = [d_x, None, None, *others]
    # The last three arguments are no tensors: reverse, kernel, and keep (of an operator) or cell (of `_Direct`).
    return *(g if need else None for g, need in zip(found, needed, strict=True)), None, None, None


_OPERATORS = {cell: _define(cell) for cell in KEPT}
_BACKWARD = {cell: _define_backward(cell) for cell in KEPT}


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


def checked_lengths(lengths: Tensor, steps: int) -> Tensor:
    """The lengths `(B,)`, which are checked when a graph runs.

    Raises
    ------
    LengthError
        When it runs, if a length is below 0 or above T.
    """
    result: Tensor = _CHECKED_LENGTHS(lengths, steps)
    return result


class _Direct(torch.autograd.Function):
    """The compiled kernels without an operator: ``(*tensors, reverse, kernel, cell)`` to ``(output, *final)``."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, ...]:
        *given, kernel, cell = arguments
        call = _call(cell, given)
        output, final = compiled.empty_results(call)
        kept = compiled.empty_kept(call, keep=True)
        compiled.forward(call, output, final, kept)
        _save(ctx, (cell, call.reverse, kernel), (*call.tensors, kept))
        return output, *final

    @staticmethod
    def backward(ctx: Any, *d: Tensor | None) -> tuple[Any, ...]:
        return _differentiate(ctx, *d)


_num_modes: Callable[[], int] = getattr(torch._C, "_len_torch_dispatch_stack", lambda: 1)


_PLAIN = frozenset((Tensor, nn.Parameter))


def needs_operator(x: Tensor, *others: Iterable[Tensor]) -> bool:
    """Whether a call on a CPU must go through torch's dispatcher: it is traced, or some tensor or mode watches it."""
    if torch.compiler.is_compiling() or _num_modes():
        return True
    return type(x) is not Tensor or not _PLAIN.issuperset(map(type, chain(*others)))


def layer(
    cell: str,
    x: Tensor,
    lengths: Tensor | None,
    resets: Tensor | None,
    state: Sequence[Tensor],
    weights: Sequence[reference.Weights],
    *,
    reverse: Sequence[bool],
    kernel: str,
    direct: bool = False,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer.

    Parameters
    ----------
    cell
        As the compiled kernels call it; see `unirnn.kernels.compiled.cell_of`.
    x
        `(T, B, I)`; float32 or float64 on the CPU, except for ``"native"``.
    lengths
        `(B,)` int64, on the same device; None if every step is valid.
    resets
        `(T, B)` bool, on the same device; None if no sequence begins anew.
    state
        Initial state, `(D, B, H)` each.
    weights
        Those of each direction.
    reverse
        Whether each direction runs from the last valid step to the first.
    kernel
        ``"compiled"`` or ``"native"``.
    direct
        Whether to leave torch's dispatcher out, if `needs_operator` says no, and the lengths are checked.

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
        tensors = (x, lengths, resets, *(part[k] for part in state), *of_direction[: num_weights(cell)])
        if direct:
            output, *results = _Direct.apply(*tensors, reverse[k], kernel, cell)  # type: ignore[no-untyped-call]
        else:
            keeps = kernel == "compiled" and torch.is_grad_enabled()
            keep = keeps and any(t is not None and t.requires_grad for t in tensors)
            output, *results, _ = _OPERATORS[cell](*tensors, reverse[k], kernel, keep)
        outputs.append(output)
        finals.append(results)
    if len(outputs) == 1:
        return outputs[0], tuple([part.unsqueeze(0) for part in finals[0]])
    return torch.cat(outputs, dim=2), tuple([torch.stack(parts) for parts in zip(*finals, strict=True)])
