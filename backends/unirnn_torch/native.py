"""torch's own computation, by cuDNN and oneDNN: over dense steps, or over the valid ones only.

The packed form of torch takes the valid steps only, of sequences that are sorted by length. So it takes the sequences
between resets as well, which are sequences of their own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import array_api_compat.torch as xp
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unirnn import RecurrentSpec, RNNSpec, reference
from unirnn.contract.call import join_state
from unirnn.contract.sequences import Sequences, sequences

from . import dispatch
from .c_kernels import Call

__all__ = [
    "NATIVE",
    "autocast_is_on",
    "direction",
    "direction_with_resets",
    "mode",
    "needs_training_flag",
    "over_valid_steps",
]

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
    weights: reference.Weights,
    x: Tensor,
    state: tuple[Tensor, ...],
    ragged: reference.Lengths | None,
    begins: None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer in one direction by torch's own layer; see `unirnn.reference.direction`. It knows no resets.

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


def over_valid_steps(
    run: Callable[..., tuple[Tensor, ...]],
    x: Tensor,
    state: tuple[Tensor, ...],
    found: Sequences,
    reverse: Sequence[bool],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run layers over the valid steps only, in torch's packed form.

    Parameters
    ----------
    run
        ``run(data, batch_sizes, state)`` gives ``(output, *final_state)`` of layers in torch's packed form.
    x
        `(T, B, I)`.
    state
        The initial state, `(L*D, B, H)` each.
    found
        The sequences of the batch. There must be a valid step.
    reverse
        Whether each layer and direction runs from the last valid step to the first. If all do, ``run`` is given the
        steps in the opposite order, and runs forward.

    Returns
    -------
    output
        `(T, B, D*H)`, zero in the padding.
    final_state
        `(L*D, B, H)` each.
    """
    steps, batch_size, _ = x.shape

    def there(array: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(x.device, non_blocking=True)

    # Sequences of length 0 are left out: torch refuses them.
    longest_first = np.argsort(-found.lengths, kind="stable")[: np.count_nonzero(found.lengths)]
    found = found.select(longest_first)
    ended = np.searchsorted(found.lengths[::-1], np.arange(found.lengths[0]), side="right")
    batch_sizes = torch.from_numpy(len(longest_first) - ended)
    count = int(found.lengths.sum())
    active = there(batch_sizes)
    # Of each row of the packed form: its step, its place among the sequences, and its step in the column.
    packed_step = torch.repeat_interleave(active, output_size=count)
    place = torch.arange(count, device=x.device) - (active.cumsum(0) - active).index_select(0, packed_step)
    if all(reverse):
        step = there(found.begins + found.lengths - 1).index_select(0, place) - packed_step
    else:
        step = there(found.begins).index_select(0, place) + packed_step
    rows = step * batch_size + there(found.columns).index_select(0, place)

    directions = np.array(reverse, np.int64)
    at, has_initial = found.initial(directions)
    begin = [_rows(part).index_select(0, there(at.reshape(-1))).view(*at.shape, -1) for part in state]
    if not has_initial.all():
        begun = there(has_initial).unsqueeze(-1)
        begin = [torch.where(begun, part, torch.zeros_like(part)) for part in begin]
    results, *ends = run(_rows(x).index_select(0, rows), batch_sizes, tuple(begin))

    # Under autocast the results may be narrower than the input.
    output = results.new_zeros((steps * batch_size, results.shape[1])).index_copy(0, rows, results)
    source, target = (there(rows) for rows in found.final(directions))
    final = tuple(
        _rows(whole.to(part.dtype)).index_copy(0, target, _rows(part).index_select(0, source)).view(whole.shape)
        for whole, part in zip(state, ends, strict=True)
    )
    return output.view(steps, batch_size, -1), final


def _rows(array: Tensor) -> Tensor:
    """`(T, B, F)` to `(T*B, F)`."""
    return array.reshape(-1, array.shape[2])


def direction_with_resets(spec: RecurrentSpec, call: Call, lengths: NDArray[np.int64] | None) -> tuple[Tensor, ...]:
    """Run one layer in one direction, some of whose sequences begin anew: ``(output, *final_state)``.

    The lengths are those of the call; there must be a valid step.
    """
    x, resets = call.x, call.resets
    found = sequences(x.shape[0], x.shape[1], lengths, None if resets is None else resets.cpu().numpy())
    flat = [w for w in call.weights if w is not None]
    if x.is_cuda:
        flat = _in_one_piece(flat)
    training = needs_training_flag(x)

    def run(data: Tensor, batch_sizes: Tensor, state: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        results: tuple[Tensor, ...] = NATIVE[mode(spec)](
            data, batch_sizes, join_state(state), flat, spec.bias, 1, 0.0, training, False
        )
        return results

    state = tuple(part.unsqueeze(0) for part in call.state)
    output, final = over_valid_steps(run, x, state, found, [call.reverse])
    return output, *(part.squeeze(0) for part in final)


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

    They lie in the memory of the whole stack, where `torch.nn.RNNBase.flatten_parameters` puts them. From there torch
    would copy them as well, and warn of it at each call.
    """
    order = sorted(range(len(flat)), key=lambda k: -flat[k].dim())  # stable
    sizes = [flat[k].numel() for k in order]
    pieces = [flat[k].reshape(-1) for k in order]
    if all(w.dim() == 2 for w in flat):
        sizes.append(2 * flat[1].shape[0])
        pieces.append(flat[1].new_zeros(sizes[-1]))
    views = dict(zip(order, torch.split_with_sizes(torch.cat(pieces), sizes), strict=False))
    return [views[k].view(w.shape) for k, w in enumerate(flat)]
