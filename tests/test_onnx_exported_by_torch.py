"""The layers in ONNX models that PyTorch exports are read back, with either of its exporters."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from unirnn import LSTMSpec, Snapshot, errors, load, snapshot
from unirnn.files import contents, onnx_reader

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


# The older exporter warns about itself, its own calls, tracing, and a fixed batch size.
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
def test_models_of_the_older_exporter_are_read(
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


def test_an_export_without_folding(tmp_path: Path) -> None:
    native = torch.nn.GRU(3, 4)
    assert onnx_reader.read_model(exported(tmp_path, native, do_constant_folding=False)) == snapshot(native)


def test_an_export_without_weights(tmp_path: Path) -> None:
    words = r"node '/GRU' \(GRU\): its W, .*, is an input of the graph, expected a constant; "
    with pytest.raises(errors.SpecError, match=words):
        onnx_reader.read_model(exported(tmp_path, torch.nn.GRU(3, 4), export_params=False))


if find_spec("onnxscript"):

    def exported_by_default(path: Path, module: torch.nn.Module, *arguments: Any, **options: Any) -> Any:
        """The newer exporter's model, including the file with its weights."""
        arguments = arguments or (X,)
        torch.onnx.export(module.eval(), arguments, path / "layer.onnx", dynamo=True, verbose=False, **options)
        return path / "layer.onnx"

    # For weights of more than 1 KiB, it keeps the nodes that cut and join them, and writes them to another file.
    @pytest.mark.parametrize(("kind", "size", "num_layers"), [("GRU", 4, 1), ("LSTM", 40, 2)])
    def test_models_of_the_newer_exporter_are_read(kind: str, size: int, num_layers: int, tmp_path: Path) -> None:
        native = KINDS[kind][0](3, size, num_layers, bidirectional=True)
        assert load(exported_by_default(tmp_path, native)) == snapshot(native)

    @pytest.mark.filterwarnings("ignore:# ONNX model has different number of inputs:UserWarning")
    def test_a_built_stack_with_lengths_of_any_size(tmp_path: Path) -> None:
        built = LSTMSpec(3, 24, 2, bidirectional=True).build("torch", seed=0)
        steps, batch = torch.export.Dim("T"), torch.export.Dim("B")
        dynamic = {"input": {0: steps, 1: batch}, "hx": None, "seq_length": {0: batch}}
        path = exported_by_default(tmp_path, built, X, None, torch.tensor([5, 2]), dynamic_shapes=dynamic)
        assert load(path) == snapshot(built)

    def test_the_newer_exporter_writes_an_rnn_as_single_operations(tmp_path: Path) -> None:
        words = (
            r"no RNN, GRU or LSTM node; 'torch.nn.RNN' is a torch.nn.RNN, .*; export it with dynamo=False, or take it"
        )
        path = exported_by_default(tmp_path, torch.nn.RNN(3, 4))
        with pytest.raises(errors.ArgumentError, match=words):
            load(path)
        assert list(contents(path).layers) == ["torch.nn.RNN"]
