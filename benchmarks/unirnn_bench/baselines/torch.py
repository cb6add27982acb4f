"""PyTorch's baselines: its own layers on dense input, and on packed sequences for ragged input.

For a model, they are the same model written with these layers in the usual way. For resets, the baseline is a loop over
single steps, like that of stable-baselines3-contrib. For one step, it is PyTorch's own cell.

There are two modes: ``eager``, which is on the CPU, and ``cuda`` if there is a GPU, where each call waits for its
results.
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

Functions = dict[str, Callable[[Tensor], Tensor]]
"""Functions that compute the output from the input, by name."""

MODES = ("eager", "cuda") if torch.cuda.is_available() else ("eager",)


def calls(work: Work) -> Calls:
    """Prepare the calls; see `unirnn_bench.baselines.Baselines`."""
    torch.set_num_threads(work.threads)
    device = "cuda" if work.mode == "cuda" else "cpu"

    def tensor(array: Any) -> Any:
        return None if array is None else torch.from_numpy(array).to(device)

    ours: Any = (work.model or work.spec).build("torch", device=device, seed=0)
    native = _native(work, ours, device)
    x, d_output = tensor(work.input), tensor(work.d_output)
    ns = None if work.seq_length is None else torch.from_numpy(work.seq_length)  # packing takes lengths on the CPU only
    functions = _of_layers(work, ours, native, ns, tensor) if work.model is None else _of_models(ours, native, ns)

    def call(module: torch.nn.Module, function: Callable[[Tensor], Tensor]) -> Call:
        if d_output is None:
            return lambda: torch.no_grad()(function)(x)
        inputs = [x.clone().requires_grad_()] if x.is_floating_point() else []
        wanted = [*inputs, *module.parameters()]
        return lambda: torch.autograd.grad(function(*(inputs or [x])), wanted, d_output)

    found = {name: call(ours if name in ("ours", "dense") else native, one) for name, one in functions.items()}
    found["floor"] = floor(work, tensor, lambda a, b, out: torch.mm(a, b, out=out))
    if work.hx is not None:
        found |= _steps(ours, native, x[0], join_state([tensor(part) for part in work.hx]))
    return found if work.mode != "cuda" else {name: _synchronized(one) for name, one in found.items()}


def _native(work: Work, ours: Any, device: str) -> Any:
    """PyTorch's own layer, or the model written with it, with the same weights."""
    if work.model is not None:
        model = _Classifier(work.model).to(device)
        model.load_state_dict(ours.state_dict())
        return model
    layer = getattr(torch.nn, work.spec.kind)(**work.spec.to_kwargs("torch"), device=device)
    load_weights(layer, snapshot(ours))
    return layer


def _of_layers(work: Work, ours: Any, native: Any, ns: Tensor | None, tensor: Callable[[Any], Any]) -> Functions:
    spec, resets = work.spec, tensor(work.resets)
    hx = None if work.hx is None else join_state([tensor(part) for part in work.hx])

    def packed(x: Tensor) -> Tensor:
        assert ns is not None
        output, _ = native(pack_padded_sequence(x, ns, enforce_sorted=False))
        return pad_packed_sequence(output, total_length=len(x))[0]

    def one_by_one(x: Tensor) -> Tensor:
        """Call the layer once for each step, and set the state to zeros where a sequence begins."""
        shapes = spec.state_shapes(x.shape[1]).values()
        state = join_state([x.new_zeros(shape) for shape in shapes])
        goes_on = (~resets).to(x.dtype)[:, None, :, None]
        outputs = []
        for t in range(len(x)):
            state = tuple(goes_on[t] * part for part in state) if isinstance(state, tuple) else goes_on[t] * state
            output, state = native(x[t : t + 1], state)
            outputs.append(output)
        return torch.cat(outputs)

    found: Functions = {"ours": lambda x: ours(x, hx, ns, resets)[0], "native": lambda x: native(x, hx)[0]}
    if ns is not None or resets is not None:
        found |= {"usual": one_by_one if ns is None else packed, "dense": lambda x: ours(x)[0]}
    return found


def _of_models(ours: Any, native: Any, ns: Tensor | None) -> Functions:
    found: Functions = {
        "ours": lambda tokens: ours(tokens, seq_length=ns),
        "native": lambda tokens: native(tokens, None),
    }
    if ns is not None:
        found |= {"usual": lambda tokens: native(tokens, ns), "dense": ours}
    return found


class _Classifier(torch.nn.Module):
    """The model of a row, written with PyTorch's layers in the usual way, for time-first input."""

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


def _steps(ours: Any, native: Any, x: Tensor, state: Any) -> dict[str, Call]:
    """One step of a layer of unirnn, and of torch's own cell with the same weights."""
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
