"""Paths as they are given, and their suffixes."""

import os

from unirnn.errors import ArgumentError

__all__ = ["Path", "plain", "suffix_of"]

Path = str | os.PathLike[str]


def plain(path: Path) -> str:
    """A path as a string."""
    try:
        return os.fsdecode(path)
    except TypeError:
        raise ArgumentError(f"path: given {path!r}, expected a str or an os.PathLike") from None


def suffix_of(path: str, known: tuple[str, ...], verb: str) -> str:
    """A path's suffix in lower case, if it is a known one."""
    suffix = os.path.splitext(path)[1].lower()
    if suffix not in known:
        raise ArgumentError(f"path: given {path!r}, expected one of the suffixes that are {verb}: {', '.join(known)}")
    return suffix
