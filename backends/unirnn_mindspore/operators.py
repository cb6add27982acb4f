"""One layer in one direction on a CPU: a differentiable operator that runs the core's kernels.

MindSpore on a CPU pays for every operator that it launches, and a layer made of small operators for each time step
would cost far more than what it computes. So a layer is one ``ops.Custom`` over all steps, and its gradient another,
which runs the layer again and then backward: nothing is stored between the two. Both serve PyNative and graph mode.
MindSpore lends the memory of the inputs, so they are not copied.
"""

import functools
from typing import Any

import numpy as np
from mindspore import nn, ops

from unirnn import RecurrentSpec, kernels
from unirnn.contract.call import Sizes, lengths
from unirnn.kernels.threads import cores

__all__ = ["KernelDirection", "quiet", "shared"]


class KernelDirection(nn.Cell):
    """One layer in one direction; its signature is described in `unirnn_mindspore.layers`.

    Parameters
    ----------
    spec
        The layer.
    backward
        Whether it runs from the last valid step to the first.
    compiled
        Whether numba compiles the steps; see `unirnn.kernels`.
    """

    def __init__(self, spec: RecurrentSpec, backward: bool, compiled: bool) -> None:
        super().__init__()
        self.kernel = Kernel(spec, backward, compiled)
        self.is_lstm = spec.kind == "LSTM"

    def construct(self, x: Any, h_0: Any, c_0: Any, seq_length: Any, weights: Any) -> Any:
        """Give the outputs `(T, B, H)` and the final state, `(B, H)` each."""
        steps = x.shape[0]
        rows = self.kernel(x, h_0, c_0, seq_length, *weights)
        h_n = rows[steps]
        return rows[:steps], h_n, rows[steps + 1] if self.is_lstm else h_n


class Kernel(nn.Cell):
    """The operator and its gradient. The result is the outputs and then h_n, `(T+1, B, H)`; for an LSTM also c_n.

    It is one array, since in PyNative mode MindSpore makes zeros as the gradient of each result that is not used, and
    MindSpore 2.10 leaks 1.3 KB each time.
    """

    # `construct` and `bprop` have a parameter for each weight, since graph mode refuses a `bprop` whose parameters are
    # a tuple or ``*weights``.

    def __init__(self, spec: RecurrentSpec, backward: bool, compiled: bool) -> None:
        super().__init__()
        self.run, self.run_back = operators(spec, backward, compiled)

    def construct(self, x: Any, h_0: Any, c_0: Any, seq_length: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        """Give the outputs, followed by the final state."""
        return self.run(x, h_0, c_0, seq_length, w_ih, w_hh, b_ih, b_hh)

    def bprop(
        self,
        x: Any,
        h_0: Any,
        c_0: Any,
        seq_length: Any,
        w_ih: Any,
        w_hh: Any,
        b_ih: Any,
        b_hh: Any,
        out: Any,
        dout: Any,
    ) -> Any:
        """Give the gradients in the order of `construct`'s parameters."""
        dx, dh_0, dc_0, dw_ih, dw_hh, db_ih, db_hh = self.run_back(
            x, h_0, c_0, seq_length, w_ih, w_hh, b_ih, b_hh, dout
        )
        return dx, dh_0, dc_0, ops.zeros_like(seq_length), dw_ih, dw_hh, db_ih, db_hh


@functools.cache  # MindSpore never forgets an operator's function: there is one for each spec, not for each module
def operators(spec: RecurrentSpec, backward: bool, compiled: bool) -> tuple[Any, Any]:
    """Make the operator of a direction, and that of its gradient."""
    parts = len(spec.states)

    def apply(keep: bool, x: Any, h_0: Any, c_0: Any, seq_length: Any, *weights: Any) -> Any:
        # In graph mode this is the first place where the values of the lengths are known.
        ns = lengths(seq_length, Sizes(x.shape[0], x.shape[1]))
        w, state = kernels.Weights(*weights), (h_0, c_0)[:parts]
        return kernels.direction(
            spec, w, x, state, ns, backward=backward, keep=keep, compiled=compiled, num_threads=_num_threads()
        )

    # MindSpore counts the parameters of these two, so they can't be ``*inputs``.
    def run(x: Any, h_0: Any, c_0: Any, seq_length: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        with quiet():
            outputs, final, _ = apply(False, x, h_0, c_0, seq_length, w_ih, w_hh, b_ih, b_hh)
        return np.concatenate((outputs, final))

    def run_back(
        x: Any, h_0: Any, c_0: Any, seq_length: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any, d_rows: Any
    ) -> tuple[Any, ...]:
        steps = x.shape[0]
        with quiet():
            _, _, pullback = apply(True, x, h_0, c_0, seq_length, w_ih, w_hh, b_ih, b_hh)
            dx, d_state, d_weights = pullback(d_rows[:steps], tuple(d_rows[steps:]))
        return (dx, d_state[0], d_state[1] if parts == 2 else np.zeros_like(c_0), *d_weights)

    def output_shape(x: Any, h_0: Any, *rest: Any) -> Any:
        return [x[0] + parts, x[1], h_0[1]]

    def output_dtype(x: Any, *rest: Any) -> Any:
        return x

    def like_inputs(x: Any, h_0: Any, c_0: Any, seq_length: Any, *rest: Any) -> Any:
        """Give the shapes, or dtypes, of the gradients: those of x, the state and the weights."""
        return x, h_0, c_0, *rest[:4]

    return (
        shared(ops.Custom(run, output_shape, output_dtype, "pyfunc")),
        shared(ops.Custom(run_back, like_inputs, like_inputs, "pyfunc")),
    )


def _num_threads() -> int:
    """Count all cores but one, since the thread that waits for a graph keeps one of them busy.

    With more threads than cores, every product of BLAS would wait for the thread that has no core.
    """
    return max(1, cores() - 1)


def quiet() -> Any:
    """Make a context in which NumPy, like MindSpore, gives no warning of an infinity or a NaN."""
    return np.errstate(all="ignore")


def shared(operator: Any) -> Any:
    """Make deep copies of a Cell share this operator: it has no state, and MindSpore fails to copy it."""
    operator.__deepcopy__ = lambda memo: operator
    return operator
