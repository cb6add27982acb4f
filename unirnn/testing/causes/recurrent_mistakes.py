"""The usual mistakes in recurrent layers, in plain words, each with the results that it gives."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.testing import oracle
from unirnn.testing.batches import zeroed

__all__ = ["Hypothesis", "Parts", "Results", "Trial", "hypotheses", "reordered"]

Array = NDArray[Any]
Parts = tuple[Array, ...]


class Results(NamedTuple):
    """The output of a recurrent layer, `(T, B, D*H)`, and the parts of its final state, `(L*D, B, H)` each."""

    output: Array
    state: Parts


@dataclass(frozen=True)
class Trial:
    """The arguments of the oracle, in float64 and time first: the input is `(T, B, I)`."""

    spec: RecurrentSpec
    weights: Mapping[str, Array]
    input: Array
    hx: Parts
    lengths: NDArray[np.int64]
    resets: NDArray[np.bool_] | None

    def run(self, **changes: Any) -> Results:
        """The oracle's results, with some of the arguments changed."""
        t = replace(self, **changes)
        return Results(*oracle.recurrent(t.spec, t.weights, t.input, t.hx, t.lengths, t.resets))

    def with_spec(self, **changes: Any) -> Results:
        """The oracle's results for another spec with the same weights."""
        return self.run(spec=replace(self.spec, **changes))

    def with_weights(self, change: Callable[[str, Array], Array]) -> Results:
        """The oracle's results with changed weights."""
        return self.run(weights={name: change(name, array) for name, array in self.weights.items()})

    @property
    def padding(self) -> NDArray[np.bool_]:
        """A mask of the padding, `(T, B)`."""
        return np.arange(len(self.input))[:, None] >= self.lengths

    @property
    def is_finite(self) -> bool:
        """Whether all numbers outside the padding are finite. If not, different mistakes may give the same numbers."""
        arrays = (self.input[~self.padding], *self.hx, *self.weights.values())
        return all(bool(np.isfinite(array).all()) for array in arrays)

    def zeroed(self, output: Array) -> Array:
        """A copy of an output with zeros in its padding."""
        return zeroed(output, self.padding)


Candidates = Callable[[Trial], Iterable[Results]]
"""Yields the results of a mistake, one for each of its variants; none if the mistake can't be made with this layer."""


class Hypothesis(NamedTuple):
    """A mistake in plain words, and the results that it gives."""

    text: str
    candidates: Candidates


# ---- wrong use of the weights --------------------------------------------------------------------

_ORDERS = {("i", "o", "f", "g"): "ONNX", ("i", "g", "f", "o"): "TensorFlow 1", ("z", "r", "n"): "Keras and ONNX"}
"""The frameworks and formats that use other orders of the gates."""


def hypotheses(spec: RecurrentSpec, with_resets: bool) -> Iterator[Hypothesis]:
    """Yield the hypotheses about a layer, the likeliest first."""
    yield from _gate_orders(spec)
    if isinstance(spec, GRUSpec):
        now, other = ("before", "after") if spec.reset_after else ("after", "before")
        text = f"the GRU variant: the reset gate is applied {now} the product with W_hn, instead of {other} it"
        is_after = not spec.reset_after
        yield Hypothesis(text, lambda t: [t.with_spec(reset_after=is_after)])
        yield from OF_GRU
    if isinstance(spec, LSTMSpec):
        yield from OF_LSTM
    if isinstance(spec, (GRUSpec, LSTMSpec)):
        for function in ("sigmoid", "hard_sigmoid", "hard_sigmoid_0.2"):
            if function != spec.gate_activation:
                text = f"the gates' function is {function} instead of {spec.gate_activation}"
                yield Hypothesis(text, _with_gates(function))
    if isinstance(spec, RNNSpec):
        other = "relu" if spec.nonlinearity == "tanh" else "tanh"
        text = f"the activation is {other} instead of {spec.nonlinearity}"
        yield Hypothesis(text, lambda t: [t.with_spec(nonlinearity=other)])
    yield from OF_ANY
    shapes = spec.weight_shapes()
    if any(shape[1] == spec.hidden_size for name, shape in shapes.items() if name.startswith("weight_ih")):
        yield from OF_SQUARE_INPUTS
    yield from OF_REVERSE if spec.reverse else OF_FORWARD
    if spec.bidirectional:
        yield from (*OF_REVERSE, *OF_DIRECTIONS)
    if spec.num_layers > 1:
        yield from OF_LAYERS
        if spec.bidirectional:
            yield from OF_DIRECTIONS_OF_LAYERS
    if with_resets:
        yield from (*OF_RESETS, *(OF_RESETS_IN_REVERSE if spec.reverse else OF_RESETS_FORWARD))
        if spec.bidirectional:
            yield from (*OF_RESETS_IN_REVERSE, *OF_RESETS_OF_DIRECTIONS)


def _with_gates(function: str) -> Candidates:
    return lambda t: [t.with_spec(gate_activation=function)]


def _gate_orders(spec: RecurrentSpec) -> Iterator[Hypothesis]:
    for order in itertools.permutations(spec.gates):
        if order != spec.gates:
            whose = f", which is that of {_ORDERS[order]}," if order in _ORDERS else ""
            text = f"the gates are taken in the order {', '.join(order)}{whose} instead of {', '.join(spec.gates)}"
            yield Hypothesis(text, _in_order(order))


def _in_order(order: tuple[str, ...]) -> Candidates:
    return lambda t: [t.with_weights(lambda name, array: reordered(name, array, order, t.spec.gates))]


def reordered(name: str, array: Array, given: Sequence[str], wanted: Sequence[str]) -> Array:
    """Reorder the rows of a weight from a given order of the gates to the wanted one."""
    if "weight_hr" in name:
        return array
    blocks = dict(zip(given, np.split(array, len(given)), strict=True))
    return np.concatenate([blocks[gate] for gate in wanted])


def _rows(
    gate: str, change: Callable[[Array], Array], names: tuple[str, ...] = ("weight_ih", "weight_hh", "bias")
) -> Any:
    """Change the rows of one gate, in the weights whose names begin with one of these."""

    def candidates(t: Trial) -> list[Results]:
        def changed(name: str, array: Array) -> Array:
            if not name.startswith(names):
                return array
            blocks = dict(zip(t.spec.gates, np.split(array, len(t.spec.gates)), strict=True))
            blocks[gate] = change(blocks[gate])
            return np.concatenate(list(blocks.values()))

        return [t.with_weights(changed)]

    return candidates


def _without(*names: str) -> Candidates:
    return lambda t: [t.with_weights(lambda name, array: array * 0 if name.startswith(names) else array)]


def _paired(change: Callable[[Array, Array, int], tuple[Array, Array]]) -> Candidates:
    """Change the two biases of each layer and direction; the third argument of the function is H."""

    def candidates(t: Trial) -> list[Results]:
        weights = dict(t.weights)
        for suffix in t.spec.suffixes() if t.spec.bias else ():
            b_ih, b_hh = f"bias_ih{suffix}", f"bias_hh{suffix}"
            weights[b_ih], weights[b_hh] = change(weights[b_ih], weights[b_hh], t.spec.hidden_size)
        return [t.run(weights=weights)]

    return candidates


def _n_outside(b_ih: Array, b_hh: Array, size: int) -> tuple[Array, Array]:
    moved = np.concatenate([np.zeros(2 * size), b_hh[2 * size :]])
    return b_ih + moved, b_hh - moved


def _transposed(*names: str) -> Candidates:
    """Transpose each gate's block in the weights whose names begin with one of these, where the blocks are square."""

    def candidates(t: Trial) -> list[Results]:
        def changed(name: str, array: Array) -> Array:
            if not name.startswith(names) or array.shape[1] != t.spec.hidden_size:
                return array
            return np.concatenate([block.T for block in np.split(array, len(t.spec.gates))])

        return [t.with_weights(changed)]

    return candidates


OF_GRU = (
    Hypothesis("z is inverted: h' = z * n + (1 - z) * h", _rows("z", np.negative)),
    Hypothesis(
        "the recurrent bias of n is added outside of the reset gate: n = tanh(W_in x + b_in + b_hn + r * (W_hn h))",
        _paired(_n_outside),
    ),
    Hypothesis("the input's bias and the recurrent bias are exchanged", _paired(lambda b_ih, b_hh, size: (b_hh, b_ih))),
)
OF_LSTM = (
    Hypothesis(
        "1 is added to the bias of the forget gate, like TensorFlow's forget_bias",
        lambda t: [t.run(weights=_with_forget_bias(t), spec=replace(t.spec, bias=True))],
    ),
    Hypothesis(
        "h_0 and c_0 are exchanged",
        lambda t: [t.run(hx=t.hx[::-1])] if t.spec.output_size == t.spec.hidden_size else [],
    ),
    Hypothesis("h_n and c_n are exchanged", lambda t: [Results(t.run().output, t.run().state[::-1])]),
    Hypothesis("h_0 is ignored", lambda t: [t.run(hx=(t.hx[0] * 0, t.hx[1]))]),
    Hypothesis("c_0 is ignored", lambda t: [t.run(hx=(t.hx[0], t.hx[1] * 0))]),
)


def _with_forget_bias(t: Trial) -> dict[str, Array]:
    size = t.spec.hidden_size
    one = np.concatenate([np.zeros(size), np.ones(size), np.zeros(2 * size)])
    biases = {f"bias_ih{suffix}": t.weights.get(f"bias_ih{suffix}", 0) + one for suffix in t.spec.suffixes()}
    zeros = {f"bias_hh{suffix}": 0 * one for suffix in t.spec.suffixes()}
    return {**zeros, **t.weights, **biases}


# ---- states, lengths and the order of the batch ---------------------------------------------------

Run = Callable[[Trial], Results]
"""Computes one layer in one direction, given a trial of it alone."""


def _walk(trial: Trial, run: Run) -> Results:
    """Compute the stack, one layer and direction after another."""
    spec, x = trial.spec, trial.input
    found: list[Results] = []
    for first in range(0, len(spec.suffixes()), spec.num_directions):
        layer = []
        for position in range(first, first + spec.num_directions):
            suffix = spec.suffixes()[position]
            one = replace(
                spec,
                input_size=x.shape[-1],
                num_layers=1,
                dropout=0.0,
                bidirectional=False,
                reverse=spec.is_reverse(position),
            )
            weights = {name: trial.weights[name.removesuffix("_l0") + suffix] for name in one.weight_shapes()}
            hx = tuple(part[position : position + 1] for part in trial.hx)
            layer.append(run(replace(trial, spec=one, weights=weights, input=x, hx=hx)))
        x = np.concatenate([results.output for results in layer], axis=-1)
        found += layer
    return Results(x, tuple(np.concatenate(parts) for parts in zip(*(r.state for r in found), strict=True)))


def _padded(one: Trial) -> Results:
    """The results over all T steps, including the padding."""
    return one.run(lengths=np.full_like(one.lengths, len(one.input)))


def _lengths_ignored_but_zeroed(t: Trial) -> Iterator[Results]:
    whole = _padded(t)
    yield Results(t.zeroed(whole.output), whole.state)
    yield _walk(t, lambda one: _zeroed(t, _padded(one)))


def _zeroed(t: Trial, results: Results) -> Results:
    return Results(t.zeroed(results.output), results.state)


def _state_after_padding(t: Trial) -> Iterator[Results]:
    def run(one: Trial) -> Results:
        right = one.run()
        return right if one.spec.reverse else Results(right.output, _padded(one).state)

    yield _walk(t, run)
    # the variant in which the output of each layer is not zeroed in the padding before the next layer
    if not t.spec.bidirectional and not t.spec.reverse:
        yield Results(t.run().output, _padded(t).state)


def _state_from_the_last_step(t: Trial) -> Iterator[Results]:
    """Take ``output[-1]`` as the final state, which is 0 in the padding."""
    right = t.run()
    sizes = np.arange(t.spec.num_directions) * t.spec.output_size
    last = [right.output[-1, :, begin : begin + t.spec.output_size] for begin in sizes]
    h = right.state[0].copy()
    h[len(h) - len(last) :] = last
    yield Results(right.output, (h, *right.state[1:]))


def _begins_in_the_padding(t: Trial) -> Iterator[Results]:
    def run(one: Trial) -> Results:
        return _zeroed(t, _padded(one)) if one.spec.reverse else one.run()

    yield _walk(t, run)
    if t.spec.bidirectional:  # the variant in which the output is not set to zero in the padding
        yield _walk(t, lambda one: _padded(one) if one.spec.reverse else one.run())


def _empty_is_zeros(t: Trial) -> Iterator[Results]:
    output, state = t.run()
    yield Results(output, tuple(np.where((t.lengths == 0)[:, None], 0, part) for part in state))


def _orders(t: Trial) -> list[NDArray[np.int64]]:
    """The order of the sequences from the longest to the shortest, and its inverse."""
    order = np.argsort(-t.lengths, kind="stable")
    return [order, np.argsort(order)]


def _sorted(results: Results, order: NDArray[np.int64], *, output: bool, state: bool) -> Results:
    moved = tuple(part[:, order] for part in results.state)
    return Results(results.output[:, order] if output else results.output, moved if state else results.state)


def _not_unsorted(*, output: bool, state: bool) -> Candidates:
    return lambda t: [_sorted(t.run(), order, output=output, state=state) for order in _orders(t)]


def _lengths_of_others(t: Trial) -> Iterator[Results]:
    for order in _orders(t):
        yield t.run(lengths=t.lengths[order])


OF_FORWARD = (
    Hypothesis(
        "the final state is that of step T-1, in the padding, instead of that of step n-1 (seq_length)",
        _state_after_padding,
    ),
    Hypothesis(
        "the final state is the last step of the output, which is padding in a shorter sequence",
        _state_from_the_last_step,
    ),
)
OF_ANY = (
    Hypothesis("the input's bias is missing", _without("bias_ih")),
    Hypothesis("the recurrent bias is missing", _without("bias_hh")),
    Hypothesis("both biases are missing", _without("bias")),
    Hypothesis(
        "the biases are added twice",
        lambda t: [t.with_weights(lambda name, array: 2 * array if name.startswith("bias") else array)],
    ),
    Hypothesis("the initial state is ignored", lambda t: [t.run(hx=tuple(0 * part for part in t.hx))]),
    Hypothesis(
        "the lengths (seq_length) are ignored: the padding is computed like valid steps", lambda t: [_padded(t)]
    ),
    Hypothesis("the final state of an empty sequence is zeros, instead of its initial state", _empty_is_zeros),
    Hypothesis(
        "the sequences are sorted by length, and neither the output nor the final state is sorted back",
        _not_unsorted(output=True, state=True),
    ),
    Hypothesis(
        "the sequences are sorted by length, and the final state is not sorted back",
        _not_unsorted(output=False, state=True),
    ),
    Hypothesis(
        "the sequences are sorted by length, and the output is not sorted back",
        _not_unsorted(output=True, state=False),
    ),
    Hypothesis(
        "the sequences are sorted by length, and the initial state is not sorted with them",
        lambda t: [t.run(hx=tuple(part[:, order] for part in t.hx)) for order in _orders(t)],
    ),
    Hypothesis("the lengths are sorted, and the sequences are not sorted with them", _lengths_of_others),
    Hypothesis("the recurrent weights are transposed", _transposed("weight_hh")),
    Hypothesis(
        "the initial state is the final state of the same batch: an earlier call has changed it in place",
        lambda t: [t.run(hx=t.run().state)],
    ),
)
OF_SQUARE_INPUTS = (
    Hypothesis("the input's weights are transposed", _transposed("weight_ih")),
    Hypothesis("the weights are transposed", _transposed("weight_ih", "weight_hh")),
)


# ---- directions and layers -----------------------------------------------------------------------


def _backward_in_time(one: Trial, lengths: NDArray[np.int64]) -> Results:
    """One direction. The output of a reverse direction is left in the order in which it was computed."""
    output, state = one.run()
    if one.spec.reverse:
        output = output.copy()
        for b, n in enumerate(lengths):
            output[:n, b] = output[:n, b][::-1]
    return Results(output, state)


def _output_in_reverse_order(t: Trial) -> Iterator[Results]:
    for lengths in (t.lengths, np.full_like(t.lengths, len(t.input))):
        yield _walk(t, lambda one, lengths=lengths: _backward_in_time(one, lengths))  # type: ignore[misc]


def _forward(one: Trial) -> Results:
    return one.run(spec=replace(one.spec, reverse=False))


def _halves_exchanged(array: Array, axis: int = -1) -> Array:
    return np.concatenate(np.split(array, 2, axis)[::-1], axis)


def _directions_of_weights(t: Trial, starts: tuple[str, ...], layers: range) -> Results:
    """Exchange the weights of the two directions in some layers."""
    weights = dict(t.weights)
    for layer in layers:
        for name in [name for name in t.weights if name.startswith(starts) and name.endswith(f"_l{layer}")]:
            weights[name], weights[f"{name}_reverse"] = t.weights[f"{name}_reverse"], t.weights[name]
    return t.run(weights=weights)


def _columns_exchanged(name: str, array: Array) -> Array:
    """Exchange the two directions in the input of a layer above the first one."""
    above = name.startswith("weight_ih") and "_l0" not in name
    return _halves_exchanged(array) if above else array


def _pairs_exchanged(parts: Parts) -> Parts:
    """Exchange the states of the two directions in each layer."""
    order = np.arange(len(parts[0])) ^ 1
    return tuple(part[order] for part in parts)


def _direction_major(t: Trial) -> list[NDArray[np.int64]]:
    """The positions of a state ordered by direction and then by layer, and the inverse of this order."""
    order = np.arange(2 * t.spec.num_layers).reshape(-1, 2).T.ravel()
    return [order, np.argsort(order)]


def _state_in_order(order: NDArray[np.int64], *, initial: bool, final: bool) -> Callable[[Trial], Results]:
    def run(t: Trial) -> Results:
        output, state = t.run(hx=tuple(part[order] for part in t.hx)) if initial else t.run()
        return Results(output, tuple(part[np.argsort(order)] for part in state) if final else state)

    return run


def _in_direction_major(*, initial: bool, final: bool) -> Candidates:
    return lambda t: [
        _state_in_order(order, initial=initial, final=final)(t)
        for order in _direction_major(t)
        if t.spec.num_layers > 1
    ]


OF_REVERSE = (
    Hypothesis("the reverse direction begins at step T-1, in the padding, instead of step n-1", _begins_in_the_padding),
    Hypothesis("the reverse direction runs forward", lambda t: [_walk(t, _forward)]),
    Hypothesis(
        "the output of the reverse direction is in the order in which it was computed, the last step first",
        _output_in_reverse_order,
    ),
)
OF_DIRECTIONS = (
    Hypothesis(
        "the lengths (seq_length) are ignored, but the output is set to zero in the padding",
        _lengths_ignored_but_zeroed,
    ),
    Hypothesis(
        "the outputs of the two directions are exchanged",
        lambda t: [
            Results(_halves_exchanged(results.output), results.state)
            for results in (t.run(), t.with_weights(_columns_exchanged))
        ],
    ),
    Hypothesis(
        "the biases of the two directions are exchanged",
        lambda t: [_directions_of_weights(t, ("bias",), range(t.spec.num_layers))],
    ),
    Hypothesis(
        "the weights of the two directions are exchanged",
        lambda t: [_directions_of_weights(t, ("weight", "bias"), range(t.spec.num_layers))],
    ),
    Hypothesis(
        "the reverse direction has the weights of the forward one",
        lambda t: [t.run(weights={name: t.weights[name.removesuffix("_reverse")] for name in t.weights})],
    ),
    Hypothesis("the initial states of the two directions are exchanged", lambda t: [t.run(hx=_pairs_exchanged(t.hx))]),
    Hypothesis(
        "the final states of the two directions are exchanged",
        lambda t: [Results(t.run().output, _pairs_exchanged(t.run().state))],
    ),
    Hypothesis(
        "the states, initial and final, are ordered by direction and then by layer, instead of by layer first",
        _in_direction_major(initial=True, final=True),
    ),
    Hypothesis(
        "the final states are ordered by direction and then by layer, instead of by layer first",
        _in_direction_major(initial=False, final=True),
    ),
    Hypothesis(
        "the initial states are ordered by direction and then by layer, instead of by layer first",
        _in_direction_major(initial=True, final=False),
    ),
)


def _shared(source: int) -> Candidates:
    """Give the weights of one layer to all layers above it, where the shapes allow it."""

    def candidates(t: Trial) -> list[Results]:
        def own(name: str, array: Array) -> Array:
            layer = name.rpartition("_l")[2].removesuffix("_reverse")
            other = t.weights[name.replace(f"_l{layer}", f"_l{min(source, int(layer))}")]
            return other if other.shape == array.shape else array

        return [t.with_weights(own)]

    return candidates


def _swapped_layers(t: Trial) -> Iterator[Results]:
    for layer in range(1, t.spec.num_layers):
        yield _directions_of_weights(t, ("weight", "bias"), range(layer, layer + 1))
    yield _directions_of_weights(t, ("weight", "bias"), range(1, t.spec.num_layers))
    yield t.with_weights(_columns_exchanged)


def _layers_in_reverse_order(parts: Parts, directions: int) -> Parts:
    return tuple(part.reshape(-1, directions, *part.shape[1:])[::-1].reshape(part.shape) for part in parts)


OF_LAYERS = (
    Hypothesis("all layers have the weights of the first one", _shared(0)),
    Hypothesis("all layers above the first one have the weights of the second one", _shared(1)),
    Hypothesis(
        "all layers begin with the initial state of the first one",
        lambda t: [
            t.run(hx=tuple(np.tile(p[: t.spec.num_directions], (t.spec.num_layers, 1, 1)) for p in t.hx)),
        ],
    ),
    Hypothesis(
        "the final states are ordered from the last layer to the first",
        lambda t: [Results(t.run().output, _layers_in_reverse_order(t.run().state, t.spec.num_directions))],
    ),
)
OF_DIRECTIONS_OF_LAYERS = (
    Hypothesis(
        "in a layer above the first one the directions are exchanged, in its weights or in its input",
        _swapped_layers,
    ),
)


# ---- resets --------------------------------------------------------------------------------------


def _shifted(resets: NDArray[np.bool_] | None, by: int) -> NDArray[np.bool_]:
    assert resets is not None
    moved = np.zeros_like(resets)
    if by > 0:
        moved[by:] = resets[:-by]
    else:
        moved[:by] = resets[-by:]
    return moved


def _in_reverse(change: Callable[[NDArray[np.bool_]], NDArray[np.bool_] | None]) -> Candidates:
    """Change the resets in the reverse direction only."""

    def run(one: Trial) -> Results:
        assert one.resets is not None
        return one.run(resets=change(one.resets)) if one.spec.reverse else one.run()

    return lambda t: [_walk(t, run)]


def _before_its_own_step(t: Trial) -> Iterator[Results]:
    """In the reverse direction, set the state to zeros before the step of a reset instead of after it."""

    def run(one: Trial) -> Results:
        return _begun(one, _shifted(one.resets, 1), one.lengths - 1) if one.spec.reverse else one.run()

    yield _walk(t, run)


def _in_the_padding(t: Trial) -> Iterator[Results]:
    """Begin the reverse direction with zeros if there is a reset at step n, the first one of the padding."""
    yield _walk(t, lambda one: _begun(one, one.resets, one.lengths) if one.spec.reverse else one.run())


def _begun(one: Trial, resets: NDArray[np.bool_] | None, steps: NDArray[np.int64]) -> Results:
    """One direction, which begins with zeros in each column that has a reset at the given step."""
    assert one.resets is not None
    within = (steps >= 0) & (steps < len(one.input))
    begins = one.resets[np.where(within, steps, 0), np.arange(len(steps))] & within & (one.lengths > 0)
    return one.run(resets=resets, hx=tuple(np.where(begins[:, None], 0, part) for part in one.hx))


def _without_first(resets: NDArray[np.bool_] | None) -> NDArray[np.bool_]:
    assert resets is not None
    return np.concatenate([np.zeros_like(resets[:1]), resets[1:]])


def _to_initial_state(t: Trial) -> Iterator[Results]:
    """Begin every sequence of a column with the column's initial state."""

    def run(one: Trial) -> Results:
        assert one.resets is not None
        output = np.zeros((*one.input.shape[:-1], one.spec.output_size))
        final = tuple(part.copy() for part in one.hx)
        for b, n in enumerate(one.lengths):
            cuts = [0, *(k for k in range(1, n) if one.resets[k, b]), n]
            pieces = list(itertools.pairwise(cuts))
            for begin, end in pieces[::-1] if one.spec.reverse else pieces:
                hx = tuple(part[:, b : b + 1] for part in one.hx)
                x = one.input[begin:end, b : b + 1]
                found = one.run(input=x, hx=hx, lengths=np.array([end - begin]), resets=None)
                output[begin:end, b : b + 1] = found.output
                for part, value in zip(final, found.state, strict=True):
                    part[:, b : b + 1] = value
        return Results(output, final)

    yield _walk(t, run)


OF_RESETS = (
    Hypothesis("the resets are ignored", lambda t: [t.run(resets=None)]),
    Hypothesis("a reset takes effect one step early", lambda t: [t.run(resets=_shifted(t.resets, -1))]),
    Hypothesis("a reset goes back to the initial state, instead of zeros", _to_initial_state),
)
OF_RESETS_FORWARD = (
    Hypothesis("a reset takes effect one step late", lambda t: [t.run(resets=_shifted(t.resets, 1))]),
    Hypothesis(
        "a reset at step 0 does not replace the initial state", lambda t: [t.run(resets=_without_first(t.resets))]
    ),
)
OF_RESETS_OF_DIRECTIONS = (
    Hypothesis("the resets are ignored in the reverse direction", _in_reverse(lambda resets: None)),
)
OF_RESETS_IN_REVERSE = (
    Hypothesis(
        "in the reverse direction, a reset takes effect before its own step, instead of after it",
        _before_its_own_step,
    ),
    Hypothesis("a reset in the padding, at step n, is read by the reverse direction", _in_the_padding),
)
