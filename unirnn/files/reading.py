"""Reading files of anybody's without trusting them; see `unirnn.files`."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from unirnn import registry
from unirnn.errors import FileError, SpecError, UnirnnError
from unirnn.snapshots import Snapshot
from unirnn.specs import Spec

from .layers import Contents, of_state_dict, stored
from .paths import Path, plain, suffix_of

__all__ = ["READ", "contents", "load"]

READ = (".safetensors", ".onnx", ".pt", ".pth", ".ckpt", ".npz")
"""The suffixes that `load` knows."""


def load(path: Path, *, prefix: str | None = None, spec: Spec | None = None) -> Snapshot:
    """Read a snapshot, or a recurrent layer of somebody else's file; nothing in the file is executed.

    Parameters
    ----------
    path
        A file whose suffix is one of `READ`: ``.safetensors``, ``.onnx``, ``.npz``, PyTorch's ``.pt`` and ``.pth``
        (of tensors in nested mappings, whose keys are joined by dots), or MindSpore's ``.ckpt``, or Lightning's.
        bfloat16 becomes float32.
    prefix
        Of a file of several layers, what the layer's names begin with, or in ``.onnx`` the name of its first node.
    spec
        What the layer is, where the file does not say, or says less: a state dict has neither ``batch_first`` nor a
        ``nonlinearity``.

    Raises
    ------
    FileError
        If the file is truncated, altered, hostile, of a newer format, or has no recurrent layer in it, or one of which
        names and shapes do not tell enough (whether an RNN is tanh or relu): then give ``spec``.
    ArgumentError, ShapeError, SpecError
        If there are several layers and no prefix, none under the prefix, or if the given spec is not the layer's.
    MissingBackendError
        If what reads such a file is not installed.
    OSError
        If there is no such file, or it may not be read.

    Examples
    --------
    >>> import tempfile, numpy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     numpy.savez(f"{folder}/a.npz", **{"rnn.weight_ih_l0": [[1.0]] * 3, "rnn.weight_hh_l0": [[0.5]] * 3})
    ...     load(f"{folder}/a.npz")
    <snapshot of GRUSpec(1, 1, bias=False), 6 numbers, float64>
    """
    path = plain(path)
    found = contents(path)
    with _reading(path, spec):
        return found.read(prefix, spec)


def contents(path: Path) -> Contents:
    """What a file says that it holds, checked against its size; see `load`, which raises the same errors.

    Examples
    --------
    >>> import tempfile, numpy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     numpy.savez(f"{folder}/a.npz", **{"rnn.weight_ih_l0": [[1.0]] * 3, "rnn.weight_hh_l0": [[0.5]] * 3})
    ...     {prefix: layer.spec for prefix, layer in contents(f"{folder}/a.npz").layers.items()}
    {'rnn.': GRUSpec(1, 1, bias=False)}
    """
    path = plain(path)
    suffix = suffix_of(path, READ, "read")
    with open(path, "rb") as file:  # the system's error, if it is not there, is a folder, or may not be read
        first = file.read(2)
    if suffix in (".pt", ".pth", ".ckpt"):
        # Lightning's .ckpt is torch's zip; MindSpore's is a protobuf message, which can't begin like this.
        name = "mindspore" if suffix == ".ckpt" and first != b"PK" else "torch"
        room: Any = registry.load(name)

        def read(path: str) -> Contents:
            return of_state_dict(name, {key: stored(array) for key, array in room.read_file(path).items()})

    else:
        kinds = {".safetensors": "safetensors_files", ".npz": "npz_files", ".onnx": "onnx_files"}
        read = import_module(f"{__package__}.{kinds[suffix]}").read
    with _reading(path):
        return read(path)


@contextmanager
def _reading(path: str, spec: Spec | None = None) -> Iterator[None]:
    """Whatever a parser raises over a file, as an error that names the file."""
    try:
        yield
    except (ImportError, UnirnnError) as error:
        if isinstance(error, ImportError):
            raise
        # No spec was given that could be wrong: what the file says of itself is.
        kind = FileError if spec is None and isinstance(error, SpecError) else type(error)
        raise kind(f"{path}: {error}") from error
    except Exception as error:  # of four parsers, each with exceptions of its own
        reason = str(error).partition("\n")[0]
        raise FileError(f"{path}: truncated, altered or no such file: {type(error).__name__}: {reason}") from error
