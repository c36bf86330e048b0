"""A pixel task: a ball falls, and a paddle in the lowest row has to be under it when it lands.

    es-train --config catch.yaml

The observation is an image, uint8 [8, 8, 1], black except for the ball and the paddle. The reward comes when
the ball lands: 1 if it is caught, lower for each column in between, and -1 at the greatest distance.
"""

from __future__ import annotations

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Catch(gym.Env):
    """The paddle moves left, stays, or moves right; it can always reach the ball in time."""

    action_space = spaces.Discrete(3)

    def __init__(self, size: int = 8, render_mode: str | None = None) -> None:
        self.size = size
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0, 255, (size, size, 1), np.uint8)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.ball, self.paddle = self.np_random.integers(self.size, size=2)
        self.row = 0
        return self._image(), {}

    def step(self, action):
        self.paddle = min(max(self.paddle + int(action) - 1, 0), self.size - 1)
        self.row += 1
        over = self.row == self.size - 1
        missed_by = abs(int(self.ball) - int(self.paddle))
        reward = 1.0 - 2.0 * missed_by / (self.size - 1) if over else 0.0
        return self._image(), reward, over, False, {}

    def _image(self):
        image = np.zeros((self.size, self.size, 1), np.uint8)
        image[self.row, self.ball] = image[-1, self.paddle] = 255
        return image


gym.register("Catch-v0", Catch)
