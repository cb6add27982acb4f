"""The tensors in what a torch module returns."""

from typing import Any

from torch import Tensor

__all__ = ["flat"]


def flat(result: Any) -> list[Tensor]:
    """The tensors in a result, such as an output and its final state."""
    return [result] if isinstance(result, Tensor) else [tensor for part in result for tensor in flat(part)]
