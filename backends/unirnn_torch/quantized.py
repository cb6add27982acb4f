"""Dynamic quantisation on a CPU: a GRU or LSTM with weights in int8 or float16, and arrays in float32.

``torch.ao.quantization.quantize_dynamic`` replaces modules by their exact type, through a mapping; types that are not
in the mapping stay as they are. `DynamicQuantized` is the entry for `unirnn_torch.Recurrent`. The layers inside it are
torch's own quantised ones, which take lengths only as a ``PackedSequence``, so the sequences that have a step are
packed.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.ao.nn.quantized import dynamic
from torch.nn.utils.rnn import PackedSequence

from unirnn import RecurrentSpec
from unirnn.contract.call import Call, bind, join_state, prepare, prepare_step, state_parts
from unirnn.contract.limits import Support
from unirnn.contract.module import Module
from unirnn.contract.sequences import sequences
from unirnn.errors import LimitError

from . import dispatch
from .module import Recurrent
from .native import over_valid_steps

__all__ = ["DynamicQuantized"]

_LIKE = (Tensor, torch.float32)
_KINDS: dict[str, Any] = {"GRU": dynamic.GRU, "LSTM": dynamic.LSTM}
_SUPPORT = Support(
    "torch's quantisation",
    lacks=("proj_size", "reset_after", "gate_activation"),
    devices=("cpu",),
    derivatives=0,
)


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

    __prepare_scriptable__ = dispatch.refuse_script

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
        arguments = {**replace(spec, reverse=False).to_kwargs("torch"), "bias": True, "batch_first": False}
        native = getattr(torch.nn, spec.kind)(**arguments)
        for name, parameter in native.state_dict().items():
            given = spec.bias or not name.startswith("bias")
            # As an attribute, since a parametrization renames what is in the state_dict.
            parameter.copy_(getattr(mod, name).detach() if given else torch.zeros_like(parameter))
        native.qconfig = mod.qconfig
        return cls(spec, _KINDS[spec.kind].from_float(native)).train(mod.training)

    def forward(
        self, input: Any = None, hx: Any = None, seq_length: Any = None, resets: Any = None, **aliases: Any
    ) -> Any:
        given = bind(self.spec, input, hx, seq_length, resets, aliases)
        return self._run(prepare(self.spec, given, like=_LIKE))

    forward.__doc__ = Module.__call__.__doc__

    def step(self, x: Any, state: Any = None) -> tuple[Tensor, Any]:
        return self._run(prepare_step(self.spec, x, state, like=_LIKE))

    step.__doc__ = Module.step.__doc__

    def _run(self, call: Call) -> tuple[Tensor, Any]:
        spec, x = self.spec, call.input
        steps, batch_size, _ = x.shape
        state = call.state or tuple(x.new_zeros(shape) for shape in spec.state_shapes(batch_size).values())
        if call.lengths is None and call.resets is None and batch_size:
            # The layers run forward.
            output, hx = self.layers(x.flip(0) if spec.reverse else x, join_state(state))
            return call.restore(output.flip(0) if spec.reverse else output, state_parts(spec, hx) or ())
        found = sequences(steps, batch_size, call.lengths, call.resets)
        if not found.lengths.any():
            return call.restore(x.new_zeros((steps, batch_size, spec.num_directions * spec.output_size)), state)

        def run(data: Tensor, batch_sizes: Tensor, begin: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            output, hx = self.layers(PackedSequence(data, batch_sizes), join_state(begin))
            return output.data, *(state_parts(spec, hx) or ())

        reverse = [spec.is_reverse(k) for k in range(len(state[0]))]
        return call.restore(*over_valid_steps(run, x, state, found, reverse))
