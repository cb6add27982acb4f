"""Reading files without trusting them; see `unirnn.files`."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module

from unirnn import registry
from unirnn.errors import ArgumentError, FileError, UnirnnError
from unirnn.files._contents import Choice, Contents, StoredArray, contents_of_arrays, warn_of_assumptions
from unirnn.files._formats import check_format, check_regular, recognise
from unirnn.files._paths import Path, path_string
from unirnn.snapshots.model_weights import Rename
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import Spec

__all__ = ["contents", "load"]

_READERS = {
    "safetensors": "safetensors",
    "npz": "npz",
    "torch": "torch_checkpoints",
    "onnx": "onnx_reader",
    "keras": "keras_files",
}
"""The module with the function ``read``, by format; imported when it is needed. MindSpore's files its backend reads."""


def load(
    path: Path,
    *,
    prefix: str | Sequence[str] | None = None,
    spec: Spec | None = None,
    rename: Rename | None = None,
    batch_first: bool | None = None,
    format: str | None = None,
) -> Snapshot:
    """Read a snapshot, or a layer or a model in a file of another program; nothing in the file is executed.

    Parameters
    ----------
    path
        A file of one of the formats `unirnn.files.FORMATS`, with any suffix. Of PyTorch: checkpoints, whole modules
        and TorchScript archives, whose tensors are named by the keys and attributes that lead to them, joined by dots.
        bfloat16 becomes float32.
    prefix
        If the file has several layers, the beginning of the layer's names; in ``.onnx``, the name of its first node.
        With a model as ``spec``, the beginning of all of its names. Of a snapshot of a model, the layer to read.
    spec
        What the layer or the model is, if the file does not say it all: a state dict has neither ``batch_first`` nor a
        ``nonlinearity``, and nothing about a model but the names and shapes of its weights.
    rename
        With a model as ``spec``: new beginnings of names by the old ones; see `unirnn.snapshot`.
    batch_first
        For a state dict without a spec: whether the layer takes `(B, T, I)`. The file does not say it, so without it
        there is a warning, and False is assumed.
    format
        The format of the file, one of `unirnn.files.FORMATS`; None if its content tells.

    Raises
    ------
    FileError
        If the file is truncated, altered, hostile, in a newer format, or of a format that is not read; or if it is no
        regular file.
    ArgumentError, ShapeError, DTypeError, SpecError
        As `unirnn.snapshot` raises them over a state dict or an ONNX model. There may be no recurrent layer, or several
        and no prefix, or none under the prefix. No spec may describe the layer, or it is not the given spec's. Or names
        and shapes do not tell whether an RNN is tanh or relu: then give ``spec``. Weights of a model may be missing, or
        arrays be left over; the message lists both. ``batch_first`` may not be what the spec or the file says.
    MissingBackendError
        If the package that reads such a file is not installed.
    OSError
        If there is no such file, or it may not be read.

    Warns
    -----
    AssumptionWarning
        If ``batch_first`` is neither given nor known.

    Examples
    --------
    >>> import tempfile, numpy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     numpy.savez(f"{folder}/a.npz", **{"rnn.weight_ih_l0": [[1.0]] * 3, "rnn.weight_hh_l0": [[0.5]] * 3})
    ...     load(f"{folder}/a.npz", batch_first=True)
    <snapshot of GRUSpec(1, 1, bias=False, batch_first=True), 6 numbers, float64>
    """
    path = path_string(path)
    choice = Choice(prefix, spec, rename, batch_first)
    found = contents(path, format=format)
    if rename is not None and found.format == "onnx":
        raise ArgumentError("rename: given with an ONNX model, which has no names of weights; leave it out")
    with _errors_name(path):
        snapshot = found.read(choice)
        choice.check_layout(snapshot.spec, "the file")
    warn_of_assumptions(snapshot)
    return snapshot


def contents(path: Path, *, format: str | None = None) -> Contents:
    """List the recurrent layers that a file says it holds, once this has been checked against its size.

    Parameters
    ----------
    path, format
        As in `load`.

    Raises
    ------
    FileError, ArgumentError, MissingBackendError, OSError
        As `load`. An error that concerns one layer is not raised, but takes the place of its spec.

    Examples
    --------
    >>> import tempfile, numpy
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     numpy.savez(f"{folder}/a.npz", **{"rnn.weight_ih_l0": [[1.0]] * 3, "rnn.weight_hh_l0": [[0.5]] * 3})
    ...     {prefix: layer.spec for prefix, layer in contents(f"{folder}/a.npz").layers.items()}
    {'rnn.': GRUSpec(1, 1, bias=False)}
    """
    path = path_string(path)
    check_format(format)
    check_regular(path)
    with open(path, "rb"):  # raises the system's error if the file may not be read
        pass
    with _errors_name(path):
        if format is None:
            format = recognise(path)
        if format in _READERS:
            found: Contents = import_module(f"unirnn.files.{_READERS[format]}").read(path)
            return found
    backend = registry.load(format)
    with _errors_name(path):
        arrays, metadata = backend.read_file(path)
        return contents_of_arrays(format, {key: StoredArray.from_array(a) for key, a in arrays.items()}, metadata)


@contextmanager
def _errors_name(path: str) -> Iterator[None]:
    """Make every error over a file name the file, and errors of parsers a FileError."""
    try:
        yield
    except ImportError:  # the parser is missing; the file is not at fault
        raise
    except UnirnnError as error:
        raise type(error)(f"{path}: {error}") from error
    except Exception as error:  # four parsers, each with its own exceptions
        reason = str(error).partition("\n")[0]
        raise FileError(f"{path}: truncated, altered or of another format: {type(error).__name__}: {reason}") from error
