"""The layers in a graph of ONNX: each spec as nodes, for inference.

Arrays are `(T, B, F)` here, as recurrent nodes take them. What is done to the padding is as in
`unirnn.reference.models`: a layer that mixes steps puts zeros into the padding of its input, and the others need not,
since each step is computed by itself.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from unirnn.contract.models import is_batch_first
from unirnn.contract.weights import Array
from unirnn.snapshots import layouts
from unirnn.specs import (
    ActivationSpec,
    BatchNormSpec,
    Concat,
    Conv1dSpec,
    DropoutSpec,
    EmbeddingSpec,
    GRUSpec,
    LayerNormSpec,
    LinearSpec,
    LSTMSpec,
    ModelSpec,
    NormalizeSpec,
    PoolSpec,
    RecurrentSpec,
    Residual,
    RNNSpec,
    Sequential,
    Spec,
    SumDirectionsSpec,
)
from unirnn.specs.base import LengthRule

from .onnx_graph import HARD_SIGMOIDS, Flow, GraphBuilder, Lengths

__all__ = ["LayersBuilder", "is_by_steps"]

_OPERATORS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "tanh": ("Tanh", {}),
    "sigmoid": ("Sigmoid", {}),
    "hard_sigmoid": ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    "softmax": ("Softmax", {"axis": -1}),
    "log_softmax": ("LogSoftmax", {"axis": -1}),
}
"""The activations that are one node."""

_END = 2**63 - 1  # of a slice: as far as there is anything


def is_by_steps(spec: RecurrentSpec) -> bool:
    """Whether ONNX has no operator for a layer, so that it is written as a Scan over its steps."""
    return layouts.SUPPORT["onnx"].unsupported_reason(spec) is not None


class LayersBuilder(GraphBuilder):
    """Adds layers to a graph. What belongs to a layer in a model has a name that begins with the layer's, and a dot."""

    def add_weights(self, spec: Spec, weights: Mapping[str, Array]) -> None:
        """Add the weights: those of recurrent nodes as ONNX lays them out, the others under their own names."""
        for layer, leaf in spec.leaves().items():
            prefix = f"{layer}." if layer else ""
            arrays = {name: weights[prefix + name] for name in leaf.weight_shapes()}
            if isinstance(leaf, RecurrentSpec) and not is_by_steps(leaf):
                arrays = layouts.to_framework("onnx", leaf, arrays)
            for name, array in arrays.items():
                self.add_constant(prefix + name, array, self.dtype)

    def add_layers(self, spec: Spec, lengths: bool) -> None:
        """Add everything between the inputs and the outputs of the graph."""
        self._tied = spec.tied() if isinstance(spec, ModelSpec) else {}
        self._finals: list[tuple[str, RecurrentSpec, Lengths | None]] = []
        is_tokens, is_swapped = bool(spec.takes_tokens), is_batch_first(spec)
        x = "input"
        if is_swapped:
            x = self.add_node("Transpose", [x], "input_time_major", perm=[1, 0] if is_tokens else [1, 0, 2])
        flow = Flow(x, Lengths(self, "", "seq_length", x) if lengths else None, is_tokens)
        flow = self._add_layer("", spec, self.select(flow, "input_valid") if is_tokens else flow)
        is_swapped = is_swapped and flow.has_steps
        flow = self.select(flow, "output_time_major" if is_swapped else "output")
        if is_swapped:
            self.add_node("Transpose", [flow.x], "output", perm=[1, 0, 2])
        elif flow.x != "output":
            self.add_node("Identity", [flow.x], "output")
        if flow.lengths is not None and not isinstance(spec, RecurrentSpec):
            self.add_node("Identity", [flow.lengths.name], "output_length")
        for prefix, layer, ns in self._finals:
            self._add_final_state(prefix, layer, ns)

    def _add_layer(self, prefix: str, spec: Spec, flow: Flow) -> Flow:
        match spec:
            case Sequential():
                for child, layer in spec.children:
                    flow = self._add_layer(f"{prefix}{child}.", layer, flow)
                return flow
            case Residual():
                ((child, layer),) = spec.children
                after = self._add_layer(f"{prefix}{child}.", layer, flow)
                y = self.add_node("Add", [flow.x, after.x], f"{prefix}sum")
                return replace(after, x=y, is_clean=flow.is_clean and after.is_clean)
            case Concat():
                flows = [self._add_layer(f"{prefix}{child}.", layer, flow) for child, layer in spec.children]
                y = self.add_node("Concat", [branch.x for branch in flows], f"{prefix}joined", axis=-1)
                return replace(flows[0], x=y, is_clean=all(branch.is_clean for branch in flows))
            case RecurrentSpec():
                return self._add_recurrent(prefix, spec, flow)
            case Conv1dSpec():
                return self._add_convolution(prefix, spec, flow)
            case PoolSpec():
                return self._add_pool(prefix, spec, flow)
            case DropoutSpec():
                return flow
            case LinearSpec():
                return replace(flow, x=self._add_linear(prefix, spec, flow), is_clean=False)
            case _:
                y = self._add_same_lengths(prefix, spec, flow.x)
                return replace(flow, x=y, is_tokens=False, is_clean=False)

    # ---- recurrent layers ------------------------------------------------------------------------

    def _add_recurrent(self, prefix: str, spec: RecurrentSpec, flow: Flow) -> Flow:
        """Add one recurrent node for each layer, for both of its directions; or a Scan for each direction."""
        self._finals.append((prefix, spec, flow.lengths))
        # All masks come first, as they always have, so that a layer's file is the same, byte for byte.
        masks = [] if flow.lengths is None else [flow.lengths.is_valid, flow.lengths.has_steps, flow.lengths.int32]
        ns = masks[-1] if masks else ""
        flow = self.select(flow, f"{prefix}input_valid")
        initial = {name: self._split_state(prefix, spec, f"{prefix}{name}_0") for name in spec.states}
        # A layer by itself gives the output of the graph.
        last = "output_time_major" if not prefix and spec.batch_first else f"{prefix}output"
        for layer in range(spec.num_layers):
            y = last if layer == spec.num_layers - 1 else f"{prefix}output_l{layer}"
            joined = f"{y}_padded" if masks else y
            inputs = [flow.x, ns, *(initial[name][layer] for name in spec.states)]
            if isinstance(spec, LSTMSpec) and is_by_steps(spec):
                self._add_steps_of_layer(prefix, spec, layer, [flow.x, *masks[:1], *inputs[2:]], joined)
            else:
                self._add_node_of_layer(prefix, spec, layer, inputs, joined)
            flow = self.select(replace(flow, x=joined, is_clean=False), y)
        return flow

    def _split_state(self, prefix: str, spec: RecurrentSpec, state: str) -> list[str]:
        """Split a state `(L*D, B, H)` into `(D, B, H)` for each layer."""
        if spec.num_layers == 1:
            return [state]
        parts = [f"{state}_l{layer}" for layer in range(spec.num_layers)]
        sizes = self.add_constant(f"{prefix}directions_of_layers", [spec.num_directions] * spec.num_layers)
        self.add_node("Split", [state, sizes], parts, axis=0)
        return parts

    def _add_node_of_layer(self, prefix: str, spec: RecurrentSpec, layer: int, inputs: list[str], y: str) -> None:
        """Add the recurrent node of a layer, and the nodes that make `(T, B, D*H)` of its `(T, D, B, H)`.

        The inputs are the array, the lengths, and the initial states.
        """
        x, ns, *initial = inputs
        weights = [f"{prefix}W_l{layer}", f"{prefix}R_l{layer}", f"{prefix}B_l{layer}" if spec.bias else ""]
        attributes: dict[str, Any] = {
            "hidden_size": spec.hidden_size,
            "direction": "bidirectional" if spec.bidirectional else "reverse" if spec.reverse else "forward",
        }
        if isinstance(spec, RNNSpec):
            attributes["activations"] = [spec.nonlinearity.capitalize()] * spec.num_directions
        if isinstance(spec, (GRUSpec, LSTMSpec)) and spec.gate_activation != "sigmoid":
            alpha, beta = HARD_SIGMOIDS[spec.gate_activation]
            others = ["Tanh"] * len(spec.states)
            attributes["activations"] = ["HardSigmoid", *others] * spec.num_directions
            attributes["activation_alpha"] = [alpha] * spec.num_directions
            attributes["activation_beta"] = [beta] * spec.num_directions
        if isinstance(spec, GRUSpec):
            attributes["linear_before_reset"] = int(spec.reset_after)
        directions = f"{y}_directions"
        outputs = [directions, *(f"{prefix}{name}_n_l{layer}" for name in spec.states)]
        name = f"{prefix}{spec.kind}_l{layer}"
        self.add_node(spec.kind, [x, *weights, ns, *initial], outputs, name=name, **attributes)
        if not spec.bidirectional:
            self.add_node("Squeeze", [directions, self.add_constant("axis_directions", [1])], y)
            return
        side_by_side = self.add_node("Transpose", [directions], f"{y}_side_by_side", perm=[0, 2, 1, 3])
        shape = self.add_constant(f"{prefix}shape_joined", [0, 0, 2 * spec.hidden_size])  # 0: keep this axis
        self.add_node("Reshape", [side_by_side, shape], y)

    def _add_steps_of_layer(self, prefix: str, spec: LSTMSpec, layer: int, inputs: list[str], y: str) -> None:
        """Add a Scan over the steps for each direction of a layer, since ONNX has no LSTM with a projection.

        The inputs are the array, which steps are valid unless all are, and the initial states. In the padding the state
        stays as it is, so that the reverse direction begins at the last valid step with the initial state.
        """
        x, *masks = inputs[:-2]
        x, h, c = (self._to_float32(value, f"{value}_float32") for value in (x, *inputs[-2:]))  # no step is rounded
        first = self.add_constant("axis_0", [0])
        directions: list[str] = []
        finals: dict[str, list[str]] = {name: [] for name in spec.states}
        for direction in range(spec.num_directions):
            position = layer * spec.num_directions + direction
            suffix = spec.suffixes()[position]
            name = f"{prefix}{spec.kind}{suffix}"
            weights = {
                weight: self._to_float32(prefix + weight, f"{prefix}{weight}_float32")
                for weight in spec.weight_shapes()
                if weight.endswith(suffix)
            }
            gates = self._add_gates_of_input(prefix, spec, suffix, x, weights)
            which = self.add_constant(f"int_{direction}", direction)
            begin = [self.add_node("Gather", [state, which], f"{state}{suffix}", axis=0) for state in (h, c)]
            outputs = [f"{name}_{part}" for part in ("h_n", "c_n", "output")]
            backwards = int(spec.is_reverse(position))
            self.add_node(
                "Scan",
                [*begin, gates, *masks],
                outputs,
                name=name,
                body=self._body_of_steps(prefix, spec, suffix, weights, bool(masks)),
                num_scan_inputs=1 + len(masks),
                scan_input_directions=[backwards] * (1 + len(masks)),
                scan_output_directions=[backwards],
            )
            *ends, output = (self._from_float32(value) for value in outputs)
            directions.append(output)
            for state, final in zip(spec.states, ends, strict=True):
                finals[state].append(self.add_node("Unsqueeze", [final, first], f"{final}_row"))
        self.add_node("Concat", directions, y, axis=-1)
        for state, rows in finals.items():
            self.add_node("Concat", rows, f"{prefix}{state}_n_l{layer}", axis=0)

    def _add_gates_of_input(self, prefix: str, spec: LSTMSpec, suffix: str, x: str, weights: Mapping[str, str]) -> str:
        """Add ``W_ih x + b_ih`` of all steps: `(T, B, I)` to `(T, B, 4*H)`."""
        affine = [weights[f"{name}_ih{suffix}"] for name in ("weight", "bias")[: 1 + spec.bias]]
        sizes = spec.weight_shapes()[f"weight_ih{suffix}"][1], 4 * spec.hidden_size
        return self._add_affine(x, affine, sizes, f"{prefix}gates{suffix}")

    def _body_of_steps(
        self, prefix: str, spec: LSTMSpec, suffix: str, weights: Mapping[str, str], has_padding: bool
    ) -> Any:
        """The graph of one step of a Scan: from the state, ``W_ih x + b_ih``, and which sequences go on."""
        body = GraphBuilder(self.onnx, np.dtype(self._wide))
        kind = self.onnx.helper.np_dtype_to_tensor_dtype(body.dtype)
        name = f"{prefix}step{suffix}_"

        def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
            return body.add_node(op, inputs, name + output, **attributes)

        def value(part: str, size: int, kind: int = kind) -> Any:
            return self.onnx.helper.make_tensor_value_info(name + part, kind, ["B", size])

        def gate(part: str) -> str:
            if spec.gate_activation == "sigmoid":
                return add("Sigmoid", [f"{name}a_{part}"], part)
            alpha, beta = HARD_SIGMOIDS[spec.gate_activation]
            return add("HardSigmoid", [f"{name}a_{part}"], part, alpha=alpha, beta=beta)

        affine = [weights[f"{one}_hh{suffix}"] for one in ("weight", "bias")[: 1 + spec.bias]]
        hidden = add("Gemm", [f"{name}h", *affine], "hidden", transB=1)
        gates = add("Add", [f"{name}gates", hidden], "all_gates")
        body.add_node("Split", [gates], [f"{name}a_{part}" for part in spec.gates], axis=-1)
        kept = add("Mul", [gate("f"), f"{name}c"], "kept")
        c = add("Add", [kept, add("Mul", [gate("i"), add("Tanh", [f"{name}a_g"], "g")], "added")], "c_valid")
        h = add("Mul", [gate("o"), add("Tanh", [c], "tanh_c")], "h_wide")
        h = add("Gemm", [h, weights[f"weight_hr{suffix}"]], "h_valid", transB=1)
        inputs = [value("h", spec.output_size), value("c", spec.hidden_size), value("gates", 4 * spec.hidden_size)]
        if has_padding:
            inputs.append(value("is_valid", 1, self.onnx.TensorProto.BOOL))
            h = add("Where", [f"{name}is_valid", h, f"{name}h"], "h_next")
            c = add("Where", [f"{name}is_valid", c, f"{name}c"], "c_next")
        outputs = [
            self.onnx.helper.make_tensor_value_info(own, kind, ["B", size])
            for own, size in (
                (h, spec.output_size),
                (c, spec.hidden_size),
                (add("Identity", [h], "output"), spec.output_size),
            )
        ]
        return self.onnx.helper.make_graph(body.nodes, f"{name}graph", inputs, outputs)

    def _add_final_state(self, prefix: str, spec: RecurrentSpec, lengths: Lengths | None) -> None:
        for name in (f"{prefix}{state}" for state in spec.states):
            parts = [f"{name}_n_l{layer}" for layer in range(spec.num_layers)]
            if lengths is None:
                self.add_node("Concat", parts, f"{name}_n", axis=0)
                continue
            whole = self.add_node("Concat", parts, f"{name}_n_of_nodes", axis=0) if len(parts) > 1 else parts[0]
            self.add_node("Where", [lengths.has_steps, whole, f"{name}_0"], f"{name}_n")

    # ---- other layers that mix steps -------------------------------------------------------------

    def _add_convolution(self, prefix: str, spec: Conv1dSpec, flow: Flow) -> Flow:
        flow = self.select(flow, f"{prefix}input_valid")
        x, pads = flow.x, spec.padded
        if spec.state_shapes(None):
            x, pads = self._add_context(prefix, flow, spec.padded[0]), (0, 0)
        x = self.add_node("Transpose", [x], f"{prefix}input_channels", perm=[1, 2, 0])
        y = self.add_node(
            "Conv",
            [x, f"{prefix}weight", *([f"{prefix}bias"] if spec.bias else [])],
            f"{prefix}output_channels",
            dilations=[spec.dilation],
            group=spec.groups,
            kernel_shape=[spec.kernel_size],
            pads=pads,
            strides=[spec.stride],
        )
        y = self.add_node("Transpose", [y], f"{prefix}y", perm=[2, 0, 1])
        lengths = flow.lengths
        if lengths is not None and spec.length_rules:
            (rule,) = spec.length_rules
            lengths = Lengths(self, f"{prefix}output_", self._add_length(prefix, rule, lengths.name), y)
        return Flow(y, lengths)

    def _add_context(self, prefix: str, flow: Flow, count: int) -> str:
        """Put the context before the steps, and add the final one: the last ``count`` steps of each sequence."""
        x = self.add_node("Concat", [f"{prefix}context_0", flow.x], f"{prefix}input_with_context", axis=0)
        y = f"{prefix}context_n"
        if flow.lengths is None:
            begin, end = self.add_constant(f"{prefix}context_begin", [-count]), self.add_constant("end", [_END])
            self.add_node("Slice", [x, begin, end, self.add_constant("axis_0", [0])], y)
        else:
            offsets = self.add_constant(f"{prefix}context_offsets", np.arange(count)[:, None])
            self.gather_steps(x, self.add_node("Add", [flow.lengths.name, offsets], f"{prefix}context_steps"), y)
        return x

    def _add_length(self, prefix: str, rule: LengthRule, lengths: str) -> str:
        """Add `LengthRule.__call__`. ONNX's division rounds towards zero, so that a negative dividend is left out."""
        zero, one = self.add_constant("int_0", 0), self.add_constant("int_1", 1)
        surplus = self.add_constant(f"{prefix}length_surplus", rule.padding - rule.span)
        stride = self.add_constant(f"{prefix}length_stride", rule.stride)
        rest = self.add_node("Add", [lengths, surplus], f"{prefix}length_rest")
        strides = self.add_node("Div", [rest, stride], f"{prefix}length_strides")
        counted = self.add_node("Add", [strides, one], f"{prefix}length_counted")
        some = self.add_node("Greater", [lengths, zero], f"{prefix}length_some")
        enough = self.add_node("GreaterOrEqual", [rest, zero], f"{prefix}length_enough")
        both = self.add_node("And", [some, enough], f"{prefix}length_is_counted")
        return self.add_node("Where", [both, counted, zero], f"{prefix}length")

    def _add_pool(self, prefix: str, spec: PoolSpec, flow: Flow) -> Flow:
        ns = flow.lengths
        y = {"mean": self._add_mean, "max": self._add_max}.get(spec.how, self._add_last)(prefix, flow)
        if spec.how == "first_last":
            first = self.add_node("Gather", [flow.x, self.add_constant("int_0", 0)], f"{prefix}first", axis=0)
            (_, second_half), (first_half, _) = self._split(first, f"{prefix}first"), self._split(y, f"{prefix}last")
            y = self.add_node("Concat", [first_half, second_half], f"{prefix}first_last", axis=-1)
        if ns is not None:
            y = self.add_node("Where", [ns.has_steps, y, self.add_constant("zero", 0, self.dtype)], f"{prefix}y")
        return Flow(y, None, has_steps=False)

    def _add_mean(self, prefix: str, flow: Flow) -> str:
        x = self._to_float32(self.select(flow, f"{prefix}input_valid").x, f"{prefix}input_float32")
        if flow.lengths is None:
            return self._from_float32(self.add_node("ReduceMean", [x], f"{prefix}mean", axes=[0], keepdims=0))
        total = self.add_node("ReduceSum", [x, self.add_constant("axis_0", [0])], f"{prefix}total", keepdims=0)
        count = self.add_node("Max", [flow.lengths.name, self.add_constant("int_1", 1)], f"{prefix}count_1d")
        count = self.add_node("Unsqueeze", [count, self.add_constant("axis_last", [-1])], f"{prefix}count_int")
        count = self.add_node("CastLike", [count, total], f"{prefix}count")
        return self._from_float32(self.add_node("Div", [total, count], f"{prefix}mean"))

    def _add_max(self, prefix: str, flow: Flow) -> str:
        x, float32 = flow.x, self.onnx.TensorProto.FLOAT
        if flow.lengths is not None:
            least = self.add_constant("minus_infinity", -np.inf, self.dtype)
            x = self.add_node("Where", [flow.lengths.is_valid, x, least], f"{prefix}input_valid")
        largest = self.add_node("ReduceMax", [x], f"{prefix}max", axes=[0], keepdims=0)
        # ONNX does not say what the maximum of NaN is. ONNX Runtime may leave it out.
        is_nan = self.add_node("Cast", [self.add_node("IsNaN", [x], f"{prefix}is_nan")], f"{prefix}nan", to=float32)
        has_nan = self.add_node("ReduceMax", [is_nan], f"{prefix}max_nan", axes=[0], keepdims=0)
        has_nan = self.add_node("Cast", [has_nan], f"{prefix}has_nan", to=self.onnx.TensorProto.BOOL)
        nan = self.add_constant("not_a_number", np.nan, self.dtype)
        return self.add_node("Where", [has_nan, nan, largest], f"{prefix}max_or_nan")

    def _add_last(self, prefix: str, flow: Flow) -> str:
        y = f"{prefix}last"
        if flow.lengths is None:
            return self.add_node("Gather", [flow.x, self.add_constant("int_minus_1", -1)], y, axis=0)
        zero, one = self.add_constant("int_0", 0), self.add_constant("int_1", 1)
        step = self.add_node("Sub", [flow.lengths.name, one], f"{prefix}length_minus_1")
        return self.gather_steps(flow.x, self.add_node("Max", [step, zero], f"{prefix}last_step"), y)

    # ---- layers that compute each step by itself -------------------------------------------------

    def _add_linear(self, prefix: str, spec: LinearSpec, flow: Flow) -> str:
        weight = self._tied.get(f"{prefix}weight", f"{prefix}weight")
        affine = [weight, *([f"{prefix}bias"] if spec.bias else [])]
        if not flow.has_steps:
            return self.add_node("Gemm", [flow.x, *affine], f"{prefix}y", transB=1)
        return self._add_affine(flow.x, affine, (spec.in_features, spec.out_features), f"{prefix}y")

    def _add_affine(self, x: str, affine: list[str], sizes: tuple[int, int], y: str) -> str:
        """Add ``W x + b`` of all steps, `(T, B, I)` to `(T, B, O)`, given the names of W and b, and I and O.

        A Gemm takes W as it is, but no axis T. A MatMul would need a transposed copy, and ONNX Runtime 1.31 crashes
        over a Transpose before a MatMul in float16.
        """
        rows = self.add_node("Reshape", [x, self.add_constant(f"{y}_shape_of_rows", [-1, sizes[0]])], f"{y}_input_rows")
        rows = self.add_node("Gemm", [rows, *affine], f"{y}_rows", transB=1)
        leading = self.add_node("Shape", [x], f"{y}_leading", start=0, end=2)
        size = self.add_constant(f"{y}_size", [sizes[1]])
        return self.add_node("Reshape", [rows, self.add_node("Concat", [leading, size], f"{y}_shape", axis=0)], y)

    def _add_same_lengths(self, prefix: str, spec: Spec, x: str) -> str:
        def add(op: str, inputs: list[str], output: str = "y", **attributes: Any) -> str:
            return self.add_node(op, inputs, prefix + output, **attributes)

        def number(name: str, value: float) -> str:
            return self.add_constant(prefix + name, value, self.dtype)

        def own(*names: str) -> list[str]:
            return [prefix + name for name in names]

        match spec:
            case EmbeddingSpec():
                # Gather counts negative numbers from the end; one that is too large is an error.
                tokens = self.add_constant(prefix + "num_embeddings", spec.num_embeddings)
                is_negative = add("Less", [x, self.add_constant("int_0", 0)], "is_negative")
                tokens = add("Where", [is_negative, tokens, x], "tokens")
                return add("Gather", [f"{prefix}weight", tokens], axis=0)
            case ActivationSpec("gelu"):
                erf = add("Erf", [add("Mul", [x, number("root_of_half", math.sqrt(0.5))], "scaled")], "erf")
                phi = add("Add", [erf, number("one", 1)], "twice_phi")
                return add("Mul", [add("Mul", [x, number("half", 0.5)], "half_x"), phi])
            case ActivationSpec("silu"):
                return add("Mul", [x, add("Sigmoid", [x], "sigmoid")])
            case ActivationSpec():
                op, attributes = _OPERATORS[spec.function]
                return self.add_node(op, [x], f"{prefix}y", **attributes)
            case LayerNormSpec():
                # A node may compute the variance as a difference of squares, which needs a mean of about 0.
                centred = add("Sub", [x, add("ReduceMean", [x], "mean", axes=[-1])], "centred")
                return add("LayerNormalization", [centred, *own("weight", "bias")], axis=-1, epsilon=spec.eps)
            case BatchNormSpec():
                x, weight, bias, mean, variance = (
                    self._to_float32(value, f"{prefix}{name}_float32")
                    for name, value in {"input": x, **{name: prefix + name for name in spec.weight_shapes()}}.items()
                )
                eps = self.add_constant(f"{prefix}eps", spec.eps, self._wide)
                deviation = add("Sqrt", [add("Add", [variance, eps], "variance")], "deviation")
                y = add("Div", [add("Sub", [x, mean], "centred"), deviation], "normalized")
                return self._from_float32(add("Add", [add("Mul", [y, weight], "scaled"), bias]))
            case NormalizeSpec():
                x = self._to_float32(x, f"{prefix}input_float32")  # in float16, eps would be 0
                eps = self.add_constant(prefix + "eps", spec.eps, self._wide)
                norm = add("Max", [add("ReduceL2", [x], "norm", axes=[-1]), eps], "norm_or_eps")
                return self._from_float32(add("Div", [x, norm]))
            case SumDirectionsSpec():
                return add("Add", self._split(x, prefix + "input"))
            case _:
                raise NotImplementedError(spec.kind)

    def _split(self, x: str, name: str) -> list[str]:
        """Split the last axis into halves."""
        halves = [f"{name}_first_half", f"{name}_second_half"]
        self.add_node("Split", [x], halves, axis=-1)
        return halves

    @property
    def _wide(self) -> Any:
        return np.float32 if self.dtype == np.float16 else self.dtype

    def _to_float32(self, x: str, y: str) -> str:
        """An array of float16 as float32, for what would overflow or vanish; any other as it is."""
        if self.dtype != np.float16:
            return x
        return self.add_node("Cast", [x], y, to=self.onnx.TensorProto.FLOAT)

    def _from_float32(self, x: str) -> str:
        if self.dtype != np.float16:
            return x
        return self.add_node("Cast", [x], f"{x}_float16", to=self.onnx.TensorProto.FLOAT16)
