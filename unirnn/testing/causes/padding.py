"""Name the usual cause of an influence of the padding, from the layer that moved first."""

from dataclasses import dataclass
from typing import Any

__all__ = ["Symptoms", "is_recurrent", "layer_at", "padding_cause"]

OF_EMPTY = "a sequence of length 0 has no last step: index n - 1 is -1, which reads the end of the padding"
OF_NAN_IN_GRADIENTS = (
    "only NaN has this effect, not finite numbers: a layer computes the padding as well, and 0 * NaN is NaN in the "
    "gradient of its weights; set the padding to 0 before that layer, or give nan=False"
)
OF_NAN = (
    "only NaN has this effect, not finite numbers: a mask is multiplied or added, and 0 * NaN is NaN; replace the "
    "padding instead (where, masked_fill), or give nan=False"
)
OF_CODE = (
    "reads the padding: a mean, a maximum or a softmax over all T steps, a sequence that was reversed together with "
    "its padding, or step -1 instead of step n - 1"
)
OF_FINAL_STATE = (
    "its final state is that of step T, after the padding, instead of that of step n - 1; pack the batch, or give the "
    "lengths"
)
OF_REVERSE = "its reverse direction begins in the padding, at step T; pack the batch, or give the lengths"
OF_REVERSED = (
    "it reads the padding before the valid steps, as when a sequence is reversed together with its padding; reverse "
    "the valid steps alone, or give the lengths"
)
OF_STEP_T = "it returns the state after all T steps; give it the lengths or a mask, or take step n - 1"
OF_BATCH_NORM = (
    "in training it takes its mean and its variance over the padding as well; normalise only the valid steps, as "
    "unirnn.BatchNormSpec does"
)
BY_KIND = (
    (("instancenorm", "groupnorm"), "it takes its mean and its variance over all T steps, so over the padding as well"),
    (
        ("conv",),
        "its window reaches from a valid step into the padding; set the padding to 0 before each convolution, and "
        "shorten the lengths as it shortens a sequence without padding",
    ),
    (("pool",), "it treats the padding like valid steps; mask it, or use unirnn.PoolSpec"),
    (("attention", "softmax", "transformer"), "its softmax runs over all T steps: the padding is not masked"),
)
"""The usual mistake with a layer, by parts of the lower-case name of its class."""


@dataclass(frozen=True, eq=False)
class Symptoms:
    """What is known about an influence of the padding.

    Parameters
    ----------
    layer, kind, name
        The first layer that moved, the name of its class, and its path; None if no layer moved.
    path
        The path of the array that moved in the results of the layer.
    after
        The path and the class of the layer before it, or None.
    has_inner
        Whether it has layers inside it, none of which moved.
    is_of_gradients, is_of_nan, is_of_training, is_of_empty
        Whether everything that moved is a gradient; moved only when the padding was NaN; moved only in training mode;
        belongs to sequences of length 0.
    """

    layer: Any
    kind: str | None
    name: str | None
    path: str
    after: str | None
    has_inner: bool
    is_of_gradients: bool
    is_of_nan: bool
    is_of_training: bool
    is_of_empty: bool


def is_recurrent(kind: str) -> bool:
    """Whether the name of a class is that of a recurrent layer."""
    return kind.lower() in ("lstm", "gru", "rnn", "simplernn", "bidirectional", "recurrent")


def padding_cause(seen: Symptoms) -> str | None:
    """Name the usual cause; None if the symptoms are those of no known cause."""
    if seen.is_of_empty:
        return OF_EMPTY
    if seen.is_of_nan:
        return OF_NAN_IN_GRADIENTS if seen.is_of_gradients else OF_NAN
    if seen.name is None or seen.kind is None or seen.is_of_gradients:
        return None
    kind = seen.kind.lower()
    if any(part in kind for part in ("lstm", "gru", "rnn", "bidirectional")) and not seen.has_inner:
        return _of_recurrent(seen, kind)
    if seen.has_inner:
        own = "the model's own code" if seen.name == "" else f"the code of {seen.kind}"
        return f"{own}, after {seen.after}, {OF_CODE}" if seen.after else f"{own} {OF_CODE}"
    if "batchnorm" in kind and seen.is_of_training:
        return OF_BATCH_NORM
    for parts, words in BY_KIND:
        if any(part in kind for part in parts):
            return words
    if seen.after and "Flatten" in seen.after:
        return "it mixes all T steps, including the padding"
    # Any other layer treats each step by itself.
    return _of_code_before(seen)


def _of_code_before(seen: Symptoms) -> str:
    between = f"between {seen.after} and it " if seen.after else "before it "
    return f"the code {between}{OF_CODE}"


def _of_recurrent(seen: Symptoms, kind: str) -> str:
    if seen.path.startswith("[1]"):
        return OF_FINAL_STATE
    if ".data" in seen.path:  # it got a packed sequence
        return (
            f"{_of_code_before(seen)}, or computes a valid step from it; the results of that code are in the packed "
            "sequence"
        )
    is_bidirectional = getattr(seen.layer, "bidirectional", False) or "bidirectional" in kind
    if is_bidirectional or getattr(seen.layer, "go_backwards", False):
        return OF_REVERSE
    # A layer of Keras returns only the last step unless return_sequences is set.
    return OF_STEP_T if getattr(seen.layer, "return_sequences", True) is False else OF_REVERSED


def layer_at(model: Any, name: str) -> Any:
    """The layer at a path; None if no attributes of the model lead to it."""
    layer = model
    for part in filter(None, name.split(".")):
        children: Any = getattr(layer, "_modules", None) or getattr(layer, "_cells", None) or {}
        layer = children.get(part, getattr(layer, part, None))
    return layer
