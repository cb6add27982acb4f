"""Building a module: resolve the names, refuse what can't work, draw the weights, hand over to the backend."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from unirnn import registry
from unirnn.contract import weights as _weights
from unirnn.contract.backend import Backend
from unirnn.contract.limits import Kernel, Limit
from unirnn.devices import Device, dtype_name
from unirnn.errors import ArgumentError, DeviceError, LimitError
from unirnn.specs import Model, RecurrentSpec, Spec

__all__ = ["Explanation", "build", "explain"]


@dataclass(frozen=True)
class Explanation:
    """The limits of one spec on one backend, device and dtype, and the kernels that it has there.

    Printed, it is a text with a line for each limit; iterating over it gives the limits.
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
        return "\n".join([head, *(f"  {limit}" for limit in self.limits)])

    @property
    def kernel_sentences(self) -> tuple[str, ...]:
        """For each kernel a sentence that says when it runs; the first match wins.

        Examples
        --------
        >>> import unirnn
        >>> print(unirnn.explain(unirnn.GRUSpec(10, 16), "numpy").kernel_sentences[-1])
        reference runs only if it is asked for by name: kernel="reference".
        """
        return tuple(map(str, self.kernels))


def explain(spec: Spec, backend: str | None = None, device: Any = None, *, dtype: Any = "float32") -> Explanation:
    """List what a backend can't do, or does differently, for a spec, and the kernels that it has for it.

    The device need not be present, so a laptop can report the limits of Ascend.

    Parameters
    ----------
    spec
        The layer, or the model.
    backend, device, dtype
        As in `Spec.build`.

    Examples
    --------
    >>> import unirnn
    >>> print(unirnn.explain(unirnn.LSTMSpec(3, 4), "numpy", dtype="bfloat16"))
    LSTMSpec(3, 4) on numpy, cpu, bfloat16: can't be built
      can't: numpy computes in float16, float32, float64, not in bfloat16
    """
    chosen, where, kind = _resolved(backend, device, dtype)
    limits = tuple(_limits(chosen, spec, where, kind))
    kernels: tuple[Kernel, ...] = ()
    if not any(limit.refuses for limit in limits):
        layers = [leaf for leaf in spec.leaves().values() if isinstance(leaf, RecurrentSpec)]
        kernels = tuple(dict.fromkeys(kernel for leaf in layers for kernel in chosen.kernels(leaf, where, kind)))
    return Explanation(spec, chosen.name, where, kind, limits, kernels)


def _resolved(backend: str | None, device: Any, dtype: Any) -> tuple[Backend, Device, str]:
    """The backend, the device and the name of the dtype that the arguments of `Spec.build` mean."""
    chosen = registry.load(registry.default_backend() if backend is None else backend)
    where = chosen.default_device() if device is None else Device.parse(device)
    return chosen, where, dtype_name(dtype)


def _limits(backend: Backend, spec: Spec, device: Device, dtype: str) -> Iterator[Limit]:
    reason = backend.support.unsupported_reason(spec, device.kind, dtype)
    if reason is not None:
        yield Limit(reason)
    found: dict[tuple[str, bool], None] = {}
    for part in {**spec.leaves(), "": spec}.values():  # two layers may have the same limit
        own = backend.limits(part, device, dtype) if part.kind in backend.support.kinds else ()
        found |= {(limit.text, limit.refuses): None for limit in own}
    yield from (Limit(text, refuses) for text, refuses in found)


def build(
    spec: Spec,
    backend: str | None,
    *,
    device: Any,
    dtype: Any,
    seed: int | None,
    weights: Mapping[str, Any] | None,
    options: Mapping[str, Any],
) -> Any:
    """Build a module from a spec and given weights, or weights to draw; see `Spec.build`."""
    spec.check_complete()
    spec = spec.copied() if isinstance(spec, Model) else spec
    chosen, where, kind = _resolved(backend, device, dtype)
    present = () if device is None else chosen.devices()
    if device is not None and not any(where.kind == d.kind and where.index in (None, d.index) for d in present):
        raise DeviceError(
            f"device: given {str(device)!r}, not present; {chosen.name} sees {', '.join(map(str, present))} on this "
            "machine"
        )
    refusing = tuple(limit for limit in _limits(chosen, spec, where, kind) if limit.refuses)
    if refusing:
        raise LimitError(str(Explanation(spec, chosen.name, where, kind, refusing)))
    for option in options.keys() - chosen.options:
        raise ArgumentError(
            f"build: unknown argument {option!r}; {chosen.name} takes {', '.join(chosen.options) or 'none'} besides "
            "device, dtype and seed"
        )
    if seed is not None:
        _weights.check_seed(seed)
        weights = _weights.draw(spec, seed) if weights is None else weights
    return chosen.build(spec, device=where, dtype=kind, weights=weights, seed=seed, options=options)
