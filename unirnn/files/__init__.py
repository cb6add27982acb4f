"""Files: snapshots written whole or not at all, and files of anybody's read without being trusted.

A suffix says what a file is. unirnn writes ``.safetensors`` and ``.onnx``, with an entry ``unirnn`` in their metadata,
the JSON of the format's version and of `Spec.to_dict`. It reads these again, and recurrent layers in the files of
others: state dicts in ``.safetensors``, ``.npz``, ``.pt``, ``.pth`` and ``.ckpt``, nodes in ``.onnx``. The same
snapshot is written as the same bytes.

Reading executes nothing from a file. What a file claims (names, shapes, sizes, a spec) is held against the bytes that
are there before an array is made, so that no claim allocates more than the file can back; a compressed ``.npz`` may
unfold to 64 MiB, or to 100 times its size. Of ``.safetensors`` and ``.npz`` only the arrays of the layer that is asked
for are read; the others are read whole.
"""

from unirnn.files.contents import Contents, Layer, floats
from unirnn.files.header import FORMAT, metadata, spec_of
from unirnn.files.reading import READ, contents, load
from unirnn.files.writing import WRITTEN, save

__all__ = [
    "FORMAT",
    "READ",
    "WRITTEN",
    "Contents",
    "Layer",
    "contents",
    "floats",
    "load",
    "metadata",
    "save",
    "spec_of",
]
