"""One number of a vector reward: the sum of its parts, each times its weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from typing_extensions import override

from es_flipout.envs.values import EnvFault, step_result, vector


class WeightedReward(gym.Wrapper[Any, Any, Any, Any]):
    """Makes the reward of an environment the weighted sum of its parts."""

    def __init__(self, env: gym.Env[Any, Any], weights: Sequence[float]) -> None:
        """Takes the environment, and the weights of the parts in their order."""
        super().__init__(env)
        self._weights = np.asarray(weights, np.float64)

    @override
    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Advances the environment.

        Raises:
            EnvFault: if the reward is no vector with as many parts as there are weights, or the environment
                returned anything else than five values.
        """
        observation, reward, terminated, truncated, info = step_result(self.env.step(action))
        parts = vector(reward)
        if parts is None:
            raise EnvFault(
                f"the reward is a number, so it needs no reward_weights: {self._weights.tolist()} were given"
            )
        if len(parts) != len(self._weights):
            raise EnvFault(
                f"the reward has {len(parts)} parts, so it needs {len(parts)} reward_weights, "
                f"got {self._weights.tolist()}"
            )
        return observation, float(self._weights @ parts), terminated, truncated, dict(info)


def check_weights(weights: Any) -> None:
    """Checks that weights are finite numbers.

    Raises:
        ValueError: if they are not.
    """
    is_list = isinstance(weights, Sequence | np.ndarray) and not isinstance(weights, str)
    if not is_list or not all(map(_is_finite, weights)):
        raise ValueError(f"reward_weights must be finite numbers, one per part of the reward, got {weights}")


def _is_finite(weight: Any) -> bool:
    if not isinstance(weight, int | float | np.number) or isinstance(weight, bool):
        return False
    try:
        return math.isfinite(weight)
    except OverflowError:  # an integer beyond all floats
        return False
