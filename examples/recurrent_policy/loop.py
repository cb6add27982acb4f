"""The same policy without unirnn: torch's LSTM in a loop over single steps, since an episode may begin at any of them.

stable-baselines3-contrib does the same as soon as one episode begins within a batch.
"""

import time
from collections.abc import Sequence
from statistics import median

import torch
from ppo import SPEC, Policy, Rollout, State, loss
from torch import Tensor, nn

__all__ = ["LoopPolicy", "largest_difference", "medians"]


class LoopPolicy(Policy):
    """A `Policy` that calls torch's LSTM for each step of a rollout. It has the same parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(SPEC.input_size, SPEC.hidden_size)

    def remember(self, x: Tensor, state: State, begins: Tensor) -> Tensor:
        """Run the LSTM over `(T, B, I)`."""
        h, c = state
        outputs = []
        for features, goes_on in zip(x, (~begins).float()[..., None], strict=True):
            output, (h, c) = self.lstm(features[None], (goes_on * h, goes_on * c))
            outputs.append(output)
        return torch.cat(outputs)


def medians(policies: Sequence[Policy], rollout: Rollout, repeats: int = 30) -> list[float]:
    """The median seconds of a training step of each policy. They take turns, so that noise affects them alike."""
    times: list[list[float]] = [[] for _ in policies]
    for _ in range(repeats):
        for policy, taken in zip(policies, times, strict=True):
            start = time.perf_counter()
            policy.zero_grad()
            loss(policy, rollout).backward()
            taken.append(time.perf_counter() - start)
    return [median(taken) for taken in times]


@torch.no_grad()
def largest_difference(a: Policy, b: Policy, rollout: Rollout) -> float:
    """The largest difference between the outputs of the LSTMs of two policies."""
    outputs = [p.remember(p.encoder(rollout.observed), rollout.state, rollout.begins) for p in (a, b)]
    return (outputs[0] - outputs[1]).abs().max().item()
