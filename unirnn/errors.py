"""The exceptions of unirnn, which form one tree.

Each class is also a subclass of the built-in exception that fits, so ``except ValueError`` works as one would expect.
The messages are the same on every backend. They name the argument, what was given, what was expected, and what to do.

::

    UnirnnError
    ├── ArgumentError     (TypeError)    an argument is unknown, missing, of the wrong type, or given twice
    ├── SpecError         (ValueError)   a value that no layer can have: hidden_size=0, dropout=1
    ├── ShapeError        (ValueError)   an array of the wrong rank or size
    ├── DTypeError        (TypeError)    an array of the wrong dtype, or an unknown name of a dtype
    ├── LengthError       (ValueError)   a value in seq_length below 0 or above T
    ├── DeviceError       (ValueError)   a device that is unknown, or not present on this machine
    ├── LimitError        (ValueError)   something that a backend, framework or format can't do
    ├── FileError         (ValueError)   a file that is truncated, altered, hostile, or in a newer format
    └── BackendError
        ├── UnknownBackendError   (ValueError)    no such backend
        ├── MissingBackendError   (ImportError)   known, but its framework is not installed
        └── BrokenBackendError    (ImportError)   installed, but its import fails

There is one class of warnings, `AssumptionWarning`, for what is neither given nor known.
"""

__all__ = [
    "ArgumentError",
    "AssumptionWarning",
    "BackendError",
    "BrokenBackendError",
    "DTypeError",
    "DeviceError",
    "FileError",
    "LengthError",
    "LimitError",
    "MissingBackendError",
    "ShapeError",
    "SpecError",
    "UnirnnError",
    "UnknownBackendError",
]


class UnirnnError(Exception):
    """The root of the tree."""


class ArgumentError(UnirnnError, TypeError):
    """An argument is unknown, missing, of the wrong type, or given under two spellings."""


class SpecError(UnirnnError, ValueError):
    """A spec's value is one that no layer can have."""


class ShapeError(UnirnnError, ValueError):
    """An array has the wrong rank or size."""


class DTypeError(UnirnnError, TypeError):
    """An array has the wrong dtype, or a dtype's name is unknown."""


class LengthError(UnirnnError, ValueError):
    """A value of ``seq_length`` is below 0 or above the number of time steps."""


class DeviceError(UnirnnError, ValueError):
    """A device is unknown, or not present on this machine."""


class LimitError(UnirnnError, ValueError):
    """A backend, framework or format can't do what the spec asks for, on this device or in this dtype."""


class FileError(UnirnnError, ValueError):
    """A file is not what its suffix says: it is truncated, altered, hostile, or in a newer format."""


class BackendError(UnirnnError):
    """A backend can't be used."""


class UnknownBackendError(BackendError, ValueError):
    """No backend of this name is registered."""


class MissingBackendError(BackendError, ImportError):
    """The backend is known, but its framework is not installed."""


class BrokenBackendError(BackendError, ImportError):
    """The backend is installed, but its import fails."""


class AssumptionWarning(UserWarning):
    """Something changes how a layer is called, and is neither given nor known: ``batch_first`` of a state dict."""
