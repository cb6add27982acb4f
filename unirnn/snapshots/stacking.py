"""Joining the snapshots of several layers into one, and splitting one into its layers.

In torch, MindSpore and unirnn, a stack of layers is one object. In Keras, Flax and ONNX, each layer is its own.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from unirnn.contract.weights import Weights
from unirnn.errors import ArgumentError, SpecError
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import RecurrentSpec, Spec

__all__ = ["renumbered", "stack", "stacked_spec", "unstack"]

T = TypeVar("T")


def stack(layers: Sequence[Snapshot]) -> Snapshot:
    """Join the snapshots of layers on top of each other into one.

    Between the layers there is nothing but the dropout of the spec. If there is something else, such as a
    normalisation, the whole is a `unirnn.Sequential`.

    Parameters
    ----------
    layers
        The lowest layer first; each may have several layers itself.

    Raises
    ------
    ArgumentError
        If they are not snapshots.
    SpecError
        If the layers do not fit: the input of each must have the size of the output below, and all else must be equal,
        except dropout, which is taken from the first.

    Examples
    --------
    >>> import unirnn
    >>> first, second = (unirnn.snapshot(unirnn.GRUSpec(n, 4).build("numpy", seed=0)) for n in (3, 4))
    >>> unirnn.stack([first, second])
    <snapshot of GRUSpec(3, 4, num_layers=2), 228 numbers, float32>
    """
    for position, layer in enumerate(layers):
        if not isinstance(layer, Snapshot):
            raise ArgumentError(
                f"layers[{position}]: given {type(layer).__name__}, expected a snapshot; unirnn.snapshot takes a list "
                "of layers as a stack"
            )
    spec = stacked_spec([layer.spec for layer in layers])
    weights: Weights = {}
    below = 0
    for layer in layers:
        weights |= renumbered(layer.weights, below)
        below += layer.spec.num_layers
    return Snapshot(spec, weights, tuple(dict.fromkeys(name for layer in layers for name in layer.assumed)))


def stacked_spec(specs: Sequence[Spec], prefixes: Sequence[str] = ()) -> RecurrentSpec:
    """The spec of layers on top of each other; a SpecError if they do not fit, which may name the layers' prefixes."""
    if not specs:
        raise SpecError("layers: given none, expected at least one")
    layers: list[RecurrentSpec] = []
    for position, spec in enumerate(specs):
        if not isinstance(spec, RecurrentSpec):
            raise SpecError(f"layers[{position}]: given {spec!r}, expected a recurrent layer")
        layers.append(spec)
    first = layers[0]
    width = first.num_directions * first.output_size
    ignored = {"num_layers": None, "dropout": None}
    for position, spec in enumerate(layers):
        expected = {**first.to_dict(), "input_size": width if position else first.input_size, **ignored}
        given = {**spec.to_dict(), **ignored}
        if given != expected:
            summed = given == {**expected, "input_size": first.output_size}
            raise SpecError(
                f"layers[{position}]: given {spec!r}, expected one on {first!r}, whose output has size {width}"
                + (_summed(layers, prefixes) if summed else "")
            )
    return replace(first, num_layers=sum(spec.num_layers for spec in layers))


def _summed(layers: Sequence[RecurrentSpec], prefixes: Sequence[str]) -> str:
    """What to do if the two directions are added below the next layer, whose input then has the size of one."""
    model = ", ".join(f"rnn_{k}={spec!r}, sum_{k}=SumDirectionsSpec()" for k, spec in enumerate(layers))
    old = prefixes or [f"{k}." for k in range(len(layers))]
    names = ", ".join(f"{prefix!r}: 'rnn_{k}.'" for k, prefix in enumerate(old))
    return (
        "; if the two directions are added before the next layer, as in DeepSpeech2, read the state dict with "
        f"spec=Sequential({model}) and rename={{{names}}}, without the last sum if only the layers between have one"
    )


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


def renumbered(weights: Mapping[str, T], layers: int) -> dict[str, T]:
    """Rename the weights of layers that stand above a number of others."""
    return {_renumber(name, layers): weight for name, weight in weights.items()}


def _renumber(name: str, layers: int) -> str:
    """The name of a weight so many layers further up."""
    return re.sub(r"_l(\d+)", lambda match: f"_l{int(match[1]) + layers}", name)
