"""Find the usual mistake that explains wrong results of a recurrent layer.

The hypotheses are in `recurrent_mistakes`. A mistake is named only if its numbers agree with those that were computed,
and the right numbers do not. If no hypothesis explains the results, the numbers themselves may still show a cause.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirnn.contract.call import state_parts
from unirnn.specs import RecurrentSpec
from unirnn.testing.batches import Batch

from .numbers import NAN_FROM_PADDING, NOT_ZEROED, is_close, one_of, rounding
from .recurrent_mistakes import Parts, Results, Trial, hypotheses

__all__ = ["agrees", "recurrent_cause", "trial_of"]

Array = NDArray[Any]


class Given(NamedTuple):
    """The results that were computed, in the form of `Results`; None means that they are not known."""

    output: Array | None
    state: Parts | None


def recurrent_cause(
    spec: RecurrentSpec,
    weights: Mapping[str, Array],
    batch: Batch,
    output: Array | None,
    state: Sequence[Array] | None,
    tolerance: float,
) -> str | None:
    """Find the usual mistake that explains the results of a recurrent layer.

    Parameters
    ----------
    spec
        The layer.
    weights
        The weights, with the names of `RecurrentSpec.weight_shapes`.
    batch
        The arguments of the call. A batch with an initial state and at least two sequences of different lengths can
        tell most mistakes apart.
    output
        The output in the layout of the batch; None if it is not known.
    state
        The parts of the final state, ``(h_n,)`` or ``(h_n, c_n)``; None if it is not known.
    tolerance
        The largest difference that is not a mistake, relative to the largest value.

    Returns
    -------
    str or None
        A description of the mistake, or ``one of these: ...`` if this batch can't tell several apart. None if the
        numbers are right, or no usual mistake explains them.

    Examples
    --------
    >>> import unirnn
    >>> from unirnn.testing.batches import batch
    >>> spec = unirnn.GRUSpec(3, 4)
    >>> weights = unirnn.snapshot(spec.build("numpy", seed=0)).weights
    >>> wrong = unirnn.Snapshot(unirnn.GRUSpec(3, 4, reset_after=False), weights).build("numpy")
    >>> b = batch(spec)
    >>> output, h_n = wrong(b.input, seq_length=b.seq_length)
    >>> print(recurrent_cause(spec, weights, b, output, (h_n,), 1e-5))
    the GRU variant: the reset gate is applied before the product with W_hn, instead of after it
    """
    with np.errstate(all="ignore"):  # some hypotheses compute with NaN in the padding
        return _cause(trial_of(spec, weights, batch), _given(spec, batch, output, state), tolerance)


def _cause(trial: Trial, given: Given, tolerance: float) -> str | None:
    spec, right = trial.spec, trial.run()
    if agrees(right, given, tolerance) or not trial.is_finite:
        return None
    swapped = _axes_exchanged(right, given, tolerance)
    if swapped is not None:
        return swapped
    found = [
        hypothesis.text
        for hypothesis in hypotheses(spec, trial.resets is not None)
        if any(agrees(candidate, given, tolerance) for candidate in hypothesis.candidates(trial))
    ]
    if found:
        return one_of(found)
    return next(filter(None, (check(trial, right, given, tolerance) for check in CHECKS)), None)


def trial_of(spec: RecurrentSpec, weights: Mapping[str, Array], batch: Batch) -> Trial:
    """The arguments of the oracle for a batch."""
    spec_of_trial = replace(spec, batch_first=False, dropout=spec.dropout if spec.num_layers > 1 else 0.0)
    parts = state_parts(spec, batch.hx)
    shapes = spec.state_shapes(batch.batch_size).values()
    hx = tuple(np.zeros(shape) for shape in shapes) if parts is None else parts
    return Trial(
        spec_of_trial,
        {name: np.asarray(weights[name], np.float64) for name in spec.weight_shapes()},
        _time_first(batch, np.asarray(batch.input, np.float64)),
        tuple(np.asarray(part, np.float64) for part in hx),
        np.asarray(batch.lengths),
        None if batch.resets is None else _time_first(batch, batch.resets),
    )


def _given(spec: RecurrentSpec, batch: Batch, output: Array | None, state: Sequence[Array] | None) -> Given:
    wide = None if output is None else _time_first(batch, np.asarray(output, np.float64))
    return Given(wide, None if state is None else tuple(np.asarray(part, np.float64) for part in state))


def _time_first(batch: Batch, array: Array) -> Array:
    return array.swapaxes(0, 1) if batch.batch_first else array


def agrees(results: Results, given: Results | Given, tolerance: float) -> bool:
    """Whether results agree with those that were computed, as far as the latter are known."""
    if given.output is not None and not is_close(given.output, results.output, tolerance):
        return False
    return given.state is None or (
        len(given.state) == len(results.state)
        and all(is_close(part, own, tolerance) for part, own in zip(given.state, results.state, strict=True))
    )


# ---- causes that the numbers themselves show -----------------------------------------------------


def _axes_exchanged(right: Results, given: Given, tolerance: float) -> str | None:
    if given.output is None or not is_close(given.output.swapaxes(0, 1), right.output, tolerance):
        return None
    return "the axes B and T of the output are exchanged"


def _output_in_the_padding(t: Trial, right: Results, given: Given, tolerance: float) -> str | None:
    if given.output is None or given.output.shape != right.output.shape:
        return None
    if not agrees(right, Given(t.zeroed(given.output), given.state), tolerance):
        return None
    return NOT_ZEROED


def _nan(t: Trial, right: Results, given: Given, tolerance: float) -> str | None:
    valid = None if given.output is None else given.output[~t.padding]
    arrays = (*(() if valid is None else (valid,)), *(given.state or ()))
    if not any(np.isnan(array).any() for array in arrays):
        return None
    if np.isnan(t.input[t.padding]).any():
        return NAN_FROM_PADDING
    return "there is NaN among the results, but none in the input, the state or the weights"


def _dropout(t: Trial, right: Results, given: Given, tolerance: float) -> str | None:
    if given.output is None or given.output.shape != right.output.shape:
        return None
    dropped = (given.output == 0) & (right.output != 0)
    left = ~dropped & (np.abs(right.output) > 0.01 * np.abs(right.output).max())
    if not dropped.any() or not left.any():
        return None
    ratios = given.output[left] / right.output[left]
    if not np.ptp(ratios) <= 200 * tolerance * np.abs(ratios).max() or ratios[0] < 1.01:
        return None
    return (
        f"the output has dropout, with p = {1 - 1 / ratios.mean():.2g}: some elements are 0, and the others are larger "
        "by a factor; no dropout follows the last layer, and none is applied in evaluation"
    )


def _wrong_from_a_layer(t: Trial, right: Results, given: Given, tolerance: float) -> str | None:
    """Recognise a right first layer below wrong ones, which is the effect of dropout between layers."""
    directions = t.spec.num_directions
    if given.state is None or not t.spec.dropout or len(given.state) != len(right.state):
        return None
    pairs = list(zip(given.state, right.state, strict=True))
    if not all(
        part.shape == own.shape and is_close(part[:directions], own[:directions], tolerance) for part, own in pairs
    ):
        return None
    if any(is_close(part[directions:], own[directions:], tolerance) for part, own in pairs):
        return None
    return "the first layer is right and those above it are not, as with dropout between them, which is for training"


def _precision(t: Trial, right: Results, given: Given, tolerance: float) -> str | None:
    arrays: list[tuple[Array, Array]] = [] if given.output is None else [(given.output, right.output)]
    arrays += [] if given.state is None else list(zip(given.state, right.state, strict=True))
    if any(a.shape != b.shape or not np.isfinite(a).all() for a, b in arrays):
        return None
    return rounding(arrays, tolerance)


CHECKS = (_output_in_the_padding, _nan, _dropout, _precision, _wrong_from_a_layer)
"""Checks that are made if no hypothesis explains the results."""
