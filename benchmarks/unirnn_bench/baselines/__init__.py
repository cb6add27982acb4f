"""What each backend's modules are compared with: a module here for each, named as the backend.

It has

- ``MODES``: the ways to run that need a process each, such as ``("eager",)``;
- ``calls(work)``: what computes a `unirnn_bench.harness.Work`, by name. Each call returns its result, the output or the
  gradients, once it is there. ``ours`` is a module of the backend. The others are its baselines, as there are:
  ``native``, the framework's own layer on the dense input; ``usual``, what its users write to get the same result;
  ``floor``, the bare matrix products; ``dense``, ours on the dense input, where the work is ragged. With ``d_output``
  each computes the gradients of the input and of every weight.

A backend that has no module here is measured by itself.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

__all__ = ["of_backend"]


def of_backend(name: str) -> Any:
    """The module of a backend, or None."""
    path = f"{__name__}.{name}"
    return import_module(path) if name.isidentifier() and find_spec(path) else None
