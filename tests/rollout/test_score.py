"""Scorer: no more and no less than a plain Gymnasium loop."""

from __future__ import annotations

import sys

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch

from es_flipout.envs import TASKS as NATIVE
from es_flipout.envs import GymnasiumVectorEnv, MujocoVectorEnv
from es_flipout.envs.mujoco.model_warnings import deprecations_silenced
from es_flipout.envs.mujoco.single_env import MujocoSingleEnv
from es_flipout.policies import MLPPolicy
from es_flipout.rollout import Episodes, PlayStoppedError, Scorer
from es_flipout.run.build import official_maker, official_scorer
from es_flipout.run.config import EnvConfig

EPISODES = 4
SEED = 70

TASKS = [
    pytest.param("HalfCheetah-v5", {"max_episode_steps": 10}, id="half-cheetah"),
    # Ends at different times, by falling and by the time limit.
    pytest.param("InvertedPendulum-v5", {"max_episode_steps": 12, "reset_noise_scale": 0.1}, id="pendulum"),
    pytest.param("Humanoid-v5", {"max_episode_steps": 30}, id="humanoid"),
    pytest.param("CartPole-v1", {"max_episode_steps": 100}, id="cartpole"),
]


class NegateReward(gym.RewardWrapper):
    """Turns every reward into its negative."""

    def reward(self, reward):
        return -reward


def make_env(env_id, kwargs):
    with deprecations_silenced():
        return gym.make(env_id, **kwargs)


def policy_for(env):
    generator = torch.Generator().manual_seed(0)
    policy = MLPPolicy(env.observation_space, env.action_space, hidden_sizes=(8,), generator=generator)
    with torch.no_grad():
        # A new policy hardly acts: its rewards would say little about it.
        policy.network[-1].weight.mul_(50.0)
    return policy


def outcome(score):
    """Returns the returns and the lengths of the episodes of a score."""
    return score.returns.tolist(), score.lengths.tolist()


def plain_episode(env, policy, seed):
    observation, _ = env.reset(seed=seed)
    total, length, ended = 0.0, 0, False
    while not ended:
        with torch.no_grad():
            action = policy(torch.from_numpy(observation).to(torch.float32).unsqueeze(0))[0].numpy()
        observation, reward, terminated, truncated, _ = env.step(action)
        total, length, ended = total + float(reward), length + 1, terminated or truncated
    return total, length


@pytest.mark.parametrize(("env_id", "kwargs"), TASKS)
def test_score_equals_a_plain_gymnasium_loop_of_consecutive_seeds(env_id, kwargs):
    env = make_env(env_id, kwargs)
    policy = policy_for(env)
    expected = [plain_episode(env, policy, SEED + i) for i in range(EPISODES)]
    scorer = official_scorer(EnvConfig(env_id, kwargs), EPISODES)
    score = scorer.score(policy, seed=SEED)
    scorer.close()
    # A float32 forward of one row differs from that of four by some 1e-7, which the physics amplifies to
    # 1e-5 at most; the returns of different seeds are far wider apart, as the last line asserts.
    assert score.returns == pytest.approx([total for total, _ in expected], rel=0, abs=1e-4)
    assert score.lengths.tolist() == [length for _, length in expected]
    if env_id in ("InvertedPendulum-v5", "CartPole-v1"):
        assert len(set(score.lengths)) > 1
    else:
        assert np.diff(np.sort(score.returns)).min() > 1e-3


def test_the_same_seed_scores_the_same_and_another_does_not():
    scorer = official_scorer(EnvConfig("HalfCheetah-v5", {"max_episode_steps": 15}), EPISODES)
    policy = policy_for(scorer)
    first = scorer.score(policy, seed=SEED)
    again = scorer.score(policy, seed=SEED)
    later = scorer.score(policy, seed=SEED + EPISODES)
    scorer.close()
    assert outcome(first) == outcome(again)
    assert not set(first.returns) & set(later.returns)


def test_env_kwargs_reach_the_environment():
    kwargs = {"max_episode_steps": 3, "forward_reward_weight": 0.0, "ctrl_cost_weight": 0.0}
    scorer = official_scorer(EnvConfig("HalfCheetah-v5", kwargs), 2)
    score = scorer.score(policy_for(scorer), seed=0)
    scorer.close()
    assert outcome(score) == ([0.0, 0.0], [3, 3])


def test_wrappers_surround_the_environment_innermost_first():
    wrappers = ["TimeAwareObservation", f"{__name__}:NegateReward"]
    config = EnvConfig("CartPole-v1", {"max_episode_steps": 5}, wrappers=wrappers)
    make = official_maker(config)
    env, scorer = make(), official_scorer(config, 2)
    score = scorer.score(policy_for(env), seed=0)
    scorer.close()
    assert isinstance(env, NegateReward)
    assert isinstance(env.env, gym.wrappers.TimeAwareObservation)
    assert env.observation_space.shape == (5,)
    assert outcome(score) == ([-5.0, -5.0], [5, 5])


def played(returns, faults=()):
    """Returns a table of episodes with these returns, some of which failed."""
    count = len(returns)
    episodes = Episodes(np.zeros(count, np.int64), np.arange(count))
    reasons = dict.fromkeys(faults, "broke")
    episodes.record(np.arange(count), np.array(returns), np.ones(count, np.int64), faults=reasons)
    return episodes


def test_mean_and_deviation_are_of_the_episodes_that_did_not_fail():
    # Mean 4, squared deviations 9 + 1 + 4 = 14 (9: 1-4, 1: 5-4, 4: 6-4), over 3 episodes.
    score = played([1.0, 5.0, 7.0, 6.0], faults=[2])
    assert score.mean_return == pytest.approx(4.0)
    assert score.std_return == pytest.approx((14 / 3) ** 0.5)
    assert played([2.0]).std_return == 0.0
    assert np.isnan([played([1.0], [0]).mean_return, played([1.0], [0]).std_return]).all()


class BreaksEnv(gym.Env):
    """Pays 1 a step for 3 steps; an odd seed breaks the second, and a multiple of 4 the reset."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,))
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        if seed % 4 == 0:
            raise RuntimeError("out of paint")
        self.breaks, self.time = seed % 2 == 1, 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        if self.breaks and self.time == 2:
            raise RuntimeError("out of paint")
        return np.zeros(2, np.float32), 1.0, self.time == 3, False, {}


gym.register("Breaks-v0", BreaksEnv)


def test_an_episode_that_breaks_is_left_out_of_the_score():
    scorer = official_scorer(EnvConfig("Breaks-v0"), 5)
    for _ in range(2):  # what broke is replaced
        score = scorer.score(policy_for(scorer), seed=1)
        np.testing.assert_array_equal(score.returns, [np.nan, 3.0, np.nan, np.nan, np.nan])
        assert score.lengths[1] == 3
        assert (len(score.faults), score.mean_return, score.std_return) == (4, 3.0, 0.0)
    scorer.close()


def test_processes_score_the_same():
    config = EnvConfig("CartPole-v1", {"max_episode_steps": 50})
    scores = []
    for processes in (0, 2):
        scorer = official_scorer(config, EPISODES, processes=processes)
        scores.append(outcome(scorer.score(policy_for(scorer), seed=SEED)))
        scorer.close()
    assert scores[0] == scores[1]


def test_a_stop_is_obeyed_before_the_next_step_and_leaves_no_trace():
    scorer = official_scorer(EnvConfig("HalfCheetah-v5", {"max_episode_steps": 8}), 2)
    policy, asked = policy_for(scorer), []

    def should_stop():
        asked.append(1)
        return len(asked) == 4

    whole = outcome(scorer.score(policy, seed=SEED))
    with pytest.raises(PlayStoppedError):
        scorer.score(policy, seed=SEED, should_stop=should_stop)
    assert len(asked) == 4
    assert outcome(scorer.score(policy, seed=SEED)) == whole
    scorer.close()


class Fragile(NATIVE["InvertedPendulum-v5"]):
    """Raises when the pole leans too far, before the episode ends."""

    def reward(self, before, after, fields, actions):
        if (fields["qpos"][:, 1].abs() > 0.1).any():
            raise ValueError("leans too far")
        return super().reward(before, after, fields, actions)


def make_fragile():
    return gym.wrappers.TimeLimit(MujocoSingleEnv(Fragile(reset_noise_scale=0.09)), 6)


@pytest.mark.parametrize("processes", [0, 1])
def test_a_task_that_raises_fails_in_the_score_as_in_training(processes):
    # Other processes cannot import this module, so its functions travel by value.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    scorer = Scorer(GymnasiumVectorEnv(make_fragile, 8, processes=processes))
    envs = MujocoVectorEnv(Fragile(reset_noise_scale=0.09), 8, max_episode_steps=6, threads=1)
    try:
        policy = policy_for(scorer)
        score = scorer.score(policy, seed=SEED)
        observations, info = envs.reset(seed=SEED)
        failed, lengths, ended = set(), np.zeros(8, int), np.zeros(8, bool)
        while not ended.all():
            with torch.no_grad():
                actions = policy(observations)
            lengths += ~ended
            observations, _, terminated, truncated, info = envs.step(actions)
            failed |= set(np.flatnonzero(info.get("failed", [])).tolist())
            ended = (terminated | truncated).numpy()
    finally:
        scorer.close()
        envs.close()
    assert 0 < len(failed) < 8
    assert score.faults == dict.fromkeys(sorted(failed), "Fragile.reward: ValueError: leans too far")
    assert score.lengths.tolist() == lengths.tolist()


class Blind(gym.ObservationWrapper):
    """Shows NaN in the third observation of odd seeds."""

    def reset(self, *, seed=None, options=None):
        self.time, self.seed = 0, seed
        return super().reset(seed=seed, options=options)

    def observation(self, observation):
        self.time += 1
        return observation * np.nan if self.time == 3 and self.seed % 2 else observation


def test_an_observation_that_is_not_finite_fails_the_episode_as_in_training():
    scorer = Scorer(GymnasiumVectorEnv(lambda: Blind(make_env("CartPole-v1", {"max_episode_steps": 5})), 4))
    score = scorer.score(policy_for(scorer), seed=0)
    scorer.close()
    assert set(score.faults) == {1, 3}
    assert score.mean_return == 5.0
