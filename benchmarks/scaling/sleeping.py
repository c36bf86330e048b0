"""An environment whose steps take time and no core, so that many ranks fit on a small machine.

    es-train --env.id benchmarks.scaling.sleeping:Sleeping-v0 --env.kwargs '{step_seconds: 0.02}'

Every step sleeps for as long as the physics of a core of its own would compute. How long an episode is
depends on its reset seed alone.
"""

from __future__ import annotations

import time
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.utils.seeding import np_random

from benchmarks.scaling.lengths import CONSTANT, Ints, drawn


class Sleeping(gym.Env[Any, Any]):
    """Sleeps `step_seconds` per step; the reward is the action, and observations are random."""

    def __init__(
        self,
        step_seconds: float = 0.02,
        lengths: str = CONSTANT,
        scale: float = 15.0,
        observation_size: int = 4,
        render_mode: str | None = None,
    ) -> None:
        """Takes what a step costs, and how long episodes are.

        Args:
            step_seconds: how long a step sleeps.
            lengths: name of a distribution; see `lengths`.
            scale: factor on its lengths.
            observation_size: features of an observation.
            render_mode: nothing is rendered.
        """
        self.observation_space = spaces.Box(-1.0, 1.0, (observation_size,))
        self.action_space = spaces.Box(-1.0, 1.0, (1,))
        self.render_mode = render_mode
        self._step_seconds, self._lengths, self._scale = step_seconds, lengths, scale
        self._left = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = int(drawn(self._lengths, self.np_random, self._scale))
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(self._step_seconds)
        self._left -= 1
        return self._observe(), float(action[0]), self._left == 0, False, {}

    def _observe(self) -> Any:
        return self.np_random.uniform(-1.0, 1.0, self.observation_space.shape).astype(np.float32)


def lengths_of_seeds(reset_seeds: Ints, name: str, scale: float) -> Ints:
    """Returns how long the episodes with these reset seeds are, int64 of the same shape."""
    each = [int(drawn(name, np_random(int(seed))[0], scale)) for seed in reset_seeds.ravel()]
    return np.array(each, np.int64).reshape(reset_seeds.shape)


gym.register("Sleeping-v0", Sleeping)
