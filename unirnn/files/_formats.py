"""Recognising the format of a file by its content: a suffix may be missing or wrong, and a file no model at all."""

import errno
import os
import re
import stat
import zipfile

from unirnn.errors import ArgumentError, FileError
from unirnn.files._paths import suffix_of

__all__ = ["FORMATS", "check_format", "check_regular", "recognise"]

FORMATS = ("safetensors", "npz", "torch", "mindspore", "onnx", "keras")
"""The formats that are read, as `Contents.format` and the argument ``format`` of `load` name them."""

_SUFFIXES = {
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".onnx": "onnx",
    ".pt": "torch",
    ".pth": "torch",
    ".keras": "keras",
    ".h5": "keras",
}
"""The format to try if the content does not tell; if the file is altered, the reader says how."""

_SAFETENSORS = rb".{4}\0{4}\s*\{"
"""The length of a header, and its JSON; looked for first, since a length may look like anything else."""

_OURS = {
    "keras": rb"\x89HDF\r\n\x1a\n",
    "torch": rb"\x80[\x00-\x05]",  # a pickle
    # Both are protocol buffers. An ONNX model begins with its version, MindSpore's with a parameter and its name.
    "onnx": rb"\x08[\x02-\x7f]",
    "mindspore": rb"\x0a[\x80-\xff]{0,4}[\x00-\x7f]\x0a[\x80-\xff]?[\x00-\x7f].*?\x12[\x80-\xff]*[\x00-\x7f][\x08\x12]",
}
"""The first bytes of the formats, as patterns; zip archives are looked into instead."""

_OTHERS = {
    rb"version https://git-lfs": "a pointer of Git LFS in place of the file; fetch the file by: git lfs pull",
    rb"(?:\xef\xbb\xbf)?\s*<(?i:!doctype|html|head|body|\?xml|error)": (
        "a web page in place of the file, which is what a download without the right address or permission gives; "
        "download it again"
    ),
    rb"\x1f\x8b": "compressed by gzip; decompress it first, by: gzip -dc FILE > OUT",
    rb"BZh[1-9]": "compressed by bzip2; decompress it first, by: bzip2 -dc FILE > OUT",
    rb"\xfd7zXZ": "compressed by xz; decompress it first, by: xz -dc FILE > OUT",
    rb"\x28\xb5\x2f\xfd": "compressed by zstd; decompress it first, by: zstd -dc FILE > OUT",
    # The first two bytes of zlib's are a multiple of 31.
    rb"x[\x01\x5e\x9c\xda]": (
        "compressed by zlib, as joblib.dump does; load it by joblib.load, and save its arrays by numpy.savez"
    ),
    rb".{257}ustar": "a tar archive; unpack it, by: tar -xf, and open the file in it that holds the weights",
    rb"\x93NUMPY": "a single array of NumPy, without a name; save arrays by their names, by numpy.savez",
    rb".{4}TFL3": "a TensorFlow Lite model; open the Keras model that it was made from, saved as .keras or .h5",
    rb"GGUF": "a GGUF file, whose weights are packed for another program; open what it was made from",
    rb"lmgg": "a GGML file, whose weights are packed for another program; open what it was made from",
    rb"lCRF": "a model of CRFsuite, which has no recurrent layer",
    rb"#Parameter# /": (
        "the parameters of a DyNet model, as text; unirnn has no layers of DyNet's; load it in DyNet, which knows the "
        "order of its gates"
    ),
    # Both begin with a version and a message, whereas the second field of an ONNX model is the name of a program.
    rb"\x08\x01\x12[\x80-\xff]{0,4}[\x00-\x7f]\x0a": (
        "the graph of a TensorFlow SavedModel, without weights; load the folder in TensorFlow, and save the model as "
        ".keras or .h5"
    ),
    rb"\x08[\x02-\x0f]\x12[\x80-\xff]{0,4}[\x00-\x7f]\x0a": (
        "a Core ML model; open what it was made from, or read its weights by coremltools, and save them by numpy.savez"
    ),
    rb"\x00.{1,2}\x08[\x01-\x7f]\x1a\x02\x08": (
        "the index of a TensorFlow checkpoint; load the model in TensorFlow, and save it as .keras or .h5, or read its "
        "arrays by tf.train.load_checkpoint, and those of a cell by unirnn.snapshots.layouts.from_framework"
    ),
    rb"\x0a[\x03-\x08]\d+\.\d+": "a MindIR graph of MindSpore; save its parameters by mindspore.save_checkpoint",
    rb"\x0a[\x80-\xff]{0,4}[\x00-\x7f]\x0a[\x00-\x7f][ -~]+\x12[\x00-\x7f][A-Za-z]{3}": (
        "a frozen graph of TensorFlow; save the Keras model that it was made from as .keras or .h5"
    ),
}
"""The first bytes of other files that people take for models, and what to do about them."""

_KINDS = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISSOCK: "a socket",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
}


def check_regular(path: str) -> None:
    """Refuse anything but a regular file, such as a pipe, which may never end; links are followed.

    Raises
    ------
    FileError
        If it is something else.
    OSError
        If there is nothing, or a folder.
    """
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        known = sorted(name for name in os.listdir(path) if suffix_of(name) in (*_SUFFIXES, ".ckpt", ".bin", ".pb"))
        holds = f", expected a file, such as one of those in it: {', '.join(known[:4])}" if known else ""
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR) + holds, path)
    for is_kind, words in _KINDS.items():
        if is_kind(mode):
            raise FileError(f"{path}: {words}, expected a regular file")


def recognise(path: str) -> str:
    """The format of a regular file, one of `FORMATS`.

    Raises
    ------
    FileError
        If it is none of them; the message says what it is, if that can be seen, and what to do.
    OSError
        If it can't be read.
    """
    with open(path, "rb") as file:
        first = file.read(512)
    if not first:
        raise FileError("the file is empty")
    suffix = suffix_of(path)
    if re.match(_SAFETENSORS, first, re.DOTALL):
        return "safetensors"
    if first.startswith(b"PK"):
        return _recognise_zip(path, suffix)
    for pattern, words in _OTHERS.items():
        if re.match(pattern, first, re.DOTALL):
            raise FileError(f"it is {words}")
    for name, pattern in _OURS.items():
        if re.match(pattern, first, re.DOTALL):
            return name
    if suffix in _SUFFIXES:
        return _SUFFIXES[suffix]
    if re.search(r"\.data-\d{5}-of-\d{5}$", path):
        raise FileError(
            "it is a part of a TensorFlow checkpoint, without names; load the model in TensorFlow, and save it as "
            ".keras or .h5"
        )
    text = first.decode("latin-1")
    begins = repr(text[:40]) if text.isascii() and text.replace("\n", "").isprintable() else repr(first[:8])
    raise FileError(
        f"it is of no format that is read ({', '.join(FORMATS)}): it begins with {begins}; if it is one of them, "
        "give format="
    )


def _recognise_zip(path: str, suffix: str) -> str:
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    if any(re.fullmatch(r"(?:[^/]*/)?data\.pkl", name) for name in names):
        return "torch"
    if {"config.json", "model.weights.h5"} <= {*names}:
        return "keras"
    if any(name.endswith(".npy") for name in names) or (not names and suffix == ".npz"):
        return "npz"
    if any(name.endswith(("serialized_exported_program.json", "archive_format")) for name in names):
        raise FileError(
            "it is a program of torch.export; load it by torch.export.load, and save its state_dict by torch.save"
        )
    if any(name.endswith(".data/extern_modules") for name in names):
        raise FileError(
            "it is a package of torch.package; load its module by torch.package.PackageImporter(FILE).load_pickle, and "
            "save the module's state_dict by torch.save"
        )
    inside = next((name for name in names if suffix_of(name) in (*_SUFFIXES, ".ckpt", ".bin")), None)
    more = f"; unpack it and open {inside!r}" if inside else f" of {', '.join(map(repr, names[:4]))}"
    raise FileError(f"it is a zip archive, but none of PyTorch, NumPy or Keras{more}")


def check_format(format: str | None) -> None:
    """Refuse the name of a format that is not one of `FORMATS`."""
    if format is not None and format not in FORMATS:
        raise ArgumentError(f"format: given {format!r}, expected one of {', '.join(map(repr, FORMATS))}")
