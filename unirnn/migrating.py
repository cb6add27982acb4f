"""Moving a whole checkpoint into a model that is written with a framework's own layers."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unirnn import registry
from unirnn.contract.weights import Array, cast_exact, format_names
from unirnn.devices import DTYPES
from unirnn.errors import ArgumentError, DTypeError, ShapeError, SpecError
from unirnn.files import contents
from unirnn.files._contents import StoredArray, stored
from unirnn.snapshots.derived_weights import check_derived, without_dropped
from unirnn.snapshots.model_weights import Rename, mismatch, renamed
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import RecurrentSpec, Spec

__all__ = ["Migration", "migrate"]

_SPELLINGS = (
    ("weight", "gamma", "embedding_table", "w"),
    ("bias", "beta"),
    ("running_mean", "moving_mean"),
    ("running_var", "moving_variance"),
)
"""The names that torch and MindSpore give the same weight of a layer; w is the one of MindSpore's PReLU."""

_VARIANTS = ("nonlinearity", "reset_after", "gate_activation", "reverse")
"""The arguments of a recurrent layer that its weights do not show."""


@dataclass(frozen=True)
class Migration:
    """What `migrate` did.

    Parameters
    ----------
    written
        By the name of each weight of the module that was replaced, the name of the array that it now holds.
    missing
        The weights of the module for which the source had no array, and which are as they were.
    left_over
        The arrays of the source that the module has no weight for.

    Examples
    --------
    >>> print(Migration({"fc.weight": "head.weight"}, ("fc.bias",), ()))
    1 weight written, 1 missing (fc.bias), 0 left over
    """

    written: Mapping[str, str]
    missing: tuple[str, ...]
    left_over: tuple[str, ...]

    def __str__(self) -> str:
        count = f"{len(self.written)} weight{'' if len(self.written) == 1 else 's'} written"
        sides = {"missing": self.missing, "left over": self.left_over}
        rest = [
            f"{len(names)} {what}" + (f" ({format_names(names)})" if names else "") for what, names in sides.items()
        ]
        return ", ".join([count, *rest])


def migrate(source: Any, *, to: Any, rename: Rename | None = None, strict: bool = True) -> Migration:
    """Load a whole checkpoint into a model of PyTorch or MindSpore, whichever of the two wrote it.

    Weights are found by their names, which begin with the names of the modules, and end as PyTorch or as MindSpore
    calls the weight: ``weight`` is the same as ``gamma`` and ``embedding_table``, ``bias`` as ``beta``,
    ``running_mean`` as ``moving_mean``, ``running_var`` as ``moving_variance``. MindSpore's convolutions over time have
    an axis of size 1 more. Either all weights are written or, after an error, none.

    Only weights move. The model itself must have the settings that no checkpoint holds: MindSpore's ``LayerNorm`` has
    an epsilon of 1e-7 by default, and PyTorch's one of 1e-5; MindSpore's ``GELU`` is approximated by default. A
    snapshot, a file of one and a module say what their recurrent layers compute, and these must be the same; a state
    dict does not say whether a layer runs in reverse, or what its gates are.

    Parameters
    ----------
    source
        A file that `unirnn.load` reads, except ``.onnx``; or a mapping of names to arrays or tensors; or a snapshot; or
        a ``torch.nn.Module`` or ``mindspore.nn.Cell``.
    to
        The ``torch.nn.Module`` or the ``mindspore.nn.Cell``, of any layers.
    rename
        New beginnings of the source's names by the old ones, of which the longest counts; None leaves those arrays out.
    strict
        Whether each weight must have an array, and each array of floats a weight. With False, what has no counterpart
        is left, and reported.

    Returns
    -------
    Migration
        What was written, and what is left on either side.

    Raises
    ------
    ArgumentError
        If the source or the module is none; if no name begins as ``rename`` says; if something is left and ``strict``
        is True; if nothing fits at all; or if two arrays differ that the module has as one weight.
    ShapeError
        If an array has another shape than the weight.
    SpecError
        If weights are computed from other arrays at each call, as by weight normalisation, and the module's are not; or
        if recurrent layers are known to compute something else.
    DTypeError
        If the dtype of the module would round a weight.
    FileError, OSError
        As `unirnn.load`.

    Examples
    --------
    >>> import numpy, unirnn
    >>> net = unirnn.Sequential(norm=unirnn.LayerNormSpec(2), head=unirnn.LinearSpec(2, 1)).build("numpy", seed=0)
    >>> arrays = {
    ...     "norm.gamma": numpy.ones(2, "float32"),
    ...     "norm.beta": numpy.zeros(2, "float32"),
    ...     "fc.weight": numpy.ones((1, 2), "float32"),
    ...     "fc.bias": numpy.zeros(1, "float32"),
    ... }
    >>> print(unirnn.migrate(arrays, to=net, rename={"fc.": "head."}))
    4 weights written, 0 missing, 0 left over
    """
    arrays, layers = _opened(source)
    backend, owned = _owned(to)
    # A module that drops weights itself also has the raw one.
    drops = any(name.endswith("_raw") for names in owned for name in names)
    named = {name: name for name in arrays} if drops else without_dropped(arrays)
    floats = {name: array for name, array in arrays.items() if array.dtype in DTYPES}
    given_names = {name: named[held] for name, held in renamed(named, None, rename).items()}
    sources = {name: held for name, held in given_names.items() if held in floats}
    found = _matched(owned, sources, floats)
    expected = {names[0]: array.shape for names, array in owned.items()}
    used = {name for names in found.values() for name in names}
    missing = [name for name in expected if name not in found]
    left_over = [name for name, given in sources.items() if given not in used]
    if (strict and (missing or left_over)) or not found:
        check_derived(missing, expected, left_over)
        shapes = {name: floats[sources[name]].shape for name in left_over}
        message = mismatch("the module", expected, missing, shapes, {name: sources[name] for name in left_over})
        advice = "; strict=False leaves the rest as it is" if found else ""
        raise ArgumentError(message + advice)
    _check_variants(layers, backend.known_layers(to), found)
    values = {names[0]: array for names, array in owned.items()}
    _write(backend, to, values, {name: _laid_out(given, floats, expected[name]) for name, given in found.items()})
    written = {name: given[0] for name, given in found.items()}
    return Migration(written, tuple(missing), tuple(sources[name] for name in left_over))


def _opened(source: Any) -> tuple[Mapping[str, StoredArray], Mapping[str, Spec]]:
    """The arrays of a source by name, and its layers, if it says what they are, by how their weights' names begin."""
    if isinstance(source, (str, os.PathLike)):
        found = contents(source)
        if not found.arrays:
            raise ArgumentError(f"source: given {source!r}, a file of format {found.format} without weights by name")
        whole = found.layers.get("") if found.version is not None else None
        return found.arrays, whole.spec.leaves() if whole is not None and isinstance(whole.spec, Spec) else {}
    if isinstance(source, Snapshot):
        return {name: stored(array) for name, array in source.weights.items()}, source.spec.leaves()
    if isinstance(source, Mapping):
        return {name: stored(array) for name, array in source.items() if isinstance(name, str)}, {}
    backend, owned = _owned(source, "source")
    arrays = {name: StoredArray.from_array(array) for names, array in owned.items() for name in names}
    return arrays, backend.known_layers(source)


def _owned(module: Any, argument: str = "to") -> tuple[Any, Mapping[tuple[str, ...], Array]]:
    """The backend of a module, and its weights by all of their names."""
    for backend in registry.backends_for(module):
        owned = backend.all_weights(module)
        if owned is not None:
            return backend, owned
    given = f"{type(module).__module__}.{type(module).__qualname__}"
    expected = "a torch.nn.Module, a mindspore.nn.Cell, or a module that unirnn built"
    raise ArgumentError(f"{argument}: given {given}, expected {expected}")


def _check_variants(given: Mapping[str, Spec], own: Mapping[str, Spec], found: Mapping[str, list[str]]) -> None:
    """Refuse weights of a recurrent layer for one that computes something else."""
    for name, sources in found.items():
        theirs, ours = (layers.get(one.rpartition(".")[0]) for layers, one in ((given, sources[0]), (own, name)))
        if not isinstance(theirs, RecurrentSpec) or not isinstance(ours, RecurrentSpec):
            continue
        for argument in _VARIANTS:
            value, expected = (getattr(spec, argument, None) for spec in (theirs, ours))
            if value != expected:
                raise SpecError(
                    f"source: {sources[0]!r} is of a {theirs.kind} with {argument}={value!r}, expected {expected!r}, "
                    f"as that of {name!r}"
                )


def _matched(
    owned: Mapping[tuple[str, ...], Array], sources: Mapping[str, str], arrays: Mapping[str, StoredArray]
) -> dict[str, list[str]]:
    """For the first name of each weight, the arrays that hold it: several if it has several names."""
    found: dict[str, list[str]] = {}
    for names in owned:
        given = [sources[spelling] for name in names for spelling in _spellings(name) if spelling in sources]
        if not given:
            continue
        for other in given[1:]:
            if not np.array_equal(arrays[given[0]].read(), arrays[other].read(), equal_nan=True):
                raise ArgumentError(
                    f"source: {given[0]!r} and {other!r} differ, but the module has one weight {names[0]!r}"
                )
        found[names[0]] = given
    return found


def _spellings(name: str) -> list[str]:
    """The name of a weight and, if that is another, the ones that the other framework gives it."""
    layer, dot, own = name.rpartition(".")
    alike = next((names for names in _SPELLINGS if own in names), ())
    return [name, *(f"{layer}{dot}{other}" for other in alike if other != own)]


def _laid_out(given: list[str], arrays: Mapping[str, StoredArray], shape: tuple[int, ...]) -> Array:
    """The array in the shape of its weight; the weight of a convolution over time may have an axis of size 1 more."""
    array = arrays[given[0]].read()
    wide, narrow = sorted((array.shape, tuple(shape)), key=len, reverse=True)
    if array.shape != tuple(shape) and (len(wide) != 4 or narrow != (*wide[:2], wide[3]) or wide[2] != 1):
        raise ShapeError(f"source: {given[0]!r}: given shape {array.shape}, expected {tuple(shape)}")
    return array.reshape(shape)


def _write(backend: Any, module: Any, old: Mapping[str, Array], new: Mapping[str, Array]) -> None:
    """Replace weights of a module: all of them, or none and an error."""
    before = {name: np.array(old[name]) for name in new}
    exact = cast_exact(new, [array.dtype for array in before.values()])
    try:
        backend.write_some(module, exact)
        after = {names[0]: array for names, array in backend.all_weights(module).items()}
        for name, array in exact.items():
            if not np.array_equal(after[name], array, equal_nan=True):
                raise DTypeError(f"to: its {name} can't hold the weight without rounding, or is shared with another")
    except BaseException:
        backend.write_some(module, before)
        raise
