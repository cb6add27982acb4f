"""The names of devices and dtypes, the same for every backend."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from unirnn.errors import DeviceError, DTypeError

__all__ = ["DTYPES", "Device", "dtype_name", "short_name"]

DTYPES = ("float16", "bfloat16", "float32", "float64")
"""The dtypes that a layer can have, by name."""

_KINDS: dict[str, Literal["cpu", "gpu", "ascend"]] = {
    "cpu": "cpu",
    "gpu": "gpu",
    "cuda": "gpu",
    "ascend": "ascend",
    "npu": "ascend",
}


@dataclass(frozen=True)
class Device:
    """A device, named in the same way on every backend.

    Parameters
    ----------
    kind
        ``"cpu"``, ``"gpu"`` or ``"ascend"``.
    index
        Which of several devices; None is the framework's current one. The CPU has no index.

    Examples
    --------
    >>> Device.parse("cuda:1"), str(Device.parse("npu"))
    (Device(kind='gpu', index=1), 'ascend')
    """

    kind: Literal["cpu", "gpu", "ascend"]
    index: int | None = None

    @classmethod
    def parse(cls, name: Any) -> "Device":
        """Read ``cpu``, ``gpu``/``cuda[:n]``, ``ascend``/``npu[:n]``, or an object that prints as one of them.

        Raises
        ------
        DeviceError
            If it is none of these.
        """
        if isinstance(name, Device):
            return name
        match = re.fullmatch(r"([a-z]+)(?::(\d+))?", str(name).lower())
        if match is None or match[1] not in _KINDS:
            raise DeviceError(f"device: given {name!r}, expected cpu, gpu or cuda[:n], ascend or npu[:n]")
        kind = _KINDS[match[1]]
        return cls(kind, None if match[2] is None or kind == "cpu" else int(match[2]))

    def __str__(self) -> str:
        return self.kind if self.index is None else f"{self.kind}:{self.index}"


def dtype_name(dtype: Any) -> str:
    """The name of a dtype, given as a name or as any framework's object.

    Raises
    ------
    DTypeError
        If it is not one of `DTYPES`.

    Examples
    --------
    >>> import numpy
    >>> dtype_name(numpy.float64), dtype_name("float16")
    ('float64', 'float16')
    """
    name = short_name(dtype)
    if name not in DTYPES:
        raise DTypeError(f"dtype: given {dtype!r}, expected one of {', '.join(DTYPES)}")
    return name


def short_name(dtype: Any) -> str:
    """The name of a dtype without its framework, whether it is known or not.

    Examples
    --------
    >>> import numpy
    >>> short_name("torch.float32"), short_name("Float32"), short_name(numpy.dtype("int32"))
    ('float32', 'float32', 'int32')
    """
    return (dtype.__name__ if isinstance(dtype, type) else str(dtype)).rpartition(".")[2].lower()
