"""Stacks: several layers as one snapshot, and one snapshot as its layers.

Keras, Flax and ONNX hold a stack as separate layers; torch, MindSpore and unirnn as one.
"""

import re
from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from unirnn.errors import SpecError
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import Spec

__all__ = ["stack", "unstack"]


def stack(layers: Sequence[Snapshot]) -> Snapshot:
    """Put layers on top of each other: several snapshots as one.

    Parameters
    ----------
    layers
        The lowest first.

    Raises
    ------
    SpecError
        If they don't fit: the input of each is the output of the one below, and all else is the same, but for dropout,
        which is the first's.

    Examples
    --------
    >>> import unirnn
    >>> first, second = (unirnn.snapshot(unirnn.GRUSpec(n, 4).build("numpy", seed=0)) for n in (3, 4))
    >>> stack([first, second])
    <snapshot of GRUSpec(3, 4, num_layers=2), 228 numbers, float32>
    """
    if not layers:
        raise SpecError("layers: given none, expected at least one")
    first = layers[0].spec
    width = first.num_directions * first.output_size
    weights: dict[str, NDArray[Any]] = {}
    below = 0
    for position, layer in enumerate(layers):
        expected = {**first.to_dict(), "input_size": width if position else first.input_size}
        free = {"num_layers": None, "dropout": None}
        if {**layer.spec.to_dict(), **free} != {**expected, **free}:
            raise SpecError(
                f"layers[{position}]: given {layer.spec!r}, expected one on {first!r}, whose output has size {width}"
            )
        for name, array in layer.weights.items():
            weights[_moved(name, below)] = array
        below += layer.spec.num_layers
    return Snapshot(Spec.from_dict({**first.to_dict(), "num_layers": below}), weights)


def unstack(snapshot: Snapshot) -> list[Snapshot]:
    """A snapshot's layers, the lowest first, each a snapshot of its own; without dropout, which is between layers.

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
        one = Spec.from_dict({**spec.to_dict(), "input_size": input_size, "num_layers": 1, "dropout": 0.0})
        found.append(Snapshot(one, {name: snapshot.weights[_moved(name, layer)] for name in one.weight_shapes()}))
    return found


def _moved(name: str, layers: int) -> str:
    """A weight's name so many layers further up."""
    return re.sub(r"_l(\d+)", lambda match: f"_l{int(match[1]) + layers}", name)
