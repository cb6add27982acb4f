"""Dynamic quantisation on a CPU: a GRU or LSTM whose weights are int8, or float16, and whose arrays stay float32.

``torch.ao.quantization.quantize_dynamic`` replaces modules by their exact type, through a mapping; what is not in it
stays as it is. `DynamicQuantized` is the entry for `unirnn_torch.Recurrent`. The layers inside are torch's own
quantised ones, which know no lengths but those of a ``PackedSequence``: the sequences with a step are packed.
"""

from typing import Any

import torch
from torch import Tensor
from torch.ao.nn.quantized import dynamic
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from unirnn import GRUSpec, LSTMSpec, RecurrentSpec
from unirnn.contract.call import bind, check, join_state, state_parts
from unirnn.errors import LimitError
from unirnn_torch.module import Recurrent, on_host

__all__ = ["DynamicQuantized"]


class DynamicQuantized(torch.nn.Module):
    """What `Recurrent` becomes in a model that is quantised dynamically; for inference.

    Parameters
    ----------
    spec
        What it is.
    layers
        A ``GRU`` or ``LSTM`` of ``torch.ao.nn.quantized.dynamic``.

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
        """Quantise a module; what ``quantize_dynamic`` calls, once it has set ``mod.qconfig``."""
        spec = mod.spec
        before = isinstance(spec, GRUSpec) and not spec.reset_after
        projected = isinstance(spec, LSTMSpec) and spec.proj_size
        if spec.kind == "RNN" or before or projected:
            raise LimitError(f"{spec!r}: torch quantises GRU with reset_after=True, and LSTM without proj_size, only")
        # torch refuses layers without biases: zeros are the same
        native = getattr(torch.nn, spec.kind)(**{**spec.to_kwargs("torch"), "bias": True})
        for name, parameter in native.state_dict().items():
            given = spec.bias or not name.startswith("bias")
            # by attribute, since a parametrization renames what is in the state_dict
            parameter.copy_(getattr(mod, name).detach() if given else torch.zeros_like(parameter))
        native.qconfig = mod.qconfig
        kinds: dict[str, Any] = {"GRU": dynamic.GRU, "LSTM": dynamic.LSTM}
        return cls(spec, kinds[spec.kind].from_float(native)).train(mod.training)

    def forward(self, input: Any = None, hx: Any = None, seq_length: Any = None, **aliases: Any) -> Any:
        """Run the layers; arguments and results as those of `Recurrent.forward`, of float32, not packed."""
        spec = self.spec
        input, hx, seq_length = bind(spec, input, hx, seq_length, aliases)
        given = state_parts(spec, hx)
        sizes = check(spec, Tensor, torch.float32, input, given)
        axis = 0 if spec.batch_first else 1
        batched = sizes.batch_size is not None
        if not batched:
            input = input.unsqueeze(axis)
            given = None if given is None else tuple(part.unsqueeze(1) for part in given)
        batch_size = input.shape[axis]
        state = given or tuple(input.new_zeros(shape) for shape in spec.state_shapes(batch_size).values())

        if seq_length is None and batch_size:
            output, final = self.layers(input, join_state(state))
            state = state_parts(spec, final) or ()
        else:
            ns = torch.from_numpy(on_host([] if seq_length is None else seq_length, sizes))
            output, state = self._ragged(input, state, ns)
        if not batched:
            return output.squeeze(axis), join_state([part.squeeze(1) for part in state])
        return output, join_state(state)

    def _ragged(self, input: Tensor, state: tuple[Tensor, ...], ns: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Run the sequences that have a step; the others are done."""
        spec = self.spec
        axis = 0 if spec.batch_first else 1
        rows = ns.nonzero().squeeze(1)
        output = input.new_zeros((*input.shape[:2], spec.num_directions * spec.output_size))
        if not len(rows):
            return output, state
        packed = pack_padded_sequence(input.index_select(axis, rows), ns[rows], spec.batch_first, False)
        begun = tuple(part.index_select(1, rows) for part in state)
        steps, final = self.layers(packed, join_state(begun))
        steps, _ = pad_packed_sequence(steps, spec.batch_first, total_length=input.shape[1 - axis])
        parts = state_parts(spec, final) or ()
        ended = tuple(whole.index_copy(1, rows, part) for whole, part in zip(state, parts, strict=True))
        return output.index_copy(axis, rows, steps), ended
