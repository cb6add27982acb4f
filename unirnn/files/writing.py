"""Saving a snapshot, so that a file is either written completely or left alone; see `unirnn.files`."""

import os
import stat
from importlib import import_module

from unirnn import registry
from unirnn.files._header import spec_to_metadata
from unirnn.files._paths import Path, known_suffix, path_string
from unirnn.snapshots.snapshot import Snapshot

__all__ = ["WRITTEN", "save"]

WRITTEN = (".safetensors", ".npz", ".onnx", ".pt", ".pth", ".ckpt")
"""The suffixes that `save` knows."""

_ENCODERS = {".safetensors": "safetensors", ".npz": "npz", ".onnx": "onnx_writer"}
"""The module with the function ``encode``, by suffix; imported when it is needed."""

_BACKENDS = {".pt": "torch", ".pth": "torch", ".ckpt": "mindspore"}
"""The backend that writes such a file, by suffix."""


def save(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot to a file, completely or not at all.

    The file is written under a temporary name in the same folder and renamed once it is on the disk. If anything stops
    this, such as a full disk or the end of the process, the old file is still there. An existing file keeps its
    permissions. If the path is a symbolic link, its target is replaced. A process that is killed meanwhile may leave
    a file ``.unirnn-*.tmp`` behind, which can be deleted.

    Parameters
    ----------
    snapshot
        The snapshot to write.
    path
        Where to write it; the suffix is one of `WRITTEN`.

    Raises
    ------
    ArgumentError
        If the suffix is another.
    LimitError
        If the format can't hold the layer or the model.
    MissingBackendError
        If the package that writes such a file is not installed.
    OSError
        If the file can't be written.

    Examples
    --------
    >>> import tempfile, unirnn
    >>> snapshot = unirnn.snapshot(unirnn.GRUSpec(3, 4).build("numpy", seed=0))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(snapshot, f"{folder}/gru.safetensors")
    ...     unirnn.load(f"{folder}/gru.safetensors") == snapshot
    True
    """
    path = path_string(path)
    suffix = known_suffix(path, WRITTEN, "written")
    if suffix in _BACKENDS:
        backend = registry.load(_BACKENDS[suffix])
        data = backend.encode_file(snapshot.spec, snapshot.weights, spec_to_metadata(snapshot.spec))
    else:
        data = import_module(f"unirnn.files.{_ENCODERS[suffix]}").encode(snapshot)
    _write(path, data)


def _write(path: str, data: bytes) -> None:
    target = os.path.realpath(path)
    temporary = os.path.join(os.path.dirname(target), f".unirnn-{os.urandom(8).hex()}.tmp")
    try:
        mode = _mode(target)
        with open(temporary, "xb") as file:
            if mode is not None:
                os.chmod(temporary, mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        if isinstance(error, OSError):  # the caller knows the path, not the temporary one
            raise OSError(error.errno, error.strerror, path) from error
        raise


def _mode(target: str) -> int | None:
    """The permissions of an existing file, None if there is none; the error of `open` if it may not be written."""
    try:
        with open(target, "r+b") as existing:
            return stat.S_IMODE(os.fstat(existing.fileno()).st_mode)
    except FileNotFoundError:
        return None
