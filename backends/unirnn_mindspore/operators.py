"""One layer in one direction on a CPU: a differentiable operator that calls the compiled kernels, for graph mode.

MindSpore on a CPU pays for every operator that it launches, and a layer made of small operators for each time step
would cost far more than what it computes. So a layer is one ``ops.Custom`` over all steps, and its gradient another,
which runs the layer again and then backward: nothing is stored between the two. MindSpore calls both in the library of
the compiled kernels (``unirnn/kernels/csrc/mindspore.c``), without Python.
"""

import functools
from typing import Any

from mindspore import Tensor, nn, ops
from mindspore import dtype as mstype

from unirnn import LSTMSpec, RecurrentSpec, Spec
from unirnn.contract.lengths import Sizes, parse_lengths
from unirnn.contract.models import check_tokens
from unirnn.kernels import library
from unirnn.kernels.compiled import cell_of

__all__ = ["CheckedLengths", "CheckedTokens", "CompiledDirection", "shared"]


class CompiledDirection(nn.Cell):
    """One layer in one direction; its signature is described in `unirnn_mindspore.layers`.

    Parameters
    ----------
    spec
        The layer.
    reverse
        Whether it runs from the last valid step to the first.
    """

    def __init__(self, spec: RecurrentSpec, reverse: bool) -> None:
        super().__init__()
        self.kernel = KernelWithGradient(spec, reverse)
        self.is_lstm = spec.kind == "LSTM"
        self.no_projection = Tensor([0.0])

    def construct(self, x: Any, h_0: Any, c_0: Any, seq_length: Any, resets: Any, weights: Any) -> Any:
        """Give the outputs `(T, B, H)` and the final state, `(B, H)` each."""
        w_ih, w_hh, b_ih, b_hh = weights[:4]
        w_hr = weights[4] if len(weights) == 5 else self.no_projection
        results = self.kernel(x, h_0, c_0, seq_length, resets, w_ih, w_hh, b_ih, b_hh, w_hr)
        return results[0], results[1], results[2] if self.is_lstm else results[1]


class KernelWithGradient(nn.Cell):
    """The operator and its gradient. The results are the outputs and the final state, an array for each of its parts.

    It is a cell since an operator's own ``bprop`` is not called in graph mode if it needs cells. `construct` and
    `bprop` have a parameter for each weight, since graph mode refuses a `bprop` whose parameters are a tuple or
    ``*weights``; what stands for ``w_hr`` without a projection is not read. They call no method, which graph mode
    compiles wrongly in a `bprop`. float16 is cast here, and no further out, since `to_float` casts the inputs of every
    cell.
    """

    def __init__(self, spec: RecurrentSpec, reverse: bool) -> None:
        super().__init__()
        self.run, self.run_back = operators(spec, reverse)
        self.projects = _projects(spec)

    def construct(
        self,
        x: Any,
        h_0: Any,
        c_0: Any,
        seq_length: Any,
        resets: Any,
        w_ih: Any,
        w_hh: Any,
        b_ih: Any,
        b_hh: Any,
        w_hr: Any,
    ) -> Any:
        """Give the outputs, h_n, and c_n if it is an LSTM."""
        wide = mstype.float64 if x.dtype == mstype.float64 else mstype.float32
        inputs: Any = ()
        for part in (x, h_0, c_0):
            inputs += (part.astype(wide),)
        inputs += (seq_length, resets)
        for part in (w_ih, w_hh, b_ih, b_hh, w_hr)[: 5 if self.projects else 4]:
            inputs += (part.astype(wide),)
        results = self.run(*inputs)
        narrow: Any = ()
        for part in results:
            narrow += (part.astype(x.dtype),)
        return narrow

    def bprop(
        self,
        x: Any,
        h_0: Any,
        c_0: Any,
        seq_length: Any,
        resets: Any,
        w_ih: Any,
        w_hh: Any,
        b_ih: Any,
        b_hh: Any,
        w_hr: Any,
        out: Any,
        dout: Any,
    ) -> Any:
        """Give the gradients in the order of `construct`'s parameters."""
        wide = mstype.float64 if x.dtype == mstype.float64 else mstype.float32
        inputs: Any = ()
        for part in (x, h_0, c_0):
            inputs += (part.astype(wide),)
        inputs += (seq_length, resets)
        for part in (w_ih, w_hh, b_ih, b_hh, w_hr)[: 5 if self.projects else 4]:
            inputs += (part.astype(wide),)
        for part in dout:
            inputs += (part.astype(wide),)
        found: Any = ()
        for gradient in self.run_back(*inputs):
            found += (gradient.astype(x.dtype),)
        without = (ops.zeros_like(seq_length), ops.zeros_like(resets))  # what has no gradient
        if not self.projects:
            found += (ops.zeros_like(w_hr),)
        return (*found[:3], *without, *found[3:])


def _projects(spec: RecurrentSpec) -> bool:
    return isinstance(spec, LSTMSpec) and spec.proj_size > 0


@functools.cache
def operators(spec: RecurrentSpec, reverse: bool) -> tuple[Any, Any]:
    """Make the operator of a direction, and the operator of its gradient."""
    loaded = library.load()
    assert loaded is not None  # the backend takes MindSpore's own operators where there is no library
    name = f"{cell_of(spec)}{'_PROJECTED' if _projects(spec) else ''}{'_reverse' if reverse else ''}"
    prefix = f"{loaded._name}:unirnn_mindspore_{name}"
    parts, weights = len(spec.states), 5 if _projects(spec) else 4

    def output_shapes(x: Any, h_0: Any, c_0: Any, *rest: Any) -> Any:
        return [x[0], x[1], h_0[1]], *(h_0, c_0)[:parts]

    def output_dtypes(x: Any, *rest: Any) -> Any:
        return (x,) * (1 + parts)

    def like_inputs(x: Any, h_0: Any, c_0: Any, seq_length: Any, resets: Any, *rest: Any) -> Any:
        """Give the shapes, or dtypes, of the gradients: those of x, the state and the weights."""
        return x, h_0, c_0, *rest[:weights]

    return (
        shared(ops.Custom(f"{prefix}_forward", output_shapes, output_dtypes, "aot")),
        shared(ops.Custom(f"{prefix}_backward", like_inputs, like_inputs, "aot")),
    )


class CheckedLengths(nn.Cell):
    """The lengths as they are, if each is in range.

    In graph mode their values are known only when the graph runs. The compiled kernels refuse what is out of range too,
    but MindSpore then shows no message. So this is an operator that runs Python.
    """

    def __init__(self) -> None:
        super().__init__()
        self.checked = _checked()

    def construct(self, seq_length: Any, steps: int) -> Any:
        """Give the lengths `(B,)` of an input with ``steps`` steps."""
        return ops.stop_gradient(self.checked(seq_length, Tensor(steps, mstype.int64)))


@functools.cache  # MindSpore never forgets an operator's function
def _checked() -> Any:
    def check(seq_length: Any, steps: Any) -> Any:
        return parse_lengths(seq_length, Sizes(int(steps), seq_length.shape[0]))

    def like_lengths(seq_length: Any, steps: Any) -> Any:
        return seq_length

    return shared(ops.Custom(check, like_lengths, like_lengths, "pyfunc"))


class CheckedTokens(nn.Cell):
    """The tokens as they are, if there is an embedding of each; see `CheckedLengths`.

    For a token out of range, MindSpore's operator returns arbitrary numbers.

    Parameters
    ----------
    spec
        The model.
    """

    def __init__(self, spec: Spec) -> None:
        super().__init__()
        self.checked: Any = _checked_tokens(spec) if spec.takes_tokens else None

    def construct(self, tokens: Any) -> Any:
        """Give tokens of any shape."""
        return ops.stop_gradient(self.checked(tokens))


@functools.cache
def _checked_tokens(spec: Spec) -> Any:
    def check(tokens: Any) -> Any:
        check_tokens(spec, tokens)
        return tokens

    def like_tokens(tokens: Any) -> Any:
        return tokens

    return shared(ops.Custom(check, like_tokens, like_tokens, "pyfunc"))


def shared(operator: Any) -> Any:
    """Make deep copies of a Cell share this operator: it has no state, and MindSpore fails to copy it."""
    operator.__deepcopy__ = lambda memo: operator
    return operator
