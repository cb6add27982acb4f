"""Compare two models, of any two frameworks, and explain where and why their results differ."""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.specs import RecurrentSpec, Spec

from ._differences import Difference, difference, place_in_state
from ._explanation import explain
from ._sides import Gradients, Side
from ._tracebacks import is_for_the_test
from .batches import Batch, zeroed
from .calling import Call
from .tolerances import check_tolerance, largest

__all__ = ["assert_same"]

__tracebackhide__ = is_for_the_test

Array = NDArray[Any]


def assert_same(
    a: Any,
    b: Any,
    batch: Batch,
    *,
    tolerance: float | None = None,
    gradients: bool = True,
    call: Call | None = None,
) -> None:
    """Assert that two models or layers compute the same in evaluation mode.

    The outputs are compared, and the final states if both models return them. If these agree, the gradients of a
    weighted sum of them are compared too: with respect to the input, the initial state, and each weight that has the
    same name in both models. Values after the end of a sequence, in the output or in another result `(B, T, ...)`, are
    compared only if unirnn built both models, since such values are then 0. Results in dicts, named tuples and
    dataclasses are matched by name, all others by position.

    A `UserWarning` names what could not be compared: a final state that only one model returns, the gradients if one
    model has none (such as a `unirnn.Model` on NumPy), the gradients of weights whose names differ, and numbers that
    are NaN in both.

    Each model is given the batch in the dtype of its weights. It is also given the batch in its own layout if that is
    known, which is so for modules that unirnn built, for layers with an attribute ``batch_first``, and for Keras.

    Parameters
    ----------
    a, b
        Modules of any framework, built by unirnn or not, or functions of NumPy arrays. The results of ``b`` are taken
        to be right.
    batch
        The arguments with which both are called; see `unirnn.testing.batch`.
    tolerance
        The largest difference that is allowed in an array, relative to its largest value in ``b``. None means the
        tolerance of the less precise of the two dtypes; see `unirnn.testing.tolerance`.
    gradients
        Whether gradients are compared.
    call
        ``call(model, input, seq_length)``, with arrays of the model's framework. It calls either model, for models
        whose argument names don't tell how; see `unirnn.testing.calling.call_model`.

    Raises
    ------
    AssertionError
        If they differ. The message says which results differ, by how much and where first, which layer is the first to
        differ, and the usual cause if it is recognised.
    ArgumentError
        If a model can't be called with the batch, or returns no arrays.

    Examples
    --------
    >>> import unirnn
    >>> from unirnn.testing import batch
    >>> spec = unirnn.GRUSpec(3, 4)
    >>> a, b = spec.build("numpy", seed=0), spec.build("numpy", seed=0, dtype="float64")
    >>> assert_same(a, b, batch(spec))
    """
    check_tolerance(tolerance)
    one, other = Side("a", a, batch, call), Side("b", b, batch, call)
    one.run()
    other.run(like=one)
    allowed = max(one.tolerance, other.tolerance) if tolerance is None else tolerance
    found = list(_differences_of_results(one, other, allowed))
    results_are_same = not found
    not_compared = list(_results_not_compared(one, other))
    if results_are_same and gradients:
        found = list(_differences_of_gradients(one, other, allowed))
        not_compared += _gradients_not_compared(one, other)
    for text in not_compared:
        warnings.warn(f"not compared: {text}", UserWarning, stacklevel=2)
    if found:
        lines = [f"{one} and {other} differ.", *(difference.sentence() for difference in found[:8])]
        if len(found) > 8:
            lines.append(f"{len(found) - 8} more differ.")
        lines += explain(one, other, allowed, only_gradients=results_are_same)
        raise AssertionError("\n".join(lines))


def _differences_of_results(one: Side, other: Side, tolerance: float) -> Iterator[Difference]:
    """Yield the differences between the results that both models return."""
    count = min(len(one.results), len(other.results))
    if len(one.results) != len(other.results) and count != 1:
        text = f"a returns {len(one.results)} arrays, and b {len(other.results)}."
        yield Difference("number of results", np.inf, tolerance, text=text)
        return
    names = _names_of_results(one.spec or other.spec, one.paths[:count])
    for k, name in enumerate(names):
        a, b = _of_one_rank(one.results[k], other.results[k])
        if a.shape != b.shape:
            yield Difference(name, np.inf, tolerance, shapes=(a.shape, b.shape))
        elif k == 0:
            yield from _differences_of_output(one, other, a, b, tolerance)
        else:
            valid = one.valid(a, k) if other.valid(b, k) is not None else None
            if valid is not None:
                a, b = zeroed(a, ~valid), zeroed(b, ~valid)
            yield from difference(name, a, b, tolerance, lambda at: place_in_state(one.spec or other.spec, at))


def _of_one_rank(a: Array, b: Array) -> tuple[Array, Array]:
    """Give a state `(B, H)`, as a layer of Keras returns it, and a state `(1, B, H)` the same shape."""
    if a.ndim == b.ndim + 1 and len(a) == 1:
        return a[0], b
    return (a, b[0]) if b.ndim == a.ndim + 1 and len(b) == 1 else (a, b)


def _names_of_results(spec: Spec | None, paths: Sequence[str]) -> list[str]:
    names = ["output"]
    if isinstance(spec, RecurrentSpec):
        names += [f"final state {name}_n" for name in spec.states]
    elif spec is not None:
        names += [
            f"final state {part} of {layer}" for layer, s in spec.stateful.items() for part in s.state_shapes(None)
        ]
    numbered = [f"result {k if path.strip('[]').isdigit() else path}" for k, path in enumerate(paths)]
    return [*names, *numbered[len(names) :]][: len(paths)]


def _results_not_compared(one: Side, other: Side) -> Iterator[str]:
    """Yield a sentence about each result, or part of one, that was not compared."""
    for side in (one, other):
        for path, kind in side.unread.items():
            yield f"{side.label} returns an object of the class {kind} (result{path}), whose numbers can't be read"
    if len(one.results) != len(other.results) and 1 in (len(one.results), len(other.results)):
        yield (
            f"any but the first result, since a returns {len(one.results)} arrays, and b {len(other.results)}; give "
            "call=lambda model, input, seq_length: ..., which returns the same results for both"
        )
    for name, k in zip(_names_of_results(one.spec or other.spec, one.paths), range(len(other.results)), strict=False):
        a, b = _of_one_rank(one.results[k], other.results[k])
        if a.shape != b.shape or not {a.dtype.kind, b.dtype.kind} <= set("fc"):
            continue
        both = np.isnan(a) & np.isnan(b)
        valid = one.valid(a, k)
        if valid is not None:
            both = zeroed(both, ~valid)
        if both.any():
            yield f"{name}, where both models give NaN, {both.sum()} of its {both.size} numbers"


def _gradients_not_compared(one: Side, other: Side) -> Iterator[str]:
    """Yield a sentence about the gradients that were not compared."""
    a, b = one.found, other.found
    if any(array.dtype.kind == "c" for array in other.results):
        yield "the gradients of complex numbers"
    if a is None and b is None:
        return
    if a is None or b is None:
        yield f"the gradients, since {one if a is None else other} has none; give gradients=False to compare none"
        return
    names = [name for name in (*a, *(name for name in b if name not in a)) if not _is_compared(a, b, name)]
    if names:
        shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
        yield f"the gradients that only one of the two has by this name and of this shape: {shown}"


def _is_compared(a: Gradients, b: Gradients, name: str) -> bool:
    own, right = a.get(name), b.get(name)
    return own is not None and right is not None and own.shape == right.shape


def _differences_of_output(one: Side, other: Side, a: Array, b: Array, tolerance: float) -> Iterator[Difference]:
    def place(at: tuple[int, ...]) -> str:
        if valid is None or len(at) < 2:
            return f", first in sequence {at[0]}" if at else ""
        return f", first at step {at[1]} of sequence {at[0]}, which has {int(valid[at[0]].sum())} steps"

    valid = one.valid(a) if one.is_built else other.valid(b)
    if valid is None:
        yield from difference("output", a, b, tolerance, place)
        return
    right = zeroed(b, ~valid)
    found = list(difference("output", zeroed(a, ~valid), right, tolerance, place))
    yield from found
    if not found and one.is_built and other.is_built:
        in_padding = zeroed(a, valid), zeroed(b, valid)
        yield from difference("output in the padding", *in_padding, tolerance, place, largest(right))


def _differences_of_gradients(one: Side, other: Side, tolerance: float) -> Iterator[Difference]:
    rng = np.random.default_rng(0)
    cotangents = []
    for k in range(min(len(one.results), len(other.results))):
        b = other.results[k]
        d = rng.standard_normal(b.shape) if b.dtype.kind == "f" else np.zeros(b.shape)
        valid = one.valid(b, k) if one.is_built else other.valid(b, k)
        cotangents.append(d if valid is None else zeroed(d, ~valid))
    if not one.with_gradients or not other.with_gradients:
        return
    found = [side.gradients(cotangents) for side in (one, other)]
    one.found, other.found = found
    one.cotangents = other.cotangents = cotangents
    if found[0] is None or found[1] is None:
        return
    names = [name for name in found[0] if _is_compared(found[0], found[1], name)]
    most = max((largest(d) for d in found[1].values() if d is not None), default=0.0)
    for name in names:
        own, right = found[0][name], found[1][name]
        if own is not None and right is not None:
            place = _place_in_input(other.batch.lengths) if name == "input" else lambda at: ""
            yield from difference(f"gradient of {name}", own, right, tolerance, place, 1e-3 * most)


def _place_in_input(lengths: NDArray[np.int64]) -> Any:
    def place(at: tuple[int, ...]) -> str:
        padding = ", in its padding" if at[1] >= lengths[at[0]] else ""
        return f", first at step {at[1]} of sequence {at[0]}, which has {lengths[at[0]]} steps{padding}"

    return place
