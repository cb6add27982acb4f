"""Checking the paths that are given to `load` and `save`."""

import os

from unirnn.errors import ArgumentError

__all__ = ["Path", "known_suffix", "path_string"]

Path = str | os.PathLike[str]


def path_string(path: Path) -> str:
    """A path as a string; an ArgumentError if it is no path."""
    try:
        return os.fsdecode(path)
    except TypeError:
        raise ArgumentError(f"path: given {path!r}, expected a str or an os.PathLike") from None


def known_suffix(path: str, known: tuple[str, ...], verb: str) -> str:
    """The suffix of a path in lower case; an ArgumentError if it is not a known one."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in known:
        raise ArgumentError(f"path: given {path!r}, expected one of the suffixes that are {verb}: {', '.join(known)}")
    return suffix
