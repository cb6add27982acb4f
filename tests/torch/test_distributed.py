"""In several processes or replicas, a module gives the same results as alone on the whole batch."""

import re
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

import unirnn
from unirnn import GRUSpec, LSTMSpec, RecurrentSpec, RNNSpec
from unirnn.contract.call import join_state
from unirnn.errors import ArgumentError
from unirnn.state import from_batch_major, to_batch_major

# a warning of torch about its own computation
PROJECTIONS = "LSTM with projections is not supported with oneDNN"
pytestmark = [pytest.mark.filterwarnings(f"ignore:{PROJECTIONS}:UserWarning"), pytest.mark.usefixtures("one_thread")]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "distributed"
SPECS: list[RecurrentSpec] = [
    RNNSpec(3, 4, 2, nonlinearity="relu"),
    GRUSpec(3, 4, 2, bidirectional=True, batch_first=True),
    LSTMSpec(3, 4, bidirectional=True, bias=False),
    LSTMSpec(3, 4, 2, proj_size=2, batch_first=True),
]
each = pytest.mark.parametrize("spec", SPECS, ids=repr)
LENGTHS = {
    "ragged": [5, 1, 0, 4, 2],
    "a process with lengths of 0 only": [5, 0, 2, 0, 4],
    "a process without a sequence": [3],
}
WORLD_SIZE = 2
Engine = Callable[[nn.Module], Any]


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("torch_ddp.py", ["process 0: 4 sequences, 40 steps", "process 1: 3 sequences, 4 steps", "gradients: at most"]),
        ("torch_fsdp.py", ["process 0: 816 of 1632 weights", "process 1: 816 of 1632 weights", "weights: at most"]),
    ],
)
def test_an_example_runs(script: str, says: list[str], tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD_SIZE)]
    done = subprocess.run(
        [*launch, str(EXAMPLES / script)], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(words in done.stdout for words in says), done.stdout
    assert re.search(r"loss: 5\.\d\d to 1\.\d\d", done.stdout), done.stdout


def batch(spec: RecurrentSpec, lengths: list[int]) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """An input with garbage in its padding, a state, and the lengths."""
    torch.manual_seed(1)
    x = torch.randn(5, len(lengths), 3)
    x[torch.arange(5).unsqueeze(1) >= torch.tensor(lengths)] = torch.nan
    state = tuple(torch.randn(shape) for shape in spec.state_shapes(len(lengths)).values())
    return x.swapaxes(0, 1) if spec.batch_first else x, state, torch.tensor(lengths)


def shard(
    spec: RecurrentSpec, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor, rank: int
) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
    """Every second sequence; the batch is the state's second axis, whatever ``batch_first`` says."""
    mine = slice(rank, None, WORLD_SIZE)
    return x[mine] if spec.batch_first else x[:, mine], tuple(part[:, mine] for part in state), lengths[mine]


def flat(result: Any) -> list[Tensor]:
    output, final = result
    return [output, *(final if isinstance(final, tuple) else (final,))]


def total(parts: Iterable[Tensor]) -> Any:
    """A loss that is a sum over sequences, and depends on every number of the result."""
    return torch.stack([part.square().sum() for part in parts]).sum()


def train(
    module: nn.Module, spec: RecurrentSpec, lengths: list[int], rank: int | None = None
) -> dict[str, Tensor | None]:
    """Train a little, on one process's shard or on everything; return the last gradients."""
    x, state, ns = batch(spec, lengths)
    scale = 1
    if rank is not None:
        x, state, ns = shard(spec, x, state, ns, rank)
        scale = WORLD_SIZE  # the engines take the mean over processes
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (total(flat(module(x, join_state(state), seq_length=ns))) * scale).backward()
        optimizer.step()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def ddp(module: nn.Module) -> nn.Module:
    return DistributedDataParallel(module)


def fsdp(module: nn.Module) -> Any:
    return fully_shard(module, mesh=init_device_mesh("cpu", (WORLD_SIZE,)))


def classic_fsdp(module: nn.Module) -> nn.Module:
    return FullyShardedDataParallel(module, device_id=torch.device("cpu"), use_orig_params=True)


ENGINES: list[Engine] = [ddp, fsdp, classic_fsdp]


MODEL = unirnn.Sequential(
    embedding=unirnn.EmbeddingSpec(20, 5),
    encoder=GRUSpec(5, 5, bidirectional=True, batch_first=True),
    pools=unirnn.Concat(unirnn.PoolSpec("mean"), unirnn.PoolSpec("max")),
    block=unirnn.Residual(unirnn.LinearSpec(20, 20)),
    head=unirnn.LinearSpec(20, 3),
)


def train_model(net: nn.Module, rank: int | None) -> dict[str, Tensor]:
    """The gradients of a model, on every second sequence of a batch, or on all."""
    tokens, lengths = torch.arange(24).reshape(4, 6) % 20, torch.tensor([6, 2, 0, 5])
    mine, scale = (slice(None), 1) if rank is None else (slice(rank, None, WORLD_SIZE), WORLD_SIZE)
    (total([net(tokens[mine], seq_length=lengths[mine])]) * scale).backward()
    gradients = {name.removeprefix("module."): p.grad for name, p in net.named_parameters()}
    return {name: g.full_tensor() if hasattr(g, "full_tensor") else g for name, g in gradients.items()}  # type: ignore[union-attr,misc]


def work(rank: int, folder: Path) -> None:
    """Run everything that the tests need in one of the processes, to start the interpreter once."""
    warnings.simplefilter("error")
    warnings.filterwarnings("ignore", PROJECTIONS, UserWarning)
    # fully_shard warns of any output that is a view, also of torch.nn.LSTM's with batch_first
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE)
    results: dict[Any, Any] = {}
    for engine in ENGINES:
        for spec in SPECS:
            for case, lengths in LENGTHS.items():
                # DDP starts from the weights of the first process, FSDP from each process's own part
                seed = rank if engine is ddp else 0
                module = engine(spec.build("torch", seed=seed))
                gradients = train(module, spec, lengths, rank)
                weights: dict[str, Any]
                if engine is ddp:
                    weights = {n: torch.from_numpy(w) for n, w in unirnn.snapshot(module.module).to("torch").items()}
                else:
                    gradients = {}  # they are gradients of sharded parameters
                    if engine is fsdp:
                        with pytest.raises(ArgumentError, match="sharded over processes, expected whole ones; gather"):
                            unirnn.snapshot(module)
                    weights = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))
                results[engine.__name__, repr(spec), case] = gradients, weights
    for engine in (ddp, fsdp):
        net = engine(MODEL.build("torch", seed=rank if engine is ddp else 0))
        results[engine.__name__, "model"] = train_model(net, rank)
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("processes")
    spawn(work, (folder,), nprocs=WORLD_SIZE)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD_SIZE)]


@each
@pytest.mark.parametrize("case", LENGTHS)
@pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.__name__)
def test_processes_train_to_the_weights_of_one(
    results: list[Any], engine: Engine, spec: RecurrentSpec, case: str
) -> None:
    alone = spec.build("torch", seed=0)
    first = unirnn.snapshot(alone)
    expected = train(alone, spec, LENGTHS[case])
    assert unirnn.snapshot(alone) != first
    for result in results:
        gradients, weights = result[engine.__name__, repr(spec), case]
        if engine is ddp:
            torch.testing.assert_close({k.removeprefix("module."): g for k, g in gradients.items()}, expected)
        native = getattr(nn, spec.kind)(**spec.to_kwargs("torch"))
        native.load_state_dict(weights, strict=True)
        torch.testing.assert_close(native.state_dict(), alone.state_dict())


@pytest.mark.parametrize("engine", [ddp, fsdp], ids=lambda engine: engine.__name__)
def test_processes_have_the_gradients_of_a_model_in_one(results: list[Any], engine: Engine) -> None:
    expected = train_model(MODEL.build("torch", seed=0), None)
    for result in results:
        torch.testing.assert_close(result[engine.__name__, "model"], expected)


class BatchMajor(nn.Module):
    """Layers as ``DataParallel`` can use them: it splits and joins all tensors along their first axis."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor, state: tuple[Tensor, ...], lengths: Tensor) -> tuple[Tensor, ...]:
        """`(B, T, I)`, parts of a state `(B, L*D, H)`, `(B,)`."""
        output, *final = flat(self.layers(x, join_state([from_batch_major(part) for part in state]), lengths))
        return output, *(to_batch_major(part) for part in final)


def replicate(network: Any, count: int) -> list[nn.Module]:
    """Like ``torch.nn.parallel.replicate``, which needs GPUs: a clone stands for the copy on another GPU."""
    replicas = []
    for _ in range(count):
        copies = {module: module._replicate_for_data_parallel() for module in network.modules()}
        for module, copied in copies.items():
            for name, child in module.named_children():
                setattr(copied, name, copies[child])
            for name, parameter in module.named_parameters(recurse=False):
                setattr(copied, name, parameter.clone())  # not a leaf, so a plain attribute of the replica
        replicas.append(copies[network])
    return replicas


@each
@pytest.mark.parametrize("lengths", [LENGTHS["ragged"], LENGTHS["a process with lengths of 0 only"]], ids=repr)
def test_replicas_have_the_outputs_and_the_gradients_of_the_module(spec: RecurrentSpec, lengths: list[int]) -> None:
    spec = replace(spec, batch_first=True)
    module = BatchMajor(spec.build("torch", seed=0))
    x, state, ns = batch(spec, lengths)
    arguments = (x, tuple(to_batch_major(part) for part in state), ns)
    whole = module(*arguments)
    expected = torch.autograd.grad(total(whole), list(module.parameters()))

    replicas = replicate(module, 2)
    assert not any(list(replica.parameters()) for replica in replicas)
    halves = zip(x.chunk(2), zip(*(part.chunk(2) for part in arguments[1]), strict=True), ns.chunk(2), strict=True)
    with ThreadPoolExecutor(2) as threads:  # one thread for each replica, as in DataParallel
        results = list(threads.map(lambda replica, half: replica(*half), replicas, halves))
    joined = tuple(torch.cat(parts) for parts in zip(*results, strict=True))
    torch.testing.assert_close(joined, whole)
    total(joined).backward()
    torch.testing.assert_close(tuple(parameter.grad for parameter in module.parameters()), expected)


@each
def test_data_parallel_without_a_gpu_is_the_module(spec: RecurrentSpec) -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    module = spec.build("torch", seed=0)
    x, state, ns = batch(spec, LENGTHS["ragged"])
    actual = nn.DataParallel(module)(x, join_state(state), seq_length=ns)
    torch.testing.assert_close(flat(actual), flat(module(x, join_state(state), seq_length=ns)), rtol=0, atol=0)
