"""The base class of modules that are not a class of some framework."""

from abc import ABC, abstractmethod
from typing import Any

from numpy.typing import NDArray

from unirnn.specs import RecurrentSpec

from .call import Arguments, Call, bind, prepare, prepare_step, swap_axes

__all__ = ["Module"]


class Module(ABC):
    """A stack of recurrent layers: its spec, its mode, and its call. Subclasses implement `_like` and `_run`.

    Parameters
    ----------
    spec
        The spec of the layers.

    Attributes
    ----------
    spec
        The spec of the layers.
    training
        Whether dropout is on; False until `train`.
    """

    def __init__(self, spec: RecurrentSpec) -> None:
        self.spec = spec
        self.training = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r})"

    def train(self, mode: bool = True) -> "Module":
        """Switch dropout on (or off)."""
        self.training = mode
        return self

    def eval(self) -> "Module":
        """Switch dropout off."""
        return self.train(False)

    def __call__(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, **aliases: Any
    ) -> Any:
        """Run the layers.

        Parameters
        ----------
        input
            `(T, B, I)`, `(B, T, I)` if ``batch_first``, or `(T, I)`; of the weights' dtype. Also ``x``.
        hx
            Initial state, `(L*D, B, H)`, or `(L*D, H)`; for LSTM a pair ``(h_0, c_0)``. None is zeros. Also ``h_0``.
        seq_length
            `(B,)` integers, ``0 <= n <= T``, on any device; see `unirnn.contract.lengths`. None is T for each sequence.
        resets
            `(T, B)` bools, `(B, T)` if ``batch_first``, or `(T,)`: whether a new sequence begins at a step, whose state
            before it is zeros. None is nowhere.

        Returns
        -------
        output
            As the input, with D*H on the last axis; zero from step n on.
        h_n
            The final state, as ``hx``; for LSTM the pair ``(h_n, c_n)``.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError, LengthError
            If an argument is wrong; see `unirnn.contract.call.prepare`.
        """
        call = self._prepare(bind(self.spec, input, hx, seq_length, resets, aliases))
        return call.restore(*self._run(call))

    def step(self, x: Any, state: Any = None) -> tuple[Any, Any]:
        """Make one time step: as a call over one step, without its axis T.

        Parameters
        ----------
        x
            `(B, I)`, or `(I,)`; of the weights' dtype.
        state
            The state before it, `(L, B, H)`, or `(L, H)`; for LSTM a pair ``(h, c)``. None is zeros.

        Returns
        -------
        y
            The output of the last layer, `(B, H)`, or `(H,)`.
        state
            The state after it.

        Raises
        ------
        ArgumentError, ShapeError, DTypeError
            If an argument is wrong, or a layer runs in reverse; see `unirnn.contract.call.prepare_step`.
        """
        call = prepare_step(self.spec, x, state, like=self._like())
        return call.restore(*self._run(call))

    @abstractmethod
    def _like(self) -> tuple[type[Any], Any]:
        """The framework's class of an array, and the module's dtype; see `unirnn.contract.call.prepare`."""

    def _from_numpy(self, array: NDArray[Any]) -> Any:
        """The checked lengths, or resets, as an array of the framework on the device of the module."""
        return array

    def _swap_axes(self, array: Any) -> Any:
        """`(T, B, F)` to `(B, T, F)`, and back."""
        return swap_axes(array)

    def _prepare(self, given: Arguments) -> Call:
        """Check the arguments; see `unirnn.contract.call.prepare`."""
        call = prepare(self.spec, given, like=self._like(), swap=self._swap_axes)
        ns, begins = (None if array is None else self._from_numpy(array) for array in (call.lengths, call.resets))
        return call._replace(lengths=ns, resets=begins)

    @abstractmethod
    def _run(self, call: Call) -> tuple[Any, tuple[Any, ...]]:
        """The output `(T, B, D*H)` and the final state, `(L*D, B, H)` each."""
