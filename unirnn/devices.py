"""The names of devices and of dtypes, said once."""

import re
from dataclasses import dataclass
from typing import Any, Literal

from unirnn.errors import DeviceError, DTypeError

__all__ = ["DTYPES", "Device", "dtype_name"]

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
    """A device, as every backend understands it.

    Parameters
    ----------
    kind
        ``"cpu"``, ``"gpu"`` or ``"ascend"``.
    index
        Which one of several; None is the framework's current one. There is one CPU.

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
    """The name of a dtype, of whichever framework.

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
    name = plain_name(dtype)
    if name not in DTYPES:
        raise DTypeError(f"dtype: given {dtype!r}, expected one of {', '.join(DTYPES)}")
    return name


def plain_name(dtype: Any) -> str:
    """A dtype's name without its framework: ``torch.float32``, ``Float32`` and ``dtype('float32')`` alike."""
    return (dtype.__name__ if isinstance(dtype, type) else str(dtype)).rpartition(".")[2].lower()
