"""The module that the ``numpy`` backend builds."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn import RecurrentSpec, kernels
from unirnn import reference as plain
from unirnn.contract.call import bind, check, join_state, lengths, state_parts
from unirnn.errors import ArgumentError, ShapeError

__all__ = ["KERNELS", "SHORT", "NumpyModule"]

Array = NDArray[Any]

KERNELS = ("auto", "packed", "numba", "plain")
"""The core's packed kernels, with gradients, as calls of NumPy or compiled by numba; or its plain cells: step by step,
with nothing to prepare."""

SHORT = 4
"""Up to how many steps ``auto`` takes the plain cells, for inference: about where both cost the same."""


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
    kernel
        One of `KERNELS`.

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

    def __init__(
        self, spec: RecurrentSpec, weights: Mapping[str, Array], generator: np.random.Generator, kernel: str = "auto"
    ) -> None:
        self.spec = spec
        self.weights = dict(weights)
        self.training = False
        self._generator = generator
        self._kernel = kernel

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
            `(B,)` integers, ``0 <= n <= T``; see `unirnn.contract.call`. None is T for every sequence.

        Returns
        -------
        output
            As the input, with D*H on the last axis; zero from step n on.
        h_n
            The final state; for LSTM ``(h_n, c_n)``.
        """
        input, state, ns = self._checked(input, hx, seq_length, aliases)
        noise = self._noise(input.shape)
        if self._is_plain(input):
            import array_api_compat.numpy as xp  # a third of the time that NumPy itself takes, and only needed here

            layers = iter(() if noise is None else noise.astype(input.dtype))
            dropout = None if noise is None else lambda x: x * next(layers)
            output, final = plain.recurrent(xp, self.spec, self.weights, input, state, ns, dropout=dropout)
        else:
            output, final, _ = self._run(input, state, ns, noise, keep=False)
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
            None for ``d_h_n`` is zeros. The weights must be those of the call: change them afterwards.
        """
        if self._kernel == "plain":
            raise ArgumentError(
                "vjp: the module was built with kernel='plain', which has no gradients; the other kernels have"
            )
        input, state, ns = self._checked(input, hx, seq_length, aliases)
        noise = self._noise(input.shape)
        output, final, pullback = self._run(input, state, ns, noise, keep=True)

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
        self,
        input: Array,
        state: tuple[Array, ...] | None,
        ns: NDArray[np.int64] | None,
        noise: Array | None,
        *,
        keep: bool,
    ) -> tuple[Array, tuple[Array, ...], kernels.Pullback]:
        if self._kernel == "numba":
            kernels.check_numba(self.spec)  # it may have been built, and pickled, elsewhere
        compiled = self._kernel == "numba" or (self._kernel == "auto" and kernels.has_numba(self.spec))
        return kernels.recurrent(self.spec, self.weights, input, state, ns, noise=noise, keep=keep, compiled=compiled)

    def _checked(
        self, input: Any, hx: Any, seq_length: Any, aliases: dict[str, Any]
    ) -> tuple[Array, tuple[Array, ...] | None, NDArray[np.int64] | None]:
        input, hx, seq_length = bind(self.spec, input, hx, seq_length, aliases)
        state = state_parts(self.spec, hx)
        sizes = check(self.spec, np.ndarray, self.weights["weight_ih_l0"].dtype, input, state)
        return input, state, None if seq_length is None else lengths(seq_length, sizes)

    def _is_plain(self, input: Array) -> bool:
        if self._kernel != "auto":
            return self._kernel == "plain"
        steps = input.shape[1 if input.ndim == 3 and self.spec.batch_first else 0]
        return steps <= SHORT and input.dtype != np.float16

    def _noise(self, shape: tuple[int, ...]) -> Array | None:
        """`(L-1, T, B, D*H)`: what dropout multiplies the outputs of all layers but the last with, if anything."""
        spec = self.spec
        if not (self.training and spec.dropout and spec.num_layers > 1):
            return None
        steps, batch_size = (shape[0], 1) if len(shape) == 2 else shape[1::-1] if spec.batch_first else shape[:2]
        kept = (
            self._generator.random((spec.num_layers - 1, steps, batch_size, spec.num_directions * spec.hidden_size))
            >= spec.dropout
        )
        return kept / (1 - spec.dropout)
