"""Find and load the compiled kernels, the library that is built from ``csrc``.

Without the library, NumPy computes. Why it is missing is written in a file that the build leaves in its place.
"""

import ctypes
import functools
import logging
import sys
import threading
from pathlib import Path

__all__ = ["load", "why_not"]

_FOLDER = Path(__file__).parent
_NAME = "libunirnn" + {"darwin": ".dylib", "win32": ".dll"}.get(sys.platform, ".so")
_REASON = "libunirnn.txt"
_INTERFACE = 2
"""``UNIRNN_INTERFACE`` of the ``csrc/unirnn.h`` that `unirnn.kernels.compiled` is written for."""

_lock = threading.Lock()


def load() -> ctypes.CDLL | None:
    """The compiled kernels, with the functions of ``csrc/unirnn.h``; or None if they can't be used.

    The first call that returns None logs the reason, as a warning.
    """
    library, reason = _open()
    if reason:
        _warn(reason)
    return library


def why_not() -> str | None:
    """Why there are no compiled kernels, in one sentence; or None if there are."""
    return _open()[1]


def _open() -> tuple[ctypes.CDLL | None, str | None]:
    with _lock:  # the cache alone would let two threads load the library at the same time
        return _open_once()


@functools.cache
def _open_once() -> tuple[ctypes.CDLL | None, str | None]:
    """The library, or why there is none."""
    path, written = _FOLDER / _NAME, _FOLDER / _REASON
    try:
        if path.exists():
            library = ctypes.CDLL(str(path))
            if not hasattr(library, "unirnn_interface") or library.unirnn_interface() != _INTERFACE:
                return None, f"{path} is of another version; install unirnn again to build it"
            _declare(library)
            return library, None
        if written.exists():
            return None, written.read_text(encoding="utf-8").strip()
    except Exception as error:  # not a library for this system, or not readable
        return None, f"{path} can't be loaded: {type(error).__name__}: {error}"
    return None, f"{path} is missing; install unirnn again to build it"


def _declare(library: ctypes.CDLL) -> None:
    """Tell ctypes the types of the functions. Pointers to structs are void pointers here."""
    pointer, number = ctypes.c_void_p, ctypes.c_int
    library.unirnn_forward.argtypes, library.unirnn_forward.restype = [pointer], number
    library.unirnn_backward.argtypes, library.unirnn_backward.restype = [pointer, pointer], number
    library.unirnn_kept.argtypes, library.unirnn_kept.restype = [number], number
    library.unirnn_isa.argtypes, library.unirnn_isa.restype = [], ctypes.c_char_p
    library.unirnn_isas.argtypes, library.unirnn_isas.restype = [], ctypes.c_char_p
    library.unirnn_peak.argtypes, library.unirnn_peak.restype = [number], ctypes.c_double


@functools.cache
def _warn(reason: str) -> None:
    logging.getLogger("unirnn").warning("unirnn computes with NumPy, which is slower: %s", reason)
