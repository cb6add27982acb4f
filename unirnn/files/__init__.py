"""Files: saving snapshots, and reading layers and models from files that anyone wrote.

unirnn writes ``.safetensors``, ``.npz``, ``.onnx``, PyTorch's ``.pt`` and ``.pth``, and MindSpore's ``.ckpt``; the
suffix says which. Their metadata, in ``.npz`` and ``.pt`` a part of their own, has an entry ``unirnn``, which holds the
version of the format and the spec (`Spec.to_dict`) as JSON. Saving the same snapshot twice gives the same bytes. unirnn
reads these files, and it reads the files of other programs: arrays by name in ``.safetensors``, ``.npz`` and the
checkpoints of PyTorch and MindSpore, nodes in ``.onnx``, and the layers of Keras' files. In those it finds recurrent
layers by itself, and the weights of a model whose spec is given. The content of a file, not its suffix, says what it
is.

Files are not trusted. Reading one executes nothing from it, and imports nothing that it names. Whatever it claims
(names, shapes, sizes, a spec) is checked against the bytes that are there before an array is made, so no claim makes
unirnn allocate more than the file can back. A compressed ``.npz`` may expand to 64 MiB, or to 100 times its size. The
weights that are read from a file of PyTorch may take 16 MiB, or 4 times its size, since several may share their memory.
From ``.safetensors``, ``.npz`` and files of PyTorch only the arrays of the requested layer or model are read; other
files are read whole.

There is one module for each format, with a function ``read``, and ``encode`` if unirnn writes the format (ONNX has one
for each direction). PyTorch's checkpoints are written by its backend, and
MindSpore's are written and read by its.
"""

from ._contents import Choice, Contents, Layer, floats
from ._formats import FORMATS
from ._header import FORMAT
from .reading import contents, load
from .writing import WRITTEN, save

__all__ = ["FORMAT", "FORMATS", "WRITTEN", "Choice", "Contents", "Layer", "contents", "floats", "load", "save"]
