"""FSDP, with a part of each weight in each process, trains the weights that one process trains on the whole batch.

    torchrun --nproc-per-node 2 examples/distributed/torch_fsdp.py

At the end the weights are gathered, loaded into a ``torch.nn.GRU``, and compared with those that the same training
gives in one process. The exit status is 1 if they differ, or if the loss has not fallen enough.
"""

import gc
import sys

import torch
from ragged import SIZE, sequences
from torch import distributed
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

import unirnn

SPEC = unirnn.GRUSpec(SIZE, SIZE)
TOLERANCE = 1e-5


def main() -> int:
    """Train, compare the weights, and return the exit status."""
    distributed.init_process_group("gloo")  # with GPUs "nccl"
    worst, first, last = train()
    # FSDP's objects hold the process group. When `train` has returned and they are collected, all processes can destroy
    # the group at the same time.
    gc.collect()
    distributed.barrier()
    distributed.destroy_process_group()
    return int(worst > TOLERANCE or last > first / 2)


def train() -> tuple[float, float, float]:
    """Train sharded and alone; return the largest difference between the weights, and the first and the last loss."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    x, lengths, targets = (torch.from_numpy(array) for array in sequences())
    mine = slice(rank, None, world_size)

    sharded, alone = SPEC.build("torch", seed=0), SPEC.build("torch", seed=0)
    fully_shard(sharded, mesh=init_device_mesh("cpu", (world_size,)))  # with GPUs "cuda"
    held = sum(p.to_local().numel() for p in sharded.parameters())
    print(f"process {rank}: {held} of {SPEC.num_weights} weights", flush=True)

    # Make the optimizer after sharding, so that it has the state of this process's part only.
    optimizers = [torch.optim.Adam(gru.parameters(), lr=0.01) for gru in (sharded, alone)]
    losses = []
    for _ in range(50):
        output, _ = sharded(x[:, mine], seq_length=lengths[mine])
        # FSDP takes the mean over processes, as DDP does; torch_ddp.py explains the factor `world_size`.
        loss = (output - targets[:, mine]).square().sum() * world_size / lengths.sum()
        loss.backward()

        output, _ = alone(x, seq_length=lengths)
        loss = (output - targets).square().sum() / lengths.sum()
        loss.backward()
        losses.append(loss.item())

        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()

    weights = get_model_state_dict(sharded, options=StateDictOptions(full_state_dict=True))
    native = torch.nn.GRU(SIZE, SIZE)
    native.load_state_dict(weights, strict=True)
    worst = max((a - b).abs().max().item() for a, b in zip(native.parameters(), alone.parameters(), strict=True))
    if rank == 0:
        print(f"weights: at most {worst:.1e} from those of one process")
        print(f"loss: {losses[0]:.2f} to {losses[-1]:.2f}")
    return worst, losses[0], losses[-1]


if __name__ == "__main__":
    sys.exit(main())
