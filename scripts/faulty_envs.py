"""Environments that fail occasionally, each in its own way; see inject_faults.py."""

from __future__ import annotations

import os
import signal

import gymnasium as gym
import numpy as np
import torch

from es_flipout.envs import register_task
from es_flipout.envs.mujoco import InvertedPendulum


class ExplodingPendulum(InvertedPendulum):
    """A tenth of the starts is far too fast, a tenth is NaN, and in a tenth the reward is NaN."""

    def initial_state(self, rng):
        qpos, qvel = super().initial_state(rng)
        fate = rng.integers(10)
        if fate < 2:
            qvel[:] = (1e12, np.nan)[fate]
        if fate == 2:
            qpos[0] = 0.5  # marks the envs that have no reward
        return qpos, qvel

    def reward(self, before, after, fields, actions):
        rewards, terms = super().reward(before, after, fields, actions)
        return torch.where(fields["qpos"][:, 0] > 0.4, torch.nan, rewards), terms


class RaisingCartPole(gym.Wrapper):
    """Raises in one of 500 steps."""

    def step(self, action):
        if self.np_random.integers(500) == 0:
            raise RuntimeError("the cart has lost a wheel")
        return super().step(action)


class DyingCartPole(gym.Wrapper):
    """Kills its process in one of 5,000 steps."""

    def step(self, action):
        if self.np_random.integers(5000) == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


register_task("ExplodingPendulum-v0", ExplodingPendulum, max_episode_steps=1000)
for name, wrapper in (("Raising", RaisingCartPole), ("Dying", DyingCartPole)):
    gym.register(
        f"{name}CartPole-v0",
        lambda wrapper=wrapper, **kwargs: wrapper(gym.make("CartPole-v1", **kwargs).unwrapped),
        max_episode_steps=500,
    )
