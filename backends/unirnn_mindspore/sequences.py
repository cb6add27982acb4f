"""The sequences between resets as more rows of the batch: for MindSpore's own operators in PyNative mode.

The sequences are independent of each other, and no operator of MindSpore knows of resets. So each of them becomes a row
with a length, and the layers run over these rows. Groups of sequences of similar length run one after the other: no
more than half of a group's steps are padding.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from mindspore import Tensor, ops
from numpy.typing import NDArray

from unirnn import RecurrentSpec
from unirnn.contract.sequences import sequences

__all__ = ["run_as_rows"]


def run_as_rows(
    layers: Callable[..., Any],
    spec: RecurrentSpec,
    x: Tensor,
    h_0: Any,
    c_0: Any,
    seq_length: Any,
    resets: Tensor,
    weights: Any,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run layers that know no resets.

    Parameters
    ----------
    layers
        ``layers(x, h_0, c_0, seq_length, resets, weights)``, called with None for the resets.
    spec, x, h_0, c_0, seq_length, resets, weights
        See `unirnn_mindspore.layers.Stack`.

    Returns
    -------
    tuple
        As ``layers`` returns them: the output `(T, B, D*H)` and the final states, `(L*D, B, H)`.
    """
    steps, batch_size, _ = x.shape
    lengths = None if seq_length is None else seq_length.asnumpy()
    found = sequences(steps, batch_size, lengths, resets.asnumpy())
    indices = found.groups()
    directions = np.array([int(spec.is_reverse(position)) for position in range(len(spec.suffixes()))])
    row_of_step = np.full((steps, batch_size), -1)  # where a step is found in the outputs of all groups
    count = 0
    outputs, h_n, c_n = [], [], []
    for group in map(found.select, indices):
        offset = np.arange(max(1, group.lengths.max()))[:, None]
        step, is_valid = group.begins + offset, offset < group.lengths
        # What is read beyond the end of a sequence is its padding, so any step will do.
        at = Tensor(np.minimum(step, steps - 1) * batch_size + group.columns)
        rows, has_initial = group.initial(directions)
        output, h, c = layers(
            ops.gather(_rows(x), at, 0),
            _initial(h_0, rows, has_initial),
            _initial(c_0, rows, has_initial),
            Tensor(group.lengths),
            None,
            weights,
        )
        columns = np.broadcast_to(group.columns, step.shape)
        row_of_step[step[is_valid], columns[is_valid]] = count + np.flatnonzero(is_valid)
        count += is_valid.size
        outputs.append(_rows(output))
        h_n.append(h)
        c_n.append(c)

    output = ops.gather(ops.concat(outputs, 0), Tensor(np.maximum(row_of_step, 0)), 0)
    output = ops.where(Tensor(row_of_step[:, :, None] >= 0), output, ops.zeros_like(output))
    sources, targets = found.select(np.concatenate(indices)).final(directions)
    final = np.empty(len(directions) * batch_size, np.int64)
    final[targets] = sources
    at = Tensor(final.reshape(len(directions), batch_size))
    return output, ops.gather(_rows(ops.concat(h_n, 1)), at, 0), ops.gather(_rows(ops.concat(c_n, 1)), at, 0)


def _initial(state: Any, rows: NDArray[np.int64], has_initial: NDArray[np.bool_]) -> Any:
    """`(L*D, n, H)`: the initial state of each sequence of a group; None is zeros."""
    if state is None:
        return None
    initial = ops.gather(_rows(state), Tensor(rows), 0)
    return ops.where(Tensor(has_initial[:, :, None]), initial, ops.zeros_like(initial))


def _rows(x: Any) -> Any:
    """`(T, B, F)` to `(T*B, F)`."""
    return x.reshape((x.shape[0] * x.shape[1], x.shape[2]))
