"""The two strings in a file's metadata that make it a snapshot: the format's version, and the spec as JSON."""

import re
from collections.abc import Mapping
from typing import Any

from unirnn.errors import FileError
from unirnn.specs import Spec

__all__ = ["FORMAT", "metadata", "spec_of", "unique"]

FORMAT = 1
"""The version of the format that is written, and the newest that is read."""


def metadata(spec: Spec) -> dict[str, str]:
    """The two strings that make a file a snapshot's.

    Examples
    --------
    >>> from unirnn import LSTMSpec
    >>> metadata(LSTMSpec(3, 4))["unirnn.format"]
    '1'
    """
    import json

    return {"unirnn.format": str(FORMAT), "unirnn.spec": json.dumps(spec.to_dict())}


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
    import json

    version, text = metadata.get("unirnn.format"), metadata.get("unirnn.spec")
    if version is None and text is None:
        return None
    if version is None or not re.fullmatch(r"[1-9]\d{0,8}", version, re.ASCII):
        raise FileError(f"unirnn.format: given {_shown(version)}, expected a version such as '{FORMAT}'")
    if int(version) > FORMAT:
        raise FileError(
            f"unirnn.format: given {version}, a newer format than {FORMAT}, which this unirnn reads; "
            "to upgrade it: python -m pip install --upgrade unirnn"
        )
    try:
        if text is None:
            raise ValueError("it is missing")
        if len(text) > _LONGEST_SPEC:
            raise ValueError(f"expected at most {_LONGEST_SPEC} characters")
        values = json.loads(text, object_pairs_hook=unique, parse_constant=_no_constant)
        if not isinstance(values, dict):
            raise ValueError(f"given {type(values).__name__}, expected an object")
        spec: Spec = Spec.from_dict(values)
        unknown = [name for name in values if name not in spec.to_dict()]
        if unknown:
            raise ValueError(f"unknown {', '.join(unknown)}")
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise FileError(f"unirnn.spec: given {_shown(text)}, expected the JSON of a spec: {error}") from error
    return spec


_LONGEST_SPEC = 10_000


def _shown(text: str | None) -> str:
    return "none" if text is None else repr(text if len(text) <= 200 else text[:200] + "...")


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{name!r} stands twice")
        found[name] = value
    return found


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
