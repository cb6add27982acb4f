"""Hooks and fixtures of the conformance tests."""

from collections.abc import Generator
from typing import Any

import hypothesis
import numpy as np
import pytest

import unirnn.testing.strategies  # noqa: F401 - registers the profile
from unirnn import LinearSpec, Sequential
from unirnn.testing.conformance.cases import available, skip_if_refused
from unirnn.testing.conformance.promises import Findings, recording
from unirnn.testing.conformance.report import finding
from unirnn.testing.subjects import Subject
from unirnn.testing.tolerances import close

FINDINGS = pytest.StashKey[Findings]()

hypothesis.settings.load_profile("unirnn")


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker."""
    config.addinivalue_line(
        "markers",
        "promise(*names, cell=None): which guarantees of unirnn.testing.conformance.promises a test checks, and for "
        "which cell; without it, that of the parameters 'kind' and 'spec', or all.",
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Collect the findings of each test."""
    with recording() as item.stash[FINDINGS]:
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Add the findings of a test to its report, which pytest-xdist passes on to the main process."""
    report = yield
    found = finding(item, call, report, item.stash[FINDINGS])
    if found is not None:
        report.user_properties.append(found)
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests of models for a subject with a kernel: kernels change only recurrent layers."""
    left_out = [item for item in items if isinstance(item, pytest.Function) and _is_model_of_a_kernel(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]


def _is_model_of_a_kernel(item: pytest.Function) -> bool:
    subject = item.callspec.params.get("rnn_backend") if hasattr(item, "callspec") else None
    return isinstance(subject, Subject) and "kernel" in subject.options and "model_backend" in item.fixturenames


@pytest.fixture(scope="session")
def model_backend(rnn_backend: Subject) -> Subject:
    """A backend that builds models."""
    spec, dtype = Sequential(head=LinearSpec(3, 2)), available(rnn_backend, "float32")

    def assert_right(net: Any) -> None:
        _, weights = rnn_backend.read(net)
        x = np.ones((2, 5, 3), dtype)
        output = rnn_backend.to_numpy(net(rnn_backend.array(x, net)))
        close(output, x @ weights["head.weight"].T + weights["head.bias"], rnn_backend.tolerance_of(dtype))

    if "Sequential" not in rnn_backend.backend.support.kinds:
        skip_if_refused(rnn_backend, spec, dtype, 0, assert_right)
    return rnn_backend


@pytest.fixture
def rng() -> np.random.Generator:
    """A generator with a seed."""
    return np.random.default_rng(0)
