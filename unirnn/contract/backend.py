"""What a backend is: the one interface between the core and a framework.

A backend is an instance of a subclass of `Backend`, named by an entry point of the group ``unirnn.backends``. It builds
native modules. Everything before that (names, validation, weights, devices) and around it (snapshots, parity, the
conformance suite) is the core's, and works on NumPy arrays.
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from unirnn.devices import Device
from unirnn.errors import LimitError, SpecError

from .limits import Kernel, Limit, Support

__all__ = [
    "Arrays",
    "Backend",
    "Watched",
    "check_computes_as",
    "leaves",
    "leaves_by_path",
    "map_arrays",
    "with_leaves",
]

Array = NDArray[Any]
Arrays = Mapping[str, Array]


@dataclass(frozen=True, eq=False)
class Watched:
    """What one layer returned in a run; see `Backend.watch`.

    Parameters
    ----------
    name
        The path of the layer in the module, such as ``encoder.rnn``; empty for the module itself.
    kind
        The name of its class.
    results
        What it returned, with a copy of each array: a later layer may write over the array itself.
    """

    name: str
    kind: str
    results: Any


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
    """The options without which it can't build."""

    @abstractmethod
    def version(self) -> str:
        """The framework's name and version."""

    def devices(self) -> tuple[Device, ...]:
        """The devices that are present; where there are several of a kind, each by its index. By default the CPU."""
        return (Device("cpu"),)

    def default_device(self) -> Device:
        """The device of a build that names none; by default the first of `devices`."""
        return self.devices()[0]

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
        """Spec and weights of a module that it built, or of its framework's own layer; None for anything else.

        The arrays may share memory with the module; the caller copies them.
        """

    def describe(self, module: Any) -> tuple[Any, str] | None:
        """The spec of a module and the dtype of its weights, without reading them; None if it is not one of its own.

        Without weights the dtype is float32.
        """
        found = self.read(module)
        if found is None:
            return None
        spec, weights = found
        return spec, next((array.dtype.name for array in weights.values()), "float32")

    @abstractmethod
    def write(self, module: Any, weights: Arrays) -> None:
        """Replace the weights of a module that `read` reads, in place: all of them, or none and an error.

        The core has checked that they fit, and that none of them is rounded; except for bfloat16, which NumPy lacks.
        """

    def all_weights(self, module: Any) -> dict[tuple[str, ...], Array] | None:
        """The floating weights and buffers of any module of its framework; None for anything else.

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

        The module is any of the framework, or None, which has no device.
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

    # A backend whose framework has gradients overrides this one.

    def gradient(
        self, function: Callable[..., Any], arrays: Sequence[Any], module: Any = None
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """Gradients of ``function(*arrays)`` by the framework's own autodiff.

        Parameters
        ----------
        function
            Gives one number, in an array of the framework.
        arrays
            Arrays of the framework.
        module
            A module of the framework, whether built by unirnn or not, whose weights are wanted as well.

        Returns
        -------
        list
            The gradient with respect to each array of floats; None for an array of integers or flags.
        dict
            The gradient of each weight of the module that is trained, by its name. It is zeros where the function does
            not depend on the weight.
        """
        raise LimitError(f"{self.name} has no gradients of functions; use another backend")

    def gradients(self, module: Any, arguments: Mapping[str, Any], cotangents: Sequence[Array]) -> dict[str, Array]:
        """Gradients of ``sum((result * cotangent).sum() for ...)`` over the results of ``module(**arguments)``.

        They are those of `gradient`. A backend overrides this method only if its framework has no autodiff for
        functions, but its modules have gradients.

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
        given = leaves(arguments)
        arrays = [self.from_numpy(np.asarray(array), module) for array in given.values()]
        factors = [self.from_numpy(cotangent, module) for cotangent in cotangents]

        def weighted(*inputs: Any) -> Any:
            moved = with_leaves(arguments, dict(zip(given, inputs, strict=True)))
            results = leaves({"results": module(**moved)}).values()
            return sum((result * factor).sum() for result, factor in zip(results, factors, strict=True))

        found, weights = self.gradient(weighted, arrays, module)
        named = zip(given, found, strict=True)
        return {**{name: gradient for name, gradient in named if gradient is not None}, **weights}

    # These are for the test kit, and take any module of the framework, not only those that unirnn built.

    @contextmanager
    def restored(self, module: Any) -> Iterator[Any]:
        """A module to run: what a run changes, such as its mode and running statistics, is as before afterwards.

        By default it is a copy, which has its own generators of random numbers.
        """
        yield copy.deepcopy(module)

    @contextmanager
    def watch(self, module: Any) -> Iterator[list[Watched]]:
        """Within the context, each call of a layer of the module is added to the list, in the order of the run.

        A layer is added when it returns, so after the layers within it. By default these are the `hookable_layers`.
        """
        found: list[Watched] = []

        def copied(value: Any) -> Any:
            array = self.detach(value)
            return value if array is None else copy.deepcopy(array)

        def hook(name: str) -> Callable[..., None]:
            def add(layer: Any, inputs: Any, results: Any) -> None:
                found.append(Watched(name, type(layer).__name__, map_arrays(results, copied)))

            return add

        handles = [layer.register_forward_hook(hook(name)) for name, layer in self.hookable_layers(module)]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()

    def hookable_layers(self, module: Any) -> Iterable[tuple[str, Any]]:
        """The layers of a module that have PyTorch's, and MindSpore's, ``register_forward_hook``, by their paths."""
        return ()

    def set_training(self, module: Any, mode: bool) -> None:
        """Switch between training and evaluation, as ``set_train`` or ``train`` of the module does, if it has one."""
        switch = getattr(module, "set_train", None) or getattr(module, "train", None)
        if switch is not None:
            switch(mode)

    def random_seed(self, seed: int) -> None:
        """Seed the framework's generators, so that the same calls draw the same numbers again."""
        np.random.seed(seed)


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
    >>> gru = unirnn.GRUSpec(3, 4).build("numpy")
    >>> check_computes_as(type(gru), gru, "__call__", "step")
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


def map_arrays(results: Any, change: Callable[[Any], Any]) -> Any:
    """Change each value in a structure of tuples, named tuples, lists and dicts.

    Examples
    --------
    >>> map_arrays({"output": 1, "state": (2, [3])}, lambda value: 10 * value)
    {'output': 10, 'state': (20, [30])}
    """
    if isinstance(results, Mapping):
        return {name: map_arrays(part, change) for name, part in results.items()}
    if isinstance(results, tuple):
        parts = (map_arrays(part, change) for part in results)
        return type(results)(*parts) if hasattr(results, "_fields") else tuple(parts)
    if isinstance(results, list):
        return [map_arrays(part, change) for part in results]
    return change(results)


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
    """Replace the arrays in arguments, by the names of `leaves`.

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
