"""ONNX models that PyTorch exports, with either of its exporters, give back the layers that were exported."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from unirnn import Snapshot, errors, snapshot
from unirnn.files import onnx_reader

KINDS: dict[str, tuple[Any, dict[str, Any]]] = {
    "RNN-tanh": (torch.nn.RNN, {}),
    "RNN-relu": (torch.nn.RNN, {"nonlinearity": "relu"}),
    "GRU": (torch.nn.GRU, {}),
    "LSTM": (torch.nn.LSTM, {}),
}
X = torch.zeros(5, 2, 3)


def exported(path: Path, module: torch.nn.Module, *, dynamo: bool = False, **options: Any) -> Any:
    torch.onnx.export(module.eval(), (X,), path / "layer.onnx", dynamo=dynamo, **options)
    return onnx_reader.parse((path / "layer.onnx").read_bytes())


# The older exporter warns about itself, what it calls, tracing, and a fixed batch size.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size other than 1:UserWarning"),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_the_older_exporter(
    kind: str, num_layers: int, bidirectional: bool, batch_first: bool, bias: bool, tmp_path: Path
) -> None:
    cls, options = KINDS[kind]
    native = cls(3, 4, num_layers, bias=bias, bidirectional=bidirectional, batch_first=batch_first, **options)
    expected = snapshot(native)
    model = exported(tmp_path, native)
    found = onnx_reader.read_model(model)
    assert found == Snapshot(found.spec, expected.weights)
    assert onnx_reader.read_model(model, spec=expected.spec) == expected


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.GRU(3, 4, 2)
        self.decoder = torch.nn.GRU(4, 4, bidirectional=True)
        self.head = torch.nn.Linear(8, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.head(self.decoder(self.encoder(x)[0])[0])
        return result


def test_layers_have_the_names_of_their_modules(tmp_path: Path) -> None:
    native = Model()
    model = exported(tmp_path, native)
    assert list(onnx_reader.contents_of_model(model).layers) == ["/encoder/GRU", "/decoder/GRU"]
    for name, layer in (("encoder", native.encoder), ("decoder", native.decoder)):
        assert onnx_reader.read_model(model, prefix=f"/{name}/GRU") == snapshot(layer)
    with pytest.raises(errors.ArgumentError, match="give one of '/encoder/GRU', '/decoder/GRU'"):
        onnx_reader.read_model(model)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"do_constant_folding": False}, r"node '/GRU' \(GRU\): its W, .* is computed by node '/Unsqueeze' "),
        ({"export_params": False}, r"node '/GRU' \(GRU\): its W, .* is an input of the graph, expected a constant; "),
    ],
    ids=["without folding", "without weights"],
)
def test_an_export_without_constants(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(errors.SpecError, match=words):
        onnx_reader.read_model(exported(tmp_path, torch.nn.GRU(3, 4), **options))


if find_spec("onnxscript"):

    @pytest.mark.parametrize(("kind", "num_layers"), [("GRU", 1), ("LSTM", 3)])
    def test_the_newer_exporter(kind: str, num_layers: int, tmp_path: Path) -> None:
        native = KINDS[kind][0](3, 4, num_layers, bidirectional=True)
        assert onnx_reader.read_model(
            exported(tmp_path, native, dynamo=True, verbose=False, external_data=False)
        ) == snapshot(native)

    def test_the_newer_exporter_writes_an_rnn_as_single_operations(tmp_path: Path) -> None:
        model = exported(tmp_path, torch.nn.RNN(3, 4), dynamo=True, verbose=False, external_data=False)
        with pytest.raises(
            errors.ArgumentError, match=r"has no RNN, GRU or LSTM node; .* export it with dynamo=False$"
        ):
            onnx_reader.read_model(model)

    def test_weights_in_another_file_are_read_by_onnx(tmp_path: Path) -> None:
        native = torch.nn.GRU(3, 40)  # smaller weights stay in the file
        model = exported(tmp_path, native, dynamo=True, verbose=False)
        with pytest.raises(
            errors.FileError, match=r"in another file, .* unirnn.snapshot\(onnx.load\(path\)\) reads both"
        ):
            onnx_reader.read_model(model)
        assert snapshot(onnx.load(tmp_path / "layer.onnx")) == snapshot(native)
