"""Finding recurrent layers by the names and shapes of the arrays in a Keras file; see `unirnn.files.keras_files`.

Names and shapes do not show what a layer computes, so such a layer is read only if its spec is given.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from unirnn.contract.weights import Array, check_dtype, format_names
from unirnn.errors import ShapeError, SpecError, UnirnnError
from unirnn.files import hdf5
from unirnn.files._contents import StoredArray
from unirnn.files.keras_containers import CONTAINERS, ROLE, Stored, arrays_of, saved_name
from unirnn.specs import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec

__all__ = ["Found", "guess_spec", "has_cudnn_shapes", "unconfigured"]


@dataclass(frozen=True)
class Found:
    """A recurrent layer in a file.

    Parameters
    ----------
    spec
        Its spec, or why there is none.
    guess
        Without a spec: the one that a user may give, since its shapes fit; None if there is none.
    directions
        For each direction the input kernel, the recurrent kernel and the bias, if there is one.
    sure
        Whether the guess is what the configuration says, and only the output is put together otherwise.
    """

    spec: RecurrentSpec | UnirnnError
    guess: RecurrentSpec | None
    directions: list[list[StoredArray]]
    sure: bool = False


def has_cudnn_shapes(parts: "list[Array] | list[StoredArray]") -> bool:
    """Whether arrays are those of a layer of cuDNN, by the shape of their bias."""
    return len(parts) == 3 and parts[2].shape == (2 * parts[1].shape[-1],)


def guess_spec(parts: list[StoredArray], where: str) -> RecurrentSpec:
    """The spec of a layer with Keras' defaults that has arrays of such shapes; a ShapeError if there is none."""
    shapes = [part.shape for part in parts]
    for part in parts:
        check_dtype(where, part.dtype)
    if len(shapes) > 1 and len(shapes[0]) == len(shapes[1]) == 2:
        (input_size, _), (size, _) = shapes[:2]
        for cls in (RNNSpec, GRUSpec, LSTMSpec) if input_size and size else ():
            rows, found = len(cls.gates) * size, cls(input_size, size, batch_first=True)
            kernels = [(input_size, rows), (size, rows)]
            if shapes == kernels:
                return replace(found, bias=False)
            if shapes == [*kernels, (2, rows)] and isinstance(found, GRUSpec):
                return found
            # of a layer of cuDNN; with all gates in one array; and, in Keras 1, with an array for each gate
            if shapes == [*kernels, (2 * rows,)] and rows > size:
                return found
            if shapes in ([*kernels, (rows,)], [(input_size, size), (size, size), (size,)] * len(cls.gates)):
                return replace(found, reset_after=False) if isinstance(found, GRUSpec) else found
    raise ShapeError(f"{where}: given arrays of shapes {format_names(shapes) or 'none'}, which are no layer of Keras")


def unconfigured(stored: Stored, major: int) -> Iterator[tuple[str, Found]]:
    """The recurrent layers among all arrays of a file, each with the spec that its shapes would fit."""
    found = dict(_cells(stored, "") if isinstance(stored, hdf5.Group) else _named(stored))
    backward = dict(_backward(found))
    for path, parts in found.items():
        if path in backward.values():
            continue
        name, directions = path, [parts]
        if path in backward:
            name, directions = path.rpartition("/")[0], [parts, found[backward[path]]]
        where = f"keras: {name}"
        try:
            guesses = [guess_spec(direction, where) for direction in directions]
            if guesses[0] != guesses[-1]:
                raise ShapeError(f"{where}: given directions of {guesses[0]} and {guesses[1]}, expected the same")
        except UnirnnError as error:
            yield name, Found(error, None, directions)
            continue
        guess = replace(guesses[0], bidirectional=len(directions) == 2)
        has_gates = guess.kind != "RNN" and not has_cudnn_shapes(parts)
        unknown = ["merge_mode" if guess.bidirectional else "go_backwards"]
        unknown += ["activation"] if not has_cudnn_shapes(parts) else []
        unknown += ["recurrent_activation"] if has_gates else []
        is_old = has_gates and major < 3 and not isinstance(stored, hdf5.Group)
        old = " (before Keras 2.3, gate_activation='hard_sigmoid_0.2' was)" if is_old else ""
        reason = SpecError(
            f"{where}: given its weights only, which do not show {', '.join(unknown)}; if these are Keras' defaults, "
            f"give as spec {guess!r}{old}"
        )
        yield name, Found(reason, guess, directions)


def _backward(paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """The paths of the two directions of each Bidirectional layer."""
    siblings: dict[str, list[str]] = {}
    for path in paths:
        siblings.setdefault(path.rpartition("/")[0], []).append(path)
    for parent, children in siblings.items():
        known = {*children}
        for path in children if parent else ():
            if path.startswith(f"{parent}/forward_"):
                other = path.replace(f"{parent}/forward_", f"{parent}/backward_", 1)
                if other not in known and len(known) == 2:  # a backward_layer that was given has a name of its own
                    (other,) = known - {path}
                if other in known:
                    yield path, other


def _cells(group: hdf5.Group, path: str) -> Iterator[tuple[str, list[StoredArray]]]:
    """The arrays of all groups of Keras 3 that have those of a cell, by the names of the layers."""
    if "cell" in group.groups and len(arrays_of(group)) > 1:
        yield path, arrays_of(group)
    names, taken = {key: key for key in group.groups}, {*group.groups}
    for key, inner in group.groups.items():
        saved = saved_name(inner)
        if saved is not None and saved not in taken and not key.endswith("ward_layer"):
            names[key] = saved
            taken.add(saved)
    for key, inner in group.groups.items():
        parts = [part for part in (path, "" if key in CONTAINERS else names[key]) if part]
        yield from _cells(inner, "/".join(parts))


def _named(stored: Stored) -> dict[str, list[StoredArray]]:
    """The arrays of an ``.h5`` file that have a recurrent kernel beside them, by the names of their layers."""
    found: dict[str, list[StoredArray]] = {}
    recurrent: set[str] = set()
    for layer, named in stored.items() if isinstance(stored, dict) else ():
        for key, array in named:
            match = ROLE.fullmatch(key)
            if match is not None:
                parts = [part for part in match["path"].split("/") if part]
                parts = parts[parts.index(layer) :] if layer in parts else [layer, *parts]
                if len(parts) > 1 and re.fullmatch(r"(.*_)?cell(_\d+)?", parts[-1]):
                    parts.pop()
                path = "/".join(parts)
                found.setdefault(path, []).append(array)
                if match["role"].startswith(("/recurrent", "_U")):
                    recurrent.add(path)
    return {path: arrays for path, arrays in found.items() if path in recurrent}
