"""The numbers of the compiled kernels at many sizes, on the instruction set that the process has chosen.

The conformance suite checks everything else, such as lengths, layouts and stacks.
"""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec, kernels
from unirnn.contract.call import Batch
from unirnn.kernels import KernelName, compiled, library
from unirnn.testing import oracle

Array = NDArray[Any]

pytestmark = pytest.mark.skipif(not kernels.is_compiled(), reason=str(library.why_not()))

GATED: dict[str, tuple[type[RecurrentSpec], dict[str, Any]]] = {
    "GRU": (GRUSpec, {}),
    "GRU_RESET_BEFORE": (GRUSpec, {"reset_after": False}),
    "LSTM": (LSTMSpec, {}),
}
CELLS: dict[str, tuple[type[RecurrentSpec], dict[str, Any]]] = {
    "RNN_TANH": (RNNSpec, {}),
    "RNN_RELU": (RNNSpec, {"nonlinearity": "relu"}),
    **GATED,
    "LSTM_PROJECTED": (LSTMSpec, {"proj_size": None}),  # two thirds of the hidden size
}
HARD = {
    f"{cell}_HARD_SIGMOID{end}": (kind, {**own, "gate_activation": f"hard_sigmoid{end.replace('_0', '_0.')}"})
    for cell, (kind, own) in (GATED | {"LSTM_PROJECTED": CELLS["LSTM_PROJECTED"]}).items()
    for end in ("", "_02")
}
TOLERANCE = {"float32": 3e-6, "float64": 1e-13}


def make(cell: str, input_size: int, hidden_size: int, **arguments: Any) -> RecurrentSpec:
    kind, own = (CELLS | HARD)[cell]
    if "proj_size" in own:
        own = {**own, "proj_size": hidden_size * 2 // 3}
    return kind(input_size, hidden_size, **own, **arguments)


def draw(spec: RecurrentSpec, steps: int, lengths: Sequence[int], dtype: str, seed: int) -> dict[str, Array]:
    """The arrays of a call and the cotangents of its results, with NaN in the padding."""
    rng = np.random.default_rng(seed)
    arrays = {"input": rng.standard_normal((steps, len(lengths), spec.input_size))}
    arrays |= {f"{name}_0": rng.standard_normal(s) for name, s in spec.state_shapes(len(lengths)).items()}
    bound = spec.hidden_size**-0.5
    arrays |= {name: rng.uniform(-bound, bound, shape) for name, shape in spec.weight_shapes().items()}
    arrays["d_output"] = rng.standard_normal((steps, len(lengths), spec.num_directions * spec.output_size))
    arrays |= {f"d_{name}_n": rng.standard_normal(s) for name, s in spec.state_shapes(len(lengths)).items()}
    for name in ("input", "d_output"):
        arrays[name][np.arange(steps)[:, None] >= np.array(lengths, int)] = np.nan
    return {name: array.astype(dtype) for name, array in arrays.items()}


def run(spec: RecurrentSpec, arrays: dict[str, Array], lengths: Sequence[int] | None) -> dict[str, Array]:
    """The results of the compiled kernel and its gradients, by name."""
    hx = tuple(arrays[f"{name}_0"] for name in spec.states)
    ns = None if lengths is None else np.array(lengths, np.int64)
    output, final, pullback = kernels.recurrent(
        spec, {n: arrays[n] for n in spec.weight_shapes()}, Batch(arrays["input"], hx, ns), keep=True, kernel="compiled"
    )
    gradients = pullback(arrays["d_output"], tuple(arrays[f"d_{name}_n"] for name in spec.states))
    finals = {f"{name}_n": part for name, part in zip(spec.states, final, strict=True)}
    return {"output": output, **finals, **{f"d_{name}": gradient for name, gradient in gradients.items()}}


def expected(spec: RecurrentSpec, arrays: dict[str, Array], lengths: Sequence[int]) -> dict[str, Array]:
    """The same results and gradients from the oracle, in float64."""
    wide = {name: np.nan_to_num(array.astype(np.float64)) for name, array in arrays.items()}
    weights = {name: wide[name] for name in spec.weight_shapes()}
    hx = tuple(wide[f"{name}_0"] for name in spec.states)
    ns = np.array(lengths, int)
    output, final = oracle.recurrent(spec, weights, wide["input"], hx, ns)
    given = {"input": wide["input"], **{f"{n}_0": wide[f"{n}_0"] for n in spec.states}, **weights}
    cotangents = (wide["d_output"], *(wide[f"d_{name}_n"] for name in spec.states))
    gradients = oracle.gradients(spec, given, ns, cotangents)
    finals = {f"{name}_n": part for name, part in zip(spec.states, final, strict=True)}
    return {"output": output, **finals, **{f"d_{name}": gradient for name, gradient in gradients.items()}}


@settings(max_examples=max(200, settings().max_examples))
@given(
    cell=st.sampled_from([*CELLS, *HARD]),
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=9),
    input_size=st.integers(1, 40),
    hidden_size=st.integers(1, 70),
    bidirectional=st.booleans(),
    bias=st.booleans(),
    dtype=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 99),
)
def test_results_and_gradients_agree_with_the_oracle(
    cell: str,
    lengths: list[int],
    input_size: int,
    hidden_size: int,
    bidirectional: bool,
    bias: bool,
    dtype: str,
    seed: int,
) -> None:
    spec = make(cell, input_size, hidden_size, bidirectional=bidirectional, bias=bias)
    arrays = draw(spec, 6, lengths, dtype, seed)
    found, wanted = run(spec, arrays, lengths), expected(spec, arrays, lengths)
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        if cell in HARD and dtype == "float32" and name.startswith("d_"):
            continue  # rounding may move a value across a corner, where the slope changes
        scale = max(1.0, float(np.abs(array).max(initial=0)))
        np.testing.assert_allclose(found[name], array, rtol=0, atol=TOLERANCE[dtype] * scale, err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize(("steps", "batch_size", "size"), [(3, 300, 5), (700, 1, 20), (2, 40, 300), (2, 1, 520)])
def test_large_sizes_are_computed_in_several_pieces(cell: str, steps: int, batch_size: int, size: int) -> None:
    spec, lengths = make(cell, size, size), [steps] * batch_size
    arrays = draw(spec, steps, lengths, "float64", 0)
    found, wanted = run(spec, arrays, None), expected(spec, arrays, lengths)
    for name, array in wanted.items():
        scale = max(1.0, float(np.abs(array).max()))
        np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-12 * scale, err_msg=name)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_results_do_not_depend_on_the_number_of_threads(cell: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spec, lengths = make(cell, 60, 70, bidirectional=True), [40, 3, 0, 17, 17, 40, 1, 25, 8, 30, 12, 40, 5]
    arrays = draw(spec, 40, lengths, dtype, 0)
    results = []
    for count in (1, 2, 3):
        monkeypatch.setattr(compiled, "num_threads", partial(int, count))
        results.append(run(spec, arrays, lengths))
    for other in results[1:]:
        for name, array in results[0].items():
            np.testing.assert_array_equal(array, other[name], err_msg=name)


ALONE = """
import threading
import numpy as np
import unirnn

try:
    threading.Thread(target=int).start()
except RuntimeError:
    pass
else:
    raise SystemExit("a thread could be made")
net = unirnn.LSTMSpec(64, 64).build("numpy", seed=0)
x = np.random.default_rng(0).standard_normal((60, 32, 64)).astype(np.float32)
found = []
for count in (3, 1):
    unirnn.kernels.compiled.num_threads = lambda: count
    output, final, pullback = net.vjp(x)
    found.append([output, *final, *pullback(output, final).values()])
for many, one in zip(*found, strict=True):
    np.testing.assert_array_equal(many, one)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limit of a thread's stack")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer can't run with such a stack")
def test_a_call_is_whole_where_no_threads_can_be_made() -> None:
    import resource

    def limit() -> None:  # the stack that each new thread would get is as large as all memory that there can be
        resource.setrlimit(resource.RLIMIT_STACK, (1 << 47, resource.getrlimit(resource.RLIMIT_STACK)[1]))

    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", ALONE], check=True, preexec_fn=limit, env=environment)


@pytest.mark.parametrize(("wanted", "count"), [("3", 3), ("2,1", 2), ("", None), ("many", None), ("0", None)])
def test_the_number_of_threads_is_omp_num_threads_or_the_cores(
    wanted: str, count: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", wanted)
    assert compiled.num_threads.__wrapped__() == (count or len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("cell", CELLS)
def test_a_sequence_has_the_same_bits_in_any_batch(cell: str) -> None:
    spec, steps, count = make(cell, 9, 37), 7, 15
    arrays = draw(spec, steps, [steps] * count, "float32", 0)
    whole = run(spec, arrays, None)
    for begin, end in ((0, 1), (1, 3), (3, 8), (8, 15)):
        of_batch = {n: a[:, begin:end] if a.ndim == 3 else a for n, a in arrays.items()}
        part = run(spec, of_batch, None)
        for name in ("output", "h_n", "d_input", "d_h_0"):
            np.testing.assert_array_equal(part[name], whole[name][:, begin:end], err_msg=name)


def apply_kernel(function: str, x: Array, factor: float = 1) -> Array:
    """Apply the kernels' tanh or gates to many numbers: one unit, and one sequence for each number."""
    hx = np.ones((1, len(x), 1), x.dtype)
    if function == "tanh":
        spec: RecurrentSpec = RNNSpec(1, 1, bias=False)
        weights = {"weight_ih_l0": np.ones((1, 1), x.dtype), "weight_hh_l0": np.zeros((1, 1), x.dtype)}
    else:  # n is 0, so h' = z * h
        gates: Any = function
        spec = GRUSpec(1, 1, bias=False, gate_activation=gates)
        weights = {"weight_ih_l0": np.array([[0], [factor], [0]], x.dtype), "weight_hh_l0": np.zeros((3, 1), x.dtype)}
    output, _, _ = kernels.recurrent(spec, weights, Batch(x[None, :, None], (hx,)), keep=False, kernel="compiled")
    return output[0, :, 0]


@pytest.mark.parametrize("function", ["tanh", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_tanh_and_sigmoid_are_accurate_over_the_whole_range(function: str, dtype: str) -> None:
    """They are within 3 units in the last place of NumPy's result in a longer type."""
    tiny = np.finfo(dtype).smallest_subnormal
    magnitudes = np.concatenate((np.geomspace(float(tiny) * 2**60, 800, 20_000), np.arange(1, 60) * float(tiny)))
    x = np.concatenate((-magnitudes, [0.0], magnitudes)).astype(dtype)
    wide = x.astype(np.longdouble)
    with np.errstate(over="ignore", under="ignore"):
        exact = np.tanh(wide) if function == "tanh" else 1 / (1 + np.exp(-wide))
        wanted = exact.astype(dtype)
        unit = np.maximum(np.spacing(np.abs(wanted)), tiny)
    error = np.abs(apply_kernel(function, x).astype(np.longdouble) - exact) / unit
    assert error.max() <= 3, (x[error.argmax()], error.max())


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_infinities_and_nan_follow_ieee(dtype: str) -> None:
    x = np.array([np.inf, -np.inf, np.nan, -0.0], dtype)
    np.testing.assert_array_equal(apply_kernel("tanh", x), np.array([1, -1, np.nan, -0.0], dtype))
    # The other gates multiply x by 0, so x must be finite; the tested gate's weight makes it infinite.
    largest = np.finfo(dtype).max
    x = np.array([largest, -largest, np.nan, -0.0], dtype)
    for function in ("sigmoid", "hard_sigmoid", "hard_sigmoid_0.2"):
        found = apply_kernel(function, x, 4)
        np.testing.assert_array_equal(found, np.array([1, 0, np.nan, 0.5], dtype), err_msg=function)


@pytest.mark.parametrize("cell", CELLS)
def test_inputs_of_any_strides_give_the_same_results(cell: str) -> None:
    spec, lengths = make(cell, 5, 11), [4, 0, 2]
    arrays = draw(spec, 4, lengths, "float32", 0)
    expected_results = run(spec, arrays, lengths)
    changes: list[Callable[[Array], Array]] = [
        lambda a: np.ascontiguousarray(a.swapaxes(0, 1)).swapaxes(0, 1),  # the memory layout of batch_first
        lambda a: np.ascontiguousarray(a[::-1])[::-1],
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(a, 2, axis=2)[:, :, ::2],
    ]
    for change in changes:
        moved = arrays | {name: change(arrays[name]) for name in ("input", "d_output", "h_0", "d_h_n")}
        for name, array in run(spec, moved, lengths).items():
            np.testing.assert_array_equal(array, expected_results[name], err_msg=name)


@pytest.mark.parametrize("kernel", ["compiled", "fallback"])
def test_a_gradient_shows_a_nan_of_relu(kernel: KernelName) -> None:
    """As in torch, whose gradient of relu is zero where the result is at most 0, which NaN is not."""
    weights = {"weight_ih_l0": np.ones((1, 1)), "weight_hh_l0": np.ones((1, 1))}
    spec, x = RNNSpec(1, 1, nonlinearity="relu", bias=False), np.array([[[1.0]], [[np.nan]], [[1.0]]])
    output, _, pullback = kernels.recurrent(spec, weights, Batch(x), keep=True, kernel=kernel)
    found = pullback(np.ones_like(output), (np.zeros((1, 1, 1)),))
    assert np.isnan(found["weight_ih_l0"]).all()
    np.testing.assert_array_equal(found["input"].ravel(), [3, 2, 1])


def test_python_and_c_agree_on_how_much_is_kept() -> None:
    found = library.load()
    assert found is not None
    cells = range(-1, len(compiled.KEPT) + 1)
    assert [found.unirnn_kept(k) for k in cells] == [0, *compiled.KEPT.values(), 0]


@pytest.mark.parametrize(
    ("lengths", "cell", "proj_size", "has_weight_hr"),
    [
        ([3, -1], "GRU", 0, False),
        ([3, 5], "GRU", 0, False),
        ([3, 1], "unknown", 0, False),
        ([3, 1], "GRU", 1, True),
        ([3, 1], "LSTM", 2, True),  # as large as the hidden size
        ([3, 1], "LSTM", 1, False),
    ],
)
def test_the_library_refuses_to_read_outside_of_the_arrays(
    lengths: list[int], cell: str, proj_size: int, has_weight_hr: bool
) -> None:
    """Our own callers never pass such arguments; the library refuses them all the same, and computes nothing."""
    ns = np.array(lengths)
    which, sizes = compiled._CELLS.get(cell, len(compiled.KEPT)), (4, 2, 1, 2, proj_size)
    weight_hr = ns.ctypes.data if has_weight_hr else 0
    layer = compiled._LAYER.pack(which, 0, 0, 1, *sizes, ns.ctypes.data, *[0] * 5, weight_hr, *[0] * 11)
    with pytest.raises(RuntimeError, match="the compiled kernels: error"):
        compiled.forward(layer)


def test_every_size_around_the_vector_width_is_right() -> None:
    """Every size up to a little over two of the widest vectors, so that the last vector is full or partly filled."""
    for cell, (input_size, hidden_size) in itertools.product(
        CELLS, [(1, n) for n in range(1, 36)] + [(33, 3), (16, 32)]
    ):
        spec = make(cell, input_size, hidden_size)
        arrays = draw(spec, 2, [2, 1], "float32", 0)
        found, wanted = run(spec, arrays, [2, 1]), expected(spec, arrays, [2, 1])
        for name, array in wanted.items():
            np.testing.assert_allclose(found[name], array, rtol=0, atol=1e-5, err_msg=f"{spec} {name}")
