"""Specs: what a recurrent layer is, free of any framework.

A spec is a frozen, hashable value that can be compared, printed, pasted and stored. It knows the names
and shapes of its weights and of its state, and builds native modules (`Spec.build`).
"""

import math
import numbers
import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, InitVar, dataclass, fields
from typing import Any, ClassVar, Literal, TypeVar

import numpy as np

from . import names
from .errors import ArgumentError, LimitError, SpecError

__all__ = ["GRUSpec", "LSTMSpec", "RNNSpec", "Spec"]

SpecT = TypeVar("SpecT", bound="Spec")


class _Default:
    """Stands for an argument that was not given, where a second spelling must be told from the default."""

    def __repr__(self) -> str:
        return "<default>"

    def __bool__(self) -> bool:
        raise ArgumentError("has_bias is a spelling for arguments only; read spec.bias")


_DEFAULT: Any = _Default()


@dataclass(frozen=True)
class Spec:
    """What RNN, GRU and LSTM specs have in common; make one of `RNNSpec`, `GRUSpec`, `LSTMSpec`.

    Parameters
    ----------
    input_size, hidden_size, num_layers
        Positive integers, by position or by name.
    bias
        Whether the layer has the biases ``bias_ih`` and ``bias_hh``; default True. ``has_bias`` is
        understood as well.
    batch_first
        Whether input and output are `(B, T, I)` rather than `(T, B, I)`. The state's layout does not
        depend on it.
    dropout
        Probability, ``0 <= dropout < 1``, with which an element of the output of every layer but the last
        is zeroed while training.
    bidirectional
        Whether a second direction runs from the last valid step to the first.
    has_bias
        MindSpore's spelling of ``bias``.

    Raises
    ------
    SpecError
        If a value is one that no layer can have.
    ArgumentError
        If a value has the wrong type, or one argument is given under two spellings.
    """

    cell: ClassVar[Literal["RNN", "GRU", "LSTM"]]
    """The cell's name in both frameworks."""
    gates: ClassVar[tuple[str, ...]]
    """The gates in the order of the weights' rows."""
    states: ClassVar[tuple[str, ...]]
    """The parts of the state, ``("h",)``, or ``("h", "c")`` for LSTM."""

    input_size: int
    hidden_size: int
    num_layers: int = 1
    _: KW_ONLY
    bias: bool = _DEFAULT
    batch_first: bool = False
    dropout: float = 0.0
    bidirectional: bool = False
    has_bias: InitVar[bool] = _DEFAULT

    def __post_init__(self, has_bias: bool) -> None:
        if type(self) is Spec:
            raise ArgumentError("Spec is not a layer; make an RNNSpec, a GRUSpec or an LSTMSpec")
        given = {"bias": self.bias, "has_bias": has_bias}
        spelled = {name: value for name, value in given.items() if value is not _DEFAULT}
        bias = names.canonical(self.cell, "constructor", spelled).get("bias", True)
        for name in ("input_size", "hidden_size", "num_layers"):
            self._set(name, self._integer(name, least=1))
        self._set("bias", bias)
        for name in ("bias", "batch_first", "bidirectional"):
            self._set(name, self._flag(name))
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
        """Check what only this cell has."""

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _integer(self, name: str, *, least: int) -> int:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise ArgumentError(f"{name}: given {value!r}, expected an integer")
        if value < least:
            raise SpecError(f"{name}: given {value!r}, expected at least {least}")
        return int(value)

    def _flag(self, name: str) -> bool:
        value = getattr(self, name)
        if not isinstance(value, (bool, np.bool_)):
            raise ArgumentError(f"{name}: given {value!r}, expected True or False")
        return bool(value)

    def __repr__(self) -> str:
        shown = [repr(self.input_size), repr(self.hidden_size)]
        for field in fields(self)[2:]:
            value = getattr(self, field.name)
            if value != (True if field.name == "bias" else field.default):
                shown.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"

    # ---- sizes, weights and states ---------------------------------------------------------------

    @property
    def num_directions(self) -> int:
        """1, or 2 if bidirectional."""
        return 2 if self.bidirectional else 1

    @property
    def output_size(self) -> int:
        """Size of the last axis of the hidden state ``h`` in one direction."""
        return self.hidden_size

    def suffixes(self) -> tuple[str, ...]:
        """The endings of the weights' names, one for each layer and direction, in the state's order.

        Examples
        --------
        >>> GRUSpec(3, 4, 2, bidirectional=True).suffixes()
        ('_l0', '_l0_reverse', '_l1', '_l1_reverse')
        """
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

    @property
    def num_weights(self) -> int:
        """How many numbers the weights hold.

        Examples
        --------
        >>> GRUSpec(3, 4).num_weights
        108
        """
        return sum(math.prod(shape) for shape in self.weight_shapes().values())

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

    def fits(self, other: "Spec") -> bool:
        """Whether weights of the other compute the same here: only ``batch_first`` and ``dropout`` may differ.

        Examples
        --------
        >>> GRUSpec(3, 4, batch_first=True).fits(GRUSpec(3, 4))
        True
        >>> GRUSpec(3, 4, reset_after=False).fits(GRUSpec(3, 4))
        False
        """
        free = {"batch_first": None, "dropout": None}
        return {**self.to_dict(), **free} == {**other.to_dict(), **free}

    # ---- to other forms and back -----------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The spec as a dict of plain values; ``cell`` says which spec it is.

        Examples
        --------
        >>> GRUSpec(3, 4).to_dict()["cell"]
        'GRU'
        >>> Spec.from_dict(GRUSpec(3, 4).to_dict())
        GRUSpec(3, 4)
        """
        return {"cell": self.cell, **{f.name: getattr(self, f.name) for f in fields(self)}}

    @classmethod
    def from_dict(cls: type[SpecT], values: Mapping[str, Any]) -> SpecT:
        """The spec that `to_dict` wrote.

        Raises
        ------
        SpecError
            If ``cell`` is missing, unknown, or not this spec's.
        """
        kinds: dict[str, type[SpecT]] = {kind.cell: kind for kind in (cls, *cls.__subclasses__()) if kind is not Spec}
        cell = values.get("cell")
        kind = kinds.get(cell) if isinstance(cell, str) else None
        if kind is None:
            raise SpecError(f"cell: given {cell!r}, expected one of {', '.join(map(repr, kinds))}")
        arguments = {name: value for name, value in values.items() if name != "cell"}
        return kind._from_arguments(arguments)

    @classmethod
    def _from_arguments(cls: type[SpecT], arguments: Mapping[str, Any]) -> SpecT:
        renamed = names.canonical(cls.cell, "constructor", arguments)
        for name in ("input_size", "hidden_size"):
            if name not in renamed:
                raise ArgumentError(f"{cls.cell}: {name} is missing; given {', '.join(arguments) or 'nothing'}")
        return cls(**renamed)

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
        for row in names.arguments(self.cell, "constructor"):
            spelling, value = row.of(framework), getattr(self, row.name)
            if spelling is not None:
                kwargs[spelling] = value
            elif value != row.without:
                raise LimitError(f"{framework}: {self.cell} has no {row.name}; given {row.name}={value!r}")
        return kwargs

    @classmethod
    def from_kwargs(cls: type[SpecT], framework: str, kwargs: Mapping[str, Any]) -> SpecT:
        """The spec of a layer that is made with a framework's own keyword arguments.

        Examples
        --------
        >>> GRUSpec.from_kwargs("mindspore", {"input_size": 3, "hidden_size": 4, "has_bias": False})
        GRUSpec(3, 4, bias=False)
        """
        known = [name for row in names.arguments(cls.cell, "constructor") if (name := row.of(framework))]
        elsewhere = [row.of(framework) for row in names.arguments(cls.cell, "build")]
        for name in kwargs:
            if name in elsewhere:
                raise ArgumentError(f"{framework}: {name!r} is no part of a spec; give it to build")
            if name not in known:
                raise ArgumentError(f"{framework}: unknown argument {name!r}; expected one of {', '.join(known)}")
        return cls._from_arguments(kwargs)

    # ---- building --------------------------------------------------------------------------------

    def build(
        self,
        backend: str | None = None,
        *,
        device: Any = None,
        dtype: Any = "float32",
        seed: int | None = None,
        **options: Any,
    ) -> Any:
        """Build a native module of a backend.

        Parameters
        ----------
        backend
            Its name; else what `unirnn.use_backend` or the variable ``UNIRNN_BACKEND`` says; else ``numpy``.
        device
            ``cpu``, ``gpu``/``cuda[:n]``, ``ascend``/``npu[:n]``; None is the framework's own default.
        dtype
            ``float16``, ``bfloat16``, ``float32`` or ``float64``, as a name or as the framework's object.
        seed
            Draws the weights with one generator in one order, so that they are equal on every backend.
            None: the framework's own seed rules.
        **options
            What this backend takes besides: ``namespace=`` of ``array_api``; ``kernel=`` of ``numpy``, ``torch`` and
            ``mindspore``, ``"auto"`` or the name of one of `unirnn.explain`.

        Returns
        -------
        object
            A ``torch.nn.RNNBase``, a ``mindspore.nn.Cell``, a plain Python module: whatever is native there.

        Raises
        ------
        BackendError
            If the backend is unknown, not installed, or broken.
        DeviceError
            If the device is unknown or not present.
        LimitError
            If the backend can't do what the spec asks for; see `unirnn.explain`.

        Examples
        --------
        >>> import numpy, unirnn
        >>> module = unirnn.GRUSpec(10, 16, 2, batch_first=True).build("numpy", seed=0)
        >>> output, h_n = module(numpy.ones((3, 5, 10), "float32"), seq_length=[5, 3, 0])
        >>> output.shape, h_n.shape
        ((3, 5, 16), (2, 3, 16))
        """
        from .building import build

        return build(self, backend, device=device, dtype=dtype, seed=seed, weights=None, options=options)


@dataclass(frozen=True, repr=False, kw_only=True)
class RNNSpec(Spec):
    """An Elman RNN: ``h' = act(W_ih x + b_ih + W_hh h + b_hh)``.

    Parameters
    ----------
    nonlinearity
        ``"tanh"`` or ``"relu"``.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, has_bias
        See `Spec`.

    Examples
    --------
    >>> RNNSpec(2, 3, 4, nonlinearity="relu", has_bias=False)
    RNNSpec(2, 3, num_layers=4, bias=False, nonlinearity='relu')
    """

    cell = "RNN"
    gates = ("h",)
    states = ("h",)

    nonlinearity: Literal["tanh", "relu"] = "tanh"

    def _check_own(self) -> None:
        if self.nonlinearity not in ("tanh", "relu"):
            raise SpecError(f"nonlinearity: given {self.nonlinearity!r}, expected 'tanh' or 'relu'")


@dataclass(frozen=True, repr=False, kw_only=True)
class GRUSpec(Spec):
    """A gated recurrent unit (Cho et al., 2014), of either variant.

    ::

        r = s(W_ir x + b_ir + W_hr h + b_hr)    z = s(W_iz x + b_iz + W_hz h + b_hz)
        n = tanh(W_in x + b_in + r * (W_hn h + b_hn))    h' = (1 - z) * n + z * h

    and with ``reset_after=False``

    ::

        n = tanh(W_in x + b_in + W_hn (r * h) + b_hn)

    The weights of both have the same names and shapes, so they don't tell which variant they were trained for.

    Parameters
    ----------
    reset_after
        Whether the reset gate is applied after the product with W_hn, as in torch, MindSpore and cuDNN, or before it,
        as Cho et al. have it. Keras' argument of this name, and ``linear_before_reset`` of ONNX.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, has_bias
        See `Spec`.

    Examples
    --------
    >>> GRUSpec(10, 16, num_layers=2, batch_first=True) == GRUSpec(10, 16, 2, batch_first=True, has_bias=True)
    True
    >>> GRUSpec(10, 16, reset_after=False)
    GRUSpec(10, 16, reset_after=False)
    """

    cell = "GRU"
    gates = ("r", "z", "n")
    states = ("h",)

    reset_after: bool = True

    def _check_own(self) -> None:
        self._set("reset_after", self._flag("reset_after"))


@dataclass(frozen=True, repr=False, kw_only=True)
class LSTMSpec(Spec):
    """A long short-term memory (Hochreiter and Schmidhuber, 1997).

    ::

        i, f, o = s(W_i. x + b_i. + W_h. h + b_h.)    g = tanh(W_ig x + b_ig + W_hg h + b_hg)
        c' = f * c + i * g    h' = o * tanh(c')

    Parameters
    ----------
    proj_size
        If positive, ``h' = W_hr (o * tanh(c'))`` has this size (Sak et al., 2014); less than ``hidden_size``.
        torch computes it, and so do the plain cells of ``array_api``; elsewhere it is a limit.
    input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, has_bias
        See `Spec`.

    Examples
    --------
    >>> LSTMSpec(3, 4, proj_size=2).weight_shapes()["weight_hr_l0"]
    (2, 4)
    """

    cell = "LSTM"
    gates = ("i", "f", "g", "o")
    states = ("h", "c")

    proj_size: int = 0

    def _check_own(self) -> None:
        self._set("proj_size", self._integer("proj_size", least=0))
        if self.proj_size >= self.hidden_size:
            raise SpecError(f"proj_size: given {self.proj_size!r}, expected less than hidden_size={self.hidden_size}")

    @property
    def output_size(self) -> int:
        """``proj_size`` if there is a projection, else ``hidden_size``."""
        return self.proj_size or self.hidden_size
