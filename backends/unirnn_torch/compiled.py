"""The core's kernels, compiled by numba, over the tensors' own memory: one layer, where torch runs eagerly on a CPU.

For what `packed` does, this has no price for a call of torch's, of which a step there has ten. A compiler can't see
into it: `torch.compile` and `torch.export` get the operators of `packed`. Second derivatives are those of `packed` too.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unirnn import Spec, kernels, plain
from unirnn.call import Sizes
from unirnn.call import lengths as checked

from .packed import second_derivatives

__all__ = ["layer"]


def layer(
    spec: Spec, mode: str, x: Tensor, lengths: Tensor | None, state: Sequence[Tensor], weights: Sequence[plain.Weights]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer of a spec; see `unirnn_torch.packed.layer`.

    Parameters
    ----------
    spec
        What the layer is; its sizes are read off the tensors.
    mode, x, lengths, state, weights
        As there.

    Returns
    -------
    output, final_state
        As there.
    """
    outputs, finals = [], []
    for k, of_direction in enumerate(weights):
        given = (x, lengths, *(part[k] for part in state), *of_direction[:4])
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
            output, *final = _Direction.apply(spec, mode, k == 1, *given)  # type: ignore[no-untyped-call]
        else:
            (output, *final), _ = _run(spec, k == 1, given, keep=False)
        outputs.append(output)
        finals.append(final)
    whole = tuple(torch.stack(parts) for parts in zip(*finals, strict=True))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2), whole


def _run(spec: Spec, backward: bool, given: Sequence[Tensor | None], *, keep: bool) -> tuple[list[Tensor], Any]:
    """``[output, *final]``, and the pullback."""
    x, lengths, *rest = given
    assert x is not None
    steps, batch_size, _ = x.shape
    state: Any = tuple(map(_memory, rest[: len(spec.states)]))
    # A copy for the pullback: whoever shards a model takes the memory of its weights away in between.
    weights = (w.clone() if keep and w is not None else w for w in rest[len(state) :])
    ns = np.full(batch_size, steps) if lengths is None else checked(lengths.numpy(), Sizes(steps, batch_size))
    output, final, pullback = kernels.direction(
        spec,
        kernels.Weights(*map(_memory, weights)),
        _memory(x),
        state,
        ns,
        backward=backward,
        keep=keep,
        compiled=True,
    )
    return [torch.from_numpy(part) for part in (output, *final)], pullback


def _memory(tensor: Tensor | None) -> Any:
    """A tensor's values, where they lie. Not by its `numpy`, after which torch lets nobody resize the memory."""
    return None if tensor is None else np.from_dlpack(tensor.detach().resolve_neg())


class _Direction(torch.autograd.Function):
    """One layer in one direction: ``(spec, mode, backward, x, lengths, *state, *weights)`` to ``(output, *final)``."""

    @staticmethod
    def forward(ctx: Any, spec: Spec, mode: str, backward: bool, *given: Tensor | None) -> tuple[Tensor, ...]:
        results, ctx.pullback = _run(spec, backward, given, keep=True)
        ctx.mode, ctx.backwards = mode, backward
        ctx.save_for_backward(*given)  # what the pullback reads, it must find unchanged: autograd looks
        ctx.shapes = [result.shape for result in results]
        ctx.set_materialize_grads(False)
        return tuple(results)

    @staticmethod
    def backward(ctx: Any, *d_results: Tensor | None) -> tuple[Any, ...]:
        given, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        if torch.is_grad_enabled():  # exactly under create_graph
            return None, None, None, *second_derivatives(ctx.mode, given, ctx.backwards, d_results, needed)
        d_output, *d_final = (
            _memory(torch.zeros(shape, dtype=given[0].dtype) if d is None else d)
            for d, shape in zip(d_results, ctx.shapes, strict=True)
        )
        d_x, d_state, d_weights = ctx.pullback(d_output, tuple(d_final))
        gradients = (d_x, None, *d_state, *d_weights)
        found = (torch.from_numpy(g) if need else None for g, need in zip(gradients, needed, strict=True))
        return None, None, None, *found
