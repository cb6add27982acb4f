"""MindSpore's baselines: its own layers on dense input, and with their ``seq_length``; for one step, its own cell.

For a model, they are the same model written with these layers in the usual way.

There are three modes: ``eager``, which is PyNative with ``launch_blocking``; ``jit``, which is the same, compiled; and
``asynchronous``, which is PyNative without ``launch_blocking``. The last one needs a process of its own because
``launch_blocking`` can't be undone. MindSpore's own layers take half a minute to compile for each shape, and seconds
for each asynchronous call. So they are measured only in mode ``eager`` and up to 100 time steps, unless slow baselines
are requested.
"""

from collections.abc import Callable
from typing import Any

import mindspore as ms

from unirnn import Snapshot, load_weights, snapshot
from unirnn.contract.call import join_state
from unirnn.specs import RecurrentSpec, Sequential
from unirnn_bench.baselines import Call, Calls
from unirnn_bench.baselines._floor import floor
from unirnn_bench.work import Work

__all__ = ["MODES", "calls"]

MODES = ("eager", "jit", "asynchronous")


class _Output(ms.nn.Cell):
    """The output of a layer, without its state."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def construct(self, x: Any, hx: Any, seq_length: Any, resets: Any) -> Any:
        if resets is not None:
            return self.layer(x, hx, seq_length, resets)[0]
        if seq_length is None:
            return self.layer(x, hx)[0]
        return self.layer(x, hx, seq_length)[0]


class _Step(ms.nn.Cell):
    """One step of a layer of unirnn."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.layer = layer

    def construct(self, x: Any, state: Any) -> Any:
        return self.layer.step(x, state)[0]


class _Gradients(ms.nn.Cell):
    """The gradients of a cell's weights and, if ``of_input``, of its input."""

    def __init__(self, output: ms.nn.Cell, *, of_input: bool) -> None:
        super().__init__()
        self.output = output
        self.parameters = ms.ParameterTuple(output.trainable_params())
        self.gradients = ms.ops.GradOperation(get_all=of_input, get_by_list=True, sens_param=True)

    def construct(self, x: Any, hx: Any, seq_length: Any, resets: Any, d_output: Any) -> Any:
        return self.gradients(self.output, self.parameters)(x, hx, seq_length, resets, d_output)


def calls(work: Work) -> Calls:
    """Prepare the calls; see `unirnn_bench.baselines.Baselines`."""
    if work.mode != "asynchronous":
        ms.runtime.launch_blocking()
    ours: Any = (work.model or work.spec).build("mindspore", seed=0)
    x, hx = ms.Tensor(work.input), None if work.hx is None else join_state([ms.Tensor(part) for part in work.hx])
    ns, resets = (None if array is None else ms.Tensor(array) for array in (work.seq_length, work.resets))
    adapt = _Output if work.model is None else _Model

    def call(cell: ms.nn.Cell, seq_length: Any = None, resets: Any = None) -> Call:
        arguments = [x, hx, seq_length, resets]
        if work.d_output is None:
            return _synchronized(work, cell, *arguments)
        return _synchronized(work, _Gradients(cell, of_input=work.model is None), *arguments, ms.Tensor(work.d_output))

    found = {"ours": call(adapt(ours), ns, resets)}
    if work.hx is not None:
        steps = {"ours": (_Step(ours), hx), "usual": (_own_cell(ours), join_state([ms.Tensor(p[0]) for p in work.hx]))}
        for name, (step, state) in steps.items():
            found[name] = _synchronized(work, step, x[0], state)
    if ns is not None or resets is not None:
        found["dense"] = call(adapt(ours))
    if work.slow or (work.mode == "eager" and len(work.input) <= 100):
        native = _native(work, ours)
        found["native"] = call(native)
        if ns is not None:
            found["usual"] = call(native, ns)
        found["floor"] = _floor_call(work)
    return found


def _native(work: Work, ours: Any) -> ms.nn.Cell:
    """MindSpore's own layer, or the model written with it, with the same weights."""
    weights = snapshot(ours).weights
    if work.model is None:
        layer = getattr(ms.nn, work.spec.kind)(**work.spec.to_kwargs("mindspore"))
        load_weights(layer, Snapshot(work.spec, weights))
        return _Output(layer)
    model = _Classifier(work.model)
    model.embedding.embedding_table.set_data(ms.Tensor(weights["embedding.weight"]))
    model.head.weight.set_data(ms.Tensor(weights["head.weight"]))
    model.head.bias.set_data(ms.Tensor(weights["head.bias"]))
    of_encoder = {name: weights[f"encoder.{name}"] for name in work.spec.weight_shapes()}
    load_weights(model.encoder, Snapshot(work.spec, of_encoder))
    return model


def _synchronized(work: Work, cell: ms.nn.Cell, *arguments: Any) -> Call:
    """The call of a cell, which returns only when its results have been computed. In mode ``jit``, it is compiled."""
    function: Callable[..., Any] = ms.jit(cell.construct) if work.mode == "jit" else cell

    def call() -> Any:
        result = function(*arguments)
        ms.runtime.synchronize()
        return result

    return call


def _floor_call(work: Work) -> Call:
    products = floor(work, ms.Tensor, lambda a, b, out: ms.ops.matmul(a, b))

    def call() -> None:
        products()
        ms.runtime.synchronize()

    return call


class _Classifier(ms.nn.Cell):
    """The model of a row, written with MindSpore's layers in the usual way, for time-first input."""

    def __init__(self, model: Sequential) -> None:
        super().__init__()
        embedding, encoder, _, head = model
        assert isinstance(encoder, RecurrentSpec)
        self.embedding = ms.nn.Embedding(embedding.input_features, encoder.input_size)
        self.encoder = getattr(ms.nn, encoder.kind)(**encoder.to_kwargs("mindspore"))
        self.head = ms.nn.Dense(head.input_features, head.output_features(0))

    def construct(self, tokens: Any, hx: Any, seq_length: Any, resets: Any) -> Any:
        x = self.embedding(tokens)
        if seq_length is None:
            return self.head(self.encoder(x)[0].mean(0))
        output = self.encoder(x, None, seq_length)[0]
        return self.head(output.sum(0) / seq_length[:, None])


class _Model(ms.nn.Cell):
    """A model of unirnn, called with the arguments of `_Output`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def construct(self, tokens: Any, hx: Any, seq_length: Any, resets: Any) -> Any:
        return self.model(tokens, hx, seq_length)


class _OwnCell(ms.nn.Cell):
    """The output of MindSpore's own cell, without the state."""

    def __init__(self, cell: Any, is_lstm: bool) -> None:
        super().__init__()
        self.cell = cell
        self.is_lstm = is_lstm

    def construct(self, x: Any, state: Any) -> Any:
        new = self.cell(x, state)
        return new[0] if self.is_lstm else new


def _own_cell(ours: Any) -> ms.nn.Cell:
    """MindSpore's own cell, with the weights of a layer of unirnn."""
    spec = ours.spec
    cell = getattr(ms.nn, f"{spec.kind}Cell")(spec.input_size, spec.hidden_size)
    own = {parameter.name: parameter for parameter in cell.get_parameters()}
    for name, array in snapshot(ours).weights.items():
        own[name.removesuffix("_l0")].set_data(ms.Tensor(array))
    return _OwnCell(cell, spec.kind == "LSTM")
