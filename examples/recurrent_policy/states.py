"""What the example does to the state ``(h, c)`` of an LSTM, whose parts are `(L, B, H)`."""

import torch
from torch import Tensor

import unirnn

__all__ = ["State", "select", "where", "zeros"]

State = tuple[Tensor, Tensor]


def zeros(spec: unirnn.LSTMSpec, batch_size: int) -> State:
    """The state before a sequence begins."""
    h, c = (torch.zeros(shape) for shape in spec.state_shapes(batch_size).values())
    return h, c


def where(mask: Tensor, a: State, b: State) -> State:
    """For each sequence, the state `a` where the mask `(B,)` is true, and `b` elsewhere."""
    h, c = (torch.where(mask[:, None], *parts) for parts in zip(a, b, strict=True))
    return h, c


def select(state: State, index: Tensor) -> State:
    """The states of some of the sequences."""
    h, c = (part[:, index] for part in state)
    return h, c
