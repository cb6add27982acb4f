"""What a backend is: the one interface between the core and a framework.

A backend is an instance of a subclass of `Backend`, named by an entry point of the group ``unirnn.backends``. It builds
native modules. Everything before that (names, validation, weights, devices) and around it (snapshots, parity, the
conformance suite) is the core's, and works on NumPy arrays.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from unirnn.devices import Device
from unirnn.errors import ArgumentError, LimitError, SpecError

from .limits import Kernel, Limit, Support

__all__ = ["Arrays", "Backend", "check_computes_as", "leaves", "leaves_by_path", "with_leaves"]

Array = NDArray[Any]
Arrays = Mapping[str, Array]


class Backend(ABC):
    """The members of a backend; those that are not abstract may be left as they are.

    What it builds has its ``spec``, and switches dropout by ``train()`` or ``set_train()``, whichever is native. A
    recurrent layer is called as ``module(input, hx=None, seq_length=None, resets=None, **aliases)``, and anything else
    as `unirnn.contract.models` says.
    """

    name: ClassVar[str]
    """The entry point's name."""
    support: ClassVar[Support]
    """What it can compute at all, on any device."""
    options: ClassVar[tuple[str, ...]] = ()
    """The arguments of `Spec.build` that only this backend has, such as ``kernel``."""
    required_options: ClassVar[tuple[str, ...]] = ()
    """Those of them without which it can't build."""

    @abstractmethod
    def version(self) -> str:
        """The framework's name and version."""

    @abstractmethod
    def devices(self) -> tuple[Device, ...]:
        """The devices that are present; where there are several of a kind, each by its index."""

    @abstractmethod
    def default_device(self) -> Device:
        """The device of a build that names none."""

    def limits(self, spec: Any, device: Device, dtype: str) -> Iterable[Limit]:
        """Limits for this spec, device and dtype, beyond `support`.

        The device need not be present.
        """
        return ()

    def kernels(self, spec: Any, device: Device, dtype: str) -> Iterable[Kernel]:
        """The kernels for this spec, device and dtype, and when each of them runs; none if there is only one way."""
        return ()

    @abstractmethod
    def build(
        self,
        spec: Any,
        *,
        device: Device,
        dtype: str,
        weights: Arrays | None,
        seed: int | None,
        options: Mapping[str, Any],
    ) -> Any:
        """Make a module.

        Parameters
        ----------
        spec
            What to build; neither `support` nor `limits` refuses it.
        device, dtype
            The device and the dtype of the module.
        weights
            Checked, of any dtype; to be copied. None: draw them by the framework's own seed rules.
        seed
            For what is random besides the weights (dropout), where the framework has no generator of its own.
        options
            Those of `Backend.options` that were given.
        """

    @abstractmethod
    def read(self, module: Any) -> tuple[Any, dict[str, Array]] | None:
        """Spec and weights of a module that it built, or of its framework's own layer; None of anything else.

        The arrays may share memory with the module; the caller copies them.
        """

    def describe(self, module: Any) -> tuple[Any, str] | None:
        """The spec of a module and the dtype of its weights, without reading them; None if it is not one of its own."""
        found = self.read(module)
        return None if found is None else (found[0], next(iter(found[1].values())).dtype.name)

    @abstractmethod
    def write(self, module: Any, weights: Arrays) -> None:
        """Replace the weights of a module that `read` reads, in place: all of them, or none and an error.

        The core has checked that they fit, and that none of them is rounded; except for bfloat16, which NumPy lacks.
        """

    def all_weights(self, module: Any) -> dict[tuple[str, ...], Array] | None:
        """The floating weights and buffers of any module of its framework; None of anything else.

        Each is found under all of its names, as the framework's checkpoints have them; it has several if layers share
        it. bfloat16 becomes float32.
        """
        found = self.read(module)
        return None if found is None else {(name,): array for name, array in found[1].items()}

    def known_layers(self, module: Any) -> dict[str, Any]:
        """The specs of the layers in any module of its framework, by the beginnings of their weights' names."""
        found = self.read(module)
        return {} if found is None else found[0].leaves()

    def write_some(self, module: Any, weights: Arrays) -> None:
        """Replace some of the weights that `all_weights` found, by their first names; they are of the same shapes."""
        found = self.read(module)
        assert found is not None
        self.write(module, {**found[1], **weights})

    # A backend whose framework has a file format that unirnn does not know overrides these two.

    def read_file(self, path: str) -> tuple[dict[str, Array], dict[str, str]]:
        """The floating arrays of a checkpoint by name, and the metadata that `encode_file` put there, if any.

        Nothing in the file is executed.
        """
        raise LimitError(f"{self.name} has no checkpoints that unirnn reads")

    def encode_file(self, spec: Any, weights: Arrays, metadata: Mapping[str, str]) -> bytes:
        """The bytes of a checkpoint, which the framework itself loads into its module of this spec.

        The same arguments give the same bytes.

        Parameters
        ----------
        spec
            What the weights are of.
        weights
            One array for each name of `Spec.weight_shapes`; the framework's own names may be others.
        metadata
            At most one text by its name, which says the spec. It is written where the framework's own loader does not
            see it, and left out if there is no such place.
        """
        raise LimitError(f"{self.name} has no checkpoints that unirnn writes")

    # A backend whose framework has arrays of its own overrides these four.

    def from_numpy(self, array: Array, module: Any) -> Any:
        """An array as the module takes it: of its framework, on its device, of the array's own dtype.

        NumPy lacks bfloat16: for a module of that dtype, floats become bfloat16.
        """
        return array

    def to_numpy(self, array: Any) -> Array:
        """An array of the framework as a NumPy array."""
        return np.asarray(array)

    def detach(self, array: Any) -> Any | None:
        """An array of its framework cut off from what computed it; None if it is of another framework."""
        return array if isinstance(array, np.ndarray) else None

    def like(self, array: Array, other: Any) -> Any | None:
        """A NumPy array as an array of its framework, on the device of another array; None if that is of another
        framework.
        """
        return array if isinstance(other, np.ndarray) else None

    def gradients(self, module: Any, arguments: Mapping[str, Any], cotangents: Sequence[Array]) -> dict[str, Array]:
        """Gradients of ``sum((result * cotangent).sum() for ...)`` over the results of ``module(**arguments)``.

        They are those of the framework's own autodiff.

        Parameters
        ----------
        module
            What was built.
        arguments
            NumPy arrays, or tuples of them, by the names of the call's arguments.
        cotangents
            One for each array that the call returns, in that order, also within tuples.

        Returns
        -------
        dict
            The gradient of each array of floats among the arguments, by its name, and of each weight. The parts of a
            tuple are named ``hx[0]``, ``hx[1]``.
        """
        raise ArgumentError(f"{self.name} has no gradients; use another backend")


def check_computes_as(kind: type, module: Any, *methods: str) -> None:
    """Refuse a module with its own way to compute, by its class or by itself; one that only adds methods passes.

    Parameters
    ----------
    kind
        The class, of which it is an instance.
    module
        The module.
    methods
        The names of the methods that compute.

    Raises
    ------
    SpecError
        If the module or its class has another method of such a name.

    Examples
    --------
    >>> import unirnn
    >>> check_computes_as(unirnn.contract.module.Module, unirnn.GRUSpec(3, 4).build("numpy"), "__call__")
    """
    for method in methods:
        if getattr(type(module), method) is not getattr(kind, method) or method in getattr(module, "__dict__", ()):
            own = f"{type(module).__module__}.{type(module).__qualname__}"
            raise SpecError(
                f"module: given {own}, whose {method} is its own, expected that of {kind.__name__}: no spec describes "
                "what it computes; copy its weights into the plain layer, if that computes the same"
            )


def leaves(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays among arguments or results, those of tuples by ``name[0]``, ``name[1]``; None and flags are left out.

    Examples
    --------
    >>> leaves({"input": 1, "hx": (2, 3), "seq_length": None})
    {'input': 1, 'hx[0]': 2, 'hx[1]': 3}
    """
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if isinstance(value, (tuple, list)):
            found |= leaves({f"{name}[{k}]": part for k, part in enumerate(value)})
        elif value is not None and not isinstance(value, bool):
            found[name] = value
    return found


def leaves_by_path(found: Mapping[str, Any]) -> dict[str, Any]:
    """The layers of specs that modules have, by the modules' paths; None is a module without a spec.

    Examples
    --------
    >>> import unirnn
    >>> leaves_by_path({"": None, "net": unirnn.Sequential(encoder=unirnn.GRUSpec(3, 4))})
    {'net.encoder': GRUSpec(3, 4)}
    """
    return {
        ".".join(filter(None, (path, name))): leaf
        for path, spec in found.items()
        if spec is not None
        for name, leaf in spec.leaves().items()
    }


def with_leaves(arguments: Mapping[str, Any], arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments with other arrays, by the names of `leaves`.

    Examples
    --------
    >>> with_leaves({"input": 1, "hx": (2, 3)}, {"input": 10, "hx[0]": 20, "hx[1]": 30})
    {'input': 10, 'hx': (20, 30)}
    """

    def put(name: str, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return tuple(put(f"{name}[{k}]", part) for k, part in enumerate(value))
        return value if isinstance(value, bool) else arrays.get(name)

    return {name: put(name, value) for name, value in arguments.items()}
