"""Environments that keep something over a reset play independent episodes if they are made anew."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces

from es_flipout import FlipoutES, MLPPolicy, evaluate
from es_flipout.envs import RemakeOnReset, make_env, make_vec


class Worn(gym.Env):
    """Pays less with every step that it has ever made, as a world that outlives a reset may."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - Gymnasium's own declaration
    observation_space, action_space = spaces.Box(-9, 9, (2,)), spaces.Box(-1, 1, (1,))
    num_closed = 0

    def __init__(self, render_mode=None, start=1.0):
        self.render_mode, self.start, self.steps = render_mode, start, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return self.place, {}

    def step(self, action):
        self.steps += 1
        self.place = self.place + action
        return self.place, self.start + float(self.place[0]) / self.steps, False, False, {}

    def render(self):
        return np.full((4, 4, 3), self.steps, np.uint8)

    def close(self):
        Worn.num_closed += 1


@pytest.fixture(autouse=True)
def _worn():
    gym.register("Worn-v0", Worn, max_episode_steps=5)
    yield
    del gym.registry["Worn-v0"]


WRAPPERS = ["es_flipout.envs:RemakeOnReset"]


def returns(num_envs, wrappers):
    env = make_vec("Worn-v0", num_envs, wrappers=wrappers, start=2.0)
    policy = MLPPolicy(
        env.single_observation_space, env.single_action_space, generator=torch.Generator().manual_seed(0)
    )
    population = FlipoutES(policy, population_size=8, sigma=0.3).ask()
    return evaluate(population, env, reset_seeds=range(8)).returns


def test_returns_do_not_depend_on_the_number_of_envs():
    expected = returns(8, [])  # one episode in each, all of them first ones
    assert (returns(3, []) != expected).any()
    for num_envs in (1, 3, 8):
        np.testing.assert_array_equal(returns(num_envs, WRAPPERS), expected)


def test_it_closes_the_old_one_and_keeps_the_arguments_and_the_limit():
    env, closed = make_env("Worn-v0", WRAPPERS, start=3.0, max_episode_steps=2), Worn.num_closed
    first = env.unwrapped
    env.reset(seed=0)
    assert env.unwrapped is first
    env.reset(seed=0)
    assert env.unwrapped is not first
    assert Worn.num_closed == closed + 1
    assert env.unwrapped.start == 3.0
    action = np.zeros(1, np.float32)
    assert [env.step(action)[3] for _ in range(2)] == [False, True]


def test_without_a_seed_episodes_differ_and_follow_from_the_first():
    env, again = (make_env("Worn-v0", WRAPPERS) for _ in range(2))
    env.reset(seed=4)
    again.reset(seed=4)
    starts = [env.reset()[0].tolist() for _ in range(3)]
    assert starts == [again.reset()[0].tolist() for _ in range(3)]
    assert len(set(map(tuple, starts))) == 3


def test_it_renders_the_new_one():
    env = make_env("Worn-v0", WRAPPERS, render_mode="rgb_array")
    assert env.render_mode == "rgb_array"
    for _ in range(2):
        env.reset(seed=0)
        assert env.render().max() == 0
        env.step(np.zeros(1, np.float32))
        assert env.render().max() == 1


def test_around_a_wrapper_that_does_not_say_how_it_was_made_it_is_refused():
    env = gym.make("Worn-v0")
    with pytest.raises(ValueError, match="name RemakeOnReset first, innermost"):
        RemakeOnReset(gym.Wrapper(env))
    with pytest.raises(ValueError, match="name RemakeOnReset first, innermost"):
        RemakeOnReset(Worn())
    with pytest.raises(ValueError, match=r"Worn-v0: ValueError \(in es_flipout.envs:RemakeOnReset\): "):
        make_env("Worn-v0", ["gymnasium:Wrapper", *WRAPPERS])
