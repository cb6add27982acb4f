"""The packed kernel by numba: the core's compiled cells, over the tensors' own memory.

A step there costs none of the calls of torch's, of which it has ten in `by_torch`; so it is the faster one where a step
has few rows. It is as good as a cell of `by_torch`, with the same arguments, and keeps as much. A large layer is run by
several threads, each with a part of the packing, and all products are NumPy's. Else the products of many rows are
torch's, by torch's settings, and the steps have one thread, since those of NumPy's BLAS go on spinning for some time
after a product, and would be in the way of torch's.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unirnn import RecurrentSpec, kernels, reference
from unirnn.kernels.directions import Direction, Kept
from unirnn.kernels.threads import Threads, blas

from .by_torch import Rows

__all__ = ["ByNumba"]


class ByNumba:
    """One layer in one direction; see `unirnn_torch.by_torch.ByTorch`.

    Parameters
    ----------
    cell
        One of the core's compiled cells.
    spec
        What the layer is.
    rows
        How the batch is packed.
    weights
        As torch has them.
    """

    def __init__(self, cell: type[Direction], spec: RecurrentSpec, rows: Rows, weights: reference.Weights) -> None:
        self._several = len(rows.packing.parts) > 1
        weight_ih, *others = weights[:4]
        arrays = kernels.Weights(
            _read(weight_ih) if self._several else weight_ih, *(None if w is None else _read(w) for w in others)
        )
        self._run = Threads(cell, spec, arrays, rows.packing, backward=rows.backward)
        if not self._several:
            (direction,) = self._run.directions
            direction.matmul = _matmul

    def _factor(self, tensor: Tensor) -> Any:
        """What products of many rows take; by several threads they are NumPy's, as torch's can't have one each."""
        return _own(tensor) if self._several else tensor

    def forward(self, x: Tensor, initial: list[Tensor], outputs: Tensor, blocks: Tensor | None) -> list[Tensor]:
        """As that of `ByTorch`."""
        into = None if blocks is None else Kept(outputs.numpy(), blocks.numpy().reshape(-1))
        state = tuple(map(_own, initial))
        with np.errstate(all="ignore"), blas.of(1):
            found, final = self._run.forward(self._factor(x), state, keep=into is not None, into=into)
        if into is None:
            outputs.copy_(torch.from_numpy(found))
        return [_tensor(part) for part in final]

    def backward(
        self,
        x: Tensor,
        initial: list[Tensor],
        outputs: Tensor,
        blocks: Tensor,
        d_outputs: Tensor | None,
        d_state: list[Tensor],
        *,
        d_x: Tensor | None,
        of_weights: bool,
    ) -> reference.Weights | None:
        """As that of `ByTorch`."""
        kept = Kept(outputs.numpy(), blocks.numpy().reshape(-1))
        self._run.resume(self._factor(x), tuple(map(_own, initial)), kept)
        d_rows = np.zeros(outputs.shape, kept.outputs.dtype) if d_outputs is None else _read(d_outputs)
        into = None if d_x is None else self._factor(d_x)
        with np.errstate(all="ignore"), blas.of(1):
            found, d_weights = self._run.backward(d_rows, tuple(map(_read, d_state)), d_x=into, of_weights=of_weights)
        for part, gradient in zip(d_state, found, strict=True):
            part.copy_(torch.from_numpy(gradient))
        return reference.Weights(*(None if d is None else _tensor(d) for d in d_weights)) if of_weights else None


# What torch has shared with NumPy, in either direction, nobody may resize any more, as those do who shard a model. So
# only what no caller ever sees is shared.


def _own(tensor: Tensor) -> NDArray[Any]:
    """The same memory, of a tensor that no caller ever sees."""
    array: NDArray[Any] = tensor.detach().resolve_neg().numpy()
    return array


def _read(tensor: Tensor) -> NDArray[Any]:
    """The values of any other, where they lie: not to be written to."""
    return np.from_dlpack(tensor.detach().resolve_neg())


def _matmul(a: Any, b: Any, out: Any) -> Any:
    """``a @ b`` by torch's BLAS; of arrays, and of tensors, which stay what they are."""
    torch.mm(*(_shared(part) for part in (a, b)), out=_shared(out))
    return out


def _shared(array: Any) -> Tensor:
    """A tensor of the same memory."""
    return array if isinstance(array, Tensor) else torch.from_numpy(array)


def _tensor(array: NDArray[Any]) -> Tensor:
    """A copy."""
    return torch.from_numpy(array).clone()
