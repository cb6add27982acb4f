"""Ctrl-C in the middle of a call leaves the process and the module as they were before.

A profiler raises KeyboardInterrupt at each point in unirnn where Python itself may raise it: at the beginning of a
function, and after a call of a C function. The compiled kernels run to their end, and so do the threads that they
start, since Python raises it only between such calls.
"""

import inspect
import os
import pickle
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from itertools import count
from types import FrameType
from typing import Any

import numpy as np
import pytest

from unirnn.testing.conformance.cases import Case, built
from unirnn.testing.subjects import Subject, gradients


def is_ours(frame: FrameType) -> bool:
    """Whether a frame runs code of unirnn or of a backend. Generators don't count, since they may be closing."""
    if frame.f_code.co_flags & inspect.CO_GENERATOR:
        return False
    name = frame.f_globals.get("__name__", "")
    return str(name).startswith("unirnn")


def interrupt_at(point: int, action: Callable[[], Any]) -> bool:
    """Run an action and interrupt it at a point, counted from 0. Return False if it ends earlier."""
    passed = count()

    def profile(frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_return") and is_ours(frame) and next(passed) == point:
            raise KeyboardInterrupt

    sys.setprofile(profile)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.setprofile(None)
    return False


def state_of_the_process() -> dict[str, Any]:
    """The process state that a call could change."""
    found: dict[str, Any] = {
        "environment": dict(os.environ),
        "NumPy's errors": np.geterr(),
        "warnings": list(warnings.filters),
        "threads": threading.active_count(),
        "signals": signal.getsignal(signal.SIGINT),
        "random": pickle.dumps(np.random.get_state()),
    }
    torch = sys.modules.get("torch")
    if torch is not None:
        found |= {
            "torch's threads": torch.get_num_threads(),
            "torch's gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
            "torch's random": torch.get_rng_state().tolist(),
        }
    return found


@pytest.mark.promise("errors", cell="GRU")
def test_an_interrupted_call_changes_nothing(rnn_backend: Subject) -> None:
    if rnn_backend.name not in ("numpy", "torch", "onnxruntime"):
        pytest.skip("there are too many points in a namespace written in Python, and MindSpore calls Python from C++")
    case = Case(steps=3, lengths=(3, 1, 0, 2), num_layers=2, dtype="float32")
    module, batch = built(rnn_backend, "GRU", case)

    def call() -> Any:
        return rnn_backend.call(module, batch.input, batch.hx, case.seq_length)[0]

    def differentiate() -> Any:
        cotangents = batch.d_output, batch.d_state
        return gradients(rnn_backend.backend, module, batch.input, batch.hx, batch.lengths, *cotangents)["input"]

    for action in (call, differentiate) if rnn_backend.backend.support.derivatives else (call,):
        expected = action()
        before = state_of_the_process()
        points = next(point for point in range(5000) if not interrupt_at(point, action))
        assert points > 10
        assert state_of_the_process() == before
        np.testing.assert_array_equal(action(), expected)
