"""Compiled layers in several threads: the same results, the threads of BLAS, errors, and forks."""

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, kernels
from unirnn.kernels import threads
from unirnn.kernels.threads import blas, num_parts

THREE_THREADS = """
import numpy as np
import unirnn
from unirnn.kernels import threads
threads._LEAST_SEQUENCES = threads._LEAST_WORK = 1
threads.blas.most = unirnn.kernels.layers._threads_of_numba = lambda: 3
gru = unirnn.GRUSpec(3, 4).build("numpy", seed=0, kernel="numba")
x = np.ones((5, 7, 3), np.float32)
"""


@pytest.fixture
def three_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run even the smallest layer in three threads."""
    monkeypatch.setattr(threads, "_LEAST_SEQUENCES", 1)
    monkeypatch.setattr(threads, "_LEAST_WORK", 1)
    monkeypatch.setattr("unirnn.kernels.layers._threads_of_numba", lambda: 3)
    monkeypatch.setattr(blas, "most", lambda: 3)


def counts() -> list[int]:
    return [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]


@pytest.mark.parametrize(
    ("batch_size", "steps", "size", "count", "expected"),
    [(64, 200, 256, 2, 2), (64, 200, 256, 99, 8), (1, 1000, 512, 8, 1), (32, 100, 128, 8, 1), (0, 5, 4, 8, 1)],
)
def test_the_number_of_threads_follows_the_work(
    batch_size: int, steps: int, size: int, count: int, expected: int
) -> None:
    with mock.patch.object(blas, "most", return_value=9):
        assert num_parts(GRUSpec(size, size), batch_size, batch_size * steps, count) == expected
    blas.most()  # loads the libraries that the next line limits
    with threadpool_limits(1):  # the user's limit holds
        assert num_parts(GRUSpec(size, size), batch_size, batch_size * steps, count) == 1


@pytest.mark.usefixtures("three_threads")
@pytest.mark.parametrize("spec", [GRUSpec(3, 4, 2, bidirectional=True), LSTMSpec(3, 4)], ids=repr)
@pytest.mark.parametrize("lengths", [None, [5, 0, 2, 5, 1, 0, 3]], ids=["dense", "ragged"])
def test_concurrent_calls_do_not_change_results(spec: RecurrentSpec, lengths: Any) -> None:
    module = spec.build("numpy", seed=0, kernel="numba")
    inputs = np.random.default_rng(0).standard_normal((8, 5, 7, 3)).astype(np.float32)

    def run(x: Any) -> list[Any]:
        output, _, pullback = module.vjp(x, None, lengths)
        return [output, *pullback(output, None).values()]

    expected, before = [run(x) for x in inputs], counts()
    with ThreadPoolExecutor(4) as pool:
        for found, wanted in zip(pool.map(run, inputs), expected, strict=True):
            for one, other in zip(found, wanted, strict=True):
                np.testing.assert_array_equal(one, other)
    assert counts() == before


def test_blas_threads_are_restored() -> None:
    with threadpool_limits(3):
        before = counts()
        with blas.of(2), blas.of(None):
            assert set(counts()) == {2}
            with blas.of(1), blas.of(4):
                assert set(counts()) == {1}
                assert blas.most() == 3
            assert set(counts()) == {2}
        assert counts() == before == [3] * len(before)


def test_every_thread_can_limit_blas() -> None:
    """It may enter while another thread is inside, and the last thread to leave restores the number."""
    entered, left = threading.Event(), threading.Event()

    def last() -> list[int]:
        with blas.of(1):
            entered.set()
            left.wait(10)
            return counts()

    with threadpool_limits(2), ThreadPoolExecutor(1) as pool:
        before = counts()
        with blas.of(2):
            found = pool.submit(last)
            entered.wait(10)
        left.set()
        assert set(found.result()) == {1}
        assert counts() == before == [2] * len(before)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_layer_runs_in_the_given_number_of_threads(compiled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """In MindSpore's graphs, this leaves a core to the thread that waits for the result."""
    seen: list[int] = []

    class Watched(threads.Threads):
        def forward(self, *given: Any, **named: Any) -> Any:
            seen.extend(counts())
            return super().forward(*given, **named)

        def backward(self, *given: Any, **named: Any) -> Any:
            seen.extend(counts())
            return super().backward(*given, **named)

    monkeypatch.setattr(kernels.layers, "Threads", Watched)
    spec, x, h = GRUSpec(3, 4), np.ones((5, 7, 3), np.float32), np.zeros((7, 4), np.float32)
    weights = kernels.Weights(*(np.ones(shape, np.float32) for shape in spec.weight_shapes().values()))
    with threadpool_limits(3):
        before = counts()
        _, _, pullback = kernels.direction(
            spec, weights, x, (h,), np.full(7, 5), backward=False, keep=True, compiled=compiled, num_threads=1
        )
        pullback(np.ones((5, 7, 4), np.float32), (h,))
        assert set(seen) == {1}
        assert counts() == before


@pytest.mark.usefixtures("three_threads")
def test_an_infinity_warns_as_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    x = np.zeros((5, 7, 3), np.float32)
    x[:, 5] = np.inf  # rows of another thread
    module = GRUSpec(3, 4).build("numpy", seed=0, kernel="numba")
    for array in module.weights.values():
        array[...] = np.resize([1, -1], array.shape)
    with np.errstate(all="ignore"):
        assert np.isnan(module(x)[0][:, 5]).any()
    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        module(x)
    told: list[str] = []
    with np.errstate(all="call", call=lambda kind, flag: told.append(kind)):
        module(x)
    assert told
    assert np.isfinite(module(np.ones_like(x))[0]).all()


def test_a_forked_process_has_its_own_threads() -> None:
    code = (
        f"{THREE_THREADS}\n"
        "import os\n"
        "expected = gru(x)[0]\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    os._exit(0 if np.array_equal(gru(x)[0], expected) else 3)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_fork_during_a_layer_restores_blas() -> None:
    code = (
        "import os, numpy, threadpoolctl\n"
        "from unirnn.kernels.threads import blas\n"
        "def counts():\n"
        "    return [i['num_threads'] for i in threadpoolctl.threadpool_info() if i['user_api'] == 'blas']\n"
        "blas.most()\n"
        "before = counts()\n"
        "child = 1\n"
        "with blas.of(1):\n"
        "    child = os.fork()\n"
        "if not child:\n"
        "    os._exit(0 if counts() == before else 3)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_a_blas_with_openmp_is_not_limited() -> None:
    """With OpenMP, each thread has its own limit."""
    libraries = [SimpleNamespace(threading_layer=layer) for layer in ("openmp", "pthreads")]
    with mock.patch("threadpoolctl.ThreadpoolController") as controller:
        controller.return_value.select.return_value.lib_controllers = libraries
        assert threads._blas.__wrapped__() == libraries[1:]


def test_a_layer_runs_while_python_exits() -> None:
    code = f"{THREE_THREADS}\nimport atexit\natexit.register(lambda: print(gru(x)[0].shape))\n"
    found = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert found.stdout == "(5, 7, 4)\n", found.stderr
