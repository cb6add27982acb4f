"""All layers as one function, where MindSpore runs Python as it stands (PyNative), on a CPU.

Each operator that MindSpore launches there costs as much as some steps of a small layer. So nothing is launched: one
differentiable function runs the core's kernels over the tensors' own memory, which is not copied, but for the weights
of a backward pass. What that needs stays with it; where MindSpore records no gradient, nothing stays. What MindSpore
compiles is `kernel`, with the same numbers.
"""

import warnings
from typing import Any

import numpy as np
from mindspore import Tensor, common

from unirnn import RecurrentSpec, kernels
from unirnn.contract.call import Sizes, lengths
from unirnn.errors import LimitError
from unirnn_mindspore.operators import quiet

__all__ = ["layers"]


def _run(
    spec: RecurrentSpec, compiled: bool, seq_length: Any, x: Any, rest: tuple[Any, ...], *, keep: bool
) -> tuple[Any, Any, Any]:
    """The output and the final state, the pullback, and the names of what it gives for x and the rest."""
    input = x.asnumpy()
    given = len(rest) - len(spec.weight_shapes())
    hx = tuple(part.asnumpy() for part in rest[:given]) or None
    weights = {name: w.asnumpy() for name, w in zip(spec.weight_shapes(), rest[given:], strict=True)}
    if keep:  # what is assigned to a parameter from here on must not reach the gradient
        weights = {name: array.copy() for name, array in weights.items()}
    ns = None if seq_length is None else lengths(seq_length.asnumpy(), Sizes(*input.shape[:2]))
    with quiet():
        output, final, pullback = kernels.recurrent(spec, weights, input, hx, ns, keep=keep, compiled=compiled)
    return (output, *final), pullback, ("input", *(f"{name}_0" for name in spec.states[:given]), *weights)


def _forward(ctx: Any, spec: RecurrentSpec, compiled: bool, seq_length: Any, x: Any, *rest: Any) -> Any:
    # No zeros are made for a result that nobody uses.
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
    if _records():  # gradients of gradients: they would be taken for constants, in silence
        on_what = (*ctx.inputs, *(d for d in d_results if d is not None))
        found = _Last.apply(len(found), *found, *on_what)
    return None, None, None, *found


def _last_forward(ctx: Any, count: int, *tensors: Any) -> Any:
    return tensors[:count]


def _last_backward(ctx: Any, *_: Any) -> Any:
    raise LimitError(
        "second derivatives: the packed kernels, on which mindspore's layers run on the CPU, have none; those of the "
        "torch backend have"
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
        The layers, as of time-major input.
    compiled
        Whether numba steps; see `unirnn.kernels`.
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
        `(T, B, D*H)`, and the final state, as the initial.
    """
    if not _records():
        parts, _, _ = _run(spec, compiled, seq_length, x, (*state, *weights), keep=False)
        return tuple(_tensor(part) for part in parts)
    results: tuple[Any, ...] = _Function.apply(spec, compiled, seq_length, x, *state, *weights)
    return results


def _records() -> bool:
    """Whether MindSpore records what runs now, for a gradient; never within a forward `apply`. True if unknown."""
    ask: Any = common
    for name in ("api", "_pynative_executor", "requires_grad"):  # there is no public way
        ask = getattr(ask, name, None)
    return ask is None or bool(ask())


layers: Any = None
"""What runs the layers; None where MindSpore lacks what it stands on. See `_layers`."""

try:
    # There is no public class for this: a Cell with a `bprop` has no place for what one call leaves to its backward.
    from mindspore.common._grad_function import _Function as _Base
except ImportError as error:
    warnings.warn(
        "in PyNative mode unirnn runs its layers as custom operators, which is slower: this MindSpore lacks what else "
        f"runs them ({error}); please report it to unirnn",
        RuntimeWarning,
        stacklevel=2,
    )
else:
    _Function: Any = type(
        "_Function", (_Base,), {"forward": staticmethod(_forward), "backward": staticmethod(_backward)}
    )
    _Last: Any = type(
        "_Last", (_Base,), {"forward": staticmethod(_last_forward), "backward": staticmethod(_last_backward)}
    )
    layers = _layers
