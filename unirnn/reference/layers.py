"""The reference path: layers, lengths and layout, written once in the array API standard.

It runs on any namespace ``xp`` that follows the standard, and the namespace's own autodiff goes through it. A backend
may replace the innermost part, `direction`, by a fused operator, and keep the rest: the operator then sees only dense,
time-major sequences that run forward, and never a padded value.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from unirnn.contract.call import Batch
from unirnn.specs import RecurrentSpec

from .cells import State, Weights, cell, project
from .lengths import Lengths, device_of, turn

__all__ = ["Direction", "direction", "in_direction", "recurrent"]

Array = Any

Direction = Callable[[Any, RecurrentSpec, Weights, Array, State, "Lengths | None", "Array | None"], tuple[Array, State]]
"""``(xp, spec, weights, x, state, lengths, begins) -> (outputs, final_state)``: see `direction`."""


def direction(
    xp: Any,
    spec: RecurrentSpec,
    weights: Weights,
    x: Array,
    state: State,
    lengths: Lengths | None,
    begins: Array | None = None,
) -> tuple[Array, State]:
    """Run one layer in one direction, step by step.

    Parameters
    ----------
    xp
        The namespace.
    spec
        The layer's spec.
    weights
        Of this layer and direction.
    x
        `(T, B, I)`, already in the order in which it is to be read, zero in the padding.
    state
        Initial state, `(B, H)` each.
    lengths
        Of the batch; None if every step of every sequence is valid.
    begins
        `(T, B)` bool: whether a sequence begins at a step, from zeros, in the order in which x is read; None if none
        does.

    Returns
    -------
    outputs
        `(T, B, H)`; what stands in the padding does not matter, as long as it is finite.
    final_state
        `(B, H)` each.
    """
    projected = project(xp, weights, x)
    step = cell(xp, spec, weights)
    outputs = []
    for t in range(x.shape[0]):
        if begins is not None:
            state = tuple(xp.where(begins[t, :][:, None], xp.zeros_like(part), part) for part in state)
        if lengths is None:
            state = step(projected[t, ...], state)
        else:
            active = lengths.valid[t, :][:, None]
            # Cleaned before and selected after: a NaN in the state of a sequence that has ended, or never
            # began, would reach the gradient of the weights as 0 * NaN.
            clean = tuple(xp.where(active, part, xp.zeros_like(part)) for part in state)
            after = step(projected[t, ...], clean)
            state = tuple(xp.where(active, new, old) for new, old in zip(after, state, strict=True))
        outputs.append(state[0])
    return xp.stack(outputs), state


def in_direction(
    xp: Any,
    run: Callable[[Array, State, Lengths | None, Array | None], tuple[Array, State]],
    x: Array,
    state: State,
    lengths: Lengths | None,
    resets: Array | None,
    *,
    reverse: bool,
) -> tuple[Array, State]:
    """Run one layer in one direction over an input in its own order.

    Parameters
    ----------
    xp
        The namespace.
    run
        ``run(x, state, lengths, begins)`` runs the layer over an input in the order in which it is read: a `Direction`
        with its first three arguments.
    x
        `(T, B, I)`, zero in the padding.
    state, lengths
        See `direction`.
    resets
        `(T, B)` bool; None if no sequence begins anew.
    reverse
        Whether each sequence is read from its end to its beginning.

    Returns
    -------
    outputs
        `(T, B, H)`, zero in the padding.
    final_state
        `(B, H)` each.
    """
    begins = resets
    if resets is not None and lengths is not None:
        begins = resets & lengths.valid
    if reverse:
        x = turn(xp, x, lengths)
        if begins is not None:  # backward, a sequence begins with the step before a reset
            begins = xp.concat([begins[1:, :], xp.zeros_like(begins[:1, :])])
            begins = turn(xp, begins[..., None], lengths)[..., 0]
    outputs, final = run(x, state, lengths, begins)
    if lengths is not None:
        outputs = lengths.select(xp, outputs)
    return turn(xp, outputs, lengths) if reverse else outputs, final


def recurrent(
    xp: Any,
    spec: RecurrentSpec,
    weights: Mapping[str, Array],
    batch: Batch,
    *,
    dropout: Callable[[Array], Array] | None = None,
    direction: Direction = direction,
) -> tuple[Array, State]:
    """Run a whole stack of layers.

    Parameters
    ----------
    xp
        The namespace.
    spec
        The layers.
    weights
        By the names of `Spec.weight_shapes`.
    batch
        The input, the initial state, the lengths and the resets, as arrays on one device.
    dropout
        What is applied between layers; None for nothing.
    direction
        What runs one layer in one direction; see `direction`.

    Returns
    -------
    output
        `(T, B, D*H)`, zero in the padding.
    final_state
        `(L*D, B, H)` each.
    """
    x, hx, lengths, resets = batch
    if hx is None:
        shapes = spec.state_shapes(x.shape[1]).values()
        hx = tuple(xp.zeros(shape, dtype=x.dtype, device=device_of(x)) for shape in shapes)
    ragged = None if lengths is None else Lengths(xp, lengths, x.shape[0])
    if ragged is not None:
        x = ragged.select(xp, x)

    finals: list[State] = []
    for layer in range(spec.num_layers):
        outputs = []
        for position in range(layer * spec.num_directions, (layer + 1) * spec.num_directions):
            suffix = spec.suffixes()[position]
            w = Weights(*(weights.get(name + suffix) for name in Weights._fields))
            state = tuple(part[position, ...] for part in hx)
            run = partial(direction, xp, spec, w)
            out, final = in_direction(xp, run, x, state, ragged, resets, reverse=spec.is_reverse(position))
            outputs.append(out)
            finals.append(final)
        x = outputs[0] if len(outputs) == 1 else xp.concat(outputs, axis=2)
        if dropout is not None and layer < spec.num_layers - 1:
            x = dropout(x)

    return x, tuple(xp.stack(list(part)) for part in zip(*finals, strict=True))
