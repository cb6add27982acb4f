"""Reading ``.onnx``; see `unirnn.files`, and `unirnn.files.onnx_reader` for what is read."""

from unirnn.files import onnx_reader as onnx_nodes
from unirnn.files.contents import Contents, Layer
from unirnn.files.header import FORMAT
from unirnn.snapshots.snapshot import Snapshot

__all__ = ["read"]


def read(path: str) -> Contents:
    """What the file holds."""
    with open(path, "rb") as file:
        found = onnx_nodes.layers(onnx_nodes.loads(file.read()))
    layers: dict[str, Layer] = {}
    for name, layer in found.items():
        if isinstance(layer, Snapshot):
            weights = {key: (array.shape, array.dtype.name) for key, array in layer.weights.items()}
            layers[name] = Layer(layer.spec, weights)
        else:
            layers[name] = Layer(layer, {})
    version = FORMAT if "" in found else None
    return Contents("onnx", version, layers, lambda prefix, spec: onnx_nodes.choose(found, prefix, spec))
