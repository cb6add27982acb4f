"""Many cart-poles at once, in NumPy, of which the player sees only positions.

A pole stands on a cart, which is pushed to the left or to the right. The physics and the limits are those of the
classic control problem (Barto, Sutton and Anderson, 1983), as in Gymnasium's ``CartPole-v1``. There the player also
sees the velocities. Here it has to estimate them from earlier observations, which needs memory.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["ACTIONS", "LONGEST", "OBSERVED", "CartPoles"]

OBSERVED, ACTIONS = 2, 2
LONGEST = 500  # steps of an episode

GRAVITY, FORCE, SECONDS = 9.8, 10.0, 0.02
CART, POLE, HALF_LENGTH = 1.0, 0.1, 0.5  # the two masses, and half of the pole
FARTHEST, STEEPEST = 2.4, np.radians(12)


class CartPoles:
    """B cart-poles, each of which begins a new episode as soon as one has ended.

    Parameters
    ----------
    batch_size
        B, their number.
    seed
        Of the states in which episodes begin.
    """

    def __init__(self, batch_size: int, seed: int) -> None:
        self._random = np.random.default_rng(seed)
        self._state = self._first_states(batch_size)
        self._steps = np.zeros(batch_size, np.int64)

    def observe(self) -> NDArray[np.float32]:
        """The position of each cart and the angle of its pole, `(B, 2)`, divided by the largest allowed values."""
        x, _, angle, _ = self._state.T
        return np.stack([x / FARTHEST, angle / STEEPEST], axis=1, dtype=np.float32)

    def step(self, action: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
        """Push each cart to the left (0) or to the right (1).

        Returns
        -------
        observed
            As `observe`. Where an episode has ended, this is the first observation of the next one.
        terminated, truncated
            `(B,)` each: whether the episode has ended with this step, since the pole fell or the cart went too far, or
            since it has lasted for `LONGEST` steps.
        """
        x, speed, angle, turn = self._state.T
        sine, cosine = np.sin(angle), np.cos(angle)
        push = (np.where(action == 1, FORCE, -FORCE) + POLE * HALF_LENGTH * turn**2 * sine) / (CART + POLE)
        turn_rate = (GRAVITY * sine - cosine * push) / (HALF_LENGTH * (4 / 3 - POLE * cosine**2 / (CART + POLE)))
        speed_rate = push - POLE * HALF_LENGTH * turn_rate * cosine / (CART + POLE)
        self._state = self._state + SECONDS * np.stack([speed, speed_rate, turn, turn_rate], axis=1)
        self._steps = self._steps + 1

        x, _, angle, _ = self._state.T
        terminated = (abs(x) > FARTHEST) | (abs(angle) > STEEPEST)
        truncated = (self._steps == LONGEST) & ~terminated
        done = terminated | truncated
        self._state[done] = self._first_states(int(done.sum()))
        self._steps[done] = 0
        return self.observe(), terminated, truncated

    def _first_states(self, count: int) -> NDArray[np.float64]:
        """Position, speed, angle and turning speed of carts at rest, nearly."""
        return self._random.uniform(-0.05, 0.05, (count, 4))
