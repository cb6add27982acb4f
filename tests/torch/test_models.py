"""A model that the torch backend builds works everywhere in torch like one that was written by hand."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import DataLoader

import unirnn
from unirnn import (
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
    NormalizeSpec,
    PoolSpec,
    Residual,
    Sequential,
    Spec,
    errors,
)

CLASSIFIER = Sequential(
    embedding=EmbeddingSpec(20, 6, padding_idx=0),
    encoder=GRUSpec(6, 5, 2, bidirectional=True, batch_first=True),
    pool=PoolSpec("mean"),
    norm=LayerNormSpec(10),
    head=LinearSpec(10, 3),
)
LANGUAGE = Sequential(
    embedding=EmbeddingSpec(20, 5),
    encoder=LSTMSpec(5, 5, batch_first=True),
    head=LinearSpec(5, 20, tied_to="embedding"),
)
FEATURES = Sequential(
    conv=Conv1dSpec(6, 8, 4, padding="same"),
    norm=BatchNormSpec(8),
    act=ActivationSpec("sigmoid"),
    down=Conv1dSpec(8, 8, 3, stride=2),
    block=Residual(Sequential(LinearSpec(8, 8), ActivationSpec("tanh"))),
    encoder=GRUSpec(8, 4, bidirectional=True, batch_first=True),
    pools=Concat(PoolSpec("max"), PoolSpec("first_last"), PoolSpec("mean")),
    unit=NormalizeSpec(),
)
STREAM = Sequential(Conv1dSpec(6, 4, 3, padding="causal"), GRUSpec(4, 5), LinearSpec(5, 2))
POOLED = Sequential(embedding=EmbeddingSpec(20, 6), pool=PoolSpec("max"), head=LinearSpec(6, 3))
SPECS: dict[str, Spec] = {
    "classifier": CLASSIFIER,
    "language": LANGUAGE,
    "features": FEATURES,
    "stream": STREAM,
    "pooled": POOLED,
}
each = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def batch(spec: Spec, lengths: tuple[int, ...] = (9, 5, 0, 7), steps: int = 9) -> tuple[Tensor, Tensor]:
    """An input with invalid tokens or NaN in its padding, and the lengths."""
    generator = torch.Generator().manual_seed(1)
    ns = torch.tensor(lengths)
    if spec.takes_tokens:
        x = torch.randint(0, 20, (len(ns), steps), generator=generator)
    else:
        x = torch.randn(len(ns), steps, 6, generator=generator)
    x[torch.arange(steps) >= ns.unsqueeze(1)] = -1 if spec.takes_tokens else torch.nan
    return (x if spec is not STREAM else x.swapaxes(0, 1)), ns


OTHER = (11, 1, 6, 0, 3, 11), 11
"""Other lengths, B and T than those of `batch`."""


class Written(nn.Module):
    """The classifier, written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 6, padding_idx=0)
        self.encoder = nn.GRU(6, 5, 2, bidirectional=True, batch_first=True)
        self.norm = nn.LayerNorm(10)
        self.head = nn.Linear(10, 3)

    def forward(self, tokens: Tensor, lengths: Tensor | None = None) -> Any:
        x = self.embedding(tokens)
        if lengths is None:
            return self.head(self.norm(self.encoder(x)[0].mean(1)))
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        x, _ = pad_packed_sequence(self.encoder(packed)[0], batch_first=True)
        return self.head(self.norm(x.sum(1) / lengths.unsqueeze(1)))


# ---- native --------------------------------------------------------------------------------------


def test_state_dicts_and_numbers_equal_a_model_written_by_hand() -> None:
    ours, theirs = CLASSIFIER.build("torch", seed=0), Written()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    ours.load_state_dict(Written().state_dict(), strict=True)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    tokens, _ = batch(CLASSIFIER, (9, 9, 9))
    lengths = torch.tensor([3, 9, 1])
    for ns in (None, lengths):
        found = []
        for net in (ours, theirs):
            net.zero_grad()
            y = net(tokens, **{"seq_length" if net is ours else "lengths": ns})
            y.square().sum().backward()
            found.append([y.detach(), *(p.grad for p in net.parameters())])
        torch.testing.assert_close(*found, rtol=1e-5, atol=1e-6)


def test_layers_are_native_and_draw_as_native_ones_do() -> None:
    torch.manual_seed(0)
    ours = CLASSIFIER.build("torch")
    torch.manual_seed(0)
    theirs = Written()
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)
    for spec in (CLASSIFIER, FEATURES):
        net = spec.build("torch")
        kinds = {nn.Embedding, nn.Linear, nn.LayerNorm, nn.BatchNorm1d, nn.Conv1d, nn.Tanh, nn.Sigmoid}
        shared = {type(layer) for layer in net.modules()} & kinds
        assert len(shared) == (3 if spec is CLASSIFIER else 5)


@each
def test_given_weights_leave_the_generator_alone(spec: Spec) -> None:
    before = torch.get_rng_state()
    net = spec.build("torch", seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert [*net.state_dict()] == [*spec.build("torch").state_dict()]
    assert net.training
    assert unirnn.snapshot(net) == unirnn.snapshot(spec.build("numpy", seed=0))


def test_tied_weights_are_one_parameter() -> None:
    for net in (LANGUAGE.build("torch"), copy.deepcopy(LANGUAGE.build("torch", seed=0)).double()):
        assert net.head.weight is net.embedding.weight
        assert "head.weight" not in dict(net.named_parameters())
    loaded = LANGUAGE.build("torch")
    loaded.load_state_dict(net.state_dict(), strict=True)
    assert unirnn.snapshot(loaded.double()).weights.keys() == LANGUAGE.weight_shapes().keys()
    loaded.load_state_dict(copy.deepcopy(net.state_dict()), assign=True)
    loaded.head.weight = nn.Parameter(torch.zeros(20, 5, dtype=torch.float64))
    with pytest.raises(errors.SpecError, match=r"its head.weight and embedding.weight are no longer one tensor"):
        unirnn.snapshot(loaded)


REPLACED: dict[str, tuple[Spec, nn.Module]] = {
    "LayerNorm without a bias": (LayerNormSpec(3), nn.LayerNorm(3, bias=False)),
    "LayerNorm without weights": (LayerNormSpec(3), nn.LayerNorm(3, elementwise_affine=False)),
    "BatchNorm without weights": (BatchNormSpec(3), nn.BatchNorm1d(3, affine=False)),
    "BatchNorm without statistics": (BatchNormSpec(3), nn.BatchNorm1d(3, track_running_stats=False)),
    "another padding": (Conv1dSpec(3, 4, 3, padding=1), nn.Conv1d(3, 4, 3, padding=1, padding_mode="circular")),
    "an approximation": (ActivationSpec("gelu"), nn.GELU(approximate="tanh")),
    "vectors of a largest norm": (EmbeddingSpec(5, 3), nn.Embedding(5, 3, max_norm=1)),
}


@pytest.mark.parametrize(("spec", "other"), REPLACED.values(), ids=REPLACED.keys())
def test_no_snapshot_of_a_layer_that_computes_something_else(spec: Spec, other: nn.Module) -> None:
    net = Sequential(layer=spec).build("torch")
    unirnn.snapshot(net)
    net.layer = other
    with pytest.raises(errors.SpecError, match=r"its layer layer is .*, expected that of"):
        unirnn.snapshot(net)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_mean_of_many_steps_in_half_precision(dtype: str) -> None:
    net = PoolSpec("mean").build("torch", dtype=dtype)
    x = torch.full((2, 70_000, 1), 3.0, dtype=getattr(torch, dtype))
    assert net(x, seq_length=[70_000, 66_001]).flatten().tolist() == [3, 3]


@each
def test_copies_give_the_same_numbers(spec: Spec) -> None:
    net = spec.build("torch", seed=0).eval()
    stored = io.BytesIO()
    torch.save(net, stored)
    stored.seek(0)
    x, ns = batch(spec)
    expected = net(x, seq_length=ns)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net)), torch.load(stored, weights_only=False)):
        torch.testing.assert_close(other(x, seq_length=ns), expected, rtol=0, atol=0)
        assert unirnn.snapshot(other) == unirnn.snapshot(net)
    wide = copy.deepcopy(net).double()
    assert wide(x if spec.takes_tokens else x.double(), seq_length=ns).dtype == torch.float64


@pytest.mark.parametrize("spec", [LinearSpec(6, 4), PoolSpec("mean"), Conv1dSpec(6, 4, 3), BatchNormSpec(6)], ids=repr)
def test_a_single_layer_is_built_as_a_native_one(spec: Spec) -> None:
    net: Any = spec.build("torch", seed=0).eval()
    native: Any = {"Linear": nn.Linear, "Conv1d": nn.Conv1d, "BatchNorm": nn.BatchNorm1d}.get(spec.kind, nn.Module)
    assert isinstance(net, native)
    x, ns = batch(spec)
    x = x.nan_to_num()
    arguments: dict[str, Any] = {} if spec.is_pointwise else {"seq_length": ns}
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other(x, **arguments), net(x, **arguments), rtol=0, atol=0)
        assert unirnn.snapshot(other) == unirnn.snapshot(net)
    assert net.double()(x.double(), **arguments).dtype == torch.float64
    with pytest.raises(errors.DTypeError, match=r"given dtype float32, expected float64, the module's own"):
        net(x)


def test_hooks_of_layers_run_and_can_change_outputs() -> None:
    net, (x, ns) = FEATURES.build("torch", seed=0), batch(FEATURES)
    seen: list[str] = []
    for name, layer in net.named_modules():
        layer.register_forward_hook(lambda *_, name=name: seen.append(name))
    net.unit.register_forward_hook(lambda _, __, y: y + 1)
    plain = FEATURES.build("torch", seed=0)
    torch.testing.assert_close(net(x, seq_length=ns), plain(x, seq_length=ns) + 1)
    assert sorted(seen) == sorted(name for name, _ in net.named_modules())


def test_a_name_that_torch_has_itself_is_refused() -> None:
    with pytest.raises(errors.LimitError, match=r"a layer named 'half', which torch.nn.Module has itself; rename it"):
        Sequential(half=LinearSpec(3, 3)).build("torch")


@pytest.mark.parametrize("training", [True, False])
def test_tokens_out_of_range_are_refused(training: bool) -> None:
    net, (x, ns) = CLASSIFIER.build("torch", seed=0).train(training), batch(CLASSIFIER)
    x[0, 3] = 20
    with pytest.raises(errors.ArgumentError, match=r"given token 20, expected 0 <= token < 20 \(num_embeddings\)"):
        net(x, seq_length=ns)


# ---- snapshots -----------------------------------------------------------------------------------


def test_a_model_that_was_changed_is_not_read() -> None:
    def changed(name: str, layer: nn.Module) -> nn.Module:
        net: nn.Module = FEATURES.build("torch", seed=0)
        net.set_submodule(name, layer)
        return net

    for net in (
        changed("act", nn.Tanh()),
        changed("block.layer.0", nn.Linear(8, 8, bias=False)),
        changed("norm", nn.BatchNorm1d(8, eps=0.1)),
        changed("encoder", nn.GRU(8, 4, bidirectional=True, batch_first=True)),
    ):
        with pytest.raises(errors.SpecError, match=r"module: its layer .* is .*, expected that of"):
            unirnn.snapshot(net)
    net = FEATURES.build("torch", seed=0)
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))  # type: ignore[no-untyped-call]
    assert unirnn.snapshot(synchronised) == unirnn.snapshot(net)
    with pytest.raises(errors.ArgumentError, match="on the device 'meta' and has no values"):
        unirnn.snapshot(net.to("meta"))


def test_parametrized_layers_are_read_as_they_compute() -> None:
    net = CLASSIFIER.build("torch", seed=0)
    parametrizations.weight_norm(net.head)
    with torch.no_grad():
        net.head.parametrizations.weight.original0.mul_(2)
    taken = unirnn.snapshot(net)
    x, ns = batch(CLASSIFIER)
    torch.testing.assert_close(taken.build("torch")(x, seq_length=ns), net(x, seq_length=ns))
    with pytest.raises(errors.ArgumentError, match=r"its head.weight is computed by a parametrization"):
        unirnn.load_weights(net, taken)


# ---- graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["classifier", "stream", "pooled"])
def test_one_graph_with_any_lengths(name: str) -> None:
    spec = SPECS[name]
    net = spec.build("torch", seed=0).eval()
    torch.compiler.reset()
    compiled: Any = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    for lengths, steps in (((9, 5, 0, 7), 9), OTHER):
        x, ns = batch(spec, lengths, steps)
        torch.testing.assert_close(compiled(x, seq_length=ns), net(x, seq_length=ns))
        found = []
        for module in (net, compiled):
            net.zero_grad()
            module(x, seq_length=ns).square().sum().backward()
            found.append([p.grad for p in net.parameters()])
        torch.testing.assert_close(*found)
    with pytest.raises(errors.LengthError, match=r"seq_length\[2\]: given 12, expected 0 <= n <= 11"):
        compiled(x, seq_length=torch.tensor([1, 1, 12, 1, 1, 1]))


def test_a_single_batch_normalisation_is_one_graph() -> None:
    net, x, ns = unirnn.BatchNormSpec(3).build("torch", seed=0).eval(), torch.ones(2, 5, 3), torch.tensor([3, 5])
    compiled: Any = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x, seq_length=ns), net(x, seq_length=ns))


def test_a_training_step_in_a_graph_counts_the_valid_steps_only() -> None:
    """The model has everything that a graph can hold; `test_one_graph_with_any_lengths` covers other models."""
    nets = [FEATURES.build("torch", seed=0) for _ in range(2)]
    torch.compiler.reset()
    compiled = torch.compile(nets[1], fullgraph=True, backend="aot_eager")
    x, ns = batch(FEATURES)
    for net in (nets[0], compiled):
        net(x, seq_length=ns).square().mean().backward()
    torch.testing.assert_close(nets[1].state_dict(), nets[0].state_dict())
    for one, other in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@each
def test_torch_export_with_any_lengths(spec: Spec) -> None:
    net, (x, ns) = spec.build("torch", seed=0).eval(), batch(spec)
    steps, size = torch.export.Dim("T", min=5, max=100), torch.export.Dim("B", min=1, max=64)
    axes = {0: steps, 1: size} if spec is STREAM else {0: size, 1: steps}
    shapes = {"input": axes, "seq_length": {0: size}}
    exported = torch.export.export(net, (x,), {"seq_length": ns}, dynamic_shapes=shapes).module()
    x, ns = batch(spec, *OTHER)
    torch.testing.assert_close(exported(x, seq_length=ns), net(x, seq_length=ns))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@each
def test_torch_jit_script_is_refused_with_a_reason(spec: Spec) -> None:
    net = spec.build("torch")
    for module in (net, nn.Sequential(net)):
        with pytest.raises(errors.LimitError, match=r"^torch.jit.script: .* use torch.export.export, or torch.jit.tr"):
            torch.jit.script(module)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@each
def test_torch_jit_trace_with_any_lengths(spec: Spec) -> None:
    net, (x, ns) = spec.build("torch", seed=0).eval(), batch(spec)
    traced: Any = torch.jit.trace(  # type: ignore[no-untyped-call]
        net, example_kwarg_inputs={"input": x, "seq_length": ns}
    )
    x, ns = batch(spec, *OTHER)
    torch.testing.assert_close(traced(input=x, seq_length=ns), net(x, seq_length=ns))


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:# The axis name:UserWarning")
@pytest.mark.parametrize("name", ["features", "stream"])
def test_onnx_export_with_any_lengths(name: str, tmp_path: Path) -> None:
    spec, path = SPECS[name], tmp_path / "model.onnx"
    net, (x, ns) = spec.build("torch", seed=0).eval(), batch(spec)
    steps, size = torch.export.Dim("T", min=5, max=100), torch.export.Dim("B", min=1, max=64)
    axes = {0: steps, 1: size} if spec is STREAM else {0: size, 1: steps}
    torch.onnx.export(
        net,
        (x.nan_to_num(),),
        path,
        kwargs={"seq_length": ns},
        dynamo=True,
        verbose=False,
        dynamic_shapes={"input": axes, "seq_length": {0: size}},
    )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x, ns = batch(spec, *OTHER)
    names = [given.name for given in session.get_inputs()]
    (actual,) = session.run(None, dict(zip(names, [x.numpy(), ns.numpy()], strict=True)))
    torch.testing.assert_close(torch.from_numpy(actual), net(x, seq_length=ns))


def test_transforms_of_torch_func() -> None:
    net = FEATURES.build("torch", seed=0).eval()
    x, _ = batch(FEATURES, (9, 9, 9, 9))
    ns = torch.tensor([9, 5, 0, 7])
    torch.testing.assert_close(torch.vmap(net)(x), net(x))
    by_vmap = torch.vmap(lambda x, n: net(x, seq_length=n))(x, ns)
    torch.testing.assert_close(by_vmap, net(x, seq_length=ns)[:, : by_vmap.shape[1]])
    parameters = {name: p.detach() for name, p in net.named_parameters()}

    def loss(parameters: dict[str, Tensor], x: Tensor, ns: Tensor | None = None) -> Any:
        return torch.func.functional_call(net, parameters, (x,), {"seq_length": ns}).square().sum()

    for kernel in ("auto", "reference"):
        net = FEATURES.build("torch", seed=0, kernel=kernel).eval()
        net(x, seq_length=ns).square().sum().backward()
        found = torch.func.grad(loss)(parameters, x, ns)
        torch.testing.assert_close(found, {name: p.grad for name, p in net.named_parameters()})
    each_grad = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    torch.testing.assert_close(each_grad["conv.weight"][1], torch.func.grad(loss)(parameters, x[1])["conv.weight"])


@pytest.mark.parametrize("spec", [CLASSIFIER, FEATURES, STREAM], ids=["classifier", "features", "stream"])
def test_autocast(spec: Spec) -> None:
    net, (x, ns) = spec.build("torch", seed=0), batch(spec)
    expected = copy.deepcopy(net)(x, seq_length=ns)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x, seq_length=ns)
    y.float().square().sum().backward()
    torch.testing.assert_close(y.float(), expected, rtol=0.1, atol=0.1)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


# ---- steps ---------------------------------------------------------------------------------------


def test_a_loop_of_steps_is_one_graph() -> None:
    net, (x, _) = STREAM.build("torch", seed=0), batch(STREAM, (4, 4), 4)
    torch.compiler.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def last(x: Tensor) -> Any:
        state = None
        for step in x:
            y, state = net.step(step, state)
        return y, state

    torch.testing.assert_close(last(x), (net(x)[-1], net(x, return_state=True)[1]))


# ---- training ------------------------------------------------------------------------------------


class Fit(lightning.LightningModule):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def training_step(self, given: tuple[Tensor, Tensor], _: int) -> Tensor:
        x, ns = given
        loss: Tensor = self.net(x, seq_length=ns).square().mean()
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning")
def test_lightning_trains_parameters_and_moves_buffers() -> None:
    net = FEATURES.build("torch", seed=0)
    before = copy.deepcopy(net.state_dict())
    trainer = lightning.Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Fit(net), DataLoader([batch(FEATURES), batch(FEATURES, *OTHER)], batch_size=None))  # type: ignore[arg-type]
    assert all(not torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.norm.num_batches_tracked == 2


def test_locked_dropout_drops_the_same_in_all_steps() -> None:
    net = Sequential(GRUSpec(3, 8), DropoutSpec(0.5, locked=True)).build("torch", seed=0)
    y = net(torch.ones(5, 4, 3), seq_length=np.array([5, 5, 2, 5]))
    dropped = y[:, [0, 1, 3]] == 0
    assert (dropped == dropped[:1]).all()
    assert 0 < dropped.float().mean() < 1
    assert (y[2:, 2] == 0).all()


# ---- models that are code ------------------------------------------------------------------------


class Attention(unirnn.Model):
    """Tag scores from attention over the valid steps."""

    def __init__(self, tags: int) -> None:
        self.embedding = EmbeddingSpec(20, 6)
        self.encoder = GRUSpec(6, 4, bidirectional=True, batch_first=True)
        self.drop = DropoutSpec(0.5)
        self.scores = LinearSpec(8, 1)
        self.head = LinearSpec(8, tags)
        self.temperature = 2.0

    def attend(self, h: Any, seq_length: Any) -> Any:
        xp = self.xp
        weights = xp.masked_softmax(self.scores(h)[:, :, 0] / self.temperature, seq_length)
        return xp.sum(weights[:, :, None] * h, axis=1)

    def forward(self, xp: Any, tokens: Any, seq_length: Any) -> Any:
        h, _ = self.encoder(self.embedding(tokens), seq_length=seq_length)
        return xp.log_softmax(self.head(self.drop(self.attend(h, seq_length))), axis=-1)


def test_a_model_from_code_is_a_module() -> None:
    net = Attention(3).build("torch", seed=0).eval()
    assert isinstance(net, nn.Module)
    assert isinstance(net.head, nn.Linear)
    assert [*net.state_dict()] == [*Attention(3).weight_shapes()]
    x, ns = batch(CLASSIFIER, (9, 5, 2, 7))
    x = x.clamp(min=0)
    y = net(x, ns)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        torch.testing.assert_close(other(x, seq_length=ns), y, rtol=0, atol=0)
        assert unirnn.snapshot(other) == unirnn.snapshot(net)
        assert other.temperature == 2
    assert not torch.equal(net.train()(x, ns), net(x, ns))
    net.eval().set_submodule("head", nn.Linear(8, 3, bias=False))
    with pytest.raises(errors.SpecError, match=r"its layer head is Linear.*bias=False.*, expected that of LinearSpec"):
        unirnn.snapshot(net)


@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:# The axis name:UserWarning")
def test_a_model_from_code_in_graphs(tmp_path: Path) -> None:
    net, (x, ns) = Attention(3).build("torch", seed=0).eval(), batch(CLASSIFIER)
    steps, size = torch.export.Dim("T", min=3, max=100), torch.export.Dim("B", min=1, max=64)
    shapes = {"tokens": {0: size, 1: steps}, "seq_length": {0: size}}
    exported = torch.export.export(net, (x.clamp(min=0), ns), dynamic_shapes=shapes).module()
    path = tmp_path / "model.onnx"
    torch.onnx.export(net, (x.clamp(min=0), ns), path, dynamo=True, verbose=False, dynamic_shapes=shapes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    torch.compiler.reset()
    compiled: Any = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
    for given in (((9, 5, 0, 7), 9), OTHER):
        x, ns = batch(CLASSIFIER, *given)
        x = x.clamp(min=0)
        expected = net(x, ns)
        torch.testing.assert_close(exported(x, ns), expected)
        torch.testing.assert_close(compiled(x, ns), expected)
        (actual,) = session.run(None, {"tokens": x.numpy(), "seq_length": ns.numpy()})
        torch.testing.assert_close(torch.from_numpy(actual), expected)


def test_names_of_a_model_from_code_that_torch_has_are_refused() -> None:
    class Own(Attention):
        def half(self) -> None:
            pass

    with pytest.raises(errors.LimitError, match=r"torch: given 'half' in Own, which torch.nn.Module has; rename it"):
        Own(3).build("torch")


def test_a_model_from_code_holds_others() -> None:
    class Both(unirnn.Model):
        def __init__(self) -> None:
            self.first, self.second = Attention(3), Attention(3)

        def forward(self, xp: Any, tokens: Any, seq_length: Any) -> Any:
            return self.first(tokens, seq_length) + self.second(tokens, seq_length=seq_length)

    net, (x, ns) = Both().build("torch", seed=0).eval(), batch(CLASSIFIER, (9, 5, 2, 7))
    assert unirnn.snapshot(net) == unirnn.snapshot(copy.deepcopy(net))
    torch.testing.assert_close(net(x.clamp(min=0), ns), net.first(x.clamp(min=0), ns) + net.second(x.clamp(min=0), ns))
