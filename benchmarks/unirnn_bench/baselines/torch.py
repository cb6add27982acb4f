"""PyTorch's baselines: its own layers on dense input, and between packing and padding for ragged input.

There are two modes: ``eager``, on the CPU, and ``cuda`` if there is a GPU. There, a call waits for its results.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unirnn import load_weights, snapshot
from unirnn.contract.call import join_state
from unirnn_bench.baselines import Call, Calls
from unirnn_bench.baselines._floor import floor
from unirnn_bench.work import Work

__all__ = ["MODES", "calls"]

MODES = ("eager", "cuda") if torch.cuda.is_available() else ("eager",)


def calls(work: Work) -> Calls:
    """Prepare the calls; see `unirnn_bench.baselines.Baselines`."""
    torch.set_num_threads(work.threads)
    spec, device = work.spec, "cuda" if work.mode == "cuda" else "cpu"

    def tensor(array: Any) -> Tensor:
        return torch.from_numpy(array).to(device)

    ours: Any = spec.build("torch", device=device, seed=0)
    native: Any = getattr(torch.nn, spec.kind)(**spec.to_kwargs("torch"), device=device)
    load_weights(native, snapshot(ours))
    x = tensor(work.input)
    hx = None if work.hx is None else join_state([tensor(part) for part in work.hx])
    ns = None if work.seq_length is None else torch.from_numpy(work.seq_length)  # packing takes lengths on the CPU only
    d_output = None if work.d_output is None else tensor(work.d_output)

    def packed(x: Tensor) -> Tensor:
        assert ns is not None
        output, _ = native(pack_padded_sequence(x, ns, enforce_sorted=False))
        return pad_packed_sequence(output, total_length=len(x))[0]

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
        "ours": call(ours, lambda x: ours(x, hx, ns)[0]),
        "native": call(native, lambda x: native(x, hx)[0]),
        "floor": floor(work, tensor, lambda a, b, out: torch.mm(a, b, out=out)),
    }
    if ns is not None:
        found["usual"] = call(native, packed)
        found["dense"] = call(ours, lambda x: ours(x, hx)[0])
    return found if device == "cpu" else {name: _synchronized(one) for name, one in found.items()}


def _synchronized(call: Call) -> Call:
    def run() -> object:
        result = call()
        torch.cuda.synchronize()
        return result

    return run
