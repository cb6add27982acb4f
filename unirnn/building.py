"""Building a module: resolve the names, refuse what can't work, draw the weights, hand over."""

import inspect
from collections.abc import Mapping
from typing import Any

from . import registry
from . import weights as _weights
from .devices import Device, dtype_name
from .errors import ArgumentError, DeviceError, LimitError
from .limits import explain
from .specs import Spec

__all__ = ["build"]


def _is_present(device: Device, present: tuple[Device, ...]) -> bool:
    return any(device.kind == d.kind and device.index in (None, d.index) for d in present)


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
    name = registry.default_backend() if backend is None else backend
    room = registry.load(name)
    where = room.default_device() if device is None else Device.parse(device)
    kind = dtype_name(dtype)
    if device is not None and not _is_present(where, present := room.devices()):
        raise DeviceError(
            f"device: given {str(device)!r}, not present; {name} sees {', '.join(map(str, present))} on this machine"
        )
    # The whole explanation, of every kernel in words, only to refuse with: it takes a quarter of a small build.
    if kind not in room.dtypes or any(limit.refuses for limit in room.limits(spec, where, kind)):
        raise LimitError(str(explain(spec, name, where, dtype=kind).refusing()))
    if options:
        parameters = inspect.signature(room.build).parameters
        known = set(parameters) - {"spec", "device", "dtype", "weights", "seed"}
        takes_any = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        for option in () if takes_any else options.keys() - known:
            raise ArgumentError(
                f"build: unknown argument {option!r}; {name} takes {', '.join(sorted(known)) or 'none'} besides "
                "device, dtype and seed"
            )
    if seed is not None:
        _weights.check_seed(seed)
        weights = _weights.draw(spec, seed) if weights is None else weights
    return room.build(spec, device=where, dtype=kind, weights=weights, seed=seed, **options)
