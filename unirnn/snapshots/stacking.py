"""Joining the snapshots of several layers into one, and splitting one into its layers.

In torch, MindSpore and unirnn, a stack of layers is one object. In Keras, Flax and ONNX, each layer is its own.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from unirnn.contract.weights import Weights
from unirnn.errors import SpecError
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import RecurrentSpec

__all__ = ["stack", "unstack"]


def stack(layers: Sequence[Snapshot]) -> Snapshot:
    """Join the snapshots of layers on top of each other into one.

    Parameters
    ----------
    layers
        The lowest layer first; each may have several layers itself.

    Raises
    ------
    SpecError
        If the layers do not fit: the input of each must have the size of the output below, and all else must be equal,
        except dropout, which is taken from the first.

    Examples
    --------
    >>> import unirnn
    >>> first, second = (unirnn.snapshot(unirnn.GRUSpec(n, 4).build("numpy", seed=0)) for n in (3, 4))
    >>> stack([first, second])
    <snapshot of GRUSpec(3, 4, num_layers=2), 228 numbers, float32>
    """
    if not layers:
        raise SpecError("layers: given none, expected at least one")
    for position, layer in enumerate(layers):
        if not isinstance(layer.spec, RecurrentSpec):
            raise SpecError(f"layers[{position}]: given {layer.spec!r}, expected a recurrent layer")
    first = layers[0].spec
    width = first.num_directions * first.output_size
    weights: Weights = {}
    below = 0
    for position, layer in enumerate(layers):
        expected = {**first.to_dict(), "input_size": width if position else first.input_size}
        ignored = {"num_layers": None, "dropout": None}
        if {**layer.spec.to_dict(), **ignored} != {**expected, **ignored}:
            raise SpecError(
                f"layers[{position}]: given {layer.spec!r}, expected one on {first!r}, whose output has size {width}"
            )
        weights |= {_renumber(name, below): array for name, array in layer.weights.items()}
        below += layer.spec.num_layers
    assumed = tuple(dict.fromkeys(name for layer in layers for name in layer.assumed))
    return Snapshot(replace(first, num_layers=below), weights, assumed)


def unstack(snapshot: Snapshot) -> list[Snapshot]:
    """Split a snapshot into one for each layer, the lowest first. They have no dropout, since that is between layers.

    Examples
    --------
    >>> import unirnn
    >>> [layer.spec for layer in unstack(unirnn.snapshot(unirnn.GRUSpec(3, 4, 2).build("numpy", seed=0)))]
    [GRUSpec(3, 4), GRUSpec(4, 4)]
    """
    spec = snapshot.spec
    found = []
    for layer in range(spec.num_layers):
        input_size = spec.num_directions * spec.output_size if layer else spec.input_size
        one = replace(spec, input_size=input_size, num_layers=1, dropout=0.0)
        weights = {name: snapshot.weights[_renumber(name, layer)] for name in one.weight_shapes()}
        found.append(Snapshot(one, weights, snapshot.assumed))
    return found


def _renumber(name: str, layers: int) -> str:
    """The name of a weight so many layers further up."""
    return re.sub(r"_l(\d+)", lambda match: f"_l{int(match[1]) + layers}", name)
