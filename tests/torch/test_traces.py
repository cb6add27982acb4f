"""`torch.jit.trace` and the trace-based ONNX exporter: at another T than the example's, right or an error."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from nested import flat
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unirnn import (
    BatchNormSpec,
    Conv1dSpec,
    GRUSpec,
    LSTMSpec,
    PoolSpec,
    RecurrentSpec,
    Sequential,
    Spec,
    SumDirectionsSpec,
)

# Both warn about themselves and about constants; the exporter also warns about batch sizes other than 1.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
    pytest.mark.filterwarnings("ignore:Exporting a model to ONNX with a batch_size other than 1:UserWarning"),
]

PROJECTED = LSTMSpec(3, 4, bidirectional=True, proj_size=2)
HARD = GRUSpec(3, 4, reverse=True, gate_activation="hard_sigmoid")
RESET_BEFORE = GRUSpec(3, 4, 2, reset_after=False)
FEATURES = (Conv1dSpec(3, 4, 4, stride=2, padding=2), BatchNormSpec(4))
POOLS = (SumDirectionsSpec(), PoolSpec("mean"))

CASES: dict[str, tuple[Spec, str, str, str]] = {
    "torch's own": (GRUSpec(3, 4, reverse=True), "auto", "", "trace onnx"),
    "a projection": (PROJECTED, "auto", "", "trace onnx"),
    "a projection and lengths": (PROJECTED, "auto", "lengths", "trace onnx"),
    "a model": (Sequential(*FEATURES, LSTMSpec(4, 6, bidirectional=True), *POOLS), "auto", "lengths", "trace onnx"),
    "resets": (GRUSpec(3, 4), "auto", "resets", "trace"),
    "the reference": (LSTMSpec(3, 4, proj_size=2), "reference", "", ""),
    "other gates": (HARD, "auto", "", ""),
    "other gates and lengths": (HARD, "auto", "lengths", ""),
    "other gates, of one step": (HARD, "auto", "lengths one step", ""),
    "another reset gate": (GRUSpec(3, 4, reset_after=False), "auto", "", ""),
    "another reset gate in a model": (Sequential(*FEATURES, GRUSpec(4, 6, reset_after=False)), "auto", "lengths", ""),
}
"""What is traced, the kernel, what else it is given, and what takes any T; otherwise another T is an error."""


class Flat(nn.Module):
    """Positional arguments and flat results, for a trace."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names

    def forward(self, *arguments: Tensor) -> tuple[Tensor, ...]:
        return tuple(flat(self.module(**dict(zip(self.names, arguments, strict=True)))))


def arguments(given: str, steps: int, batch_size: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(steps)
    found = {"input": torch.randn(steps, batch_size, 3, generator=generator)}
    if "lengths" in given:
        found["seq_length"] = torch.tensor([steps, 2, 0, 1, steps - 1][:batch_size]).clamp(max=steps)
    if "resets" in given:
        found["resets"] = torch.rand(steps, batch_size, generator=generator) < 0.3
    return found


def traced(flat: Flat, example: dict[str, Tensor], path: Path) -> Callable[..., Any]:
    given = tuple(example.values())
    found: Callable[..., Any] = torch.jit.trace(flat, given, check_trace=False)  # type: ignore[no-untyped-call]
    return found


def exported(flat: Flat, example: dict[str, Tensor], path: Path) -> Callable[..., Any]:
    axes = {name: {0: "B"} if name == "seq_length" else {0: "T", 1: "B"} for name in flat.names}
    names, file = flat.names, path / "traced.onnx"
    torch.onnx.export(flat, tuple(example.values()), file, dynamo=False, input_names=names, dynamic_axes=axes)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(*arguments: Tensor) -> list[Tensor]:
        arrays = {name: tensor.numpy() for name, tensor in zip(names, arguments, strict=True)}
        return [torch.from_numpy(result) for result in session.run(None, arrays)]

    return run


@pytest.mark.parametrize("how", ["trace", "onnx"])
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_a_trace_at_another_number_of_steps_is_right_or_an_error(
    case: tuple[Spec, str, str, str], how: str, tmp_path: Path
) -> None:
    spec, kernel, given, any_steps = case
    module = spec.build("torch", seed=0, kernel=kernel).eval()
    steps = 1 if "one step" in given else 4
    example = arguments(given, steps, 3)
    run = (traced if how == "trace" else exported)(Flat(module, list(example)).eval(), example, tmp_path)
    # 8 steps of 3 sequences have as many elements as 4 steps of 6 sequences.
    for other, batch_size in ((steps, 3), (steps, 5), (8, 3), (3, 5)):
        other_arguments = arguments(given, other, batch_size)
        if other == steps or how in any_steps:
            expected = flat(module(**other_arguments))
            torch.testing.assert_close(list(run(*other_arguments.values())), expected, rtol=1e-4, atol=1e-5)
        else:
            with pytest.raises(Exception, match=r"shape '\[\d+, .*\]' is invalid|be reshaped to the requested shape"):
                run(*other_arguments.values())


class Packed(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        output, final = self.layers(pack_padded_sequence(x, lengths, enforce_sorted=False))
        return pad_packed_sequence(output)[0], *flat(final)


@pytest.mark.parametrize(
    ("spec", "any_steps"), [(GRUSpec(3, 4), True), (GRUSpec(3, 4, reverse=True), True), (RESET_BEFORE, False)], ids=repr
)
def test_a_trace_of_a_packed_sequence_takes_other_lengths(spec: RecurrentSpec, any_steps: bool) -> None:
    module = Packed(spec.build("torch", seed=0).eval())
    x = torch.randn(7, 4, 3, generator=torch.Generator().manual_seed(0))
    run: Any = torch.jit.trace(module, (x[:5, :3], torch.tensor([5, 3, 1])))  # type: ignore[no-untyped-call]
    others = [(5, [2, 5, 2]), (5, [5, 1, 4, 2])]  # the first has as many valid steps as the example
    for steps, lengths in others + [(7, [1, 7, 3])] * any_steps:
        given = x[:steps, : len(lengths)], torch.tensor(lengths)
        torch.testing.assert_close(list(run(*given)), list(module(*given)))
