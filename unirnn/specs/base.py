"""Specs: what a layer or a model is, free of any framework.

A spec is a frozen, hashable value that can be compared, printed, pasted and stored. It knows the sizes of what it takes
and gives, the names and shapes of its weights and how they are first drawn, and it builds native modules
(`Spec.build`).
"""

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from unirnn.devices import short_name
from unirnn.errors import ArgumentError, DTypeError, SpecError

if TYPE_CHECKING:
    from .summary import Summary

__all__ = ["LEFT_OUT", "LengthRule", "Random", "Spec", "Traits", "uniform"]

SpecT = TypeVar("SpecT", bound="Spec")

Random = Callable[[tuple[int, ...]], NDArray[np.float64]]
"""Draws an array of a shape, uniform in ``[0, 1)``: the ``random`` of a `numpy.random.Generator`."""


class _LeftOut:
    """The default of a size, which shows whether it was given."""

    def __repr__(self) -> str:
        return "<left out>"


LEFT_OUT: Any = _LeftOut()
"""The default of sizes. An input size that was left out is 0 until the layer before it tells it."""


class Traits(NamedTuple):
    """What a kind of layer does with steps; `Spec` has a property for each of them."""

    takes_tokens: bool = False
    needs_steps: bool = False
    ends_steps: bool = False
    is_pointwise: bool = True


class LengthRule(NamedTuple):
    """How a layer changes the number of steps of a sequence: ``(n + padding - span) // stride + 1`` for n > 0.

    Parameters
    ----------
    padding
        How many steps are added at both ends together.
    span
        How many steps one output step sees.
    stride
        How many steps lie between those at which two outputs begin.

    Examples
    --------
    >>> rule = LengthRule(padding=0, span=3, stride=2)
    >>> [rule(n) for n in (0, 1, 3, 4, 5)]
    [0, 0, 1, 1, 2]
    """

    padding: int
    span: int
    stride: int

    def __call__(self, lengths: Any) -> Any:
        """The lengths after the layer: integers, or an array of them of any framework. A length of 0 stays 0."""
        counted = (lengths + (self.padding - self.span)) // self.stride + 1
        is_left = (lengths > 0) & (counted > 0)
        xp = _namespace_of(lengths)
        return counted * (is_left if xp is None else xp.astype(is_left, counted.dtype))


def _signed(lengths: Any) -> Any:
    """Convert lengths to int32 or int64. Smaller integers could not hold what `LengthRule` computes."""
    if type(lengths) is int or isinstance(lengths, np.integer):
        return int(lengths)
    if isinstance(lengths, (list, tuple)):
        lengths = np.asarray(lengths) if lengths else np.empty(0, np.int64)
    dtype = short_name(lengths.dtype) if hasattr(lengths, "dtype") else type(lengths).__name__
    if not dtype.startswith(("int", "uint")):
        raise DTypeError(f"seq_length: given {dtype}, expected integers")
    if dtype in ("int32", "int64"):
        return lengths
    if isinstance(lengths, np.ndarray):
        return lengths.astype(np.int64)
    xp = _namespace_of(lengths)
    return lengths.long() if xp is None else xp.astype(lengths, xp.int64)  # torch and MindSpore have `long`


def _namespace_of(array: Any) -> Any:
    """The namespace of an array that follows the array API standard, but is not NumPy's; None for anything else."""
    if isinstance(array, (np.ndarray, np.generic)):
        return None
    return array.__array_namespace__() if hasattr(array, "__array_namespace__") else None


@dataclass(frozen=True)
class Spec:
    """What all specs have in common. A subclass with a ``kind`` is a layer; `from_dict` finds it by that name."""

    kind: ClassVar[str]
    """The layer's name, which `to_dict` writes: ``"GRU"``."""
    _kinds: ClassVar[dict[str, type["Spec"]]] = {}
    _not_computed: ClassVar[tuple[str, ...]] = ()
    """The fields that do not change what a layer computes from given weights; see `fits`."""
    _input_field: ClassVar[str | None] = None
    """The field that holds the size of the input; None if the layer takes any size."""
    _traits: ClassVar[Traits] = Traits()
    _shown_first: ClassVar[tuple[str, ...]] = ()
    """The fields that the `repr` shows by position, unless one of them is not known yet."""
    _shown_defaults: ClassVar[Mapping[str, Any]] = {}
    """The defaults of fields whose default in the class only marks that no value was given."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "kind" in vars(cls):
            Spec._kinds[cls.kind] = cls

    def __new__(cls, *_: Any, **__: Any) -> "Spec":
        """Refuse to make a spec of a class without a kind."""
        if not hasattr(cls, "kind"):
            known = ", ".join(found.__name__ for found in _kinds().values() if issubclass(found, cls))
            raise ArgumentError(f"{cls.__name__} is not a layer; expected one of {known}")
        return super().__new__(cls)

    def __repr__(self) -> str:
        unknown = self.missing_size()
        parts = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in self._shown_first and field.name != unknown:
                parts.append(repr(value) if unknown is None else f"{field.name}={value!r}")
            elif field.name != unknown and value != self._shown_defaults.get(field.name, field.default):
                parts.append(f"{field.name}={value!r}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _integer(self, name: str, *, least: int) -> int:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, numbers.Integral):
            raise ArgumentError(f"{name}: given {value!r}, expected an integer")
        if value < least:
            raise SpecError(f"{name}: given {value!r}, expected at least {least}")
        return int(value)

    def _set_sizes(self, *sizes: str) -> None:
        """Check that sizes are positive integers. Only the input size may be left out; it is 0 then."""
        for name in sizes:
            if getattr(self, name) is not LEFT_OUT:
                self._set(name, self._integer(name, least=1))
            elif name == self._input_field:
                self._set(name, 0)
            else:
                raise ArgumentError(f"{self.kind}: {name} is missing, which nothing else tells")

    def _flag(self, name: str) -> bool:
        value = getattr(self, name)
        if not isinstance(value, (bool, np.bool_)):
            raise ArgumentError(f"{name}: given {value!r}, expected True or False")
        return bool(value)

    # ---- what flows through ----------------------------------------------------------------------

    @property
    def takes_tokens(self) -> bool | None:
        """Whether the input is integers `(B, T)`, rather than features `(B, T, F)`; None if it can be either."""
        return self._traits.takes_tokens

    @property
    def needs_steps(self) -> bool:
        """Whether the input must have an axis T."""
        return self._traits.needs_steps

    @property
    def ends_steps(self) -> bool:
        """Whether the output has no axis T any more."""
        return self._traits.ends_steps

    @property
    def is_pointwise(self) -> bool:
        """Whether each step of each sequence is computed by itself, also while training."""
        return self._traits.is_pointwise

    @property
    def input_features(self) -> int:
        """The size of the input's last axis, or how many tokens there are; 0 if it is not known, or any will do.

        Examples
        --------
        >>> import unirnn
        >>> unirnn.GRUSpec(3, 4).input_features, unirnn.LinearSpec(out_features=4).input_features
        (3, 0)
        """
        return 0 if self._input_field is None else getattr(self, self._input_field)

    def output_features(self, features: int) -> int:
        """The size of the output's last axis.

        Parameters
        ----------
        features
            That of the input's last axis; 0 if it is not known.

        Returns
        -------
        int
            0 if it is not known.

        Raises
        ------
        SpecError
            If the layer can't take so many features.

        Examples
        --------
        >>> import unirnn
        >>> unirnn.GRUSpec(3, 4, bidirectional=True).output_features(3)
        8
        """
        return features

    def with_input_features(self: SpecT, features: int) -> SpecT:
        """The same spec with its input size filled in, if it was left out.

        Examples
        --------
        >>> import unirnn
        >>> unirnn.LinearSpec(out_features=4).with_input_features(3)
        LinearSpec(3, 4)
        """
        if self._input_field is None or self.input_features or not features:
            return self
        return replace(self, **{self._input_field: features})

    def missing_size(self) -> str | None:
        """The name of the input size that is not known yet, or None."""
        return None if self._input_field is None or self.input_features else self._input_field

    def check_complete(self) -> None:
        """Refuse a spec from which nothing can be built yet.

        Raises
        ------
        SpecError
            If the input size was left out, and nothing tells it.
        """
        missing = self.missing_size()
        if missing is not None:
            raise SpecError(f"{self.kind}: {missing} was left out, expected a number: no layer before tells it")

    @property
    def length_rules(self) -> tuple[LengthRule, ...]:
        """The rules by which the layer changes lengths, in order; empty if it keeps them."""
        return ()

    def output_lengths(self, lengths: Any) -> Any:
        """How many valid steps the output has.

        Parameters
        ----------
        lengths
            An integer, or integers `(B,)`, as a list, or of NumPy or a framework: those of the input.

        Returns
        -------
        integer or array
            Of the framework that was given, and of NumPy for a list; None if the output has no axis T.

        Raises
        ------
        DTypeError
            If they are no integers.

        Examples
        --------
        >>> import numpy, unirnn
        >>> unirnn.Conv1dSpec(3, 4, 3, stride=2).output_lengths(numpy.array([9, 3, 1, 0]))
        array([4, 1, 0, 0])
        """
        lengths = _signed(lengths)
        if self.ends_steps:
            return None
        for rule in self.length_rules:
            lengths = rule(lengths)
        return lengths

    def leaves(self) -> "dict[str, Spec]":
        """The layers of a model by their names, ``"block.0.linear"``; a layer by itself under ``""``.

        Examples
        --------
        >>> import unirnn
        >>> unirnn.Sequential(encoder=unirnn.GRUSpec(3, 4), head=unirnn.LinearSpec(4, 2)).leaves()
        {'encoder': GRUSpec(3, 4), 'head': LinearSpec(4, 2)}
        """
        return {"": self}

    # ---- the state -------------------------------------------------------------------------------

    @property
    def can_stream(self) -> bool:
        """Whether the layer can be computed step by step: no step depends on a later one."""
        return not self.needs_steps

    def state_shapes(self, batch_size: int | None) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the parts of the state, with the batch as their second axis; empty if there is none.

        Parameters
        ----------
        batch_size
            B; None for an unbatched input, whose state has no such axis.
        """
        return {}

    @property
    def stateful(self) -> "dict[str, Spec]":
        """The layers that have a state, by their names; the state of a model has an item for each of them, in order.

        Examples
        --------
        >>> import unirnn
        >>> unirnn.Sequential(unirnn.GRUSpec(3, 4), unirnn.LinearSpec(4, 2)).stateful
        {'0': GRUSpec(3, 4)}
        """
        return {name: leaf for name, leaf in self.leaves().items() if leaf.state_shapes(None)}

    # ---- weights ---------------------------------------------------------------------------------

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, in torch's order; empty for a layer without weights."""
        return {}

    @property
    def buffers(self) -> tuple[str, ...]:
        """The names of those weights that are not trained, such as the statistics of a batch normalisation."""
        return ()

    def draw_weights(self, random: Random) -> dict[str, NDArray[np.float64]]:
        """Draw the first weights, one array after the other in the order of `weight_shapes`.

        Parameters
        ----------
        random
            The source of all numbers.

        Returns
        -------
        dict
            float64 arrays by the names of `weight_shapes`, of those shapes.
        """
        return {}

    @property
    def num_weights(self) -> int:
        """How many numbers the weights hold.

        Examples
        --------
        >>> import unirnn
        >>> unirnn.GRUSpec(3, 4).num_weights
        108
        """
        return sum(math.prod(shape) for shape in self.weight_shapes().values())

    def fits(self, other: "Spec") -> bool:
        """Whether this spec computes the same from the other's weights: ``batch_first`` and ``dropout`` may differ.

        Examples
        --------
        >>> import unirnn
        >>> unirnn.GRUSpec(3, 4, batch_first=True).fits(unirnn.GRUSpec(3, 4))
        True
        >>> unirnn.GRUSpec(3, 4, reset_after=False).fits(unirnn.GRUSpec(3, 4))
        False
        """
        free = dict.fromkeys(self._not_computed)
        return {**self.to_dict(), **free} == {**other.to_dict(), **free}

    def uncommon(self) -> dict[str, Any]:
        """The arguments that ask for something that not every framework computes, with their values.

        Examples
        --------
        >>> import unirnn
        >>> unirnn.GRUSpec(3, 4).uncommon(), unirnn.GRUSpec(3, 4, reset_after=False).uncommon()
        ({}, {'reset_after': False})
        """
        return {}

    def summary(self, batch_size: int | None = None, steps: int | None = None) -> "Summary":
        """A table of the layers: their outputs, their parameters, and what they cost.

        The cost is the number of multiply-adds in matrix products, for one sequence and one time step of the input:
        each number of a matrix counts once. A layer after a convolution with a stride of 2 is computed for every other
        step, and costs half. A layer after a pooling is computed once for each sequence; the table says so, and has a
        total of its own for such layers. Embeddings, biases, activations, normalisations and poolings cost little, and
        are not counted.

        For a `unirnn.Model`, which is code, each layer is shown as if it were called once with the steps of the input.

        Parameters
        ----------
        batch_size, steps
            B and T of the input, for shapes of numbers; None leaves the symbols.

        Returns
        -------
        Summary
            `str` makes a text of it, and a notebook shows a table; ``rows`` has the layers.

        Raises
        ------
        SpecError
            If an input size is not known.
        ArgumentError, ShapeError
            If B or T is no positive integer, or there are too few steps.

        Examples
        --------
        >>> import unirnn
        >>> model = unirnn.Sequential(
        ...     encoder=unirnn.GRUSpec(3, 4, batch_first=True),
        ...     pool=unirnn.PoolSpec("mean"),
        ...     head=unirnn.LinearSpec(4, 2),
        ... )
        >>> print(model.summary())
        name     layer                            output     parameters      multiply-adds
        ----------------------------------------------------------------------------------
        encoder  GRUSpec(3, 4, batch_first=True)  (B, T, 4)         108                 84
        pool     PoolSpec('mean')                 (B, 4)              0                  0
        head     LinearSpec(4, 2)                 (B, 2)             10             8 once
        ----------------------------------------------------------------------------------
        total                                                       118  84 a step, 8 once
        """
        from .summary import summarize

        return summarize(self, batch_size, steps)

    # ---- to plain values and back ----------------------------------------------------------------

    def to_dict(self) -> dict[str, Any]:
        """The spec as a dict of plain values; ``kind`` says which spec it is.

        Examples
        --------
        >>> import unirnn
        >>> unirnn.GRUSpec(3, 4).to_dict()["kind"]
        'GRU'
        >>> unirnn.Spec.from_dict(unirnn.GRUSpec(3, 4).to_dict())
        GRUSpec(3, 4)
        """
        unknown = self.missing_size()
        return {"kind": self.kind, **{f.name: getattr(self, f.name) for f in fields(self) if f.name != unknown}}

    @classmethod
    def from_dict(cls: type[SpecT], values: Mapping[str, Any]) -> SpecT:
        """The spec that `to_dict` wrote.

        Parameters
        ----------
        values
            As `to_dict` gives them.

        Raises
        ------
        SpecError
            If ``kind`` is missing, unknown, or not this spec's.
        """
        if not isinstance(values, Mapping):
            raise SpecError(f"{cls.__name__}: given {values!r}, expected a mapping, as to_dict gives it")
        arguments = dict(values)
        kind = arguments.pop("kind", None)
        known = {name: found for name, found in _kinds().items() if issubclass(found, cls) or issubclass(cls, found)}
        found: Any = known.get(kind) if isinstance(kind, str) else None
        if found is None:
            raise SpecError(f"kind: given {kind!r}, expected one of {', '.join(map(repr, known))}")
        if issubclass(cls, found):  # called on a class of this kind, or on a subclass of it without its own kind
            return cls._from_arguments(arguments)
        made: SpecT = found._from_arguments(arguments)
        return made

    @classmethod
    def _from_arguments(cls: type[SpecT], arguments: Mapping[str, Any]) -> SpecT:
        known = [f.name for f in fields(cls)]
        unknown = [name for name in arguments if name not in known]
        if unknown:
            raise ArgumentError(f"{cls.kind}: unknown argument {unknown[0]!r}; expected one of {', '.join(known)}")
        return cls(**arguments)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse to compute: a spec stands for a module in the code of a `unirnn.Model`, and is none itself.

        Raises
        ------
        ArgumentError
            Always.
        """
        raise ArgumentError(f"{self!r} is no module; build one, as in spec.build('torch'), and call that")

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
        from unirnn.building import build

        return build(self, backend, device=device, dtype=dtype, seed=seed, weights=None, options=options)


def _kinds() -> dict[str, type[Spec]]:
    """The classes of specs by their kinds, those included that are imported on their first use."""
    from . import model  # noqa: F401 - it imports all others

    return Spec._kinds


def uniform(random: Random, shape: tuple[int, ...], bound: float) -> NDArray[np.float64]:
    """Draw an array uniformly from ``(-bound, bound)``."""
    array = random(shape)
    array *= 2 * bound
    array -= bound
    return array
