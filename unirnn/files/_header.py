"""The entry ``unirnn`` in the metadata of a snapshot's file: the version of the format and the spec, as JSON."""

import itertools
import json
from collections.abc import Mapping
from typing import Any

from unirnn.errors import FileError, LimitError
from unirnn.specs import Model, Spec

__all__ = ["FORMAT", "reject_duplicates", "spec_from_metadata", "spec_to_metadata"]

FORMAT = 2
"""The version of the format that is written, and the newest that is read. Version 1 says ``cell`` for ``kind``."""

_LONGEST = 200_000  # characters: a model of a thousand layers
_DEEPEST = 64  # brackets: layers within thirty layers


def spec_to_metadata(spec: Spec) -> dict[str, str]:
    """The metadata of a snapshot's file.

    There is only one entry: safetensors writes several in any order, and the same snapshot should give the same bytes.
    There is none for a `unirnn.Model`, which is code: its file is a state dict, read by ``load(path, spec=...)``.

    Raises
    ------
    LimitError
        If the spec is so long, or so deeply nested, that it would not be read.

    Examples
    --------
    >>> from unirnn import RNNSpec
    >>> spec_to_metadata(RNNSpec(3, 4))["unirnn"][:50]
    '{"format": 2, "spec": {"kind": "RNN", "input_size"'
    """
    if isinstance(spec, Model):
        return {}
    text = json.dumps({"format": FORMAT, "spec": spec.to_dict()})
    reason = _unread_reason(text)
    if reason is not None:
        raise LimitError(f"spec: its JSON is too large for a file: {reason}")
    return {"unirnn": text}


def spec_from_metadata(metadata: Mapping[str, str]) -> Spec | None:
    """The spec in a file's metadata; None if unirnn did not write the file.

    Raises
    ------
    FileError
        If the format is newer, or the entry was altered.

    Examples
    --------
    >>> from unirnn import GRUSpec
    >>> spec_from_metadata(spec_to_metadata(GRUSpec(3, 4)))
    GRUSpec(3, 4)
    """
    text = metadata.get("unirnn")
    if text is None:
        return None
    try:
        reason = _unread_reason(text)
        if reason is not None:
            raise ValueError(reason)
        values = json.loads(text, object_pairs_hook=reject_duplicates, parse_constant=_reject_constant)
        version = values.get("format") if isinstance(values, dict) else None
        if type(version) is not int or version < 1:
            raise ValueError(f"format: given {version!r}, expected a version such as {FORMAT}")
        if version > FORMAT:
            raise FileError(
                f"unirnn: given format {version}, newer than {FORMAT}, which this unirnn reads; "
                "read it with a newer version of unirnn"
            )
        if values.keys() != {"format", "spec"} or not isinstance(values["spec"], dict):
            raise ValueError("expected a format and a spec")
        given = values["spec"]
        if version == 1:
            given["kind"] = given.pop("cell", None)
        spec: Spec = Spec.from_dict(given)
        unknown = _unknown(given, spec.to_dict())
        if unknown:
            raise ValueError(f"unknown {', '.join(unknown)}")
        spec.check_complete()
    except FileError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        shown = text if len(text) <= 200 else text[:200] + "..."
        raise FileError(f"unirnn: given {shown!r}, expected the JSON of a format and a spec: {error}") from error
    return spec


def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs of names and values; a FileError if a name occurs twice."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise FileError(f"{name!r} occurs twice")
        found[name] = value
    return found


def _unread_reason(text: str) -> str | None:
    """Why the JSON is not read, before anything is made of it; None if it is."""
    if len(text) > _LONGEST:
        return f"expected at most {_LONGEST} characters"
    steps = ((character in "{[") - (character in "}]") for character in text)
    if max(itertools.accumulate(steps), default=0) > _DEEPEST:
        return f"expected at most {_DEEPEST} brackets within each other"
    return None


def _unknown(given: Mapping[str, Any], written: Mapping[str, Any]) -> list[str]:
    """The names that `Spec.to_dict` does not write, such as other spellings of an argument."""
    found = [name for name in given if name not in written]
    for name, value in given.items():
        if isinstance(value, Mapping) and name in written:
            found += _unknown(value, written[name])
    return found


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
