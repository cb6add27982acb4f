"""The entry ``unirnn`` in the metadata of a snapshot's file: the version of the format and the spec, as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from unirnn.errors import FileError
from unirnn.specs import RecurrentSpec

__all__ = ["FORMAT", "reject_duplicates", "spec_from_metadata", "spec_to_metadata"]

FORMAT = 2
"""The version of the format that is written, and the newest that is read. Version 1 says ``cell`` for ``kind``."""

_LONGEST = 10_000


def spec_to_metadata(spec: RecurrentSpec) -> dict[str, str]:
    """The metadata of a snapshot's file.

    There is only one entry: safetensors writes several in any order, and the same snapshot should give the same bytes.

    Examples
    --------
    >>> from unirnn import RNNSpec
    >>> spec_to_metadata(RNNSpec(3, 4))["unirnn"][:50]
    '{"format": 2, "spec": {"kind": "RNN", "input_size"'
    """
    return {"unirnn": json.dumps({"format": FORMAT, "spec": spec.to_dict()})}


def spec_from_metadata(metadata: Mapping[str, str]) -> RecurrentSpec | None:
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
        if len(text) > _LONGEST:
            raise ValueError(f"expected at most {_LONGEST} characters")
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
        spec = RecurrentSpec.from_dict(given)
        unknown = [name for name in given if name not in spec.to_dict()]
        if unknown:
            raise ValueError(f"unknown {', '.join(unknown)}")
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


def _reject_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")
