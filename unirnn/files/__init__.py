"""Files: saving snapshots, and reading layers and models from files that anyone wrote.

The suffix of a file says what it is. unirnn writes ``.safetensors``, ``.npz`` and ``.onnx``. Their metadata, in
``.npz`` one more member, has an entry ``unirnn``, which holds the version of the format and the spec (`Spec.to_dict`)
as JSON. Saving the same snapshot twice gives the same bytes. unirnn reads these files, and it reads the files of other
programs: state dicts in ``.safetensors``, ``.npz``, ``.pt``, ``.pth`` and ``.ckpt``, and nodes in ``.onnx``. In those
it finds recurrent layers by itself, and the weights of a model whose spec is given.

Files are not trusted. Reading one executes nothing from it. Whatever it claims (names, shapes, sizes, a spec) is
checked against the bytes that are there before an array is made, so no claim makes unirnn allocate more than the file
can back. A compressed ``.npz`` may expand to 64 MiB, or to 100 times its size. From ``.safetensors`` and ``.npz`` only
the arrays of the requested layer or model are read; other files are read whole.

There is one module for each format, with a function ``read``, and ``encode`` if unirnn writes the format (ONNX has one
for each direction). PyTorch's and MindSpore's checkpoints are read by their backends.
"""

from ._contents import Contents, Layer, floats
from ._header import FORMAT
from .reading import READ, contents, load
from .writing import WRITTEN, save

__all__ = ["FORMAT", "READ", "WRITTEN", "Contents", "Layer", "contents", "floats", "load", "save"]
