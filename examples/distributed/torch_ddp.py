"""DistributedDataParallel gives the gradients that one process computes from the whole batch, even if it is ragged.

    torchrun --nproc-per-node 2 examples/distributed/torch_ddp.py

Each process learns from its own sequences. At each step, it compares the averaged gradients with those that it computes
from the whole batch. The exit status is 1 if they differ, or if the loss has not fallen enough.
"""

import sys

import torch
from ragged import SIZE, sequences
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import unirnn

SPEC = unirnn.GRUSpec(SIZE, SIZE)
TOLERANCE = 1e-6


def main() -> int:
    """Train, compare the gradients, and return the exit status."""
    distributed.init_process_group("gloo")  # with GPUs "nccl"
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    x, lengths, targets = (torch.from_numpy(array) for array in sequences())
    mine = slice(rank, None, world_size)

    gru = SPEC.build("torch", seed=0)
    parallel = DistributedDataParallel(gru)
    optimizer = torch.optim.Adam(gru.parameters(), lr=0.01)

    steps = lengths[mine].sum()
    print(f"process {rank}: {len(lengths[mine])} sequences, {steps} steps", flush=True)
    distributed.all_reduce(steps)  # from here on, the steps of all processes
    losses, differences = [], []
    for _ in range(50):
        optimizer.zero_grad()
        output, _ = parallel(x[:, mine], seq_length=lengths[mine])
        # DDP takes the mean over processes, however many steps each of them has. So each process multiplies its sum by
        # the number of processes, and divides it by the steps of all. The mean of these is the mean over all steps.
        loss = (output - targets[:, mine]).square().sum() * world_size / steps
        loss.backward()

        output, _ = gru(x, seq_length=lengths)  # one process, the whole batch
        loss = (output - targets).square().sum() / lengths.sum()
        alone = torch.autograd.grad(loss, list(gru.parameters()))
        differences += [(a - p.grad).abs().max().item() for a, p in zip(alone, gru.parameters(), strict=True)]
        losses.append(loss.item())
        optimizer.step()

    if rank == 0:
        print(f"gradients: at most {max(differences):.1e} from those of one process")
        print(f"loss: {losses[0]:.2f} to {losses[-1]:.2f}")
    distributed.destroy_process_group()
    return int(max(differences) > TOLERANCE or losses[-1] > losses[0] / 2)


if __name__ == "__main__":
    sys.exit(main())
