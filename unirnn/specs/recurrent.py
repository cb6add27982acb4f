"""The recurrent layers: RNN, GRU and LSTM."""

import functools
import math
import numbers
import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, InitVar, dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from unirnn.errors import ArgumentError, LimitError, SpecError
from unirnn.specs import arguments as names

from .base import LEFT_OUT, Random, Spec, Traits, uniform

__all__ = ["GRUSpec", "LSTMSpec", "RNNSpec", "RecurrentSpec"]

SpecT = TypeVar("SpecT", bound="RecurrentSpec")

GateActivation = Literal["sigmoid", "hard_sigmoid", "hard_sigmoid_0.2"]


class _Default:
    """The default of ``bias`` and ``has_bias``, which shows whether either was given."""

    def __repr__(self) -> str:
        return "<default>"

    def __bool__(self) -> bool:
        raise ArgumentError("has_bias is a spelling for arguments only; read spec.bias")


_DEFAULT: Any = _Default()


@dataclass(frozen=True, repr=False)
class RecurrentSpec(Spec):
    """What RNN, GRU and LSTM specs have in common; use `RNNSpec`, `GRUSpec` or `LSTMSpec`.

    Parameters
    ----------
    input_size, hidden_size, num_layers
        Positive integers, by position or by name. In a `Sequential`, ``input_size`` may be left out, and is then the
        size of what the layer before gives.
    bias
        Whether the layer has the biases ``bias_ih`` and ``bias_hh``; True by default. ``has_bias`` is accepted as well.
    batch_first
        Whether input and output are `(B, T, I)` rather than `(T, B, I)`. The layout of the state does not depend on it.
    dropout
        The probability, ``0 <= dropout < 1``, with which an element of a layer's output is set to zero while training.
        The last layer has no dropout.
    bidirectional
        Whether a second direction runs from the last valid step to the first.
    reverse
        Whether the only direction runs from the last valid step to the first; not together with ``bidirectional``. As
        in the reverse direction of a bidirectional layer, the output is in the order of the input, and the final state
        is the one after step 0. The names of the weights are those of a layer that runs forward. Keras calls it
        ``go_backwards``, and Flax ``reverse``; ONNX has ``direction="reverse"``.
    has_bias
        MindSpore's spelling of ``bias``.

    Raises
    ------
    SpecError
        If no layer can have a value.
    ArgumentError
        If a value has the wrong type, or one argument is given under two spellings.
    """

    kind: ClassVar[Literal["RNN", "GRU", "LSTM"]]
    """The cell's name in PyTorch and MindSpore."""
    gates: ClassVar[tuple[str, ...]]
    """The gates, in the order of the rows of the weights."""
    states: ClassVar[tuple[str, ...]]
    """The parts of the state: ``("h",)``, or ``("h", "c")`` for an LSTM."""
    _not_computed = ("batch_first", "dropout")
    _input_field = "input_size"
    _traits = Traits(needs_steps=True, is_pointwise=False)
    _shown_first = ("input_size", "hidden_size")
    _shown_defaults = MappingProxyType({"bias": True})

    input_size: int = LEFT_OUT
    hidden_size: int = LEFT_OUT
    num_layers: int = 1
    _: KW_ONLY
    bias: bool = _DEFAULT
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    reverse: bool = False
    has_bias: InitVar[bool] = _DEFAULT

    def __post_init__(self, has_bias: bool) -> None:
        given = {"bias": self.bias, "has_bias": has_bias}
        spelled = {name: value for name, value in given.items() if value is not _DEFAULT}
        bias = names.canonical(self.kind, "constructor", spelled).get("bias", True)
        self._set_sizes("input_size", "hidden_size", "num_layers")
        self._set("bias", bias)
        for name in ("bias", "batch_first", "bidirectional", "reverse"):
            self._set(name, self._flag(name))
        if self.reverse and self.bidirectional:
            raise SpecError("reverse: given True together with bidirectional=True, which runs in reverse as well")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, numbers.Real):
            raise ArgumentError(f"dropout: given {self.dropout!r}, expected a number")
        if not 0 <= self.dropout < 1:
            raise SpecError(f"dropout: given {self.dropout!r}, expected 0 <= dropout < 1")
        self._set("dropout", float(self.dropout))
        if self.dropout > 0 and self.num_layers == 1:
            warnings.warn(
                f"dropout={self.dropout} has no effect: it follows every layer but the last, and num_layers is 1",
                UserWarning,
                stacklevel=3,
            )
        self._check_own()

    def _check_own(self) -> None:
        """Check the arguments that only this cell has."""

    # ---- sizes, weights and states ---------------------------------------------------------------

    @property
    def num_directions(self) -> int:
        """1, or 2 if bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """The size of the hidden state ``h`` in one direction."""
        return self.hidden_size

    def output_features(self, features: int) -> int:
        """D*H; see `Spec.output_features`."""
        return self.num_directions * self.output_size

    @property
    def can_stream(self) -> bool:
        """Whether all layers run forward only; see `Spec.can_stream`."""
        return not self.bidirectional and not self.reverse

    def is_reverse(self, position: int) -> bool:
        """Whether a layer and direction reads from the last valid step to the first.

        Parameters
        ----------
        position
            The position of the layer and direction in `suffixes`, and in the state.

        Examples
        --------
        >>> [GRUSpec(3, 4, bidirectional=True).is_reverse(position) for position in (0, 1)]
        [False, True]
        """
        return self.reverse or position % self.num_directions == 1

    def suffixes(self) -> tuple[str, ...]:
        """The ends of the names of weights, one for each layer and direction, in the order of the state.

        Examples
        --------
        >>> GRUSpec(3, 4, 2, bidirectional=True).suffixes()
        ('_l0', '_l0_reverse', '_l1', '_l1_reverse')
        """
        return self._suffixes

    @functools.cached_property
    def _suffixes(self) -> tuple[str, ...]:  # asked for by every call of a module
        return tuple(
            f"_l{layer}{direction}"
            for layer in range(self.num_layers)
            for direction in ("", "_reverse")[: self.num_directions]
        )

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, in torch's order.

        Returns
        -------
        dict
            For each layer and direction ``weight_ih`` of `(gates*H, I)`, or `(gates*H, D*H)` above the first
            layer, ``weight_hh`` of `(gates*H, H)`, and, with ``bias``, ``bias_ih`` and ``bias_hh`` of
            `(gates*H,)`.

        Examples
        --------
        >>> GRUSpec(3, 4).weight_shapes()
        {'weight_ih_l0': (12, 3), 'weight_hh_l0': (12, 4), 'bias_ih_l0': (12,), 'bias_hh_l0': (12,)}
        """
        rows = len(self.gates) * self.hidden_size
        shapes: dict[str, tuple[int, ...]] = {}
        for position, suffix in enumerate(self.suffixes()):
            first = position < self.num_directions
            columns = self.input_size if first else self.num_directions * self.output_size
            shapes["weight_ih" + suffix] = (rows, columns)
            shapes["weight_hh" + suffix] = (rows, self.output_size)
            if self.bias:
                shapes["bias_ih" + suffix] = (rows,)
                shapes["bias_hh" + suffix] = (rows,)
            if self.output_size != self.hidden_size:
                shapes["weight_hr" + suffix] = (self.output_size, self.hidden_size)
        return shapes

    def uncommon(self) -> dict[str, Any]:
        """See `Spec.uncommon`; the values that every framework computes are in `unirnn.specs.arguments.ARGUMENTS`."""
        rows = names.arguments(self.kind, "constructor")
        values = {row.name: getattr(self, row.name) for row in rows if row.without is not None}
        return {row.name: values[row.name] for row in rows if values.get(row.name, row.without) != row.without}

    def draw_weights(self, random: Random) -> dict[str, NDArray[np.float64]]:
        """Draw every weight uniformly from ``(-1/sqrt(H), 1/sqrt(H))``, as PyTorch and MindSpore do; see `Spec`."""
        bound = 1 / math.sqrt(self.hidden_size)
        return {name: uniform(random, shape, bound) for name, shape in self.weight_shapes().items()}

    def state_shapes(self, batch_size: int | None) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the state's parts: `(L*D, B, H)`, or `(L*D, H)` when unbatched (None).

        Examples
        --------
        >>> LSTMSpec(3, 4, bidirectional=True).state_shapes(5)
        {'h': (2, 5, 4), 'c': (2, 5, 4)}
        """
        batch = () if batch_size is None else (batch_size,)
        leading = (self.num_layers * self.num_directions, *batch)
        sizes = {"h": self.output_size, "c": self.hidden_size}
        return {name: (*leading, sizes[name]) for name in self.states}

    # ---- to other forms and back -----------------------------------------------------------------

    @classmethod
    def _from_arguments(cls: type[SpecT], arguments: Mapping[str, Any]) -> SpecT:
        return cls(**names.canonical(cls.kind, "constructor", arguments))

    def to_kwargs(self, framework: str) -> dict[str, Any]:
        """The keyword arguments with which a framework's own constructor makes this layer.

        Parameters
        ----------
        framework
            ``"torch"`` or ``"mindspore"``.

        Raises
        ------
        LimitError
            If the framework's layer can't be what the spec says.

        Examples
        --------
        >>> GRUSpec(3, 4, bias=False).to_kwargs("mindspore")["has_bias"]
        False
        """
        kwargs: dict[str, Any] = {}
        for row in names.arguments(self.kind, "constructor"):
            spelling, value = row.name_in(framework), getattr(self, row.name)
            if spelling is not None:
                kwargs[spelling] = value
            elif value != row.without:
                raise LimitError(f"{framework} has no {self.kind} with {row.name}={value!r}")
        return kwargs

    @classmethod
    def from_kwargs(cls: type[SpecT], framework: str, kwargs: Mapping[str, Any]) -> SpecT:
        """The spec of the layer that a framework's constructor makes from these keyword arguments.

        Examples
        --------
        >>> GRUSpec.from_kwargs("mindspore", {"input_size": 3, "hidden_size": 4, "has_bias": False})
        GRUSpec(3, 4, bias=False)
        """
        known = [name for row in names.arguments(cls.kind, "constructor") if (name := row.name_in(framework))]
        elsewhere = [row.name_in(framework) for row in names.arguments(cls.kind, "build")]
        for name in kwargs:
            if name in elsewhere:
                raise ArgumentError(f"{framework}: {name!r} is not part of a spec; give it to build")
            if name not in known:
                raise ArgumentError(f"{framework}: unknown argument {name!r}; expected one of {', '.join(known)}")
        return cls._from_arguments(kwargs)


@dataclass(frozen=True, repr=False, kw_only=True)
class RNNSpec(RecurrentSpec):
    """An Elman RNN: ``h' = act(W_ih x + b_ih + W_hh h + b_hh)``.

    Parameters
    ----------
    nonlinearity
        ``"tanh"`` or ``"relu"``.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, reverse, has_bias
        See `RecurrentSpec`.

    Examples
    --------
    >>> RNNSpec(2, 3, 4, nonlinearity="relu", has_bias=False)
    RNNSpec(2, 3, num_layers=4, bias=False, nonlinearity='relu')
    """

    kind = "RNN"
    gates = ("h",)
    states = ("h",)

    nonlinearity: Literal["tanh", "relu"] = "tanh"

    def _check_own(self) -> None:
        if self.nonlinearity not in ("tanh", "relu"):
            raise SpecError(f"nonlinearity: given {self.nonlinearity!r}, expected 'tanh' or 'relu'")


@dataclass(frozen=True, repr=False, kw_only=True)
class GRUSpec(RecurrentSpec):
    """A gated recurrent unit (Cho et al., 2014), in either variant.

    ::

        r = s(W_ir x + b_ir + W_hr h + b_hr)    z = s(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))    h' = (1 - z) * n + z * h

    and with ``reset_after=False``

    ::

        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)

    The weights of both variants have the same names and shapes, so they do not show which one they were trained for.

    Parameters
    ----------
    reset_after
        Whether the reset gate is applied after the product with W_hn, as in torch, MindSpore and cuDNN, or before it,
        as in the paper. Keras has this argument too; ONNX calls it ``linear_before_reset``.
    gate_activation
        The function s of the gates r and z: ``"sigmoid"``, or one of two straight lines that are cut off at 0 and 1.
        ``"hard_sigmoid"`` is ``x / 6 + 1 / 2``, as in torch and Keras 3. ``"hard_sigmoid_0.2"`` is ``0.2 x + 0.5``, as
        in Keras 1 and 2 and as ONNX's HardSigmoid is by default. Keras calls it ``recurrent_activation``.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, reverse, has_bias
        See `RecurrentSpec`.

    Examples
    --------
    >>> GRUSpec(10, 16, num_layers=2, batch_first=True) == GRUSpec(10, 16, 2, batch_first=True, has_bias=True)
    True
    >>> GRUSpec(10, 16, reset_after=False)
    GRUSpec(10, 16, reset_after=False)
    """

    kind = "GRU"
    gates = ("r", "z", "n")
    states = ("h",)

    reset_after: bool = True
    gate_activation: GateActivation = "sigmoid"

    def _check_own(self) -> None:
        self._set("reset_after", self._flag("reset_after"))
        _check_gate_activation(self.gate_activation)


@dataclass(frozen=True, repr=False, kw_only=True)
class LSTMSpec(RecurrentSpec):
    """A long short-term memory (Hochreiter and Schmidhuber, 1997).

    ::

        i, f, o = s(W_i. x + b_i. + W_h. h + b_h.)    g = tanh(W_ig x + b_ig + W_hg h + b_hg)
        c' = f * c + i * g    h' = o * tanh(c')

    Parameters
    ----------
    proj_size
        If positive, ``h' = W_hr (o * tanh(c'))`` has this size (Sak et al., 2014), which is less than ``hidden_size``.
        All backends of unirnn compute it; of the frameworks' own layers, only torch's does.
    gate_activation
        The function s of the gates i, f and o; see `GRUSpec`.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, reverse, has_bias
        See `RecurrentSpec`.

    Examples
    --------
    >>> LSTMSpec(3, 4, proj_size=2).weight_shapes()["weight_hr_l0"]
    (2, 4)
    """

    kind = "LSTM"
    gates = ("i", "f", "g", "o")
    states = ("h", "c")

    proj_size: int = 0
    gate_activation: GateActivation = "sigmoid"

    def _check_own(self) -> None:
        _check_gate_activation(self.gate_activation)
        self._set("proj_size", self._integer("proj_size", least=0))
        if self.proj_size >= self.hidden_size:
            raise SpecError(f"proj_size: given {self.proj_size!r}, expected less than hidden_size={self.hidden_size}")

    @property
    def output_size(self) -> int:
        """``proj_size`` if there is a projection, else ``hidden_size``."""
        return self.proj_size or self.hidden_size


def _check_gate_activation(given: object) -> None:
    if given not in get_args(GateActivation):
        raise SpecError(
            f"gate_activation: given {given!r}, expected {' or '.join(map(repr, get_args(GateActivation)))}"
        )
