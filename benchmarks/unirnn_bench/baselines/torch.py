"""PyTorch's baselines: its own layers on dense input, and between packing and padding for ragged input.

For a model it is the same model with these layers, as people write it. For resets it is a loop over single steps, as
stable-baselines3-contrib runs it; for one step, its own cell.

There are two modes: ``eager``, on the CPU, and ``cuda`` if there is a GPU. There, a call waits for its results.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unirnn import load_weights, snapshot
from unirnn.contract.call import join_state
from unirnn.specs import RecurrentSpec, Sequential
from unirnn_bench.baselines import Call, Calls
from unirnn_bench.baselines._floor import floor
from unirnn_bench.work import Work

__all__ = ["MODES", "calls"]

MODES = ("eager", "cuda") if torch.cuda.is_available() else ("eager",)


def calls(work: Work) -> Calls:
    """Prepare the calls; see `unirnn_bench.baselines.Baselines`."""
    torch.set_num_threads(work.threads)
    found = _layers(work) if work.model is None else _models(work, work.model)
    return found if work.mode != "cuda" else {name: _synchronized(one) for name, one in found.items()}


def _layers(work: Work) -> dict[str, Call]:
    spec, device = work.spec, "cuda" if work.mode == "cuda" else "cpu"

    def tensor(array: Any) -> Tensor:
        return torch.from_numpy(array).to(device)

    ours: Any = spec.build("torch", device=device, seed=0)
    native: Any = getattr(torch.nn, spec.kind)(**spec.to_kwargs("torch"), device=device)
    load_weights(native, snapshot(ours))
    x = tensor(work.input)
    hx = None if work.hx is None else join_state([tensor(part) for part in work.hx])
    ns = None if work.seq_length is None else torch.from_numpy(work.seq_length)  # packing takes lengths on the CPU only
    resets = None if work.resets is None else tensor(work.resets)
    d_output = None if work.d_output is None else tensor(work.d_output)

    def packed(x: Tensor) -> Tensor:
        assert ns is not None
        output, _ = native(pack_padded_sequence(x, ns, enforce_sorted=False))
        return pad_packed_sequence(output, total_length=len(x))[0]

    def one_by_one(x: Tensor) -> Tensor:
        """The layer once for each step, and zeros in the place of the state where a sequence begins."""
        assert resets is not None
        shapes = spec.state_shapes(x.shape[1]).values()
        state = join_state([x.new_zeros(shape) for shape in shapes])
        goes_on = (~resets).to(x.dtype)[:, None, :, None]
        outputs = []
        for t in range(len(x)):
            state = tuple(goes_on[t] * part for part in state) if isinstance(state, tuple) else goes_on[t] * state
            output, state = native(x[t : t + 1], state)
            outputs.append(output)
        return torch.cat(outputs)

    def call(module: Any, function: Callable[[Tensor], Tensor]) -> Call:
        if d_output is None:

            def forward() -> Tensor:
                with torch.no_grad():
                    return function(x)

            return forward
        input = x.clone().requires_grad_()
        wanted = [input, *module.parameters()]
        return lambda: torch.autograd.grad(function(input), wanted, d_output)

    found = {
        "ours": call(ours, lambda x: ours(x, hx, ns, resets)[0]),
        "native": call(native, lambda x: native(x, hx)[0]),
        "floor": floor(work, tensor, lambda a, b, out: torch.mm(a, b, out=out)),
    }
    if ns is not None:
        found["usual"] = call(native, packed)
    if resets is not None:
        found["usual"] = call(native, one_by_one)
    if ns is not None or resets is not None:
        found["dense"] = call(ours, lambda x: ours(x)[0])
    if hx is not None:
        found |= _steps(ours, native, x[0], hx)
    return found


class _Classifier(torch.nn.Module):
    """The model of a row as it is written with PyTorch's layers, for input in which time comes first."""

    def __init__(self, model: Sequential) -> None:
        super().__init__()
        embedding, encoder, _, head = model
        assert isinstance(encoder, RecurrentSpec)
        self.embedding = torch.nn.Embedding(embedding.input_features, encoder.input_size)
        self.encoder: Any = getattr(torch.nn, encoder.kind)(**encoder.to_kwargs("torch"))
        self.head = torch.nn.Linear(head.input_features, head.output_features(0))

    def forward(self, tokens: Tensor, seq_length: Tensor | None) -> Tensor:
        x = self.embedding(tokens)
        if seq_length is None:
            pooled = self.encoder(x)[0].mean(0)
        else:
            packed, _ = self.encoder(pack_padded_sequence(x, seq_length, enforce_sorted=False))
            output, _ = pad_packed_sequence(packed, total_length=len(tokens))
            pooled = output.sum(0) / seq_length.to(output.device)[:, None]
        scores: Tensor = self.head(pooled)
        return scores


def _models(work: Work, model: Sequential) -> dict[str, Call]:
    device = "cuda" if work.mode == "cuda" else "cpu"

    def tensor(array: Any) -> Tensor:
        return torch.from_numpy(array).to(device)

    ours: Any = model.build("torch", device=device, seed=0)
    native = _Classifier(model).to(device)
    native.load_state_dict(ours.state_dict())
    tokens = tensor(work.input)
    ns = None if work.seq_length is None else torch.from_numpy(work.seq_length)
    d_output = None if work.d_output is None else tensor(work.d_output)

    def call(module: torch.nn.Module, function: Callable[[], Tensor]) -> Call:
        if d_output is None:
            return torch.no_grad()(function)
        return lambda: torch.autograd.grad(function(), list(module.parameters()), d_output)

    found = {
        "ours": call(ours, lambda: ours(tokens, seq_length=ns)),
        "native": call(native, lambda: native(tokens, None)),
        "floor": floor(work, tensor, lambda a, b, out: torch.mm(a, b, out=out)),
    }
    if ns is not None:
        found["usual"] = call(native, lambda: native(tokens, ns))
        found["dense"] = call(ours, lambda: ours(tokens))
    return found


def _steps(ours: Any, native: Any, x: Tensor, state: Any) -> dict[str, Call]:
    """One step of ours, and of torch's cell with the same weights."""
    spec = ours.spec
    cell = getattr(torch.nn, f"{spec.kind}Cell")(spec.input_size, spec.hidden_size, device=x.device)
    cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in native.state_dict().items()})
    of_cell = tuple(part[0] for part in state) if isinstance(state, tuple) else state[0]

    def ours_step() -> Tensor:
        with torch.no_grad():
            y: Tensor = ours.step(x, state)[0]
            return y

    def cell_step() -> Tensor:
        with torch.no_grad():
            new = cell(x, of_cell)
            y: Tensor = new[0] if isinstance(new, tuple) else new
            return y

    return {"ours": ours_step, "usual": cell_step}


def _synchronized(call: Call) -> Call:
    def run() -> object:
        result = call()
        torch.cuda.synchronize()
        return result

    return run
