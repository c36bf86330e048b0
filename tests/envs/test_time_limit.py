"""An environment that may never end is cut off; one that has a limit, or was asked for none, is not."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from es_flipout.envs import DEFAULT_EPISODE_STEPS, make_env, make_vec, time_limit
from es_flipout.rollout import Episodes, GymnasiumRollout


class Endless(gym.Env):
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}


class OwnLimit(gym.wrappers.TimeLimit):
    def __init__(self, env):
        super().__init__(env, 6)


@pytest.fixture(autouse=True)
def _endless(monkeypatch):
    monkeypatch.setattr(time_limit, "DEFAULT_EPISODE_STEPS", 5)
    for env_id, limit in (("Endless-v0", None), ("Limited-v0", 7)):
        gym.register(env_id, Endless, max_episode_steps=limit)
    yield
    for env_id in ("Endless-v0", "Limited-v0"):
        del gym.registry[env_id]


def length(env):
    env.reset(seed=0)
    for step in range(1, 21):
        *_, truncated, _ = env.step(torch.zeros(1, dtype=torch.int64))
        if truncated.all():
            return step
    return None


def test_the_default_is_documented():
    assert DEFAULT_EPISODE_STEPS == 10_000


@pytest.mark.parametrize(
    ("env_id", "wrappers", "kwargs", "limit", "default"),
    [
        ("Endless-v0", [], {}, 5, 5),
        ("Endless-v0", ["OrderEnforcing"], {"max_episode_steps": None}, 5, 5),
        ("Endless-v0", [], {"max_episode_steps": -1}, None, None),
        ("Endless-v0", [], {"max_episode_steps": 3}, 3, None),
        ("Endless-v0", ["test_time_limit:OwnLimit"], {}, 6, None),
        ("Limited-v0", [], {}, 7, None),
        ("Limited-v0", [], {"max_episode_steps": -1}, None, None),
    ],
)
def test_which_limit_holds(env_id, wrappers, kwargs, limit, default):
    env = make_vec(env_id, 1, wrappers=wrappers, **kwargs)
    assert env.default_limit == default
    assert length(env) == limit


def test_a_wrapper_around_it_does_not_hide_it():
    assert time_limit.default_limit(gym.Wrapper(make_env("Endless-v0"))) == 5


def test_the_baseline_is_cut_off_alike():
    policy = torch.nn.Linear(2, 2)
    policy.forward = lambda x: torch.zeros(1, dtype=torch.int64)
    episodes = Episodes(np.zeros(1, np.int64), np.zeros(1, np.int64))
    rollout = GymnasiumRollout(lambda: make_env("Endless-v0"))
    episodes.observation_size = rollout.observation_size
    rollout.play(policy, episodes, 0)
    assert episodes.lengths.tolist() == [5]
    assert episodes.faults == {}


@pytest.mark.parametrize("limit", [0, -2, "x", 2.5, True])
def test_a_bad_limit_is_refused(limit):
    with pytest.raises(
        ValueError, match="max_episode_steps must be an integer >= 1, or -1 for no limit, got"
    ):
        make_env("Endless-v0", max_episode_steps=limit)
