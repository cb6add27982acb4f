"""The backend methods that take any model of the framework: gradients, hooks, modes and seeds."""

from typing import Any

import numpy as np
import pytest

import unirnn
from unirnn import errors
from unirnn.testing.frameworks import framework_of, gradient, native, to_numpy


def torch_model() -> Any:
    """A model of torch's own layers."""
    torch = pytest.importorskip("torch")

    class Tagger(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(5, 3)
            self.encoder = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(inplace=True), torch.nn.Dropout())
            self.embedding.weight.requires_grad_(False)

        def forward(self, tokens: Any, factor: Any) -> Any:
            return {"y": self.encoder(self.embedding(tokens)), "factor": (factor,)}

    torch.manual_seed(0)
    return Tagger()


def mindspore_model() -> Any:
    """The same model of MindSpore's own layers."""
    ms = pytest.importorskip("mindspore")
    nn = ms.nn

    class Tagger(nn.Cell):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.encoder = nn.SequentialCell(nn.Dense(3, 4), nn.ReLU(), nn.Dropout(p=0.5))
            self.embedding.embedding_table.requires_grad = False

        def construct(self, tokens: Any, factor: Any) -> Any:
            return {"y": self.encoder(self.embedding(tokens)), "factor": (factor,)}

    ms.set_seed(0)
    return Tagger()


MODELS = pytest.mark.parametrize("make", [torch_model, mindspore_model])
TOKENS = np.array([[1, 2, 4], [3, 3, 0]], np.int32)
FACTOR = np.array([2.0, 0.5, 1.0, -1.0], np.float32)


@MODELS
def test_gradients_of_a_function_of_any_model(make: Any) -> None:
    """Inputs may be integers or floats. A frozen weight has no gradient, and a weight without influence has zeros."""
    model = make()
    framework = framework_of(model)
    framework.set_training(model, False)

    def loss(tokens: Any, factor: Any) -> Any:
        return (model(tokens, factor)["y"] * factor).sum()

    found, weights = gradient(framework.name, loss, TOKENS, FACTOR, module=model)
    y = to_numpy(model(native(TOKENS, model), native(FACTOR, model))["y"])
    assert found[0] is None
    assert found[1] is not None
    np.testing.assert_allclose(found[1], y.sum((0, 1)), rtol=1e-5, atol=1e-6)
    assert {name: array.shape for name, array in weights.items()} == {
        "encoder.0.weight": (4, 3),
        "encoder.0.bias": (4,),
    }
    np.testing.assert_allclose(weights["encoder.0.bias"], FACTOR * (y > 0).sum((0, 1)), rtol=1e-5)
    (d_factor,), zeros = gradient(framework.name, lambda factor: (factor * 3).sum(), FACTOR, module=model)
    assert d_factor is not None
    assert d_factor.tolist() == [3, 3, 3, 3]
    assert not any(array.any() for array in zeros.values())
    assert gradient(framework.name, lambda tokens: tokens.sum(), TOKENS) == ([None], {})


@MODELS
def test_hooks_record_what_each_layer_returned(make: Any) -> None:
    """Outputs are in the order in which layers ran. They are copies, so an in-place ReLU does not overwrite any."""
    model = make()
    framework = framework_of(model)
    framework.set_training(model, False)
    with framework.watch(model) as watched:
        model(native(TOKENS, model), native(FACTOR, model))
    names = ["embedding", "encoder.0", "encoder.1", "encoder.2", "encoder", ""]
    assert [layer.name for layer in watched] == names
    linear, relu, result = watched[1], watched[2], watched[5]
    assert (relu.kind, result.kind) == ("ReLU", "Tagger")
    assert to_numpy(linear.results).min() < 0
    np.testing.assert_array_equal(to_numpy(relu.results), to_numpy(linear.results).clip(0))
    np.testing.assert_array_equal(to_numpy(result.results["factor"][0]), FACTOR)
    model(native(TOKENS, model), native(FACTOR, model))
    assert len(watched) == 6


@MODELS
def test_modes(make: Any) -> None:
    model = make()
    framework = framework_of(model)
    for mode in (True, False):
        framework.set_training(model, mode)
        assert model.encoder[2].training is mode
    with framework.restored(model) as net:
        framework.set_training(net, True)
    assert model.encoder[2].training is False


def test_seeds_of_torch_and_numpy() -> None:
    for framework, draw in (
        (framework_of(lambda x: x), lambda: np.random.rand(3)),
        (framework_of(torch_model()), lambda: pytest.importorskip("torch").rand(3)),
    ):
        framework.random_seed(3)
        first = draw()
        framework.random_seed(3)
        assert (draw() == first).all()


def test_seeds_of_mindspore() -> None:
    ops = pytest.importorskip("mindspore").ops
    model = mindspore_model()
    found = []
    for _ in range(2):
        framework_of(model).random_seed(3)
        found.append(ops.dropout(native(FACTOR.repeat(8), model), 0.5, True).asnumpy())
    np.testing.assert_array_equal(*found)


def test_asking_numpy_for_gradients_of_a_function_is_refused() -> None:
    for framework in (framework_of(lambda x: x), framework_of(unirnn.GRUSpec(3, 4).build("numpy"))):
        with pytest.raises(errors.LimitError, match="numpy has no gradients of functions"):
            framework.gradient(np.sum, [FACTOR])
    with pytest.raises(errors.ArgumentError, match=r"^model: given int, expected something that can be called"):
        framework_of(3)
