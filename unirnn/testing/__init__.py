"""The test kit: test a model on several backends, or a backend against every guarantee.

After ``pip install unirnn[testing]``, pytest has the fixture ``rnn_backend``, and ``python -m unirnn.testing NAME``
runs the conformance suite on a backend.
"""

from typing import TYPE_CHECKING, Any

from .batches import Batch, batch
from .frameworks import gradient, native, to_numpy
from .inert import padding_is_inert
from .same import assert_same
from .subjects import Subject, launch_blocking
from .tolerances import close, tolerance

if TYPE_CHECKING:
    from .strategies import ragged

__all__ = [
    "Batch",
    "Subject",
    "assert_same",
    "batch",
    "close",
    "gradient",
    "launch_blocking",
    "native",
    "padding_is_inert",
    "ragged",
    "to_numpy",
    "tolerance",
]


def __getattr__(name: str) -> Any:
    if name == "ragged":  # needs hypothesis
        from .strategies import ragged

        return ragged
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
