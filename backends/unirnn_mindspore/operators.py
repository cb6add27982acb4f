"""One layer in one direction on a CPU: a differentiable operator over the core's NumPy kernels.

MindSpore on a CPU pays for every operator that it launches, and a layer of small operators per time step
costs far more than what it computes. So a layer is one ``ops.Custom`` for all steps, and its gradient
another, which runs the layer again and then backward: no intermediate result is kept between them.
It serves PyNative and graph mode alike. MindSpore lends the memory of the inputs; nothing is copied there.
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
    """One layer in one direction, with the signature of every direction; see `stack`.

    Parameters
    ----------
    spec
        What the layer is.
    backward
        Whether it runs from the last valid step to the first.
    compiled
        Whether numba steps; see `unirnn.kernels`.
    """

    def __init__(self, spec: RecurrentSpec, backward: bool, compiled: bool) -> None:
        super().__init__()
        self.kernel = Kernel(spec, backward, compiled)
        self.is_lstm = spec.kind == "LSTM"

    def construct(self, x: Any, h_0: Any, c_0: Any, seq_length: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        """`(T, B, I)` to `(T, B, H)`, and the state, `(B, H)` each."""
        steps = x.shape[0]
        rows = self.kernel(x, h_0, c_0, seq_length, w_ih, w_hh, b_ih, b_hh)
        h_n = rows[steps]
        return rows[:steps], h_n, rows[steps + 1] if self.is_lstm else h_n


class Kernel(nn.Cell):
    """The operator and its gradient: `(T, B, I)` to `(T+1, B, H)`, the outputs and h, or for LSTM `(T+2, B, H)`.

    All is one result, since PyNative makes zeros for the gradient of each result that nobody uses, and MindSpore
    2.10 never frees all of what it made: 1.3 KB each.
    """

    def __init__(self, spec: RecurrentSpec, backward: bool, compiled: bool) -> None:
        super().__init__()
        self.run, self.run_back = operators(spec, backward, compiled)

    def construct(self, x: Any, h_0: Any, c_0: Any, seq_length: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        """The outputs, and behind them the state."""
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
        """Gradients in the order of `construct`'s inputs."""
        dx, dh_0, dc_0, dw_ih, dw_hh, db_ih, db_hh = self.run_back(
            x, h_0, c_0, seq_length, w_ih, w_hh, b_ih, b_hh, dout
        )
        return dx, dh_0, dc_0, ops.zeros_like(seq_length), dw_ih, dw_hh, db_ih, db_hh


@functools.cache  # MindSpore registers an operator's function for good: one for each spec, not for each module
def operators(spec: RecurrentSpec, backward: bool, compiled: bool) -> tuple[Any, Any]:
    """The operator of a direction, and that of its gradient."""
    parts = len(spec.states)

    def apply(keep: bool, x: Any, h_0: Any, c_0: Any, seq_length: Any, *weights: Any) -> Any:
        # In graph mode this is the first place that sees the values.
        ns = lengths(seq_length, Sizes(x.shape[0], x.shape[1]))
        w, state = kernels.Weights(*weights), (h_0, c_0)[:parts]
        return kernels.direction(
            spec, w, x, state, ns, backward=backward, keep=keep, compiled=compiled, num_threads=_num_threads()
        )

    def forward(x: Any, h_0: Any, c_0: Any, seq_length: Any, w_ih: Any, w_hh: Any, b_ih: Any, b_hh: Any) -> Any:
        with quiet():
            outputs, final, _ = apply(False, x, h_0, c_0, seq_length, w_ih, w_hh, b_ih, b_hh)
        return np.concatenate((outputs, final))

    def run_back(
        x: Any,
        h_0: Any,
        c_0: Any,
        seq_length: Any,
        w_ih: Any,
        w_hh: Any,
        b_ih: Any,
        b_hh: Any,
        d_rows: Any,
    ) -> tuple[Any, ...]:
        steps = x.shape[0]
        with quiet():
            _, _, pullback = apply(True, x, h_0, c_0, seq_length, w_ih, w_hh, b_ih, b_hh)
            dx, d_state, d_weights = pullback(d_rows[:steps], tuple(d_rows[steps:]))
        return (dx, d_state[0], d_state[1] if parts == 2 else np.zeros_like(c_0), *d_weights)

    def result(x: Any, h_0: Any, *rest: Any) -> Any:
        """Shape of the outputs and the state."""
        return [x[0] + parts, x[1], h_0[1]]

    def kind(x: Any, *rest: Any) -> Any:
        return x

    def of_gradients(x: Any, h_0: Any, c_0: Any, seq_length: Any, *rest: Any) -> Any:
        """Shapes or dtypes: those of x, state and weights."""
        return x, h_0, c_0, *rest[:4]

    return (
        shared(ops.Custom(forward, result, kind, "pyfunc")),
        shared(ops.Custom(run_back, of_gradients, of_gradients, "pyfunc")),
    )


def _num_threads() -> int:
    """All cores but one: while a graph runs, the thread that waits for it does so by spinning.

    With a thread more than there are cores, each product of BLAS waits until the system takes one of them away from
    another.
    """
    return max(1, cores() - 1)


def quiet() -> Any:
    """A context in which NumPy says nothing of an infinity or a NaN, as MindSpore does not."""
    return np.errstate(all="ignore")


def shared(operator: Any) -> Any:
    """Let a deep copy of a Cell share an operator: it holds no state, and MindSpore's own copying of it fails."""
    operator.__deepcopy__ = lambda memo: operator
    return operator
