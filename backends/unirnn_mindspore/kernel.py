"""The stack of layers on a CPU: one differentiable operator over the core's NumPy kernels.

MindSpore on a CPU pays for every operator that it launches, and a layer of small operators per time step
costs ten to a hundred times what it computes. So the whole stack is one ``ops.Custom``, and its gradient
another, which runs the layers again and then backward: no intermediate result is kept between them.
It serves PyNative and graph mode alike. MindSpore lends the memory of the inputs; nothing is copied there.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import nn, ops

from unirnn import Spec, kernels
from unirnn.call import Sizes, lengths

__all__ = ["KernelStack", "shared"]


class KernelStack(nn.Cell):
    """All layers and directions; inputs and outputs in the spec's own layout.

    Parameters
    ----------
    spec
        The layers.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.run, self.run_back = operators(spec, noisy=False)
        self.run_noisy, self.run_noisy_back = operators(spec, noisy=True)
        self.parts = len(spec.states)

    def construct(self, input: Any, state: Any, seq_length: Any, noise: Any, weights: Any) -> Any:
        """``(output, *final_state)``; ``state``, ``noise`` (none or one) and ``weights`` are tuples."""
        if len(noise) == 0:
            return self.run(input, *state, seq_length, *weights)
        return self.run_noisy(input, *state, seq_length, *noise, *weights)

    def bprop(self, input: Any, state: Any, seq_length: Any, noise: Any, weights: Any, out: Any, dout: Any) -> Any:
        """Gradients in the order of `construct`'s inputs."""
        if len(noise) == 0:
            gradients = self.run_back(input, *state, seq_length, *weights, *dout)
            d_noise: Any = ()
        else:
            gradients = self.run_noisy_back(input, *state, seq_length, *noise, *weights, *dout)
            d_noise = (ops.zeros_like(noise[0]),)
        d_state = gradients[1 : 1 + self.parts]
        d_weights = gradients[1 + self.parts :]
        return gradients[0], d_state, ops.zeros_like(seq_length), d_noise, d_weights


@functools.cache  # MindSpore registers an operator's function for good: one for each spec, not for each module
def operators(spec: Spec, *, noisy: bool) -> tuple[ops.Custom, ops.Custom]:
    """The operator of a stack, and that of its gradient."""
    names = tuple(spec.weight_shapes())
    parts = len(spec.states)
    last = spec.num_directions * spec.hidden_size
    first_weight = 2 + parts + noisy

    def apply(inputs: tuple[Any, ...]) -> tuple[Any, Any, Any]:
        input, state = inputs[0], inputs[1 : 1 + parts]
        batched = input.ndim == 3
        sizes = Sizes(
            input.shape[1 if batched and spec.batch_first else 0],
            inputs[1].shape[1] if batched else None,
        )
        # In graph mode this is the first place that sees the values.
        ns = lengths(inputs[1 + parts].reshape(() if sizes.batch_size is None else -1), sizes)
        noise = inputs[2 + parts] if noisy else None
        weights = dict(zip(names, inputs[first_weight:], strict=True))
        return kernels.recurrent(spec, weights, input, state, ns, noise=noise)

    def forward(*inputs: Any) -> tuple[Any, ...]:
        output, final, _ = apply(inputs)
        return tuple(np.ascontiguousarray(a) for a in (output, *final))

    def backward(*inputs: Any) -> tuple[Any, ...]:
        given, d_output, d_state = inputs[: -1 - parts], inputs[-1 - parts], inputs[-parts:]
        _, _, pullback = apply(given)
        gradients = pullback(d_output, d_state)
        wanted = ("input", *(f"{state}_0" for state in spec.states), *names)
        return tuple(np.ascontiguousarray(gradients[name]) for name in wanted)

    def results(input: Any, *rest: Any) -> Any:
        """Shapes of output and final state."""
        return ([*input[:-1], last], *rest[:parts])

    def kinds(input: Any, *rest: Any) -> Any:
        return (input,) * (1 + parts)

    def gradients_of(*inputs: Any) -> Any:
        """Of shapes or of dtypes: those of input, state and weights."""
        return (*inputs[: 1 + parts], *inputs[first_weight : first_weight + len(names)])

    count = first_weight + len(names)
    return (
        shared(ops.Custom(_with_arity(forward, count), results, kinds, "pyfunc")),
        shared(ops.Custom(_with_arity(backward, count + 1 + parts), gradients_of, gradients_of, "pyfunc")),
    )


def _with_arity(function: Callable[..., Any], count: int) -> Callable[..., Any]:
    """``ops.Custom`` reads the number of inputs off the function's signature."""
    parameters = [inspect.Parameter(f"input_{n}", inspect.Parameter.POSITIONAL_ONLY) for n in range(count)]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def shared(operator: Any) -> Any:
    """Let a deep copy of a Cell share an operator: it holds no state, and MindSpore's own copying of it fails."""
    operator.__deepcopy__ = lambda memo: operator
    return operator
