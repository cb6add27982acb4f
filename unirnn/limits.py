"""Limits: what a backend can't do, or does differently, told before the run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from .devices import Device, dtype_name
from .specs import Spec

__all__ = ["Explanation", "Limit", "explain"]


@dataclass(frozen=True)
class Limit:
    """One gap or difference.

    Parameters
    ----------
    text
        What it is, and what to do about it.
    refuses
        Whether `Spec.build` refuses because of it; if not, the module works, differently.
    """

    text: str
    refuses: bool = True

    def __str__(self) -> str:
        return ("can't: " if self.refuses else "differs: ") + self.text


@dataclass(frozen=True)
class Explanation:
    """The limits of one spec on one backend, device and dtype.

    Printed, it is a text of a line a limit; iterated, the limits.
    """

    spec: Spec
    backend: str
    device: Device
    dtype: str
    limits: tuple[Limit, ...]

    def refusing(self) -> "Explanation":
        """Only the limits that refuse: what an error has to say."""
        return replace(self, limits=tuple(limit for limit in self.limits if limit.refuses))

    @property
    def builds(self) -> bool:
        """Whether nothing refuses."""
        return not self.refusing().limits

    def __iter__(self) -> Iterator[Limit]:
        return iter(self.limits)

    def __str__(self) -> str:
        head = f"{self.spec!r} on {self.backend}, {self.device}, {self.dtype}: "
        if not self.limits:
            return head + "no limits"
        return "\n".join(
            [
                head + ("works, with differences" if self.builds else "can't be built"),
                *(f"  {limit}" for limit in self.limits),
            ]
        )


def explain(spec: Spec, backend: str | None = None, device: Any = None, *, dtype: Any = "float32") -> Explanation:
    """List what a backend can't do, or does differently, for a spec.

    The device need not be present: what Ascend can't do is told on a laptop.

    Parameters
    ----------
    spec
        The layer.
    backend, device, dtype
        As in `Spec.build`.

    Examples
    --------
    >>> import unirnn
    >>> print(unirnn.explain(unirnn.LSTMSpec(3, 4, proj_size=2), "numpy"))
    LSTMSpec(3, 4, proj_size=2) on numpy, cpu, float32: can't be built
      can't: numpy has no proj_size (given 2); torch has
    """
    from . import registry

    name = registry.default_backend() if backend is None else backend
    room = registry.load(name)
    where = room.default_device() if device is None else Device.parse(device)
    kind = dtype_name(dtype)
    limits = list(room.limits(spec, where, kind))
    if kind not in room.dtypes:
        limits.insert(0, Limit(f"{name} has no {kind} layers; it has {', '.join(room.dtypes)}"))
    return Explanation(spec, name, where, kind, tuple(limits))
