"""Dynamic quantisation on a CPU: a GRU or LSTM with weights in int8 or float16, and arrays in float32.

``torch.ao.quantization.quantize_dynamic`` replaces modules by their exact type, through a mapping; types that are not
in the mapping stay as they are. `DynamicQuantized` is the entry for `unirnn_torch.Recurrent`. The layers inside it are
torch's own quantised ones, which take lengths only as a ``PackedSequence``, so the sequences that have a step are
packed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.ao.nn.quantized import dynamic
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unirnn import RecurrentSpec
from unirnn.contract.call import join_state, prepare, state_parts
from unirnn.contract.limits import Support
from unirnn.contract.module import Module
from unirnn.errors import LimitError

from .module import Recurrent, read_lengths

__all__ = ["DynamicQuantized"]

_KINDS: dict[str, Any] = {"GRU": dynamic.GRU, "LSTM": dynamic.LSTM}
_SUPPORT = Support("torch's quantisation", lacks=("proj_size", "reset_after"), devices=("cpu",), derivatives=0)


class DynamicQuantized(torch.nn.Module):
    """What `Recurrent` becomes in a model that is quantised dynamically; for inference.

    Parameters
    ----------
    spec
        The layers.
    layers
        A ``GRU`` or ``LSTM`` of ``torch.ao.nn.quantized.dynamic``, time-major.

    Examples
    --------
    ``quantize_dynamic(model, {Recurrent, torch.nn.Linear}, mapping={**mapping, Recurrent: DynamicQuantized})`` with
    ``mapping = torch.ao.quantization.get_default_dynamic_quant_module_mappings()``.
    """

    def __init__(self, spec: RecurrentSpec, layers: torch.nn.Module) -> None:
        super().__init__()
        self.spec = spec
        self.layers = layers

    @classmethod
    def from_float(cls, mod: Recurrent, use_precomputed_fake_quant: bool = False) -> "DynamicQuantized":
        """Quantise a module. ``quantize_dynamic`` calls this after it has set ``mod.qconfig``.

        Raises
        ------
        LimitError
            If torch can't quantise such a layer.
        """
        spec = mod.spec
        reason = _SUPPORT.unsupported_reason(spec)
        if spec.kind not in _KINDS:
            reason = f"torch's quantisation has no {spec.kind}"
        if reason is not None:
            raise LimitError(f"{spec!r}: {reason}; leave `Recurrent` out of the mapping to keep the layer as it is")
        # torch refuses to quantise layers without biases; zeros are the same.
        arguments = {**spec.to_kwargs("torch"), "bias": True, "batch_first": False}
        native = getattr(torch.nn, spec.kind)(**arguments)
        for name, parameter in native.state_dict().items():
            given = spec.bias or not name.startswith("bias")
            # As an attribute, since a parametrization renames what is in the state_dict.
            parameter.copy_(getattr(mod, name).detach() if given else torch.zeros_like(parameter))
        native.qconfig = mod.qconfig
        return cls(spec, _KINDS[spec.kind].from_float(native)).train(mod.training)

    def forward(self, input: Any = None, hx: Any = None, seq_length: Any = None, **aliases: Any) -> Any:
        spec, like = self.spec, (Tensor, torch.float32)
        call = prepare(spec, input, hx, seq_length, aliases, like=like, read_lengths=read_lengths)
        x = call.input
        batch_size = x.shape[1]
        state = call.state or tuple(x.new_zeros(shape) for shape in spec.state_shapes(batch_size).values())
        if call.lengths is None and batch_size:
            output, hx = self.layers(x, join_state(state))
            return call.restore(output, state_parts(spec, hx) or ())
        ns = torch.zeros(0, dtype=torch.int64) if call.lengths is None else torch.as_tensor(call.lengths)
        return call.restore(*self._run_ragged(x, state, ns))

    forward.__doc__ = Module.__call__.__doc__

    def _run_ragged(self, x: Tensor, state: tuple[Tensor, ...], ns: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the sequences that have a step; the final state of the others is their initial one."""
        spec = self.spec
        rows = ns.nonzero().squeeze(1)
        output = x.new_zeros((*x.shape[:2], spec.num_directions * spec.output_size))
        if not len(rows):
            return output, state
        packed = pack_padded_sequence(x.index_select(1, rows), ns[rows], enforce_sorted=False)
        results, hx = self.layers(packed, join_state([part.index_select(1, rows) for part in state]))
        steps, _ = pad_packed_sequence(results, total_length=x.shape[0])
        final = zip(state, state_parts(spec, hx) or (), strict=True)
        return output.index_copy(1, rows, steps), tuple(whole.index_copy(1, rows, part) for whole, part in final)
