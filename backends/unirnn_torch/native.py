"""torch's own computation, by cuDNN and oneDNN: of a whole stack, or of one layer in one direction with lengths."""

from collections.abc import Callable
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from unirnn import RecurrentSpec, RNNSpec, reference
from unirnn.contract.call import join_state

from . import dispatch

__all__ = ["NATIVE", "autocast_is_on", "direction", "mode", "needs_training_flag"]

NATIVE: dict[str, Callable[..., Any]] = {
    "RNN_TANH": torch.rnn_tanh,
    "RNN_RELU": torch.rnn_relu,
    "GRU": torch.gru,
    "LSTM": torch.lstm,
}
"""torch's functions by their modes."""


def mode(spec: RecurrentSpec) -> str:
    """As `torch.nn.RNNBase` calls the cell: ``RNN_TANH``, ``RNN_RELU``, ``GRU`` or ``LSTM``."""
    return f"RNN_{spec.nonlinearity.upper()}" if isinstance(spec, RNNSpec) else spec.kind


def direction(
    _: Any,
    spec: RecurrentSpec,
    x: Tensor,
    state: tuple[Tensor, ...],
    weights: reference.Weights,
    ragged: reference.Lengths | None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer in one direction by torch's own layer; see `unirnn.reference.direction`.

    The native call does not stop at step n, but goes on over zeros. The state h after step n-1 is among its outputs,
    but an LSTM's c is not, and a relu RNN may overflow in the padding and bring NaN into the gradient. So for these
    two, `_hold` makes the padded steps leave the state alone. Sequences of length 0 start from zeros, and get their
    initial state back at the end.
    """
    weight_ih = weights.weight_ih
    held = None if ragged is None else _hold(spec, x)
    if ragged is not None and held is not None:
        padded = torch.where(ragged.valid, 0.0, 1.0).to(x.dtype).unsqueeze(-1)
        x = torch.cat((x, padded), dim=-1)
        weight_ih = torch.cat((weight_ih, held.to(weight_ih.dtype)), dim=1)
    flat = [w for w in (weight_ih, *weights[1:]) if w is not None]
    if x.is_cuda:
        flat = _in_one_piece(flat)
    initial = state if ragged is None else tuple(ragged.begun(xp, part) for part in state)
    hx = join_state(tuple(part.unsqueeze(0) for part in initial))
    output, *final = NATIVE[mode(spec)](x, hx, flat, spec.bias, 1, 0.0, needs_training_flag(x), False, False)
    final = [part.squeeze(0) for part in final]
    if ragged is None:
        return output, tuple(final)
    # Under autocast the output may be narrower than the state.
    h_0, *c_0 = (part.to(output.dtype) for part in state)
    h = reference.last_valid(xp, output, h_0, ragged)
    begun = ragged.has_begun.unsqueeze(-1)
    return output, (h, *(torch.where(begun, c, c0) for c, c0 in zip(final[1:], c_0, strict=True)))


def needs_training_flag(x: Tensor) -> bool:
    """Whether to run the native call in training mode: cuDNN supports a backward pass only there."""
    return x.is_cuda and torch.is_grad_enabled() and not dispatch.is_jit_tracing()


def autocast_is_on(device: str) -> bool:
    """Whether autocast is on for a type of device; some, such as meta, have none, and then torch can't be asked."""
    known = device in ("cpu", "cuda")  # not every torch can trace is_autocast_available
    return (known or torch.amp.is_autocast_available(device)) and torch.is_autocast_enabled(device)


def _hold(spec: RecurrentSpec, x: Tensor) -> Tensor | None:
    """Weights `(gates*H, 1)` of one more input column, which is 1 on padded steps, that hold the state there.

    They are so large that they decide the gates. LSTM: i is exactly 0 and f exactly 1, so ``c' = 1 * c + 0 * g = c``.
    Relu RNN: h is 0. The other cells need none.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if autocast_is_on(device) else x.dtype
    large = torch.finfo(dtype).max / 4
    if mode(spec) == "RNN_RELU":
        return x.new_full((spec.hidden_size, 1), -large)
    if spec.kind == "LSTM":
        column = x.new_zeros((4, spec.hidden_size, 1))
        column[0], column[1] = -large, large
        return column.reshape(4 * spec.hidden_size, 1)
    return None


def _in_one_piece(flat: list[Tensor]) -> list[Tensor]:
    """Copy the weights of one layer and direction into one piece, as cuDNN wants them: matrices, then biases or zeros.

    Left in the memory of the whole stack, where `torch.nn.RNNBase.flatten_parameters` puts them, torch would copy them
    as well, and warn of it at each call.
    """
    order = sorted(range(len(flat)), key=lambda k: -flat[k].dim())  # stable
    sizes = [flat[k].numel() for k in order]
    pieces = [flat[k].reshape(-1) for k in order]
    if all(w.dim() == 2 for w in flat):
        sizes.append(2 * flat[1].shape[0])
        pieces.append(flat[1].new_zeros(sizes[-1]))
    views = dict(zip(order, torch.split_with_sizes(torch.cat(pieces), sizes), strict=False))
    return [views[k].view(w.shape) for k, w in enumerate(flat)]
