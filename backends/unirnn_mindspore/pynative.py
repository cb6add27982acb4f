"""All layers as one function, for PyNative mode on a CPU.

In PyNative mode, launching one operator costs as much as several steps of a small layer. So all layers are one
differentiable function, which runs the core's kernels over the memory of the tensors. It copies and stores something
only if a gradient is recorded: then it copies the weights, and stores what the backward pass needs. In compiled graphs,
`unirnn_mindspore.operators` computes the same numbers.
"""

import warnings
from typing import Any

import numpy as np
from mindspore import Tensor, common

from unirnn import RecurrentSpec, kernels
from unirnn.contract.call import Sizes, lengths
from unirnn.errors import LimitError

from .operators import quiet

__all__ = ["layers"]


def _run(
    spec: RecurrentSpec, compiled: bool, seq_length: Any, x: Any, rest: tuple[Any, ...], *, keep: bool
) -> tuple[Any, Any, Any]:
    """Give the output with the final state, the pullback, and the names of x and the rest in its result."""
    input = x.asnumpy()
    given = len(rest) - len(spec.weight_shapes())
    hx = tuple(part.asnumpy() for part in rest[:given]) or None
    weights = {name: w.asnumpy() for name, w in zip(spec.weight_shapes(), rest[given:], strict=True)}
    if keep:  # an assignment to a parameter from here on must not change the gradient
        weights = {name: array.copy() for name, array in weights.items()}
    ns = None if seq_length is None else lengths(seq_length.asnumpy(), Sizes(*input.shape[:2]))
    with quiet():
        output, final, pullback = kernels.recurrent(spec, weights, input, hx, ns, keep=keep, compiled=compiled)
    return (output, *final), pullback, ("input", *(f"{name}_0" for name in spec.states[:given]), *weights)


def _forward(ctx: Any, spec: RecurrentSpec, compiled: bool, seq_length: Any, x: Any, *rest: Any) -> Any:
    # MindSpore need not make zeros for results that are not used.
    ctx.set_materialize_grads(False)
    results, ctx.pullback, ctx.names = _run(spec, compiled, seq_length, x, rest, keep=True)
    ctx.inputs = (x, *rest)
    ctx.results = tuple((part.shape, part.dtype) for part in results)
    return tuple(_tensor(part) for part in results)


def _backward(ctx: Any, *d_results: Any) -> Any:
    d_output, *d_final = (
        np.zeros(*result) if d is None else d.asnumpy() for d, result in zip(d_results, ctx.results, strict=True)
    )
    with quiet():
        gradients = ctx.pullback(d_output, tuple(d_final))
    found = [_tensor(gradients[name]) for name in ctx.names]
    if _is_recording():  # second derivatives, for which these gradients would silently be constants
        sources = (*ctx.inputs, *(d for d in d_results if d is not None))
        found = _Undifferentiable.apply(len(found), *found, *sources)
    return None, None, None, *found


def _undifferentiable_forward(ctx: Any, count: int, *tensors: Any) -> Any:
    return tensors[:count]


def _undifferentiable_backward(ctx: Any, *_: Any) -> Any:
    raise LimitError(
        "second derivatives: the packed kernels, on which mindspore's layers run on the CPU, have none; build with the "
        "torch backend, which has them"
    )


def _tensor(array: Any) -> Tensor:
    return Tensor.from_numpy(np.ascontiguousarray(array))


def _layers(
    spec: RecurrentSpec, compiled: bool, x: Any, state: tuple[Any, ...], seq_length: Any, weights: tuple[Any, ...]
) -> tuple[Any, ...]:
    """Run all layers.

    Parameters
    ----------
    spec
        The layers, with ``batch_first=False``.
    compiled
        Whether numba compiles the steps; see `unirnn.kernels`.
    x
        `(T, B, I)`.
    state
        Initial state, `(L*D, B, H)` each; empty for zeros.
    seq_length
        `(B,)`; None if every step is valid.
    weights
        In the order of `unirnn.Spec.weight_shapes`.

    Returns
    -------
    tuple
        The output `(T, B, D*H)`, and the final state, `(L*D, B, H)` each.
    """
    if not _is_recording():
        parts, _, _ = _run(spec, compiled, seq_length, x, (*state, *weights), keep=False)
        return tuple(_tensor(part) for part in parts)
    results: tuple[Any, ...] = _Function.apply(spec, compiled, seq_length, x, *state, *weights)
    return results


def _is_recording() -> bool:
    """Whether MindSpore records this call for a gradient; True if unknown, and always False within a `_forward`."""
    ask: Any = common
    for name in ("api", "_pynative_executor", "requires_grad"):  # there is no public function for this
        ask = getattr(ask, name, None)
    return ask is None or bool(ask())


layers: Any = None
"""Runs the layers, see `_layers`; None where this MindSpore lacks the class that it needs."""

try:
    # A private class, since the public one, a Cell with a `bprop`, can't hand anything from the call to its `bprop`.
    from mindspore.common._grad_function import _Function as _Base
except ImportError as error:
    warnings.warn(
        "in PyNative mode unirnn runs its layers as custom operators, which is slower, since this MindSpore lacks a "
        f"class that unirnn needs ({error}); please report it to unirnn",
        RuntimeWarning,
        stacklevel=2,
    )
else:
    _Function: Any = type(
        "_Function", (_Base,), {"forward": staticmethod(_forward), "backward": staticmethod(_backward)}
    )
    _Undifferentiable: Any = type(
        "_Undifferentiable",
        (_Base,),
        {"forward": staticmethod(_undifferentiable_forward), "backward": staticmethod(_undifferentiable_backward)},
    )
    layers = _layers
