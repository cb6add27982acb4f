"""What a backend is: the one interface between the core and a backend's room.

A backend is an object with the members of `Backend`, named by an entry point of the group
``unirnn.backends``. It builds native modules; everything before (names, validation, weights, devices) and
around (snapshots, parity, the conformance suite) is the core's, and works on NumPy arrays.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .devices import Device
from .limits import Limit
from .specs import Spec

__all__ = ["Arrays", "Backend"]

Arrays = Mapping[str, NDArray[Any]]


class Backend(Protocol):
    """The members of a backend.

    What it builds is called as ``module(input, hx=None, seq_length=None, **aliases)``, has its ``spec``, and switches
    dropout by ``train()`` or ``set_train()``, whichever is native.

    Besides, a backend may tell what ``unirnn bench`` compares it with: see `unirnn.benchmark.Benchmarked`.

    One that has several kernels may list them, and when it takes which, for `unirnn.explain`:
    ``kernels(spec, device, dtype)``, arguments as those of `limits`, gives `unirnn.limits.Kernel` each.
    """

    name: str
    """The entry point's name."""
    dtypes: tuple[str, ...]
    """The dtypes that it computes in, by name."""
    differentiable: bool
    """Whether `gradients` is there."""

    def version(self) -> str:
        """The framework's name and version."""
        ...

    def devices(self) -> tuple[Device, ...]:
        """The devices that are present, those with several units by index."""
        ...

    def default_device(self) -> Device:
        """The device of a build that names none."""
        ...

    def limits(self, spec: Spec, device: Device, dtype: str) -> Iterable[Limit]:
        """What it can't do, or does differently, for this spec there; the device need not be present."""
        ...

    def build(
        self,
        spec: Spec,
        *,
        device: Device,
        dtype: str,
        weights: Arrays | None,
        seed: int | None,
        **options: Any,
    ) -> Any:
        """Make a module.

        ``weights`` are checked, of any dtype, and not to be kept (copy them); None: draw by the framework's
        own seed rules. ``seed`` is for what is random besides the weights (dropout), where the framework
        has no generator of its own.
        """
        ...

    def read(self, module: Any) -> tuple[Spec, dict[str, NDArray[Any]]] | None:
        """Spec and weights of a module that it built, or of its framework's own layer; None of anything else.

        The caller copies.
        """
        ...

    def write(self, module: Any, weights: Arrays) -> None:
        """Replace the weights of a module that `read` reads, in place; all, or with an error none.

        They fit the module's spec, and its dtype holds them, but for bfloat16, which NumPy lacks.
        """
        ...

    def from_numpy(self, array: NDArray[Any], module: Any) -> Any:
        """An array as the module takes it: of its framework, on its device, of its own dtype.

        But for bfloat16, which NumPy lacks: for a module of that dtype, floats become bfloat16.
        """
        ...

    def to_numpy(self, array: Any) -> NDArray[Any]:
        """An array of the framework as a NumPy array."""
        ...

    def detach(self, array: Any) -> Any | None:
        """An array of its framework cut off from what computed it; None if it is of another framework."""
        ...

    def gradients(
        self,
        module: Any,
        input: NDArray[Any],
        hx: tuple[NDArray[Any], ...],
        seq_length: NDArray[np.int64] | None,
        d_output: NDArray[Any],
        d_state: tuple[NDArray[Any], ...],
    ) -> dict[str, NDArray[Any]]:
        """Gradients of ``sum(output * d_output) + sum(state * d_state)`` by the framework's own autodiff.

        By name: ``input``, ``h_0`` (and ``c_0``), and each weight. NumPy in, NumPy out.
        """
        ...
