"""All layers as one function, for PyNative mode on a CPU.

In PyNative mode, launching one operator costs as much as several steps of a small layer. So all layers are one
differentiable function, which runs the core's kernels over the memory of the tensors. It copies and stores something
only if a gradient is recorded: then it copies the weights, and stores what the backward pass needs. In compiled graphs,
`unirnn_mindspore.operators` computes the same numbers.
"""

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from mindspore import Tensor, common

from unirnn import RecurrentSpec, kernels
from unirnn.contract.call import Batch
from unirnn.contract.lengths import Sizes, parse_lengths
from unirnn.errors import LimitError
from unirnn.kernels import KernelName

__all__ = ["Call", "layers"]


@dataclass(frozen=True, eq=False)
class Call:
    """The part of a call of the layers that has no gradients.

    Parameters
    ----------
    spec
        The layers, with ``batch_first=False``.
    kernel
        The kernel that runs them.
    seq_length
        `(B,)`; None if every step is valid.
    resets
        `(T, B)` bool; None if no sequence begins anew.
    noise
        `(L-1, T, B, D*H)`: what the output of every layer but the last is multiplied with; None without dropout.
    """

    spec: RecurrentSpec
    kernel: KernelName
    seq_length: Tensor | None
    resets: Tensor | None
    noise: Tensor | None


def _run(call: Call, x: Any, rest: tuple[Any, ...], *, keep: bool) -> tuple[Any, Any, Any]:
    """Give the output with the final state, the pullback, and the names of x and the rest in its result."""
    spec, input = call.spec, x.asnumpy()
    given = len(rest) - len(spec.weight_shapes())
    hx = tuple(part.asnumpy() for part in rest[:given]) or None
    weights = {name: w.asnumpy() for name, w in zip(spec.weight_shapes(), rest[given:], strict=True)}
    if keep:  # an assignment to a parameter from here on must not change the gradient
        weights = {name: array.copy() for name, array in weights.items()}
    ns = None if call.seq_length is None else parse_lengths(call.seq_length.asnumpy(), Sizes(*input.shape[:2]))
    begins = None if call.resets is None else call.resets.asnumpy()
    noise = None if call.noise is None else call.noise.asnumpy()
    with _quiet():
        output, final, pullback = kernels.recurrent(
            spec, weights, Batch(input, hx, ns, begins), noise=noise, keep=keep, kernel=call.kernel
        )
    return (output, *final), pullback, ("input", *(f"{name}_0" for name in spec.states[:given]), *weights)


def _quiet() -> Any:
    """Make a context in which NumPy, like MindSpore, gives no warning of an infinity or a NaN."""
    return np.errstate(all="ignore")


def _forward(ctx: Any, call: Call, x: Any, *rest: Any) -> Any:
    # MindSpore need not make zeros for results that are not used.
    ctx.set_materialize_grads(False)
    results, ctx.pullback, ctx.names = _run(call, x, rest, keep=True)
    ctx.inputs = (x, *rest)
    ctx.results = tuple((part.shape, part.dtype) for part in results)
    return tuple(_tensor(part) for part in results)


def _backward(ctx: Any, *d_results: Any) -> Any:
    d_output, *d_final = (
        np.zeros(*result) if d is None else d.asnumpy() for d, result in zip(d_results, ctx.results, strict=True)
    )
    with _quiet():
        gradients = ctx.pullback(d_output, tuple(d_final))
    found = [_tensor(gradients[name]) for name in ctx.names]
    if _is_recording():  # second derivatives, for which these gradients would silently be constants
        sources = (*ctx.inputs, *(d for d in d_results if d is not None))
        found = _Undifferentiable.apply(len(found), *found, *sources)
    return None, *found


def _undifferentiable_forward(ctx: Any, count: int, *tensors: Any) -> Any:
    return tensors[:count]


def _undifferentiable_backward(ctx: Any, *_: Any) -> Any:
    raise LimitError(
        "second derivatives: mindspore's layers have none on a CPU; build with the torch backend, whose layers have "
        "them"
    )


def _tensor(array: Any) -> Tensor:
    return Tensor.from_numpy(np.ascontiguousarray(array))


def _layers(call: Call, x: Any, state: tuple[Any, ...], weights: tuple[Any, ...]) -> tuple[Any, ...]:
    """Run all layers.

    Parameters
    ----------
    call
        The layers, the kernel, and what has no gradient.
    x
        `(T, B, I)`.
    state
        Initial state, `(L*D, B, H)` each; empty for zeros.
    weights
        In the order of `unirnn.Spec.weight_shapes`.

    Returns
    -------
    tuple
        The output `(T, B, D*H)`, and the final state, `(L*D, B, H)` each.
    """
    if not _is_recording():
        parts, _, _ = _run(call, x, (*state, *weights), keep=False)
        return tuple(_tensor(part) for part in parts)
    results: tuple[Any, ...] = _Function.apply(call, x, *state, *weights)
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
        "in PyNative mode unirnn runs its layers as in a graph, which is slower, since this MindSpore lacks a class "
        f"that unirnn needs ({error}); please report it to unirnn",
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
