"""The plain path: lengths, layout, layers and cells, written once in the array API standard.

It runs on any namespace ``xp`` that follows the standard, and the namespace's own autodiff goes through
it. A backend may replace the innermost part, `direction`, by a fused operator, and keep the rest: then the
operator sees only dense, time-major sequences that run forward, and never a padded value.

Padding is kept out by selection, never by multiplication: 0 * NaN is NaN, in the gradient too. The input is
cleaned before anything is computed from it, so nothing after it can meet a NaN of the padding.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from .specs import GRUSpec, RNNSpec, Spec

__all__ = ["Direction", "Lengths", "State", "Weights", "direction", "last_valid", "recurrent", "turn"]

Array = Any
State = tuple[Array, ...]
"""The state's parts: `(h,)` or `(h, c)`."""


class Weights(NamedTuple):
    """The weights of one layer and direction."""

    weight_ih: Array
    """`(gates*H, I)`"""
    weight_hh: Array
    """`(gates*H, H)`"""
    bias_ih: Array | None
    """`(gates*H,)`"""
    bias_hh: Array | None
    """`(gates*H,)`"""
    weight_hr: Array | None = None
    """`(proj_size, H)`, of an LSTM with a projection."""


Direction = Callable[[Any, Spec, Array, State, Weights, "Lengths | None"], tuple[Array, State]]
"""``(xp, spec, x, state, weights, lengths) -> (outputs, final_state)``: see `direction`."""


class Lengths:
    """What the lengths of one batch say about its steps, as arrays.

    Parameters
    ----------
    xp
        The namespace.
    lengths
        `(B,)` integers, 0 <= n <= T.
    steps
        T.

    Attributes
    ----------
    valid
        `(T, B)` bool: ``t < n``.
    has_begun
        `(B,)` bool: ``n > 0``.
    last
        `(B,)` int: where step n-1 stands in that order; for n = 0, some step.
    """

    def __init__(self, xp: Any, lengths: Array, steps: int) -> None:
        batch_size = lengths.shape[0]
        kind = {"dtype": lengths.dtype, "device": _device(lengths)}
        self._step = xp.arange(steps, **kind)[:, None]
        self._row = xp.arange(batch_size, **kind)
        self._reversal: Array = None
        self.values = lengths
        self.valid = self._step < lengths
        self.has_begun = lengths > 0
        self.last = xp.where(self.has_begun, lengths - 1, 0) * batch_size + self._row

    def select(self, xp: Any, array: Array) -> Array:
        """`(T, B, F)` with exact zeros in the padding."""
        return xp.where(self.valid[..., None], array, xp.zeros_like(array))

    def begun(self, xp: Any, array: Array) -> Array:
        """`(B, H)` with exact zeros where n = 0."""
        return xp.where(self.has_begun[:, None], array, xp.zeros_like(array))

    def reverse(self, xp: Any, array: Array) -> Array:
        """`(T, B, F)` with each sequence's valid steps in the opposite order."""
        if self._reversal is None:
            # `(T*B,)`: where step t of the reversed sequence stands in the flat order. Steps of padding stay where
            # they are, so it is its own inverse.
            step = xp.where(self.valid, self.values - 1 - self._step, self._step)
            self._reversal = xp.reshape(step * self.values.shape[0] + self._row, (-1,))
        return xp.reshape(xp.take(_flat(xp, array), self._reversal, axis=0), array.shape)


def _device(array: Array) -> Any:
    # NumPy 1's arrays have no device, and its namespace takes None for it.
    return getattr(array, "device", None)


def _flat(xp: Any, array: Array) -> Array:
    return xp.reshape(array, (array.shape[0] * array.shape[1], array.shape[2]))


def last_valid(xp: Any, steps: Array, initial: Array, lengths: Lengths) -> Array:
    """The state after step n-1, or the initial state where n = 0.

    Parameters
    ----------
    steps
        `(T, B, H)`, the state after each step.
    initial
        `(B, H)`.
    """
    after = xp.take(_flat(xp, steps), lengths.last, axis=0)
    return xp.where(lengths.has_begun[:, None], after, initial)


def _product(xp: Any, weight: Array, bias: Array | None) -> Callable[[Array], Array]:
    """``x -> W x + b``: `(B, I)` to `(B, O)`."""
    transposed = xp.matrix_transpose(weight)
    return lambda x: xp.matmul(x, transposed) if bias is None else xp.matmul(x, transposed) + bias


def _cell(xp: Any, spec: Spec, weights: Weights) -> Callable[[Array, State], State]:
    """One step: `(B, gates*H)` of input products, and the state, to the next state."""
    if isinstance(spec, GRUSpec) and not spec.reset_after:
        return _reset_before(xp, spec, weights)
    product = _product(xp, weights.weight_hh, weights.bias_hh)
    project = None if weights.weight_hr is None else _product(xp, weights.weight_hr, None)
    size = spec.hidden_size

    def gate(array: Array, name: str) -> Array:
        start = spec.gates.index(name) * size
        return array[:, start : start + size]

    def step(x: Array, state: State) -> State:
        h = state[0]
        hidden = product(h)
        if isinstance(spec, RNNSpec):
            a = x + hidden
            return (xp.tanh(a) if spec.nonlinearity == "tanh" else xp.where(a <= 0, xp.zeros_like(a), a),)
        if spec.cell == "GRU":
            r = _sigmoid(xp, gate(x, "r") + gate(hidden, "r"))
            z = _sigmoid(xp, gate(x, "z") + gate(hidden, "z"))
            n = xp.tanh(gate(x, "n") + r * gate(hidden, "n"))
            return ((1 - z) * n + z * h,)
        a = x + hidden
        i, f, o = (_sigmoid(xp, gate(a, name)) for name in "ifo")
        c = f * state[1] + i * xp.tanh(gate(a, "g"))
        h = o * xp.tanh(c)
        return (h if project is None else project(h), c)

    return step


def _reset_before(xp: Any, spec: Spec, weights: Weights) -> Callable[[Array, State], State]:
    """One step of a GRU whose reset gate is applied before the product, so that n has a product of its own."""
    size = spec.hidden_size
    # Cut here, not in the step: the gradient of a cut is as large as the whole.
    product, product_n = (
        _product(xp, weights.weight_hh[rows, :], None if weights.bias_hh is None else weights.bias_hh[rows])
        for rows in (slice(None, 2 * size), slice(2 * size, None))
    )

    def step(x: Array, state: State) -> State:
        (h,) = state
        gates = _sigmoid(xp, x[:, : 2 * size] + product(h))
        r, z = gates[:, :size], gates[:, size:]
        n = xp.tanh(x[:, 2 * size :] + product_n(r * h))
        return ((1 - z) * n + z * h,)

    return step


def _sigmoid(xp: Any, a: Array) -> Array:
    return 0.5 * xp.tanh(0.5 * a) + 0.5


def direction(
    xp: Any, spec: Spec, x: Array, state: State, weights: Weights, lengths: Lengths | None
) -> tuple[Array, State]:
    """Run one layer in one direction, step by step.

    Parameters
    ----------
    xp
        The namespace.
    spec
        The layer's spec.
    x
        `(T, B, I)`, already in the order in which it is to be read, zero in the padding.
    state
        Initial state, `(B, H)` each.
    weights
        Of this layer and direction.
    lengths
        Of the batch; None if every step of every sequence is valid.

    Returns
    -------
    outputs
        `(T, B, H)`; what stands in the padding does not matter, as long as it is finite.
    final_state
        `(B, H)` each.
    """
    products = xp.matmul(x, xp.matrix_transpose(weights.weight_ih))
    if weights.bias_ih is not None:
        products = products + weights.bias_ih
    step = _cell(xp, spec, weights)
    outputs = []
    for t in range(x.shape[0]):
        if lengths is None:
            state = step(products[t, ...], state)
        else:
            alive = lengths.valid[t, :][:, None]
            # Cleaned before and selected after: a NaN in the state of a sequence that has ended, or never
            # began, would reach the gradient of the weights as 0 * NaN.
            clean = tuple(xp.where(alive, part, xp.zeros_like(part)) for part in state)
            after = step(products[t, ...], clean)
            state = tuple(xp.where(alive, new, old) for new, old in zip(after, state, strict=True))
        outputs.append(state[0])
    return xp.stack(outputs), state


def recurrent(
    xp: Any,
    spec: Spec,
    weights: Mapping[str, Array],
    input: Array,
    hx: State | None,
    lengths: Array | None,
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
    input
        `(T, B, I)`, `(B, T, I)` if ``batch_first``, or `(T, I)`.
    hx
        Initial state, `(L*D, B, H)` each, or `(L*D, H)`; None is zeros.
    lengths
        `(B,)` integers on the input's device, checked; None if every step is valid.
    dropout
        What is applied between layers; None for nothing.
    direction
        What runs one layer in one direction; see `direction`.

    Returns
    -------
    output
        As the input, with D*H on the last axis; zero in the padding.
    final_state
        As ``hx``.
    """
    batched = len(input.shape) == 3
    x = input if batched else input[:, None, :]
    if batched and spec.batch_first:
        x = xp.permute_dims(x, (1, 0, 2))
    steps, batch_size = x.shape[0], x.shape[1]
    if hx is None:
        shapes = spec.state_shapes(batch_size).values()
        hx = tuple(xp.zeros(shape, dtype=x.dtype, device=_device(x)) for shape in shapes)
    elif not batched:
        hx = tuple(part[:, None, :] for part in hx)
    ragged = None if lengths is None else Lengths(xp, lengths, steps)
    if ragged is not None:
        x = ragged.select(xp, x)

    finals: list[State] = []
    for layer in range(spec.num_layers):
        outputs = []
        for backward in range(spec.num_directions):
            position = layer * spec.num_directions + backward
            suffix = spec.suffixes()[position]
            w = Weights(*(weights.get(name + suffix) for name in Weights._fields))
            state = tuple(part[position, ...] for part in hx)
            out, final = direction(xp, spec, turn(xp, x, ragged) if backward else x, state, w, ragged)
            if ragged is not None:
                out = ragged.select(xp, out)
            outputs.append(turn(xp, out, ragged) if backward else out)
            finals.append(final)
        x = outputs[0] if len(outputs) == 1 else xp.concat(outputs, axis=2)
        if dropout is not None and layer < spec.num_layers - 1:
            x = dropout(x)

    final_state = tuple(xp.stack(list(part)) for part in zip(*finals, strict=True))
    if not batched:
        return x[:, 0, :], tuple(part[:, 0, :] for part in final_state)
    return (xp.permute_dims(x, (1, 0, 2)) if spec.batch_first else x), final_state


def turn(xp: Any, x: Array, lengths: Lengths | None) -> Array:
    """`(T, B, F)` with each sequence's valid steps in the opposite order."""
    return xp.flip(x, axis=0) if lengths is None else lengths.reverse(xp, x)
