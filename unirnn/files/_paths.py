"""Checking the paths that are given to `load` and `save`."""

import os

from unirnn.errors import ArgumentError

__all__ = ["Path", "known_suffix", "path_string", "suffix_of"]

Path = str | os.PathLike[str]


def path_string(path: Path) -> str:
    """A path as a string; an ArgumentError if it is no path, or one that no file system has."""
    try:
        text = os.fsdecode(path)
    except TypeError:
        raise ArgumentError(f"path: given {path!r}, expected a str or an os.PathLike") from None
    if "\0" in text:
        raise ArgumentError(f"path: given {text!r}, which has a NUL character, as no path may have")
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        raise ArgumentError(f"path: given {text!r}, which has characters that no file's name can have here") from None
    return text


def suffix_of(path: str) -> str:
    """The suffix of a path in lower case, with the dot; empty if there is none."""
    return os.path.splitext(path)[1].lower()


def known_suffix(path: str, known: tuple[str, ...], verb: str) -> str:
    """The suffix of a path in lower case; an ArgumentError if it is not a known one."""
    suffix = suffix_of(path)
    if suffix not in known:
        raise ArgumentError(f"path: given {path!r}, expected one of the suffixes that are {verb}: {', '.join(known)}")
    return suffix
