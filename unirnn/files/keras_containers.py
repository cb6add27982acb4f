"""The containers of Keras' files, and the arrays in them; see `unirnn.files.keras_files`."""

import io
import json
import re
import zipfile
from collections.abc import Iterable
from typing import Any, TypeAlias

from unirnn.errors import FileError
from unirnn.files import hdf5
from unirnn.files._contents import StoredArray, most_bytes
from unirnn.files._header import reject_duplicates

__all__ = ["CONTAINERS", "ROLE", "Named", "Stored", "arrays_of", "open_container", "saved_name"]

_LONGEST_JSON = 1 << 20  # characters, or as many as the file has

CONTAINERS = ("layers", "_layer_checkpoint_dependencies")  # the group of a model's layers; the second in Keras 2.12
ROLE = re.compile(
    r"(?P<path>.*?)(?P<role>/(?:recurrent_)?kernel|/bias|_[WUb](?:_[a-z])?)(?::0)?", re.DOTALL
)  # how the name of an array ends, the second in Keras 1

Named = list[tuple[str, StoredArray]]
"""The arrays of a layer in an ``.h5`` file, by their names, in the order of the layer's weights."""
Stored: TypeAlias = hdf5.Group | dict[str, Named] | Named | None
"""Where arrays are: a group of Keras 3; of an ``.h5`` file those of a model, by its layers, or those of one layer."""


def open_container(data: bytes) -> tuple[Any, int, Stored]:
    """The configuration, None if there is none, the first number of Keras' version, and the arrays of a file."""
    size = len(data)
    config, version = None, None
    if data.startswith(b"PK"):
        config, version, data = _open_archive(data)
    root = hdf5.parse(data, size)
    group = root.groups.get("model_weights", root)
    if config is None and "model_config" in root.attributes:
        config = _json(_text(root.attributes["model_config"]) or "", size)
    version = version or _text(root.attributes.get("keras_version")) or _text(group.attributes.get("keras_version"))
    is_h5 = not root.attributes.keys().isdisjoint(("layer_names", "layer_names0")) or group is not root
    return config, _major(version), _by_layer(group) if is_h5 else root


def arrays_of(stored: Stored) -> list[StoredArray]:
    """The arrays of a layer in one direction, in Keras' order."""
    if not isinstance(stored, hdf5.Group):
        return [array for _, array in stored] if isinstance(stored, list) else []
    variables = stored.groups.get("cell", hdf5.Group()).groups.get("vars", hdf5.Group()).datasets
    return [variables[key] for key in sorted(variables, key=lambda key: (len(key), key))]


def saved_name(group: hdf5.Group) -> str | None:
    """The name of a layer that newer releases of Keras 3 save with its arrays."""
    return _text(group.groups.get("vars", hdf5.Group()).attributes.get("name"))


def _by_layer(group: hdf5.Group) -> dict[str, Named]:
    """The arrays of each layer in an ``.h5`` file, in the order of its weights."""
    found: dict[str, Named] = {}
    for layer in _names(group, "layer_names"):
        own = _group(group, layer.split("/"))  # a name may have slashes, as "cqt/mag"
        if own is None:
            raise FileError(f"keras: the file has no group of its layer {layer!r}")
        found[layer] = [(name, _dataset(own, name)) for name in _names(own, "weight_names")]
    return found


def _names(group: hdf5.Group, attribute: str) -> list[str]:
    """A list of names, which Keras splits into several attributes if it is long."""
    parts = [attribute] if attribute in group.attributes else []
    while not parts or (parts[-1] != attribute and parts[-1] in group.attributes):
        parts.append(f"{attribute}{len(parts)}")
    values = [group.attributes.get(part) for part in parts]
    return [str(_text(name)) for value in values if isinstance(value, list) for name in value]


def _dataset(group: hdf5.Group, path: str) -> StoredArray:
    """The dataset at a path."""
    *folders, name = path.strip("/").split("/")
    inner = _group(group, folders)
    if inner is None or name not in inner.datasets:
        raise FileError(f"keras: the file has no array {path!r}, which it lists")
    return inner.datasets[name]


def _group(group: hdf5.Group, names: Iterable[str]) -> hdf5.Group | None:
    """The group within others, by their names; None if there is none."""
    for name in names:
        if name not in group.groups:
            return None
        group = group.groups[name]
    return group


def _open_archive(data: bytes) -> tuple[Any, str, bytes]:
    """The configuration, the version of Keras, and the bytes of the HDF5 file in a ``.keras`` archive."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = reject_duplicates([(info.filename, info) for info in archive.infolist()])
        missing = [name for name in ("config.json", "metadata.json", "model.weights.h5") if name not in members]
        if missing:
            raise FileError(f"keras: the archive has no {' and no '.join(missing)}")

        def member(name: str, most: int) -> bytes:
            if members[name].file_size > most:
                raise FileError(f"{name!r} claims {members[name].file_size} bytes, more than {most}")
            with archive.open(members[name]) as file:
                return file.read(most)

        config = _json(member("config.json", max(_LONGEST_JSON, len(data))).decode(), len(data))
        metadata = _json(member("metadata.json", _LONGEST_JSON).decode(), len(data))
        version = metadata.get("keras_version") if isinstance(metadata, dict) else None
        if not isinstance(version, str):
            raise FileError("keras: the archive does not say the version of Keras")
        weights = member("model.weights.h5", most_bytes(len(data)))
    return config, version, weights


def _json(text: str, size: int) -> Any:
    """JSON in a file of some size; a FileError if it is none."""
    if len(text) > max(_LONGEST_JSON, size):
        raise FileError(f"keras: a configuration of {len(text)} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FileError(f"keras: a configuration that is no JSON: {error}") from None


def _text(value: Any) -> str | None:
    """An attribute as text; None if it is none."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else None


def _major(version: str | None) -> int:
    """The first number of Keras' version; 1 for the first releases, which do not save it."""
    match = re.match(r"\d{1,3}", version or "1")
    if match is None:
        raise FileError(f"keras: given the version {version!r}, expected one such as '3.0.0'")
    return int(match[0])
