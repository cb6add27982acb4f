"""Parity: whether backends compute the same numbers.

Each backend builds one spec with the same weights, runs the same ragged batch, and is compared with
`unirnn.testing.oracle`, which computes in float64 and shares no code with any backend. Only the members of
`unirnn.contract.backend.Backend` are used, so a third party's backend is compared like any other.

What is compared is the computation, not the rounding of its inputs: weights and batch are drawn once and rounded to the
dtype under test, and the oracle gets the rounded numbers. The batch is a hard one: its lengths are in no order, one of
them is 0 and one is T, the initial state is not zero, and the padding is NaN.
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
    """How far one backend is from the oracle, on one device and in one dtype.

    The difference of an array is its largest absolute difference, divided by the oracle's largest absolute value.
    The difference of several arrays is the largest of theirs. It is NaN where the backend computes a NaN.

    Parameters
    ----------
    backend
        The backend's name.
    device
        Where it ran: the backend's default device.
    dtype
        The name of the dtype in which it computed.
    output, state
        Differences of the output and of the final state.
    gradients
        Difference of the gradients with respect to the input, the initial state and each weight. None if the
        backend has no gradients, or for a relu RNN in half precision: the slope of a relu jumps at 0, where rounding
        decides on which side a value is.
    cause
        If a difference is out of tolerance: the usual mistake that explains it, in words, if one does; see
        `unirnn.testing.causes`.
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
        """Whether every difference is within the tolerance; a NaN is not."""
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
        The reason, in words.
    """

    backend: str
    reason: str


@dataclass(frozen=True)
class Parity:
    """The result of `compare`; iterating over it gives the comparisons.

    Parameters
    ----------
    spec
        What was built.
    comparisons
        One for each backend and dtype that ran.
    left_out
        The backends that nobody named and that can't be compared here: one is not installed or broken, lacks the spec
        or a dtype, or needs further options of `Spec.build`.
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
        """Whether something was compared, all of it is within tolerance, and nothing failed."""
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
    """Compare backends, each on its default device, with the oracle.

    Parameters
    ----------
    spec
        What to build. Its ``dropout`` is taken as 0, since each framework drops other elements.
    backends
        Their names; None: every registered backend that is installed and builds without further options.
    dtypes
        Names of dtypes; None: float32, and float64 where the backend has it.
    steps, batch_size
        T and B of the batch.
    seed
        Draws the weights and the batch.

    Returns
    -------
    Parity
        The comparisons, and which backends were left out.

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
                # float64 is tried even where nobody asked for it, and may be a limit of this device.
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
            except Exception as error:  # any error of one backend is a finding, and must not stop the others
                failures.append(_failure(name, dtype, error))
    # A backend that builds in no dtype says so once.
    return Parity(spec, tuple(comparisons), tuple(dict.fromkeys(left_out)), tuple(failures))


def _why_not_built(backend: Backend, error: UnirnnError) -> str:
    if isinstance(error, ArgumentError) and backend.required_options:
        return f"it needs the option {', '.join(backend.required_options)} of build, and can't be compared without one"
    return str(error)


def _failure(name: str, dtype: str, error: Exception) -> Note:
    return Note(name, f"{dtype}: {type(error).__name__}: {error}")


class _Trial(NamedTuple):
    """What every backend gets, rounded to one dtype; NumPy lacks bfloat16, whose numbers are in float32."""

    spec: RecurrentSpec
    weights: dict[str, Array]
    input: Array
    hx: tuple[Array, ...]
    seq_length: NDArray[np.int64]
    d_output: Array
    d_state: tuple[Array, ...]


class _Results(NamedTuple):
    """Arrays by name; ``gradients`` is None if there are none to compare."""

    output: dict[str, Array]
    state: dict[str, Array]
    gradients: dict[str, Array] | None


def _draw(spec: RecurrentSpec, dtype: str, steps: int, batch_size: int, seed: int) -> _Trial:
    weights = {name: _round(array, dtype) for name, array in _weights.draw(spec, seed).items()}
    # Another stream, so that the batch repeats none of the numbers of the weights.
    generator = np.random.default_rng([seed, 2])

    def normal(shape: tuple[int, ...]) -> Array:
        return _round(generator.standard_normal(shape), dtype)

    seq_length = generator.integers(0, steps, batch_size)
    seq_length[:2] = (0, steps)[-batch_size:]  # 0, then T, then less than T: in no order
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
    """The oracle's results from the trial's numbers."""

    def widen(array: Array) -> Array:
        return array.astype(np.float64)

    spec, lengths = trial.spec, trial.seq_length
    weights = {name: widen(array) for name, array in trial.weights.items()}
    input, hx = widen(trial.input), tuple(map(widen, trial.hx))
    output, state = oracle.recurrent(spec, weights, input, hx, lengths)
    gradients = None
    if not (isinstance(spec, RNNSpec) and spec.nonlinearity == "relu" and dtype in ("float16", "bfloat16")):
        names = oracle.names_of_state(spec)
        initial = dict(zip(names.values(), hx, strict=True))
        cotangents = (widen(trial.d_output), *map(widen, trial.d_state))
        found = oracle.gradients(spec, {"input": input, **initial, **weights}, lengths, cotangents)
        renamed = {own: name for name, own in names.items()}
        gradients = {renamed.get(name, name): gradient for name, gradient in found.items()}
    return _Results({"output": output}, _named(spec, state), gradients)


def _run(backend: Backend, module: Any, trial: _Trial) -> _Results:
    """What a module computes."""
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
    """The usual mistake that a backend makes, from a small batch: with numbers in its padding, then with NaN."""
    nan = _draw(spec, comparison.dtype, 6, 4, seed)
    garbage = np.random.default_rng([seed, 4]).standard_normal(nan.input.shape).astype(nan.input.dtype)
    for trial in (nan._replace(input=np.where(np.isnan(nan.input), garbage, nan.input)), nan):
        results = _run(backend, module, trial)
        batch = Batch(trial.input, trial.seq_length, join_state(trial.hx), batch_first=spec.batch_first)
        output, state = results.output["output"], list(results.state.values())
        cause = causes.recurrent_cause(spec, trial.weights, batch, output, state, comparison.tolerance)
        if cause is None and results.gradients is not None:
            cause = _cause_of_gradients(trial, results.gradients, comparison.tolerance)
        if cause is not None:
            return cause
    return None


def _cause_of_gradients(trial: _Trial, gradients: dict[str, Array], tolerance: float) -> str | None:
    names = oracle.names_of_state(trial.spec)
    found = {names.get(name, name): gradient for name, gradient in gradients.items()}
    given = {"input": trial.input, **dict(zip(names.values(), trial.hx, strict=True)), **trial.weights}
    arrays = {name: array.astype(np.float64) for name, array in given.items()}
    cotangents = tuple(d.astype(np.float64) for d in (trial.d_output, *trial.d_state))
    return causes.recurrent_gradient_cause(trial.spec, arrays, trial.seq_length, cotangents, found, tolerance)


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
    return float(np.max(differences))  # unlike Python's max, NumPy's is NaN if one of them is
