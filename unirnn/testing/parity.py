"""Parity: whether backends compute the same numbers.

Every backend builds the same spec with the same weights and runs the same ragged batch. Its results are compared with
those of `unirnn.testing.oracle`, which computes in float64 and shares no code with any backend. Only the members of
`unirnn.contract.backend.Backend` are used, so a third-party backend is compared like any other.

The weights and the batch are rounded to the dtype under test before they are given to the backend and to the oracle.
So a difference is an error of the computation, not of the rounding of its inputs. The batch is difficult on purpose:
its lengths are unsorted and include 0 and T, the initial state is not zero, and the padding is NaN.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unirnn import registry
from unirnn.contract import weights as _weights
from unirnn.contract.backend import Backend
from unirnn.contract.call import join_state, state_parts
from unirnn.devices import Device, dtype_name
from unirnn.errors import ArgumentError, BackendError, ShapeError, UnirnnError
from unirnn.snapshots.snapshot import Snapshot
from unirnn.specs import RecurrentSpec, RNNSpec
from unirnn.testing import causes, oracle
from unirnn.testing.batches import Batch
from unirnn.testing.causes.numbers import relative_difference
from unirnn.testing.tolerances import tolerance

__all__ = ["Comparison", "Note", "Parity", "compare"]

Array = NDArray[Any]


@dataclass(frozen=True)
class Comparison:
    """How far the results of one backend are from the oracle's, on one device and in one dtype.

    The difference of an array is the largest absolute difference from the oracle's array, divided by the largest
    absolute value of that array. The difference of several arrays is the largest of theirs. It is NaN if the backend
    computes a NaN.

    Parameters
    ----------
    backend
        The backend's name.
    device
        The device on which it ran, which is the backend's default device.
    dtype
        The name of the dtype in which it computed.
    output, state
        The differences of the output and of the final state.
    gradients
        The difference of the gradients with respect to the input, the initial state and each weight. It is None if
        the backend has no gradients, and for an RNN with relu in half precision: the slope of relu jumps at 0, and
        rounding decides on which side of 0 a value is.
    cause
        A description of the usual mistake that explains a difference out of tolerance, or None if there is no such
        difference or no known mistake explains it; see `unirnn.testing.causes`.
    """

    backend: str
    device: Device
    dtype: str
    output: float
    state: float
    gradients: float | None
    cause: str | None = None

    @property
    def tolerance(self) -> float:
        """The largest difference that is allowed; see `unirnn.testing.tolerances.tolerance`."""
        return tolerance(self.dtype, self.device)

    @property
    def within(self) -> bool:
        """Whether every difference is within the tolerance; NaN never is."""
        differences = (self.output, self.state, self.gradients)
        return all(difference <= self.tolerance for difference in differences if difference is not None)


@dataclass(frozen=True)
class Note:
    """Why a backend was not compared.

    Parameters
    ----------
    backend
        The backend's name.
    reason
        The reason, as text.
    """

    backend: str
    reason: str


@dataclass(frozen=True)
class Parity:
    """The result of `compare`; iterating over it yields the comparisons.

    Parameters
    ----------
    spec
        The spec that was built.
    comparisons
        A comparison for each backend and dtype that ran.
    left_out
        The backends that were not named explicitly and can't be compared, because they are not installed, are broken,
        can't build the spec or the dtype, or need further options of `Spec.build`.
    failures
        The backends that raised an error, or returned an array of the wrong shape.
    """

    spec: RecurrentSpec
    comparisons: tuple[Comparison, ...]
    left_out: tuple[Note, ...]
    failures: tuple[Note, ...]

    def __iter__(self) -> Iterator[Comparison]:
        return iter(self.comparisons)

    @property
    def within(self) -> bool:
        """Whether at least one backend was compared, every comparison is within tolerance, and nothing failed."""
        return bool(self.comparisons) and not self.failures and all(c.within for c in self.comparisons)


def compare(
    spec: RecurrentSpec,
    backends: Iterable[str] | None = None,
    dtypes: Iterable[Any] | None = None,
    *,
    steps: int = 100,
    batch_size: int = 8,
    seed: int = 0,
) -> Parity:
    """Compare backends with the oracle, each on its default device.

    Parameters
    ----------
    spec
        The layers to build. Their ``dropout`` is replaced by 0, since each framework drops different elements.
    backends
        The names of the backends. None means every registered backend that is installed and can build without further
        options.
    dtypes
        The names of the dtypes. None means float32, and float64 as well for backends that support it.
    steps, batch_size
        T and B of the batch.
    seed
        The seed from which the weights and the batch are drawn.

    Returns
    -------
    Parity
        The comparisons, and the backends that were left out or failed.

    Raises
    ------
    BackendError
        If a backend that was named is unknown, not installed or broken.
    ArgumentError, DeviceError, LimitError
        If a backend that was named can't build the spec.
    ShapeError
        If ``steps`` or ``batch_size`` is less than 1.

    Examples
    --------
    >>> import unirnn
    >>> parity = compare(unirnn.GRUSpec(3, 4), ["numpy"], ["float32"], steps=20)
    >>> [(c.backend, c.dtype, c.within) for c in parity]
    [('numpy', 'float32', True)]
    """
    if steps < 1 or batch_size < 1:
        raise ShapeError(f"steps, batch_size: given {steps}, {batch_size}, expected at least 1 each")
    asked = None if dtypes is None else tuple(dict.fromkeys(dtype_name(dtype) for dtype in dtypes))
    spec = RecurrentSpec.from_dict({**spec.to_dict(), "dropout": 0.0})
    left_out: list[Note] = []
    loaded: dict[str, Backend] = {}
    for name in registry.backends() if backends is None else backends:
        try:
            loaded[name] = registry.load(name)
        except BackendError as error:
            if backends is not None:
                raise
            left_out.append(Note(name, str(error)))

    @functools.cache
    def prepare(dtype: str) -> tuple[_Trial, _Results]:
        trial = _draw(spec, dtype, steps, batch_size, seed)
        return trial, _reference(trial, dtype)

    comparisons: list[Comparison] = []
    failures: list[Note] = []
    for name, backend in loaded.items():
        for dtype in asked or tuple(d for d in ("float32", "float64") if d in backend.support.dtypes):
            trial, reference = prepare(dtype)
            try:
                device = backend.default_device()
                module = Snapshot(spec, trial.weights).build(name, device=device, dtype=dtype)
            except UnirnnError as error:
                # float64 is also tried when the caller named no dtype, but this device may not support it.
                if backends is not None and (asked or dtype == "float32"):
                    raise
                left_out.append(Note(name, _why_not_built(backend, error)))
                continue
            except Exception as error:
                failures.append(_failure(name, dtype, error))
                continue
            try:
                comparison = _compare(_run(backend, module, trial), reference, name, device, dtype)
                if not comparison.within:
                    comparison = replace(comparison, cause=_cause(backend, module, spec, comparison, seed))
                comparisons.append(comparison)
            except Exception as error:  # an error of one backend is a result, and must not stop the others
                failures.append(_failure(name, dtype, error))
    # A backend that builds in none of the dtypes is listed once.
    return Parity(spec, tuple(comparisons), tuple(dict.fromkeys(left_out)), tuple(failures))


def _why_not_built(backend: Backend, error: UnirnnError) -> str:
    if isinstance(error, ArgumentError) and backend.required_options:
        return f"it needs the option {', '.join(backend.required_options)} of build, and can't be compared without one"
    return str(error)


def _failure(name: str, dtype: str, error: Exception) -> Note:
    return Note(name, f"{dtype}: {type(error).__name__}: {error}")


class _Trial(NamedTuple):
    """What every backend is given, rounded to one dtype. NumPy lacks bfloat16, so numbers rounded to it are float32."""

    spec: RecurrentSpec
    weights: dict[str, Array]
    input: Array
    hx: tuple[Array, ...]
    seq_length: NDArray[np.int64]
    d_output: Array
    d_state: tuple[Array, ...]

    def arrays(self) -> dict[str, Array]:
        """The input, the initial state and the weights in float64, by the oracle's names."""
        initial = {f"{name}_0": part for name, part in zip(self.spec.states, self.hx, strict=True)}
        given = {"input": self.input, **initial, **self.weights}
        return {name: array.astype(np.float64) for name, array in given.items()}

    def cotangents(self) -> tuple[Array, ...]:
        """The cotangents in float64."""
        return tuple(d.astype(np.float64) for d in (self.d_output, *self.d_state))


class _Results(NamedTuple):
    """The arrays that were computed, by name; ``gradients`` is None if gradients are not compared."""

    output: dict[str, Array]
    state: dict[str, Array]
    gradients: dict[str, Array] | None


def _draw(spec: RecurrentSpec, dtype: str, steps: int, batch_size: int, seed: int) -> _Trial:
    weights = {name: _round(array, dtype) for name, array in _weights.draw(spec, seed).items()}
    # A separate random stream, so that the batch repeats none of the numbers of the weights.
    generator = np.random.default_rng([seed, 2])

    def normal(shape: tuple[int, ...]) -> Array:
        return _round(generator.standard_normal(shape), dtype)

    seq_length = generator.integers(0, steps, batch_size)
    seq_length[:2] = (0, steps)[-batch_size:]  # 0, then T, then shorter ones: not sorted
    input = normal((steps, batch_size, spec.input_size))
    input[np.arange(steps)[:, None] >= seq_length] = np.nan
    output_shape: tuple[int, ...] = (steps, batch_size, spec.num_directions * spec.output_size)
    if spec.batch_first:
        input, output_shape = input.swapaxes(0, 1), (batch_size, steps, output_shape[2])
    state_shapes = tuple(spec.state_shapes(batch_size).values())
    return _Trial(
        spec,
        weights,
        input,
        tuple(normal(shape) for shape in state_shapes),
        seq_length,
        normal(output_shape),
        tuple(normal(shape) for shape in state_shapes),
    )


def _round(array: Array, dtype: str) -> Array:
    if dtype != "bfloat16":
        return array.astype(dtype)
    mantissa, exponent = np.frexp(array.astype(np.float32))
    return np.ldexp(np.rint(mantissa * 256) / 256, exponent)  # 8 significant bits


def _reference(trial: _Trial, dtype: str) -> _Results:
    """The results that the oracle computes for a trial."""
    spec, arrays = trial.spec, trial.arrays()
    hx = tuple(arrays[f"{name}_0"] for name in spec.states)
    output, state = oracle.recurrent(spec, arrays, arrays["input"], hx, trial.seq_length)
    gradients = None
    if not (isinstance(spec, RNNSpec) and spec.nonlinearity == "relu" and dtype in ("float16", "bfloat16")):
        found = oracle.gradients(spec, arrays, trial.seq_length, trial.cotangents())
        names = {own: name for name, own in oracle.names_of_state(spec).items()}
        gradients = {names.get(name, name): gradient for name, gradient in found.items()}
    return _Results({"output": output}, _named(spec, state), gradients)


def _run(backend: Backend, module: Any, trial: _Trial) -> _Results:
    """The results that a module computes for a trial."""
    spec = trial.spec
    hx = join_state([backend.from_numpy(part, module) for part in trial.hx])
    output, state = module(backend.from_numpy(trial.input, module), hx, trial.seq_length)
    parts = [backend.to_numpy(part) for part in state_parts(spec, state) or ()]
    arguments = {"input": trial.input, "hx": join_state(trial.hx), "seq_length": trial.seq_length}
    gradients = None
    if backend.support.derivatives:
        gradients = backend.gradients(module, arguments, (trial.d_output, *trial.d_state))
    return _Results({"output": backend.to_numpy(output)}, _named(spec, parts), gradients)


def _cause(backend: Backend, module: Any, spec: RecurrentSpec, comparison: Comparison, seed: int) -> str | None:
    """Find the usual mistake that a backend makes, on a small batch with numbers in its padding, then with NaN."""
    nan = _draw(spec, comparison.dtype, 6, 4, seed)
    garbage = np.random.default_rng([seed, 4]).standard_normal(nan.input.shape).astype(nan.input.dtype)
    for trial in (nan._replace(input=np.where(np.isnan(nan.input), garbage, nan.input)), nan):
        results = _run(backend, module, trial)
        batch = Batch(trial.input, trial.seq_length, join_state(trial.hx), batch_first=spec.batch_first)
        output, state = results.output["output"], list(results.state.values())
        cause = causes.recurrent_cause(spec, trial.weights, batch, output, state, comparison.tolerance)
        if cause is None and results.gradients is not None:
            found = oracle.renamed(spec, results.gradients)
            given = trial.arrays(), trial.seq_length, trial.cotangents()
            cause = causes.recurrent_gradient_cause(spec, *given, found, comparison.tolerance)
        if cause is not None:
            return cause
    return None


def _named(spec: RecurrentSpec, state: Sequence[Array]) -> dict[str, Array]:
    return {f"{name}_n": part for name, part in zip(spec.states, state, strict=True)}


def _compare(results: _Results, reference: _Results, backend: str, device: Device, dtype: str) -> Comparison:
    gradients = None
    if results.gradients is not None and reference.gradients is not None:
        gradients = _difference(results.gradients, reference.gradients)
    return Comparison(
        backend,
        device,
        dtype,
        output=_difference(results.output, reference.output),
        state=_difference(results.state, reference.state),
        gradients=gradients,
    )


def _difference(arrays: Mapping[str, Array], reference: Mapping[str, Array]) -> float:
    differences = []
    for name, expected in reference.items():
        if name not in arrays:
            raise ArgumentError(f"{name}: missing; given {', '.join(arrays) or 'nothing'}")
        array = arrays[name]
        if array.shape != expected.shape:
            raise ShapeError(f"{name}: given shape {array.shape}, expected {expected.shape}")
        differences.append(relative_difference(array, expected))
    return float(np.max(differences))  # unlike Python's max, NumPy's returns NaN if any of them is NaN
