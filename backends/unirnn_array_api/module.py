"""The module that the ``array_api`` backend builds."""

from collections.abc import Mapping
from typing import Any

import array_api_compat
import numpy as np

from unirnn import RecurrentSpec
from unirnn import reference as plain
from unirnn.contract.call import bind, check, join_state, lengths, state_parts

__all__ = ["ArrayModule"]


class ArrayModule:
    """A stack of recurrent layers over the arrays of one namespace.

    Whatever autodiff the namespace has goes through it.

    Parameters
    ----------
    spec
        What it is.
    weights
        Arrays of the namespace, by the names of `unirnn.Spec.weight_shapes`.
    generator
        Draws dropout while training.

    Attributes
    ----------
    spec
        What it is.
    weights
        Its weights by name.
    training
        Whether dropout is on; False until `train`.
    """

    def __init__(self, spec: RecurrentSpec, weights: Mapping[str, Any], generator: np.random.Generator) -> None:
        self.spec = spec
        self.weights = dict(weights)
        self.training = False
        self._generator = generator

    @property
    def _xp(self) -> Any:
        return array_api_compat.array_namespace(*self.weights.values())

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r}, {self._xp.__name__})"

    def train(self, mode: bool = True) -> "ArrayModule":
        """Switch dropout on (or off)."""
        self.training = mode
        return self

    def eval(self) -> "ArrayModule":
        """Switch dropout off."""
        return self.train(False)

    def __call__(self, input: Any = None, hx: Any = None, seq_length: Any = None, **aliases: Any) -> Any:
        """Run the layers.

        Parameters
        ----------
        input
            `(T, B, I)`, `(B, T, I)` if ``batch_first``, or `(T, I)`; of the weights' dtype. Also ``x``.
        hx
            Initial state, `(L*D, B, H)`, or `(L*D, H)`; for LSTM a pair. None is zeros. Also ``h_0``.
        seq_length
            `(B,)` integers, ``0 <= n <= T``; see `unirnn.contract.call`. None is T for every sequence.

        Returns
        -------
        output
            As the input, with D*H on the last axis; zero from step n on.
        h_n
            The final state; for LSTM ``(h_n, c_n)``.
        """
        spec, xp = self.spec, self._xp
        input, hx, seq_length = bind(spec, input, hx, seq_length, aliases)
        state = state_parts(spec, hx)
        # Not the weight's own type, which may be a subclass, such as torch.nn.Parameter.
        array_type = type(xp.asarray(0.0))
        sizes = check(spec, array_type, self.weights["weight_ih_l0"].dtype, input, state)
        ns = None
        if seq_length is not None:
            ns = xp.asarray(lengths(seq_length, sizes), device=array_api_compat.device(input))
        dropout = self._dropout if self.training and spec.dropout else None
        output, final = plain.recurrent(xp, spec, self.weights, input, state, ns, dropout=dropout)
        return output, join_state(final)

    def _dropout(self, x: Any) -> Any:
        kept = self._generator.random(tuple(x.shape)) >= self.spec.dropout
        scale = kept / (1 - self.spec.dropout)
        return x * self._xp.asarray(scale, dtype=x.dtype, device=array_api_compat.device(x))
