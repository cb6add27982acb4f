"""A recurrent policy, and PPO: it acts step by step, and learns from whole rollouts with resets."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from cartpole import ACTIONS, LONGEST, OBSERVED, CartPoles
from torch import Tensor, nn
from torch.distributions import Categorical

import unirnn
from unirnn.state import select, where, zeros

__all__ = ["Players", "Policy", "Rollout", "evaluate", "learn", "loss", "train"]

SPEC = unirnn.LSTMSpec(64, 64)
ROLLOUTS, STEPS, PLAYERS = 40, 64, 32
EPOCHS, PLAYERS_AT_ONCE = 4, 8  # of learning from one rollout
LEARNING_RATE, LARGEST_GRADIENT = 2e-3, 0.5
GAMMA, LAMBDA = 0.99, 0.95
CLIP, ENTROPY = 0.2, 0.01

State = tuple[Tensor, Tensor]  # of an LSTM


class Policy(nn.Module):
    """An LSTM with two heads, one for the actions and one for the value.

    Parameters
    ----------
    forgets
        Whether every step begins a new sequence. The policy then has no memory, but the same parameters.
    """

    def __init__(self, *, forgets: bool = False) -> None:
        super().__init__()
        self.forgets = forgets
        self.encoder = nn.Sequential(nn.Linear(OBSERVED, SPEC.input_size), nn.Tanh())
        self.lstm = SPEC.build("torch")
        self.actor = nn.Linear(SPEC.hidden_size, ACTIONS)
        self.critic = nn.Linear(SPEC.hidden_size, 1)

    def step(self, observed: Tensor, state: State, begins: Tensor) -> tuple[Categorical, Tensor, State]:
        """Act for one step: the distribution of actions, the expected return, and the state after this step.

        Parameters
        ----------
        observed
            `(B, 2)`.
        state
            The state after the step before.
        begins
            `(B,)`: where this step is the first of an episode.
        """
        state = where(begins | self.forgets, zeros(self.lstm, len(begins)), state)
        y, state = self.lstm.step(self.encoder(observed), state)
        return Categorical(logits=self.actor(y)), self.critic(y).squeeze(-1), state

    def forward(self, observed: Tensor, state: State, begins: Tensor) -> tuple[Categorical, Tensor]:
        """Compute the same for all steps of a rollout, to learn from it.

        Parameters
        ----------
        observed
            `(T, B, 2)`.
        state
            The state before the first step.
        begins
            `(T, B)`: which steps are the first of an episode.
        """
        output = self.remember(self.encoder(observed), state, begins | self.forgets)
        return Categorical(logits=self.actor(output)), self.critic(output).squeeze(-1)

    def remember(self, x: Tensor, state: State, begins: Tensor) -> Tensor:
        """Run the LSTM over `(T, B, I)`."""
        output, _ = self.lstm(x, state, resets=begins)
        return output  # type: ignore[no-any-return]


class Rollout(NamedTuple):
    """What the players did in T steps, for learning. All but the state are `(T, B)`.

    Parameters
    ----------
    state
        The state before the first step.
    observed
        `(T, B, 2)`.
    begins
        Whether a step is the first of an episode.
    action, log_prob
        What was done, and how probable it was.
    returns, advantage
        The discounted sum of rewards, and how much better than expected it was, as estimated from the values.
    """

    state: State
    observed: Tensor
    begins: Tensor
    action: Tensor
    log_prob: Tensor
    returns: Tensor
    advantage: Tensor

    def columns(self, players: Tensor) -> "Rollout":
        """The same for some of the players."""
        state, *steps = self
        return Rollout(select(state, players), *(values[:, players] for values in steps))


class Players:
    """B players, whose games and states continue from one rollout to the next.

    Parameters
    ----------
    policy
        The policy of all players.
    batch_size
        B.
    seed
        Of the games.
    """

    def __init__(self, policy: Policy, batch_size: int, seed: int) -> None:
        self.policy = policy
        self.games = CartPoles(batch_size, seed)
        self.observed = torch.from_numpy(self.games.observe())
        self.begins = torch.ones(batch_size, dtype=torch.bool)
        self.state = zeros(policy.lstm, batch_size)

    @torch.no_grad()
    def play(self, steps: int) -> Rollout:
        """Play on for some steps, and return them."""
        before, rows = self.state, []
        for _ in range(steps):
            actions, value, self.state = self.policy.step(self.observed, self.state, self.begins)
            action = actions.sample()
            observed, terminated, truncated = map(torch.from_numpy, self.games.step(action.numpy()))
            rows.append((self.observed, self.begins, action, actions.log_prob(action), value, terminated, truncated))
            # If this step ends an episode, the next step is the first of a new one.
            self.observed, self.begins = observed, terminated | truncated
        _, last, _ = self.policy.step(self.observed, self.state, self.begins)

        observed, begins, action, log_prob, values, *ends = map(torch.stack, zip(*rows, strict=True))
        advantage = advantages(torch.cat([values, last[None]]), *ends)
        return Rollout(before, observed, begins, action, log_prob, values + advantage, advantage)


def advantages(values: Tensor, terminated: Tensor, truncated: Tensor) -> Tensor:
    """Estimate how much better than expected the actions were, `(T, B)`, from the values `(T+1, B)`.

    This is generalised advantage estimation. The reward of a step is `1 - GAMMA`, so that returns are between 0 and 1.
    """
    # A truncated episode would have gone on. The value before its last step estimates what would have followed.
    following = torch.where(truncated, values[:-1], values[1:]) * ~terminated
    errors = 1 - GAMMA + GAMMA * following - values[:-1]
    done = terminated | truncated
    result, advantage = torch.zeros_like(errors), torch.zeros_like(errors[0])
    for t in reversed(range(len(errors))):
        result[t] = advantage = errors[t] + GAMMA * LAMBDA * advantage * ~done[t]
    return result


def loss(policy: Policy, rollout: Rollout) -> Tensor:
    """PPO's loss: the clipped loss of the actions, the loss of the values, and a bonus for entropy."""
    actions, value = policy(rollout.observed, rollout.state, rollout.begins)
    ratio = (actions.log_prob(rollout.action) - rollout.log_prob).exp()
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    advantage = (rollout.advantage - rollout.advantage.mean()) / rollout.advantage.std()
    gain = torch.minimum(ratio * advantage, clipped * advantage).mean()
    value_loss = (value - rollout.returns).square().mean()
    return value_loss - gain - ENTROPY * actions.entropy().mean()  # type: ignore[no-any-return]


def learn(policy: Policy, optimizer: torch.optim.Optimizer, rollout: Rollout) -> None:
    """Learn from a rollout. Each batch has all steps of some players, since a recurrent policy needs them in order."""
    for _ in range(EPOCHS):
        for players in torch.randperm(PLAYERS).split(PLAYERS_AT_ONCE):
            optimizer.zero_grad()
            loss(policy, rollout.columns(players)).backward()
            nn.utils.clip_grad_norm_(policy.parameters(), LARGEST_GRADIENT)
            optimizer.step()


def train(policy: Policy, seed: int) -> Iterator[int]:
    """Train a policy, and yield the number of steps played after each rollout."""
    players = Players(policy, PLAYERS, seed)
    optimizer = torch.optim.Adam(policy.parameters(), LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, ROLLOUTS)
    for number in range(ROLLOUTS):
        learn(policy, optimizer, players.play(STEPS))
        schedule.step()
        yield (number + 1) * STEPS * PLAYERS


@torch.no_grad()
def evaluate(policy: Policy, seed: int, episodes: int = 100) -> float:
    """The mean score: the number of steps for which the pole stands, with the most probable action at each step."""
    games = CartPoles(episodes, seed)
    state = zeros(policy.lstm, episodes)
    score, stands = torch.zeros(episodes), torch.ones(episodes, dtype=torch.bool)
    begins = torch.ones_like(stands)
    for _ in range(LONGEST):
        actions, _, state = policy.step(torch.from_numpy(games.observe()), state, begins)
        _, terminated, truncated = map(torch.from_numpy, games.step(actions.logits.argmax(-1).numpy()))
        begins = terminated | truncated
        score += stands
        stands = stands & ~begins
    return score.mean().item()
