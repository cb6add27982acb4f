"""Writing files, whole or not at all; see `unirnn.files`."""

import os
import stat

import numpy as np

from unirnn.files.header import metadata
from unirnn.files.paths import Path, plain, suffix_of
from unirnn.snapshots.snapshot import Snapshot

__all__ = ["WRITTEN", "save"]

WRITTEN = (".safetensors", ".onnx")
"""The suffixes that `save` knows."""


def save(snapshot: Snapshot, path: Path) -> None:
    """Write a snapshot to a file, whole or not at all.

    The file is written under another name in the same folder and renamed once it is on the disk: whatever stops this
    half-way, a full disk or the end of the process, the file is as it was. One that is there keeps its permissions, and
    of a symbolic link the target is replaced. A process that is killed meanwhile may leave a file ``.unirnn-*.tmp``
    beside it, which may be deleted.

    Parameters
    ----------
    snapshot
        What to write.
    path
        Where to; its suffix is one of `WRITTEN`.

    Raises
    ------
    ArgumentError
        If it is another suffix.
    LimitError
        If the format can't hold the layer.
    MissingBackendError
        If what writes such a file is not installed.
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
    path = plain(path)
    suffix = suffix_of(path, WRITTEN, "written")
    if suffix == ".onnx":
        from unirnn.files import onnx_writer as onnx_graph

        data: bytes = onnx_graph.emit(snapshot.spec, snapshot.weights).SerializeToString(deterministic=True)
    else:
        import safetensors.numpy

        # In C order and little-endian: safetensors writes the bytes as they lie.
        arrays = {
            name: np.ascontiguousarray(array, array.dtype.newbyteorder("<")) for name, array in snapshot.weights.items()
        }
        data = safetensors.numpy.save(arrays, metadata(snapshot.spec))
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
        if isinstance(error, OSError):  # who reads it knows the file, not the temporary one
            raise OSError(error.errno, error.strerror, path) from error
        raise


def _mode(target: str) -> int | None:
    """The permissions of a file that is there; the error of `open` if it may not be written."""
    try:
        with open(target, "r+b") as existing:
            return stat.S_IMODE(os.fstat(existing.fileno()).st_mode)
    except FileNotFoundError:
        return None
