"""By PPO, a policy with memory learns to balance a pole from positions alone, and one without memory does not.

    python examples/recurrent_policy/train.py

Both are the same network, but one of them forgets everything at each step. Then the script measures the time of a
training step, and that of a policy which runs torch's LSTM in a loop over single steps. The exit status is 1 if the
mean score with memory is below 300 of 500, if the score without memory is above 100, or if the outputs of the two LSTMs
differ by more than 1e-5.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from loop import LoopPolicy, largest_difference, medians
from ppo import PLAYERS_AT_ONCE, STEPS, Players, Policy, evaluate, train

__all__ = ["main"]

ENOUGH, TOO_MUCH = 300, 100  # scores with and without memory
TOLERANCE = 1e-5


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the policies, measure the costs, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the games, the weights and the actions (default 0)")
    seed = parser.parse_args(arguments).seed
    torch.set_num_threads(1)  # a second thread does not help in layers of this size
    torch.manual_seed(seed)

    with_memory, without = train_both(seed)
    difference = compare_with_loop(seed)
    return int(not (with_memory >= ENOUGH and without <= TOO_MUCH and difference <= TOLERANCE))


def train_both(seed: int) -> list[float]:
    """Train a policy with and one without memory, side by side, and return their last scores."""
    policies = [Policy(), Policy(forgets=True)]
    print("   steps  with memory  without memory")
    for number, (steps, _) in enumerate(zip(*(train(policy, seed) for policy in policies), strict=True), start=1):
        if number % 8 == 0:
            # with other games than in training
            scores = [evaluate(policy, seed + 1) for policy in policies]
            print("{:8,}{:13.0f}{:16.0f}".format(steps, *scores), flush=True)
    return scores


def compare_with_loop(seed: int) -> float:
    """Print what a training step costs with resets and in a loop, and return how much their outputs differ."""
    policy, loop = Policy(), LoopPolicy()
    loop.load_state_dict(policy.state_dict())
    # An untrained policy has the shortest episodes.
    rollout = Players(policy, PLAYERS_AT_ONCE, seed).play(STEPS)
    with_resets, in_loop = medians([policy, loop], rollout)
    difference = largest_difference(policy, loop, rollout)
    begun = int(rollout.begins.sum())
    print(f"\nA training step over {STEPS} steps of {PLAYERS_AT_ONCE} players, with {begun} beginnings of an episode")
    print(f"with resets             {1000 * with_resets:6.1f} ms")
    print(f"in a loop of steps      {1000 * in_loop:6.1f} ms")
    print(f"ratio                   {with_resets / in_loop:6.2f}")
    print(f"the outputs differ by   {difference:6.0e}")
    return difference


if __name__ == "__main__":
    sys.exit(main())
