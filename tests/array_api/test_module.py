"""The reference runs on any namespace of the array API standard."""

from importlib.util import find_spec
from typing import Any

import array_api_strict
import numpy as np
import pytest

import unirnn
from unirnn import GRUSpec, LSTMSpec, RNNSpec, errors

SPECS = [RNNSpec(3, 4, nonlinearity="relu"), GRUSpec(3, 4, 2, bidirectional=True), LSTMSpec(3, 4, bias=False)]
PROJECTED = LSTMSpec(3, 4, 2, bidirectional=True, proj_size=2)


@pytest.mark.parametrize("spec", SPECS, ids=repr)
def test_a_namespace_needs_only_the_standard(spec: Any) -> None:
    module = spec.build("array_api", namespace=array_api_strict, seed=0, dtype="float64")
    x = array_api_strict.ones((5, 3, 3), dtype=array_api_strict.float64)
    output, _ = module(x, seq_length=array_api_strict.asarray([5, 0, 2]))
    assert type(output) is type(x)
    expected, _ = spec.build("numpy", seed=0, dtype="float64")(np.ones((5, 3, 3)), seq_length=[5, 0, 2])
    np.testing.assert_allclose(np.asarray(output), expected, atol=1e-12)


def test_a_namespace_can_be_given_by_name() -> None:
    by_name, by_module = (
        GRUSpec(3, 4).build("array_api", namespace=namespace, seed=0)
        for namespace in ("array_api_strict", array_api_strict)
    )
    assert unirnn.snapshot(by_name) == unirnn.snapshot(by_module)
    with pytest.raises(errors.MissingBackendError, match="the backend array_api needs a_namespace_that_is_missing"):
        GRUSpec(3, 4).build("array_api", namespace="a_namespace_that_is_missing")


@pytest.mark.parametrize("namespace", [None, "json", 3])
def test_a_namespace_must_be_a_module_of_the_standard(namespace: Any) -> None:
    with pytest.raises(errors.ArgumentError, match=r"namespace: given .*, expected a module of the array API standard"):
        GRUSpec(3, 4).build("array_api", namespace=namespace)


if find_spec("torch"):

    @pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN:UserWarning")
    @pytest.mark.parametrize("spec", [*SPECS, PROJECTED], ids=repr)
    def test_torchs_autograd_differentiates_the_reference(spec: Any) -> None:
        import torch

        reference = spec.build("array_api", namespace=torch, seed=0, dtype="float64")
        native = spec.build("torch", seed=0, dtype="float64")
        reference.weights = {name: torch.nn.Parameter(weight) for name, weight in reference.weights.items()}
        x = torch.randn(5, 3, 3, dtype=torch.float64)
        x[2:, 2], x[:, 1] = torch.nan, torch.inf
        inputs = [x.clone().requires_grad_() for _ in range(2)]
        for module, input in zip((reference, native), inputs, strict=True):
            output, _ = module(input, seq_length=[5, 0, 2])
            output.square().sum().backward()
        torch.testing.assert_close(inputs[0].grad, inputs[1].grad, rtol=1e-12, atol=1e-12)
        for name, parameter in native.named_parameters():
            torch.testing.assert_close(reference.weights[name].grad, parameter.grad, rtol=1e-12, atol=1e-12)
        assert unirnn.snapshot(native) == unirnn.snapshot(reference)
