"""Under `torch.onnx.export`, a layer is one node: ONNX's own RNN, GRU or LSTM.

The exporter translates operators one by one, and has no translation of a recurrent layer with lengths. So while it
traces, a layer is that node, with ``sequence_lens``. What ONNX leaves open or defines differently is handled before and
after the node, as in `unirnn.files.onnx_writer`: padding is replaced by zeros, and a sequence of length 0 gets its
initial state back. T and B stay dynamic, which they would not if the steps were unrolled.

ONNX has no LSTM with a projection, ``h' = W_hr r'`` with ``r' = o * tanh(c')``. But ``W_hh h`` is ``(W_hh W_hr) r``, so
it is an LSTM without one, over the state r, whose output is projected. Only ``h_0`` is the projection of no r: it is
given to the first step as more columns of the input, whose weights are ``W_hh``.
"""

from collections.abc import Sequence
from typing import Any

import array_api_compat.torch as xp
import torch
from torch import Tensor

from unirnn import LSTMSpec, RecurrentSpec, reference

from . import native

__all__ = ["direction", "layer"]

_OPSET = 14
"""The version of ONNX's operator set that defines these nodes."""
_GATES = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
"""torch's gates in ONNX's order: z, r, n and i, o, f, g."""


def layer(
    cell: str,
    x: Tensor,
    lengths: Tensor | None,
    state: Sequence[Tensor],
    weights: Sequence[reference.Weights],
    reverse: Sequence[bool],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer, in one direction or in two. ONNX's nodes know no resets.

    Parameters
    ----------
    cell
        As the C kernels call it; see `unirnn.kernels.compiled.cell_of`.
    x
        `(T, B, I)`.
    lengths
        `(B,)` int64; None if every step is valid.
    state
        The initial state, `(D, B, H)` each.
    weights, reverse
        Those of each direction, and whether it runs from the last valid step to the first.

    Returns
    -------
    output
        `(T, B, D*H)`, zero in the padding.
    final_state
        `(D, B, H)` each.
    """
    steps = x.shape[0]
    ragged = None if lengths is None else reference.Lengths(xp, lengths, steps)
    if ragged is not None:
        x = ragged.select(xp, x)
    projection = None
    begin = state
    projections = [w.weight_hr.t() for w in weights if w.weight_hr is not None]
    if projections:
        projection = torch.stack(projections)
        last = torch.full_like(x[0, :, 0], steps - 1, dtype=torch.int64) if lengths is None else lengths - 1
        firsts = [last if backward else torch.zeros_like(last) for backward in reverse]
        x = torch.cat([x, *(_at_step(first, h_0, steps) for first, h_0 in zip(firsts, state[0], strict=True))], dim=2)
        weights = [_without_projection(w, k, len(weights)) for k, w in enumerate(weights)]
        begin = [torch.zeros_like(state[1]), state[1]]
    output, *final = _node(cell, x, lengths, begin, weights, reverse)
    if projection is not None:
        output, final[0] = torch.matmul(output, projection), torch.matmul(final[0], projection)
    output = output.squeeze(1) if len(weights) == 1 else output.transpose(1, 2).flatten(2)
    if ragged is None:
        return output, tuple(final)
    begun = ragged.has_begun.unsqueeze(-1)
    return ragged.select(xp, output), tuple(
        torch.where(begun, part, initial) for part, initial in zip(final, state, strict=True)
    )


def direction(
    _: Any,
    spec: RecurrentSpec,
    weights: reference.Weights,
    x: Tensor,
    state: tuple[Tensor, ...],
    ragged: reference.Lengths | None,
    begins: None,
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run an LSTM with a projection in one direction, for the exporter by traces; see `unirnn.reference.direction`."""
    h_0, c_0 = state
    x = torch.cat([x, _at_step(torch.zeros_like(h_0[:, 0], dtype=torch.int64), h_0, x.shape[0])], dim=2)
    other = LSTMSpec(spec.input_size, spec.hidden_size, bias=spec.bias)
    begin, own = (torch.zeros_like(c_0), c_0), _without_projection(weights, 0, 1)
    output, (r, c) = native.direction(_, other, own, x, begin, ragged, begins)
    assert weights.weight_hr is not None
    projection = weights.weight_hr.t()
    h = torch.matmul(r, projection)
    if ragged is not None:
        h = torch.where(ragged.has_begun.unsqueeze(-1), h, h_0)
    return torch.matmul(output, projection), (h, c)


def _at_step(step: Tensor, h: Tensor, steps: int) -> Tensor:
    """`(T, B, P)`: h, `(B, P)`, at one step of each sequence, `(B,)`, and zeros at the others."""
    here = torch.arange(steps, device=h.device).unsqueeze(1) == step
    return torch.where(here.unsqueeze(2), h, torch.zeros_like(h))


def _without_projection(weights: reference.Weights, k: int, directions: int) -> reference.Weights:
    """The weights of direction k as those of an LSTM over ``r`` and the input with the initial states."""
    weight_ih, weight_hh, bias_ih, bias_hh, weight_hr = weights
    assert weight_hr is not None
    none = torch.zeros_like(weight_hh)
    columns = [weight_hh if k == other else none for other in range(directions)]
    return reference.Weights(torch.cat([weight_ih, *columns], dim=1), weight_hh @ weight_hr, bias_ih, bias_hh)


def _node(
    cell: str,
    x: Tensor,
    lengths: Tensor | None,
    state: Sequence[Tensor],
    weights: Sequence[reference.Weights],
    reverse: Sequence[bool],
) -> Sequence[Tensor]:
    """ONNX's node: the output `(T, D, B, H)`, and the final state, `(D, B, H)` each."""
    kind, _, variant = cell.partition("_")
    steps, batch_size, _ = x.shape
    directions, size = len(weights), weights[0].weight_hh.shape[1]

    def arranged(weight: Tensor) -> Tensor:
        # Slices, since the exporter does not fold a split.
        return torch.cat([weight[k * size : (k + 1) * size] for k in _GATES[kind]])

    biases = [(w.bias_ih, w.bias_hh) for w in weights]
    attributes: dict[str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]]
    direction = "bidirectional" if directions == 2 else "reverse" if reverse[0] else "forward"
    attributes = {"hidden_size": size, "direction": direction}
    if kind == "RNN":
        attributes["activations"] = ["Relu" if cell == "RNN_RELU" else "Tanh"] * directions
    if kind == "GRU":
        attributes["linear_before_reset"] = int("RESET_BEFORE" not in variant)
    if "HARD_SIGMOID" in variant:
        attributes["activations"] = ["HardSigmoid", *["Tanh"] * (2 if kind == "LSTM" else 1)] * directions
        attributes["activation_alpha"] = [0.2 if variant.endswith("02") else 1 / 6] * directions
        attributes["activation_beta"] = [0.5] * directions
    results: Sequence[Tensor] = torch.onnx.ops.symbolic_multi_out(
        kind,
        [
            x,
            torch.stack([arranged(w.weight_ih) for w in weights]),
            torch.stack([arranged(w.weight_hh) for w in weights]),
            None
            if biases[0][0] is None
            else torch.stack([torch.cat([arranged(b) for b in pair if b is not None]) for pair in biases]),
            None if lengths is None else lengths.to(torch.int32),
            *state,
        ],
        attributes,
        dtypes=[x.dtype] * (1 + len(state)),
        shapes=[(steps, directions, batch_size, size), *[(directions, batch_size, size)] * len(state)],
        version=_OPSET,
    )
    return results
