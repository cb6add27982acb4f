"""Explain why two models differ: the first layer that differs, their specs and weights, and the usual cause."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.contract.call import state_parts
from unirnn.errors import UnirnnError
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import LinearSpec, ModelSpec, RecurrentSpec, Sequential, Spec

from . import oracle
from ._differences import difference
from ._sides import Side, snapshot_of
from .batches import Batch, zeroed
from .causes import arrays_cause, gradient_cause, layer_cause, recurrent_cause, recurrent_gradient_cause
from .causes.numbers import NOT_ZEROED

__all__ = ["explain"]

Array = NDArray[Any]
Layers = dict[tuple[str, int], tuple[str, list[Array]]]
"""The class of each layer and the arrays that it returned, by the layer's path and the number of the call. The first
array is `(B, T, ...)`."""


@dataclass(frozen=True)
class _First:
    """The first layer that differs.

    Parameters
    ----------
    paths
        Its path in each of the two models.
    call
        Which of its calls differs, counted from 0.
    kind
        The name of its class.
    results
        What it returned in each model.
    given
        Its input, provided that the model is a chain of layers.
    before
        The layer before it, which does not differ; empty if it is the first of all.
    """

    paths: tuple[str, str]
    call: int
    kind: str
    results: tuple[list[Array], list[Array]]
    given: Batch
    before: str

    def sentence(self) -> str:
        """A sentence that names the layer."""
        name = self.paths[0] if self.paths[0] == self.paths[1] else f"{self.paths[0]} (in b {self.paths[1]})"
        name += _of_call(self.call)
        after = f" The one before it, {self.before}, is the same." if self.before else ""
        return f"The first layer that differs is {name}, {_article(self.kind)} {self.kind}.{after}"


def explain(a: Side, b: Side, tolerance: float, *, only_gradients: bool) -> Iterator[str]:
    """Yield sentences that explain why two models differ.

    Parameters
    ----------
    a, b
        The models, which have already run.
    tolerance
        The largest relative difference that is ignored.
    only_gradients
        Whether only the gradients differ.
    """
    first = None
    if not only_gradients:
        first = _first_layer(a, b, tolerance)
        if first is not None:
            yield first.sentence()
    yield from _specs_and_weights(a, b)
    cause = _cause_of_gradients(a, b, tolerance) if only_gradients else _cause(a, b, first, tolerance)
    if cause is not None:
        yield f"Usual cause, in {cause[0]}: {cause[1]}."


def _of_call(call: int) -> str:
    return f" in its call {call + 1}" if call else ""


def _article(word: str) -> str:
    return "an" if word[:1] in "AEIOU" or word[:4] in ("LSTM", "RNN") else "a"


# ---- the first layer -----------------------------------------------------------------------------


def _first_layer(a: Side, b: Side, tolerance: float) -> _First | None:
    found_a, found_b = _layers(a), _layers(b)
    pairs = [(key, key) for key in found_a if key in found_b]
    if not pairs:
        leaves = [
            [key for key in found if not any(path.startswith(f"{key[0]}.") for path, _ in found)]
            for found in (found_a, found_b)
        ]
        if len(leaves[0]) != len(leaves[1]):
            return None
        pairs = list(zip(*leaves, strict=True))
    given, before = b.batch.in_layout(True), ""
    for key_a, key_b in pairs:
        (path_a, call), path_b = key_a, key_b[0]
        (kind, own), (_, right) = found_a[key_a], found_b[key_b]
        after = _after(given, b.spec, path_b, right[0]) if right else given
        if _differ(own, right, after, tolerance):
            leaf = None if b.spec is None else b.spec.leaves().get(path_b)
            kind = kind if leaf is None else leaf.kind
            return _First((path_a, path_b), call, kind, (own, right), given, before)
        given, before = after, path_a + _of_call(call)
    return None


def _differ(own: list[Array], right: list[Array], after: Batch, tolerance: float) -> bool:
    """Whether results of two layers that have the same shapes differ. The padding of the output is ignored."""
    pairs = zip(_zeroed(own, after), _zeroed(right, after), strict=False)
    return any(x.shape == y.shape and any(difference("", x, y, tolerance)) for x, y in pairs)


def _zeroed(results: list[Array], batch: Batch) -> list[Array]:
    """Set the padding of a layer's output to zero, since a model may do so only after a later layer."""
    if not results or results[0].shape[:2] != (batch.batch_size, batch.steps):
        return results
    return [zeroed(results[0], batch.padding), *results[1:]]


def _after(given: Batch, spec: Spec | None, path: str, output: Array) -> Batch:
    """The input of the next layer, if the layers form a chain."""
    leaf = None if spec is None else spec.leaves().get(path)
    if output.ndim < 3:
        return given
    lengths = given.lengths if leaf is None else leaf.output_lengths(given.lengths)
    return replace(given, input=output, seq_length=lengths, num_tokens=None)


def _layers(side: Side) -> Layers:
    """The results of each layer, by its path and the number of the call."""
    found = side.watched()
    if found or not isinstance(side.spec, Sequential) or side.snapshot is None:
        return found
    return dict(_built_one_by_one(side, side.spec, side.snapshot))


def _built_one_by_one(
    side: Side, spec: Sequential, snapshot: Snapshot
) -> Iterator[tuple[tuple[str, int], tuple[str, list[Array]]]]:
    """Yield the results of each layer of a model, by building and running the layers up to it.

    This is for frameworks that can't watch layers.
    """
    for count in range(1, len(spec) + 1):
        children = dict(spec.children[:count])
        name, layer = spec.children[count - 1]
        part = Sequential(*children.values()) if name.isdigit() else Sequential(**children)
        try:
            weights = {key: snapshot.weights[key] for key in part.weight_shapes()}
            module = Snapshot(part, weights).build(side.framework.name)
            hx = None if side.batch.hx is None else tuple(side.batch.hx[: len(part.stateful)])
            same = replace(side.batch, hx=hx if part.stateful else None)
            one = Side(side.label, module, same, None)
            one.run()
        except UnirnnError:  # such as that of a backend which can't build without further options
            return
        state = one.results[1 + len(_parts_of(spec, count - 1)) :] if isinstance(layer, RecurrentSpec) else []
        yield (name, 0), (layer.kind, [*one.results[:1], *state])


def _parts_of(spec: Sequential, count: int) -> list[str]:
    """The names of the parts of the states of the first ``count`` layers."""
    return [
        part for _, layer in spec.children[:count] for leaf in layer.stateful.values() for part in leaf.state_shapes(1)
    ]


# ---- specs, weights and causes -------------------------------------------------------------------


def _specs_and_weights(a: Side, b: Side) -> Iterator[str]:
    one, other = a.snapshot, b.snapshot
    if one is not None and other is not None:
        if not one.spec.fits(other.spec):
            yield f"Their specs differ: a is {one.spec!r}, and b is {other.spec!r}."
        arrays, layers = (dict(one.weights), dict(other.weights)), one.spec.leaves()
    else:
        found = [side.all_weights() for side in (a, b)]
        named = [{name: array for names, array in weights.items() for name in names} for weights in found]
        arrays = named[0], named[1]
        layers = getattr(b.framework, "known_layers", lambda model: {})(b.model)
    names = [name for name in arrays[0] if name in arrays[1] and arrays[0][name].shape == arrays[1][name].shape]
    if not names or len(names) < max(map(len, arrays)):
        return
    rounded = [{name: array[name] for name in names} for array in arrays]
    narrow = min((array.dtype for weights in rounded for array in weights.values()), key=lambda kind: kind.itemsize)
    right, own = ({name: array.astype(narrow) for name, array in weights.items()} for weights in rounded[::-1])
    cause = arrays_cause(layers, right, own)
    if cause is not None:
        yield f"The weights of a are not those of b: {cause}."


def _cause(a: Side, b: Side, first: _First | None, tolerance: float) -> tuple[str, str] | None:
    """The side that has made a usual mistake, and a description of the mistake."""
    sides = (a, b)
    if first is None:
        snapshots = [side.snapshot for side in sides]
        results, batches = [a.results, b.results], [side.batch.in_layout(True) for side in sides]
    else:
        snapshots = [_snapshot_of_layer(side, path) for side, path in zip(sides, first.paths, strict=True)]
        results, batches = list(first.results), [replace(first.given, hx=None)] * 2
    for k, source in ((0, 0), (1, 1), (0, 1), (1, 0)):  # results with the side's own weights, then with the other's
        snapshot, own, given = snapshots[source], results[k], batches[k]
        if snapshot is None or not own:
            continue
        padding_matters = first is None and sides[k].is_built
        for found in [own] if padding_matters else [own, _zeroed(own, given)]:
            cause = _cause_of_layer(snapshot, given, found, tolerance)
            if cause is not None and (padding_matters or cause != NOT_ZEROED):
                return sides[k].label, cause
    return None


def _cause_of_layer(snapshot: Snapshot, batch: Batch, results: list[Array], tolerance: float) -> str | None:
    """The usual mistake that explains the results of one layer. Its input and output are `(B, T, ...)`."""
    spec, input = snapshot.spec, batch.input
    is_given_tokens = input.ndim == 2
    if spec.takes_tokens != is_given_tokens or (
        not is_given_tokens and spec.input_features not in (0, input.shape[-1])
    ):
        return None  # the layer before does not give its input, so the model is not a chain
    if isinstance(spec, RecurrentSpec):
        parts = results[1 : 1 + len(spec.states)]
        is_known = [part.shape for part in parts] == list(spec.state_shapes(batch.batch_size).values())
        return recurrent_cause(spec, snapshot.weights, batch, results[0], parts if is_known else None, tolerance)
    if isinstance(spec, ModelSpec):
        return None
    return layer_cause(spec, snapshot.weights, input, batch.seq_length, results[0], tolerance)


def _snapshot_of_layer(side: Side, path: str) -> Snapshot | None:
    """The spec and the weights of a layer within a model."""
    if side.snapshot is not None:
        leaf = side.snapshot.spec.leaves().get(path)
        if leaf is None or (isinstance(leaf, LinearSpec) and leaf.tied_to):
            return None
        return Snapshot(leaf, {name: side.snapshot.weights[f"{path}.{name}"] for name in leaf.weight_shapes()})
    found = side.model
    for name in path.split("."):
        found = found[int(name)] if name.isdigit() and not hasattr(found, name) else getattr(found, name, None)
        if found is None:
            return None
    return snapshot_of(found)


def _cause_of_gradients(a: Side, b: Side, tolerance: float) -> tuple[str, str] | None:
    if a.found is None or b.found is None:
        return None
    for side, reference in ((a, a), (b, b), (a, b)):
        snapshot = reference.snapshot
        if snapshot is not None and isinstance(snapshot.spec, RecurrentSpec):
            cause = _cause_of_recurrent_gradients(side, snapshot, tolerance)
            if cause is not None:
                return side.label, cause
    batch = b.batch.in_layout(True)
    right = {name: d for name, d in b.found.items() if d is not None and name in a.found}
    cause = gradient_cause(a.found, right, tolerance, padding=batch.padding)
    return None if cause is None else (a.label, cause)


def _cause_of_recurrent_gradients(side: Side, snapshot: Snapshot, tolerance: float) -> str | None:
    """The usual mistake that explains the gradients of a recurrent layer, as found by the oracle."""
    spec = replace(snapshot.spec, batch_first=True, dropout=0.0)
    batch, cotangents = side.batch.in_layout(True), tuple(side.cotangents)
    if len(cotangents) != 1 + len(spec.states) or batch.resets is not None:
        return None
    shapes = spec.state_shapes(batch.batch_size)
    hx = state_parts(spec, batch.hx) or tuple(np.zeros(shape) for shape in shapes.values())
    initial = {f"{name}_0": part for name, part in zip(spec.states, hx, strict=True)}
    arrays: dict[str, Array] = {"input": batch.input, **initial, **snapshot.weights}
    wide = {name: np.asarray(array, np.float64) for name, array in arrays.items()}
    # A gradient that was not computed is taken to be right.
    right = oracle.gradients(spec, wide, batch.lengths, cotangents)
    found = {**right, **oracle.renamed(spec, side.found or {})}
    return recurrent_gradient_cause(spec, wide, batch.lengths, cotangents, found, tolerance)
