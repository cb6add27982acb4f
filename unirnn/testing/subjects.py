"""The backends under test, and the value of the fixture ``rnn_backend``."""

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from unirnn import Device, GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, Snapshot, explain, registry
from unirnn.contract.backend import Backend
from unirnn.contract.call import join_state, state_parts
from unirnn.devices import dtype_name
from unirnn.errors import ArgumentError, BackendError, LimitError, MissingBackendError
from unirnn.specs import Spec

from ._tracebacks import is_for_the_test
from .oracle import renamed
from .tolerances import tolerance

__all__ = ["Missing", "Subject", "checked", "gradients", "launch_blocking", "subjects"]

__tracebackhide__ = is_for_the_test

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Subject:
    """A backend under test: the value of the fixture ``rnn_backend``.

    Parameters
    ----------
    backend
        The backend.
    options
        Further arguments of every build, such as ``kernel``. A kernel is left out for a spec that it can't compute.
    device
        The device on which modules are built. None means the backend's default device.
    dtype
        The name of the dtype of the modules, and of the arrays that `native` makes.
    is_brief
        Whether most cases of the conformance suite run with only some kinds of layers. This is for slow subjects that
        differ from another one only in the implementation of a layer.

    Examples
    --------
    >>> import numpy, unirnn
    >>> numpy_backend = Subject(unirnn.registry.load("numpy"))
    >>> gru = numpy_backend.build(unirnn.GRUSpec(3, 4), seed=0)
    >>> output, h_n = gru(numpy_backend.native(numpy.ones((5, 2, 3))))
    >>> numpy_backend.to_numpy(output).dtype.name, numpy_backend.tolerance
    ('float32', 1e-05)
    """

    backend: Backend
    options: Mapping[str, Any] = field(default_factory=dict)
    device: Device | None = None
    dtype: str = "float32"
    is_brief: bool = False

    @property
    def name(self) -> str:
        """The backend's name, as `Spec.build` takes it."""
        return self.backend.name

    @property
    def label(self) -> str:
        """The name that appears in the names of tests, such as ``torch`` or ``numpy-fallback``."""
        parts = [self.name, *(str(value) for value in self.options.values())]
        parts += [] if self.device is None else [str(self.device)]
        parts += [] if self.dtype == "float32" else [self.dtype]
        return "-".join(parts)

    @property
    def tolerance(self) -> float:
        """The largest relative difference that is within tolerance for the subject's dtype and device."""
        return self.tolerance_of(self.dtype)

    def tolerance_of(self, dtype: str) -> float:
        """The largest relative difference that is within tolerance for a given dtype on the subject's device."""
        return tolerance(dtype, self.device or self.backend.default_device())

    def build(self, spec: Spec, **arguments: Any) -> Any:
        """Build a module with `Spec.build`, with the backend, device, dtype and options of the subject.

        If a limit of the backend refuses the spec, the test is skipped with the text of the limit.

        Parameters
        ----------
        spec
            The spec to build.
        **arguments
            Arguments of `Spec.build`, such as ``seed``, which take precedence over those of the subject.

        Raises
        ------
        ArgumentError, SpecError, DTypeError, DeviceError
            As for `Spec.build`.
        """
        try:
            return spec.build(self.name, **self._arguments(spec, arguments))
        except LimitError as error:
            _skip(error)

    def rebuild(self, snapshot: Snapshot) -> Any:
        """Build a snapshot in its own dtype. Like `build`, it skips the test if a limit refuses the spec."""
        try:
            return snapshot.build(self.name, **self._arguments(snapshot.spec, {"dtype": snapshot.dtype}))
        except LimitError as error:
            _skip(error)

    def _arguments(self, spec: Spec, arguments: Mapping[str, Any]) -> dict[str, Any]:
        found = {"device": self.device, "dtype": self.dtype, **self.options, **arguments}
        kernel = self.options.get("kernel")
        if kernel is not None and "kernel" not in arguments:
            kernels = [own.name for own in explain(spec, self.name, found["device"], dtype=found["dtype"]).kernels]
            is_recurrent = any(isinstance(leaf, RecurrentSpec) for leaf in spec.leaves().values())
            if not is_recurrent or (kernels and kernel not in kernels):
                del found["kernel"]
        return found

    def read(self, module: Any) -> tuple[Any, dict[str, Array]]:
        """The spec and the weights of a module that the backend built."""
        found = self.backend.read(module)
        assert found is not None, f"{self.name}: read gives None for a {type(module).__name__}, which it built"
        return found

    @property
    def small_layer(self) -> RecurrentSpec:
        """A small layer that the backend can build on this device in this dtype; if it can build none, a GRU."""
        layers = (GRUSpec(1, 1), LSTMSpec(1, 1), RNNSpec(1, 1), GRUSpec(1, 1, reset_after=False))
        own = (layer for layer in layers if explain(layer, self.name, self.device, dtype=self.dtype).builds)
        return next(own, layers[0])

    @functools.cached_property
    def _place(self) -> Any:
        """A module whose device is that of the arrays that `native` makes."""
        return self.build(self.small_layer, seed=0)

    def native(self, array: Any) -> Any:
        """Convert an array to an array of the framework on the subject's device.

        Parameters
        ----------
        array
            A NumPy array or a list; floats are cast to the subject's dtype.
        """
        given = np.asarray(array)
        if given.dtype.kind == "f" and self.dtype != "bfloat16":
            given = given.astype(self.dtype)
        return self.backend.from_numpy(given, self._place)

    def to_numpy(self, array: Any) -> Array:
        """An array of the framework as a NumPy array."""
        return self.backend.to_numpy(array)

    def gradient(
        self, function: Callable[..., Any], *arrays: Any, module: Any = None
    ) -> tuple[list[Array | None], dict[str, Array]]:
        """Differentiate ``function(*arrays)``, a single number, by the framework's own autodiff.

        If the framework has no gradients, the test is skipped.

        Parameters
        ----------
        function
            A function that takes arrays of the framework and returns a single number as an array of the framework.
        *arrays
            NumPy arrays or lists of floats or integers; see `native`.
        module
            A module of the framework. If given, the gradients of its weights are computed as well.

        Returns
        -------
        list
            The gradient with respect to each array of floats; None for an array of integers or bools.
        dict
            The gradient of each weight of the module, by name; empty without a module.

        Examples
        --------
        In a test with the fixture::

            gru = rnn_backend.build(unirnn.GRUSpec(3, 4), seed=0)
            (d_x,), weights = rnn_backend.gradient(lambda x: gru(x)[0].sum(), np.ones((5, 2, 3)), module=gru)
        """
        try:
            return self.backend.gradient(function, [self.native(array) for array in arrays], module)
        except LimitError as error:
            _skip(error)

    def array(self, array: Array, module: Any) -> Any:
        """Convert a NumPy array to an array of the framework on the device of a module; its dtype is kept."""
        return self.backend.from_numpy(array, module)

    def call(
        self,
        module: Any,
        input: Array,
        hx: tuple[Array, ...] | None = None,
        seq_length: Any = None,
        resets: Any = None,
    ) -> tuple[Array, tuple[Array, ...]]:
        """Call a recurrent layer with NumPy arrays. Return its output, and the parts of its final state."""
        state = None if hx is None else join_state([self.array(part, module) for part in hx])
        output, final = module(self.array(input, module), state, seq_length, resets)
        parts = state_parts(module.spec, final)
        assert parts is not None
        return self.to_numpy(output), tuple(self.to_numpy(part) for part in parts)


def _skip(limit: LimitError) -> NoReturn:
    """Skip the running test for a limit. Without pytest, raise the limit as an error."""
    if "pytest" not in sys.modules:
        raise limit
    from .conformance.promises import DeclaredLimit

    raise DeclaredLimit(str(limit))


def gradients(
    backend: Backend,
    module: Any,
    input: Array,
    hx: tuple[Array, ...],
    seq_length: Any,
    d_output: Array,
    d_state: tuple[Array, ...],
    resets: NDArray[np.bool_] | None = None,
) -> dict[str, Array]:
    """The gradients of a recurrent layer, by the names ``input``, ``h_0`` (and ``c_0``), and those of the weights."""
    lengths = None if seq_length is None else np.asarray(seq_length)
    arguments = {"input": input, "hx": join_state(hx), "seq_length": lengths, "resets": resets}
    return renamed(module.spec, backend.gradients(module, arguments, (d_output, *d_state)))


@dataclass(frozen=True)
class Missing:
    """A backend that can't be tested here, or not on a device or in a dtype, with the reason."""

    name: str
    label: str
    reason: str
    is_installed: bool = True


def launch_blocking() -> None:
    """Make MindSpore run each operator immediately, which is many times faster for small operators on a CPU.

    This has no effect after MindSpore has run an operator, and can't be undone. If MindSpore is not installed, nothing
    happens.

    Examples
    --------
    >>> launch_blocking()
    """
    try:
        import mindspore
    except Exception:  # a later build on MindSpore says why
        return
    if hasattr(mindspore, "runtime"):
        mindspore.runtime.launch_blocking()


def subjects(
    names: Sequence[str] | None = None,
    devices: Sequence[str] = (),
    dtypes: Sequence[str] = (),
    *,
    is_brief: bool = False,
) -> list[Subject | Missing]:
    """The backends to test, each of them on each device and in each dtype.

    Parameters
    ----------
    names
        The names of the backends, with options of the build in brackets, as in ``"numpy[kernel=fallback]"``. None means
        all that are installed and need no options, ``"all"`` all that are registered.
    devices
        Names of devices; if empty, each backend's default device.
    dtypes
        Names of dtypes; if empty, float32.
    is_brief
        Whether all of them are tested briefly; see `Subject`.

    Returns
    -------
    list
        The subjects, and a `Missing` for each backend that is not installed, or that lacks a device or dtype. With
        ``names=None``, backends that are not installed are left out.

    Raises
    ------
    ArgumentError, DeviceError, DTypeError
        If a name can't be parsed, has an option that the backend lacks, or lacks an option that the backend needs. The
        values of options are checked by `checked`.

    Examples
    --------
    >>> [found.label for found in subjects(["numpy[kernel=fallback]", "numpy"], dtypes=["float32", "float64"])]
    ['numpy-fallback', 'numpy-fallback-float64', 'numpy', 'numpy-float64']
    """
    is_all = names is not None and list(names) == ["all"]
    wanted = registry.backends() if names is None or is_all else names
    if "all" in wanted:
        raise ArgumentError(f"backends: given {', '.join(wanted)}, expected names, or 'all' by itself")
    places, kinds = dict.fromkeys(map(Device.parse, devices)), dict.fromkeys(map(dtype_name, dtypes))
    found: list[Subject | Missing] = []
    for name, pairs in dict.fromkeys(map(_read, wanted)):
        options = dict(pairs)
        try:
            backend = registry.load(name)
        except BackendError as error:
            if names is not None or not isinstance(error, MissingBackendError):  # it may be installed but broken
                found.append(Missing(name, name, str(error), is_installed=False))
            continue
        _check_options(backend, options)
        lacking = [option for option in backend.required_options if option not in options]
        if lacking:
            reason = f"{name} needs the option {lacking[0]} of build; name it, as in {name}[{lacking[0]}=...]"
            if names is not None and not is_all:
                raise ArgumentError(f"backends: given {name!r}, but {reason}")
            found += [] if names is None else [Missing(name, name, reason)]
            continue
        subject = Subject(backend, options, is_brief=is_brief or "kernel" in options)
        try:
            found += _variants(subject, places, kinds)
        except Exception as error:  # a framework may raise anything, for example because of an old driver
            reason = f"{name}: its devices or limits can't be listed: {type(error).__name__}: {error}"
            found.append(Missing(name, name, reason, is_installed=False))
    return found


def checked(subject: Subject) -> Subject | Missing:
    """Check the values of a subject's options by a build; return a `Missing` if they need a package that is missing.

    Raises
    ------
    ArgumentError
        If the build refuses a value.

    Examples
    --------
    >>> checked(Subject(registry.load("numpy"), {"kernel": "abacus"}))
    Traceback (most recent call last):
    ...
    unirnn.errors.ArgumentError: backends: numpy-abacus can't be built: kernel: given 'abacus', expected one of ...
    """
    if not subject.options:
        return subject
    try:
        with contextlib.suppress(LimitError):
            arguments = {"device": subject.device, "dtype": subject.dtype, **subject.options}
            subject.small_layer.build(subject.name, seed=0, **arguments)
    except MissingBackendError as error:
        return Missing(subject.name, subject.label, str(error), is_installed=False)
    except ArgumentError as error:
        raise ArgumentError(f"backends: {subject.label} can't be built: {error}") from None
    return subject


def _read(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Parse a name and its options, such as ``numpy[kernel=fallback]``."""
    match = re.fullmatch(r"([^\[\]]+)(?:\[([^\[\]]+)\])?", text)
    parts = [] if match is None or match[2] is None else [pair.partition("=") for pair in match[2].split(",")]
    pairs = tuple((key.strip(), value.strip()) for key, _, value in parts)
    if match is None or not all(key and value for key, value in pairs) or len(dict(pairs)) < len(pairs):
        raise ArgumentError(f"backends: given {text!r}, expected a name, or name[option=value,...]")
    return match[1].strip(), pairs


def _check_options(backend: Backend, options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in backend.options:
            known = ", ".join(backend.options) or "none"
            raise ArgumentError(f"backends: given {backend.name}[{name}=...], expected an option that it has: {known}")


def _variants(subject: Subject, devices: Iterable[Device], dtypes: Iterable[str]) -> Iterator[Subject | Missing]:
    for device in devices or (None,):
        for dtype in dtypes or ("float32",):
            variant = replace(subject, device=device, dtype=dtype)
            reason = _why_not(variant)
            yield variant if reason is None else Missing(variant.name, variant.label, reason)


def _why_not(subject: Subject) -> str | None:
    """The reason why a backend can't build anything on the subject's device or in its dtype; None if it can."""
    present = subject.backend.devices()
    device = subject.device or subject.backend.default_device()
    if not any(device == own or (device.kind == own.kind and device.index is None) for own in present):
        return f"device: given '{device}', not present; {subject.name} sees {', '.join(map(str, present))}"
    limits = explain(subject.small_layer, subject.name, device, dtype=subject.dtype).limits
    return next((str(limit) for limit in limits if limit.refuses), None)
