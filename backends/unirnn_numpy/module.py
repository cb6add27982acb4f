"""The module that the ``numpy`` backend builds."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn import RecurrentSpec, kernels
from unirnn.contract.call import Call, bind, join_state, prepare_step, state_parts
from unirnn.contract.module import Module
from unirnn.errors import ArgumentError, ShapeError

from . import model_layers

__all__ = ["NumpyModule", "check_shape"]

Array = NDArray[Any]


class NumpyModule(Module):
    """A stack of recurrent layers over NumPy arrays.

    Parameters
    ----------
    spec
        The spec of the layers.
    weights
        By the names of `unirnn.Spec.weight_shapes`; kept, not copied.
    generator
        Draws dropout while training.
    kernel
        One of `unirnn_numpy.dispatch.SUPPORT`.

    Attributes
    ----------
    spec
        The spec of the layers.
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
        super().__init__(spec)
        self.weights = dict(weights)
        self._generator = generator
        self._kernel = kernel
        self._last: dict[str, kernels.Prepared | None] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}

    def __call__(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, **aliases: Any
    ) -> tuple[Array, Any]:
        given = bind(self.spec, input, hx, seq_length, resets, aliases)
        if given.seq_length is None and given.resets is None:
            return self._run_like_last("call", given.input, given.hx, lambda: self._prepare(given))
        call = self._prepare(given)
        return call.restore(*self._run(call))

    __call__.__doc__ = Module.__call__.__doc__

    def step(self, x: Any, state: Any = None) -> tuple[Array, Any]:
        return self._run_like_last("step", x, state, lambda: prepare_step(self.spec, x, state, like=self._like()))

    step.__doc__ = Module.step.__doc__

    def _run_like_last(self, kind: str, x: Any, hx: Any, prepare: Callable[[], Call]) -> tuple[Array, Any]:
        """Run a call without lengths and resets, or a step, by what was prepared for those before if that fits.

        To check and to describe a small call takes longer than to compute it.
        """
        last = self._last.get(kind)
        if last is not None and not (self.training and self.spec.dropout):
            parts = state_parts(self.spec, hx, "state" if kind == "step" else "hx") or ()
            if last.fits(self.weights, x, parts):
                y, final = last.run(x, parts)
                return y, join_state(final)
        call = prepare()
        result = call.restore(*self._run(call))
        # A shape that comes twice in a row is likely to come again. Preparing for each new one would waste time.
        before, self._shapes[kind] = self._shapes.get(kind), x.shape
        if x.shape == before and self._kernel in ("auto", "compiled") and kernels.Prepared.can_be_had(self.weights, x):
            self._last[kind] = kernels.Prepared(self.spec, self.weights, x, call.layout)
        return result

    def vjp(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, **aliases: Any
    ) -> tuple[Array, Any, Callable[[Array, Any], dict[str, Array]]]:
        """Run the layers, and also return a function that computes the gradients.

        Parameters
        ----------
        input, hx, seq_length, resets
            As in a call.

        Returns
        -------
        output, h_n
            As a call returns them.
        pullback
            ``pullback(d_output, d_h_n)`` gives the gradients of ``sum(output * d_output) + sum(h_n * d_h_n)``, by name:
            ``input``, ``h_0`` (and ``c_0``), and each weight. None for ``d_h_n`` is zeros. The weights must not be
            changed between the call and this.

        Raises
        ------
        ArgumentError
            If the module was built with ``kernel="reference"``, which has no gradients here, or as in a call.
        """
        if self._kernel == "reference":
            raise ArgumentError(
                "vjp: the module was built with kernel='reference', which has no gradients; the other kernels have"
            )
        call = self._prepare(bind(self.spec, input, hx, seq_length, resets, aliases))
        layout = call.layout
        output, final, pullback = self._recurrent(call, keep=True)
        assert pullback is not None
        results = call.restore(output, final)

        def pull(d_output: Array, d_h_n: Any) -> dict[str, Array]:
            _, h_n = results
            given = state_parts(self.spec, d_h_n)
            if given is None:
                given = tuple(np.zeros_like(part) for part in final)
                d_final = given
            else:
                for name, d, part in zip(self.spec.states, given, state_parts(self.spec, h_n) or (), strict=True):
                    check_shape(f"d_{name}_n", d, part)
                d_final = layout.canonical_state([np.asarray(d) for d in given])
            check_shape("d_output", d_output, results[0])
            gradients = pullback(layout.canonical_steps(np.asarray(d_output)), d_final)
            gradients["input"] = layout.restore_steps(gradients["input"])
            if not layout.batched:
                gradients |= {f"{name}_0": gradients[f"{name}_0"][:, 0] for name in self.spec.states}
            return gradients

        return *results, pull

    def _like(self) -> tuple[type[Any], Any]:
        return np.ndarray, self.weights["weight_ih_l0"].dtype

    def _run(self, call: Call) -> tuple[Array, tuple[Array, ...]]:
        output, final, _ = self._recurrent(call, keep=False)
        return output, final

    def _recurrent(self, call: Call, *, keep: bool) -> tuple[Array, tuple[Array, ...], kernels.Pullback | None]:
        x, noise = call.input, None
        if self.training:
            noise = model_layers.recurrent_noise(
                self._generator, self.spec, x.shape[:2], model_layers.computed(x.dtype)
            )
        return model_layers.recurrent(self.spec, self.weights, call.batch, kernel=self._kernel, noise=noise, keep=keep)


def check_shape(name: str, given: Any, result: Array) -> None:
    """Check that a gradient has the shape of the result that it belongs to; raises ShapeError."""
    if np.shape(given) != result.shape:
        raise ShapeError(f"{name}: given shape {np.shape(given)}, expected {result.shape}")
