"""The weights of a model, or of one layer, among the names and shapes of arrays in a state dict.

Names and shapes say too little about a model, so its spec is given. Its weights are looked up by their names, by those
that MindSpore gives them, and by the names that the caller says; see `renamed`.
"""

import difflib
from collections.abc import Iterable, Mapping

from unirnn.contract.weights import format_names
from unirnn.errors import ArgumentError, ShapeError
from unirnn.snapshots.derived_weights import check_derived, split_name, without_dropped
from unirnn.specs import ModelSpec, Spec

__all__ = ["Rename", "choose_weights", "mindspore_names", "mismatch", "renamed"]

Shapes = Mapping[str, tuple[int, ...]]

Rename = Mapping[str, str | None]
"""New beginnings of names by the old ones; None leaves the arrays out."""


def choose_weights(
    spec: Spec, shapes: Shapes, floating: Iterable[str], *, prefix: str | None = None, rename: Rename | None = None
) -> dict[str, str]:
    """Find the weights of a model, or of one layer, among the names of arrays.

    Parameters
    ----------
    spec
        The spec of the model.
    shapes
        The shape of every array by its name.
    floating
        The names of the arrays of floats. Others, such as torch's ``num_batches_tracked``, may be left over.
    prefix
        The beginning of the names of the model's arrays, with or without the dot at its end. Other arrays do not count.
    rename
        New beginnings of names by the old ones, of which the longest counts; None leaves the arrays out.

    Returns
    -------
    dict
        For each name of `Spec.weight_shapes`, the name of the array that holds it. If the weight of a tied layer is
        there too, also that by its name.

    Raises
    ------
    ArgumentError
        If weights are missing or arrays are left over, or two arrays get the same name, or no name begins as
        ``rename`` says.
    ShapeError
        If an array has another shape than the weight.
    SpecError
        If a weight is there only by its parametrization.

    Examples
    --------
    >>> import unirnn
    >>> shapes = {"fc.weight": (2, 3), "fc.bias": (2,)}
    >>> model = unirnn.Sequential(head=unirnn.LinearSpec(3, 2))
    >>> choose_weights(model, shapes, shapes, rename={"fc.": "head."})
    {'head.weight': 'fc.weight', 'head.bias': 'fc.bias'}
    """
    spec.check_complete()
    arrays = without_dropped(shapes)
    sources = {name: arrays[held] for name, held in renamed(arrays, prefix, rename).items()}
    expected = spec.weight_shapes()
    tied = spec.tied() if isinstance(spec, ModelSpec) else {}
    names = mindspore_names(spec)
    found: dict[str, str] = {}
    for name in (*expected, *tied):
        known = next((spelling for spelling in (name, names.get(name)) if spelling in sources), None)
        if known is not None:
            found[name] = sources.pop(known)
    for name, other in tied.items():  # a file that stores shared arrays once may have either of the names
        if name in found:
            found.setdefault(other, found[name])
    missing = [name for name in expected if name not in found]
    floats = {*floating}
    left_over = {
        name: tuple(shapes[source])
        for name, source in sources.items()
        if source in floats and not name.endswith("num_batches_tracked")
    }
    if missing or left_over:
        check_derived(missing, expected, left_over)
        begin = _beginning(shapes, prefix)
        given_names = {name: sources[name].removeprefix(begin) for name in left_over}
        raise ArgumentError(mismatch("the spec", expected, missing, left_over, given_names))
    for name, source in found.items():
        given, shape = tuple(shapes[source]), expected[tied.get(name, name)]
        # MindSpore's convolutions over time have an axis of size 1 before the last.
        if given != shape and (len(shape) != 3 or given != (*shape[:2], 1, shape[2])):
            raise ShapeError(f"weights[{source!r}]: given shape {given}, expected {shape}")
    return found


_MINDSPORE = {
    "BatchNorm": {
        "weight": "gamma",
        "bias": "beta",
        "running_mean": "moving_mean",
        "running_var": "moving_variance",
    },
    "Embedding": {"weight": "embedding_table"},
    "LayerNorm": {"weight": "gamma", "bias": "beta"},
}
"""MindSpore's names of the weights of layers, where they differ from torch's."""


def mindspore_names(spec: Spec) -> dict[str, str]:
    """The names that MindSpore's own layers give the weights of a model, where they are other than torch's.

    Examples
    --------
    >>> import unirnn
    >>> mindspore_names(unirnn.Sequential(embedding=unirnn.EmbeddingSpec(5, 4), head=unirnn.LinearSpec(4, 2)))
    {'embedding.weight': 'embedding.embedding_table'}
    """
    return {
        f"{layer}.{weight}" if layer else weight: f"{layer}.{spelling}" if layer else spelling
        for layer, leaf in spec.leaves().items()
        for weight, spelling in _MINDSPORE.get(leaf.kind, {}).items()
    }


def _beginning(names: Iterable[str], prefix: str | None) -> str:
    """The beginning of the names of the model's arrays: the prefix, with the dot at its end."""
    begin = prefix or ""
    if begin and not any(name.startswith(begin) and name != begin for name in names):
        raise ArgumentError(
            f"prefix: given {prefix!r}, expected the beginning of a name; given {format_names(map(repr, names))}"
        )
    if begin and not begin.endswith(".") and any(name.startswith(f"{begin}.") for name in names):
        begin += "."
    return begin


def renamed(names: Iterable[str], prefix: str | None, rename: Rename | None) -> dict[str, str]:
    """The names of arrays by their new names.

    Parameters
    ----------
    names
        The names.
    prefix
        What they begin with; it is cut off, and other names are left out.
    rename
        New beginnings of names by the old ones, of which the longest counts; None leaves the arrays out.

    Raises
    ------
    ArgumentError
        If no name begins with the prefix, or with one of the old beginnings, or two arrays get the same name.

    Examples
    --------
    >>> renamed(["net.fc.weight", "net.fc.bias"], "net.", {"fc.": "head."})
    {'head.weight': 'net.fc.weight', 'head.bias': 'net.fc.bias'}
    """
    begin, rename = _beginning(names, prefix), rename or {}
    inner = {name[len(begin) :]: name for name in names if name.startswith(begin)}
    for old in rename:
        if not any(name.startswith(old) for name in inner):
            where = f" without the prefix {begin!r}" if begin else ""
            known = format_names(map(repr, inner)) or "none"
            raise ArgumentError(f"rename: given {old!r}, expected the beginning of a name{where}; given {known}")
    found: dict[str, str] = {}
    for name, source in inner.items():
        beginnings = [old for old in rename if name.startswith(old)]
        if beginnings:
            old = max(beginnings, key=len)
            new = rename[old]
            if new is None:
                continue
            name = new + name[len(old) :]
        if name in found:
            raise ArgumentError(f"rename: {found[name]!r} and {source!r} are both {name!r} then, expected one of them")
        found[name] = source
    return found


def mismatch(
    owner: str, expected: Shapes, missing: list[str], left_over: Shapes, given_names: Mapping[str, str]
) -> str:
    """The message that says what is missing and what is left over, and how it might be renamed.

    Parameters
    ----------
    owner, expected
        What has the weights, such as ``"the spec"``, and their shapes by name.
    missing
        Those that no array was found for.
    left_over
        The shapes of arrays that are no weights, by their new names.
    given_names
        By these names the old ones, which ``rename`` takes.
    """
    wrong = [
        f"{what} {format_names(names)}"
        for what, names in (("missing", missing), ("left over", given_names.values()))
        if names
    ]
    hints: dict[str, str | None] = {}
    taken: dict[str, str] = {}
    free = dict(left_over)
    for name in missing:
        layer, end = split_name(name)
        fitting = [found for found in free if free[found] == expected[name]]
        # In the layer that is taken for this one already; else in a layer with such a weight; else the closest name.
        alike = [
            found for found in fitting if split_name(found)[1] == end and bool(split_name(found)[0]) == bool(layer)
        ]
        close = [found for found in alike if taken.get(split_name(found)[0]) == layer]
        close = (
            close or difflib.get_close_matches(name, alike, 1, cutoff=0) or difflib.get_close_matches(name, fitting, 1)
        )
        if close:
            del free[close[0]]
            given, given_end = split_name(given_names[close[0]])
            if close[0] in alike and layer:
                taken[split_name(close[0])[0]] = layer
            hints |= {given: layer} if given and given_end == end and layer else {given_names[close[0]]: name}
    if not missing:
        hints = dict.fromkeys(given_names.values())
    shown = ", ".join(f"{old!r}: {new!r}" for old, new in list(hints.items())[:8])
    advice = ""
    if hints:
        advice = f"; perhaps rename={{{shown}}}" if missing else f"; rename={{{shown}}} leaves them out"
    return f"weights: {'; '.join(wrong)}{advice}; {owner} has {format_names(expected) or 'no weights'}"
