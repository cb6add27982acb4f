"""Parity: whether backends compute the same numbers.

Each backend builds one spec with the same weights, runs the same ragged batch, and is held against an
oracle, the ``numpy`` backend in float64. Only the members of `unirnn.contract.backend.Backend` are used, so that a
third party's backend is compared like any other.

What is compared is the computation, not the rounding of what goes into it: weights and batch are drawn
once, rounded to the dtype under test, and the oracle takes those very numbers. The batch is a hard one:
lengths in no order, one of them 0 and one T, an initial state that is not zero, and NaN in the padding.
"""

import functools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
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

__all__ = ["TOLERANCES", "Comparison", "Note", "Parity", "compare"]

Array = NDArray[Any]

ORACLE = "numpy"
"""The backend that computes the reference, in float64."""

TOLERANCES: Mapping[str, float] = MappingProxyType(
    {"float64": 1e-12, "float32": 1e-5, "float16": 2e-2, "bfloat16": 1.6e-1}
)
"""The largest relative difference that is within tolerance, by dtype.

Those of float64 and float32 are unirnn's promise. Those of float16 and bfloat16 are twenty times the
dtype's epsilon: a framework may round after each operation, and torch's gradients on a CPU, which do, are
up to six epsilons away at T = 100.
"""


@dataclass(frozen=True)
class Comparison:
    """How far one backend is from the oracle, on one device and in one dtype.

    A difference is relative: of an array, the largest absolute difference by the oracle's largest absolute
    value; of several arrays, the largest of theirs; NaN where the backend computes a NaN.

    Parameters
    ----------
    backend
        The backend's name.
    device
        Where it ran: the backend's default device.
    dtype
        The name of the dtype in which it ran.
    output, state
        Differences of the output and of the final state.
    gradients
        Difference of the gradients with respect to the input, the initial state and each weight. None if the
        backend is not differentiable, or if the cell is a relu RNN in half precision: the slope of a relu
        jumps at 0, and there the rounding decides on which side a value is.
    """

    backend: str
    device: Device
    dtype: str
    output: float
    state: float
    gradients: float | None

    @property
    def tolerance(self) -> float:
        """What each difference may be; see `TOLERANCES`."""
        return TOLERANCES[self.dtype]

    @property
    def within(self) -> bool:
        """Whether every difference is within the tolerance; a NaN is not."""
        differences = (self.output, self.state, self.gradients)
        return all(difference <= self.tolerance for difference in differences if difference is not None)


@dataclass(frozen=True)
class Note:
    """Why there is no comparison of a backend.

    Parameters
    ----------
    backend
        The backend's name.
    reason
        What it said.
    """

    backend: str
    reason: str


@dataclass(frozen=True)
class Parity:
    """What `compare` found; iterated, the comparisons.

    Parameters
    ----------
    spec
        What was built.
    comparisons
        One for each backend and dtype that ran.
    left_out
        What was not asked for by name, and can't be built here: a backend that is not installed or is broken,
        lacks a dtype, or needs further options.
    failures
        What was built and then raised an error, or gave an array of the wrong shape.
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
        What to build; its ``dropout`` is taken as 0, since what it drops is each framework's own.
    backends
        Their names; None is every registered one that is installed and builds without further options.
    dtypes
        Names of dtypes; None is float32, and float64 where the backend has it.
    steps, batch_size
        T and B of the batch.
    seed
        Draws the weights and the batch.

    Returns
    -------
    Parity
        The comparisons, and what was left out.

    Raises
    ------
    BackendError
        If a backend that was asked for by name can't be had.
    ArgumentError, DeviceError, LimitError
        If a backend that was asked for by name can't build the spec; LimitError also if the oracle can't.
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
    by_name = backends is not None
    asked = None if dtypes is None else tuple(dict.fromkeys(dtype_name(dtype) for dtype in dtypes))
    spec = RecurrentSpec.from_dict({**spec.to_dict(), "dropout": 0.0})

    comparisons: list[Comparison] = []
    left_out: list[Note] = []
    failures: list[Note] = []
    loaded: dict[str, Backend] = {}
    for name in registry.backends() if backends is None else backends:
        try:
            loaded[name] = registry.load(name)
        except BackendError as error:
            if by_name:
                raise
            left_out.append(Note(name, str(error)))

    @functools.cache
    def prepare(dtype: str) -> tuple[_Trial, _Results]:
        trial = _draw(spec, dtype, steps, batch_size, seed)
        reference = _reference(trial)
        if isinstance(spec, RNNSpec) and spec.nonlinearity == "relu" and dtype in ("float16", "bfloat16"):
            reference = reference._replace(gradients=None)
        return trial, reference

    for name, room in loaded.items():
        for dtype in asked or tuple(d for d in ("float32", "float64") if d in room.support.dtypes):
            trial, reference = prepare(dtype)
            try:
                device = room.default_device()
                module = trial.snapshot.build(name, device=device, dtype=dtype)
            except UnirnnError as error:
                # float64 may be tried unasked, and be a limit on this device.
                if by_name and (asked or dtype == "float32"):
                    raise
                left_out.append(Note(name, str(error)))
                continue
            except Exception as error:
                failures.append(_failure(name, dtype, error))
                continue
            try:
                comparisons.append(_compare(_run(room, module, trial), reference, name, device, dtype))
            except Exception as error:  # whatever it raises is a finding, and concerns this backend alone
                failures.append(_failure(name, dtype, error))
    # A backend that builds in no dtype says so once.
    return Parity(spec, tuple(comparisons), tuple(dict.fromkeys(left_out)), tuple(failures))


class _Trial(NamedTuple):
    """What every backend gets, in the numbers of one dtype; bfloat16, which NumPy lacks, is held in float32."""

    snapshot: Snapshot
    input: Array
    hx: tuple[Array, ...]
    seq_length: NDArray[np.int64]
    d_output: Array
    d_state: tuple[Array, ...]


class _Results(NamedTuple):
    """Arrays by name; ``gradients`` is None where there are none to compare."""

    output: dict[str, Array]
    state: dict[str, Array]
    gradients: dict[str, Array] | None


def _draw(spec: RecurrentSpec, dtype: str, steps: int, batch_size: int, seed: int) -> _Trial:
    weights = {name: _round(array, dtype) for name, array in _weights.draw(spec, seed).items()}
    # A stream of its own, so that the batch repeats none of the numbers that made the weights.
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
        Snapshot(spec, weights),
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


def _reference(trial: _Trial) -> _Results:
    def exact(array: Array) -> Array:
        return array.astype(np.float64)

    in_float64 = trial._replace(
        input=exact(trial.input),
        hx=tuple(map(exact, trial.hx)),
        d_output=exact(trial.d_output),
        d_state=tuple(map(exact, trial.d_state)),
    )
    return _run(registry.load(ORACLE), trial.snapshot.build(ORACLE, dtype="float64"), in_float64)


def _run(room: Backend, module: Any, trial: _Trial) -> _Results:
    spec = trial.snapshot.spec
    hx = join_state([room.from_numpy(part, module) for part in trial.hx])
    output, state = module(room.from_numpy(trial.input, module), hx, trial.seq_length)
    parts = state_parts(spec, state) or ()
    arguments = {"input": trial.input, "hx": join_state(trial.hx), "seq_length": trial.seq_length}
    return _Results(
        {"output": room.to_numpy(output)},
        {f"{name}_n": room.to_numpy(part) for name, part in zip(spec.states, parts, strict=True)},
        room.gradients(module, arguments, (trial.d_output, *trial.d_state)) if room.support.derivatives else None,
    )


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
        largest = np.max(np.abs(expected)) or 1.0
        differences.append(np.max(np.abs(array.astype(np.float64) - expected)) / largest)
    return float(np.max(differences))  # NumPy's, which hands a NaN on


def _failure(name: str, dtype: str, error: Exception) -> Note:
    return Note(name, f"{dtype}: {type(error).__name__}: {error}")
