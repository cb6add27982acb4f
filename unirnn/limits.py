"""Limits and kernels: what a backend can't do, or does differently, and how it computes, told before the run."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from .devices import Device, dtype_name
from .errors import ArgumentError
from .specs import Spec

__all__ = ["Explanation", "Kernel", "Limit", "check_kernel", "explain"]


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


class Kernel(NamedTuple):
    """One way to compute, of those that a backend has.

    Parameters
    ----------
    name
        As the argument ``kernel`` of `Spec.build` takes it, where the backend has that argument.
    when
        When ``kernel="auto"`` takes it.
    """

    name: str
    when: str

    def __str__(self) -> str:
        return f"kernel {self.name}: {self.when}"


@dataclass(frozen=True)
class Explanation:
    """The limits of one spec on one backend, device and dtype, and the kernels that it has there.

    Printed, it is a text of a line a limit and a kernel; iterated, the limits.
    """

    spec: Spec
    backend: str
    device: Device
    dtype: str
    limits: tuple[Limit, ...]
    kernels: tuple[Kernel, ...] = ()

    def refusing(self) -> "Explanation":
        """Only the limits that refuse: what an error has to say."""
        return replace(self, limits=tuple(limit for limit in self.limits if limit.refuses), kernels=())

    @property
    def builds(self) -> bool:
        """Whether nothing refuses."""
        return not self.refusing().limits

    def __iter__(self) -> Iterator[Limit]:
        return iter(self.limits)

    def __str__(self) -> str:
        head = f"{self.spec!r} on {self.backend}, {self.device}, {self.dtype}: "
        if not self.limits:
            head += "no limits"
        else:
            head += "works, with differences" if self.builds else "can't be built"
        return "\n".join([head, *(f"  {line}" for line in (*self.limits, *self.kernels))])


def check_kernel(kernel: str, known: tuple[str, ...]) -> None:
    """Refuse a kernel that a backend does not know, whatever the spec.

    Raises
    ------
    ArgumentError
        With those that it knows.
    """
    if kernel not in known:
        raise ArgumentError(f"kernel: given {kernel!r}, expected one of {', '.join(map(repr, known))}")


def explain(spec: Spec, backend: str | None = None, device: Any = None, *, dtype: Any = "float32") -> Explanation:
    """List what a backend can't do, or does differently, for a spec, and the kernels that it has for it.

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
    found = tuple(limits)
    # A backend with one way to compute need not say so: see `Backend`.
    kernels = getattr(room, "kernels", None)
    if kernels is None or any(limit.refuses for limit in found):
        return Explanation(spec, name, where, kind, found)
    return Explanation(spec, name, where, kind, found, tuple(kernels(spec, where, kind)))
