"""A memory task: a cue is shown at the first step only and asked for at the last.

    es-train --config recall.yaml

The observation is (cue, distraction, question). The cue is 1 or -1 at the first step and 0 afterwards. The
distraction is random between the first and the last step and 0 at both. At the last step the question is 1,
and the reward is the action, in [-1, 1], times the cue: 1 for the right answer, -1 for the wrong one. That
observation does not depend on the cue, so a policy without memory gives the same answer to both cues and
scores 0 on average.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces

OBSERVATIONS = 3


class Recall(gym.Env):
    """The cue, `delay` steps of distraction, and the question."""

    observation_space = spaces.Box(-1.0, 1.0, (OBSERVATIONS,))
    action_space = spaces.Box(-1.0, 1.0, (1,))

    def __init__(self, delay: int = 4, render_mode: str | None = None) -> None:
        self.delay = delay
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        self.cue = float(self.np_random.choice([-1.0, 1.0]))
        return np.array([self.cue, 0.0, 0.0], np.float32), {}

    def step(self, action):
        over = self.time == self.delay + 1
        reward = self.cue * float(action[0]) if over else 0.0
        self.time += 1
        if self.time > self.delay:
            return np.array([0.0, 0.0, 1.0], np.float32), reward, over, False, {}
        return np.array([0.0, self.np_random.uniform(-1, 1), 0.0], np.float32), reward, over, False, {}


gym.register("Recall-v0", Recall)
