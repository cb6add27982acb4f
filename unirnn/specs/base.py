"""Specs: what a layer is, free of any framework.

A spec is a frozen, hashable value that can be compared, printed, pasted and stored. It knows the names and shapes of
its weights and how they are first drawn, and it builds native modules (`Spec.build`).
"""

import math
import numbers
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from unirnn.errors import ArgumentError, SpecError

__all__ = ["Random", "Spec"]

SpecT = TypeVar("SpecT", bound="Spec")

Random = Callable[[tuple[int, ...]], NDArray[np.float64]]
"""Draws an array of a shape, uniform in ``[0, 1)``: the ``random`` of a `numpy.random.Generator`."""


@dataclass(frozen=True)
class Spec:
    """What all specs have in common. A subclass with a ``kind`` is a layer; `from_dict` finds it by that name."""

    kind: ClassVar[str]
    """The layer's name, which `to_dict` writes: ``"GRU"``."""
    _kinds: ClassVar[dict[str, type["Spec"]]] = {}
    _not_computed: ClassVar[tuple[str, ...]] = ()
    """The fields that do not change what a layer computes from given weights; see `fits`."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        if "kind" in vars(cls):
            Spec._kinds[cls.kind] = cls

    def __new__(cls, *_: Any, **__: Any) -> "Spec":
        """Refuse to make a spec of a class without a kind."""
        if not hasattr(cls, "kind"):
            known = ", ".join(found.__name__ for found in Spec._kinds.values())
            raise ArgumentError(f"{cls.__name__} is not a layer; expected one of {known}")
        return super().__new__(cls)

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

    # ---- weights ---------------------------------------------------------------------------------

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the weights, in torch's order; empty for a layer without weights."""
        return {}

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
        return {"kind": self.kind, **{f.name: getattr(self, f.name) for f in fields(self)}}

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
        arguments = dict(values)
        kind = arguments.pop("kind", None)
        known = {name: found for name, found in Spec._kinds.items() if issubclass(found, cls) or issubclass(cls, found)}
        found: Any = known.get(kind) if isinstance(kind, str) else None
        if found is None:
            raise SpecError(f"kind: given {kind!r}, expected one of {', '.join(map(repr, known))}")
        if issubclass(cls, found):  # called on a class of this kind, or on a subclass of it without its own kind
            return cls._from_arguments(arguments)
        made: SpecT = found._from_arguments(arguments)
        return made

    @classmethod
    def _from_arguments(cls: type[SpecT], arguments: Mapping[str, Any]) -> SpecT:
        return cls(**arguments)

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
