"""Under `torch.onnx.export`, a layer is one node: ONNX's own RNN, GRU or LSTM.

The exporter translates operators one by one, and has no translation of a recurrent layer with lengths. So while it
traces, a layer is that node, with ``sequence_lens``. What ONNX leaves open or defines differently is handled before and
after the node, as in `unirnn.files.onnx_writer`: padding is replaced by zeros, and a sequence of length 0 gets its
initial state back. T and B stay dynamic, which they would not if the steps were unrolled.
"""

from collections.abc import Sequence

import array_api_compat.torch as xp
import torch
from torch import Tensor

from unirnn import reference

__all__ = ["layer"]

_OPSET = 14
"""The version of ONNX's operator set that defines these nodes."""
_GATES = {"RNN": (0,), "GRU": (1, 0, 2), "LSTM": (0, 3, 1, 2)}
"""torch's gates in ONNX's order: z, r, n and i, o, f, g."""


def layer(
    cell: str,
    x: Tensor,
    lengths: Tensor | None,
    resets: None,
    state: Sequence[Tensor],
    weights: Sequence[reference.Weights],
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Run one layer; see `unirnn_torch.operators.layer`. ONNX's nodes know no resets."""
    kind = cell.partition("_")[0]
    steps, batch_size, _ = x.shape
    directions, size = len(weights), weights[0].weight_hh.shape[1]
    ragged = None if lengths is None else reference.Lengths(xp, lengths, steps)
    if ragged is not None:
        x = ragged.select(xp, x)

    def arranged(weight: Tensor) -> Tensor:
        # Slices, since the exporter does not fold a split.
        return torch.cat([weight[k * size : (k + 1) * size] for k in _GATES[kind]])

    biases = [(w.bias_ih, w.bias_hh) for w in weights]
    attributes: dict[str, int | float | str | bool | Sequence[int] | Sequence[float] | Sequence[str] | Sequence[bool]]
    attributes = {"hidden_size": size, "direction": "bidirectional" if directions == 2 else "forward"}
    if kind == "RNN":
        attributes["activations"] = ["Relu" if cell == "RNN_RELU" else "Tanh"] * directions
    if kind == "GRU":
        attributes["linear_before_reset"] = int(cell == "GRU")
    output, *final = torch.onnx.ops.symbolic_multi_out(
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
    output = output.squeeze(1) if directions == 1 else output.transpose(1, 2).flatten(2)
    if ragged is None:
        return output, tuple(final)
    begun = ragged.has_begun.unsqueeze(-1)
    return ragged.select(xp, output), tuple(
        torch.where(begun, part, initial) for part, initial in zip(final, state, strict=True)
    )
