"""Weights that are computed from others at each call, as the names in a state dict show.

Weight normalisation, pruning and weight dropping do so. The names beside a weight show it: ``weight_hh_l0_g``,
``weight_hh_l0_mask``. Such a weight is an error, but for one case: where weights are dropped at random in training, as
in AWD-LSTM, ``weight_hh_l0_raw`` is the trained weight, and ``weight_hh_l0`` the copy of the last step. The raw one is
taken.
"""

import re
from collections.abc import Collection, Iterable, Mapping

from unirnn.contract.weights import format_names
from unirnn.errors import SpecError

__all__ = ["NESTED", "check_derived", "check_nothing_beside", "split_name", "without_dropped"]

NESTED = "parametrizations."
"""The part of a name under which torch keeps what a weight is computed from."""

_RAW = re.compile(r"(?P<layer>(?:.*\.)?)(?P<weight>[^.]*(?:weight|bias)[^.]*)_raw", re.DOTALL)


def without_dropped(names: Iterable[str]) -> dict[str, str]:
    """The arrays by name, where a raw weight has the place of the copy that was dropped out last.

    AWD-LSTM and others have the raw weight beside the copy, fastai one level further up: ``0.rnns.0.weight_hh_l0_raw``
    beside ``0.rnns.0.module.weight_hh_l0``.

    Examples
    --------
    >>> without_dropped(["rnn.weight_hh_l0", "rnn.weight_hh_l0_raw"])
    {'rnn.weight_hh_l0': 'rnn.weight_hh_l0_raw'}
    """
    given = list(names)
    layers = {split_name(name)[0] for name in given}
    weights: dict[str, str] = {}  # of the raw ones, by their names
    for name in given:
        match = _RAW.fullmatch(name)
        if match is not None:
            inner = f"{match['layer']}module."
            weights[name] = (inner if inner in layers else match["layer"]) + match["weight"]
    dropped = {*weights.values()}
    return {weights.get(name, name): name for name in given if name not in dropped}


def check_derived(missing: Iterable[str], expected: Iterable[str], left_over: Iterable[str]) -> None:
    """Refuse weights that are computed from arrays that are left over.

    Parameters
    ----------
    missing
        The names of weights that no array was found for.
    expected
        The names of all weights.
    left_over
        The names of the arrays that are no weights.

    Raises
    ------
    SpecError
        If there are such weights; it names them.
    """
    without, known = {*missing}, {*expected}
    parts: dict[str, str] = {}
    for name in left_over:
        layer, end = split_name(name)
        if NESTED in layer:  # "layer.parametrizations.weight.original0"
            layer, _, end = name.rpartition(NESTED)
            weights = [layer + end.partition(".")[0]]
        else:
            pieces = end.split("_")[:6]  # no name of a weight has more
            weights = [layer + "_".join(pieces[:k]) for k in range(1, len(pieces))]
        parts.update((weight, name) for weight in weights if weight in known)
    check_nothing_beside(parts, known - without, ", by rename={...: None},")


def check_nothing_beside(beside: Mapping[str, str], held: Collection[str], how: str) -> None:
    """Refuse weights with other arrays beside them, from which they may be computed.

    Parameters
    ----------
    beside
        For each such weight the name of another array.
    held
        The names of the weights that are there by themselves too.
    how
        For the message, how the other array is left out: ``" of the mapping"``.

    Raises
    ------
    SpecError
        If there are such weights.
    """
    absent = [weight for weight in beside if weight not in held]
    if absent:
        raise SpecError(_parametrization(absent))
    if beside:
        raise SpecError(_derived(beside, how))


def split_name(name: str) -> tuple[str, str]:
    """The layer of a weight, with its dot, and the rest of the name."""
    layer, dot, end = name.rpartition(".")
    return layer + dot, end


def _parametrization(names: Iterable[str]) -> str:
    return (
        f"weights: given a parametrization of {format_names(names)}, expected the weight itself; remove it first by "
        "torch.nn.utils.parametrize.remove_parametrizations, or by torch.nn.utils.remove_weight_norm"
    )


def _derived(beside: Mapping[str, str], how: str) -> str:
    """Why weights with other arrays beside them are refused."""
    pairs = format_names(f"{array!r} beside {weight}" for weight, array in beside.items())
    return (
        f"weights: given {pairs}, so the weight may be computed from it at each call; save the weight alone, after "
        "torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.prune.remove; or leave the other "
        f"out{how} if it has no part in the layer"
    )
