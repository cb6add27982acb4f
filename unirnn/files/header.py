"""The entry in a file's metadata that makes it a snapshot: the format's version and the spec, as JSON."""

import json
from collections.abc import Mapping
from typing import Any

from unirnn.errors import FileError
from unirnn.specs import Spec

__all__ = ["FORMAT", "metadata", "spec_of", "unique"]

FORMAT = 2
"""The version of the format that is written, and the newest that is read. In version 1, ``kind`` was ``cell``."""


def metadata(spec: Spec) -> dict[str, str]:
    """What makes a file a snapshot's.

    It is one entry, since safetensors writes several in any order, and the same snapshot shall be the same bytes.

    Examples
    --------
    >>> from unirnn import RNNSpec
    >>> metadata(RNNSpec(3, 4))["unirnn"][:50]
    '{"format": 2, "spec": {"kind": "RNN", "input_size"'
    """
    return {"unirnn": json.dumps({"format": FORMAT, "spec": spec.to_dict()})}


def spec_of(metadata: Mapping[str, str]) -> Spec | None:
    """The spec that a file's metadata holds; None if they are not unirnn's.

    Raises
    ------
    FileError
        If they are of a newer format, or altered.

    Examples
    --------
    >>> from unirnn import GRUSpec
    >>> spec_of(metadata(GRUSpec(3, 4)))
    GRUSpec(3, 4)
    """
    text = metadata.get("unirnn")
    if text is None:
        return None
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"expected at most {_LONGEST} characters")
        values = json.loads(text, object_pairs_hook=unique, parse_constant=_no_constant)
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
        given = {"kind" if (version, name) == (1, "cell") else name: value for name, value in values["spec"].items()}
        spec: Spec = Spec.from_dict(given)
        unknown = [name for name in given if name not in spec.to_dict()]
        if unknown:
            raise ValueError(f"unknown {', '.join(unknown)}")
    except FileError:
        raise
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        shown = text if len(text) <= 200 else text[:200] + "..."
        raise FileError(f"unirnn: given {shown!r}, expected the JSON of a format and a spec: {error}") from error
    return spec


_LONGEST = 10_000


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of pairs whose names are all different; a FileError if they are not."""
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise FileError(f"{name!r} stands twice")
        found[name] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
