"""Reads the tensors, and nothing else, in PyTorch's checkpoints, ``.pt`` and ``.pth``, and Lightning's ``.ckpt``.

``torch.load(weights_only=True)`` executes nothing from a file, but it believes the sizes that the file claims, and
allocates them. So the file is checked before it is loaded, and the tensors after.
"""

import mmap
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from unirnn.errors import FileError

__all__ = ["read_checkpoint"]

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def read_checkpoint(path: str) -> dict[str, NDArray[Any]]:
    """The float tensors of a file by name; nested mappings' keys are joined by dots.

    Everything else in the file is left out: integers, options of optimizers, sparse and quantised tensors. bfloat16
    becomes float32.

    Raises
    ------
    FileError
        If loading the file would execute code, or if it is altered, or claims larger tensors than it holds.
    Exception
        Whatever else ``torch.load`` raises for a file that is not a checkpoint.
    """
    size, zipped = _check(path)
    try:
        # In a mapped zip, storages end where the file ends, whatever it claims. The older format can't be mapped.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0]
        reason = reason.partition(" Please use")[0]  # torch's advice is to trust the file
        raise FileError(
            "expected tensors in mappings, but it is altered, or holds objects that only code could restore, and "
            f"nothing from a file is executed; save module.state_dict() instead ({reason or 'torch.load refuses it'})"
        ) from error
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _tensors(loaded, "", set()):
        if name in tensors:
            raise FileError(f"{name!r} occurs twice")
        tensors[name] = tensor
    storages = {_place(tensor): tensor.untyped_storage() for tensor in tensors.values()}
    claimed = sum(storage.nbytes() for storage in storages.values())
    if claimed > size:
        raise FileError(f"its tensors claim {claimed} bytes, but it has {size}")
    widened = {
        place: torch.empty(0, dtype=torch.bfloat16).set_(storage).float()
        for place, storage in storages.items()
        if any(t.dtype == torch.bfloat16 and _place(t) == place for t in tensors.values())
    }
    return {
        name: (
            widened[_place(tensor)].as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())
            if tensor.dtype == torch.bfloat16
            else tensor
        ).numpy()
        for name, tensor in tensors.items()
    }


def _check(path: str) -> tuple[int, bool]:
    """The file's size, and whether it is a zip; refuses files that are hostile or altered."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        size, zipped = len(content), content[:4] == b"PK\x03\x04"
        if content.find(b"\nbytearray\n") >= 0:  # torch.load makes one of any size that the pickle names
            raise FileError("it holds a bytearray, which no state dict has, and which could have any size")
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise FileError("its records are compressed, which torch.save does not do")
            altered = archive.testzip()  # torch does not check the checksums of a mapped file
        if altered is not None:
            raise FileError(f"its record {altered!r} is altered: its checksum does not match")
    return size, zipped


def _tensors(value: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    if id(value) in seen or not isinstance(value, Mapping):  # a mapping may contain itself
        return
    seen.add(id(value))
    for key, item in value.items():
        if isinstance(item, torch.Tensor):
            if item.layout == torch.strided and item.dtype in _DTYPES and item.device.type == "cpu":
                tensor = item.detach()
                # An expanded tensor claims more numbers than are stored.
                if tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes():
                    yield f"{prefix}{key}", tensor
        else:
            yield from _tensors(item, f"{prefix}{key}.", seen)


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
