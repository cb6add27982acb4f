"""Reading PyTorch's checkpoints, ``.pt`` and ``.pth``, and Lightning's ``.ckpt``: their tensors, and nothing else.

``torch.load(weights_only=True)`` executes nothing from a file, but allocates what the file claims and has trusted it
about sizes; so the file is checked before, and what came out of it after.
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

    Whatever else is in the file is left out: integers, optimizers' options, sparse and quantised tensors. bfloat16
    becomes float32.

    Raises
    ------
    FileError
        If the file needs code to be run, is altered, or claims more than it has.
    Exception
        Whatever else ``torch.load`` raises over a file that is none of its own.
    """
    size, zipped = _check(path)
    try:
        # Mapped, a zip's storages end where the file does, whatever it claims; older files can't be.
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        reason = str(error).partition("WeightsUnpickler error: ")[2].partition("\n")[0]
        reason = reason.partition(" Please use")[0]  # its advice: to trust the file
        raise FileError(
            "expected tensors in mappings, but it is altered, or holds objects that only code could make again, and "
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
    """The file's size, and whether it is a zip, if nothing in it is known to be hostile or altered."""
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        size, zipped = len(content), content[:4] == b"PK\x03\x04"
        if content.find(b"\nbytearray\n") >= 0:  # the one thing in a pickle that torch.load fills to any size
            raise FileError("it holds a bytearray, which no state dict has, and which may be of any size")
    if zipped:
        with zipfile.ZipFile(path) as archive:
            if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise FileError("its records are compressed, which torch.save does not do")
            altered = archive.testzip()  # a mapped file's checksums are nobody else's to check
        if altered is not None:
            raise FileError(f"its record {altered!r} is altered: the checksum is another")
    return size, zipped


def _tensors(value: Any, prefix: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    if id(value) in seen or not isinstance(value, Mapping):  # once each: a mapping may hold itself
        return
    seen.add(id(value))
    for key, item in value.items():
        if isinstance(item, torch.Tensor):
            if item.layout == torch.strided and item.dtype in _DTYPES and item.device.type == "cpu":
                tensor = item.detach()
                # An expanded tensor claims more than there is.
                if tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes():
                    yield f"{prefix}{key}", tensor
        else:
            yield from _tensors(item, f"{prefix}{key}.", seen)


def _place(tensor: torch.Tensor) -> tuple[int, int]:
    storage = tensor.untyped_storage()
    return storage.data_ptr(), storage.nbytes()
