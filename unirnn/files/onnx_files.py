"""Reading ``.onnx``; see `unirnn.files`, and `unirnn.onnx_nodes` for what is read."""

from unirnn import onnx_nodes
from unirnn.errors import FileError
from unirnn.snapshots import Snapshot

from .header import FORMAT, spec_of, unique
from .layers import Contents, Layer

__all__ = ["read"]


def read(path: str) -> Contents:
    """What the file holds."""
    with open(path, "rb") as file:
        model = onnx_nodes.loads(file.read())
    spec = spec_of(unique([(entry.key, entry.value) for entry in model.metadata_props]))
    found = onnx_nodes.layers(model)
    layers: dict[str, Layer] = {}
    for name, layer in found.items():
        if isinstance(layer, Snapshot):
            prefix = name if spec is None else ""
            weights = {key: (array.shape, array.dtype.name) for key, array in layer.weights.items()}
            layers[prefix] = Layer(layer.spec, weights)
        else:
            layers[name] = Layer(FileError(layer), {})
    version = None if spec is None or len(found) > 1 else FORMAT
    return Contents(
        "onnx", version, layers, lambda prefix, spec: onnx_nodes.read(model, prefix=prefix or None, spec=spec)
    )
