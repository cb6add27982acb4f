"""Moving a whole checkpoint between a model of PyTorch's own layers and one of MindSpore's."""

from pathlib import Path
from typing import Any

import mindspore as ms
import numpy as np
import pytest
import torch
from mindspore import nn as mnn
from torch import nn

import unirnn
from unirnn import errors

TOKENS = np.array([[1, 4, 2, 0, 3], [2, 2, 1, 3, 0]])


class TorchModel(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.conv = nn.Conv1d(4, 6, 3, padding=1)
        self.norm = nn.BatchNorm1d(6)
        self.encoder = nn.LSTM(6, 4, 2, bidirectional=True, batch_first=True)
        self.cell = nn.GRUCell(8, 8)
        self.layer_norm = nn.LayerNorm(8)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.PReLU(), nn.Linear(8, 3))
        for name, buffer in self.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand(6) + 0.5)
        self.to(dtype).eval()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(self.embedding(tokens).mT)).mT
        x, _ = self.encoder(x)
        x = self.cell(x[:, -1], x[:, 0])
        result: torch.Tensor = self.block(self.layer_norm(x))
        return result


class MindSporeModel(mnn.Cell):  # type: ignore[misc]  # MindSpore has no types
    def __init__(self, dtype: Any = ms.float32) -> None:
        super().__init__()
        self.embedding = mnn.Embedding(5, 4)
        self.conv = mnn.Conv1d(4, 6, 3, pad_mode="pad", padding=1, has_bias=True)
        self.norm = mnn.BatchNorm1d(6)
        self.encoder = mnn.LSTM(6, 4, 2, bidirectional=True, batch_first=True)
        self.cell = mnn.GRUCell(8, 8)
        self.layer_norm = mnn.LayerNorm((8,), epsilon=1e-5)  # torch's default; MindSpore has another
        self.block = mnn.SequentialCell(mnn.Dense(8, 8), mnn.PReLU(), mnn.Dense(8, 3))
        self.to_float(dtype)
        self.set_train(False)

    def construct(self, tokens: ms.Tensor) -> ms.Tensor:
        x = self.norm(self.conv(self.embedding(tokens).swapaxes(1, 2))).swapaxes(1, 2)
        x, _ = self.encoder(x)
        x = self.cell(x[:, -1], x[:, 0])
        return self.block(self.layer_norm(x))


def outputs(model: Any) -> np.ndarray[Any, Any]:
    result: np.ndarray[Any, Any]
    if isinstance(model, nn.Module):
        result = model(torch.tensor(TOKENS)).detach().numpy()
    else:
        result = model(ms.Tensor(TOKENS, ms.int32)).asnumpy()
    return result


def saved(model: Any, folder: Path) -> Path:
    """The model's checkpoint, as its framework writes it."""
    if isinstance(model, nn.Module):
        torch.save(model.state_dict(), folder / "model.pt")
        return folder / "model.pt"
    ms.save_checkpoint(model, str(folder / "model.ckpt"))
    return folder / "model.ckpt"


@pytest.mark.parametrize("form", ["module", "mapping", "file"])
@pytest.mark.parametrize("target", [TorchModel, MindSporeModel])
@pytest.mark.parametrize("source", [TorchModel, MindSporeModel])
def test_the_model_computes_the_same(source: Any, target: Any, form: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given, model = source(), target()
    parameters = given.state_dict() if isinstance(given, nn.Module) else given.parameters_dict()
    forms = {"module": given, "mapping": parameters}
    report = unirnn.migrate(forms[form] if form in forms else saved(given, tmp_path), to=model)
    np.testing.assert_allclose(outputs(model), outputs(given), rtol=1e-5, atol=1e-6)
    assert (len(report.written), report.missing, report.left_over) == (34, (), ())


def test_weights_left_over_on_either_side_are_an_error_and_change_nothing() -> None:
    source, model = TorchModel().state_dict(), MindSporeModel()
    source["head.weight"] = source.pop("block.2.weight")
    source["extra.weight"] = torch.ones(7, 7)
    before = {name: parameter.asnumpy() for name, parameter in model.parameters_dict().items()}
    with pytest.raises(errors.ArgumentError) as raised:
        unirnn.migrate(source, to=model)
    for words in (
        "missing block.2.weight",
        "left over head.weight, extra.weight",
        "rename={'head.': 'block.2.'}",
        "strict=False",
    ):
        assert words in str(raised.value)
    for name, parameter in model.parameters_dict().items():
        np.testing.assert_array_equal(parameter.asnumpy(), before[name])

    report = unirnn.migrate(source, to=model, strict=False)
    assert (report.missing, report.left_over) == (("block.2.weight",), ("head.weight", "extra.weight"))
    assert str(report) == ("33 weights written, 1 missing (block.2.weight), 2 left over (head.weight, extra.weight)")
    report = unirnn.migrate(source, to=model, rename={"head.": "block.2.", "extra.": None})
    assert len(report.written) == 34


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embedding.weight


class TiedCell(mnn.Cell):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.embedding = mnn.Embedding(5, 4)
        self.head = mnn.Dense(4, 5, has_bias=False)
        self.head.weight = self.embedding.embedding_table


@pytest.mark.parametrize("target", [Tied, TiedCell])
@pytest.mark.parametrize("source", [Tied, TiedCell])
def test_a_shared_weight_has_several_names(source: Any, target: Any) -> None:
    given, model = source(), target()
    assert len(unirnn.migrate(given, to=model).written) == 1
    one, other = (
        m.embedding.weight.detach().numpy() if isinstance(m, Tied) else m.embedding.embedding_table.asnumpy()
        for m in (given, model)
    )
    np.testing.assert_array_equal(one, other)


MISTAKES: dict[str, tuple[Any, type[Exception], str]] = {
    "arrays that differ for one weight": (
        lambda: unirnn.migrate({"embedding.weight": np.ones((5, 4)), "head.weight": np.zeros((5, 4))}, to=Tied()),
        errors.ArgumentError,
        "source: 'embedding.weight' and 'head.weight' differ, but the module has one weight 'embedding.weight'",
    ),
    "another shape": (
        lambda: unirnn.migrate({"weight": np.ones((1, 2), "float32")}, to=nn.Linear(1, 2, bias=False)),
        errors.ShapeError,
        r"source: 'weight': given shape \(1, 2\), expected \(2, 1\)",
    ),
    "numbers that would be rounded": (
        lambda: unirnn.migrate({"weight": np.full((2, 1), 0.1)}, to=nn.Linear(1, 2, bias=False)),
        errors.DTypeError,
        "float32, which can't hold weight without rounding",
    ),
    "numbers that bfloat16 would round": (
        lambda: unirnn.migrate(
            {"weight": np.full((2, 1), 0.1, "float32")}, to=nn.Linear(1, 2, bias=False, dtype=torch.bfloat16)
        ),
        errors.DTypeError,
        "to: its weight can't hold the weight without rounding",
    ),
    "nothing fits": (
        lambda: unirnn.migrate({"a": np.ones(2)}, to=nn.Linear(1, 2), strict=False),
        errors.ArgumentError,
        "missing weight, bias; left over a",
    ),
    "a weight that is computed from others": (
        lambda: unirnn.migrate(nn.utils.parametrizations.weight_norm(nn.Linear(1, 2)), to=nn.Linear(1, 2)),
        errors.SpecError,
        "weights: given a parametrization of weight, expected the weight itself",
    ),
    "the beginning of no name": (
        lambda: unirnn.migrate({"weight": np.ones((2, 1)), "steps": np.ones(1, int)}, to=Tied(), rename={"w.": ""}),
        errors.ArgumentError,
        "rename: given 'w.', expected the beginning of a name; given 'weight', 'steps'",
    ),
    "no module": (
        lambda: unirnn.migrate({"weight": np.ones(2)}, to={}),
        errors.ArgumentError,
        "to: given builtins.dict, expected a torch.nn.Module, a mindspore.nn.Cell, or a module that unirnn built",
    ),
    "no source": (
        lambda: unirnn.migrate(3, to=nn.Linear(1, 2)),
        errors.ArgumentError,
        "source: given builtins.int, expected",
    ),
}


@pytest.mark.parametrize(("call", "error", "words"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(call: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        call()


def test_the_raw_weight_is_taken_and_not_its_dropped_copy() -> None:
    given, model = nn.GRU(3, 4).state_dict(), mnn.GRU(3, 4)
    arrays = {f"gru.{name}": weight for name, weight in given.items()}
    arrays |= {"gru.weight_hh_l0": torch.zeros(12, 4), "gru.weight_hh_l0_raw": given["weight_hh_l0"]}
    report = unirnn.migrate(arrays, to=model, rename={"gru.": ""})
    assert report.written["weight_hh_l0"] == "gru.weight_hh_l0_raw"
    np.testing.assert_array_equal(dict(model.parameters_dict())["weight_hh_l0"].asnumpy(), given["weight_hh_l0"])


def test_an_error_while_writing_restores_the_module() -> None:
    # The module can't hold the second weight, and the first has been written by then.
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False, dtype=torch.bfloat16))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(errors.DTypeError, match=r"1\.weight"):
        unirnn.migrate({"0.weight": np.ones((1, 1), "float32"), "1.weight": np.full((1, 1), 0.1, "float32")}, to=model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_that_unirnn_built() -> None:
    model = unirnn.Sequential(
        embedding=unirnn.EmbeddingSpec(5, 4),
        encoder=unirnn.GRUSpec(4, 3, batch_first=True),
        pool=unirnn.PoolSpec("mean"),
    )
    trained = model.build("torch", seed=0)
    cell = mnn.SequentialCell()
    cell.embedding, cell.encoder = mnn.Embedding(5, 4), mnn.GRU(4, 3, batch_first=True)
    unirnn.migrate(trained, to=cell)
    assert isinstance(trained.embedding, nn.Embedding)
    np.testing.assert_array_equal(cell.embedding.embedding_table.asnumpy(), trained.embedding.weight.detach().numpy())
    other = model.build("mindspore", seed=1)
    unirnn.migrate(unirnn.snapshot(trained), to=other)
    assert unirnn.snapshot(other) == unirnn.snapshot(trained)


VARIANTS = {
    "reverse": unirnn.GRUSpec(3, 4, reverse=True),
    "gate_activation": unirnn.GRUSpec(3, 4, gate_activation="hard_sigmoid"),
    "reset_after": unirnn.GRUSpec(3, 4, reset_after=False),
    "nonlinearity": unirnn.RNNSpec(3, 4, nonlinearity="relu"),
}


@pytest.mark.parametrize(("argument", "spec"), VARIANTS.items())
def test_weights_of_a_layer_that_computes_something_else(
    argument: str, spec: unirnn.RecurrentSpec, tmp_path: Path
) -> None:
    layer, model = spec.build("torch", seed=0), unirnn.Sequential(encoder=spec).build("torch", seed=0)
    unirnn.snapshot(model).save(tmp_path / "model.pt")
    natives = nn.ModuleDict({"encoder": getattr(nn, spec.kind)(3, 4)}), mnn.CellList([getattr(mnn, spec.kind)(3, 4)])
    sources = (nn.ModuleDict({"encoder": layer}), model, unirnn.snapshot(model), tmp_path / "model.pt")
    for native, rename in zip(natives, (None, {"encoder.": "0."}), strict=True):
        for source in sources:
            with pytest.raises(errors.SpecError, match=f"weight_ih_l0' is of a {spec.kind} with {argument}="):
                unirnn.migrate(source, to=native, rename=rename)
    same = nn.ModuleDict({"encoder": spec.build("torch", seed=1)})
    for source in (*sources, model.state_dict()):
        unirnn.migrate(source, to=same)
        assert torch.equal(same.state_dict()["encoder.weight_ih_l0"], layer.weight_ih_l0)
