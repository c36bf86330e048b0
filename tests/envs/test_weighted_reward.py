"""Rewards that are vectors: their weighted sum, and what a mistake is answered with."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch

from es_flipout.envs import make_env, make_vec


class Two(gym.Env):
    """Is paid its action, and minus its square."""

    observation_space = action_space = gym.spaces.Box(-2.0, 2.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), np.array([action[0], -(action[0] ** 2)]), False, False, {}


gym.register("Two-v0", Two, max_episode_steps=4)


def step(env, action=1.5):
    env.reset(seed=0)
    _, rewards, _, _, info = env.step(torch.full((1, *env.single_action_space.shape), action))
    return rewards.item(), info.get("failures")


def test_the_reward_is_the_weighted_sum():
    # 2 * 1.5 + 0.5 * -(1.5**2) = 3 - 1.125
    assert step(make_vec("Two-v0", 1, reward_weights=[2, 0.5])) == (1.875, None)
    env = make_env("Two-v0", reward_weights=np.array([0.0, 1.0]))
    env.reset()
    assert env.step(np.ones(1, np.float32))[1] == -1.0


@pytest.mark.parametrize(
    ("env_id", "weights", "message"),
    [
        ("Two-v0", [], "the reward is an array of shape (2,), a number is needed: set env.reward_weights"),
        ("Two-v0", [1.0], "the reward has 2 parts, so it needs 2 reward_weights, got [1.0]"),
        (
            "Two-v0",
            [1.0, 2.0, 3.0],
            "the reward has 2 parts, so it needs 2 reward_weights, got [1.0, 2.0, 3.0]",
        ),
        ("Pendulum-v1", [1.0], "the reward is a number, so it needs no reward_weights: [1.0] were given"),
    ],
)
def test_weights_that_do_not_fit_are_a_fault(env_id, weights, message):
    _, failures = step(make_vec(env_id, 1, reward_weights=weights))
    assert message in failures[0]


@pytest.mark.parametrize("weights", [["a"], [float("nan")], "12", [True], 3, {1.0: 2.0}])
def test_weights_are_numbers(weights):
    with pytest.raises(ValueError, match="reward_weights must be finite numbers"):
        make_env("Two-v0", reward_weights=weights)


def test_native_tasks_have_a_number():
    with pytest.raises(ValueError, match=r"reward_weights are for .*; the reward of Hopper-v5 is a number"):
        make_vec("Hopper-v5", 1, reward_weights=[1.0, 2.0])
