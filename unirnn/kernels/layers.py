"""The kernels: forward and backward over packed valid steps, on a CPU, over NumPy's arrays.

One idea makes them fast, and keeps to the rule for ``seq_length`` without a mask:

1. *Pack.* The sequences are sorted by length, longest first, and their valid steps are gathered into rows, step by
   step. The padding is never read. The sequences that are active at step t are the first ones.
2. *Project.* For each chunk of a few hundred rows, one product computes the input's part of all gates.
3. *Step* over the active rows. The state of a sequence that has ended, or in the reverse direction has not begun, stays
   as it is, so a sequence of length 0 ends in its initial state.
4. *Step back.* The gradient of a step is linear in the gradient of the state, so what does not depend on that is
   computed for a whole chunk at once, and the gradient of each weight is one product for each chunk.

The module `directions` has what all cells share, `by_numpy` the cells as calls of NumPy, and `by_numba` the cells as
compiled loops, where numba is installed. `threads` divides large layers. float16 is computed in float32.
"""

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unirnn.contract.limits import Support
from unirnn.errors import LimitError
from unirnn.kernels import by_numpy, threads
from unirnn.kernels.directions import Direction, Weights
from unirnn.kernels.packing import Packing
from unirnn.kernels.threads import Threads
from unirnn.registry import install_hint
from unirnn.specs import RecurrentSpec

__all__ = ["SUPPORT", "Pullback", "Weights", "check_numba", "compiled_cell", "direction", "has_numba", "recurrent"]

Array = NDArray[Any]
State = tuple[Array, ...]
Gradients = dict[str, Array]
Pullback = Callable[[Array, State], Gradients]

_DTYPES = ("float16", "float32", "float64")


SUPPORT = {
    "packed": Support("the packed kernel", lacks=("proj_size",), devices=("cpu",), dtypes=_DTYPES, derivatives=1),
    "numba": Support("numba", lacks=("proj_size", "reset_after"), devices=("cpu",), dtypes=_DTYPES, derivatives=1),
}
"""What the kernels compute, by NumPy and compiled by numba."""


def has_numba(spec: RecurrentSpec) -> bool:
    """Whether a spec's layers can be compiled: numba has the cell, and what it needs is installed."""
    supported = SUPPORT["numba"].unsupported_reason(spec) is None
    return supported and not _broken and all(map(_is_installed, _NEEDED))


def check_numba() -> None:
    """Refuse the kernel ``"numba"`` where it is not installed, or can't be imported.

    Raises
    ------
    LimitError
        With what to do about it.
    """
    missing = [package for package in _NEEDED if not _is_installed(package)]
    if missing:
        lacking = f"{', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not installed"
        raise LimitError(f"kernel: given 'numba', but {lacking}; to install: {install_hint('numba')}")
    if _compiled_cells() is None:
        raise LimitError(f"kernel: given 'numba', which is installed, but can't be imported ({_broken[0]})")


@functools.cache
def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


_NEEDED = ("numba", "scipy", "threadpoolctl")
"""What compiled steps need: for the steps themselves, their products, and their threads."""

_broken: list[str] = []
"""Why numba can't be imported, once that has failed."""


@functools.cache
def _compiled_cells() -> dict[str, type[Direction]] | None:
    """The cells of `by_numba`, whose import takes half a second; None, with a warning, if it fails."""
    try:
        importlib.import_module("scipy.linalg.cython_blas")  # numba looks for it when it compiles a product
        from unirnn.kernels.by_numba import CELLS
    except (ImportError, OSError, AttributeError) as error:  # such as a numba that is older than this NumPy
        _broken.append(str(error))
        message = f"numba can't be imported ({error}); unirnn computes without it, which is slower"
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return None
    return CELLS


def compiled_cell(spec: RecurrentSpec) -> type[Direction] | None:
    """The cell that numba compiles; None where `has_numba` says no, and where numba turns out not to be importable."""
    cells = _compiled_cells() if has_numba(spec) else None
    return None if cells is None else cells[spec.kind]


def _packed(
    spec: RecurrentSpec, lengths: NDArray[np.int64], steps: int, compiled: bool, most: int | None = None
) -> tuple[type[Direction], Packing]:
    """The cell that computes the steps, and the packing.

    For numba the packing is divided into a part for each thread, at most ``most``, if the layer is large enough.
    """
    cell = compiled_cell(spec) if compiled else None
    if cell is None:
        cell = by_numpy.GRUResetBefore if "reset_after" in spec.uncommon() else by_numpy.CELLS[spec.kind]
        return cell, Packing.of(lengths, steps)
    count = _threads_of_numba() if most is None else min(most, _threads_of_numba())
    num_parts = threads.num_parts(spec, np.count_nonzero(lengths), int(lengths.sum()), count)
    return cell, Packing.of(lengths, steps, num_parts)


def _threads_of_numba() -> int:
    """How many threads numba has: NUMBA_NUM_THREADS, or else the number of cores."""
    count: int = importlib.import_module("numba").config.NUMBA_NUM_THREADS
    return count


def _computed(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32) if dtype == np.float16 else dtype


def direction(
    spec: RecurrentSpec,
    weights: Weights,
    x: Array,
    state: State,
    lengths: NDArray[np.int64],
    *,
    backward: bool,
    keep: bool,
    compiled: bool = False,
    num_threads: int | None = None,
) -> tuple[Array, State, Callable[[Array, State], tuple[Array, State, Weights]]]:
    """Run one layer in one direction.

    Parameters
    ----------
    spec
        The layer; its sizes are taken from the arrays.
    weights
        Of this layer and direction.
    x
        `(T, B, I)`; float16, float32 or float64.
    state
        Initial state, `(B, H)` each.
    lengths
        `(B,)`, checked.
    backward
        Whether it runs from the last valid step to the first.
    keep
        Whether the pullback will be called; without it no more memory is taken than a few hundred rows need.
    compiled
        Whether numba computes the steps, rather than NumPy; see `has_numba`.
    num_threads
        The most threads that numba and BLAS may use; for BLAS this holds in the whole process during the call. None: no
        limit.

    Returns
    -------
    outputs
        `(T, B, H)`, zero in the padding.
    final_state
        `(B, H)` each.
    pullback
        ``pullback(d_outputs, d_final_state)`` gives the gradients of x, the initial state and the weights.
    """
    compute = _computed(x.dtype)

    def widen(array: Any) -> Any:
        return None if array is None else array.astype(compute, copy=False)

    def narrow(array: Any) -> Any:
        return None if array is None else array.astype(x.dtype, copy=False)

    cell, packing = _packed(spec, lengths, x.shape[0], compiled, num_threads)
    run = Threads(cell, spec, Weights(*map(widen, weights)), packing, backward=backward)
    rows = packing.pack(widen(x))
    with threads.blas.of(num_threads):
        outputs, final = run.forward(rows, tuple(packing.sort(widen(part)) for part in state), keep=keep)

    def pullback(d_outputs: Array, d_final: State) -> tuple[Array, State, Weights]:
        d_rows = np.empty_like(rows)
        with threads.blas.of(num_threads):
            d_state, d_weights = run.backward(
                packing.pack(widen(d_outputs)), tuple(packing.sort(widen(part)) for part in d_final), d_x=d_rows
            )
        return (
            narrow(packing.unpack(d_rows)),
            tuple(narrow(packing.unsort(part)) for part in d_state),
            Weights(*map(narrow, d_weights)),
        )

    output = narrow(packing.unpack(outputs))
    if keep and np.may_share_memory(output, outputs):
        output = output.copy()  # the caller may write over it before the backward pass
    return output, tuple(narrow(packing.unsort(part)) for part in final), pullback


def recurrent(
    spec: RecurrentSpec,
    weights: Mapping[str, Array],
    x: Array,
    hx: State | None,
    lengths: NDArray[np.int64] | None,
    *,
    noise: Array | None = None,
    keep: bool,
    compiled: bool = False,
) -> tuple[Array, State, Pullback]:
    """Run a whole stack of layers.

    Parameters
    ----------
    spec
        The layers; ``proj_size`` must be 0.
    weights
        By the names of `Spec.weight_shapes`, of the input's dtype.
    x
        `(T, B, I)`; float16, float32 or float64.
    hx
        Initial state, `(L*D, B, H)` each; None is zeros.
    lengths
        `(B,)`, checked; None if every step is valid.
    noise
        `(L-1, T, B, D*H)`: what the output of every layer but the last is multiplied with (dropout).
    keep
        Whether the pullback will be called; see `direction`.
    compiled
        Whether numba computes the steps, rather than NumPy; see `has_numba`.

    Returns
    -------
    output
        `(T, B, D*H)`, zero in the padding.
    final_state
        As ``hx``.
    pullback
        ``pullback(d_output, d_final_state)`` gives the gradients by name: ``input`` `(T, B, I)`, ``h_0`` (and
        ``c_0``), and each weight.
    """
    dtype = x.dtype
    compute = _computed(dtype)
    steps, batch_size, _ = x.shape
    cell, packing = _packed(spec, np.full(batch_size, steps) if lengths is None else lengths, steps, compiled)
    shapes = spec.state_shapes(batch_size).values()

    def widen(array: Array) -> Array:
        return array.astype(compute, copy=False)

    def read_state(state: State) -> State:
        return tuple(packing.sort(widen(part)) for part in state)

    def write_state(directions: list[State]) -> State:
        parts = (part[0][None] if len(part) == 1 else np.stack(part) for part in zip(*directions, strict=True))
        return tuple(packing.unsort(part).astype(dtype, copy=False) for part in parts)

    def cast(name: str) -> Array | None:
        return widen(weights[name]) if name in weights else None

    initial = tuple(np.zeros(shape, compute) for shape in shapes) if hx is None else read_state(hx)
    rows_noise = None if noise is None else [packing.pack(widen(layer)) for layer in noise]
    width, suffixes = spec.num_directions, spec.suffixes()
    runs: list[Threads] = []
    inputs: list[Array] = []
    finals: list[State] = []
    rows = packing.pack(widen(x))
    if keep and np.may_share_memory(rows, x):
        rows = rows.copy()  # the caller may write over it before the backward pass
    for layer in range(spec.num_layers):
        outputs = []
        for backward in range(width):
            position = layer * width + backward
            w = Weights(*(cast(name + suffixes[position]) for name in Weights._fields))
            run = Threads(cell, spec, w, packing, backward=bool(backward))
            out, final = run.forward(rows, tuple(part[position] for part in initial), keep=keep)
            outputs.append(out)
            finals.append(final)
            runs.append(run)
        inputs.append(rows)
        rows = outputs[0] if width == 1 else np.concatenate(outputs, axis=1)
        if rows_noise is not None and layer < spec.num_layers - 1:
            rows = rows * rows_noise[layer]

    def pullback(d_output: Array, d_final: State) -> Gradients:
        d_rows = packing.pack(widen(d_output))
        d_finals = read_state(d_final)
        gradients: Gradients = {}
        d_initials: list[State] = [()] * len(runs)
        for layer in reversed(range(spec.num_layers)):
            if rows_noise is not None and layer < spec.num_layers - 1:
                d_rows = d_rows * rows_noise[layer]
            d_x: Array | None = None
            for backward in range(width):
                position = layer * width + backward
                d_out = d_rows[:, backward * spec.hidden_size : (backward + 1) * spec.hidden_size]
                part = np.empty_like(inputs[layer])
                d_initials[position], d_weights = runs[position].backward(
                    d_out, tuple(d[position] for d in d_finals), d_x=part
                )
                d_x = part if d_x is None else d_x + part
                for name, gradient in zip(Weights._fields, d_weights, strict=True):
                    if gradient is not None:
                        gradients[name + suffixes[position]] = gradient.astype(dtype, copy=False)
            assert d_x is not None
            d_rows = d_x
        d_hx = {f"{name}_0": part for name, part in zip(spec.states, write_state(d_initials), strict=True)}
        return {"input": packing.unpack(d_rows).astype(dtype, copy=False), **d_hx, **gradients}

    output = packing.unpack(rows).astype(dtype, copy=False)
    if keep and np.may_share_memory(output, rows):
        output = output.copy()
    return output, write_state(finals), pullback
