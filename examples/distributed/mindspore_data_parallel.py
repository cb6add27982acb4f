"""Data parallelism in MindSpore gives the gradients that one process computes from the whole batch.

    GLOG_v=3 msrun --worker_num=2 --local_worker_num=2 --join=True --log_dir=msrun_log \
        examples/distributed/mindspore_data_parallel.py

It runs on a CPU. On Ascend the same command should work, but it has not been tested. Each process learns from its own
sequences. At each step, it compares the summed gradients with those that it computes from the whole batch. The exit
status is 1 if they differ, or if the loss has not fallen enough.
"""

import sys

import mindspore
from mindspore import Tensor, communication, nn
from ragged import SIZE, sequences

import unirnn

SPEC = unirnn.GRUSpec(SIZE, SIZE)
TOLERANCES = {"CPU": 1e-6, "Ascend": 1e-2}  # Ascend's GRU computes in float16


def main() -> int:
    """Train, compare the gradients, and return the exit status."""
    communication.init()  # before the first tensor
    target = mindspore.get_context("device_target")
    if target == "CPU":
        mindspore.runtime.launch_blocking()  # docs/mindspore.md explains it
    rank, world_size = communication.get_rank(), communication.get_group_size()
    x, lengths, targets = sequences()
    mine = slice(rank, None, world_size)
    whole = Tensor(x), Tensor(lengths), Tensor(targets)
    part = Tensor(x[:, mine]), Tensor(lengths[mine]), Tensor(targets[:, mine])
    steps = int(lengths.sum())
    print(f"process {rank}: {len(lengths[mine])} sequences, {lengths[mine].sum()} steps", flush=True)

    gru = SPEC.build("mindspore", seed=0)
    optimizer = nn.Adam(gru.trainable_params(), learning_rate=0.01)
    # Each process divides its sum by the steps of all processes. The sum of these is the mean over all steps.
    over_processes = nn.DistributedGradReducer(optimizer.parameters, mean=False)

    def forward(x: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        output, _ = gru(x, seq_length=lengths)
        return (output - targets).square().sum() / steps

    value_and_grad = mindspore.value_and_grad(forward, None, optimizer.parameters)
    losses, differences = [], []
    for _ in range(50):
        _, gradients = value_and_grad(*part)
        gradients = over_processes(gradients)

        loss, alone = value_and_grad(*whole)  # one process, the whole batch
        differences += [float((a - g).abs().max()) for a, g in zip(alone, gradients, strict=True)]
        losses.append(float(loss))
        optimizer(gradients)

    if rank == 0:
        print(f"gradients: at most {max(differences):.1e} from those of one process")
        print(f"loss: {losses[0]:.2f} to {losses[-1]:.2f}")
    return int(max(differences) > TOLERANCES[target] or losses[-1] > losses[0] / 2)


if __name__ == "__main__":
    sys.exit(main())
