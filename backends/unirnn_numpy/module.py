"""The module that the ``numpy`` backend builds."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn import Spec, kernels
from unirnn.call import bind, check, join_state, lengths, state_parts
from unirnn.errors import ShapeError

__all__ = ["NumpyModule"]

Array = NDArray[Any]


class NumpyModule:
    """A stack of recurrent layers over NumPy arrays.

    Parameters
    ----------
    spec
        What it is.
    weights
        By the names of `unirnn.Spec.weight_shapes`; kept, not copied.
    generator
        Draws dropout while training.

    Attributes
    ----------
    spec
        What it is.
    weights
        Its weights by name; write to the arrays to change them.
    training
        Whether dropout is on; False until `train`.

    Examples
    --------
    >>> import numpy, unirnn
    >>> gru = unirnn.GRUSpec(3, 4).build("numpy", seed=0)
    >>> output, h_n = gru(numpy.ones((5, 2, 3), "float32"), seq_length=[5, 0])
    >>> output.shape, float(abs(output[:, 1]).max())
    ((5, 2, 4), 0.0)
    """

    def __init__(self, spec: Spec, weights: Mapping[str, Array], generator: np.random.Generator) -> None:
        self.spec = spec
        self.weights = dict(weights)
        self.training = False
        self._generator = generator

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r})"

    def train(self, mode: bool = True) -> "NumpyModule":
        """Switch dropout on (or off)."""
        self.training = mode
        return self

    def eval(self) -> "NumpyModule":
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
            `(B,)` integers, ``0 <= n <= T``; see `unirnn.call`. None is T for every sequence.

        Returns
        -------
        output
            As the input, with D*H on the last axis; zero from step n on.
        h_n
            The final state; for LSTM ``(h_n, c_n)``.
        """
        output, final, _ = self._run(input, hx, seq_length, aliases, keep=False)
        return output, join_state(final)

    def vjp(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, **aliases: Any
    ) -> tuple[Array, Any, Callable[[Array, Any], dict[str, Array]]]:
        """Run the layers, and return what computes the gradients besides.

        Parameters
        ----------
        input, hx, seq_length
            As in a call.

        Returns
        -------
        output, h_n
            As a call returns them.
        pullback
            ``pullback(d_output, d_h_n)`` gives the gradients of
            ``sum(output * d_output) + sum(h_n * d_h_n)``, by name: ``input``, ``h_0`` (and ``c_0``), and each weight.
            None for ``d_h_n`` is zeros.
        """
        output, final, pullback = self._run(input, hx, seq_length, aliases, keep=True)

        def pull(d_output: Array, d_h_n: Any) -> dict[str, Array]:
            parts = state_parts(self.spec, d_h_n)
            if parts is None:
                parts = tuple(np.zeros_like(part) for part in final)
            names = ("d_output", *(f"d_{name}_n" for name in self.spec.states))
            for name, given, result in zip(names, (d_output, *parts), (output, *final), strict=True):
                if np.shape(given) != result.shape:
                    raise ShapeError(f"{name}: given shape {np.shape(given)}, expected {result.shape}")
            return pullback(np.asarray(d_output), tuple(np.asarray(part) for part in parts))

        return output, join_state(final), pull

    def _run(
        self, input: Any, hx: Any, seq_length: Any, aliases: dict[str, Any], *, keep: bool
    ) -> tuple[Array, tuple[Array, ...], Callable[[Array, tuple[Array, ...]], dict[str, Array]]]:
        spec = self.spec
        input, hx, seq_length = bind(spec, input, hx, seq_length, aliases)
        state = state_parts(spec, hx)
        sizes = check(spec, np.ndarray, self.weights["weight_ih_l0"].dtype, input, state)
        ns = None if seq_length is None else lengths(seq_length, sizes)
        noise = self._noise(sizes.steps, sizes.batch_size or 1)
        return kernels.recurrent(spec, self.weights, input, state, ns, noise=noise, keep=keep)

    def _noise(self, steps: int, batch_size: int) -> Array | None:
        spec = self.spec
        if not (self.training and spec.dropout and spec.num_layers > 1):
            return None
        shape = (spec.num_layers - 1, steps, batch_size, spec.num_directions * spec.hidden_size)
        kept = self._generator.random(shape) >= spec.dropout
        return kept / (1 - spec.dropout)
