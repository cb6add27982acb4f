"""The kernels that numba compiles: their tanh, when they are compiled, and what happens without numba."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba.core.dispatcher import Dispatcher

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.contract.call import join_state
from unirnn.kernels import by_numba

SPECS: list[RecurrentSpec] = [RNNSpec(3, 4), GRUSpec(3, 4), LSTMSpec(3, 4)]


@by_numba.compiled
def tanh(x: Any, out: Any) -> None:
    for i in range(x.size):
        out[i] = by_numba.tanh(x[i])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_tanh_is_accurate_to_three_units_in_the_last_place(dtype: type[np.floating[Any]]) -> None:
    info = np.finfo(dtype)
    ends = np.array([info.tiny, info.max, np.inf])
    sizes: Any = np.concatenate((np.linspace(0, 25, 100_001), np.logspace(-30, 2, 10_001), ends))
    x = np.concatenate((sizes, -sizes)).astype(dtype)
    found, expected = np.empty_like(x), np.tanh(x.astype(np.longdouble))
    tanh(x, found)
    assert (np.abs(found - expected) <= 3 * np.spacing(np.abs(expected).astype(dtype))).all()
    assert (np.abs(found) <= 1).all()
    nan = np.full(9, np.nan, dtype)
    tanh(nan, nan)
    assert np.isnan(nan).all()


@given(x=st.lists(st.floats(width=32), min_size=1, max_size=40))
def test_tanh_of_any_number(x: list[float]) -> None:
    array = np.array(x, np.float32)
    found = np.empty_like(array)
    tanh(array, found)
    np.testing.assert_allclose(found, np.tanh(array), rtol=1e-6)


def layouts(array: np.ndarray[Any, Any]) -> Iterator[np.ndarray[Any, Any]]:
    """The same values in several memory layouts."""
    yield array
    yield np.asfortranarray(array)
    wide = np.repeat(array, 2, axis=-1)
    yield wide[..., ::2]
    read_only = array.copy()
    read_only.flags.writeable = False
    yield read_only


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_a_cell_is_compiled_once_for_a_dtype(spec: RecurrentSpec, dtype: str) -> None:
    rng = np.random.default_rng(0)
    results: list[Any] = []
    for bidirectional in (False, True):
        its = RecurrentSpec.from_dict({**spec.to_dict(), "bidirectional": bidirectional})
        shapes = its.state_shapes(2).values()
        arrays = [rng.standard_normal(shape).astype(dtype) for shape in ((5, 2, 3), *shapes)]
        d_arrays = [rng.standard_normal(s).astype(dtype) for s in ((5, 2, 4 * its.num_directions), *shapes)]
        all_layouts = (zip(*map(layouts, of), strict=True) for of in (arrays, d_arrays))
        for (x, *hx), (d_output, *d_state) in zip(*all_layouts, strict=True):
            module = its.build("numpy", seed=0, dtype=dtype, kernel="numba")
            for name, weight in module.weights.items():
                module.weights[name] = list(layouts(weight))[len(results) % 4]
            for lengths in (None, [5, 3], [0, 2]):
                _, _, pullback = module.vjp(x, join_state(hx), lengths)
                results.append(pullback(d_output, join_state(d_state)))
    functions = [f for f in vars(by_numba).values() if isinstance(f, Dispatcher)]
    assert len(functions) > 6
    for function in functions:
        kinds = [tuple(str(kind) for kind in signature) for signature in function.signatures]
        assert len(kinds) == len({("float64" in str(kind), len(kind)) for kind in kinds}), function


def run(program: str, **environment: str) -> str:
    """The output of a program that runs in its own process, with warnings as errors."""
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def test_kernels_compile_without_a_writable_cache_folder() -> None:
    program = (
        "from numba.core import caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import numpy\n"
        "from unirnn.kernels import by_numba\n"
        "@by_numba.compiled\n"
        "def fill(x):\n"
        "    x[:] = 1\n"
        "x = numpy.zeros(2)\n"
        "fill(x)\n"
        "print(x.sum())"
    )
    assert run(program).strip() == "2.0"


def test_numba_is_imported_by_the_first_call_that_needs_it() -> None:
    program = (
        "import sys, numpy, unirnn\n"
        "gru = unirnn.GRUSpec(3, 4).build('numpy', seed=0)\n"
        "gru(numpy.ones((1, 2, 3), 'float32'))\n"
        "print('numba' in sys.modules)\n"
        "gru(numpy.ones((9, 2, 3), 'float32'))\n"
        "print('numba' in sys.modules)"
    )
    assert run(program).split() == ["False", "True"]


def test_a_broken_numba_gives_one_warning_and_the_packed_kernel() -> None:
    program = (
        "import warnings, sys, numpy, unirnn\n"
        "from unirnn import kernels\n"
        "auto, packed = (unirnn.GRUSpec(3, 4).build('numpy', seed=0, kernel=k) for k in ('auto', 'packed'))\n"
        "assert kernels.has_numba(auto.spec)\n"
        "sys.modules['numba'] = None\n"
        "x = numpy.ones((9, 2, 3), 'float32')\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    for _ in range(2):\n"
        "        assert (auto(x)[0] == packed(x)[0]).all()\n"
        "print([str(w.message)[:24] for w in told])\n"
        "assert not kernels.has_numba(auto.spec)\n"
        "try:\n"
        "    unirnn.GRUSpec(3, 4).build('numpy', kernel='numba')\n"
        "except unirnn.errors.LimitError as error:\n"
        "    print(error)"
    )
    first, second = run(program).splitlines()
    assert first == '["numba can\'t be imported "]'
    assert second.startswith("kernel: given 'numba', which is installed, but can't be imported (")


def test_results_are_the_same_without_compilation() -> None:
    program = (
        "import numpy, unirnn\n"
        "x = numpy.ones((9, 2, 3), 'float32')\n"
        "for spec in (unirnn.RNNSpec(3, 4), unirnn.GRUSpec(3, 4), unirnn.LSTMSpec(3, 4)):\n"
        "    one, other = (spec.build('numpy', seed=0, kernel=k)(x)[0] for k in ('numba', 'packed'))\n"
        "    numpy.testing.assert_allclose(one, other, rtol=1e-5)"
    )
    run(program, NUMBA_DISABLE_JIT="1")
