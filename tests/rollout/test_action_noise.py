"""Noise on actions: the formula, and the same from every player, in every company."""

from __future__ import annotations

from contextlib import closing
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from playing import rollout
from torch import nn

from es_flipout import (
    BaselinePlayer,
    Episodes,
    FlipoutES,
    GRUPolicy,
    GymnasiumRollout,
    HostPlayer,
    LinearPolicy,
    MLPPolicy,
    evaluate,
    make_vec,
)
from es_flipout.envs.gymnasium import GymnasiumVectorEnv
from es_flipout.envs.native import native_maker
from es_flipout.rollout import DevicePlayer, WorkerPlayer, reset_seeds
from es_flipout.step_noise import ACTIONS, episode_keys, fill_normal

SEEDS = [900, 900, 17, 17, 350, 350, 2, 2]  # antithetic pairs share theirs
TASK = "HalfCheetah-v5"
STEPS = 12


class Echo(gym.Env):
    """Rewards the sum of squared actions, so that a return shows what was done."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        assert action in self.action_space
        self.steps += 1
        return np.zeros(2, np.float32), float(np.square(action).sum()), self.steps == 5, False, {}


class Constant(nn.Module):
    """Acts the same, whatever the weights are."""

    def __init__(self, action, dtype=torch.float32):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 2))
        self.register_buffer("action", torch.as_tensor(action, dtype=dtype))

    def forward(self, observations):
        zeros = nn.functional.linear(observations, self.weight) * 0
        return zeros.view(-1, *(1,) * self.action.ndim) + self.action


def population_of(policy, size=8):
    return FlipoutES(policy, population_size=size, sigma=0.1).ask()


def half_cheetah(num_envs, dtype=torch.float32, **options):
    options = {"info": False, "threads": 1, **options}
    return make_vec(TASK, num_envs, dtype=dtype, max_episode_steps=STEPS, **options)


def members(policy_class=MLPPolicy, dtype=torch.float32):
    env = half_cheetah(1)
    generator = torch.Generator().manual_seed(0)
    policy = policy_class(env.single_observation_space, env.single_action_space, generator=generator)
    return population_of(policy.to(dtype))


@pytest.mark.parametrize("shape", [(3,), (4,)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_actions_are_those_of_the_formula(shape, dtype):
    space = spaces.Box(-0.5, 0.7, shape, dtype)
    action = np.full(shape, 0.25, dtype)
    envs = GymnasiumVectorEnv(partial(Echo, space), 3)
    played = evaluate(population_of(Constant(action)), envs, reset_seeds=SEEDS, action_noise=0.4)
    expected = np.zeros(len(SEEDS))
    numbers = np.zeros((len(SEEDS), action.size))
    everyone, keys = np.ones(len(SEEDS), np.bool_), episode_keys(np.array(SEEDS), ACTIONS)
    for step in range(5):
        fill_normal(numbers, everyone, keys, np.full(len(SEEDS), step))
        done = np.clip(action.ravel().astype(float) + 0.4 * numbers, space.low.min(), space.high.max())
        expected += np.square(done.astype(dtype)).sum(axis=1, dtype=dtype)
    np.testing.assert_allclose(played.returns, expected, rtol=1e-6)
    assert len(set(played.returns)) == 4  # pairs meet the same noise, others do not


def test_an_unbounded_action_is_not_clipped():
    space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    envs = GymnasiumVectorEnv(partial(Echo, space), 8)
    played = evaluate(population_of(Constant([1e6])), envs, reset_seeds=SEEDS, action_noise=1e3)
    assert np.abs(played.returns / 5e12 - 1).min() > 1e-6
    assert np.isfinite(played.returns).all()


@pytest.mark.parametrize("policy_class", [MLPPolicy, GRUPolicy])
@pytest.mark.parametrize("fused", [True, False])
def test_the_number_of_envs_changes_no_bit(policy_class, fused):
    population = members(policy_class)
    found = [
        evaluate(population, half_cheetah(num_envs, fused=fused), reset_seeds=SEEDS, action_noise=0.2)
        for num_envs in (1, 3, 8)
    ]
    for each in found[1:]:
        assert np.array_equal(each.returns, found[0].returns)
        assert torch.equal(each.observations().m2, found[0].observations().m2)
    quiet = evaluate(population, half_cheetah(3, fused=fused), reset_seeds=SEEDS)
    assert (quiet.returns != found[0].returns).all()


def test_processes_change_no_bit():
    population = members()
    expected = rollout(HostPlayer(half_cheetah(3)), population, SEEDS, action_noise=0.2)
    make_env = partial(native_maker(TASK, max_episode_steps=STEPS), 2, info=False, threads=1)
    with closing(WorkerPlayer.of_envs(population.policy, make_env, 2)) as player:
        found = rollout(player, population, SEEDS, action_noise=0.2)
    assert torch.equal(found.returns, expected.returns)
    assert torch.equal(found.observations.m2, expected.observations.m2)


def test_all_ways_to_play_agree():
    population = members(dtype=torch.float64)
    compiled, in_torch = (
        rollout(HostPlayer(half_cheetah(3, torch.float64, fused=fused)), population, SEEDS, action_noise=0.2)
        for fused in (True, False)
    )
    make_env = partial(gym.make, TASK, max_episode_steps=STEPS)
    with closing(BaselinePlayer(population.policy, lambda: GymnasiumRollout(make_env), num_workers=1)) as one:
        alone = rollout(one, population, SEEDS, action_noise=0.2)
    np.testing.assert_allclose(compiled.returns, in_torch.returns, rtol=1e-9)
    np.testing.assert_allclose(alone.returns, in_torch.returns, rtol=1e-9)


def test_compiled_actions_and_controls_stay_equal():
    from es_flipout.rollout.fused_loop import FusedLoop

    env = half_cheetah(3)
    population = members()
    loop = FusedLoop(env, population)
    loop.add(Episodes.of_population(SEEDS, action_noise=5.0))
    seen = []
    for _ in range(3):
        loop.step()
        assert np.array_equal(env.fused.controls, env.fused.actions)
        seen.append(env.fused.actions.copy())
    assert np.abs(seen).max() == 1.0  # the bound
    assert len(np.unique(seen)) > 10


def test_a_device_agrees_with_the_host():
    env = make_vec("InvertedPendulum-v5", 6, engine="warp", info=False, max_episode_steps=20)
    policy = LinearPolicy(env.single_observation_space, env.single_action_space)
    population = population_of(policy, 12)
    seeds = reset_seeds(12, 2)
    found, expected, quiet = (
        rollout(player, population, seeds, action_noise=noise)
        for player, noise in ((DevicePlayer(env), 0.5), (HostPlayer(env), 0.5), (DevicePlayer(env), 0.0))
    )
    torch.testing.assert_close(found.returns, expected.returns, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.observations.m2, expected.observations.m2, rtol=1e-5, atol=1e-6)
    assert not torch.equal(found.observations.m2, quiet.observations.m2)


@pytest.mark.parametrize(
    "space",
    [spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.Box(0, 5, (2,), np.int64)],
    ids=lambda space: type(space).__name__,
)
def test_actions_without_room_for_noise_are_refused_in_one_line(space):
    envs = GymnasiumVectorEnv(partial(Echo, space), 2)
    policy = LinearPolicy(Echo.observation_space, space)
    with pytest.raises(ValueError, match=r"a Box of floats, got .*: set rollout\.action_noise to 0$"):
        evaluate(population_of(policy), envs, action_noise=0.1)


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf"), "0.1"])
def test_noise_that_is_no_standard_deviation_is_refused(noise):
    with pytest.raises(ValueError, match=r"action_noise must be >= 0, got"):
        Episodes.of_population(SEEDS, action_noise=noise)
