"""Writes PyTorch's checkpoints, ``.pt`` and ``.pth``; the core reads them, without torch."""

import io
import zipfile
from collections import OrderedDict
from collections.abc import Mapping

import torch

from unirnn.contract.backend import Arrays
from unirnn.specs import ModelSpec, Spec

__all__ = ["encode_checkpoint"]


def encode_checkpoint(spec: Spec, weights: Arrays, metadata: Mapping[str, str]) -> bytes:
    """The bytes of a state dict that ``torch.save`` wrote, with the metadata in a record at which torch does not look.

    As in any state dict, a tied weight is there under each of its names, and stored once.
    """
    state = OrderedDict((name, torch.tensor(array)) for name, array in weights.items())
    for name, other in (spec.tied() if isinstance(spec, ModelSpec) else {}).items():
        state[name] = state[other]
    file = io.BytesIO()
    torch.save(state, file)
    with zipfile.ZipFile(file, "a") as archive:
        for name, text in metadata.items():
            archive.writestr(zipfile.ZipInfo(f"archive/{name}"), text)
    return file.getvalue()
