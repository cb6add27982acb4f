"""Reading files of anybody's without trusting them; see `unirnn.files`."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from unirnn import registry
from unirnn.errors import FileError, UnirnnError
from unirnn.files.contents import Contents, of_state_dict, stored
from unirnn.files.paths import Path, plain, suffix_of
from unirnn.snapshots import state_dicts
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import Spec

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
        If the file is truncated, altered, hostile, or of a newer format.
    ArgumentError, ShapeError, DTypeError, SpecError
        If `unirnn.snapshot` would raise it over what is in the file, a state dict or an ONNX model: if there is no
        recurrent layer, or several and no prefix, none under the prefix, one that no spec describes, or of which names
        and shapes do not tell enough (whether an RNN is tanh or relu: then give ``spec``), or not the given spec's.
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
    state_dicts.check_types(prefix, spec)
    found = contents(path)
    with _reading(path):
        return found.read(prefix, spec)


def contents(path: Path) -> Contents:
    """What a file says that it holds, checked against its size.

    Parameters
    ----------
    path
        As in `load`.

    Raises
    ------
    FileError, ArgumentError, MissingBackendError, OSError
        As `load`; what is wrong with one layer stands in its place.

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
        kinds = {".safetensors": "safetensors", ".npz": "npz", ".onnx": "onnx"}
        read = import_module(f"{__package__}.{kinds[suffix]}").read
    with _reading(path):
        return read(path)


@contextmanager
def _reading(path: str) -> Iterator[None]:
    """Whatever a parser raises over a file, as an error that names the file."""
    try:
        yield
    except ImportError:  # of what reads it, not of the file
        raise
    except UnirnnError as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:  # of four parsers, each with exceptions of its own
        reason = str(error).partition("\n")[0]
        raise FileError(f"{path}: truncated, altered or no such file: {type(error).__name__}: {reason}") from error
