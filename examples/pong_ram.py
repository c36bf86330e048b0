"""Atari Pong from its RAM. Needs the Arcade Learning Environment: pip install ale-py.

    es-train --config examples/pong_ram.yaml

`ALE/Pong-v5` draws its sticky actions in the emulator. To seed the emulator, it loads the game anew, which
takes as long as 300 env steps. Here the emulator has no randomness, and the same rule is applied outside of
it: an action lasts for 4 frames, and each frame repeats the previous action with probability 0.25. Every
reset seed still gives an episode of its own, and a reset is 30 times as fast.

The policy does not see all 128 bytes. It sees where the ball is, how much higher or lower each paddle is, and
by how much these four numbers have changed since the previous step.
"""

from __future__ import annotations

from typing import Any

import ale_py
import gymnasium as gym
import numpy as np

gym.register_envs(ale_py)

BALL_X, BALL_Y, PLAYER_Y, OPPONENT_Y = 49, 54, 51, 50
"""Places in the RAM."""


class StickyFrames(gym.Wrapper):
    """Plays an action for `skip` frames; each keeps the previous action with probability `sticky`."""

    def __init__(self, env: gym.Env, skip: int, sticky: float) -> None:
        super().__init__(env)
        self.skip, self.sticky = skip, sticky

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if seed is not None:
            self.chance = np.random.default_rng(seed)
        self.action = 0
        return self.env.reset(options=options)  # not the seed, which would load the game anew

    def step(self, action):
        total = 0.0
        for _ in range(self.skip):
            if self.chance.random() >= self.sticky:
                self.action = action
            observation, reward, terminated, truncated, info = self.env.step(self.action)
            total += float(reward)
            if terminated or truncated:
                break
        return observation, total, terminated, truncated, info


class Places(gym.Wrapper):
    """Observes where the ball is, both paddles relative to it, and the changes since the previous step."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self.observation_space = gym.spaces.Box(-2.0, 2.0, (8,))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        ram, info = self.env.reset(seed=seed, options=options)
        self.places = self._locate(ram)
        return self._observation(ram), info

    def step(self, action):
        ram, *rest = self.env.step(action)
        return self._observation(ram), *rest

    def _observation(self, ram):
        before, self.places = self.places, self._locate(ram)
        return np.concatenate([self.places, self.places - before])

    def _locate(self, ram):
        x, y, player, opponent = ram[[BALL_X, BALL_Y, PLAYER_Y, OPPONENT_Y]].astype(np.float32) / 255
        return np.array([x, y, player - y, opponent - y])


def pong(skip: int = 4, sticky: float = 0.25, render_mode: str | None = None) -> gym.Env:
    """Returns Pong with 8 observations and its 6 actions."""
    game = gym.make(
        "ALE/Pong-v5",
        obs_type="ram",
        frameskip=1,
        repeat_action_probability=0.0,
        render_mode=render_mode,
        disable_env_checker=True,
    )
    return Places(StickyFrames(game, skip, sticky))


gym.register("PongRam-v0", pong)
